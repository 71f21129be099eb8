"""The paper's setting beside ours: what is known of the paper with its source, ours from the profile."""

import pytest

from enigma.profile import load_profile
from enigma.stages import setting


@pytest.mark.parametrize("name", ["smoke", "cpu", "probe", "gpu", "paper", "study"])
def test_every_aspect_has_both_sides(name):
    table = setting.table(load_profile(name))
    assert list(table.columns) == ["what", "paper", "source", "here"]
    assert table["here"].str.len().min() > 5
    # What is said of the paper has a source, and what is not known has none.
    assert ((table["source"] == "") == table["paper"].str.contains(setting.NOT_KNOWN)).all()


def test_ours_is_written_from_the_profile():
    here = setting.table(load_profile("cpu")).set_index("what")["here"]
    assert here["model"].startswith("SmolLM2-135M-Instruct from 4-bit weights") and here["model"].endswith(
        "bfloat16"
    )
    trainer = load_profile("cpu").trainer
    assert f"LoRA r={trainer.lora.r} on q_proj" in here["adapter"]
    tokens = trainer.max_steps * trainer.per_device_train_batch_size * trainer.gradient_accumulation_steps
    assert f"{tokens * trainer.max_completion_length:,} tokens a run" in here["steps, completions and tokens"]


def test_a_comparator_s_reward_is_told():
    here = setting.table(load_profile("probe")).set_index("what")["here"]
    assert here["reward"].endswith("grpo_semantic: semantic too; grpo_following: following too")
    here = setting.table(load_profile("study")).set_index("what")["here"]
    assert here["principles"].endswith("sets of 4: high, low, 0.9, 0.75, 0.6, 0.4, 0.25, 0.1")


def test_the_papers_profile_names_the_papers_model_and_data():
    here = setting.table(load_profile("paper")).set_index("what")["here"]
    assert here["model"].startswith("google/gemma-3-1b-it")
    assert here["questions"] == "kaist-ai/CoT-Collection, 20000 rows"
