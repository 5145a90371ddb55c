import math
from collections import Counter

import pytest
import torch
import torch.nn.functional as F

from clip import CLIPOutput
from losses import LOSSES, Loss, pick_loss, sigmoid_bias, zero
from my_utils import InputError
from text_encoder import TextEncoder

ln = math.log
# Rows are images, columns texts; the exponentials are small integers, so that the softmax can be done by hand.
LOGITS = torch.tensor([[1.0, 1.0, 2.0], [4.0, 2.0, 2.0], [1.0, 1.0, 8.0]]).log()
CAPTIONS = torch.tensor([3, 3, 7])


def value(name: str, logits: torch.Tensor, captions: torch.Tensor) -> torch.Tensor:
    """A loss on logits [B, B] alone."""
    nothing = torch.zeros(len(captions), 1)
    return LOSSES[name](CLIPOutput(nothing, nothing, logits, logits.T, torch.ones(())), captions)


def output_of(images: torch.Tensor, texts: torch.Tensor, scale: float = 14.0) -> CLIPOutput:
    logits = scale * images @ texts.T
    return CLIPOutput(images, texts, logits, logits.T, torch.tensor(scale))


def unit_vectors(*shape: int) -> torch.Tensor:
    return F.normalize(torch.randn(shape), dim=-1).requires_grad_()


def in_strips(loss: Loss, output: CLIPOutput, captions: torch.Tensor, height: int) -> torch.Tensor:
    return sum(
        loss.of_strip(
            rows,
            captions,
            (output.logits_per_image[rows], output.image_embeds[rows], output.text_embeds),
            (output.logits_per_text[rows], output.text_embeds[rows], output.image_embeds),
        )
        for rows in torch.arange(len(captions)).split(height)
    )


# ---- values ----


def test_infonce_by_hand():
    # Images: 1/4, 2/8, 8/10 on the diagonal. Texts: column sums 6, 4, 12, so 1/6, 2/4, 8/12.
    images = -(ln(1 / 4) + ln(2 / 8) + ln(8 / 10)) / 3
    texts = -(ln(1 / 6) + ln(2 / 4) + ln(8 / 12)) / 3
    assert value("infonce", LOGITS, CAPTIONS).item() == pytest.approx((images + texts) / 2, abs=1e-6)


def test_multi_positive_by_hand():
    # Pairs 0 and 1 share a caption: half the target on each of the two.
    images = -((ln(1 / 4) + ln(1 / 4)) / 2 + (ln(4 / 8) + ln(2 / 8)) / 2 + ln(8 / 10)) / 3
    texts = -((ln(1 / 6) + ln(4 / 6)) / 2 + (ln(1 / 4) + ln(2 / 4)) / 2 + ln(8 / 12)) / 3
    assert value("multi_positive", LOGITS, CAPTIONS).item() == pytest.approx((images + texts) / 2, abs=1e-6)


def test_sigmoid_by_hand():
    # sigmoid(ln x) = x / (1 + x); a negative costs -ln(1 / (1 + x)). Same caption: the upper left 2x2 and the corner.
    positives = -sum(ln(x / (1 + x)) for x in (1, 1, 4, 2, 8))
    negatives = sum(ln(1 + x) for x in (2, 2, 1, 1))
    assert value("sigmoid", LOGITS, CAPTIONS).item() == pytest.approx((positives + negatives) / 3, abs=1e-5)


def test_infonce_and_its_gradient_equal_open_clip():
    from open_clip.loss import ClipLoss

    torch.manual_seed(0)
    images, texts = unit_vectors(16, 8), unit_vectors(16, 8)
    ours = LOSSES["infonce"](output_of(images, texts), torch.arange(16))
    theirs = ClipLoss()(images, texts, torch.tensor(14.0))
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-6)
    for mine, other in zip(
        torch.autograd.grad(ours, (images, texts)), torch.autograd.grad(theirs, (images, texts)), strict=True
    ):
        torch.testing.assert_close(mine, other)


def test_infonce_distinct_is_the_mean_of_its_groups():
    torch.manual_seed(0)
    logits, captions = torch.randn(30, 30), torch.arange(10).repeat(3)
    groups = [value("infonce", logits[i : i + 10, i : i + 10], captions[:10]) for i in (0, 10, 20)]
    torch.testing.assert_close(value("infonce_distinct", logits, captions), torch.stack(groups).mean())


def test_infonce_equals_multi_positive_when_a_caption_has_one_embedding():
    """The table encoder gives every 7 the same vector: the texts' rows then sum to the same loss and gradient."""
    torch.manual_seed(0)
    captions = torch.randint(10, (64,))
    encoder, images = TextEncoder(8), unit_vectors(64, 8)
    logits = 14 * images @ F.normalize(encoder(captions), dim=-1).T
    one, other = value("infonce", logits, captions), value("multi_positive", logits, captions)
    assert one.item() == pytest.approx(other.item(), abs=1e-5)
    for a, b in zip(
        torch.autograd.grad(one, (images, encoder.table.weight), retain_graph=True),
        torch.autograd.grad(other, (images, encoder.table.weight)),
        strict=True,
    ):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    # With a vector for each text (sentences, say) the two part: infonce pushes same-digit pairs apart.
    free = torch.randn(64, 64)
    assert abs(value("infonce", free, captions).item() - value("multi_positive", free, captions).item()) > 0.01


# ---- strips ----

