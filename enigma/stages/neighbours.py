"""Runs of the neighbours that the trainer does not make alone: steered, merged, trained on preferences (docs/neighbours.md).

An arm says itself which it is (`enigma.profile.Arm`). Source: our choice [D]; each method's own stands in its module.
"""

import time
from collections.abc import Callable
from pathlib import Path

from enigma.errors import InputError
from enigma.record.files import atomic_write_json
from enigma.stages import jobs, select, train

TEXTS = 16  # prompts that each teacher answers for the merge
BATCH = 4  # of each teacher's texts, a step of the descent


def maker(arm) -> Callable | None:
    """What makes a run of this arm in place of the trainer: (profile, store, arm's name, seed, target)."""
    return _merge if arm.merge else _prefer if arm.preference else None


def questions(profile, store, arm: str, seed: int) -> list[str]:
    """The arm's training questions: the common ones, or as many drawn from them by its steering weights."""
    found, steering = train.training_questions(profile), profile.arms[arm].steering
    if steering is None:
        return found
    from enigma.llm.loading import load_policy
    from enigma.llm.sampling import sampled_rows
    from enigma.llm.steering import draw, question_losses, steering_weights

    adapter = train.train(profile, store, steering.reference, seed) / "adapter"
    model, tokenizer = load_policy(profile.model, adapter, profile.seeds.initialisation)
    rows, options = _rows(profile, store, arm, seed), _options(profile, seed)
    reference = question_losses(sampled_rows(model, tokenizer, rows, **options))
    with model.disable_adapter():
        untrained = question_losses(sampled_rows(model, tokenizer, rows, **options))
    losses = ([of[question] for question in found] for of in (untrained, reference))
    return draw(found, steering_weights(*losses, steering.tau), profile.seeds.data + seed, steering.shuffled)


def _rows(profile, store, arm: str, seed: int) -> list[dict]:
    chosen = select.chosen_sets(profile, store)[profile.arms[arm].set]
    asked, k = train.training_questions(profile), profile.trainer.num_principles
    return train.matched_prompts(asked, chosen, k, profile.seeds.data + seed, **profile.prompts.model_dump())


def _options(profile, seed: int) -> dict:
    """How completions are drawn where no trainer draws them."""
    return {
        "generations": profile.trainer.num_generations,
        "max_tokens": profile.trainer.max_completion_length,
        "batch_size": profile.trainer.per_device_train_batch_size,
        "seed": profile.seeds.sampling + seed,
    }


def _step_rows(profile, rows: list[dict]) -> list[dict]:
    """The prompts of one training step."""
    return rows[: profile.trainer.completions // profile.trainer.num_generations]


def _rollouts(sampled: list[dict], step: int) -> list[dict]:
    keys = ("question", "principle", "completion", "tokens")
    return [{"step": step, **{key: row[key] for key in keys}} for row in sampled]


def _merge(profile, store, arm: str, seed: int, target: Path) -> None:
    """Merge finished runs. Step s of the log has the distillation loss before the s-th update of the weights; completions
    are drawn with equal weights (step 1) and with the last ones."""
    import torch

    from enigma.llm import merging
    from enigma.llm.prompts import encode
    from enigma.llm.sampling import sampled_rows
    from enigma.llm.states import greedy_completions

    _one_process()
    spec = profile.arms[arm].merge
    adapters = [train.train(profile, store, other, seed) / "adapter" for other in spec.arms]
    model, tokenizer, names = merging.load_teachers(profile.model, adapters, profile.seeds.initialisation)
    rows, options = _rows(profile, store, arm, seed), _options(profile, seed)
    encoded = [encode(tokenizer, row["prompt"]) for row in rows[:TEXTS]]
    texts = []
    for name in names:
        model.set_adapter(name)
        said = greedy_completions(model, tokenizer, encoded, options["max_tokens"], options["batch_size"])
        texts.append((encoded, said))
    equal = torch.full((len(names), len(merging.adapted(model))), 1 / len(names))
    loss, started = merging.multi_teacher_loss(model, names, texts, BATCH), time.perf_counter()
    weights, curve = merging.sharpness_aware(equal, loss, spec.steps)
    seconds = (time.perf_counter() - started) / max(spec.steps, 1)
    with torch.no_grad():
        curve.append(loss(weights, spec.steps).item())
    rollouts = []
    for step, used in {1: equal, len(curve): weights}.items():
        with merging.weighted(model, names, used):
            sampled = sampled_rows(model, tokenizer, _step_rows(profile, rows), **options)
        rollouts += _rollouts(sampled, step)
    merging.merge(model, names, weights)
    log = [{"step": i + 1, "loss": value, "step_time": seconds} for i, value in enumerate(curve)]
    train.save_run(profile, target, model, log, rollouts)
    atomic_write_json(target / "weights.json", {"arms": spec.arms, "weights": weights.tolist()})


def _prefer(profile, store, arm: str, seed: int, target: Path) -> None:
    """DPO on what the untrained model wrote (step 1 of the rollouts); the last step's are the trained model's."""
    import torch
    from datasets import Dataset
    from peft import get_peft_model
    from trl import DPOConfig

    from enigma.llm.loading import load_model, model_dtype
    from enigma.llm.preference import PreferenceTrainer, preference_pairs
    from enigma.llm.sampling import sampled_rows

    _one_process()
    spec, own = profile.trainer, train.arm_settings(profile, arm)
    model, tokenizer = load_model(profile.model, profile.seeds.initialisation)
    rows, options = _rows(profile, store, arm, seed), _options(profile, seed)
    started = time.perf_counter()
    sampled = sampled_rows(model, tokenizer, rows, **options)
    pairs = preference_pairs(sampled)
    log: list[dict] = [{"step": 1}]
    if pairs:
        config = DPOConfig(
            output_dir=str(target / "unused"),
            beta=own["preference"]["beta"],
            max_length=None,
            per_device_train_batch_size=len(_step_rows(profile, rows)),
            **{key: own[key] for key in ("max_steps", "learning_rate")},
            lr_scheduler_type=spec.lr_scheduler_type,
            gradient_checkpointing=spec.gradient_checkpointing,
            report_to=spec.report_to,
            seed=profile.seeds.initialisation + seed,
            use_cpu=not torch.cuda.is_available(),
            bf16=model_dtype(profile.model) == torch.bfloat16,
            logging_steps=1,
            save_strategy="no",
            disable_tqdm=True,
        )
        trainer = PreferenceTrainer(
            model,
            args=config,
            train_dataset=Dataset.from_list(pairs),
            processing_class=tokenizer,
            peft_config=train.lora_config(profile),
            rows=sampled,
            lambda_sami=own["lambda_sami"],
            temperature=spec.sami_temperature,
        )
        trainer.train()
        model, log = trainer.model.eval(), [row for row in trainer.state.log_history if "loss" in row]
    else:
        model = get_peft_model(model, train.lora_config(profile))
    # Completions are part of a step's cost, as in GRPO.
    seconds = (time.perf_counter() - started) / len(log)
    silent = 1 - len(pairs) / len({(row["matched_set"], row["principle"]) for row in sampled})
    log = [row | {"step_time": seconds, "frac_reward_zero_std": silent} for row in log]
    last = sampled_rows(model, tokenizer, _step_rows(profile, rows), **options)
    train.save_run(profile, target, model, log, _rollouts(sampled, 1) + _rollouts(last, log[-1]["step"]))


def _one_process() -> None:
    if jobs.world_size() > 1:
        raise InputError(
            f"stage 2: found {jobs.world_size()} processes; expected one for an arm that is merged or trained on "
            "preferences; start it without a launcher"
        )
