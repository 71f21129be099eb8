"""Log-probabilities of the same completions under several prompts, in one packed forward.

One line holds the beginning that all prompts share, the rest of each prompt, and the completions under each prompt:

    [ shared | rest of x_1 | rest of x_2 | ... | last of x_1, y_1 | last of x_1, y_2 | ... | last of x_2, y_1 | ... ]

The rest goes without the prompt's last token: each completion repeats it, since its output predicts the first token. A
completion sees its prompt and itself alone (`enigma.llm.packing`), at the positions it would have there, so every value
and gradient equals that of a dense forward of prompt + completion. K prompts of P tokens, S of them shared, and N
completions of T tokens cost S + K(P - S + N(T + 1)) tokens instead of K N (P + T). This is the one implementation
behind the SAMI term, stage 1 and the metrics.
"""

from bisect import bisect_left
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from enigma.llm.head import forward_logps
from enigma.llm.lean import lean
from enigma.llm.packing import Packing, install, line_inputs
from enigma.method.rewards import reasoning_span


@dataclass
class Scores:
    """Values for row r (a prompt), slot m (the m-th completion of its group) and token t; zero where `mask` is false."""

    logps: Tensor  # (R, M, T) log-probabilities in nats, unscaled by any temperature
    mask: Tensor  # (R, M, T) bool
    entropy: Tensor | None  # (R, M, T) entropy of the next-token distribution in nats
    hidden: Tensor | None  # (R, M, T, layers, d) states at the completion's own tokens


def completion_logprobs(
    model,
    prompts: list[Tensor],
    completions: list[Tensor],
    groups: list[list[int]] | None = None,
    *,
    layers: tuple[int, ...] = (),
    entropy: bool = False,
) -> Scores:
    """Per-token log-probabilities of completions under prompts, differentiable.

    Args:
        model: a transformers causal language model (wrapped by PEFT, DDP or not) with `sdpa` or `eager` attention.
        prompts: R tensors (P_r,) of token ids, at least one token each.
        completions: N tensors (T_i,) of token ids; a completion may be empty.
        groups: for each prompt the indices of the completions to score under it; all of them by default.
        layers: which hidden states to return, as indices into transformers' `hidden_states`.
        entropy: also return the entropy of each next-token distribution.

    Returns:
        `Scores`. T is the longest completion, M the largest group.

    Raises:
        ValueError: an empty prompt, or groups that do not fit the prompts.

    Source: docs/method.md, eq. 8 (its terms); the packing is our choice [D] (departure 3).
    """
    groups = [list(range(len(completions)))] * len(prompts) if groups is None else groups
    if len(groups) != len(prompts):
        raise ValueError(f"{len(prompts)} prompts need as many groups; found {len(groups)}")
    if any(len(prompt) == 0 for prompt in prompts):
        raise ValueError("a prompt is empty: its last token predicts the completion's first")
    layout = pack(prompts, completions, groups)
    install(model)
    inputs = line_inputs(layout.ids, layout.packing)
    inputs |= {"logits_to_keep": layout.labels.shape[1], "output_hidden_states": bool(layers)}
    with lean(model):
        outputs, logps, entropies = forward_logps(model, layout.labels, entropy, **inputs)
    if not layout.packing.used:
        raise ValueError(f"{type(model).__name__}: its attention is not one of transformers' interface")
    hidden = None
    if layers:
        states = torch.stack([outputs.hidden_states[i][0, -layout.labels.shape[1] :] for i in layers], dim=1)
        hidden = _gather(states, layout.index + 1, layout.mask)
    return Scores(
        logps=_gather(logps[0], layout.index, layout.mask),
        mask=layout.mask,
        entropy=_gather(entropies[0], layout.index, layout.mask) if entropy else None,
        hidden=hidden,
    )


@dataclass
class _Layout:
    ids: Tensor  # (L,)
    packing: Packing
    labels: Tensor  # (1, C): the token that each place of the completions predicts, 0 where none; the line ends with them
    index: Tensor  # (R, M, T): the place, from the first completion on, that predicts token t of slot m
    mask: Tensor  # (R, M, T)


def pack(prompts: list[Tensor], completions: list[Tensor], groups: list[list[int]]) -> _Layout:
    device = prompts[0].device
    shared = shared_prefix([prompt.tolist() for prompt in prompts])
    slots = max(len(group) for group in groups)
    rests = [prompt[shared:-1] for prompt in prompts]
    # A slot that a group leaves empty has no token at all; a completion without tokens has its prompt's last.
    lengths = torch.tensor(
        [[len(completions[i]) + 1 for i in group] + [0] * (slots - len(group)) for group in groups]
    )
    pairs = [
        (prompt[-1:], completions[i]) for prompt, group in zip(prompts, groups, strict=True) for i in group
    ]
    sizes = [torch.tensor([shared]), torch.tensor([len(rest) for rest in rests]), lengths.flatten()]
    packing = Packing([size.to(device) for size in sizes])
    first = (lengths.flatten().cumsum(0) - lengths.flatten()).view_as(lengths).to(device)
    mask = packing.valid[-1][:, 1:].unflatten(0, lengths.shape)
    nothing = prompts[0].new_zeros(1)
    return _Layout(
        ids=torch.cat([prompts[0][:shared], *rests, *chain.from_iterable(pairs)]),
        packing=packing,
        labels=torch.cat([piece for _, completion in pairs for piece in (completion, nothing)])[None],
        index=first[..., None] + torch.arange(mask.shape[2], device=device),
        mask=mask,
    )


def shared_prefix(prompts: list[list[int]]) -> int:
    """Number of leading token ids that all prompts share, leaving each at least one token of its own."""
    shortest = min(len(prompt) for prompt in prompts)
    same = (len({prompt[i] for prompt in prompts}) == 1 for i in range(shortest - 1))
    return next((i for i, equal in enumerate(same) if not equal), shortest - 1)


def _gather(values: Tensor, index: Tensor, mask: Tensor) -> Tensor:
    """(C, ...) at places (R, M, T), zero where `mask` is false."""
    picked = values[index.clamp(max=len(values) - 1)]
    return picked.masked_fill(~mask.reshape(mask.shape + (1,) * (picked.ndim - mask.ndim)), 0)


def reasoning_tokens(tokenizer, ids: list[int]) -> int:
    """How many tokens of a completion lie in its reasoning span, a prefix (see `enigma.method.rewards.reasoning_span`).

    A token that reaches over the end of the span belongs to it. An unclosed span is the whole completion, with the
    end-of-turn token.
    """
    text = tokenizer.decode(ids, skip_special_tokens=False)
    end = reasoning_span(text)[1]
    if end >= len(text):
        return len(ids)
    read = lambda count: len(tokenizer.decode(ids[:count], skip_special_tokens=False))
    return bisect_left(range(len(ids)), end, key=read)
