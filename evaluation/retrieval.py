"""Average precision and recall at k: of one ranking, or of many. Values in 0..1."""

import numpy as np
import torch
from torch import Tensor


def average_precision(similarity: Tensor, relevant: Tensor) -> Tensor:
    """Mean of the precision at the rank of each relevant item. Both [..., N], relevant bool -> [...]."""
    order = torch.from_numpy(np.argsort(-similarity.cpu().numpy())).to(similarity.device)  # (faster than torch's)
    is_hit = relevant.expand_as(similarity).gather(-1, order)  # by rank
    precision = is_hit.cumsum(dim=-1) / torch.arange(1, order.shape[-1] + 1, device=order.device)
    return (precision * is_hit).sum(dim=-1) / is_hit.sum(dim=-1)


def recall_at_k(similarity: Tensor, relevant: Tensor, k: int) -> Tensor:
    """1 if a relevant item is among the k most similar, else 0. Both [..., N], relevant bool -> [...]."""
    return relevant.expand_as(similarity).gather(-1, similarity.topk(k).indices).any(dim=-1).float()
