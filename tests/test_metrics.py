import itertools
import math
import statistics

import pytest
import torch
import torch.nn.functional as F

from attributes import measure, unseen_cells
from captions import facts_of, thing, things_of_cells
from clip import CLIP
from evaluation.calibration import expected_calibration_error, fit_temperature, reliability
from evaluation.geometry import alignment, effective_rank, modality_gap, uniformity
from evaluation.metrics import (
    caption_accuracy,
    caption_vectors,
    digit_accuracies,
    digit_classifier,
    embed_images,
    evaluate,
    wilson_interval,
)
from evaluation.retrieval import (
    average_precision,
    image_to_image_mean_average_precision,
    mean_average_precision,
    precision_at_k,
    recall_at_k,
    text_to_image_precision,
)
from my_dataset import Split, load_mnist

# Four images, three captions; images 0 and 1 are digit 0, image 2 is digit 1, image 3 is digit 2.
SIMILARITY = torch.tensor([[0.9, 0.1, 0.0], [0.2, 0.3, 0.1], [0.5, 0.8, 0.0], [0.0, 0.1, 0.7]])
LABELS = torch.tensor([0, 0, 1, 2])


def test_caption_accuracy_by_hand():
    assert caption_accuracy(SIMILARITY, LABELS) == pytest.approx(3 / 4)  # image 1 goes to caption 1


def test_text_to_image_precision_by_hand():
    # Caption 0 has two images and finds 0 and 2: one right. Caption 1 finds 2, caption 2 finds 3: both right.
    assert text_to_image_precision(SIMILARITY, LABELS) == pytest.approx((1 + 1 + 1) / 4)


def test_precision_counts_every_image_of_the_digit():
    perfect = torch.eye(3)[LABELS]
    assert text_to_image_precision(perfect, LABELS) == 1.0


def test_evaluate_does_not_depend_on_batches_and_computes_the_texts_anew():
    torch.manual_seed(0)
    model = CLIP(8, width=2, captions="digit")
    images = torch.randint(128, (30, 28, 28), dtype=torch.uint8)
    torch.testing.assert_close(embed_images(model, images, 7), embed_images(model, images, 30))
    before = digit_classifier(model)
    with torch.no_grad():
        model.towers["text"].table.weight.neg_()
    assert not torch.allclose(before, digit_classifier(model))
    assert model.training, "evaluation hands the model back in the mode it came in"
    scores = evaluate(model, Split(images, torch.arange(30) % 10))
    assert {f"accuracy_{digit}" for digit in range(10)} < scores.keys()
    assert 1 <= scores.pop("effective_rank") <= 8
    assert 0 < scores.pop("modality_gap") <= 2
    assert all(0 <= score <= 1 for score in scores.values())
    digits = [scores[f"accuracy_{digit}"] for digit in range(10)]
    assert statistics.mean(digits) == pytest.approx(scores["digit_accuracy"])  # three images each


def test_several_templates_are_averaged_digit_by_digit():
    torch.manual_seed(0)
    model = CLIP(8, width=2, captions="digit")
    torch.testing.assert_close(digit_classifier(model, ("{word}", "{numeral}")), digit_classifier(model))
    assert not torch.allclose(digit_classifier(model)[0], digit_classifier(model)[1])


def test_a_captions_vector_is_the_mean_of_its_phrasings():
    torch.manual_seed(0)
    model = CLIP(8, width=2)
    things, phrasings = torch.tensor([thing(7, 2, 0), thing(3)]), model.captions.phrasings
    for vector, place in zip(caption_vectors(model, things), things.tolist(), strict=True):
        mean = model.encode_text(model.captions.sentences[place * phrasings : (place + 1) * phrasings]).mean(dim=0)
        torch.testing.assert_close(vector, mean / mean.norm())
    torch.testing.assert_close(digit_classifier(model)[3], caption_vectors(model, things)[1])


