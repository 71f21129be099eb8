"""Attention over packed texts: a tree of texts in one line, where each text sees those it continues and itself.

The line holds what all prompts share, then the rest of each prompt, then the completions under each prompt (see
`enigma.llm.scoring`). A mask over the whole line would give the same values, but most of it is hidden. Here each level of the
tree is attended to by itself, by torch's own kernel, and no hidden cell is computed. Large batches on a GPU go by
`enigma.llm.flex`.

`install` makes this a model's attention, by transformers' `AttentionInterface`. Without a packing in the call it is
transformers' `sdpa`. Source: our choice.
"""

from collections.abc import Iterator, Sequence
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from enigma.llm import flex
from enigma.llm.lean import remake

NAME = "sdpa_packed"
FLEX_CELLS = 2**26  # of a layer's masks, from which on a GPU has no room for them


class Packing:
    """Where the texts of a tree stand in a line: level after level, and within a level text after text, unpadded.

    Args:
        lengths: for each level the number of tokens of its n texts, (n,). Each text of a level is continued by as many
            texts of the next one, which stand in the order of their parents.
    """

    def __init__(self, lengths: list[Tensor]):
        # Of each level, (n, longest): a token or padding; its place in its whole text.
        self.valid, self.position = [], []
        begin = lengths[0].new_zeros(1)
        for length in lengths:
            begin = children(begin, len(length))
            at = torch.arange(int(length.max()), device=length.device)
            self.valid.append(at < length[:, None])
            self.position.append(torch.where(self.valid[-1], begin[:, None] + at, 0))
            begin = begin + length
        levels = list(zip(self.position, self.valid, strict=True))
        self.line = torch.cat([at[valid] for at, valid in levels])  # (L,) positions
        keys = accumulate(valid.shape[1] for valid in self.valid)
        self.mask_cells = sum(valid.numel() * seen for valid, seen in zip(self.valid, keys, strict=True))
        self.sizes = [int(length.sum()) for length in lengths]
        self.cells = [valid.flatten().nonzero()[:, 0] for valid in self.valid]
        self._masks: dict = {}
        self.used = False

    def attend(
        self, module, query: Tensor, key: Tensor, value: Tensor, window: int | None, **options
    ) -> Tensor:
        """Queries (L, H, D), keys and values (L, H', D) of the line to (L, H, D), level by level."""
        if query.is_cuda and self.mask_cells > FLEX_CELLS and not options.get("dropout"):
            return flex.attend(self, query, key, value, window, options.get("scaling"))
        levels = zip(*(Split.apply(x, self) for x in (query, key, value)), strict=True)
        keys = values = None
        made = []
        shared = query.shape[1] // key.shape[1]
        for level, mask in zip(levels, self.masks(window, shared, query.dtype), strict=True):
            query, key, value = (x.transpose(1, 2) for x in level)
            keys, values = (
                own if before is None else remake(_continued(before, own), _continued, before, own)
                for before, own in ((keys, key), (values, value))
            )
            made.append(_grouped(query, keys, values, mask, **options) if mask.numel() else level[0])
        return Join.apply(self, *made)

    def masks(self, window: int | None, shared: int, dtype: torch.dtype) -> list[Tensor]:
        """For each level what is added to the scores of `_grouped`, (n, 1, shared * own, keys), 0 or -inf: the keys are
        those of the texts that it continues, and its own. Made once, or every layer would keep a copy."""
        which = window, shared, dtype
        if which not in self._masks:
            self._masks[which] = [
                torch.zeros_like(seen, dtype=dtype).masked_fill_(~seen, -torch.inf).repeat(1, 1, shared, 1)
                for seen in self._visible(window)
            ]
        return self._masks[which]

    def _visible(self, window: int | None) -> Iterator[Tensor]:
        """(n, 1, own, keys) bool for each level."""
        known = torch.zeros(1, 0, dtype=torch.bool, device=self.line.device)
        key = torch.zeros(1, 0, dtype=torch.long, device=self.line.device)
        for valid, query in zip(self.valid, self.position, strict=True):
            known, key = (
                torch.cat(pair, dim=1)
                for pair in ((children(known, len(valid)), valid), (children(key, len(query)), query))
            )
            own = query.shape[1]
            visible = known[:, None, :].repeat(1, own, 1)
            visible[:, :, visible.shape[2] - own :].tril_()
            if window:
                visible &= query[:, :, None] - key[:, None, :] < window
            # Padding sees itself, since a softmax over nothing would be NaN.
            visible.diagonal(visible.shape[2] - own, 1, 2)[:] = True
            yield visible[:, None]


