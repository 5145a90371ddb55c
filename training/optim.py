"""The optimizers: Muon for the matrices of CNN and transformer, AdamW for the rest; and how the learning rate moves."""

import math

import torch
from torch import Tensor, nn

WEIGHT_DECAY = 0.05  # on weight matrices and kernels only
WARMUP = 0.1  # share of the steps
TEXT_LR = 2e-5  # peak learning rate of a language model that is trained
MUON_MOMENTUM = 0.7  # Nesterov momentum
MUON_MODULES = ("towers.image", "towers.text.attention")  # whose kernels and matrices it moves
# A polynomial that lifts every singular value towards 1 when it is applied again and again (Jordan et al., 2024).
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


class Muon(torch.optim.Optimizer):
    """Momentum whose matrices are made orthogonal before they are applied (Jordan et al., 2024, "Muon: an optimizer for
    hidden layers in neural networks"): a gradient's few large directions no longer drown the many small ones.

    Parameters of shape [out, ...], each taken as a matrix [out, the rest]; `lr` is the step's spectral norm. Nesterov
    momentum, decoupled weight decay. As published, a matrix taller than wide steps further, by the root of its ratio.
    """

    def __init__(
        self, params, lr: float = 0.02, momentum: float = 0.95, weight_decay: float = 0.0, iterations: int = 3
    ):
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "iterations": iterations}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for p in (p for p in group["params"] if p.grad is not None):
                if not self.state[p]:
                    self.state[p]["momentum"] = torch.zeros_like(p)
                momentum = self.state[p]["momentum"].lerp_(p.grad, 1 - group["momentum"])
                update = orthogonalise(p.grad.lerp(momentum, group["momentum"]).flatten(1), group["iterations"])
                stretch = max(1.0, update.shape[0] / update.shape[1]) ** 0.5
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update.view_as(p), alpha=-group["lr"] * stretch)


def orthogonalise(matrix: Tensor, iterations: int = 3) -> Tensor:
    """[m, n] -> [m, n] with the same singular vectors and singular values near 1; a zero matrix stays zero."""
    x = matrix / (matrix.norm() + 1e-7)
    if is_tall := len(x) > x.shape[1]:
        x = x.T
    a, b, c = NEWTON_SCHULZ
    for _ in range(iterations):  # x becomes a x + b (x x') x + c (x x')^2 x
        square = x @ x.T
        polynomial = torch.addmm(square, square, square, beta=b, alpha=c)  # b square + c square^2
        x = torch.addmm(x, polynomial, x, beta=a)
    return x.T if is_tall else x


def make_optimizers(model: nn.Module, lr: float, muon_lr: float) -> dict:
    """{"adamw": ..., "muon": ...}, the latter if `muon_lr` is above 0. Each group has its "peak_lr".

    Weight decay for matrices and kernels; none for norms, biases, the embedding table and the temperature. A language
    model that is trained has a peak learning rate of its own.
    """
    tables = [module for module in model.modules() if isinstance(module, nn.Embedding | nn.EmbeddingBag)]
    no_decay = {id(parameter) for table in tables for parameter in table.parameters()}
    muon, groups = [], {}
    for name, parameter in model.named_parameters():
        if muon_lr and name.startswith(MUON_MODULES) and parameter.ndim > 1:
            muon.append(parameter)
            continue
        peak = TEXT_LR if "language_model" in name else lr
        decay = WEIGHT_DECAY if parameter.ndim > 1 and id(parameter) not in no_decay else 0.0
        groups.setdefault((peak, decay), []).append(parameter)
    groups = [{"params": p, "lr": peak, "peak_lr": peak, "weight_decay": decay} for (peak, decay), p in groups.items()]
    optimizers = {"adamw": torch.optim.AdamW(groups, fused=True)}
    if muon:
        group = {"params": muon, "lr": muon_lr, "peak_lr": muon_lr, "weight_decay": WEIGHT_DECAY}
        optimizers["muon"] = Muon([group], momentum=MUON_MOMENTUM)
    return optimizers


def warmup_cosine(step: int, total: int) -> float:
    """Factor on the learning rate at a step of 0..total-1: linear up over the first WARMUP, then a cosine to 0."""
    warmup = round(WARMUP * total)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
