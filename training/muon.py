"""Muon: momentum whose matrices are made orthogonal before they are applied (Jordan et al., 2024,
"Muon: an optimizer for hidden layers in neural networks"). For kernels and matrices; the rest keeps AdamW.

A gradient's few large directions then no longer drown the many small ones, and an epoch teaches more.
"""

import torch
from torch import Tensor

from training.eager import Eager

# A polynomial that lifts every singular value towards 1 when it is applied again and again (from the same source).
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


class Muon(Eager):
    """Parameters of shape [out, ...], each taken as a matrix [out, the rest]; `lr` is the step's spectral norm.

    Nesterov momentum, decoupled weight decay. As published, a matrix taller than wide steps further, by the root of
    its ratio. Matrices of one shape go through one batched product.
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
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            for p in params:
                if not self.state[p]:
                    self.state[p]["momentum"] = torch.zeros_like(p)
            gradients, momenta = [p.grad for p in params], [self.state[p]["momentum"] for p in params]
            torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
            updates = torch._foreach_lerp(gradients, momenta, group["momentum"])
            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
            by_shape: dict[torch.Size, list] = {}
            for p, update in zip(params, updates, strict=True):
                if p.ndim == 4 and p.is_contiguous(memory_format=torch.channels_last):
                    # Columns in memory order: it saves copies, and orthogonality does not mind.
                    p, update = p.permute(0, 2, 3, 1), update.permute(0, 2, 3, 1)
                by_shape.setdefault(p.shape, []).append((p.view(len(p), -1), update.reshape(len(p), -1)))
            for pairs in by_shape.values():
                matrices = torch.stack([update for _, update in pairs])  # [M, out, the rest]
                stretch = max(1.0, matrices.shape[1] / matrices.shape[2]) ** 0.5
                steps = orthogonalise(matrices, group["iterations"]) * (-group["lr"] * stretch)
                torch._foreach_add_([p for p, _ in pairs], list(steps.unbind()))


def orthogonalise(matrices: Tensor, iterations: int = 3) -> Tensor:
    """[M, m, n] -> [M, m, n] with the same singular vectors and singular values near 1; zero matrices stay zero."""
    x = matrices / (matrices.flatten(1).norm(dim=1)[:, None, None] + 1e-7)
    if tall := x.shape[1] > x.shape[2]:
        x = x.mT
    a, b, c = NEWTON_SCHULZ
    for _ in range(iterations):
        square = x @ x.mT
        factor = torch.baddbmm(square, square, square, beta=b, alpha=c)
        x = torch.baddbmm(x, factor, x, beta=a)  # a x + (b x x^T + c (x x^T)^2) x
    return x.mT if tall else x
