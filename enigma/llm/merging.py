"""Finished adapters merged into one by multi-teacher distillation. Source: SAMerging (sharpness-aware merging by KL).

    W = W0 + sum_t lambda_{t,l} delta_{t,l} for every adapted matrix l;   min over lambda of sum_t T^2 KL(teacher_t || merged)

at the tokens of the teachers' own greedy completions of unlabelled prompts, T = 2, by sharpness-aware descent: the
gradient is taken where lambda was moved by rho along its own gradient. Departures [D]: the deltas are LoRA's; lambda
begins at equal weights 1/teachers; the descent is Adam's with that gradient; each teacher is asked on its own text alone.

The sum is exact: PEFT's `cat` puts the factors side by side. Its `linear` adds A's and B's apart, which has cross terms.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor

from enigma.llm.check import check_adapter
from enigma.llm.loading import load_model

TEMPERATURE = 2.0
RATE, RHO = 0.02, 0.05
MERGED = "default"


def load_teachers(spec, adapters: Sequence[Path], seed: int):
    """(model, tokenizer, names): the untrained model with each adapter beside it, frozen, under the names t0, t1, ..."""
    model, tokenizer = load_model(spec, seed)
    names = [f"t{i}" for i in range(len(adapters))]
    for folder in adapters:
        check_adapter(folder)
    policy = PeftModel.from_pretrained(model, str(adapters[0]), adapter_name=names[0])
    for name, folder in zip(names[1:], adapters[1:], strict=True):
        policy.load_adapter(str(folder), adapter_name=name)
    return policy.requires_grad_(False).eval(), tokenizer, names


def adapted(model) -> list[LoraLayer]:
    """The matrices that have an adapter, in the model's order."""
    return [module for module in model.modules() if isinstance(module, LoraLayer)]


@contextmanager
def weighted(model, names: Sequence[str], weights: Tensor) -> Iterator[None]:
    """Inside, `model` acts as W0 + sum_t weights[t, l] delta_{t,l}, differentiable in weights (teachers, matrices)."""
    layers = adapted(model)
    kept = [dict(layer.scaling) for layer in layers]
    model.base_model.set_adapter(list(names))
    model.requires_grad_(False)
    for i, layer in enumerate(layers):
        for t, name in enumerate(names):
            layer.scaling[name] = kept[i][name] * weights[t, i]
    try:
        yield
    finally:
        for layer, scaling in zip(layers, kept, strict=True):
            layer.scaling.update(scaling)


def merge(model, names: Sequence[str], weights: Tensor) -> None:
    """Put the merged adapter, exact, in place of its two or more teachers, under the name `MERGED`."""
    with torch.no_grad(), weighted(model, names, weights):
        model.base_model.add_weighted_adapter(list(names), [1.0] * len(names), MERGED, "cat")
    model.set_adapter(MERGED)
    for name in names:
        model.delete_adapter(name)


def sharpness_aware(
    weights: Tensor, loss: Callable[[Tensor, int], Tensor], steps: int, rate: float = RATE, rho: float = RHO
) -> tuple[Tensor, list[float]]:
    """Weights after `steps` of sharpness-aware descent, and the loss before each step.

    `loss(weights, step)`, a scalar; of one step both gradients are of the same batch.
    """
    weights = weights.clone().requires_grad_()
    optimiser, curve = torch.optim.Adam([weights], lr=rate), []
    for step in range(steps):
        value = loss(weights, step)
        (uphill,) = torch.autograd.grad(value, weights)
        moved = (weights + rho * uphill / uphill.norm().clamp(min=1e-12)).detach().requires_grad_()
        (weights.grad,) = torch.autograd.grad(loss(moved, step), moved)
        optimiser.step()
        curve.append(value.item())
    return weights.detach(), curve


def completion_logits(model, prompts: list[list[int]], completions: list[list[int]]) -> Tensor:
    """(tokens of all completions, V) float32: the prediction of every completion token under its prompt."""
    before, after = max(map(len, prompts)), max(map(len, completions))
    ids = torch.zeros(len(prompts), before + after, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, (p, c) in enumerate(zip(prompts, completions, strict=True)):
        ids[row, before - len(p) : before + len(c)] = torch.tensor(p + c)
        mask[row, before - len(p) : before + len(c)] = 1
    output = model(
        input_ids=ids.to(model.device),
        attention_mask=mask.to(model.device),
        position_ids=(mask.cumsum(1) - 1).clamp(min=0).to(model.device),
        logits_to_keep=after + 1,
    )
    return output.logits[:, :-1][mask[:, before:].bool().to(model.device)].float()


def distillation_loss(teacher: Tensor, student: Tensor) -> Tensor:
    """T^2 KL(teacher || student) of logits (N, V) at temperature T, mean over N, nats."""
    p, q = (torch.log_softmax(logits / TEMPERATURE, -1) for logits in (teacher, student))
    return TEMPERATURE**2 * torch.nn.functional.kl_div(q, p, reduction="batchmean", log_target=True)


def multi_teacher_loss(model, names: Sequence[str], texts: Sequence[tuple[list, list]], batch: int):
    """`loss(weights, step)` for `sharpness_aware`: the sum over teachers on `batch` of each one's own texts, in turn.

    `texts`: for each teacher its (prompts, completions), lists of token ids.
    """

    def loss(weights: Tensor, step: int) -> Tensor:
        total = weights.new_zeros(())
        for name, (prompts, completions) in zip(names, texts, strict=True):
            rows = [(step * batch + i) % len(prompts) for i in range(batch)]
            asked, said = [prompts[i] for i in rows], [completions[i] for i in rows]
            model.base_model.set_adapter(name)
            with torch.no_grad():
                target = completion_logits(model, asked, said)
            with weighted(model, names, weights):
                total = total + distillation_loss(target, completion_logits(model, asked, said))
        return total

    return loss
