"""Log-probabilities of chosen tokens without the logits: the head, block by block, inside the model's forward.

Logits are a step's largest tensor, and autograd keeps a float32 copy and a gradient of the same size. Here those of a few
positions and a part of the vocabulary are made, used and dropped. What the backward pass needs of a position is one vector,

    d log p(t | h) / d h = W^T (onehot(t) - p),

summed while p is there. That holds while the head itself is not trained, as with LoRA, or where nothing has a gradient.
A head that is trained, or logits that a model changes afterwards (a soft cap, a scale), go the ordinary way. Logits are
float32 whatever the model's dtype: in bfloat16 their rounding alone costs 0.07 nats of a principle's contrast over 48
tokens. Source: our choice [D].
"""

from contextlib import contextmanager
from weakref import WeakSet

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from enigma.llm.packing import unwrap

POSITIONS, VOCABULARY = 512, 1024  # at a time: two megabytes of logits, which a cache holds
_changed_afterwards: WeakSet = WeakSet()  # heads whose logits the model goes on to change


def forward_logps(model, labels: Tensor, entropy: bool, **inputs):
    """Run `model` and return its outputs with the log-probabilities of `labels` and the entropies, (R, S) float32 nats.

    `model` is a causal language model, wrapped or not; `labels` (R, S) are the tokens that the kept positions
    (`logits_to_keep`) predict. Entropies carry no gradient and are None unless asked for. float64 stays float64.
    """
    head = unwrap(model).get_output_embeddings()
    if _is_plain(head):
        with _replaced(head, labels, entropy) as made:
            outputs = model(**inputs)
        found = outputs.logits
        # By value too: DistributedDataParallel hands out copies.
        if found is made[0] or (found.shape == labels.shape and torch.equal(found, made[0])):
            return outputs, found, made[1]
        _changed_afterwards.add(head)
    outputs = model(**inputs)
    return outputs, *_from_logits(outputs.logits, labels, entropy)


def _is_plain(head) -> bool:
    if type(head) is not nn.Linear or head.bias is not None or "forward" in head.__dict__:
        return False
    trained = head.weight.requires_grad and torch.is_grad_enabled()
    return not trained and head not in _changed_afterwards


@contextmanager
def _replaced(head: nn.Linear, labels: Tensor, entropy: bool):
    """Inside, the head returns log-probabilities instead of logits. Yields a list that then holds its two results."""
    made: list = []

    def forward(hidden: Tensor) -> Tensor:
        logps, entropies = _ChosenLogps.apply(hidden.flatten(0, 1), head.weight, labels.flatten())
        made.extend([logps.view_as(labels), entropies.view_as(labels) if entropy else None])
        return made[0]

    head.forward = forward
    try:
        yield made
    finally:
        del head.forward


class _ChosenLogps(torch.autograd.Function):
    """(N, d) states, (V, d) weights and (N,) tokens to (N,) log-probabilities and entropies."""

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, labels: Tensor):
        slope = ctx.needs_input_grad[0]
        parts = zip(hidden.split(POSITIONS), labels.split(POSITIONS), strict=True)
        found = zip(*(_blockwise(some, weight, label, slope) for some, label in parts), strict=True)
        logps, entropies, slopes = (torch.cat(pieces) for pieces in found)
        if slope:
            ctx.save_for_backward(slopes.to(hidden.dtype))
        ctx.mark_non_differentiable(entropies)
        return logps, entropies

    @staticmethod
    def backward(ctx, gradient: Tensor, _):
        (slopes,) = ctx.saved_tensors
        return gradient[:, None].to(slopes.dtype) * slopes, None, None


def _blockwise(hidden: Tensor, weight: Tensor, labels: Tensor, slope: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities and entropies (n,), and the slopes d log p / d h (n, d), a block of the vocabulary at a time.

    Of the blocks so far the sums of e = exp(s - m), of e s and of e W are kept, with m the largest logit; a block with a
    larger one scales them. A block's logits never leave the processor's cache. Without `slope` the last result is (n, 0).
    """
    zeros = torch.zeros_like(labels, dtype=torch.promote_types(weight.dtype, torch.float32))
    largest, chosen, total, moment = zeros - torch.inf, zeros, zeros, zeros
    pull = zeros[:, None].expand(-1, hidden.shape[1] if slope else 0)
    size = VOCABULARY if hidden.device.type == "cpu" else 32 * VOCABULARY  # on a GPU few kernels count
    for start in range(0, len(weight), size):
        block = weight[start : start + size]
        logits = _logits(hidden, block)
        place = labels - start
        inside = (place >= 0) & (place < len(block))
        here = logits.gather(-1, place.clamp(0, len(block) - 1)[:, None])[:, 0]
        chosen = torch.where(inside, here, chosen)
        before, largest = largest, torch.maximum(largest, logits.amax(-1))
        scale = (before - largest).exp()
        e = (logits - largest[:, None]).exp_()
        total = total * scale + e.sum(-1)
        moment = moment * scale + torch.linalg.vecdot(e, logits)
        if slope:
            pull = pull * scale[:, None] + e.to(weight.dtype) @ block
    normaliser = largest + total.log()
    slopes = weight[labels] - pull / total[:, None] if slope else pull
    return chosen - normaliser, normaliser - moment / total, slopes


def _logits(hidden: Tensor, weight: Tensor) -> Tensor:
    """States (n, d) to float32 logits (n, V), or float64 ones of a float64 model; autocast has no say."""
    if weight.is_cuda and weight.dtype != torch.float32 and hidden.dtype == weight.dtype:
        return torch.mm(hidden, weight.t(), out_dtype=torch.float32)  # no copy of the weights
    exact = torch.promote_types(weight.dtype, torch.float32)
    with torch.autocast(hidden.device.type, enabled=False):
        return F.linear(hidden.to(exact), weight.to(exact))


def _from_logits(logits: Tensor, labels: Tensor, entropy: bool) -> tuple[Tensor, Tensor | None]:
    """The same from a model's logits (R, S, V); the float32 copy of a few positions is made again in the backward pass."""
    flat, keys = logits.flatten(0, 1), labels.flatten()
    pieces = [
        checkpoint(_token_logps, some, label, entropy, use_reentrant=False)
        if torch.is_grad_enabled() and logits.requires_grad
        else _token_logps(some, label, entropy)
        for some, label in zip(flat.split(POSITIONS), keys.split(POSITIONS), strict=True)
    ]
    logps = torch.cat([piece[0] for piece in pieces]).view_as(labels)
    return logps, torch.cat([piece[1] for piece in pieces]).view_as(labels) if entropy else None


def _token_logps(logits: Tensor, labels: Tensor, entropy: bool) -> tuple[Tensor, Tensor | None]:
    logps = torch.log_softmax(logits if logits.dtype == torch.float64 else logits.float(), dim=-1)
    chosen = logps.gather(-1, labels[:, None])[:, 0]
    if not entropy:
        return chosen, None
    # Only logged, so it needs no gradient.
    with torch.no_grad():
        return chosen, -(logps.exp() * logps).sum(-1)
