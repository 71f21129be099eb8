"""The paper's setting beside this run's: in which model, data and budget the numbers were taken.

The paper's column holds what is publicly known of it, with its source; this run's column is written from the profile.
"""

from pathlib import Path

import pandas as pd

from enigma.profile import Profile

NOT_KNOWN = "not known here"
# Source marks: the paper's abstract, or a secondary account of the paper.
ABSTRACT, SECONDARY = "abstract", "secondary account"
PAPER = {
    "model": ("Gemma-3-1B-it", SECONDARY),
    "adapter": ("LoRA r=16", SECONDARY),
    "questions": ("KAIST CoT-Collection, 20,000 rows", SECONDARY),
    "steps, completions and tokens": (NOT_KNOWN, ""),
    "arms and seeds": (NOT_KNOWN, ""),
    "reward": ("format of the chain of thought alone, strict XML", f"{ABSTRACT}; strict XML: {SECONDARY}"),
    "policy loss": (
        "GRPO, ratio of whole sequences, advantages centred and not divided by their deviation",
        f"{ABSTRACT}; ratio and advantages: {SECONDARY}",
    ),
    "weights of the SAMI and the Sinkhorn term": (NOT_KNOWN, ""),
    "principles": (f"texts {NOT_KNOWN}", ""),
    "Sufficiency Index": (f"formula {NOT_KNOWN}", ""),
    "benchmarks": ("GPQA, TruthfulQA", SECONDARY),
}
CAPTION = (
    "The setting of the paper and of this run. What is known of the paper comes from its abstract or from a secondary "
    "account of it; its formula of the Sufficiency Index, its principles and its coefficients are not known here. Where two "
    "columns differ, a number of the paper and one of this run are not of the same thing."
)


def table(profile: Profile) -> pd.DataFrame:
    """One row for each aspect: what, paper, source (of what is said of the paper), here."""
    here = _here(profile)
    return pd.DataFrame(
        [[what, *PAPER[what], here[what]] for what in PAPER], columns=["what", "paper", "source", "here"]
    )


def _here(profile: Profile) -> dict[str, str]:
    trainer, questions, stage = profile.trainer, profile.questions, profile.sufficiency
    tokens = trainer.max_steps * trainer.completions * trainer.max_completion_length
    name = {
        "embedded": "SmolLM2-135M-Instruct from 4-bit weights (Q4_1) turned back to 16 bits",
        "random": "a tiny model with random weights",
    }
    rows = {"builtin": "built-in questions", "jsonl": f"own file, {questions.column or 'questions'}"}
    weights = [f"{arm}: {spec.lambda_sami:g}, {spec.lambda_ot:g}" for arm, spec in profile.arms.items()]
    others = [f"{arm}: {spec.reward} too" for arm, spec in profile.arms.items() if spec.reward != "format"]
    ratio = "GRPO (TRL's), ratio of whole sequences, advantages centred and not divided by their deviation"
    limit = profile.benchmarks.limit
    each = (
        "all items"
        if limit is None
        else f"at most {limit} items each"
        if isinstance(limit, int)
        else "sampled items"
    )
    model = Path(profile.model.id or "").name if profile.model.source == "local" else profile.model.id
    pool = profile.principles.pool
    return {
        "model": f"{name.get(profile.model.source) or model}, {profile.model.dtype}",
        "adapter": f"LoRA r={trainer.lora.r} on {', '.join(trainer.lora.target_modules)}",
        "questions": rows.get(questions.source) or f"{questions.dataset}, {questions.rows or 'all'} rows",
        "steps, completions and tokens": f"{trainer.max_steps} steps of {trainer.completions} completions of at most "
        f"{trainer.max_completion_length} tokens: {tokens:,} tokens a run at most",
        "arms and seeds": f"{', '.join(profile.arms)}; {len(profile.seeds.runs)} "
        f"seed{'s' if len(profile.seeds.runs) > 1 else ''}",
        "reward": "; ".join(
            ["format of the chain of thought, graded in training, strict in every report", *others]
        ),
        "policy loss": ratio,
        "weights of the SAMI and the Sinkhorn term": f"{'; '.join(weights)}; Sinkhorn budget {trainer.ot_budget:g}",
        "principles": f"pool {pool if pool == 'default' else Path(pool).name}, sets of {profile.principles.set_size}: {', '.join(profile.sets())}",
        "Sufficiency Index": f"information / log K, Rao-Blackwellised, over the reasoning span, {stage.questions} questions, "
        f"completions for each principle: {stage.samples}",
        "benchmarks": f"{', '.join(Path(task).stem for task in profile.benchmarks.tasks)}; {each}",
    }
