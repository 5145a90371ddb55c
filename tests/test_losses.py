import math

import pytest
import torch
import torch.nn.functional as F

from losses import LOSSES, infonce, infonce_distinct, loss_floor, multi_positive, sigmoid, sigmoid_bias
from text_encoder import TextEncoder

ln = math.log
# Rows are images, columns texts; the exponentials are small integers, so that the softmax can be done by hand.
LOGITS = torch.tensor([[1.0, 1.0, 2.0], [4.0, 2.0, 2.0], [1.0, 1.0, 8.0]]).log()
CAPTIONS = torch.tensor([3, 3, 7])


def test_infonce_by_hand():
    # Images: 1/4, 2/8, 8/10 on the diagonal. Texts: column sums 6, 4, 12, so 1/6, 2/4, 8/12.
    images = -(ln(1 / 4) + ln(2 / 8) + ln(8 / 10)) / 3
    texts = -(ln(1 / 6) + ln(2 / 4) + ln(8 / 12)) / 3
    assert infonce(LOGITS, CAPTIONS).item() == pytest.approx((images + texts) / 2, abs=1e-6)


def test_multi_positive_by_hand():
    # Pairs 0 and 1 share a caption: half the target on each of the two.
    images = -((ln(1 / 4) + ln(1 / 4)) / 2 + (ln(4 / 8) + ln(2 / 8)) / 2 + ln(8 / 10)) / 3
    texts = -((ln(1 / 6) + ln(4 / 6)) / 2 + (ln(1 / 4) + ln(2 / 4)) / 2 + ln(8 / 12)) / 3
    assert multi_positive(LOGITS, CAPTIONS).item() == pytest.approx((images + texts) / 2, abs=1e-6)


def test_sigmoid_by_hand():
    # sigmoid(ln x) = x / (1 + x); a negative costs -ln(1 / (1 + x)). Same caption: the upper left 2x2 and the corner.
    positives = -sum(ln(x / (1 + x)) for x in (1, 1, 4, 2, 8))
    negatives = sum(ln(1 + x) for x in (2, 2, 1, 1))
    assert sigmoid(LOGITS, CAPTIONS).item() == pytest.approx((positives + negatives) / 3, abs=1e-5)


def test_infonce_and_its_gradient_equal_open_clip():
    from open_clip.loss import ClipLoss

    torch.manual_seed(0)
    images, texts = (F.normalize(torch.randn(16, 8), dim=-1).requires_grad_() for _ in range(2))
    scale = torch.tensor(14.0)
    ours = infonce(scale * images @ texts.T, torch.arange(16))
    theirs = ClipLoss()(images, texts, scale)
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-6)
    for mine, other in zip(
        torch.autograd.grad(ours, (images, texts)), torch.autograd.grad(theirs, (images, texts)), strict=True
    ):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("name", LOSSES)
def test_floor_is_reached_by_perfect_embeddings_and_never_passed(name):
    captions = torch.tensor([0, 0, 0, 4, 4, 9])
    perfect = 100 * (2 * (captions[:, None] == captions) - 1.0)  # cosine 1 or -1 at the highest temperature
    floor = loss_floor(name, captions).item()
    assert LOSSES[name](perfect, captions).item() == pytest.approx(floor, abs=1e-5)
    torch.manual_seed(0)
    for _ in range(20):  # same caption, same text embedding: one column for each caption
        columns = torch.randn(6, 10) * 5
        assert LOSSES[name](columns[:, captions], captions).item() >= floor - 1e-6


def test_floor_of_distinct_captions_is_zero_and_of_equal_ones_ln_b():
    assert loss_floor("infonce", torch.arange(10)).item() == 0
    assert loss_floor("multi_positive", torch.zeros(32, dtype=torch.long)).item() == pytest.approx(ln(32), abs=1e-6)


def test_infonce_distinct_is_the_mean_of_its_groups():
    torch.manual_seed(0)
    logits, captions = torch.randn(30, 30), torch.arange(10).repeat(3)
    groups = [infonce(logits[i : i + 10, i : i + 10], captions[:10]) for i in (0, 10, 20)]
    torch.testing.assert_close(infonce_distinct(logits, captions), torch.stack(groups).mean())
    assert loss_floor("infonce_distinct", captions) == 0
    twice = torch.tensor([0, 0, 2, 3, 4, 5, 6, 7, 8, 9])  # two of ten have a twin in their group
    assert loss_floor("infonce_distinct", torch.cat([twice, captions])).item() == pytest.approx(2 * math.log(2) / 40)


def test_infonce_equals_multi_positive_when_a_caption_has_one_embedding():
    """The table encoder gives every 7 the same vector: the texts' rows then sum to the same loss and gradient."""
    torch.manual_seed(0)
    captions = torch.randint(10, (64,))
    encoder = TextEncoder(8)
    images = F.normalize(torch.randn(64, 8), dim=-1).requires_grad_()
    logits = 14 * images @ F.normalize(encoder(captions), dim=-1).T
    one, other = infonce(logits, captions), multi_positive(logits, captions)
    assert one.item() == pytest.approx(other.item(), abs=1e-5)
    for a, b in zip(
        torch.autograd.grad(one, (images, encoder.table.weight), retain_graph=True),
        torch.autograd.grad(other, (images, encoder.table.weight)),
        strict=True,
    ):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    # With a vector for each text (sentences, say) the two part: infonce pushes same-digit pairs apart.
    free = torch.randn(64, 64)
    assert abs(infonce(free, captions).item() - multi_positive(free, captions).item()) > 0.01


def test_sigmoid_bias_is_the_positive_rate_of_a_batch():
    def rate(captions, batch_size):
        return torch.tensor(sigmoid_bias(captions, batch_size)).sigmoid().item()

    assert rate(torch.arange(10), 1_000_000) == pytest.approx(0.1, abs=1e-4)
    assert rate(torch.arange(10), 2) == pytest.approx((1 + 0.1) / 2)  # two pairs: each one's own, and a tenth
    assert rate(torch.tensor([0, 0, 0, 1]), 3) == pytest.approx((1 + 2 * 10 / 16) / 3)