def children(values: Tensor, count: int) -> Tensor:
    """(n, ...) to (count, ...): each text's values for every text that continues it."""
    return values[:, None].expand(-1, count // len(values), *values.shape[1:]).flatten(0, 1)


def _continued(before: Tensor, own: Tensor) -> Tensor:
    """Keys or values (B, H', S, D) of texts, after those of the texts that they continue."""
    return torch.cat([children(before, len(own)), own], dim=2)


def packed_attention(module, query, key, value, attention_mask, packing: Packing | None = None, **kwargs):
    """Attention in transformers' signature: query (1, H, L, D), key and value (1, H', L, D); returns (1, L, H, D), None."""
    if packing is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    if kwargs.get("softcap") is not None:
        raise ValueError(f"{type(module).__name__} caps attention scores, which packed texts do not support")
    packing.used = True
    options = {name: kwargs[name] for name in ("dropout", "scaling") if name in kwargs}
    query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))
    return packing.attend(module, query, key, value, kwargs.get("sliding_window"), **options)[None], None


def line_inputs(ids: Tensor, packing: Packing) -> dict:
    """What a model is called with for a line of token ids (L,)."""
    # Nothing reads this mask. It only keeps the model from making one of its own over the whole line.
    mask = ids.new_ones(1, 1, 1, 1, dtype=torch.bool)
    line = dict(input_ids=ids[None], position_ids=packing.line[None], attention_mask=mask)
    return {**line, "use_cache": False, "packing": packing}


def _grouped(query, key, value, mask, dropout=0.0, scaling=None) -> Tensor:
    """Attention (B, S, H, D) whose query heads that share a key head stand one after the other in one long query.

    Keys and values are then not repeated, which would be the largest tensors of the layer.
    """
    b, heads, s, d = query.shape
    shared = heads // key.shape[1]
    grouped = query.reshape(b, key.shape[1], shared * s, d)
    out = F.scaled_dot_product_attention(grouped, key, value, mask, dropout, scale=scaling)
    return out.reshape(b, heads, s, -1).transpose(1, 2)


def split(x: Tensor, packing: Packing) -> tuple[Tensor, ...]:
    """(L, H, D) to the levels (n, longest, H, D), zero where a text is shorter."""
    levels = []
    for part, cells, valid in zip(
        x.flatten(1).split(packing.sizes), packing.cells, packing.valid, strict=True
    ):
        padded = x.new_zeros(valid.numel(), part.shape[1]).index_copy_(0, cells, part)
        levels.append(padded.view(*valid.shape, *x.shape[1:]))
    return tuple(levels)


def _join(levels: Sequence[Tensor], packing: Packing) -> Tensor:
    """The line again: inverse of `split`, and its adjoint."""
    pairs = zip(levels, packing.cells, strict=True)
    return torch.cat([level.flatten(0, 1).index_select(0, cells) for level, cells in pairs])


class Split(torch.autograd.Function):
    """`split`; autograd's own gradient of an index adds up rows one by one, though none comes twice."""

    @staticmethod
    def forward(ctx, x: Tensor, packing: Packing):
        ctx.packing = packing
        return split(x, packing)

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        return _join(gradients, ctx.packing), None


class Join(torch.autograd.Function):
    """`_join`."""

    @staticmethod
    def forward(ctx, packing: Packing, *levels: Tensor):
        ctx.packing = packing
        return _join(levels, packing)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return None, *split(gradient, ctx.packing)


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
