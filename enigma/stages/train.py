"""Stage 2: train every arm with every seed.

An arm is an entry of the profile: the set of principles it is trained on and the coefficients of the two extra terms.
All arms see the same questions in the same order, the same number of completions, and at most the same number of tokens. A run is one piece
of work: a finished one is not trained again, an interrupted one goes on from its last whole checkpoint.

Runs are trained one after the other in this process, or each by processes of its own (`enigma.stages.jobs`). Under a
launcher several processes train one run together: they share its steps' matched sets, and the first one alone writes (the
others add their generators' states to a checkpoint).
"""

import contextlib
import gc
import random
import sys
from pathlib import Path

import pandas as pd

from enigma import stages
from enigma.data.principles import Principle
from enigma.data.questions import load_questions
from enigma.errors import InputError
from enigma.profile import run_name
from enigma.record.cache import Piece, Store, digest
from enigma.record.files import atomic_write_text, file_hash
from enigma.record.progress import headless
from enigma.stages import curves, jobs, select

NAME = "02_train"
# Columns of the table `training`, and the trainer's log keys that they come from.
COLUMNS = {
    "step": "step",
    "loss": "loss",
    "loss_grpo": "loss/grpo",
    "loss_sami": "loss/sami",
    "loss_ot": "loss/ot",
    "reward_principle": "rewards/principle_reward/mean",
    "zero_spread": "frac_reward_zero_std",
    "probe": "probe",
    "kl": "reference/kl",
    "perplexity_base": "reference/perplexity",
    "grad_norm": "grad_norm",
    "grad_clipped": "grad_clipped",
    "entropy": "entropy",
    "row_bound": "sami/row_bound",
    "column_bound": "sami/column_bound",
    "row_bound_base_critic": "sami/reference_row_bound",
    "sinkhorn": "ot/divergence",
    "unconverged": "ot/unconverged",
    "tokens": "num_tokens",
    "seconds": "step_time",
    "peak_memory_gb": "peak_memory_gb",
}
CAPTIONS = {
    "training": "Every term of the loss at every step. Losses after their coefficients; bounds in nats; Sinkhorn "
    "divergence before the hinge, in units of the reference's mean cost; KL in nats per token; probe: mean log-probability "
    "(nats per token) of well-formed answers that nobody sampled.",
    "training_groups": "Mean reward and spread of every GRPO group: one question under one principle at one step.",
    "training_checks": "Did a run learn? Graded reward over the first and last fifth of the steps, the gain with a "
    "95 % interval over groups, and the share of groups without spread.",
}
# The profile's word for TRL's options.
ROLLOUTS = {
    "generate": {},
    "vllm_colocate": {"use_vllm": True, "vllm_mode": "colocate"},
    "vllm_server": {"use_vllm": True, "vllm_mode": "server"},
}
# Keys of the section `trainer` that do not change a run's numbers, or that an arm has of its own.
INDIFFERENT = {"report_to", "save_steps", "zero_spread", "max_steps", "learning_rate", "beta", "ot_budget"}
# An arm's keys of the neighbours (docs/neighbours.md), with their defaults.
NEIGHBOURS = {"optimizer": "adamw", "drift": "sinkhorn", "steering": None, "merge": None, "preference": None}
# Those that are no setting of the trainer.
OUTSIDE = {"reward", *NEIGHBOURS} - {"drift"}


# ---- pieces --------------------------------------------------------------------------------------------------------


def pieces(profile, store: Store) -> list[Piece]:
    """One piece for each (arm, seed)."""
    return [piece(profile, store, arm, seed) for arm, seed in profile.runs()]


def piece(profile, store: Store, arm: str, seed: int) -> Piece:
    """A training run: all that its adapter and its rows depend on. Raises NotDone before stage 1."""
    from enigma.llm import rewards
    from enigma.llm.loading import fingerprint

    chosen = select.chosen_sets(profile, store)[profile.arms[arm].set]
    needed = profile.arms[arm].needs()
    ingredients = {
        "model": fingerprint(profile.model, profile.seeds.initialisation),
        "prompts": profile.prompts.model_dump(),
        "arm": arm_settings(profile, arm),
        "trainer": profile.trainer.model_dump(exclude=INDIFFERENT),
        "principles": [[p.name, p.text] for p in chosen],
        "questions": digest(training_questions(profile)),
        "seeds": {key: getattr(profile.seeds, key) + seed for key in ("data", "initialisation", "sampling")},
    }
    if ":" in profile.arms[arm].reward:
        ingredients["code"] = rewards.code(profile.arms[arm].reward, profile.path.parent)
    if needed:
        ingredients["made_from"] = [piece(profile, store, other, seed).key for other in needed]
    return Piece("train", run_name(arm, seed), ingredients)


