"""Command line: `python -m enigma check|run|train|status|sufficiency|create|report|verify|cite|fetch`.

A command is one function of the parsed arguments that returns an exit status (None for 0), entered in `_parser`.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

from enigma.errors import InputError


def check(args: argparse.Namespace) -> None:
    """Validate a profile and everything it names, and print what it amounts to."""
    from enigma.profile import load_profile, sizes
    from enigma.run.inputs import check_inputs

    profile = load_profile(args.profile)
    pool = check_inputs(profile)
    print(f"{profile.name} ({profile.hash}): {profile.description}")
    for label, value in _size_rows(sizes(profile, len(pool)), profile):
        print(f"  {label:<34}{value}")
    if profile.model.source == "hub":
        print(f"  fetched from the hub on the first run: {profile.model.id} at {profile.model.revision[:12]}")
        print("    a gated model: accept its terms on its page at huggingface.co, then `hf auth login`")
    if profile.questions.source == "hub":
        print(
            f"  fetched from the hub on the first run: {profile.questions.dataset} at {profile.questions.revision[:12]}"
        )


def _size_rows(size, profile) -> list[tuple[str, str]]:
    def estimate(value: float | None, unit: str, digits: int = 1) -> str:
        return "not known for this model" if value is None else f"about {value:,.{digits}f} {unit}"

    from enigma.run import costs

    shape = costs.shape_of(profile.model)
    gpu = shape and costs.total(profile, shape, size.selection_completions, size.benchmark_items)
    hours = size.minutes is not None and size.minutes >= 300
    time = estimate(size.minutes / 60, "hours", 0) if hours else estimate(size.minutes, "minutes", 0)
    arms, seeds = len(profile.arms), len(profile.seeds.runs)
    return [
        ("runs (arms x seeds)", f"{size.runs} ({arms} x {seeds})"),
        ("training steps in all", f"{size.total_steps:,}"),
        ("completions per step", f"{size.completions_per_step:,}"),
        ("tokens per step, at most", f"{size.tokens_per_step:,}"),
        ("training tokens in all, at most", f"{size.total_tokens:,}"),
        ("stage 1 completions", f"{size.selection_completions:,}"),
        ("benchmark items, all models", f"{size.benchmark_items:,}"),
        ("time on 2 CPU cores", time),
        ("peak memory", estimate(size.memory_gb, "GB")),
        ("disk (model cache and runs)", estimate(size.disk_gb, "GB")),
        # A model of one H100 with its assumptions in enigma/run/costs.py; no GPU was measured.
        ("on one 80 GB GPU, not measured", estimate(gpu and gpu.gpu_hours, "GPU hours at most", 0)),
        ("  memory there", estimate(gpu and gpu.memory_gb, "GB", 0)),
        ("  price there", estimate(gpu and gpu.dollars, f"US dollars at {costs.GPU_PRICE:g} an hour", 0)),
    ]


def run(args: argparse.Namespace) -> int:
    """Run the notebooks on a profile."""
    from enigma.run import pipeline

    _say_how(args)
    try:
        folder = pipeline.run(args.profile, args.results, first=args.first, last=args.last)
    except pipeline.StageFailed as error:
        return _refuse(args, error, 1)
    # Once more, now that the record has the last stage's own cost.
    if (Path(args.results) / Path(folder).name / "report.html").is_file():
        report(args)
    print(folder)
    return 0


def train(args: argparse.Namespace) -> int:
    """Train runs of a profile and nothing else: all, one arm or seed, or every n-th. `enigma run` collects them."""
    from enigma.profile import load_profile, run_name
    from enigma.record.results import Results
    from enigma.run import jobs
    from enigma.run.inputs import check_inputs, check_results

    _say_how(args)
    profile = load_profile(args.profile)
    for option, found, known in (
        ("--arm", args.arm, list(profile.arms)),
        ("--seed", args.seed, profile.seeds.runs),
    ):
        if found is not None and found not in known:
            raise InputError(
                f"{option}: found {found!a:.60}; expected one of {', '.join(map(str, known))}; correct it"
            )
    runs = [(a, s) for a, s in profile.runs() if args.arm in (None, a) and args.seed in (None, s)]
    runs = jobs.shard(runs, args.shard)
    how = jobs.how(profile) if jobs.world_size() == 1 else jobs.How()
    results = Results(profile, args.results)
    check_inputs(profile)
    check_results(profile, results, ["01_select"])
    with jobs.ends_with_starter():
        from enigma.stages.train import train_runs

        try:
            train_runs(profile, results, runs, how)
        except RuntimeError as error:
            if how.apart:
                return _refuse(args, error, 1)
            raise
    if jobs.rank() == 0:
        print(f"trained: {', '.join(run_name(*one) for one in runs) or 'nothing'}")
    return 0


def _say_how(args: argparse.Namespace) -> None:
    """Hand --launch and --jobs to stage 2, which a notebook may run in a process of its own."""
    from enigma.run.jobs import JOBS, LAUNCH

    for name, value in ((LAUNCH, args.launch), (JOBS, args.jobs)):
        if value is not None:
            os.environ[name] = str(value)


def status(args: argparse.Namespace) -> None:
    """Show every stage, arm and seed of a profile as done, running, stopped, failed or missing. Writes nothing."""
    from enigma.profile import load_profile
    from enigma.run.status import text

    print(text(load_profile(args.profile), args.results))


def fetch(args: argparse.Namespace) -> None:
    """Download and convert the embedded model into the cache, and print where it is."""
    from enigma.llm.loading import embedded_folder

    print(embedded_folder())


def sufficiency(args: argparse.Namespace) -> None:
    """Rank the principles of a file by their Sufficiency Index, print the table and write it."""
    from enigma.profile import load_profile
    from enigma.run.inputs import check_ranking

    profile = load_profile(args.profile)
    folder = check_ranking(profile, args.principles, args.results)
    from enigma.stages.select import rank

    table = rank(profile, args.principles, folder)
    shown = table[["name", "si", "si_low", "si_high", "row_bound", "row_low", "row_high", "questions"]]
    print(shown.to_string(index=False, float_format=lambda value: f"{value:.3f}"))
    print(f"SI = row bound / log K, K = {table.k.iloc[0]}; intervals are 95 %, over questions")
    print(folder / "sufficiency.csv")


def create(args: argparse.Namespace) -> None:
    """Propose better texts for the principles of a file, keep those that prove it on fresh questions, and write both."""
    from enigma.data.questions import check_questions
    from enigma.llm.loading import check_can_make, check_model
    from enigma.profile import load_profile
    from enigma.record.results import Results
    from enigma.stages.create import load_seeds, run

    profile = load_profile(args.profile)
    results = Results(profile, args.results)
    seeds = load_seeds(args.principles)
    check_questions(
        profile.questions, {"select": profile.sufficiency.questions, "heldout": profile.sufficiency.heldout}
    )
    check_model(profile.model)
    check_can_make(results.folder, "results")
    results.check_folders()
    with results.lock():
        table = run(profile, seeds, results)
        from enigma.figures import all as figures

        figures.make(profile, results, "fig8_creation")
    shown = table[table["gain"].notna()]
    columns = ["seed", "origin", "si_seed", "si_proposal", "gain", "gain_low", "gain_high", "accepted"]
    print(shown[columns].to_string(index=False, float_format=lambda value: f"{value:.3f}"))
    print(
        f"accepted {table['accepted'].sum()} of {len(table)} proposals; intervals are 95 %, over fresh questions"
    )
    print(results.tables / "creation.csv")
    print(results.tables / "created_principles.yaml")


def report(args: argparse.Namespace) -> None:
    """Write the index, the page report.html and the machine-readable record anew, from the files that are there."""
    from enigma.profile import load_profile
    from enigma.record.report import publish
    from enigma.record.results import Results

    profile = load_profile(args.profile)
    for path in publish(profile, Results(profile, args.results)):
        print(path)


def verify(args: argparse.Namespace) -> int:
    """Recompute the tables that need no model, compare with what is there, and print what differs."""
    from enigma.profile import load_profile
    from enigma.record.results import Results
    from enigma.run import verify as verification

    profile = load_profile(args.profile)
    results = Results(profile, args.results)
    told, differs = verification.check(profile, results)
    if args.against is not None:
        rerun = verification.compare(results, Results(profile, args.against))
        told, differs = told + rerun[0], differs + rerun[1]
    print(f"{results.folder}:", *told, sep="\n  ")
    print(*(f"differs: {line}" for line in differs), f"{len(differs) or 'no'} differences", sep="\n")
    return 1 if differs else 0


def cite(args: argparse.Namespace) -> None:
    """Print the caption, file, hash, commit and BibTeX of a figure or table, and the paper's."""
    from enigma.profile import load_profile
    from enigma.record.results import Results

    print(Results(load_profile(args.profile), args.results).cite(args.figure))