def test_seen_and_unseen_cells_are_measured_apart(data_path, monkeypatch):
    """Perfect embeddings of the cells, but each second image of an unseen cell has that of another."""
    split, model = Split(*(x[:1000] for x in load_mnist("val", data_path))), CLIP(8, width=2, unseen_seed=4)
    cells = facts_of(split.labels, *measure(split.images))[1]
    place = {int(what): cell for cell, what in enumerate(things_of_cells())}
    is_unseen = unseen_cells(4).flatten()[cells]
    wrong = is_unseen.nonzero().flatten()[::2]
    embeds = torch.eye(91)[cells]
    embeds[wrong] = torch.eye(91)[(cells[wrong] + 1) % 90]
    monkeypatch.setattr("evaluation.metrics.embed_images", lambda *_: embeds)
    monkeypatch.setattr(
        "evaluation.metrics.caption_vectors",
        lambda _, things: torch.stack([torch.eye(91)[place.get(int(what), 90)] for what in things]),
    )
    scores = evaluate(model, split)
    assert scores["seen_accuracy"] == 1
    assert scores["unseen_accuracy"] == pytest.approx(1 - len(wrong) / int(is_unseen.sum()))
    assert 0.1 < is_unseen.float().mean() < 0.3


def test_digit_accuracies_by_hand():
    assert digit_accuracies(SIMILARITY, LABELS) == pytest.approx([1 / 2, 1, 1])


def over_all_orders(measure, similarity, relevant):
    """Mean of `measure` over every order of the items that agrees with the similarities, each equally likely."""
    ranks = [
        order
        for order in itertools.permutations(range(len(similarity)))
        if all(similarity[i] >= similarity[j] for i, j in itertools.pairwise(order))
    ]
    return statistics.mean(measure([relevant[i] for i in order]) for order in ranks)


def plain_average_precision(right):
    return statistics.mean(sum(right[: i + 1]) / (i + 1) for i in range(len(right)) if right[i])


TIES = [
    ([0.9, 0.8, 0.7, 0.6], [1, 0, 1, 0]),  # none: (1 + 2/3) / 2
    ([0.5, 0.5, 0.5, 0.5, 0.5], [0, 1, 0, 1, 1]),
    ([0.1, 0.7, 0.7, 0.7, 0.1, 0.9], [1, 0, 1, 0, 0, 0]),
    ([0.2, 0.2, 0.8, 0.8, 0.8, 0.2], [1, 1, 0, 1, 1, 0]),
    ([0.3, 0.3, 0.3, 0.6, 0.6, 0.6], [0, 0, 0, 1, 1, 1]),  # perfect
]


@pytest.mark.parametrize(("similarity", "relevant"), TIES)
def test_ties_count_with_the_mean_over_their_orders(similarity, relevant):
    s, r = torch.tensor(similarity), torch.tensor(relevant).bool()
    expected = over_all_orders(plain_average_precision, similarity, relevant)
    assert average_precision(s, r).item() == pytest.approx(expected)
    for k in range(1, len(similarity) + 1):
        share = over_all_orders(lambda right: sum(right[:k]) / k, similarity, relevant)  # noqa: B023
        assert precision_at_k(s, r, k).item() == pytest.approx(share)
        hit = over_all_orders(lambda right: float(any(right[:k])), similarity, relevant)  # noqa: B023
        assert recall_at_k(s[None], r[None], k).item() == pytest.approx(hit)


def test_average_precision_by_hand_and_for_several_queries_at_once():
    assert average_precision(torch.tensor([0.9, 0.8, 0.7, 0.6]), torch.tensor([1, 0, 1, 0]).bool()) == pytest.approx(
        (1 + 2 / 3) / 2
    )
    s, r = torch.tensor([row for row, _ in TIES[2:]]), torch.tensor([1, 0, 0, 0, 1, 1]).bool()
    torch.testing.assert_close(average_precision(s, r), torch.stack([average_precision(row, r) for row in s]))


def test_text_to_image_by_hand():
    # Caption 0 ranks 0 (right), 2, 1 (right), 3: (1 + 2/3) / 2. Captions 1 and 2 have their one image first.
    assert mean_average_precision(SIMILARITY, LABELS) == pytest.approx(((1 + 2 / 3) / 2 + 1 + 1) / 3)
    assert text_to_image_precision(torch.zeros(4, 3), LABELS) == pytest.approx((2 * 2 / 4 + 1 / 4 + 1 / 4) / 4)


