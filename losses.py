"""Contrastive losses, each whole in one place: its sum over some rows of a batch, and the lowest value it can have.

A batch has B images and B texts, and so [B, B] logits. To save memory a loss can be computed for some rows of them at a
time: a `Strip` is R such rows, R images against all B texts or R texts against all B images, with all that a loss may
need. `Loss.__call__` takes all rows at once. All values are in nats (natural logarithms).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from my_utils import InputError

GROUP = 10  # pairs of `infonce_distinct`, one of each digit


class Strip(NamedTuple):
    """R rows of a batch from one side. `logits` are `logit_scale.exp() * cosine`, for `sigmoid` plus `logit_bias`."""

    logits: Tensor  # [R, B]
    embeds: Tensor  # [R, embed_dim], of these rows
    others: Tensor  # [B, embed_dim], of the other side
    rows: Tensor  # int64 [R], these rows' places in the batch: item r belongs to item rows[r] of the other side
    positives: Tensor  # bool [R, B], which of the other side is true of each row


# ---- the losses: nats, summed over a strip's rows ----


def infonce(strip: Strip) -> Tensor:
    """InfoNCE: each image's own text is the one right answer, and the reverse (Radford et al., 2021, arXiv 2103.00020).

    A pair with the same caption counts as a negative.
    """
    return F.cross_entropy(strip.logits, strip.rows, reduction="sum")


def multi_positive(strip: Strip) -> Tensor:
    """InfoNCE in which all texts that are true of an image are right answers, with equal targets.

    UniCL (Yang et al., 2022, arXiv 2204.03610), the "out" form of SupCon (Khosla et al., 2020, arXiv 2004.11362).
    """
    positives = strip.positives.to(strip.logits.dtype)
    mean_positive = (positives * strip.logits).sum(dim=1) / positives.sum(dim=1)
    return (strip.logits.logsumexp(dim=1) - mean_positive).sum()


def infonce_distinct(strip: Strip) -> Tensor:
    """InfoNCE within groups of ten neighbouring pairs, in which `MNISTPairs(distinct=True)` has each caption once.

    A common cure for same-caption negatives; it leaves most pairs of the batch unused.
    """
    groups = torch.arange(strip.logits.shape[1], device=strip.rows.device) // GROUP
    other_group = strip.rows[:, None] // GROUP != groups  # [R, B]
    return F.cross_entropy(strip.logits.masked_fill(other_group, -torch.inf), strip.rows, reduction="sum")


def sigmoid(strip: Strip) -> Tensor:
    """Every image-text pair is a yes/no question: is the text true of the image?

    SigLIP (Zhai et al., 2023, arXiv 2303.15343), whose positives are the diagonal; here, all that are true.
    """
    signs = 2 * strip.positives.to(strip.logits.dtype) - 1  # +1 for a true pair, -1 for another
    return -F.logsigmoid(signs * strip.logits).sum()


# ---- their floors: the lowest value that a model can reach. captions [..., B] -> [...] ----


def log_copies(captions: Tensor) -> Tensor:
    """infonce, multi_positive: where n pairs of the batch have one caption, none can be told from the others. Each gets
    a probability of 1/n at best, and its loss is ln n. The mean of ln n over the batch."""
    copies = (captions[..., :, None] == captions.new_tensor(range(int(captions.max()) + 1))).sum(dim=-2)  # [..., ids]
    copies = copies.float()
    return (copies * copies.clamp(min=1).log()).sum(dim=-1) / captions.shape[-1]


def log_copies_in_groups(captions: Tensor) -> Tensor:
    """infonce_distinct: the same within each group; 0 where a group holds each caption once."""
    return log_copies(captions.unflatten(-1, (-1, GROUP))).mean(dim=-1)


def zero(captions: Tensor) -> Tensor:
    """sigmoid: each answer can be right with certainty."""
    return torch.zeros(captions.shape[:-1], device=captions.device)


# ---- value, rows and floor together ----


@dataclass(frozen=True)
class Loss:
    """A loss with all its parts. `both_directions` is False where one sum already covers image -> text and back."""

    of_rows: Callable[[Strip], Tensor]
    floor: Callable[[Tensor], Tensor]
    both_directions: bool = True

    def __call__(self, output, captions: Tensor) -> Tensor:
        """A `CLIPOutput` of B pairs and their caption ids [B] -> the batch's loss, a scalar in nats."""
        rows = torch.arange(len(captions), device=captions.device)
        return self.of_strip(
            rows,
            captions,
            (output.logits_per_image, output.image_embeds, output.text_embeds),
            (output.logits_per_text, output.text_embeds, output.image_embeds),
        )

    def of_strip(self, rows: Tensor, captions: Tensor, per_image: tuple, per_text: tuple) -> Tensor:
        """The share of the batch's loss that R rows have: the strips of all rows add up to `__call__`.

        rows [R], captions [B]; `per_image` and `per_text` are (logits [R, B], embeds [R, D], others [B, D]).
        """
        positives = captions[rows, None] == captions  # [R, B], symmetric: a caption is true of all images that have it
        total = self.of_rows(Strip(*per_image, rows, positives))
        if self.both_directions:
            total = (total + self.of_rows(Strip(*per_text, rows, positives))) / 2
        return total / len(captions)


LOSSES = {
    "multi_positive": Loss(multi_positive, log_copies),
    "infonce": Loss(infonce, log_copies),
    "infonce_distinct": Loss(infonce_distinct, log_copies_in_groups),
    "sigmoid": Loss(sigmoid, zero, both_directions=False),
}


def pick_loss(name: str) -> Loss:
    """Raises InputError for a name that is no loss."""
    if name not in LOSSES:
        raise InputError(f"there is no loss {name!r}: choose {', '.join(LOSSES)}")
    return LOSSES[name]


def sigmoid_bias(captions: Tensor, batch_size: int) -> float:
    """The `logit_bias` at which every pair's probability is the positive rate of batches drawn from these captions.

    In each row of a batch the image's own text is positive, and each of the B - 1 others is with the chance that two
    captions are equal. SigLIP starts at -10, which fits one positive in ten thousand; here it is one in eight at
    B = 32.
    """
    shares = torch.bincount(captions).double() / len(captions)
    rate = (1 + (batch_size - 1) * float((shares**2).sum())) / batch_size
    return math.log(rate / (1 - rate)) if rate < 1 else 10.0