def arm_settings(profile, arm: str) -> dict:
    """The arm's values, with the trainer's where it has none of its own, and without a neighbour's key that is not used."""
    own = profile.arms[arm].model_dump(exclude={"set", "seeds", "control"})
    own = {
        key: value
        for key, value in own.items()
        if key not in NEIGHBOURS or value not in (NEIGHBOURS[key], None)
    }
    for key in ("max_steps", "learning_rate", "beta", "ot_budget"):
        own[key] = getattr(profile.trainer, key) if own[key] is None else own[key]
    return own


def training_questions(profile) -> list[str]:
    """The training questions, as many as the longest arm needs; a shorter one then begins as the others do."""
    spec = profile.trainer
    steps = max(spec.max_steps, *(arm.max_steps or 0 for arm in profile.arms.values()))
    sets = steps * spec.completions // (spec.num_principles * spec.num_generations)
    return load_questions(profile.questions, "train", sets, profile.seeds.data)


def adapter(profile, store: Store, arm: str, seed: int) -> Path:
    """The adapter's folder of a finished run. Raises NotDone before it is trained."""
    return store.need(piece(profile, store, arm, seed)) / "adapter"


def adapter_recipe(profile, store: Store, arm: str, seed: int | None) -> dict:
    """What names a model's weights beside the untrained model's, for the recipes of later pieces; empty for seed None."""
    if seed is None:
        return {}
    folder = adapter(profile, store, arm, seed)
    return {path.name: file_hash(path) for path in sorted(folder.glob("adapter_*"))}


# ---- measuring -----------------------------------------------------------------------------------------------------


def measure(profile, store: Store) -> dict:
    """Train what is missing; the steps and completions of every run.

    Raises:
        InputError: a run that is to be trained elsewhere and is not; or, where the profile's `zero_spread` is `error`, a
            run in which no group of completions had any spread of reward, and which therefore learned nothing.
        RuntimeError: a run of its own processes that failed.
    """
    if jobs.world_size() > 1:
        raise InputError(
            f"stage 2: found {jobs.world_size()} processes; expected 1 to write the tables; start it without a launcher, and "
            "name the launcher with --launch or ENIGMA_LAUNCH"
        )
    train_runs(profile, store, profile.runs(), jobs.how())
    runs = [_run_rows(store, piece(profile, store, *one), *one) for one in profile.runs()]
    _fail_without_signal(profile, runs)
    return {"runs": runs}


def train_runs(profile, store: Store, runs: list[tuple[str, int]], how: jobs.How) -> None:
    """Train these (arm, seed), in this process or as `how` says. Raises as `measure` does."""
    if not how.apart:
        for one in runs:
            train(profile, store, *one)
        return
    missing = [one for one in runs if store.fault(piece(profile, store, *one))]
    if missing and not how.jobs:
        names = ", ".join(run_name(*one) for one in missing)
        raise InputError(
            f"stage 2: found {len(runs) - len(missing)} of {len(runs)} runs trained, without {names}; expected all, since "
            "--jobs 0 trains nothing; train them with `python -m enigma train`, by --shard or by --arm and --seed"
        )
    if missing:
        logs = {one: store.work_folder(piece(profile, store, *one)) / "log.txt" for one in missing}
        jobs.run(profile, store.folder.parents[1], logs, how)
    for one in missing:
        store.need(piece(profile, store, *one))


def train(profile, store: Store, arm: str, seed: int) -> Path:
    """The folder of one finished run: `adapter/` (safetensors), `steps.csv`, `rollouts.jsonl`; trained unless it is kept."""
    one = piece(profile, store, arm, seed)
    if store.kept(one) is None and jobs.rank() > 0:
        _train(profile, store, one, arm, seed, None)
        return store.place(one)
    return store.get(one, lambda folder: _train(profile, store, one, arm, seed, folder))


