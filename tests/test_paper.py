"""What the paper's profile and its neighbours cost on GPUs, by the model of costs."""

import pytest

from enigma.profile import load_profile
from enigma.run import gpu_costs as costs
from enigma.run.costs import sizes
from enigma.stages import jobs


def trainer(**changes):
    return load_profile("paper").trainer.model_copy(update=changes)


def total(name):
    profile = load_profile(name)
    size, shape = sizes(profile), costs.shape_of(profile.model)
    return costs.total(profile, shape, size.selection_completions, size.benchmark_prompts)


SHAPE = costs.SHAPES["google/gemma-3-1b-it"]


def test_a_step_by_hand():
    """One set of 2 x 2 completions of 10 tokens after 5, one micro-batch."""
    batch = dict(num_generations=2, per_device_train_batch_size=4, max_completion_length=10)
    spec = trainer(gradient_accumulation_steps=1, gradient_checkpointing=False, **batch)
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
    assert eight.update == pytest.approx(one.update / 8)
    assert eight.activations_gb == pytest.approx(one.activations_gb)

    def large(checkpointing, sharded=True):
        spec = trainer(gradient_checkpointing=checkpointing)
        return costs.step(costs.SHAPES["70B"], spec, True, 8, sharded)

    whole, spread, light = large(False, False), large(False), large(True)
    assert spread.weights_gb < 0.2 * whole.weights_gb and spread.gathering > whole.gathering == 0
    assert light.activations_gb < 0.1 * spread.activations_gb
    assert light.update == pytest.approx(1.5 * spread.update)


def test_the_paper_profile_fits_its_gpu_and_up_to_eight_processes():
    assert costs.shape_of(load_profile("paper").model) == SHAPE
    assert total("paper").memory_gb < costs.GPU_GB / 4
    kept = costs.step(SHAPE, trainer(gradient_checkpointing=False), sami=True)
    assert kept.memory_gb > costs.GPU_GB / 4, "checkpointing is what makes it small"
    for processes in (1, 2, 4, 8):
        jobs.share(trainer(), processes)


def test_the_probe_fits_its_ten_minutes_and_the_gpu_profile_its_hour():
    """An arm's own number of steps counts. Kernels and models start five times, 15 s each."""
    for name, minutes in (("probe", 10), ("gpu", 60)):
        assert minutes / 3 < total(name).gpu_hours * 60 + 5 / 4 < minutes
