"""Activations that are cheap to make again are not kept for the backward pass.

Of a layer's activations two are the largest: the activation function's output, and the keys and values that every
completion is given of its prompt. Both follow from tensors that are kept anyway, at no matrix product. Values and gradients
are the same to the last bit. Source: our choice [D].
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks


class _Recipe(NamedTuple):
    state: tuple
    make: Callable[[], Tensor]


_recipes: ContextVar[dict[int, _Recipe] | None] = ContextVar("recipes", default=None)  # by address


@contextmanager
def lean(model: nn.Module) -> Iterator[None]:
    """Inside, the forward of a model keeps of what `remake` and its activation functions made only how it was made."""
    if not torch.is_grad_enabled():
        yield
        return
    recipes: dict[int, _Recipe] = {}
    token = _recipes.set(recipes)
    hooks = [module.register_forward_hook(_remake_output) for module in _activations(model)]

    def pack(saved: Tensor):
        recipe = recipes.get(saved.data_ptr())
        return recipe.make if recipe and recipe.state == _state(saved) else saved

    try:
        with saved_tensors_hooks(pack, lambda kept: kept if isinstance(kept, Tensor) else kept()):
            yield
    finally:
        _recipes.reset(token)
        for hook in hooks:
            hook.remove()


def remake(made: Tensor, make: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """`made`, which is `make(*inputs)`; inside `lean` the backward pass makes it again rather than keeps it."""
    recipes = _recipes.get()
    if recipes is not None:
        address = made.data_ptr()
        recipes[address] = _Recipe(_state(made), partial(make, *(x.detach() for x in inputs)))
        # Once it is gone another tensor may lie there, and its inputs are needed no longer.
        weakref.finalize(made, recipes.pop, address, None).atexit = False
    return made


def _state(x: Tensor) -> tuple:
    """What tells one address's tensors apart: another view of it, or the same changed in place."""
    return x.shape, x.stride(), x.dtype, x._version


def _activations(model: nn.Module) -> set[nn.Module]:
    """transformers names a gated layer's activation function act_fn."""
    found = (getattr(module, "act_fn", None) for module in model.modules())
    return {module for module in found if isinstance(module, nn.Module)}


def _remake_output(activation: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    remake(output, activation.forward, *inputs)
