import math
import statistics

import pytest
import torch
import torch.nn.functional as F

import captions
from attributes import combination_ids, unseen_combinations
from captions import UNSAID, Labels, description_id, image_facts, multi_hot, one_hot_labels
from losses import LOSSES, contrastive_loss, min_loss

ln = math.log


def value(name: str, logits: torch.Tensor, positive: torch.Tensor, ignored: torch.Tensor) -> torch.Tensor:
    return contrastive_loss(LOSSES[name], logits, positive, ignored)


def least(name: str, positive: torch.Tensor) -> float:
    """The lowest value that the loss can have on a batch."""
    return sum(min_loss(LOSSES[name], side).mean().item() for side in (positive, positive.T)) / 2


def random_matches(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """positive and ignored, bool [size, size], not symmetric; each pair belongs together itself."""
    positive = (torch.rand(size, size) < 0.3) | torch.eye(size, dtype=torch.bool)
    return positive, (torch.rand(size, size) < 0.3) & ~positive


# ---- a fixed batch of captions of attributes ----

U = UNSAID
# Of each image its digit, thickness and slant, of its text the digit and the grades. Two texts say the same.
PAIRS = [(7, 2.1, -0.08, 7, 1, U), (7, 2.5, 0.1, 7, U, 2), (7, 1.8, -0.2, 7, 0, 0), (7, 2.5, 0.3, 7, U, U)]
PAIRS += [(7, 2.1, -0.05, 7, 1, U), (3, 2.1, 0.1, U, 1, U), (3, 2.5, 0.3, 3, 2, U), (3, 3.0, -0.1, U, U, 1)]
PAIRS += [(0, 3.4, 0.4, 0, 3, 3), (5, 3.0, 0.1, U, U, U)]
# Rows are images, columns texts: + positive, ? ignored. The first two are outliers.
MATCHES = """
    ++..........
    .+..........
    ..+?.+++.+.+
    ..?+?+??.?.+
    ..+?++++.+.+
    .....+...?.+
    ..+?.+++.+.+
    .......+?..+
    .......?+..+
    .........+.+
    ..........++
    ...........+
"""
# The loss of this batch, its gradients with respect to the angles of 12 images and of 12 texts on a circle, and that to
# the scale of their cosines, as computed in float64 by the implementation before the redesign (commit dc6362c).
EXPECTED = {
    "multi_positive": """
        3.820629627
        -0.19426 -0.07094 -0.17021 -0.02842 -0.20957 -0.08268 -0.04684 -0.21355 -0.13498 -0.10839 -0.04883 -0.04201
        0.05794 0.34015 -0.32989 -0.00024 0.01772 0.11155 0.28333 0.19600 0.12678 0.15186 -0.07063 0.46611
        0.364913678
    """,
    "infonce": """
        0.719139609
        0.03297 -0.12617 -0.09989 -0.00626 0.06436 0.14085 0.03221 -0.08751 -0.12866 -0.02201 0.01924 0.04671
        0.05716 0.13580 0.16190 0.02642 -0.13766 -0.15948 -0.04521 0.10518 0.17289 0.08150 -0.09064 -0.17372
        -0.043435342
    """,
    "sigmoid": """
        17.613105012
        -0.23424 1.08691 -0.34488 -0.36090 -1.40943 -0.99173 -0.49093 -0.51336 0.20072 -0.51686 -0.65657 -0.79720
        0.12224 0.96840 -1.03913 -0.21858 0.02257 0.55144 1.44363 1.32596 0.58397 0.46887 -0.44202 1.24111
        2.258692467
    """,
}


def fixed_batch() -> Labels:
    digits, *values, text_digits, text_thickness, text_slant = torch.tensor(PAIRS).T
    digits, values = digits.long(), torch.stack(values, dim=1)  # [10, 2]
    outliers = torch.stack([multi_hot("noise", "no digit"), multi_hot("scribble", "no digit")])
    said = torch.stack([multi_hot("noise"), multi_hot("no digit")])
    ids = description_id(text_digits.long(), [text_thickness.long(), text_slant.long()])
    unknown = captions.unknown_labels(unseen_combinations(0))[combination_ids(digits, values)]
    return Labels(
        torch.cat([outliers, image_facts(digits, values)]),
        torch.cat([said, captions.attribute_captions().claims[ids]]),
        torch.cat([torch.zeros_like(outliers), unknown]),
    )


@pytest.mark.parametrize("name", LOSSES)
def test_a_fixed_batch_has_the_loss_and_the_gradients_that_it_had_before_the_redesign(name):
    positive, ignored = fixed_batch().match()
    for i, row in enumerate(MATCHES.split()):
        assert positive[i].tolist() == [sign == "+" for sign in row]
        assert ignored[i].tolist() == [sign == "?" for sign in row]
    places = torch.arange(12, dtype=torch.float64)
    images, texts = (0.5 * places).requires_grad_(), (0.5 * places + 0.3 * places.sin()).requires_grad_()
    scale = torch.tensor(8.0, dtype=torch.float64, requires_grad=True)
    bias = -1.0 if name == "sigmoid" else 0.0
    loss = value(name, scale * torch.cos(images[:, None] - texts) + bias, positive, ignored)
    gradients = torch.autograd.grad(loss, (images, texts, scale))
    for found, expected in zip((loss, *gradients), EXPECTED[name].strip().splitlines(), strict=True):
        before = [float(number) for number in expected.split()]
        assert found.flatten().tolist() == pytest.approx(before, abs=1e-5 if found.ndim else 1e-8)


def test_multi_positive_by_hand():
    # Rows are images, columns texts; pairs 0 and 1 share a caption: half of the target on each of the two.
    logits = torch.tensor([[1.0, 1.0, 2.0], [4.0, 2.0, 2.0], [1.0, 1.0, 8.0]]).log()
    positive, ignored = one_hot_labels(torch.tensor([3, 3, 7])).match()
    images = -((ln(1 / 4) + ln(1 / 4)) / 2 + (ln(4 / 8) + ln(2 / 8)) / 2 + ln(8 / 10)) / 3
    texts = -((ln(1 / 6) + ln(4 / 6)) / 2 + (ln(1 / 4) + ln(2 / 4)) / 2 + ln(8 / 12)) / 3
    assert value("multi_positive", logits, positive, ignored).item() == pytest.approx((images + texts) / 2, abs=1e-6)
    assert least("multi_positive", positive) == pytest.approx(2 / 3 * ln(2)), "the entropy of the targets"


@pytest.mark.parametrize("name", ["infonce", "multi_positive"])
def test_with_one_positive_each_the_loss_and_its_gradient_equal_open_clip(name):
    from open_clip.loss import ClipLoss

    torch.manual_seed(0)
    images, texts = (F.normalize(torch.randn(16, 8), dim=1).requires_grad_() for _ in range(2))
    ours = value(name, 14 * images @ texts.T, *one_hot_labels(torch.arange(16)).match())
    theirs = ClipLoss()(images, texts, torch.tensor(14.0))
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-6)
    gradients = (torch.autograd.grad(loss, (images, texts)) for loss in (ours, theirs))
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected)


