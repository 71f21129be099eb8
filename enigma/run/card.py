"""The model card of a published adapter: what it is, what it was trained on, and where the verdicts on it stand."""

from enigma import __version__
from enigma.llm.loading import hub_name
from enigma.record.results import TABLE
from enigma.run.licences import OURS, licences
from enigma.stages import select, train

CARD = """---
license: apache-2.0
library_name: peft
pipeline_tag: text-generation
{base}tags: [lora, grpo, enigma]
---
# {arm}, seed {seed}: a LoRA adapter of the ENIGMA companion

Rank {rank} on {modules}, trained for {steps} steps of {batch} completions by enigma-companion {version}, commit `{commit}`,
profile `{profile}` ({profile_hash}). A research artefact: it shows what a loss does, and is no assistant.

- **Model:** {model}
- **Loss:** GRPO on the format of the text alone, lambda_sami {sami}, lambda_ot {ot}. No answer was checked, no reward model used.
- **Data:** questions: {questions}. Everything else the model wrote itself.
- **Principles of its prompts:**
{principles}
- **Verdicts:** {verdicts}. See tables/claims.csv and report.html of the results that this adapter was published with.
- **Licence:** of the adapter {licence}; of the model and the data as said above.

Paper: [arXiv 2510.11278](https://arxiv.org/abs/2510.11278), which this adapter is not part of.
"""


def model_card(profile, results, arm: str, seed: int) -> str:
    """README.md of the adapter of a finished run. It names no path and no machine."""
    terms, settings = licences(profile, ()), train.arm_settings(profile, arm)
    trainer, base = profile.trainer, hub_name(profile.model)
    members = select.chosen_sets(profile, results.store)[profile.arms[arm].set]
    verdicts = results.read_table("claims")["verdict"].value_counts()
    made = {one["commit"] for one in results.sidecar(TABLE, "training")["made"]}
    return CARD.format(
        base=f"base_model: {base}\n" if base else "",
        arm=arm,
        seed=seed,
        rank=trainer.lora.r,
        modules=", ".join(trainer.lora.target_modules),
        steps=settings["max_steps"],
        batch=trainer.per_device_train_batch_size * trainer.gradient_accumulation_steps,
        version=__version__,
        commit=", ".join(sorted(made)),
        profile=profile.name,
        profile_hash=profile.hash,
        model=terms["model"],
        sami=settings["lambda_sami"],
        ot=settings["lambda_ot"],
        questions=f"{profile.questions.source} ({terms['questions']})",
        principles="\n".join(f"  - {one.name}: {one.text}" for one in members),
        verdicts=", ".join(f"{word} {count}" for word, count in verdicts.items()),
        licence=OURS,
    )
