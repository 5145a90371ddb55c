"""Contrastive losses over a batch, and the lowest value that its duplicate captions allow each of them.

With B = batch size, every loss takes the logits [B, B] (rows: images, columns: texts; logits_per_text is
the transpose) and the caption ids [B] of the batch's pairs, and returns a scalar in nats.
`logits` are `logit_scale.exp() * cosine`, for `sigmoid` plus `logit_bias`.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def infonce(logits: Tensor, captions: Tensor) -> Tensor:
    """Symmetric InfoNCE: each image's own text is the one right answer, and the reverse.

    Radford et al., 2021, arXiv 2103.00020. A pair with the same caption counts as a negative.
    """
    diagonal = torch.arange(len(captions), device=captions.device)
    return (F.cross_entropy(logits, diagonal) + F.cross_entropy(logits.T, diagonal)) / 2


def multi_positive(logits: Tensor, captions: Tensor) -> Tensor:
    """Symmetric InfoNCE in which all pairs with the same caption are positives, with equal targets.

    UniCL (Yang et al., 2022, arXiv 2204.03610), the "out" form of SupCon (Khosla et al., 2020, arXiv 2004.11362).
    """
    positives = same_caption(captions).to(logits.dtype)  # [B, B], symmetric
    targets = positives / positives.sum(dim=1, keepdim=True)
    return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2


def sigmoid(logits: Tensor, captions: Tensor) -> Tensor:
    """Every image-text pair is a yes/no question: do they share a caption? Summed over texts, mean over images.

    SigLIP (Zhai et al., 2023, arXiv 2303.15343), whose positives are the diagonal; here, all same-caption pairs.
    """
    signs = 2 * same_caption(captions).to(logits.dtype) - 1  # [B, B], +1 or -1
    return -F.logsigmoid(signs * logits).sum(dim=1).mean()


LOSSES = {"multi_positive": multi_positive, "infonce": infonce, "sigmoid": sigmoid}


def loss_floor(loss_name: str, captions: Tensor) -> Tensor:
    """The infimum of the named loss when same-caption texts get one embedding, a scalar in nats.

    infonce and multi_positive: an image cannot tell the n texts of its caption apart, so the right ones get
    1/n each at best, and -ln(1/n) stays; likewise from text to image. The mean of ln n over the batch.
    sigmoid: the pairs of one caption all have one sign, so nothing stays.
    """
    if loss_name == "sigmoid":
        return torch.zeros((), device=captions.device)
    return same_caption(captions).sum(dim=1).float().log().mean()


def same_caption(captions: Tensor) -> Tensor:
    """Caption ids [B] -> bool [B, B]: do pair i and pair j carry the same caption?"""
    return captions[:, None] == captions[None, :]


def sigmoid_bias(captions: Tensor, batch_size: int) -> float:
    """The `logit_bias` at which every pair's probability is the positive rate of batches drawn from these captions.

    Each row of a batch has its own pair, which is positive, and B - 1 others, which are so at the rate at which two
    captions agree. SigLIP starts at -10, which fits one positive in ten thousand; here it is one in eight at B = 32.
    """
    shares = torch.bincount(captions).double() / len(captions)
    rate = (1 + (batch_size - 1) * float((shares**2).sum())) / batch_size
    return math.log(rate / (1 - rate)) if rate < 1 else 10.0
