import math
import statistics
from collections import Counter

import pytest
import torch
import torch.nn.functional as F

from captions import DIGIT_WORDS, STATEMENTS, Truth
from clip import CLIPOutput
from losses import LOSSES, Loss, pick_loss, sigmoid_bias, zero
from my_utils import InputError
from text_encoder import TextEncoder

ln = math.log
# Rows are images, columns texts; the exponentials are small integers, so that the softmax can be done by hand.
LOGITS = torch.tensor([[1.0, 1.0, 2.0], [4.0, 2.0, 2.0], [1.0, 1.0, 8.0]]).log()


def of_digits(digits) -> Truth:
    """Each image is of one digit, and its text says which."""
    facts = (1 << torch.as_tensor(digits)).int()
    return Truth(facts, facts)


SAID = ("three", "a digit", "thin", "thick", "upright", "leaning left")


def random_truth(size: int, statements: tuple = SAID) -> Truth:
    """Every text is true of its own image, and of some others; some pairs are undecided."""
    bits = torch.tensor([1 << STATEMENTS.index(name) for name in statements])
    facts, unknown, claims = ((torch.rand(3, size, len(bits)) < 0.5) * bits).sum(dim=2).int()
    return Truth(facts, facts & claims, unknown & ~facts)


def in_plain_words(truth: Truth) -> tuple[list, list]:
    """Which texts are true of which images, and which pairs are undecided: bools [B][B]."""
    parts = truth.facts, truth.claims, torch.zeros_like(truth.facts) if truth.unknown is None else truth.unknown
    facts, claims, unknown = (
        [{name for k, name in enumerate(STATEMENTS) if x >> k & 1} for x in part.tolist()] for part in parts
    )
    true = [[said <= seen for said in claims] for seen in facts]
    undecided = [
        [not said <= seen and said - seen <= open_ for said in claims]
        for seen, open_ in zip(facts, unknown, strict=True)
    ]
    return true, undecided


CAPTIONS = of_digits([3, 3, 7])


def value(name: str, logits: torch.Tensor, truth: Truth) -> torch.Tensor:
    """A loss on logits [B, B] alone."""
    nothing = torch.zeros(len(logits), 1)
    return LOSSES[name](CLIPOutput(nothing, nothing, logits, logits.T, torch.ones(())), truth)


def output_of(images: torch.Tensor, texts: torch.Tensor, scale: float = 14.0) -> CLIPOutput:
    logits = scale * images @ texts.T
    return CLIPOutput(images, texts, logits, logits.T, torch.tensor(scale))


def unit_vectors(*shape: int) -> torch.Tensor:
    return F.normalize(torch.randn(shape), dim=-1).requires_grad_()


def in_strips(loss: Loss, output: CLIPOutput, truth: Truth, height: int) -> torch.Tensor:
    return sum(
        loss.of_strip(
            rows,
            truth,
            (output.logits_per_image[rows], output.image_embeds[rows], output.text_embeds),
            (output.logits_per_text[rows], output.text_embeds[rows], output.image_embeds),
        )
        for rows in torch.arange(len(truth.claims)).split(height)
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
    ours = LOSSES["infonce"](output_of(images, texts), of_digits(torch.arange(16)))
    theirs = ClipLoss()(images, texts, torch.tensor(14.0))
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-6)
    for mine, other in zip(
        torch.autograd.grad(ours, (images, texts)), torch.autograd.grad(theirs, (images, texts)), strict=True
    ):
        torch.testing.assert_close(mine, other)


def test_infonce_distinct_is_the_mean_of_its_groups():
    torch.manual_seed(0)
    logits, digits = torch.randn(30, 30), torch.arange(10).repeat(3)
    groups = [value("infonce", logits[i : i + 10, i : i + 10], of_digits(digits[:10])) for i in (0, 10, 20)]
    torch.testing.assert_close(value("infonce_distinct", logits, of_digits(digits)), torch.stack(groups).mean())


