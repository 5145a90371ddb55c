"""Muon: momentum whose matrices are made orthogonal before they are applied (Jordan et al., 2024,
"Muon: an optimizer for hidden layers in neural networks"). For kernels and matrices; the rest keeps AdamW.

A gradient's few large directions then no longer drown the many small ones, and an epoch teaches more.
"""

import torch
from torch import Tensor

# A polynomial that lifts every singular value towards 1 when it is applied again and again (from the same source).
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


class Muon(torch.optim.Optimizer):
    """Parameters of shape [out, ...], each taken as a matrix [out, the rest]; `lr` is the step's spectral norm.

    Nesterov momentum, decoupled weight decay. As published, a matrix taller than wide steps further, by the root of
    its ratio.
    """

    def __init__(
        self, params, lr: float = 0.02, momentum: float = 0.95, weight_decay: float = 0.0, iterations: int = 3
    ):
        super().__init__(
            params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "iterations": iterations}
        )

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["momentum"] = torch.zeros_like(p)
                state["momentum"].lerp_(p.grad, 1 - group["momentum"])
                update = p.grad.lerp(state["momentum"], group["momentum"]).flatten(1)  # [out, the rest]
                stretch = max(1.0, update.shape[0] / update.shape[1]) ** 0.5
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(orthogonalise(update, group["iterations"]).reshape(p.shape), alpha=-group["lr"] * stretch)


def orthogonalise(matrix: Tensor, iterations: int = 3) -> Tensor:
    """[m, n] -> [m, n] with the same singular vectors and singular values near 1; a zero matrix stays zero."""
    x = matrix / (matrix.norm() + 1e-7)
    if tall := x.shape[0] > x.shape[1]:
        x = x.T
    a, b, c = NEWTON_SCHULZ
    for _ in range(iterations):
        square = x @ x.T
        factor = torch.addmm(square, square, square, beta=b, alpha=c)
        x = torch.addmm(x, factor, x, beta=a)  # a x + (b x x^T + c (x x^T)^2) x
    return x.T if tall else x