# A loss on features: B squared distances, each of an image to its own text. It looks at no logits.
ON_FEATURES = Loss(lambda strip: (strip.embeds - strip.others[strip.rows]).square().sum(), zero, both_directions=False)


@pytest.mark.parametrize("loss", [*LOSSES.values(), ON_FEATURES], ids=[*LOSSES, "on features"])
def test_the_strips_of_a_batch_add_up_to_its_loss_and_gradient(loss):
    torch.manual_seed(0)
    images, texts, captions = unit_vectors(10, 8), unit_vectors(10, 8), torch.randint(4, (10,))
    whole = loss(output_of(images, texts), captions)
    strips = in_strips(loss, output_of(images, texts), captions, height=3)
    torch.testing.assert_close(strips, whole)
    for a, b in zip(*(torch.autograd.grad(x, (images, texts)) for x in (whole, strips)), strict=True):
        torch.testing.assert_close(a, b)


def test_a_loss_on_features_finds_them_in_the_output():
    torch.manual_seed(0)
    images, texts = unit_vectors(10, 8), unit_vectors(10, 8)
    expected = (images - texts).square().sum() / 10
    torch.testing.assert_close(ON_FEATURES(output_of(images, texts), torch.arange(10)), expected)


# ---- floors ----


@pytest.mark.parametrize("name", LOSSES)
def test_floor_is_reached_by_perfect_embeddings_and_never_passed(name):
    captions = torch.tensor([0, 0, 0, 4, 4, 9, 1, 2, 3, 5])
    perfect = 100 * (2 * (captions[:, None] == captions) - 1.0)  # cosine 1 or -1 at the highest temperature
    floor = LOSSES[name].floor(captions).item()
    assert value(name, perfect, captions).item() == pytest.approx(floor, abs=1e-5)
    torch.manual_seed(0)
    for _ in range(20):  # same caption, same text embedding: one column for each caption
        columns = torch.randn(10, 10) * 5
        assert value(name, columns[:, captions], captions).item() >= floor - 1e-6


@pytest.mark.parametrize("name", LOSSES)
def test_floor_is_where_a_search_by_gradient_ends(name):
    """Free logits, one column for each caption: what descent finds lies on the floor, not above and not below."""
    captions = torch.tensor([2, 2, 2, 2, 5, 5, 5, 7, 7, 0, 1, 1, 3, 4, 5, 6, 7, 8, 9, 9])
    torch.manual_seed(0)
    columns = torch.randn(20, 10, requires_grad=True)
    adam = torch.optim.Adam([columns], lr=0.3)
    for _ in range(300):
        adam.zero_grad()
        loss = value(name, columns[:, captions], captions)
        loss.backward()
        adam.step()
    floor = LOSSES[name].floor(captions).item()
    assert floor - 1e-5 < loss.item() < floor + 0.02


def test_floors_of_many_batches_are_those_of_each_and_the_counted_ones():
    torch.manual_seed(0)
    captions = torch.randint(10, (7, 20))

    def counted(batch: list[int]) -> float:
        """The mean of ln n, where n pairs of the batch have the pair's caption."""
        copies = Counter(batch)
        return sum(ln(copies[caption]) for caption in batch) / len(batch)

    expected = {
        "infonce": [counted(batch) for batch in captions.tolist()],
        "infonce_distinct": [(counted(batch[:10]) + counted(batch[10:])) / 2 for batch in captions.tolist()],
        "sigmoid": [0.0] * 7,
    }
    expected["multi_positive"] = expected["infonce"]
    for name, loss in LOSSES.items():
        floors = loss.floor(captions)
        torch.testing.assert_close(floors, torch.stack([loss.floor(batch) for batch in captions]))
        torch.testing.assert_close(floors, torch.tensor(expected[name]))


def test_floor_of_distinct_captions_is_zero_and_of_equal_ones_ln_b():
    assert LOSSES["infonce"].floor(torch.arange(10)).item() == 0
    assert LOSSES["multi_positive"].floor(torch.zeros(32, dtype=torch.long)).item() == pytest.approx(ln(32), abs=1e-6)


def test_the_floor_of_groups_counts_within_each():
    distinct = LOSSES["infonce_distinct"]
    assert distinct.floor(torch.arange(10).repeat(3)) == 0
    twice = torch.tensor([0, 0, 2, 3, 4, 5, 6, 7, 8, 9])  # two of ten have a twin in their group
    assert distinct.floor(torch.cat([twice, torch.arange(10)])).item() == pytest.approx(2 * ln(2) / 20)


# ---- names and parts ----


@pytest.mark.parametrize("name", ["triplet", "", "InfoNCE", None])
def test_an_unknown_loss_is_refused(name):
    with pytest.raises(InputError, match=r"there is no loss .*multi_positive, infonce, infonce_distinct, sigmoid"):
        pick_loss(name)


def test_a_loss_that_lacks_a_part_cannot_be_made():
    with pytest.raises(TypeError, match="floor"):
        Loss(lambda strip: strip.logits.sum())


def test_sigmoid_bias_is_the_positive_rate_of_a_batch():
    def rate(captions, batch_size):
        return torch.tensor(sigmoid_bias(captions, batch_size)).sigmoid().item()

    assert rate(torch.arange(10), 1_000_000) == pytest.approx(0.1, abs=1e-4)
    assert rate(torch.arange(10), 2) == pytest.approx((1 + 0.1) / 2)  # two pairs: each one's own, and a tenth
    assert rate(torch.tensor([0, 0, 0, 1]), 3) == pytest.approx((1 + 2 * 10 / 16) / 3)
