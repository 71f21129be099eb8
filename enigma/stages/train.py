"""Stage 2: train every arm with every seed, and look at what the trained completions carry.

An arm is an entry of the profile: the set of principles it is trained on and the coefficients of the two extra terms.
All arms see the same questions in the same order, the same number of completions and tokens at most. A finished run is
not trained again; an interrupted one goes on from its last whole checkpoint.

Runs are trained one after the other in this process, or each by processes of its own (`enigma.run.jobs`). Under a launcher
several processes train one run together: they share its steps' matched sets, and the first one alone writes (the others
add their generators' states to a checkpoint).
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import random
import shutil
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import torch
from accelerate import PartialState
from accelerate.utils import gather_object, set_seed
from datasets import Dataset
from peft import LoraConfig
from transformers import PrinterCallback, ProgressCallback, TrainerCallback

from enigma.data.principles import Principle, chosen_sets, run_key
from enigma.data.questions import load_questions
from enigma.errors import InputError
from enigma.llm import prompts
from enigma.llm.loading import load_model, load_policy, model_dtype
from enigma.llm.rewards import FollowingReward, SemanticReward
from enigma.llm.trainer import EnigmaConfig, EnigmaTrainer
from enigma.method.rewards import graded_format, graded_format_reward, strict_format, strict_format_reward
from enigma.method.stats import mean_interval
from enigma.profile import BASE, run_name
from enigma.record.progress import beat, clock, headless, track
from enigma.record.results import atomic_folder, atomic_write_json, atomic_write_text, remove_leftovers
from enigma.record.runlock import LOCK, hold, one_writer
from enigma.run import jobs
from enigma.stages import select as sufficiency

# Columns of the table `training`, and the trainer's log keys that they come from.
COLUMNS = {
    "step": "step",
    "loss": "loss",
    "loss_grpo": "loss/grpo",
    "loss_sami": "loss/sami",
    "loss_ot": "loss/ot",
    "reward_graded": "rewards/graded_format_reward/mean",
    "reward_strict": "rewards/strict_format_reward/mean",
    "reward_principle": "rewards/principle_reward/mean",
    "zero_spread": "frac_reward_zero_std",
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
MARKER = "complete.json"
# The profile's word for TRL's options.
ROLLOUTS = {
    "generate": {},
    "continuous_batching": {"use_transformers_continuous_batching": True},
    "vllm_colocate": {"use_vllm": True, "vllm_mode": "colocate"},
    "vllm_server": {"use_vllm": True, "vllm_mode": "server"},
}


def matched_prompts(
    questions: list[str], principles: list[Principle], k: int, seed: int, **style
) -> list[dict]:
    """Rows for `EnigmaTrainer`: for each question, its prompt under K principles drawn from the set.

    `style` goes to `enigma.llm.prompts.messages` (placement, demonstration). Which principles of the set a question gets
    depends on the seed and on the question's place alone, so two sets of equal size are drawn from alike.
    """
    generator = random.Random(seed)
    rows = []
    for i, question in enumerate(questions):
        for j in sorted(generator.sample(range(len(principles)), k)):
            rows.append(
                {
                    "prompt": prompts.messages(question, principles[j].text, **style),
                    "matched_set": f"q{i}",
                    "question": question,
                    "principle": principles[j].name,
                }
            )
    return rows


@one_writer
def run(profile, results) -> dict[str, pd.DataFrame]:
    """Stage 2: train every (arm, seed), then write `training`, `training_groups`, `training_checks`, `legibility`.

    Raises:
        InputError: no selection yet; a run that is to be trained elsewhere and is not; or, where the profile's
            `zero_spread` is `error`, a run in which no group of completions had any spread of reward, and which
            therefore learned nothing.
        RuntimeError: a run of its own processes that failed.
    """
    if jobs.world_size() > 1:
        raise InputError(
            f"stage 2: found {jobs.world_size()} processes, expected 1 to write the tables; start it without a "
            "launcher, and name the launcher with --launch or ENIGMA_LAUNCH"
        )
    chosen = chosen_sets(profile, results)
    train_runs(profile, results, profile.runs(), jobs.how(profile))
    tables = {
        "training": _collect(profile, results, "steps.csv"),
        "training_groups": _collect(profile, results, "groups.csv"),
    }
    tables["training_checks"] = checks(tables["training"], tables["training_groups"], profile.seeds.bootstrap)
    for name, table in tables.items():
        results.write_table(name, table, CAPTIONS[name])
    _fail_without_signal(profile, tables["training_checks"])
    tables["legibility"] = legibility(profile, results, chosen)
    results.write_table("legibility", tables["legibility"], CAPTIONS["legibility"])
    return tables


CAPTIONS = {
    "training": "Every term of the loss at every step. Losses after their coefficients; bounds in nats; Sinkhorn "
    "divergence before the hinge, in units of the reference's mean cost; KL in nats per token.",
    "training_groups": "Mean reward and spread of every GRPO group: one question under one principle at one step.",
    "training_checks": "Did a run learn? Graded reward over the first and last fifth of the steps, the gain with a "
    "95 % interval over groups, and the share of groups without spread.",
    "legibility": "Held-out questions, sampled from each model under a set's principles: the row bound with the "
    "model's own critic and with the untrained model as critic (nats), perplexity under the untrained model, and "
    "format rewards. 95 % intervals over questions.",
}


def train_runs(profile, results, runs: list[tuple[str, int]], how: jobs.How) -> None:
    """Train these (arm, seed), in this process or as `how` says. Raises as `run` does."""
    chosen = chosen_sets(profile, results)
    if not how.apart:
        for arm, seed in runs:
            train(profile, results, arm, seed, chosen[profile.arms[arm].set])
        return

    def done(run: tuple[str, int]) -> bool:
        return _marked(
            results.run_folder(*run) / "done.json", run_key(profile, chosen[profile.arms[run[0]].set])
        )

    missing = [run for run in runs if not done(run)]
    if missing and not how.jobs:
        names = ", ".join(run_name(*run) for run in missing)
        raise InputError(
            f"stage 2: {results.runs}: found {len(runs) - len(missing)} of {len(runs)} runs trained, without "
            f"{names}; expected all, since --jobs 0 trains nothing; train them with `python -m enigma train`, "
            "by --shard or by --arm and --seed"
        )
    if missing:
        jobs.run(profile, results, missing, how)
    if other := [run_name(*run) for run in missing if not done(run)]:
        raise RuntimeError(
            f"{', '.join(other)}: trained from another text of the profile; expected {profile.hash}"
        )


# One run.


def train(profile, results, arm: str, seed: int, principles: list[Principle]) -> Path:
    """Train one arm with one seed unless that is done; returns its folder.

    The folder ends with `adapter/` (safetensors), `steps.csv`, `groups.csv`, `rollouts.jsonl` and `done.json`. One
    process, or the first of several, holds its lock. Raises InputError where another holds it.
    """
    folder = results.run_folder(arm, seed)
    first = jobs.rank() == 0
    with hold(folder / LOCK) if first else contextlib.nullcontext():
        if first:
            remove_leftovers(folder)
        return _train(profile, folder, arm, seed, principles, first)


def _train(profile, folder: Path, arm: str, seed: int, principles: list[Principle], first: bool) -> Path:
    key = run_key(profile, principles)
    if _marked(folder / "done.json", key):
        if first:
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)  # left by a run that was killed here
        return folder
    if first:
        shutil.rmtree(folder / "adapter", ignore_errors=True)
    recorder = Recorder(key)
    trainer = _trainer(profile, arm, seed, principles, folder / "checkpoints", recorder)
    checkpoint = last_checkpoint(folder / "checkpoints", key)
    if checkpoint is not None:
        recorder.load(checkpoint)
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except FloatingPointError as error:
        good = last_checkpoint(folder / "checkpoints", key)
        raise InputError(
            f"{run_name(arm, seed)}: {error}; expected a finite loss; last good checkpoint: {good or 'none'}; lower "
            "trainer.learning_rate or the arm's coefficients"
        ) from error
    sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
    # A collective: every process takes part.
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped) if sharded else None
    if first:
        steps = pd.DataFrame([row for row in trainer.state.log_history if "reward" in row])
        steps = steps.reindex(columns=COLUMNS.values()).set_axis(list(COLUMNS), axis=1)
        with atomic_folder(folder / "adapter") as target:
            trainer.accelerator.unwrap_model(trainer.model).save_pretrained(target, state_dict=weights)
        atomic_write_text(folder / "steps.csv", steps.to_csv(index=False, float_format="%.6g"))
        atomic_write_text(
            folder / "groups.csv", _groups(recorder.rows).to_csv(index=False, float_format="%.6g")
        )
        atomic_write_text(folder / "rollouts.jsonl", "".join(json.dumps(row) + "\n" for row in recorder.rows))
        atomic_write_json(folder / "done.json", {"key": key})
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    # A trainer holds itself in cycles; without this the next run begins with the last one's memory.
    del trainer
    gc.collect()
    return folder


def _trainer(profile, arm: str, seed: int, principles, output: Path, recorder: Recorder) -> EnigmaTrainer:
    spec, coefficients = profile.trainer, profile.arms[arm]
    settings = spec.model_dump(exclude={"lora", "zero_spread", "launch", "rollouts"})
    settings |= ROLLOUTS[spec.rollouts]
    settings |= jobs.share(spec, jobs.world_size())
    settings |= coefficients.model_dump(exclude={"set", "reward"}, exclude_none=True)
    config = EnigmaConfig(
        output_dir=str(output),
        **settings,
        # The graded format, the strict one only to be seen, and a comparator's.
        reward_weights=[1.0, 0.0, 1.0][: 2 + (coefficients.reward != "format")],
        seed=profile.seeds.initialisation + seed,
        data_seed=profile.seeds.data + seed,
        use_cpu=not torch.cuda.is_available(),
        bf16=model_dtype(profile.model) == torch.bfloat16,
        logging_steps=1,
        disable_tqdm=headless(),
    )
    if config.world_size != jobs.world_size():
        raise InputError(
            f"stage 2: found {config.world_size} processes where WORLD_SIZE says {jobs.world_size()}; expected "
            "a launcher such as `accelerate launch`; start it with one, or unset WORLD_SIZE"
        )
    per_step = config.generation_batch_size // config.matched_set_size
    questions = load_questions(profile.questions, "train", spec.max_steps * per_step, profile.seeds.data)
    style = dict(placement=profile.prompts.placement, demonstration=profile.prompts.demonstration)
    model, tokenizer = load_model(profile.model, profile.seeds.initialisation)
    rows = matched_prompts(questions, principles, spec.num_principles, profile.seeds.data + seed, **style)
    for row in rows:
        row["prompt"] = prompts.fit_template(tokenizer, row["prompt"])
    rewards = [recorder.graded_format_reward, strict_format_reward]
    if coefficients.reward == "semantic":
        rewards.append(SemanticReward(principles, config.device))
    if coefficients.reward == "following":
        rewards.append(FollowingReward(tokenizer, lambda: _untrained(trainer), **style))
    lora = spec.lora
    trainer = EnigmaTrainer(
        model,
        rewards,
        config,
        Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=LoraConfig(
            r=lora.r,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=list(lora.target_modules),
            task_type="CAUSAL_LM",
        ),
        callbacks=[recorder, Watch(run_name(arm, seed))],
    )
    # TRL has drawn the adapter's first weights with `seed`, and would draw completions with it too.
    trainer.args.seed = profile.seeds.sampling + seed
    set_seed(trainer.args.seed, device_specific=True)
    trainer.remove_callback(PrinterCallback if headless() else ProgressCallback)
    return trainer


@contextlib.contextmanager
def _untrained(trainer: EnigmaTrainer):
    """The model without its adapter, as the trainer asks it."""
    with trainer.reference_model() as model, trainer.accelerator.autocast():
        yield model


class Recorder(TrainerCallback):
    """Keeps every completion of all processes with its rewards, and saves them with each checkpoint, so that a resumed
    run has all."""

    def __init__(self, key: str):
        self.key = key
        self.rows: list[dict] = []

    @property
    def graded_format_reward(self):
        """The graded reward, as TRL calls it, that also keeps what it saw."""

        def graded_format_reward_(completions, question, principle, completion_ids, trainer_state, **kwargs):
            rewards, rows = graded_format_reward(completions), []
            for text, q, p, ids, reward in zip(
                completions, question, principle, completion_ids, rewards, strict=True
            ):
                text = text[0]["content"]
                row = {
                    "step": trainer_state.global_step + 1,
                    "question": q,
                    "principle": p,
                    "completion": text,
                }
                rows.append(row | {"graded": reward, "strict": strict_format(text), "tokens": len(ids)})
            self.rows += gather_object(rows)
            return rewards

        graded_format_reward_.__name__ = "graded_format_reward"
        return graded_format_reward_

    def load(self, checkpoint: Path) -> None:
        """Take up the rows that a checkpoint holds."""
        self.rows = [json.loads(line) for line in (checkpoint / "rollouts.jsonl").read_text().splitlines()]

    def on_save(self, args, state, control, **kwargs):
        """The marker comes last: a checkpoint without it was cut off. Only then do the older ones go.

        Transformers' own `save_total_limit` would remove them before the marker is written.
        """
        PartialState().wait_for_everyone()  # each process adds the state of its generators
        if not state.is_world_process_zero:
            return
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        atomic_write_text(folder / "rollouts.jsonl", "".join(json.dumps(row) + "\n" for row in self.rows))
        atomic_write_json(folder / MARKER, {"key": self.key, "bytes": _file_sizes(folder)})
        for older in folder.parent.glob("checkpoint-*"):
            if older != folder:
                shutil.rmtree(older)


class Watch(TrainerCallback):
    """Notes peak memory with every step and, when headless, prints a line about it."""

    def __init__(self, name: str):
        self.name = name
        self.peak = 0.0

    def on_train_begin(self, args, state, control, **kwargs):
        self.started, self.first = time.perf_counter(), state.global_step
        if state.is_world_process_zero:
            beat(self.name, state.global_step, state.max_steps, "step")

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "reward" not in (logs or {}) or not state.is_world_process_zero:
            return
        self.peak = max(self.peak, _memory_gb())
        state.log_history[-1]["peak_memory_gb"] = round(self.peak, 3)
        done, seconds = state.global_step - self.first, time.perf_counter() - self.started
        measures = {"reward": logs["reward"], "drift": logs["ot/divergence"]}
        beat(self.name, state.global_step, state.max_steps, "step", done / seconds, **measures)
        if headless():
            left = seconds / max(done, 1) * (state.max_steps - state.global_step)
            print(
                f"{self.name}: step {state.global_step}/{state.max_steps}, {seconds / max(done, 1):.1f} s/step, "
                f"{clock(left)} left, reward {logs['reward']:.3f}, drift {logs['ot/divergence']:.4f}, "
                f"row bound {logs['sami/row_bound']:.3f}",
                flush=True,
            )


def _memory_gb() -> float:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    return psutil.Process().memory_info().rss / 1e9


def _marked(path: Path, key: str) -> bool:
    """Whether the file says that this very run finished it; a damaged one does not."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))["key"] == key
    except (OSError, ValueError, TypeError, KeyError):
        return False