def _train(profile, store: Store, one: Piece, arm: str, seed: int, target: Path | None) -> None:
    """Train one run into the folder `target`; None in the processes that do not write."""
    from enigma.llm.callbacks import Recorder, last_checkpoint
    from enigma.stages import neighbours  # which calls this module

    if make := neighbours.maker(profile.arms[arm]):
        return make(profile, store, arm, seed, target)
    checkpoints = store.work_folder(one) / "checkpoints"
    recorder = Recorder(one.key, one.name, profile.arms[arm].reward != "format")
    trainer = _trainer(profile, store, arm, seed, checkpoints, recorder)
    checkpoint = last_checkpoint(checkpoints, one.key)
    if checkpoint is not None:
        recorder.load(checkpoint)
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except FloatingPointError as error:
        good = last_checkpoint(checkpoints, one.key)
        raise InputError(
            f"{one.name}: {error}; expected a finite loss; last good checkpoint: {good.name if good else 'none'}; lower "
            "trainer.learning_rate or the arm's coefficients"
        ) from error
    sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
    # A collective: every process takes part.
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped) if sharded else None
    if target is not None:
        log = [row for row in trainer.state.log_history if "reward" in row]
        policy = trainer.accelerator.unwrap_model(trainer.model)
        save_run(profile, target, policy, log, recorder.rows, weights)
    # A trainer holds itself in cycles; without this the next run begins with the last one's memory.
    del trainer
    gc.collect()


def save_run(
    profile, target: Path, model, log: list[dict], rollouts: list[dict], weights: dict | None = None
) -> None:
    """Write a run's files: `log` has the trainer's keys of `COLUMNS`, those that are missing are empty in steps.csv."""
    from enigma.llm.callbacks import write_lines
    from enigma.llm.loading import hub_name, tidy_adapter

    steps = pd.DataFrame(log).reindex(columns=COLUMNS.values()).set_axis(list(COLUMNS), axis=1)
    model.save_pretrained(target / "adapter", state_dict=weights)
    tidy_adapter(target / "adapter", hub_name(profile.model))
    atomic_write_text(target / "steps.csv", steps.to_csv(index=False, float_format="%.6g"))
    write_lines(target / "rollouts.jsonl", rollouts)


def _trainer(profile, store: Store, arm: str, seed: int, output: Path, recorder):
    import torch
    from accelerate.utils import set_seed
    from datasets import Dataset
    from transformers import PrinterCallback, ProgressCallback

    from enigma.llm import optimisers, prompts, rewards
    from enigma.llm.callbacks import Probe, Watch
    from enigma.llm.config import EnigmaConfig
    from enigma.llm.loading import load_model, model_dtype
    from enigma.llm.trainer import EnigmaTrainer
    from enigma.method.rewards import strict_format_reward
    from enigma.stages import neighbours

    spec, own = profile.trainer, arm_settings(profile, arm)
    settings = spec.model_dump(exclude={"lora", "zero_spread", "rollouts"})
    settings |= ROLLOUTS[spec.rollouts]
    settings |= jobs.share(spec, jobs.world_size())
    settings |= {key: value for key, value in own.items() if key not in OUTSIDE}
    config = EnigmaConfig(
        output_dir=str(output),
        **settings,
        # The graded format, the strict one only to be seen, and a further reward.
        reward_weights=[1.0, 0.0, 1.0][: 2 + (own["reward"] != "format")],
        seed=profile.seeds.initialisation + seed,
        data_seed=profile.seeds.data + seed,
        use_cpu=not torch.cuda.is_available(),
        bf16=model_dtype(profile.model) == torch.bfloat16,
        logging_steps=1,
        disable_tqdm=headless(),
    )
    if config.world_size != jobs.world_size():
        raise InputError(
            f"stage 2: found {config.world_size} processes where WORLD_SIZE says {jobs.world_size()}; expected a launcher "
            "such as `accelerate launch`; start it with one, or unset WORLD_SIZE"
        )
    style = profile.prompts.model_dump()
    principles = select.chosen_sets(profile, store)[profile.arms[arm].set]
    model, tokenizer = load_model(profile.model, profile.seeds.initialisation)
    asked = neighbours.questions(profile, store, arm, seed)
    rows = matched_prompts(asked, principles, spec.num_principles, config.data_seed, **style)
    for row in rows:
        row["prompt"] = prompts.fit_template(tokenizer, row["prompt"])
    functions = [recorder.graded_format_reward, strict_format_reward]
    if own["reward"] != "format":
        given = (principles, tokenizer, style, config.device, lambda: _untrained(trainer))
        context = rewards.Context(*given, spec.max_completion_length, profile.seeds.sampling + seed)
        functions.append(rewards.build(own["reward"], context, profile.path.parent))
    trainer = EnigmaTrainer(
        model,
        functions,
        config,
        Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=lora_config(profile),
        callbacks=[recorder, Watch(run_name(arm, seed)), Probe(tokenizer, style, config.device)],
    )
    optimizer = optimisers.build(own.get("optimizer", "adamw"), trainer.model, config.learning_rate)
    trainer.optimizer = optimizer or trainer.optimizer
    # TRL has drawn the adapter's first weights with `seed`, and would draw completions with it too.
    trainer.args.seed = profile.seeds.sampling + seed
    set_seed(trainer.args.seed, device_specific=True)
    trainer.remove_callback(PrinterCallback if headless() else ProgressCallback)
    return trainer


