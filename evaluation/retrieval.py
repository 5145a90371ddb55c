"""Average precision and recall at k: of one ranking, or of many. Values in 0..1."""

import numpy as np
import torch
from torch import Tensor

TIE = 1e-5  # cosines that differ by less are equal up to rounding


def average_precision(similarity: Tensor, relevant: Tensor) -> Tensor:
    """Mean of the precision at the rank of each relevant item. Both [..., N], relevant bool -> [...]."""
    order = torch.from_numpy(np.argsort(-similarity.cpu().numpy())).to(similarity.device)  # (faster than torch's)
    is_hit = relevant.expand_as(similarity).gather(-1, order)  # by rank
    precision = is_hit.cumsum(dim=-1) / torch.arange(1, order.shape[-1] + 1, device=order.device)
    return (precision * is_hit).sum(dim=-1) / is_hit.sum(dim=-1)


def recall_at_k(similarity: Tensor, relevant: Tensor, k: int) -> Tensor:
    """1 if a relevant item is among the k most similar, else 0. Both [..., N], relevant bool -> [...]."""
    return relevant.expand_as(similarity).gather(-1, similarity.topk(k).indices).any(dim=-1).float()


def fair_recall_at_k(similarity: Tensor, relevant: Tensor, k: int) -> Tensor:
    """As `recall_at_k`, but what ties comes in random order: the expected value. NaN if nothing is relevant."""
    best = similarity.masked_fill(~relevant, -2).amax(dim=-1, keepdim=True)
    ahead, is_tied = (similarity > best + TIE).sum(dim=-1), (similarity - best).abs() <= TIE
    tied, right = is_tied.sum(dim=-1), (is_tied & relevant).sum(dim=-1)  # at least one each
    missed = torch.where(right > 0, 1.0, torch.nan)  # probability that none is at the first places
    for place in range(k):
        drawn = (place - ahead).clamp(min=0).minimum(tied - 1)  # of those that tie, so many came before
        missed = missed * torch.where(place < ahead, 1.0, (tied - right - drawn).clamp(min=0) / (tied - drawn))
    return 1 - missed
