"""What is timed: each case is a pair of callables, ours and a named peer, on the shapes of a profile.

Both sides hold the same embedded model with the same LoRA adapter, and see the same prompts and completions. All
completions fill the limit, so that no side gains from an early end.
"""

import platform
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import NamedTuple

import torch
from datasets import Dataset
from peft import LoraConfig
from trl import GRPOConfig

from enigma.data.principles import load_pool
from enigma.data.questions import load_questions
from enigma.llm import prompts
from enigma.llm.config import EnigmaConfig
from enigma.llm.loading import load_model, model_dtype
from enigma.llm.scoring import completion_logprobs
from enigma.llm.trainer import EnigmaTrainer
from enigma.method.rewards import graded_format_reward
from enigma.stages.train import matched_prompts


def device() -> str:
    return "gpu" if torch.cuda.is_available() else "cpu"


def machine(profile) -> dict:
    """What a measurement ran on, and with what."""
    name = torch.cuda.get_device_name() if device() == "gpu" else torch.cpu.get_capabilities()["cpu_name"]
    return {
        "profile": profile.name,
        "dtype": str(model_dtype(profile.model)).removeprefix("torch."),
        "device": name,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{package: version(package) for package in ("torch", "transformers", "trl", "peft", "POT")},
    }


class Case(NamedTuple):
    """One comparison. `ours` and `peer` do the same piece of work once."""

    ours: Callable[[], object]
    peer: Callable[[], object]


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call, with what it left to the GPU."""
    return taken(work)[0]


def taken(work: Callable[[], object]) -> tuple[float, float]:
    """Wall time of one call, and what all cores together worked for it; on a GPU wall time twice."""
    _synchronise()
    started, worked = time.perf_counter(), time.process_time()
    work()
    _synchronise()
    wall = time.perf_counter() - started
    return wall, wall if torch.cuda.is_available() else time.process_time() - worked


def flops(work: Callable[[], object]) -> float:
    """Floating-point operations of one call, in 10^12: matrix products, which are nearly all; attention on a CPU is left out."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops() / 1e12


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def rows(profile, tokenizer, k: int) -> list[dict]:
    """The training rows of one batch: enough matched sets of K prompts to fill it."""
    spec = profile.trainer
    sets = spec.per_device_train_batch_size // (k * spec.num_generations)
    questions = load_questions(profile.questions, "train", sets, profile.seeds.data)
    style = dict(placement=profile.prompts.placement, demonstration=profile.prompts.demonstration)
    made = matched_prompts(questions, load_pool(profile.principles.pool), k, profile.seeds.data, **style)
    for row in made:
        row["prompt"] = prompts.fit_template(tokenizer, row["prompt"])
    return made


def trainer(profile, kind: type, k: int):
    """A trainer with LoRA: `EnigmaTrainer` with all three terms, or TRL's own."""
    spec = profile.trainer
    model, tokenizer = load_model(profile.model, profile.seeds.initialisation)
    common = dict(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=spec.per_device_train_batch_size,
        num_generations=spec.num_generations,
        max_completion_length=spec.max_completion_length,
        beta=spec.beta,
        bf16=model.dtype == torch.bfloat16,
        use_cpu=not torch.cuda.is_available(),
        gradient_checkpointing=False,
        report_to="none",
        importance_sampling_level="sequence",
        loss_type="grpo",
        scale_rewards="none",
    )
    if kind is EnigmaTrainer:
        config = EnigmaConfig(
            **common,
            num_principles=k,
            lambda_sami=0.02,
            lambda_ot=5.0,
            ot_layers=spec.ot_layers,
            ot_epsilon=spec.ot_epsilon,
            ot_points=spec.ot_points,
        )
    else:
        config = GRPOConfig(**common)
    lora = spec.lora
    made = kind(
        model,
        graded_format_reward,
        config,
        Dataset.from_list(rows(profile, tokenizer, k)),
        processing_class=tokenizer,
        # Not zero, so that the policy differs from the reference as it does in training.
        peft_config=LoraConfig(
            r=lora.r,
            lora_alpha=lora.alpha,
            target_modules=list(lora.target_modules),
            init_lora_weights="gaussian",
        ),
    )
    for name, weight in made.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=1e-3)
    # No completion ends before the limit.
    made.eos_token_ids = []
    made.generation_config.min_new_tokens = spec.max_completion_length
    made.create_optimizer()
    made.model.train()
    made.current_gradient_accumulation_steps = 1
    return made


def batch(made) -> list[dict]:
    """The rows of one generation batch as the data loader hands them out."""
    return [row for row in made.train_dataset for _ in range(made.num_generations)]


def sampling(made) -> Callable[[], dict]:
    """Completions of one batch, with rewards and the reference's view of them."""
    return lambda: made._generate_and_score_completions(batch(made))


def loss_phase(ours, peer, inputs: dict) -> Case:
    """Everything of a step but sampling and rewards: the reference forward, the loss, its gradient."""

    def enigma():
        with torch.no_grad():
            again = {**inputs, **ours._reference(inputs)}
        ours.accelerator.backward(ours._compute_loss(ours.model, again))
        ours.model.zero_grad()

    def trl():
        peer.accelerator.backward(peer._compute_loss(peer.model, inputs))
        peer.model.zero_grad()

    return Case(enigma, trl)


def whole_step(ours, peer) -> Case:
    """Sampling, rewards, loss, gradient, optimiser."""

    def step(made, made_batch):
        def run():
            made.training_step(made.model, made_batch, None)
            made.optimizer.step()
            made.model.zero_grad()

        return run

    return Case(step(ours, batch(ours)), step(peer, batch(peer)))


def sami_matrix(made, inputs: dict, k: int) -> Case:
    """log p(y_i | x, c_k) for all completions of a matched set with a gradient, against one padded forward for each
    principle over prompt and completion with the log-softmax of every position, as the SAMI reference has it."""
    ids = [row[keep.bool()] for row, keep in zip(inputs["prompt_ids"], inputs["prompt_mask"], strict=True)]
    completions = [
        row[keep.bool()]
        for row, keep in zip(inputs["completion_ids"], inputs["completion_mask"], strict=True)
    ]
    n = made.args.matched_set_size
    firsts = ids[: n : n // k]
    ours = made.model

    def packed():
        completion_logprobs(ours, firsts, completions[:n]).logps.sum().backward()
        ours.zero_grad()

    def dense():
        for prompt in firsts:
            joined = torch.stack([torch.cat([prompt, completion]) for completion in completions[:n]])
            logps = torch.log_softmax(ours(input_ids=joined, use_cache=False).logits[:, :-1].float(), dim=-1)
            logps.gather(-1, joined[:, 1:, None])[:, len(prompt) - 1 :].sum().backward()
        ours.zero_grad()

    return Case(packed, dense)


def sinkhorn_term(made, inputs: dict) -> Callable[[], object]:
    """The divergence of every matched set with its gradient."""
    shape = (*inputs["completion_ids"].shape, len(made.args.ot_layers), made.model.config.hidden_size)
    policy = (
        inputs["reference_hidden"] + 0.1 * torch.randn_like(inputs["reference_hidden"])
    ).requires_grad_()
    assert policy.shape == shape
    scores = type("Scores", (), {"hidden": policy, "mask": inputs["completion_mask"].bool()})
    scores.sets, scores.logps = len(policy) // made.args.matched_set_size, policy
    return lambda: made._divergence(scores, inputs)[0].sum().backward()
