"""The optimizers: Muon for the CNN's kernels and matrices, AdamW for the rest; and how the learning rate moves."""

import math

import torch
from torch import Tensor, nn

WEIGHT_DECAY = 0.05  # on weight matrices and kernels only
WARMUP = 0.1  # share of the steps
TEXT_LR = 2e-5  # peak learning rate of a language model that is trained
# A polynomial that lifts every singular value towards 1 when it is applied again and again (Jordan et al., 2024).
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


class Muon(torch.optim.Optimizer):
    """Momentum whose matrices are made orthogonal before they are applied (Jordan et al., 2024, "Muon: an optimizer for
    hidden layers in neural networks"): a gradient's few large directions no longer drown the many small ones.

    Parameters of shape [out, ...], each taken as a matrix [out, the rest]; `lr` is the step's spectral norm. Nesterov
    momentum, decoupled weight decay. As published, a matrix taller than wide steps further, by the root of its ratio.
    """

    def __init__(self, params, lr: float = 0.02, momentum: float = 0.95, weight_decay: float = 0.0, iterations: int = 3):
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "iterations": iterations}
        super().__init__(params, defaults)

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
            by_shape: dict[torch.Size, list] = {}  # matrices of one shape go through one batched product
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


def make_optimizers(model: nn.Module, lr: float, muon_lr: float, muon_momentum: float) -> dict:
    """{"adamw": ..., "muon": ...}, the latter if `muon_lr` is above 0. Each group has its "peak_lr".

    Weight decay for matrices and kernels; none for norms, biases, the embedding table and the temperature. A language
    model that is trained has a peak learning rate of its own.
    """
    tables = [module for module in model.modules() if isinstance(module, nn.Embedding | nn.EmbeddingBag)]
    no_decay = {id(parameter) for table in tables for parameter in table.parameters()}
    muon, groups = [], {}
    for name, parameter in model.named_parameters():
        if muon_lr and name.startswith("towers.image") and parameter.ndim > 1:
            muon.append(parameter)
            continue
        peak = TEXT_LR if "language_model" in name else lr
        decay = WEIGHT_DECAY if parameter.ndim > 1 and id(parameter) not in no_decay else 0.0
        groups.setdefault((peak, decay), []).append(parameter)
    groups = [{"params": p, "lr": peak, "peak_lr": peak, "weight_decay": decay} for (peak, decay), p in groups.items()]
    optimizers = {"adamw": torch.optim.AdamW(groups, fused=True)}
    if muon:
        group = {"params": muon, "lr": muon_lr, "peak_lr": muon_lr, "weight_decay": WEIGHT_DECAY}
        optimizers["muon"] = Muon([group], momentum=muon_momentum)
    return optimizers


def warmup_cosine(step: int, total: int) -> float:
    """Factor on the learning rate at a step of 0..total-1: linear up over the first WARMUP, then a cosine to 0."""
    warmup = round(WARMUP * total)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
