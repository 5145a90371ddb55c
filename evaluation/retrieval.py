"""Average precision and recall: every item of the right digit is relevant. Values in 0..1."""

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


def mean_average_precision(similarity: Tensor, labels: Tensor) -> float:
    """Text -> image: the mean over the digits' captions. similarity [N, 10], labels [N]."""
    digits = labels.unique()
    return average_precision(similarity.T[digits], labels == digits[:, None]).mean().item()


def image_to_image_mean_average_precision(features: Tensor, labels: Tensor) -> float:
    """The mean over images, each asking for the others of its digit. features [N, embed_dim], labels [N]."""
    precisions = []
    for queries in torch.arange(len(labels), device=labels.device).split(500):
        itself = queries[:, None] == torch.arange(len(labels), device=labels.device)  # [500, N]
        similarity = (features[queries] @ features.T).masked_fill(itself, -torch.inf)
        precisions.append(average_precision(similarity, (labels == labels[queries, None]) & ~itself))
    return torch.cat(precisions).nanmean().item()  # (a digit with one image has nothing to ask for)
