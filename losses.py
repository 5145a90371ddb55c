"""Contrastive losses: each one function of some rows of the matrix of logits, in nats.

A row is an image against all texts of the batch, or a text against all images. `captions.match` says which pairs are
positive, and which are ignored because nobody knows. A loss takes

    logits    [R, N]       scaled cosines of R rows with all N items of the other side (for `sigmoid` plus a bias)
    positive  bool [R, N]  the item belongs to the row
    ignored   bool [R, N]  neither positive nor negative
    own       int64 [R]    the column of each row's own pair

and returns [R]. A new loss is one function and its line in LOSSES.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def infonce(logits: Tensor, positive: Tensor, ignored: Tensor, own: Tensor) -> Tensor:
    """InfoNCE: the row's own pair is the only right answer (Radford et al., 2021, arXiv 2103.00020).

    A text that is true of an image but was drawn for another one counts as a negative.
    """
    return F.cross_entropy(logits, own, reduction="none")


def multi_positive(logits: Tensor, positive: Tensor, ignored: Tensor, own: Tensor) -> Tensor:
    """InfoNCE in which all positives are right answers, with equal targets.

    UniCL (Yang et al., 2022, arXiv 2204.03610), the "out" form of SupCon (Khosla et al., 2020, arXiv 2004.11362).
    """
    targets = positive.to(logits.dtype) / positive.sum(dim=1, keepdim=True).clamp(min=1)  # (no positive, no loss)
    logits = logits.masked_fill(ignored, torch.finfo(logits.dtype).min)  # (-inf times a target of 0 would be NaN)
    return F.cross_entropy(logits, targets, reduction="none")


def sigmoid(logits: Tensor, positive: Tensor, ignored: Tensor, own: Tensor) -> Tensor:
    """Every pair is a yes/no question: do the two belong together?

    SigLIP (Zhai et al., 2023, arXiv 2303.15343), whose positives are the own pairs alone.
    """
    signs = 2 * positive.to(logits.dtype) - 1  # +1 for a positive, -1 for a negative
    return -F.logsigmoid(signs * logits).masked_fill(ignored, 0).sum(dim=1)


# The sigmoid loss's first logit bias: one in eight, about the share of positives in a batch. (SigLIP starts at -10.)
SIGMOID_BIAS = -2.0

LOSSES = {"multi_positive": multi_positive, "infonce": infonce, "sigmoid": sigmoid}


def contrastive_loss(loss: Callable, logits_per_image: Tensor, positive: Tensor, ignored: Tensor) -> Tensor:
    """The mean over images and over texts of a batch of B pairs: [B, B] each -> a scalar."""
    own = torch.arange(len(logits_per_image), device=logits_per_image.device)
    per_image = loss(logits_per_image, positive, ignored, own)  # [B]
    per_text = loss(logits_per_image.T, positive.T, ignored.T, own)  # [B]
    return (per_image.mean() + per_text.mean()) / 2


def min_loss(loss: Callable, positive: Tensor) -> Tensor:
    """The lowest value that each row's loss can have [R]. positive [R, N].

    For `multi_positive` it is the entropy of the targets: n positives get 1/n each, at best, which costs ln n. The loss
    above it is a KL divergence.
    """
    counts = positive.sum(dim=1)
    return counts.log() if loss is multi_positive else torch.zeros_like(counts, dtype=torch.float)