def by_loops(name: str, logits: list, truth: Truth) -> float:
    """A loss as its formula says it, a pair at a time."""
    images = (logits, *in_plain_words(truth))
    texts = tuple(list(zip(*part, strict=True)) for part in images)
    losses = []
    for i, row, is_true, is_open in (
        (i, *rows) for side in (images, texts) for i, rows in enumerate(zip(*side, strict=True))
    ):
        places = range(len(row))
        if name == "sigmoid":
            signed = [row[j] if is_true[j] else -row[j] for j in places if not is_open[j]]
            losses.append(sum(ln(1 + math.exp(-x)) for x in signed))
            continue
        counted, right = list(places), row[i]
        if name == "multi_positive":
            counted = [j for j in places if not is_open[j]]
            right = statistics.mean(row[j] for j in places if is_true[j])
        if name == "infonce_distinct":
            counted = [j for j in places if j // 10 == i // 10]
        losses.append(ln(sum(math.exp(row[j]) for j in counted)) - right)
    return statistics.mean(losses)


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_its_formula_whatever_is_true(name):
    for seed in range(5):
        torch.manual_seed(seed)
        truth, logits = random_truth(20), 3 * torch.randn(20, 20)
        true, undecided = (torch.tensor(part) for part in in_plain_words(truth))
        assert all(torch.equal(*pair) for pair in zip(truth.decide(), (true, undecided), strict=True))
        assert 20 < true.sum() < 400 - undecided.sum() < 400
        assert not torch.equal(true, true.T)
        expected = by_loops(name, logits.tolist(), truth)
        assert value(name, logits, truth).item() == pytest.approx(expected, rel=1e-5)


def test_infonce_equals_multi_positive_when_a_caption_has_one_embedding():
    """The table encoder gives every 7 the same vector: the texts' rows then sum to the same loss and gradient."""
    torch.manual_seed(0)
    digits = torch.randint(10, (64,))
    encoder, images, truth = TextEncoder(8, DIGIT_WORDS), unit_vectors(64, 8), of_digits(digits)
    logits = 14 * images @ F.normalize(encoder(encoder.tokenize(DIGIT_WORDS)[digits]), dim=-1).T
    one, other = value("infonce", logits, truth), value("multi_positive", logits, truth)
    assert one.item() == pytest.approx(other.item(), abs=1e-5)
    for a, b in zip(
        torch.autograd.grad(one, (images, encoder.table.weight), retain_graph=True),
        torch.autograd.grad(other, (images, encoder.table.weight)),
        strict=True,
    ):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    # With a vector for each text (sentences, say) the two part: infonce pushes same-digit pairs apart.
    own = 5 * torch.eye(64)
    assert value("infonce", own, truth).item() < value("multi_positive", own, truth).item() - 1


@pytest.mark.parametrize("name", ["infonce", "multi_positive"])
def test_texts_that_many_images_share_count_as_often_as_they_stand_in_the_batch(name):
    torch.manual_seed(0)
    own = torch.tensor([3, 0, 3, 1, 4, 4, 3, 0, 1, 3, 4, 0])  # nobody's is 2
    images, texts = unit_vectors(12, 8), unit_vectors(5, 8)
    whole = LOSSES[name](output_of(images, texts[own]), of_digits(own))
    gradients = torch.autograd.grad(whole, (images, texts))
    shared = LOSSES[name].of_shared(output_of(images, texts).logits_per_image, own)
    torch.testing.assert_close(shared, whole)
    for got, expected in zip(torch.autograd.grad(shared, (images, texts)), gradients, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-4)


# ---- strips ----

# A loss on features: B squared distances, each of an image to its own text. It looks at no logits.
ON_FEATURES = Loss(lambda strip: (strip.embeds - strip.others[strip.rows]).square().sum(), zero, both_directions=False)


@pytest.mark.parametrize("described", [False, True])
@pytest.mark.parametrize("loss", [*LOSSES.values(), ON_FEATURES], ids=[*LOSSES, "on features"])
def test_the_strips_of_a_batch_add_up_to_its_loss_and_gradient(loss, described):
    torch.manual_seed(0)
    images, texts = unit_vectors(10, 8), unit_vectors(10, 8)
    truth = random_truth(10) if described else of_digits(torch.randint(4, (10,)))
    whole = loss(output_of(images, texts), truth)
    strips = in_strips(loss, output_of(images, texts), truth, height=3)
    torch.testing.assert_close(strips, whole)
    for a, b in zip(*(torch.autograd.grad(x, (images, texts)) for x in (whole, strips)), strict=True):
        torch.testing.assert_close(a, b)


def test_a_loss_on_features_finds_them_in_the_output():
    torch.manual_seed(0)
    images, texts = unit_vectors(10, 8), unit_vectors(10, 8)
    expected = (images - texts).square().sum() / 10
    torch.testing.assert_close(ON_FEATURES(output_of(images, texts), of_digits(torch.arange(10))), expected)


# ---- floors ----


@pytest.mark.parametrize("name", LOSSES)
def test_floor_is_reached_by_perfect_embeddings_and_never_passed(name):
    digits = torch.tensor([0, 0, 0, 4, 4, 9, 1, 2, 3, 5])
    truth = of_digits(digits)
    perfect = 100 * (2 * (digits[:, None] == digits) - 1.0)  # cosine 1 or -1 at the highest temperature
    floor = LOSSES[name].floor(truth).item()
    assert value(name, perfect, truth).item() == pytest.approx(floor, abs=1e-5)
    torch.manual_seed(0)
    for _ in range(20):  # same caption, same text embedding: one column for each caption
        columns = torch.randn(10, 10) * 5
        assert value(name, columns[:, digits], truth).item() >= floor - 1e-6


def classes(truth: Truth, group: int = 10**6) -> tuple[torch.Tensor, torch.Tensor]:
    """Which images have equal facts and which texts equal claims, within groups of so many pairs: numbers from 0."""
    groups = torch.arange(len(truth.claims)) // group
    sides = (torch.stack([groups, part], dim=1) for part in (truth.facts, truth.claims))
    return tuple(side.unique(dim=0, return_inverse=True)[1] for side in sides)


@pytest.mark.parametrize("described", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_floor_is_where_a_search_by_gradient_ends(name, described):
    """What descent finds lies on the floor, not above and not below, nor does any random model lie below.

    The logits are free; for infonce, those of images with equal facts, or of texts with equal claims, are equal (for
    infonce_distinct within each group: there the floor may be lower than one model can reach in all groups at once).
    """
    torch.manual_seed(0)
    digits = torch.tensor([2, 2, 2, 2, 5, 5, 5, 7, 7, 0, 1, 1, 3, 4, 5, 6, 7, 8, 9, 9])
    truth = random_truth(20, SAID[1:4]) if described else of_digits(digits)
    rows, columns = torch.arange(20), torch.arange(20)
    if name.startswith("infonce"):
        rows, columns = classes(truth, 10 if name == "infonce_distinct" else 20)
        assert rows.max() < 19
        assert columns.max() < 19
    floor = LOSSES[name].floor(truth).item()
    for scale in (0.1, 1, 5):
        assert value(name, scale * torch.randn(20, 20)[rows][:, columns], truth).item() > floor - 1e-6
    free = torch.randn(20, 20, requires_grad=True)
    adam = torch.optim.Adam([free], lr=0.3)
    for _ in range(300):
        adam.zero_grad()
        loss = value(name, free[rows][:, columns], truth)
        loss.backward()
        adam.step()
    assert floor - 1e-5 < loss.item() < floor + 0.02


def test_floors_are_the_counted_ones_whatever_rows_they_are_added_up_from():
    def counted(facts: list, claims: list) -> float:
        """The mean of ln(nm / k), where n images have the pair's facts, m texts its claims, k pairs both."""
        pairs = list(zip(facts, claims, strict=True))
        images, texts, both = Counter(facts), Counter(claims), Counter(pairs)
        return statistics.mean(ln(images[f] * texts[c] / both[f, c]) for f, c in pairs)

    torch.manual_seed(0)
    truths = [of_digits(torch.randint(10, (20,))) for _ in range(3)] + [random_truth(20, SAID[1:4]) for _ in range(3)]
    for truth in truths:
        facts, claims = truth.facts.tolist(), truth.claims.tolist()
        true, _ = in_plain_words(truth)
        right = [sum(row) for row in (*true, *zip(*true, strict=True))]
        expected = {
            "multi_positive": statistics.mean(ln(n) for n in right),
            "infonce": counted(facts, claims),
            "infonce_distinct": (counted(facts[:10], claims[:10]) + counted(facts[10:], claims[10:])) / 2,
            "sigmoid": 0.0,
        }
        for name, loss in LOSSES.items():
            assert loss.floor(truth).item() == pytest.approx(expected[name], abs=1e-6)
            assert loss.floor(truth, height=3).item() == pytest.approx(expected[name], abs=1e-6)


def test_floor_of_distinct_captions_is_zero_and_of_equal_ones_ln_b():
    assert LOSSES["infonce"].floor(of_digits(torch.arange(10))).item() == 0
    same = of_digits(torch.zeros(32, dtype=torch.long))
    assert LOSSES["multi_positive"].floor(same).item() == pytest.approx(ln(32), abs=1e-6)


def test_the_floor_of_groups_counts_within_each():
    distinct = LOSSES["infonce_distinct"]
    assert distinct.floor(of_digits(torch.arange(10).repeat(3))) == 0
    twice = torch.tensor([0, 0, 2, 3, 4, 5, 6, 7, 8, 9])  # two of ten have a twin in their group
    truth = of_digits(torch.cat([twice, torch.arange(10)]))
    assert distinct.floor(truth).item() == pytest.approx(2 * ln(2) / 20)


# ---- names and parts ----


@pytest.mark.parametrize("name", ["triplet", "", "InfoNCE", None])
def test_an_unknown_loss_is_refused(name):
    with pytest.raises(InputError, match=r"there is no loss .*multi_positive, infonce, infonce_distinct, sigmoid"):
        pick_loss(name)


def test_a_loss_that_lacks_a_part_cannot_be_made():
    with pytest.raises(TypeError, match="floor"):
        Loss(lambda strip: strip.logits.sum())


def test_sigmoid_bias_is_the_share_of_true_pairs_among_those_that_count():
    def rate(truth):
        return torch.tensor(sigmoid_bias(truth)).sigmoid().item()

    assert rate(of_digits(torch.arange(10))) == pytest.approx(1 / 10)
    assert rate(of_digits([0, 0, 0, 1])) == pytest.approx((3 * 3 + 1) / 16)
    assert rate(of_digits([4, 4])) == pytest.approx(1, abs=1e-4), "all are true, and still a finite number"
    torch.manual_seed(0)
    truth = random_truth(20)
    true, undecided = (torch.tensor(part) for part in in_plain_words(truth))
    assert rate(truth) == pytest.approx((true.sum() / (~undecided).sum()).item())
