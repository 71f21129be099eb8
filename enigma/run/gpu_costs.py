"""Time and memory of training on GPUs, by a stated model. Arithmetic only: no GPU was measured for it.

A step samples B = sets x K x G completions of T tokens after prompts of P tokens, looks at them under the reference, and
takes the policy forward and backward. With N parameters a token costs 2N operations forward and 2N backward, because
the frozen weights of LoRA need no gradients of their own (Kaplan et al., arXiv 2001.08361, count 2N + 4N for all
weights). With the SAMI term all K prompts of a set see all its completions: K (P + K G (T + 1)) tokens a set instead of
K (P + G (T + 1)); what prompts share is counted for each, so that is an upper end. Sampling is bound by memory traffic
(weights and key-value cache once for each new token) or by the time to launch a layer's kernels, whichever is longer.
Everything that is assumed is a constant below. Source: our choice.
"""

from typing import NamedTuple

# One H100 SXM, by its data sheet.
PEAK_FLOPS = 989e12  # bfloat16, dense
BANDWIDTH = 3.35e12  # bytes per second
GPU_GB = 80.0
# Assumed, not measured.
TRAIN_UTILISATION = 0.30  # of the peak, for packed texts with masks of their own
TRAFFIC_UTILISATION = 0.50  # of the bandwidth, while sampling
LAYER_SECONDS = 1.0e-3  # for one layer and one new token, without compiled graphs
LINK_BANDWIDTH = 200e9  # bytes per second that a GPU gathers from the others of its machine
OVERHEAD_SECONDS = 2.0  # a step's rewards, Sinkhorn solves, logging
PROMPT_TOKENS = 400  # instruction, demonstration, question and principle
ITEM_TOKENS = 800  # a benchmark item with all its choices
RUNTIME_GB = 3.0  # context, allocator, kernels
ADAPTER_BYTES = 16  # of each trained parameter: weight, gradient and two moments, float32


class Shape(NamedTuple):
    """What of a model decides its costs. `key_value`: width of one layer's keys, and of its values; `kept`: values that a
    layer keeps of a token for the backward pass, in units of the model's width."""

    parameters: float
    layers: int
    width: int
    key_value: int
    vocabulary: int
    kept: float = 20.0


SHAPES = {
    "SmolLM2-135M": Shape(134.5e6, 30, 576, 192, 49_152),
    "google/gemma-3-1b-it": Shape(1.0e9, 26, 1152, 256, 262_144, 36.0),
    "8B": Shape(8.03e9, 32, 4096, 1024, 128_256),  # Llama 3's shapes
    "70B": Shape(70.6e9, 80, 8192, 1024, 128_256),
}


class Step(NamedTuple):
    """One optimiser step: seconds, and GB (10^9 bytes) on each GPU."""

    sampling: float
    reference: float
    update: float
    gathering: float
    weights_gb: float
    adapter_gb: float
    activations_gb: float
    cache_gb: float

    @property
    def seconds(self) -> float:
        return self.sampling + self.reference + self.update + self.gathering + OVERHEAD_SECONDS

    @property
    def memory_gb(self) -> float:
        """At the peak: backward pass and sampling do not meet."""
        return RUNTIME_GB + self.weights_gb + self.adapter_gb + max(self.activations_gb, self.cache_gb)


def shape_of(model) -> Shape | None:
    """Shape of a profile's model where it is known."""
    return SHAPES["SmolLM2-135M"] if model.source == "embedded" else SHAPES.get(model.id)


def step(
    shape: Shape, trainer, sami: bool, processes: int = 1, sharded: bool = False, prompt: int = PROMPT_TOKENS
) -> Step:
    """One step of a profile's `trainer` on `processes` GPUs, in bfloat16.

    `sharded`: FSDP or ZeRO-3; the weights lie spread over the GPUs and are gathered for each forward and backward pass,
    and once whole for sampling without a server. The logits are never held (`enigma.llm.head`). Time is linear in the
    completions of a step and in T; with SAMI a completion costs in proportion to K.
    """
    k, g, t = trainer.num_principles, trainer.num_generations, trainer.max_completion_length
    completions = trainer.per_device_train_batch_size * trainer.gradient_accumulation_steps / processes
    sets, micro_batches = completions / (k * g), max(1, trainer.gradient_accumulation_steps / processes)
    own = k * (prompt + g * (t + 1))
    every = k * (prompt + k * g * (t + 1))
    flops = 2 * shape.parameters * sets
    again = 1.5 if trainer.gradient_checkpointing else 1.0  # a forward pass more on two
    logged = 0 if sami else flops * (every - own)  # without a gradient
    update = 2 * flops * (every if sami else own) * again + logged
    cache = 4 * shape.layers * shape.key_value * completions * (prompt + t / 2)
    token = max(
        (2 * shape.parameters + cache) / (BANDWIDTH * TRAFFIC_UTILISATION), shape.layers * LAYER_SECONDS
    )
    rate = PEAK_FLOPS * TRAIN_UTILISATION
    read = every if sami else own
    largest, weights = 2 * shape.parameters / shape.layers / 1e9, 2 * shape.parameters / 1e9
    # Forward and backward of each micro-batch, the reference, and sampling.
    gathered = (2 * micro_batches + 2) * weights * 1e9 * (processes - 1) / processes if sharded else 0
    values = shape.layers + shape.kept if trainer.gradient_checkpointing else shape.layers * shape.kept
    kept, spread = 2 * shape.width * values, processes if sharded else 1
    return Step(
        sampling=t * token + flops * k * prompt / rate,
        reference=flops * own / rate,
        update=update / rate,
        gathering=gathered / LINK_BANDWIDTH,
        weights_gb=weights / processes + 2 * largest if sharded else weights,
        adapter_gb=ADAPTER_BYTES * adapter_parameters(shape, trainer.lora) / 1e9 / spread,
        activations_gb=sets / micro_batches * read * kept / 1e9,
        cache_gb=4 * shape.layers * shape.key_value * completions * (prompt + t) / 1e9
        + (weights if sharded else 0),
    )


def adapter_parameters(shape: Shape, lora) -> float:
    """Trained parameters of LoRA, taking each target for a square matrix of the model's width."""
    return shape.layers * len(lora.target_modules) * lora.r * 2 * shape.width


class Cost(NamedTuple):
    """A whole profile on GPUs that each train one run at a time."""

    gpu_hours: float
    memory_gb: float


def total(profile, shape: Shape, selected: int, items: int) -> Cost:
    """All stages of a profile on one GPU, run after run; side by side they take as many GPU hours.

    `selected`: completions of stage 1; `items`: benchmark items of all models. Completions are taken to fill their limit:
    an upper end.
    """
    trainer, spec = profile.trainer, profile.sufficiency
    arms = [profile.arms[arm] for arm, _ in profile.runs()]
    steps = [step(shape, trainer, arm.lambda_sami > 0) for arm in arms]
    training = sum(
        (arm.max_steps or trainer.max_steps) * one.seconds for arm, one in zip(arms, steps, strict=True)
    )
    columns = selected // (spec.questions * spec.samples)  # the pool's principles
    rate = PEAK_FLOPS * TRAIN_UTILISATION
    selection = selected / spec.batch_size * spec.max_tokens * shape.layers * LAYER_SECONDS
    selection += 2 * shape.parameters * selected * spec.max_tokens * columns / rate
    judging = items * ITEM_TOKENS * 2 * shape.parameters / rate
    hours = (training + selection + judging) / 3600
    return Cost(hours, max(one.memory_gb for one in steps))
