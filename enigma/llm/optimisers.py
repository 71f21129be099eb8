"""Optimisers beside AdamW, chosen by an arm's `optimizer`: steps whose size is set by a norm, not by the gradient.

`scion`: Scion, arXiv 2502.07529, unconstrained, with the spectral norm for every matrix:

    m <- (1 - alpha) m + alpha g;   W <- W - gamma rho sqrt(d_out / d_in) O(m)

O(m) = U V' of m's singular value decomposition, by five Newton-Schulz steps in float32. Departures [D]: the matrices are
LoRA's A and B, each with its own norm; B begins at zero, so nothing is initialised anew; no other norm is needed, since
nothing else is trained. `muon`: torch.optim.Muon without weight decay, as AdamW has none here.
"""

from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # steep at 0: singular values come out between about 0.7 and 1.2


@torch.no_grad()
def orthogonalised(matrix: Tensor, steps: int = 5) -> Tensor:
    """Approximately U V' of a matrix (m, n) = U S V', float32: singular vectors kept, singular values near 1; 0 stays 0."""
    a, b, c = COEFFICIENTS
    x = matrix.float()
    wide = x.T if x.shape[0] > x.shape[1] else x
    wide = wide / (wide.norm() + 1e-7)
    for _ in range(steps):
        gram = wide @ wide.T
        wide = a * wide + (b * gram + c * gram @ gram) @ wide
    return wide.T if x.shape[0] > x.shape[1] else wide


class Scion(torch.optim.Optimizer):
    """`lr`: gamma; `momentum`: alpha, the share of the new gradient; `radius`: rho. Parameters are matrices (d_out, d_in)."""

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float = 0.1, radius: float = 1.0):
        super().__init__(params, {"lr": lr, "momentum": momentum, "radius": radius})

    @torch.no_grad()
    def step(self, closure=None):
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            for weight in (w for w in group["params"] if w.grad is not None):
                state = self.state[weight]
                m = state.setdefault("momentum", torch.zeros_like(weight))
                m.lerp_(weight.grad, group["momentum"])
                rate = group["lr"] * group["radius"] * (weight.shape[0] / weight.shape[1]) ** 0.5
                weight.add_(orthogonalised(m).to(weight.dtype), alpha=-rate)
        return loss


OPTIMISERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "scion": Scion,
    "muon": partial(torch.optim.Muon, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
}


def build(name: str, model, lr: float) -> torch.optim.Optimizer | None:
    """The optimiser of an arm over what is trained of `model`; None for adamw, which transformers makes itself."""
    if name == "adamw":
        return None
    return OPTIMISERS[name]([weight for weight in model.parameters() if weight.requires_grad], lr=lr)
