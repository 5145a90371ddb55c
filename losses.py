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
    return both_directions("infonce", logits, captions)


def multi_positive(logits: Tensor, captions: Tensor) -> Tensor:
    """Symmetric InfoNCE in which all pairs with the same caption are positives, with equal targets.

    UniCL (Yang et al., 2022, arXiv 2204.03610), the "out" form of SupCon (Khosla et al., 2020, arXiv 2004.11362).
    """
    positives = (captions[:, None] == captions).to(logits.dtype)
    targets = positives / positives.sum(dim=1)  # [B, B], symmetric: both directions have the same
    log_probabilities = logits.log_softmax(dim=1) + logits.log_softmax(dim=0)
    return -(targets * log_probabilities).sum() / (2 * len(captions))


def sigmoid(logits: Tensor, captions: Tensor) -> Tensor:
    """Every image-text pair is a yes/no question: do they share a caption? Summed over texts, mean over images.

    SigLIP (Zhai et al., 2023, arXiv 2303.15343), whose positives are the diagonal; here, all same-caption pairs.
    """
    return both_directions("sigmoid", logits, captions)


def infonce_distinct(logits: Tensor, captions: Tensor) -> Tensor:
    """InfoNCE within groups of ten neighbouring pairs, in which `epoch_batches` gives each caption once.

    A common cure for same-caption negatives; it leaves most pairs of the batch unused.
    """
    return both_directions("infonce_distinct", logits, captions)


LOSSES = {f.__name__: f for f in (multi_positive, infonce, infonce_distinct, sigmoid)}
GROUP = 10  # pairs, one of each digit


def both_directions(loss_name: str, logits: Tensor, captions: Tensor) -> Tensor:
    """Mean over the batch of image -> text and text -> image. The sigmoid's pairs are the same in both."""
    rows = torch.arange(len(captions), device=captions.device)
    total = row_loss(loss_name, logits, rows, captions)
    if loss_name != "sigmoid":
        total = (total + row_loss(loss_name, logits.T, rows, captions)) / 2
    return total / len(captions)


def row_loss(loss_name: str, logits: Tensor, rows: Tensor, captions: Tensor) -> Tensor:
    """Sum of one direction over R rows of the batch: logits [R, B], their indices `rows` [R], captions [B]."""
    if loss_name == "infonce_distinct":
        others = rows[:, None] // GROUP != torch.arange(len(captions), device=rows.device) // GROUP  # [R, B]
        logits = logits.masked_fill(others, -torch.inf)
    if loss_name.startswith("infonce"):
        return F.cross_entropy(logits, rows, reduction="sum")
    positives = (captions[rows, None] == captions).to(logits.dtype)  # [R, B]
    if loss_name == "multi_positive":
        return (logits.logsumexp(dim=1) - (positives * logits).sum(dim=1) / positives.sum(dim=1)).sum()
    return -F.logsigmoid((2 * positives - 1) * logits).sum()  # sigmoid: +1 for the same caption, -1 for another


def loss_floor(loss_name: str, captions: Tensor) -> Tensor:
    """The infimum of the named loss when same-caption texts get one embedding, a scalar in nats.

    infonce and multi_positive: an image cannot tell the n texts of its caption apart, so the right ones get
    1/n each at best, and -ln(1/n) stays; likewise from text to image. The mean of ln n over the batch.
    infonce_distinct: the same within each group, so that nothing stays where a group holds each caption once.
    sigmoid: the pairs of one caption all have one sign, so nothing stays.
    """
    if loss_name == "sigmoid":
        return torch.zeros((), device=captions.device)
    if loss_name == "infonce_distinct":  # the captions of two groups never meet
        group = torch.arange(len(captions), device=captions.device) // GROUP
        captions = captions + (captions.max() + 1) * group
    ordered = captions.sort().values  # counts of equal captions, without the wait that torch.unique means on CUDA
    counts = torch.searchsorted(ordered, captions, right=True) - torch.searchsorted(ordered, captions)
    return counts.float().log().mean()


def sigmoid_bias(captions: Tensor, batch_size: int) -> float:
    """The `logit_bias` at which every pair's probability is the positive rate of batches drawn from these captions.

    Each row of a batch has its own pair, which is positive, and B - 1 others, which are so at the rate at which two
    captions agree. SigLIP starts at -10, which fits one positive in ten thousand; here it is one in eight at B = 32.
    """
    shares = torch.bincount(captions).double() / len(captions)
    rate = (1 + (batch_size - 1) * float((shares**2).sum())) / batch_size
    return math.log(rate / (1 - rate)) if rate < 1 else 10.0
