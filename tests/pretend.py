"""A device that computes on the CPU and fails, as a GPU does, where its tensors meet the CPU's.

It goes by the name of torch's `meta` device, the one that needs no driver. Inside `pretend_device()` whatever is made on
it, or moved to it, is a `Pretend`, which holds a CPU tensor.
"""

from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("meta")
aten = torch.ops.aten
# Copies between devices, and places given by the CPU, which a GPU takes too.
CROSSING = {
    aten._to_copy.default,
    aten.copy_.default,
    aten.index.Tensor,
    aten.index_put_.default,
    aten.index_put.default,
}


class Pretend(torch.Tensor):
    @staticmethod
    def __new__(cls, held: torch.Tensor):
        like = dict(
            dtype=held.dtype, strides=held.stride(), storage_offset=held.storage_offset(), device=DEVICE
        )
        return torch.Tensor._make_wrapper_subclass(cls, held.shape, requires_grad=held.requires_grad, **like)

    def __init__(self, held: torch.Tensor):
        self.held = held

    def tolist(self):
        return self.held.tolist()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return compute(func, args, kwargs or {})


class _Operations(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return compute(func, args, kwargs or {})


class _Constructor(TorchFunctionMode):
    """These make their values before any operation is seen."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.Tensor.new_tensor:
            return torch.tensor(args[1], dtype=args[0].dtype).to(args[0].device)
        if func is torch.tensor and kwargs.get("device") is not None:
            return func(*args, **{**kwargs, "device": "cpu"}).to(kwargs["device"])
        return func(*args, **kwargs)


@contextmanager
def pretend_device():
    with _Operations(), _Constructor():
        yield


def compute(func, args, kwargs):
    tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
    here = [x for x in tensors if isinstance(x, Pretend)]
    named = kwargs.get("device")
    to = None if named is None else torch.device(named)
    first = isinstance(tensors[0], Pretend) if tensors else False
    strangers = [x for x in tensors if not isinstance(x, Pretend) and x.ndim > 0]
    if here and strangers and (func not in CROSSING or not first and func is not aten.copy_.default):
        raise RuntimeError(f"{func}: tensors on two devices, {DEVICE} and cpu")
    inner = {**kwargs, "device": torch.device("cpu")} if to is not None else kwargs
    held_args, held_kwargs = tree_map(lambda x: x.held if isinstance(x, Pretend) else x, (args, inner))
    out = func(*held_args, **held_kwargs)
    if to == DEVICE or (here and to is None and func is not aten.copy_.default):
        out = tree_map(
            lambda x: Pretend(x) if isinstance(x, torch.Tensor) and not isinstance(x, Pretend) else x, out
        )
    return return_and_correct_aliasing(func, args, kwargs, out) if tensors else out