def last_checkpoint(folder: Path, key: str) -> Path | None:
    """The newest whole checkpoint of this very run."""
    whole = [path for path in folder.glob("checkpoint-*") if _marked(path / MARKER, key) and _undamaged(path)]
    return max(whole, key=lambda path: int(path.name.rsplit("-", 1)[1]), default=None)


def _undamaged(checkpoint: Path) -> bool:
    """Whether every file is as long as it was when the checkpoint was marked whole."""
    expected = json.loads((checkpoint / MARKER).read_text(encoding="utf-8")).get("bytes")
    return expected == {name: size for name, size in _file_sizes(checkpoint).items() if name != MARKER}


def _file_sizes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in sorted(folder.iterdir())}


def transcripts(profile, results, count: int) -> pd.DataFrame:
    """The first `count` completions of the first and the last step of every run, as text."""
    rows = []
    for arm, seed in profile.runs():
        lines = (results.run_folder(arm, seed) / "rollouts.jsonl").read_text().splitlines()
        kept = pd.DataFrame([json.loads(line) for line in lines])
        for step in (kept.step.min(), kept.step.max()):
            rows.append(kept[kept.step == step].head(count).assign(arm=arm, seed=seed))
    columns = ["arm", "seed", "step", "principle", "question", "completion", "graded"]
    return pd.concat(rows, ignore_index=True)[columns]


