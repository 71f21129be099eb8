"""FlexAttention over packed texts, for batches on a GPU whose masks would not fit: the tree itself is the mask.

torch's other kernels keep an expanded mask in every layer, 42 GB for Gemma-3-1B with 4 prompts of 512 tokens and 8
completions of 1,024 each. Compiled once for all shapes, since each new shape would cost 15 s. Not yet run on CUDA; the
mask, the blocks and the values are tested against the other path without compiling. Source: our choice [D].
"""

import functools

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

BLOCK = 128


@functools.cache
def _kernel():
    return torch.compile(flex_attention, dynamic=True)


def attend(packing, query: Tensor, key: Tensor, value: Tensor, window: int | None, scaling=None) -> Tensor:
    """Queries (L, H, D), keys and values (L, H', D) of a line to (L, H, D)."""
    query, key, value = (x.transpose(0, 1)[None] for x in (query, key, value))
    options = dict(block_mask=block_mask(packing, window), scale=scaling, enable_gqa=True)
    return _kernel()(query, key, value, **options)[0].transpose(0, 1)


def block_mask(packing, window: int | None) -> BlockMask:
    """The tree as FlexAttention takes it: which tokens see which, and the pairs of blocks that hold such tokens at all."""
    low, high = family(packing)
    position = packing.line

    def sees(batch, head, query, key):
        """A token of the same text or of one that it continues, not behind it, and within the window."""
        inside = (low[key] <= low[query]) & (high[query] <= high[key]) & (position[key] <= position[query])
        return inside & (position[query] - position[key] < window) if window else inside

    (low_min, low_max), (high_min, high_max), (first, last) = map(_bounds, (low, high, position))
    # True for every pair of blocks in which some token sees another, and for a few more.
    pairs = (low_min <= low_max[:, None]) & (high_min[:, None] <= high_max) & (first <= last[:, None])
    if window:
        pairs &= first[:, None] - last < window
    count = pairs.sum(1, dtype=torch.int32)
    order = torch.argsort(pairs.int(), dim=1, descending=True, stable=True).int()
    length = len(position)
    return BlockMask.from_kv_blocks(
        count[None, None], order[None, None], BLOCK_SIZE=BLOCK, mask_mod=sees, seq_lengths=(length, length)
    )


def family(packing) -> tuple[Tensor, Tensor]:
    """For each token of the line (L,) the first of the last level's texts that continue its text, and the one after the last."""
    leaves, low, high = len(packing.valid[-1]), [], []
    for valid in packing.valid:
        each = leaves // len(valid)
        first = torch.arange(len(valid), device=valid.device)[:, None].expand_as(valid)[valid] * each
        low.append(first)
        high.append(first + each)
    return torch.cat(low), torch.cat(high)


def _bounds(values: Tensor) -> tuple[Tensor, Tensor]:
    """The least and the greatest value of each block."""
    missing = -len(values) % BLOCK
    blocks = torch.cat([values, values[-1:].expand(missing)]).view(-1, BLOCK)
    return blocks.amin(1), blocks.amax(1)
