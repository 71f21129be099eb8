"""The paper profile on stand-ins: Gemma 3's architecture and template conventions, CoT-Collection's columns."""

from copy import deepcopy

import pytest

from enigma.llm.prompts import encode, messages
from enigma.profile import load_profile
from enigma.run import gpu_costs as costs
from enigma.run.costs import sizes
from enigma.stages import jobs

# Gemma's conventions: a start token, roles that alternate, `model` for the assistant, and no system message.
GEMMA = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' + m['content'] | trim }}"
    "{{ '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)


def test_the_system_message_goes_into_the_first_user_turn(toy_tokenizer):
    tokenizer = deepcopy(toy_tokenizer)
    tokenizer.bos_token, tokenizer.chat_template = "<pad>", GEMMA
    text = tokenizer.decode(encode(tokenizer, messages("why?", "be brief")))
    assert text.count("<start_of_turn>user") == 2 and text.count("<start_of_turn>model") == 2
    assert text.index("Write nothing else.") < text.index("<start_of_turn>model")
    assert "system" not in text


# The model of costs.


def trainer(**changes):
    return load_profile("paper").trainer.model_copy(update=changes)


SHAPE = costs.SHAPES["google/gemma-3-1b-it"]


def test_a_step_by_hand():
    """One set of 2 x 2 completions of 10 tokens after 5, one micro-batch."""
    spec = trainer(
        num_generations=2,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=1,
        max_completion_length=10,
        gradient_checkpointing=False,
    )
    one = costs.step(SHAPE, spec, sami=True, prompt=5)
    rate = costs.PEAK_FLOPS * costs.TRAIN_UTILISATION
    assert one.update == pytest.approx(4 * SHAPE.parameters * 2 * (5 + 4 * 11) / rate)
    assert one.reference == pytest.approx(2 * SHAPE.parameters * 2 * (5 + 2 * 11) / rate)
    assert one.activations_gb == pytest.approx(2 * 26 * 1152 * SHAPE.kept * 2 * (5 + 4 * 11) / 1e9)
    assert one.weights_gb == pytest.approx(2.0)
    # Launching 26 layers' kernels takes longer than reading 2 GB.
    assert one.sampling == pytest.approx(10 * 26e-3, rel=0.01)


def test_more_processes_share_the_work_and_sharding_the_weights():
    one, eight = (costs.step(SHAPE, trainer(), True, processes) for processes in (1, 8))
    assert eight.update == pytest.approx(one.update / 8) and eight.activations_gb == pytest.approx(
        one.activations_gb
    )
    whole, spread = (
        costs.step(costs.SHAPES["70B"], trainer(), True, 8, sharded) for sharded in (False, True)
    )
    assert spread.weights_gb < 0.2 * whole.weights_gb and spread.gathering > whole.gathering == 0
    spread = costs.step(costs.SHAPES["70B"], trainer(gradient_checkpointing=False), True, 8, True)
    light = costs.step(costs.SHAPES["70B"], trainer(gradient_checkpointing=True), True, 8, True)
    assert light.activations_gb < 0.1 * spread.activations_gb and light.update == pytest.approx(
        1.5 * spread.update
    )


def test_the_paper_profile_fits_its_gpu_and_up_to_eight_processes():
    profile = load_profile("paper")
    size = sizes(profile)
    cost = costs.total(profile, SHAPE, size.selection_completions, size.benchmark_prompts)
    assert cost.memory_gb < costs.GPU_GB / 4
    kept = costs.step(SHAPE, trainer(gradient_checkpointing=False), sami=True)
    assert kept.memory_gb > costs.GPU_GB / 4, "checkpointing is what makes it small"
    for processes in (1, 2, 4, 8):
        jobs.share(profile.trainer, processes)


def test_the_probe_fits_its_ten_minutes_and_the_gpu_profile_its_hour():
    """An arm's own number of steps counts. Kernels and models start five times, 15 s each."""
    for name, minutes in (("probe", 10), ("gpu", 60)):
        profile = load_profile(name)
        size = sizes(profile)
        cost = costs.total(
            profile, costs.shape_of(profile.model), size.selection_completions, size.benchmark_prompts
        )
        assert minutes / 3 < cost.gpu_hours * 60 + 5 / 4 < minutes