def test_a_perfect_model_with_equal_captions_scores_one():
    texts = torch.arange(10).repeat(10)  # ten copies of each caption
    images = torch.arange(30) % 10
    similarity = torch.eye(10)[images] @ torch.eye(10)[texts].T
    assert (recall_at_k(similarity, images[:, None] == texts, 1) == 1).all()
    assert mean_average_precision(torch.eye(10)[images], images) == 1
    assert image_to_image_mean_average_precision(torch.eye(10)[images], images) == 1


def test_image_to_image_leaves_out_the_query_itself():
    angles = torch.tensor([0.0, 0.3, 0.5, 1.5])
    features = torch.stack([angles.cos(), angles.sin()], dim=1)
    # Digit 0 is images 0, 2 and 3. Image 0 finds 1, 2, 3: (1/2 + 2/3) / 2; image 2 finds 1, 0, 3: the same;
    # image 3 finds 2, 1, 0: (1 + 2/3) / 2. Image 1 is alone with its digit and asks nothing.
    expected = (2 * (1 / 2 + 2 / 3) / 2 + (1 + 2 / 3) / 2) / 3
    labels = torch.tensor([0, 1, 0, 0])
    assert image_to_image_mean_average_precision(features, labels) == pytest.approx(expected)


def test_wilson_interval():
    for right, n in ((99, 100), (3, 10), (9959, 10_000)):  # its bounds are where a normal test just rejects
        for bound in wilson_interval(right, n):
            assert abs(right / n - bound) == pytest.approx(1.96 * math.sqrt(bound * (1 - bound) / n))
    low, high = wilson_interval(10, 10)
    assert high == 1
    assert low == pytest.approx(10 / (10 + 1.96**2))
    assert all(wilson_interval(0, n)[0] == 0 and wilson_interval(n, n)[1] == 1 for n in range(1, 1200))


def test_calibration_by_hand():
    probabilities = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.35, 0.65], [0.5, 0.5]])
    labels = torch.tensor([0, 1, 1, 0])  # right, wrong, right, right
    count, confidence, accuracy = reliability(probabilities, labels, bins=5)
    assert count.tolist() == [0, 0, 1, 1, 2]  # 0.5 lies in 0.4..0.6
    assert confidence.tolist() == pytest.approx([0, 0, 0.5, 0.65, 0.9])
    assert accuracy.tolist() == pytest.approx([0, 0, 1, 1, 0.5])
    expected = (0.5 + 0.35 + 2 * 0.4) / 4
    assert expected_calibration_error(probabilities, labels, bins=5) == pytest.approx(expected)


def test_fit_temperature():
    # Three of four are right with a margin of 1: the best confidence is 3/4, at 1 / temperature = ln 3.
    similarity, labels = torch.tensor([[1.0, 0.0]] * 4), torch.tensor([0, 0, 0, 1])
    temperature = fit_temperature(similarity, labels)
    assert temperature == pytest.approx(1 / math.log(3), rel=1e-3)
    assert expected_calibration_error((similarity / temperature).softmax(dim=1), labels) < 1e-3
    assert fit_temperature(similarity, torch.zeros(4).long()) == pytest.approx(1e-3, rel=1e-3)  # no mistake


def test_geometry_by_hand():
    x, y = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    assert modality_gap(x, y) == pytest.approx(math.hypot(0.5, 0.5))
    assert alignment(x, y) == pytest.approx(1)  # squared distances 2 and 0
    assert uniformity(x) == pytest.approx(-4)  # the one pair's squared distance is 2
    assert uniformity(y) == pytest.approx(0, abs=1e-6)
    many = F.normalize(torch.randn(1500, 5, generator=torch.Generator().manual_seed(0)), dim=1)
    assert uniformity(many) == pytest.approx(torch.pdist(many).square().mul(-2).exp().mean().log().item(), rel=1e-4)
    assert effective_rank(torch.eye(4)) == pytest.approx(4)
    assert effective_rank(y) == pytest.approx(1)
    shares = [0.75, 0.25]
    expected = math.exp(-sum(p * math.log(p) for p in shares))
    assert effective_rank(torch.diag(torch.tensor([3.0, 1.0]))) == pytest.approx(expected)
