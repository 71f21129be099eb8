"""The command line, `enigma` or `python -m enigma`: one function a command, each a few calls of the library."""

import contextlib
import json
import os
import re
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from enigma import __version__
from enigma.errors import InputError

app = typer.Typer(
    name="enigma",
    help="A reproducible companion to the ENIGMA paper (arXiv 2510.11278).",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
Profile = Annotated[str, typer.Argument(help="A name, or a path to a YAML file.")]
Default = Annotated[str, typer.Option("--profile", help="A name, or a path to a YAML file.")]
Root = Annotated[str, typer.Option("--results", metavar="DIR", help="Where results/<profile> lies.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Launch = Annotated[
    str | None,
    typer.Option(
        metavar="COMMAND",
        help="Train each run under a launcher, such as 'accelerate launch --num_processes 8'.",
    ),
]
Jobs = Annotated[
    int | None,
    typer.Option(
        metavar="N", help="How many processes work side by side; 0: train no run, all must be finished."
    ),
]
Allow = Annotated[
    bool, typer.Option("--allow-code", help="Let the profile import code of yours, beside it or installed.")
]
Other = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Where results/<profile> lies: a run of yours, not what is published."),
]

NO_MEMORY = r"failed to map segment|(cannot|can't) allocate memory|can't start new thread"


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(f"enigma {__version__}")
        raise typer.Exit


@app.command()
def check(profile: Profile = "cpu", as_json: Json = False, allow_code: Allow = False) -> None:
    """Check a profile and every file that it names, and show its sizes, time and memory."""
    _settings(None, None, allow_code)
    from enigma.profile import load_profile
    from enigma.run import costs, gpu_costs
    from enigma.run.inputs import check_inputs

    found = load_profile(profile)
    check_inputs(found)
    size = costs.sizes(found)
    rows = dict(vars(size))
    shape = gpu_costs.shape_of(found.model)
    if shape is not None:
        # A model of one H100 with its assumptions in enigma/run/gpu_costs.py; no GPU was measured.
        rows["gpu_hours_not_measured"] = gpu_costs.total(
            found, shape, size.selection_completions, size.benchmark_prompts
        ).gpu_hours
    _table([{"what": f"{found.name}: {key}", "value": value} for key, value in rows.items()], as_json)


@app.command()
def run(
    profile: Profile = "cpu",
    results: Root = "results",
    first: Annotated[
        str | None,
        typer.Option("--from", metavar="STAGE", help="The first stage to run, such as 03_benchmark."),
    ] = None,
    last: Annotated[
        str | None, typer.Option("--to", metavar="STAGE", help="The last stage to run, such as 01_select.")
    ] = None,
    launch: Launch = None,
    jobs: Jobs = None,
    allow_code: Allow = False,
) -> None:
    """Run the five notebooks on a profile, write the report, and compare with what is published."""
    from enigma.profile import load_profile

    load_profile(profile)  # a bad one is refused before any library is imported
    from enigma.record import report
    from enigma.run import pipeline

    _settings(launch, jobs, allow_code)
    try:
        done = pipeline.run(profile, results, first=first, last=last)
    except pipeline.StageFailed as error:
        raise SystemExit(_refuse(error, 1)) from None
    if last is None:
        print(_reproduction(done))
        print(report.publish_page(done.profile, done))
    print(done.folder)


def _reproduction(done) -> str:
    """The verdict on this run; a profile without published results has none."""
    from enigma.record.results import Results
    from enigma.run import compare

    reference = Results.reference(done.profile)
    if not reference.folder.is_dir():
        name = done.profile.name
        return f"reproduction: nothing is published here for the profile {name}; what is published comes with a clone"
    return compare.write(done, compare.compare(done, reference))


@app.command()
def train(
    profile: Profile,
    results: Root = "results",
    arm: Annotated[str | None, typer.Option(help="Only this arm.")] = None,
    seed: Annotated[int | None, typer.Option(help="Only this seed.")] = None,
    shard: Annotated[str, typer.Option(metavar="I/N", help="Only every N-th run, from the I-th on.")] = "1/1",
    launch: Launch = None,
    jobs: Jobs = None,
    allow_code: Allow = False,
) -> None:
    """Train runs of a profile and nothing else, for jobs on other machines. `enigma run` collects them."""
    from enigma.profile import load_profile, run_name
    from enigma.record.results import Results
    from enigma.run.inputs import check_inputs
    from enigma.stages import jobs as processes
    from enigma.stages.train import train_runs

    _settings(launch, jobs, allow_code)
    found = load_profile(profile)
    for option, value, known in (("--arm", arm, list(found.arms)), ("--seed", seed, found.seeds.runs)):
        if value is not None and value not in known:
            raise InputError(
                f"{option}: found {value!a:.60}; expected one of {', '.join(map(str, known))}; correct it"
            )
    runs = processes.shard([(a, s) for a, s in found.runs() if arm in (None, a) and seed in (None, s)], shard)
    check_inputs(found)
    processes.rank()  # a wrong one is refused before anything is read
    with processes.ends_with_starter():
        how = processes.how() if processes.world_size() == 1 else processes.How()
        train_runs(found, Results(found, results).store, runs, how)
    if processes.rank() == 0:
        print(f"trained: {', '.join(run_name(*one) for one in runs) or 'nothing'}")


@app.command()
def status(
    profile: Profile = "cpu", results: Root = "results", as_json: Json = False, allow_code: Allow = False
) -> None:
    """Show for every piece of work whether it is kept or still to do, and why."""
    _settings(None, None, allow_code)
    from enigma.profile import load_profile
    from enigma.run.status import status as lines

    _table([line._asdict() for line in lines(load_profile(profile), results)], as_json)


@app.command()
def select(
    principles: Annotated[str, typer.Argument(help="A YAML file with a list under principles:")],
    profile: Default = "cpu",
    results: Root = "results",
    as_json: Json = False,
) -> None:
    """Rank principles of your own by their Sufficiency Index."""
    from enigma.data.questions import check_questions
    from enigma.llm.check import check_model
    from enigma.profile import load_profile
    from enigma.record.results import Results
    from enigma.run.inputs import check_pool
    from enigma.stages.select import rank

    found = load_profile(profile)
    pool = check_pool(principles)
    check_questions(found.questions, {"select": found.sufficiency.questions})
    check_model(found.model)
    table = rank(found, pool, Results(found, results).store)
    _table(table[["name", "si", "si_low", "si_high", "information", "questions"]].to_dict("records"), as_json)


@app.command()
def create(
    principles: Annotated[str, typer.Argument(help="A YAML file with a list under principles:")],
    profile: Default = "cpu",
    results: Root = "results",
    as_json: Json = False,
) -> None:
    """Propose better texts for principles, test them on fresh questions, and write the table and the new pool."""
    from enigma.profile import load_profile
    from enigma.record.results import Results
    from enigma.stages import create as creation

    found = load_profile(profile)
    table = creation.run(found, creation.load_seeds(principles), Results(found, results))
    shown = table[table["gain"].notna()]
    columns = ["seed", "origin", "text", "gain", "gain_low", "gain_high", "similarity", "accepted"]
    _table(shown[columns].to_dict("records"), as_json)


@app.command()
def report(profile: Profile = "cpu", results: Root = "results") -> None:
    """Write report.html anew from the executed notebooks."""
    from enigma.profile import load_profile
    from enigma.record import report as page
    from enigma.record.results import Results

    found = load_profile(profile)
    print(page.publish_page(found, Results(found, results)))


@app.command()
def verify(profile: Profile = "cpu", results: Other = None, as_json: Json = False) -> None:
    """Make every published table again from its rows, and check every file; exit status 1 where something differs."""
    from enigma.profile import load_profile
    from enigma.run.verify import verify as verified

    found = load_profile(profile)
    lines = verified(found, _opened(found, results))
    _table([{"what": what, "fault": fault or "none"} for what, fault in lines], as_json)
    if any(fault for _, fault in lines):
        raise SystemExit(1)


@app.command()
def publish(profile: Profile, results: Root = "results") -> None:
    """For maintainers: make a finished run of one clean commit the published results of its profile."""
    from enigma.profile import load_profile
    from enigma.record.results import Results
    from enigma.run.publish import publish as published

    found = load_profile(profile)
    print(published(found, Results(found, results)))


@app.command()
def cite(
    name: Annotated[str, typer.Argument(help="For example fig3, fig3_training or claims.")],
    profile: Default = "cpu",
    results: Other = None,
) -> None:
    """Print the caption, file, hash, commit and BibTeX of a figure or table, and the paper's."""
    from enigma.profile import load_profile
    from enigma.record.cite import cite as citation

    _show(citation(_opened(load_profile(profile), results), name))


@app.command()
def fetch() -> None:
    """Download and convert the embedded model into the cache, and print where it is."""
    from enigma.llm.fetch import embedded_folder

    print(embedded_folder())


def _opened(profile, results: Path | None):
    """The results of a run in `results`, or what is published. Raises InputError where nothing is."""
    from enigma.record.results import Results

    if results is not None:
        return Results(profile, results)
    published = Results.reference(profile)
    if not published.folder.is_dir():
        raise InputError(
            f"profile {profile.name}: found nothing published here for it (what is published comes with a clone); expected a "
            f"run of yours; for results/{profile.name} give --results results"
        )
    return published


# ---- how -----------------------------------------------------------------------------------------------------------


def _settings(launch: str | None, jobs: int | None, allow_code: bool) -> None:
    """Hand options to the stages, which a notebook runs in a process of its own."""
    from enigma.errors import ALLOW
    from enigma.stages.jobs import JOBS, LAUNCH

    for name, value in ((LAUNCH, launch), (JOBS, jobs), (ALLOW, "1" if allow_code else None)):
        if value is not None:
            os.environ[name] = str(value)


def _table(rows: list[dict], as_json: bool) -> None:
    if as_json:
        from enigma.record.files import plain

        print(json.dumps(plain(rows), indent=2))  # ASCII: nothing in it moves a terminal's cursor
        return
    import pandas as pd
    from tabulate import tabulate

    frame = pd.DataFrame(rows)
    shown = frame.map(_cell)
    _show(tabulate(shown, headers=list(frame), showindex=False, disable_numparse=True, maxcolwidths=100))


def _show(text: str) -> None:
    """Print text that may come from outside: no control character of it reaches the terminal."""
    print("".join(c if c.isprintable() or c == "\n" else "?" for c in text))


def _cell(value) -> str:
    if str(value) in ("True", "False"):  # tabulate cannot wrap these words
        return "yes" if value else "no"
    return f"{value:,.3g}" if isinstance(value, float) else "" if value is None else str(value)


class Terminated(KeyboardInterrupt):
    """SIGTERM. To whatever runs it is an interrupt: kernels are stopped and temporary files removed."""


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 done, 1 a stage failed, 2 bad input, 130 interrupted (SIGINT), 143 terminated (SIGTERM)."""

    def terminate(number, frame):
        for each in (signal.SIGINT, signal.SIGTERM):  # a second one does not cut short what then tidies up
            signal.signal(each, signal.SIG_IGN)
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    for stream in (sys.stdout, sys.stderr):  # a terminal without Unicode shows what it can
        with contextlib.suppress(AttributeError, OSError):  # it may be none, or closed
            stream.reconfigure(errors="backslashreplace")
    try:
        given = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
        command = typer.main.get_command(app)
        # Not called as a whole: the library would turn an interrupt into an exit of its own.
        with command.make_context("enigma", list(given)) as context:
            return command.invoke(context) or 0
    except InputError as error:
        return _refuse(error, 2)
    except typer.Exit as error:
        return error.exit_code
    except Terminated:
        return _told("terminated; the same command continues where it stopped", 143)
    except (typer.Abort, KeyboardInterrupt):
        return _told("interrupted; the same command continues where it stopped", 130)
    except BrokenPipeError:  # whoever read the output has gone, as in `enigma status | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 1
    except Exception as error:
        if hasattr(error, "format_message"):  # a wrong argument, in the words of the command line's library
            found = error.format_message().strip().rstrip(".")
            return _refuse(f"command line: {found}; expected what `enigma --help` shows; correct it", 2)
        if isinstance(error, MemoryError) or re.search(NO_MEMORY, str(error), re.IGNORECASE):
            found = f"memory: found too little ({error or 'MemoryError'}); expected more"
            return _refuse(f"{found}; close other programs, or raise the limit of `ulimit -v`", 1)
        if isinstance(error, PermissionError):  # what another user wrote, or where only another may write
            found = f"{error.filename}: found {error.strerror}; expected a file of yours"
            return _refuse(f"{found}; ask its owner to open it, or name another folder", 2)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def _refuse(error: Exception | str, code: int) -> int:
    shown = (c if c.isprintable() else "?" for c in " ".join(str(error).split()))
    return _told(f"error: {''.join(shown)}", code)


def _told(text: str, code: int) -> int:
    with contextlib.suppress(OSError, AttributeError):  # closed, or None, as by `2>&-`
        sys.stderr.write(f"{text}\n")
    return code


def script() -> None:
    """The console script. Paths and files are UTF-8, whatever the locale says."""
    if sys.getfilesystemencoding() != "utf-8":
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
    from enigma.record.progress import Patient

    status = main()
    Patient(sys.stdout).flush()  # whoever read the output may have gone
    sys.exit(status)


if __name__ == "__main__":
    script()
