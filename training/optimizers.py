"""The optimizers, and how the learning rate moves."""

import math

import torch

from clip import CLIP
from training.eager import AdamW
from training.muon import Muon
from training.settings import TEXT_LR, Settings

WEIGHT_DECAY = 0.05  # on weight matrices and kernels only
WARMUP = 0.1  # share of the steps


def make_optimizers(model: CLIP, settings: Settings) -> list[torch.optim.Optimizer]:
    """AdamW, and with `muon_lr` also Muon, which then has the CNN's kernels and matrices.

    Weight decay for matrices and kernels; none for norms, biases, the embedding table and the temperature. A language
    model that trains has a peak learning rate of its own.
    """
    table = {
        id(p)
        for m in model.modules()
        if isinstance(m, torch.nn.Embedding | torch.nn.EmbeddingBag)
        for p in m.parameters()
    }
    muon, groups = [], {}
    for name, parameter in model.named_parameters():
        if settings.muon_lr and name.startswith("towers.image") and parameter.ndim > 1:
            muon.append(parameter)
            continue
        peak = TEXT_LR if "language_model" in name else settings.lr
        decay = WEIGHT_DECAY if parameter.ndim > 1 and id(parameter) not in table else 0.0
        groups.setdefault((peak, decay), []).append(parameter)
    groups = [{"params": p, "lr": peak, "peak_lr": peak, "weight_decay": decay} for (peak, decay), p in groups.items()]
    optimizers = [AdamW(groups, fused=True)]
    if muon:
        group = {"params": muon, "peak_lr": settings.muon_lr, "weight_decay": WEIGHT_DECAY}
        optimizers.append(Muon([group], momentum=settings.muon_momentum))
    return optimizers


def warmup_cosine(step: int, total: int, warmup: int) -> float:
    """Factor on the learning rate at a step of 0..total-1: linear up over `warmup` steps, then a cosine to 0."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
