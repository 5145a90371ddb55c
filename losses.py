"""Contrastive losses, each whole in one place: its sum over some rows of a batch, and the lowest value it can have.

A batch has B images and B texts, and so [B, B] logits. `captions.Truth` says which texts are true of which images. To
save memory a loss can be computed for some rows at a time: a `Strip` is R such rows, R images against all B texts or R
texts against all B images, with all that a loss may need. `Loss.__call__` takes all rows at once. All values are in
nats (natural logarithms).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from captions import Truth
from my_utils import InputError

GROUP = 10  # pairs of `infonce_distinct`, one of each digit


class Strip(NamedTuple):
    """R rows of a batch from one side. `logits` are `logit_scale.exp() * cosine`, for `sigmoid` plus `logit_bias`."""

    logits: Tensor  # [R, B]
    embeds: Tensor  # [R, embed_dim], of these rows
    others: Tensor  # [B, embed_dim], of the other side
    rows: Tensor  # int64 [R], these rows' places in the batch: item r belongs to item rows[r] of the other side
    positives: Tensor  # bool [R, B], which of the other side is true of each row, or is what it is true of
    undecided: Tensor | None  # bool [R, B], which pairs are neither true nor false, and so do not count; None: none

    def counted(self, values: Tensor, instead: float) -> Tensor:
        """Values [R, B] of the pairs, with `instead` for those that do not count."""
        return values if self.undecided is None else values.masked_fill(self.undecided, instead)


# ---- the losses: nats, summed over a strip's rows ----


def infonce(strip: Strip) -> Tensor:
    """InfoNCE: each image's own text is the one right answer, and the reverse (Radford et al., 2021, arXiv 2103.00020).

    A text that is true of an image but was drawn for another counts as a negative.
    """
    return F.cross_entropy(strip.logits, strip.rows, reduction="sum")


def multi_positive(strip: Strip) -> Tensor:
    """InfoNCE in which all texts that are true of an image are right answers, with equal targets.

    UniCL (Yang et al., 2022, arXiv 2204.03610), the "out" form of SupCon (Khosla et al., 2020, arXiv 2004.11362).
    """
    positives = strip.positives.to(strip.logits.dtype)
    mean_positive = torch.linalg.vecdot(strip.logits, positives) / positives.sum(dim=1)  # [R]
    return (strip.counted(strip.logits, -torch.inf).logsumexp(dim=1) - mean_positive).sum()


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
    return -strip.counted(F.logsigmoid(signs * strip.logits), 0).sum()


def of_shared_texts(logits: Tensor, own: Tensor) -> Tensor:
    """The batch's infonce or multi_positive, where B images share T texts and each image has one true text alone.

    logits [B, T]; own int64 [B], each image's text. A text that goes with n images stands n times among the B of a
    batch: here it is one column that counts n times. The two losses are then equal, and of the same value as by the
    [B, B] logits.
    """
    is_own = own[:, None] == torch.arange(logits.shape[1], device=own.device)  # [B, T]
    counts = is_own.sum(dim=0).to(logits.dtype)  # (bincount would wait for a GPU)
    own_logits = logits.gather(1, own[:, None])[:, 0]  # [B]
    of_images = (logits + counts.log()).logsumexp(dim=1) - own_logits  # (a text of no image adds exp(-inf) = 0)
    of_texts = logits.logsumexp(dim=0)[own] - own_logits
    return (of_images + of_texts).mean() / 2


# ---- their floors: the lowest value that a model can reach, in nats, summed over the rows' images and texts ----


def log_positives(truth: Truth, rows: Tensor) -> Tensor:
    """multi_positive: with equal targets for n right answers each gets a probability of 1/n at best: ln n."""
    of_images, of_texts = truth.decide(images=rows)[0].sum(dim=1), truth.decide(texts=rows)[0].sum(dim=0)
    return of_images.log().sum() + of_texts.log().sum()


def log_copies(truth: Truth, rows: Tensor, group: int = 0) -> Tensor:
    """infonce, for a model that tells apart no images of equal facts and no texts of equal claims.

    Let n images have the facts of pair i, m texts its claims, and k pairs both. All n images then answer alike: the m
    texts get k/n at best, and pair i's own text k/(nm). The same holds for its text. So both losses are ln(nm / k);
    where captions name the digit alone, ln n. `group`: pairs count within groups of so many neighbours.
    """
    facts, claims = (x[rows, None] == x for x in (truth.facts, truth.claims))  # [R, B]
    if group:
        others = torch.arange(facts.shape[1], device=rows.device) // group
        facts, claims = (x & (rows[:, None] // group == others) for x in (facts, claims))
    return 2 * (facts.sum(dim=1) * claims.sum(dim=1) / (facts & claims).sum(dim=1)).log().sum()


def log_copies_in_groups(truth: Truth, rows: Tensor) -> Tensor:
    """infonce_distinct: the same within each group; 0 where a group holds each caption once."""
    return log_copies(truth, rows, GROUP)


def zero(truth: Truth, rows: Tensor) -> Tensor:
    """sigmoid: each answer can be right with certainty."""
    return torch.zeros((), device=rows.device)


# ---- value, rows and floor together ----


@dataclass(frozen=True)
class Loss:
    """A loss with all its parts. `both_directions` is False where one sum already covers image -> text and back.
    `of_shared` gives the batch's loss where many images share a text; None: it needs all B texts."""

    of_rows: Callable[[Strip], Tensor]
    floor_of_rows: Callable[[Truth, Tensor], Tensor]
    both_directions: bool = True
    of_shared: Callable[[Tensor, Tensor], Tensor] | None = None

    def __call__(self, output, truth: Truth) -> Tensor:
        """A `CLIPOutput` of B pairs and what is true of them -> the batch's loss, a scalar in nats."""
        return self.of_strip(
            torch.arange(len(truth.claims), device=truth.claims.device),
            truth,
            (output.logits_per_image, output.image_embeds, output.text_embeds),
            (output.logits_per_text, output.text_embeds, output.image_embeds),
        )

    def of_strip(self, rows: Tensor, truth: Truth, per_image: tuple, per_text: tuple) -> Tensor:
        """The share of the batch's loss that R rows have: the strips of all rows add up to `__call__`.

        rows [R], ascending; `per_image` and `per_text` are (logits [R, B], embeds [R, D], others [B, D]).
        """
        true, undecided = truth.decide(images=rows)  # [R, B]
        total = self.of_rows(Strip(*per_image, rows, true, undecided))
        if self.both_directions:
            # A text's images are not an image's texts, for the matrix is not symmetric. Of all rows it is the same one.
            if len(rows) < len(truth.claims):
                true, undecided = truth.decide(texts=rows)  # [B, R]
            of_texts = Strip(*per_text, rows, true.T, None if undecided is None else undecided.T)
            total = (total + self.of_rows(of_texts)) / 2
        return total / len(truth.claims)

    def floor(self, truth: Truth, height: int = 1024) -> Tensor:
        """The lowest value that a model can reach on B pairs of this truth: a scalar in nats; some rows at a time."""
        rows = torch.arange(len(truth.claims), device=truth.claims.device)
        return sum(self.floor_of_rows(truth, some) for some in rows.split(height)) / (2 * len(rows))


LOSSES = {
    "multi_positive": Loss(multi_positive, log_positives, of_shared=of_shared_texts),
    "infonce": Loss(infonce, log_copies, of_shared=of_shared_texts),
    "infonce_distinct": Loss(infonce_distinct, log_copies_in_groups),
    "sigmoid": Loss(sigmoid, zero, both_directions=False),
}


def pick_loss(name: str) -> Loss:
    """Raises InputError for a name that is no loss."""
    if name not in LOSSES:
        raise InputError(f"there is no loss {name!r}: choose {', '.join(LOSSES)}")
    return LOSSES[name]


def sigmoid_bias(truth: Truth) -> float:
    """The `logit_bias` at which each pair's probability is the share of true pairs, as this batch has it.

    SigLIP starts at -10, which fits one positive in ten thousand; here it is one in eight at B = 32.
    """
    true, undecided = truth.decide()
    rate = float(true.sum() / (true.numel() if undecided is None else (~undecided).sum()))
    return math.log(rate / (1 - rate)) if rate < 1 else 10.0
