"""Attention over packed rows: each segment sees its row's prompt and itself, and nothing else is computed.

A packed row holds one prompt and M segments (see `enigma.scoring`). A mask over the whole row would give the same
values, but most of it is hidden: at M segments of S tokens after P the mask has (P + M S)^2 cells, of which
P^2 + M S (P + S) matter. Here prompt and segments are attended to apart, by torch's own kernel.

`install` makes this a model's attention, by transformers' `AttentionInterface`. Without a packing in the call it is
transformers' `sdpa`. Source: our choice.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "sdpa_packed"


class Packing:
    """Where prompt and segments of R rows of length L stand.

    Args:
        prompt: (R, P) bool, the prompts' tokens; padding stands on the left.
        position: (R, L) position of every token in its own text.
        columns: (R, M, S) column of each segment's tokens.
        valid: (R, M, S) bool, false where a segment is shorter.
    """

    def __init__(self, prompt: Tensor, position: Tensor, columns: Tensor, valid: Tensor):
        self.prompt, self.valid = prompt, valid
        self.start = prompt.shape[1]
        self.length = position.shape[1]
        offset = torch.arange(len(position), device=position.device)[:, None, None] * self.length
        self.columns = (columns + offset)[valid]  # of all tokens of segments, in the flattened rows
        self.cells = valid.flatten().nonzero()[:, 0]  # and in the flattened segments
        self.prompt_position = position[:, : self.start]
        self.position = torch.where(valid, position.flatten()[(columns + offset).flatten()].view_as(columns), 0)
        self.masks: dict = {}
        self.used = False

    def mask(self, window: int | None) -> tuple[Tensor, Tensor]:
        """Boolean masks of the prompts (R, 1, P, P) and of the segments (R M, 1, S, P + S)."""
        if window not in self.masks:
            self.masks[window] = self._prompt_mask(window), self._segment_mask(window)
        return self.masks[window]

    def _prompt_mask(self, window: int | None) -> Tensor:
        at = self.prompt_position
        causal = torch.ones(self.start, self.start, dtype=torch.bool, device=at.device).tril()
        allowed = causal & self.prompt[:, None, :]
        return _within(allowed, at[:, :, None], at[:, None, :], window)[:, None]

    def _segment_mask(self, window: int | None) -> Tensor:
        at, m, s = self.position, *self.valid.shape[1:]
        causal = torch.ones(s, s, dtype=torch.bool, device=at.device).tril()
        own = _within(causal & self.valid[:, :, None, :], at[..., :, None], at[..., None, :], window)
        before = self.prompt[:, None, None, :].expand(-1, m, s, -1)
        if window:
            before = before & (at[..., :, None] - self.prompt_position[:, None, None, :] < window)
        return torch.cat([before, own], dim=-1).flatten(0, 1)[:, None]


def _within(allowed: Tensor, query: Tensor, key: Tensor, window: int | None) -> Tensor:
    """The window applied; and a position always sees itself, since a row without any key would be NaN."""
    if window:
        allowed = allowed & (query - key < window)
    return allowed | torch.eye(allowed.shape[-1], dtype=torch.bool, device=allowed.device)


def packed_attention(module, query, key, value, attention_mask, packing: Packing | None = None, **kwargs):
    """Attention in transformers' signature: query (R, H, L, D), key and value (R, H', L, D); returns (R, L, H, D), None."""
    if packing is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    if kwargs.get("softcap") is not None:
        raise ValueError(f"{type(module).__name__} caps attention scores, which packed rows do not support")
    packing.used = True
    over_prompt, over_segment = packing.mask(kwargs.get("sliding_window"))
    options = {name: kwargs[name] for name in ("dropout", "scaling") if name in kwargs}
    parts = [_Split.apply(x.transpose(1, 2), packing) for x in (query, key, value)]
    prompt, own = ([part[i].transpose(1, 2) for part in parts] for i in (0, 1))
    first = parts[0][0]
    if packing.start:
        first, _ = sdpa_attention_forward(module, *prompt, over_prompt, **options)
    m = packing.valid.shape[1]
    before = (x[:, None].expand(-1, m, -1, -1, -1).flatten(0, 1) for x in prompt[1:])
    keys, values = (torch.cat(pair, dim=2) for pair in zip(before, own[1:], strict=True))
    return _Join.apply(first, _grouped(own[0], keys, values, over_segment, **options), packing), None


def _grouped(query, key, value, mask, dropout=0.0, scaling=None) -> Tensor:
    """Attention (B, S, H, D) whose query heads that share a key head stand one after the other in one long query.

    Keys and values are then not repeated, which would be the largest tensors of the layer.
    """
    b, heads, s, d = query.shape
    shared = heads // key.shape[1]
    grouped = query.reshape(b, key.shape[1], shared * s, d)
    out = F.scaled_dot_product_attention(grouped, key, value, mask.repeat(1, 1, shared, 1), dropout, scale=scaling)
    return out.reshape(b, heads, s, -1).transpose(1, 2)


def _split(x: Tensor, packing: Packing) -> tuple[Tensor, Tensor]:
    """(R, L, H, D) to prompts (R, P, H, D) and segments (R M, S, H, D), zero where a segment is shorter."""
    moved = x.reshape(-1, x.shape[2] * x.shape[3]).index_select(0, packing.columns)
    own = x.new_zeros(packing.valid.numel(), moved.shape[1]).index_copy_(0, packing.cells, moved)
    return x[:, : packing.start], own.view(-1, packing.valid.shape[2], *x.shape[2:])


def _join(prompt: Tensor, own: Tensor, packing: Packing) -> Tensor:
    """The rows again: inverse of `_split`, and its adjoint. Padding is zero."""
    moved = own.flatten(2).flatten(0, 1).index_select(0, packing.cells)
    rows = own.new_zeros(len(packing.prompt) * packing.length, moved.shape[1]).index_copy_(0, packing.columns, moved)
    rows = rows.view(len(packing.prompt), packing.length, *own.shape[2:])
    rows[:, : packing.start] = prompt
    return rows


class _Split(torch.autograd.Function):
    """`_split`; autograd's own gradient of an index adds up rows one by one, though none comes twice."""

    @staticmethod
    def forward(ctx, x: Tensor, packing: Packing):
        ctx.packing = packing
        return _split(x, packing)

    @staticmethod
    def backward(ctx, prompt: Tensor, own: Tensor):
        return _join(prompt, own, ctx.packing), None


class _Join(torch.autograd.Function):
    """`_join`."""

    @staticmethod
    def forward(ctx, prompt: Tensor, own: Tensor, packing: Packing):
        ctx.packing = packing
        return _join(prompt, own, packing)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return *_split(gradient, ctx.packing), None


def unwrap(model):
    """The model itself inside a distributed wrapper."""
    return model.module if hasattr(model, "module") and not hasattr(model, "config") else model


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


def install(model) -> None:
    """Make this the attention of a transformers model, wrapped or not; it stays, and elsewhere is `sdpa` as before."""
    config = unwrap(model).config.get_text_config()
    if config._attn_implementation != NAME:
        config._attn_implementation = NAME
