"""The geometry of the shared space: how images and texts lie in it. All take unit vectors [N, embed_dim]."""

import torch
from torch import Tensor


def modality_gap(images: Tensor, texts: Tensor) -> float:
    """Distance between the mean image and the mean text vector, 0..2 (Liang et al., 2022, arXiv 2203.02053)."""
    return (images.mean(dim=0) - texts.mean(dim=0)).norm().item()


def alignment(x: Tensor, y: Tensor) -> float:
    """Mean squared distance of the pairs (x[i], y[i]), 0..4; 0 is best (Wang & Isola, 2020, arXiv 2005.10242)."""
    return (x - y).square().sum(dim=1).mean().item()


def uniformity(x: Tensor, t: float = 2.0) -> float:
    """Logarithm of the mean of exp(-t distance^2) over all pairs of two different rows; lower is more uniform.

    Wang & Isola, 2020, arXiv 2005.10242. 0: all vectors are one. Unit vectors only: distance^2 is 2 - 2 cosine.
    """
    n, total = len(x), 0.0
    for rows in x.split(1000):
        total += torch.exp(2 * t * (rows @ x.T - 1)).sum(dtype=torch.double).item()
    own = torch.exp(2 * t * (x.square().sum(dim=1) - 1)).sum(dtype=torch.double).item()  # each row with itself
    return torch.tensor((total - own) / (n * (n - 1))).log().item()


def effective_rank(x: Tensor) -> float:
    """exp of the entropy of the singular values as shares of their sum, 1..embed_dim (Roy & Vetterli, 2007).

    Of the vectors as they are, not centred.
    """
    values = torch.linalg.svdvals(x)
    shares = values / values.sum()
    return torch.special.entr(shares).sum().exp().item()