def by_loops(name: str, logits: list, positive: list, ignored: list) -> float:
    """A loss by its formula, a pair at a time, from the images' side."""
    losses = []
    for i, row in enumerate(logits):
        counted = [j for j in range(len(row)) if not ignored[i][j]]
        if name == "sigmoid":
            losses.append(sum(ln(1 + math.exp(-row[j] if positive[i][j] else row[j])) for j in counted))
        else:
            right = [row[j] for j in counted if positive[i][j]]
            losses.append(ln(sum(math.exp(row[j]) for j in counted)) - statistics.mean(right))
    return statistics.mean(losses)


@pytest.mark.parametrize("name", ["multi_positive", "sigmoid"])
def test_a_loss_is_its_formula_whatever_belongs_together(name):
    for seed in range(5):
        torch.manual_seed(seed)
        positive, ignored = random_matches(20)
        logits = 3 * torch.randn(20, 20)
        images, texts = (
            by_loops(name, *(x.tolist() for x in side))
            for side in ((logits, positive, ignored), (logits.T, positive.T, ignored.T))
        )
        assert value(name, logits, positive, ignored).item() == pytest.approx((images + texts) / 2, rel=1e-5)


@pytest.mark.parametrize("name", ["multi_positive", "sigmoid"])
def test_the_lowest_value_is_reached_by_perfect_logits_and_never_passed(name):
    torch.manual_seed(0)
    positive, ignored = random_matches(10)
    perfect = 100 * (2 * positive - 1.0)
    assert value(name, perfect, positive, ignored).item() == pytest.approx(least(name, positive), abs=1e-5)
    for scale in (0.1, 1, 10):
        assert value(name, scale * torch.randn(10, 10), positive, ignored) > least(name, positive)