def lora_config(profile):
    """PEFT's description of the adapter that every arm is trained with."""
    from peft import LoraConfig

    lora = profile.trainer.lora
    sizes = {"r": lora.r, "lora_alpha": lora.alpha, "lora_dropout": lora.dropout}
    return LoraConfig(**sizes, target_modules=list(lora.target_modules), task_type="CAUSAL_LM")


@contextlib.contextmanager
def _untrained(trainer):
    """The model without its adapter, as the trainer asks it."""
    with trainer.reference_model() as model, trainer.accelerator.autocast():
        yield model


def matched_prompts(
    questions: list[str], principles: list[Principle], k: int, seed: int, **style
) -> list[dict]:
    """Rows for `EnigmaTrainer`: for each question, its prompt under K principles drawn from the set.

    `style` goes to `enigma.llm.prompts.messages` (placement, demonstration). Which principles of the set a question gets
    depends on the seed and on the question's place alone, so two sets of equal size are drawn from alike.
    """
    from enigma.llm import prompts

    generator = random.Random(seed)
    return [
        {
            "prompt": prompts.messages(question, principles[j].text, **style),
            "matched_set": f"q{i}",
            "question": question,
            "principle": principles[j].name,
        }
        for i, question in enumerate(questions)
        for j in sorted(generator.sample(range(len(principles)), k))
    ]


def _run_rows(store: Store, one: Piece, arm: str, seed: int) -> dict:
    from enigma.llm.callbacks import read_lines

    folder = store.need(one)
    steps = pd.read_csv(folder / "steps.csv")
    rollouts = read_lines(folder / "rollouts.jsonl")
    return {"arm": arm, "seed": seed, "steps": steps.to_dict("list"), "rollouts": rollouts}


def _fail_without_signal(profile, runs: list[dict]) -> None:
    silent = [
        run_name(run["arm"], run["seed"]) for run in runs if all(x == 1 for x in run["steps"]["zero_spread"])
    ]
    if silent and profile.trainer.zero_spread == "error":
        raise InputError(
            f"{', '.join(silent)}: no group of completions had any spread of reward in any step, so nothing was learned; "
            "expected some. Show the format (prompts.demonstration: true), allow longer completions, or set "
            "trainer.zero_spread: report to go on"
        )


# ---- tables --------------------------------------------------------------------------------------------------------


def tables(profile, raw: dict, earlier) -> dict[str, pd.DataFrame]:
    """`training`, `training_groups` and `training_checks`. Rewards are computed from the completions themselves."""
    return curves.tables(profile, raw)


def run(profile, results) -> dict[str, pd.DataFrame]:
    """Stage 2: train every (arm, seed). Returns and writes the tables; raises as `measure` does."""
    return stages.run(sys.modules[__name__], profile, results)