def readme(args: argparse.Namespace) -> None:
    """Write the measured numbers of a profile into README.md, between its markers."""
    from enigma.profile import load_profile
    from enigma.record.report import update_readme
    from enigma.record.results import Results

    print(update_readme(Path("README.md"), Results(load_profile(args.profile), args.results)))


class _Parser(argparse.ArgumentParser):
    """Tells a wrong argument in one line, like every other error."""

    def error(self, message: str):
        self.exit(2, f"error: {message}; expected arguments as in `{self.prog} --help`; correct them\n")


def _parser() -> argparse.ArgumentParser:
    common = _Parser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser = _Parser(prog="python -m enigma", description="A reproducible companion to the ENIGMA paper.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(function, help_text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(
            function.__name__, parents=[common], help=help_text, description=function.__doc__
        )
        command.set_defaults(function=function)
        return command

    def processes(command: argparse.ArgumentParser) -> None:
        command.add_argument(
            "--jobs",
            type=int,
            metavar="N",
            help="train so many runs side by side (default: 1; 0: train nothing, all must be there)",
        )
        command.add_argument(
            "--launch",
            metavar="COMMAND",
            help="train each run under a launcher, for example 'accelerate launch --num_processes 8'",
        )

    add(check, "validate a profile and show its sizes").add_argument(
        "profile", help="a name or a path to a YAML file"
    )
    command = add(run, "run the five notebooks on a profile")
    command.add_argument("profile", help="a name or a path to a YAML file")
    command.add_argument(
        "--results", default="results", metavar="DIR", help="where to write (default: results)"
    )
    command.add_argument(
        "--from", dest="first", metavar="STAGE", help="begin at this stage, for example 03_benchmark"
    )
    command.add_argument(
        "--to", dest="last", metavar="STAGE", help="end with this stage, for example 01_select"
    )
    processes(command)
    command = add(train, "train single runs, for jobs on other machines")
    command.add_argument("profile", help="a name or a path to a YAML file")
    command.add_argument(
        "--results", default="results", metavar="DIR", help="where to write (default: results)"
    )
    command.add_argument("--arm", help="only this arm")
    command.add_argument("--seed", type=int, help="only this seed")
    command.add_argument(
        "--shard", default="1/1", metavar="I/N", help="only every N-th run, from the I-th on"
    )
    processes(command)
    command = add(status, "show how far a run is")
    command.add_argument(
        "profile", nargs="?", default="cpu", help="a name or a path to a YAML file (default: cpu)"
    )
    command.add_argument(
        "--results", default="results", metavar="DIR", help="where to look (default: results)"
    )
    command = add(sufficiency, "rank your own principles")
    command.add_argument("principles", help="a YAML file with a list under principles:")
    command.add_argument("--profile", default="cpu", help="a name or a path to a YAML file (default: cpu)")
    command.add_argument(
        "--results", default="results", metavar="DIR", help="where to write (default: results)"
    )
    command = add(create, "create principles from your own")
    command.add_argument("principles", help="a YAML file with a list under principles:")
    command.add_argument("--profile", default="cpu", help="a name or a path to a YAML file (default: cpu)")
    command.add_argument(
        "--results", default="results", metavar="DIR", help="where to write (default: results)"
    )
    command = add(report, "write report.html and its record anew")
    command.add_argument(
        "profile", nargs="?", default="cpu", help="a name or a path to a YAML file (default: cpu)"
    )
    command.add_argument(
        "--results", default="results", metavar="DIR", help="where to look (default: results)"
    )
    command = add(verify, "recompute the tables and compare")
    command.add_argument(
        "profile", nargs="?", default="cpu", help="a name or a path to a YAML file (default: cpu)"
    )
    command.add_argument(
        "--results", default="results", metavar="DIR", help="where to look (default: results)"
    )
    command.add_argument(
        "--against", metavar="DIR", help="compare also with a rerun, as written by run --results DIR"
    )
    command = add(cite, "how to cite a figure and the paper")
    command.add_argument("figure", help="for example fig2, fig2_training or claims")
    command.add_argument("--profile", default="cpu", help="a name or a path to a YAML file (default: cpu)")
    command.add_argument(
        "--results", default="results", metavar="DIR", help="where to look (default: results)"
    )
    command = add(readme, "write the measured numbers into README.md")
    command.add_argument("--profile", default="cpu", help="a name or a path to a YAML file (default: cpu)")
    command.add_argument(
        "--results", default="results", metavar="DIR", help="where to look (default: results)"
    )
    add(fetch, "put the embedded model into the cache")
    return parser


class Terminated(KeyboardInterrupt):
    """SIGTERM. To whatever runs it is an interrupt: kernels are stopped and temporary files removed."""


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 done, 1 a stage failed, 2 bad input, 130 interrupted (SIGINT), 143 terminated (SIGTERM)."""
    args = _parser().parse_args(arguments)
    try:
        with _interrupted_once():
            return args.function(args) or 0
    except InputError as error:
        return _refuse(args, error, 2)
    except KeyboardInterrupt as signalled:
        terminated = isinstance(signalled, Terminated)
        word = "terminated" if terminated else "interrupted"
        print(f"{word}; the same command continues where it stopped", file=sys.stderr)
        return 143 if terminated else 130


@contextlib.contextmanager
def _interrupted_once() -> Iterator[None]:
    """The first SIGINT or SIGTERM interrupts the block; a second one does not cut short what then tidies up."""

    def interrupt(number, frame):
        for each in before:
            signal.signal(each, signal.SIG_IGN)
        raise Terminated if number == signal.SIGTERM else KeyboardInterrupt

    before = {each: signal.signal(each, interrupt) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _refuse(args: argparse.Namespace, error: Exception, status: int) -> int:
    if args.debug:
        raise error
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