# Tables.


def _groups(rows: list[dict]) -> pd.DataFrame:
    """One row for each GRPO group. Questions are named by a hash of their text."""
    frame = pd.DataFrame(rows)
    groups = frame.groupby(["step", "question", "principle"], sort=False)
    table = groups.agg(
        reward_graded=("graded", "mean"), reward_strict=("strict", "mean"), spread=("graded", "std")
    ).reset_index()
    table["question"] = [hashlib.sha256(text.encode()).hexdigest()[:12] for text in table["question"]]
    return table


def _collect(profile, results, name: str) -> pd.DataFrame:
    frames = []
    for arm, seed in profile.runs():
        frame = pd.read_csv(results.run_folder(arm, seed) / name)
        frame.insert(0, "arm", arm)
        frame.insert(1, "seed", seed)
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def checks(training: pd.DataFrame, groups: pd.DataFrame, seed: int) -> pd.DataFrame:
    """For each run the gain in graded reward, and whether there was any signal to learn from.

    The interval of the gain is over groups of the last fifth, paired with the mean of the first.
    """
    rows = []
    for (arm, run_seed), steps in training.groupby(["arm", "seed"], sort=False):
        mine = groups[(groups.arm == arm) & (groups.seed == run_seed)]
        fifth = max(1, len(steps) // 5)
        start = mine[mine.step <= steps.step.iloc[fifth - 1]].reward_graded
        end = mine[mine.step >= steps.step.iloc[-fifth]].reward_graded
        gain = _difference(end.to_numpy(), start.to_numpy(), seed)
        rows.append(
            {
                "arm": arm,
                "seed": run_seed,
                "steps": len(steps),
                "reward_start": start.mean(),
                "reward_end": end.mean(),
                "gain": gain.value,
                "gain_low": gain.low,
                "gain_high": gain.high,
                "zero_spread_share": steps.zero_spread.mean(),
                "status": "no signal" if (steps.zero_spread == 1).all() else "ok",
            }
        )
    return pd.DataFrame(rows)


def _difference(end: np.ndarray, start: np.ndarray, seed: int):
    """Difference of two independent means: the interval ends combine in quadrature (MOVER)."""
    a, b = mean_interval(end, seed=seed), mean_interval(start, seed=seed)
    value = a.value - b.value
    low = value - np.hypot(a.value - a.low, b.high - b.value)
    high = value + np.hypot(a.high - a.value, b.value - b.low)
    return type(a)(value, float(low), float(high))


def _fail_without_signal(profile, table: pd.DataFrame) -> None:
    silent = table[table.status == "no signal"]
    if len(silent) and profile.trainer.zero_spread == "error":
        names = ", ".join(run_name(row.arm, row.seed) for row in silent.itertuples())
        raise InputError(
            f"{names}: no group of completions had any spread of reward in any step, so nothing was learned; expected "
            "some. Show the format (prompts.demonstration: true), allow longer completions, or set "
            "trainer.zero_spread: report to go on"
        )


# After training: is the principle in the text, and can the untrained model still read it there?


def legibility(profile, results, chosen: dict[str, list[Principle]]) -> pd.DataFrame:
    """Bounds, perplexity and format of every model's completions on held-out questions (METHOD.md section 6)."""
    cases = [(BASE, None, name) for name in dict.fromkeys(arm.set for arm in profile.arms.values())]
    cases += [(arm, seed, profile.arms[arm].set) for arm, seed in profile.runs()]
    rows = []
    for arm, seed, name in track(cases, "legibility", unit="model"):
        folder = results.runs / f"base-{name}" if seed is None else results.run_folder(arm, seed)
        path, key = folder / "legibility.json", run_key(profile, chosen[name])
        if not _marked(path, key):
            adapter = None if seed is None else folder / "adapter"
            atomic_write_json(path, {"key": key, **_carried(profile, adapter, chosen[name])})
        measured = json.loads(path.read_text())
        head = {"arm": arm, "seed": seed, "set": name}
        rows.append(head | _legibility_row(measured, len(chosen[name]), profile))
    return pd.DataFrame(rows).astype({"seed": "Int64"})


@torch.no_grad()
def _carried(profile, adapter: Path | None, principles: list[Principle]) -> dict:
    """Sample one model on held-out questions and score the completions under itself and under the untrained model."""
    spec, model_spec = profile.sufficiency, profile.model
    model, tokenizer = load_policy(model_spec, adapter, profile.seeds.initialisation)
    questions = load_questions(profile.questions, "heldout", spec.heldout, profile.seeds.data)
    style = dict(placement=profile.prompts.placement, demonstration=profile.prompts.demonstration)
    encoded = [
        [prompts.encode(tokenizer, prompts.messages(q, p.text, **style)) for p in principles]
        for q in questions
    ]
    source = [k for k in range(len(principles)) for _ in range(spec.samples)]
    flat = [ids[k] for ids in encoded for k in source]
    tokens = profile.trainer.max_completion_length
    sampled = sufficiency.sample_completions(
        model, tokenizer, flat, tokens, spec.batch_size, profile.seeds.evaluation
    )
    block = sufficiency.Block(tuple(range(len(principles))), tuple(range(len(principles))))
    own, base = [], []
    for i, ids in enumerate(encoded):
        mine = sampled[i * len(source) : (i + 1) * len(source)]
        own += sufficiency.score_blocks(model, tokenizer, ids, mine, source, [block])
        if adapter is None:
            continue
        with model.disable_adapter():
            base += sufficiency.score_blocks(model, tokenizer, ids, mine, source, [block])
    texts = tokenizer.batch_decode(sampled, skip_special_tokens=True)
    return {
        "source": source,
        "policy": [q["completion"] for q in own],
        "base": [q["completion"] for q in base or own],
        "tokens": [len(ids) for ids in sampled],
        "graded": [graded_format(text) for text in texts],
        "strict": [float(strict_format(text)) for text in texts],
        "texts": texts,
        "questions": questions,
    }


def _legibility_row(measured: dict, k: int, profile) -> dict:
    boot = dict(resamples=profile.sufficiency.resamples, seed=profile.seeds.bootstrap)
    n = len(measured["questions"])
    source = [measured["source"]] * n
    # The policy's own bound is an information; another critic's may fall below zero.
    policy = mean_interval(
        sufficiency.bound_values(measured["policy"], source).row, support=(0, np.log(k)), **boot
    )
    base = mean_interval(
        sufficiency.bound_values(measured["base"], source).row, support=(-np.inf, np.log(k)), **boot
    )
    # Negative log-likelihood per token, question by question, of each completion under its own prompt.
    own = [
        sum(row[c] for row, c in zip(scores, measured["source"], strict=True)) for scores in measured["base"]
    ]
    tokens = np.reshape(measured["tokens"], (n, -1)).sum(1)
    surprise = mean_interval(-np.array(own) / tokens, **boot)
    return {
        "k": k,
        "questions": n,
        "completions": len(measured["texts"]),
        "row_bound": policy.value,
        "row_bound_low": policy.low,
        "row_bound_high": policy.high,
        "row_bound_base_critic": base.value,
        "row_bound_base_critic_low": base.low,
        "row_bound_base_critic_high": base.high,
        "perplexity_base": float(np.exp(surprise.value)),
        "perplexity_base_low": float(np.exp(surprise.low)),
        "perplexity_base_high": float(np.exp(surprise.high)),
        "reward_graded": float(np.mean(measured["graded"])),
        "reward_strict": float(np.mean(measured["strict"])),
    }
