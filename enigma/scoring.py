"""Log-probabilities of the same completions under several prompts, in one packed forward.

A row holds one prompt and all the completions that are scored under it:

    [ prompt without its last token | last y_1 | last y_2 | ... ]

Each segment repeats the prompt's last token, whose output predicts the segment's first token. A segment sees the prompt
and itself alone (`enigma.attention`), and positions restart in each segment, so every value and gradient equals
that of a dense forward of prompt + completion. K prompts and N completions of T tokens cost K(P + N(T + 1)) tokens
instead of K N (P + T). This is the one implementation behind the SAMI term, stage 1 and the metrics.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from enigma.attention import Packing, install
from enigma.head import forward_logps
from enigma.rewards import reasoning_span


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

    Source: our choice (METHOD.md section 4 asks for teacher forcing over the completion's own ids).
    """
    groups = [list(range(len(completions)))] * len(prompts) if groups is None else groups
    if len(groups) != len(prompts):
        raise ValueError(f"{len(prompts)} prompts need as many groups; found {len(groups)}")
    if any(len(prompt) == 0 for prompt in prompts):
        raise ValueError("a prompt is empty: its last token predicts the completion's first")
    layout = _pack(prompts, completions, groups)
    install(model)
    outputs, logps, entropies = forward_logps(
        model,
        layout.labels,
        entropy,
        input_ids=layout.input_ids,
        # Of no use but to keep the model from making a mask of its own over whole rows.
        attention_mask=layout.input_ids.new_ones(1, 1, 1, 1, dtype=torch.bool),
        position_ids=layout.position_ids,
        logits_to_keep=layout.input_ids.shape[1] - layout.start,
        output_hidden_states=bool(layers),
        use_cache=False,
        packing=layout.packing,
    )
    if not layout.packing.used:
        raise ValueError(f"{type(model).__name__}: its attention is not one of transformers' interface")
    hidden = None
    if layers:
        states = torch.stack([outputs.hidden_states[i][:, layout.start :] for i in layers], dim=2)
        hidden = _gather(states, layout.index + 1, layout.mask)
    return Scores(
        logps=_gather(logps, layout.index, layout.mask),
        mask=layout.mask,
        entropy=_gather(entropies, layout.index, layout.mask) if entropy else None,
        hidden=hidden,
    )


@dataclass
class _Layout:
    input_ids: Tensor  # (R, L)
    position_ids: Tensor  # (R, L)
    packing: Packing
    labels: Tensor  # (R, L - start): the token that each kept position predicts, 0 where none
    start: int  # column of the first segment, the same in every row since prompts are padded on the left
    index: Tensor  # (R, M, T): column, counted from `start`, that predicts token t of slot m
    mask: Tensor  # (R, M, T)


def _pack(prompts: list[Tensor], completions: list[Tensor], groups: list[list[int]]) -> _Layout:
    device = prompts[0].device
    start = max(len(prompt) for prompt in prompts) - 1
    slots = max(len(group) for group in groups)
    longest = max((len(completion) for completion in completions), default=0)
    # A segment is the prompt's last token and a completion.
    columns = torch.zeros(len(prompts), slots, longest + 1, dtype=torch.long)
    lengths = torch.zeros(len(prompts), slots, dtype=torch.long)
    known = torch.zeros(len(prompts), start, dtype=torch.bool)
    rows = {"ids": [], "positions": [], "labels": []}
    for r, (prompt, group) in enumerate(zip(prompts, groups, strict=True)):
        p = len(prompt)
        pad = start - (p - 1)
        known[r, pad:] = True
        ids = [prompt.new_zeros(pad), prompt[:-1]]
        positions = [torch.zeros(pad, dtype=torch.long), torch.arange(p - 1)]
        labels, column = [], start
        for m, i in enumerate(group):
            t = len(completions[i])
            ids += [prompt[-1:], completions[i]]
            labels += [completions[i], prompt.new_zeros(1)]
            positions.append(torch.arange(p - 1, p + t))
            columns[r, m, : t + 1] = torch.arange(column, column + t + 1)
            lengths[r, m] = t + 1
            column += t + 1
        rows["ids"].append(torch.cat(ids))
        rows["labels"].append(torch.cat(labels) if labels else prompt.new_zeros(0))
        rows["positions"].append(torch.cat(positions))
    position_ids = pad_sequence(rows["positions"], batch_first=True).to(device)
    valid = (torch.arange(longest + 1) < lengths[..., None]).to(device)
    columns = columns.to(device)
    return _Layout(
        input_ids=pad_sequence(rows["ids"], batch_first=True),
        position_ids=position_ids,
        packing=Packing(known.to(device), position_ids, columns, valid),
        labels=pad_sequence(rows["labels"], batch_first=True),
        start=start,
        index=(columns[..., :-1] - start).clamp(min=0),
        mask=valid[..., 1:],
    )


def _gather(values: Tensor, index: Tensor, mask: Tensor) -> Tensor:
    """(R, S, ...) at columns (R, M, T), zero where `mask` is false."""
    rows = torch.arange(len(values), device=values.device)[:, None, None]
    picked = values[rows, index.clamp(max=values.shape[1] - 1)]
    mask = mask.reshape(mask.shape + (1,) * (picked.ndim - mask.ndim))
    return picked.masked_fill(~mask, 0)


def reasoning_tokens(tokenizer, ids: list[int]) -> int:
    """How many tokens of a completion lie in its reasoning span, a prefix (see `enigma.rewards.reasoning_span`).

    A token that reaches over the end of the span belongs to it. An unclosed span is the whole completion, with the
    end-of-turn token.
    """
    text = tokenizer.decode(ids, skip_special_tokens=False)
    end = reasoning_span(text)[1]
    if end >= len(text):
        return len(ids)
    low, high = 0, len(ids)
    while low < high:
        middle = (low + high) // 2
        if len(tokenizer.decode(ids[:middle], skip_special_tokens=False)) < end:
            low = middle + 1
        else:
            high = middle
    return low
