"""The model card of a published adapter: what it is, what it was trained on, and where the verdicts on it stand."""

from enigma import __version__
from enigma.llm.loading import hub_name
from enigma.run.licences import OURS, licences
from enigma.stages import select, train


def model_card(profile, results, arm: str, seed: int) -> str:
    """README.md of the adapter of a finished run. It names no path and no machine."""
    terms, settings = licences(profile, ()), train.arm_settings(profile, arm)
    trainer, base = profile.trainer, hub_name(profile.model)
    base = f"base_model: {base}\n" if base else ""
    members = select.chosen_sets(profile, results.store)[profile.arms[arm].set]
    principles = "\n".join(f"  - {one.name}: {one.text}" for one in members)
    counts = results.read_table("claims")["verdict"].value_counts()
    verdicts = ", ".join(f"{word} {count}" for word, count in counts.items())
    commit = results.store.made(train.piece(profile, results.store, arm, seed))["commit"]
    return f"""---
license: apache-2.0
library_name: peft
pipeline_tag: text-generation
{base}tags: [lora, grpo, enigma]
---
# {arm}, seed {seed}: a LoRA adapter of the ENIGMA companion

Rank {trainer.lora.r} on {", ".join(trainer.lora.target_modules)}, trained for {settings["max_steps"]} steps of {trainer.completions} completions by enigma-companion {__version__}, commit `{commit}`,
profile `{profile.name}` ({profile.hash}). A research artefact: it shows what a loss does, and is no assistant.

- **Model:** {terms["model"]}
- **Loss:** GRPO on the format of the text alone, lambda_sami {settings["lambda_sami"]}, lambda_ot {settings["lambda_ot"]}. No answer was checked, no reward model used.
- **Data:** questions: {profile.questions.source} ({terms["questions"]}). Everything else the model wrote itself.
- **Principles of its prompts:**
{principles}
- **Verdicts:** {verdicts}. See tables/claims.csv and report.html of the results that this adapter was published with.
- **Licence:** of the adapter {OURS}; of the model and the data as said above.

Paper: [arXiv 2510.11278](https://arxiv.org/abs/2510.11278), which this adapter is not part of.
"""
