"""What a profile amounts to: sizes by arithmetic, time by measured rates and by how fast this machine multiplies now.

The rates are of the embedded model (134.5 M parameters); other models are scaled by their parameters. An estimate to plan
by, not a promise. For GPUs see `enigma.run.gpu_costs`.
"""

from dataclasses import dataclass

from enigma.data.principles import load_pool
from enigma.profile import Profile
from enigma.run import resources

EMBEDDED_PARAMETERS = 134.5e6
EMBEDDED_VOCABULARY = 49_152
HUB_PARAMETERS = {"google/gemma-3-1b-it": 1.0e9}
# Per second and for each 100 GFLOPS of matrix products, by the default profile's run. sample: completion tokens drawn;
# score: completion tokens times principles read; train: completion tokens times principles, forward and backward;
# prompts: benchmark prompts with all their choices; states: tokens of one model through the geometry.
RATES = {"sample": 60.0, "score": 220.0, "train": 70.0, "prompts": 5.0, "states": 45.0}
START_SECONDS = 15.0  # a notebook's kernel, imports and model
# Of a run of the default profile, of which BASE_GB are libraries.
MEMORY_GB = {True: 3.4, False: 4.0}  # whether it computes in bfloat16
BASE_GB = 1.2
DEFAULT_TOKENS = 768  # of a device batch of the default profile
# Of one number of stage 1's score matrices: as a row of its piece and of the stage on the disk, and in memory while the
# stage's rows are written.
CELL_DISK, CELL_MEMORY = 40, 90
ADAPTER_SHARE = 0.007  # of the model's parameters: LoRA r=16 on two projections
STAGES = ("01_select", "02_train", "03_benchmark", "04_geometry", "05_report")
OWN_PROMPTS = {
    "enigma_knowledge": 117,
    "enigma_reasoning": 67,
    "enigma_truthfulness": 120,
    "enigma_robustness": 230,
    "enigma_adherence": 64,
    "enigma_format": 160,
}  # a generated text counts as five prompts


@dataclass(frozen=True)
class Sizes:
    """What a profile amounts to; None where the model's size is not known in advance. `minutes`: on this CPU."""

    runs: int
    total_steps: int
    completions_per_step: int
    tokens_per_step: int
    selection_completions: int
    benchmark_prompts: int
    minutes: float | None
    memory_gb: float | None
    disk_gb: float | None


def sizes(profile: Profile) -> Sizes:
    """Sizes of a profile. Tokens are upper limits (completions that fill the limit), over all devices. Source: ours [D]."""
    trainer, spec, parameters = profile.trainer, profile.sufficiency, parameters_of(profile.model)
    runs = len(profile.runs())
    steps = sum(profile.arms[arm].max_steps or trainer.max_steps for arm, _ in profile.runs())
    adapter = ADAPTER_SHARE * (parameters or 0) * 4 / 1e9
    return Sizes(
        runs=runs,
        total_steps=steps,
        completions_per_step=trainer.completions,
        tokens_per_step=trainer.completions * trainer.max_completion_length,
        selection_completions=_pool_size(profile) * spec.questions * spec.samples,
        benchmark_prompts=(runs + 1) * _prompts(profile),
        minutes=parameters and sum(stage_minutes(profile).values()),
        memory_gb=parameters and _memory_gb(profile, parameters),
        disk_gb=parameters
        and parameters * 4 / 1e9 + runs * 4 * adapter + 0.05 + _cells(profile) * CELL_DISK / 1e9,
    )


def stage_minutes(profile: Profile) -> dict[str, float]:
    """Minutes of each stage on this machine's CPU where nothing is kept; empty where the model's size is not known."""
    parameters = parameters_of(profile.model)
    if parameters is None:
        return {}
    speed = resources.gflops(profile.model.dtype) / 100
    rate = {name: value * speed for name, value in RATES.items()}
    trainer, spec = profile.trainer, profile.sufficiency
    size, k = _pool_size(profile), profile.principles.set_size
    models = len(profile.runs()) + 1
    tokens = trainer.completions * trainer.max_completion_length
    steps = sum(profile.arms[arm].max_steps or trainer.max_steps for arm, _ in profile.runs())
    selected = size * spec.questions * spec.samples * spec.max_tokens
    carried = k * spec.heldout * spec.samples * trainer.max_completion_length
    select = selected / rate["sample"] + selected * size * (1 + spec.echo / spec.questions) / rate["score"]
    step = tokens / rate["sample"] + tokens * trainer.num_principles / rate["train"]
    legibility = (models + 1) * (carried / rate["sample"] + 2 * carried * k / rate["score"])
    benchmark = models * _prompts(profile) / rate["prompts"]
    geometry = (models + 4) * profile.geometry.prompts * profile.geometry.max_tokens / rate["states"]
    work = (select, steps * step + legibility, benchmark, geometry, 0.0)
    scale = parameters / EMBEDDED_PARAMETERS
    return {name: (seconds * scale + START_SECONDS) / 60 for name, seconds in zip(STAGES, work, strict=True)}


def parameters_of(model) -> float | None:
    """Parameters of a model spec; None where that is not known before it is loaded."""
    if model.source == "embedded":
        return EMBEDDED_PARAMETERS
    if (shape := model.config) is not None:
        key_value = shape.hidden_size * shape.num_key_value_heads // shape.num_attention_heads
        attention = 2 * shape.hidden_size * (shape.hidden_size + key_value)
        layer = attention + 3 * shape.hidden_size * shape.intermediate_size
        return float(EMBEDDED_VOCABULARY * shape.hidden_size + shape.num_hidden_layers * layer)
    return HUB_PARAMETERS.get(model.id)


def _pool_size(profile: Profile) -> int:
    return len(load_pool(profile.principles.pool))


def _cells(profile: Profile) -> int:
    """Numbers in the score matrices of stage 1: two spans, and one more where completions are read under paraphrases."""
    spec = profile.sufficiency
    return _pool_size(profile) ** 2 * spec.samples * (2 * spec.questions + spec.echo)


def _prompts(profile: Profile) -> int:
    """Prompts that one model is asked."""
    limit, total = profile.benchmarks.limit, 0
    for task in profile.benchmarks.tasks:
        most = limit.get(task) if isinstance(limit, dict) else limit
        known = OWN_PROMPTS.get(task, 1000)
        repeats = {"enigma_robustness": 5, "enigma_adherence": 2, "enigma_format": 5}.get(task, 1)
        total += min(known, (most or 10**9) * repeats)
    return total


def _memory_gb(profile: Profile, parameters: float) -> float:
    from enigma.llm.loading import computes_in_bfloat16

    half = profile.model.dtype == "bfloat16" and computes_in_bfloat16()
    trainer = profile.trainer
    tokens = trainer.per_device_train_batch_size * trainer.max_completion_length / DEFAULT_TOKENS
    work = (MEMORY_GB[half] - BASE_GB) * max(1.0, tokens) * parameters / EMBEDDED_PARAMETERS
    return BASE_GB + max(work, _cells(profile) * CELL_MEMORY / 1e9)
