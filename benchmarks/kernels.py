"""Where the time of a phase goes: shares of torch's own operations, by kind."""

from collections import Counter
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

KINDS = {
    "matrix products": ("mm", "bmm", "addmm", "matmul", "linear"),
    "attention": ("scaled_dot_product", "_efficient_attention", "_flash_attention"),
    "softmax over the vocabulary": ("log_softmax", "_softmax", "softmax", "exp", "logsumexp"),
    "copies and fills": (
        *("copy_", "cat", "index", "fill_", "zero_", "gather", "scatter", "clone", "contiguous"),
        "repeat",
    ),
}
OTHER = "all else (norms, activations, rotary positions, sums)"


def shares(phase: str, work: Callable[[], object]) -> dict:
    """One call of `work`: {"phase", kind: share of the operations' own time}. The shares sum to 1."""
    device = torch.cuda.is_available()
    with profile(activities=[ProfilerActivity.CUDA if device else ProfilerActivity.CPU]) as taken:
        work()
    spent: Counter = Counter()
    for event in taken.key_averages():
        own = event.self_device_time_total if device else event.self_cpu_time_total
        spent[_kind(event.key)] += own
    total = sum(spent.values())
    return {"phase": phase, **{kind: round(spent[kind] / total, 3) for kind in (*KINDS, OTHER)}}


def _kind(operation: str) -> str:
    name = operation.removeprefix("aten::").removeprefix("_")
    for kind, starts in KINDS.items():
        if any(
            name == start or (len(start) > 3 and name.startswith(start.removeprefix("_"))) for start in starts
        ):
            return kind
    return OTHER
