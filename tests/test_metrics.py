"""Accuracy, retrieval, calibration and geometry, against numbers computed by hand."""

import math
import statistics

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import average_precision_score

from attributes import combination_ids, measure, unseen_combinations
from captions import combination_description_ids
from clip import CLIP
from evaluation.geometry import (
    accuracy_with_ci,
    alignment,
    expected_calibration_error,
    fit_temperature,
    reliability,
    uniformity,
    wilson_interval,
)
from evaluation.metrics import (
    caption_accuracy,
    digit_accuracies,
    effective_rank,
    embed_images,
    evaluate,
    modality_gap,
    precision_at_k,
    text_to_image_precision,
)
from evaluation.retrieval import (
    average_precision,
    image_to_image_mean_average_precision,
    mean_average_precision,
    recall_at_k,
)
from my_dataset import Split, load_mnist

# Four images, three captions; images 0 and 1 are digit 0, image 2 is digit 1, image 3 is digit 2.
SIMILARITY = torch.tensor([[0.9, 0.1, 0.0], [0.2, 0.3, 0.1], [0.5, 0.8, 0.0], [0.0, 0.1, 0.7]])
LABELS = torch.tensor([0, 0, 1, 2])


def test_accuracies():
    assert caption_accuracy(SIMILARITY, LABELS) == pytest.approx(3 / 4)  # image 1 goes to caption 1
    assert digit_accuracies(SIMILARITY, LABELS) == pytest.approx([1 / 2, 1, 1])
    found = accuracy_with_ci(SIMILARITY.argmax(dim=1), LABELS)
    assert found == {"accuracy": 3 / 4, "interval": wilson_interval(3, 4), "correct": 3, "images": 4}


def test_text_to_image_finds_the_images_of_each_digit():
    # Caption 0 has two images and finds 0 and 2: one right. Captions 1 and 2 have their one image first.
    assert text_to_image_precision(SIMILARITY, LABELS) == pytest.approx((1 + 1 + 1) / 4)
    # Caption 0 ranks 0 (right), 2, 1 (right), 3: (1 + 2/3) / 2.
    assert mean_average_precision(SIMILARITY, LABELS) == pytest.approx(((1 + 2 / 3) / 2 + 1 + 1) / 3)
    assert text_to_image_precision(torch.eye(3)[LABELS], LABELS) == 1


def test_precision_and_recall_at_k_and_average_precision():
    similarity, relevant = torch.tensor([0.9, 0.6, 0.8, 0.7]), torch.tensor([False, True, True, False])
    # In order of similarity: wrong, right, wrong, right.
    assert [precision_at_k(similarity, relevant, k).item() for k in (1, 2, 4)] == pytest.approx([0, 1 / 2, 1 / 2])
    assert [recall_at_k(similarity, relevant, k).item() for k in (1, 2, 4)] == [0, 1, 1]
    assert average_precision(similarity, relevant).item() == pytest.approx((1 / 2 + 2 / 4) / 2)
    torch.manual_seed(0)
    many, relevant = torch.randn(3, 50), torch.rand(3, 50) < 0.3
    expected = [average_precision_score(*pair) for pair in zip(relevant, many, strict=True)]
    assert average_precision(many, relevant).tolist() == pytest.approx(expected)
    assert average_precision(many, relevant[0])[0] == pytest.approx(expected[0]), "one row of relevant items for all"


def test_image_to_image_leaves_out_the_query_itself():
    angles = torch.tensor([0.0, 0.3, 0.5, 1.5])
    features = torch.stack([angles.cos(), angles.sin()], dim=1)
    # Digit 0 is images 0, 2 and 3. Image 0 finds 1, 2, 3: (1/2 + 2/3) / 2; image 2 finds 1, 0, 3: the same;
    # image 3 finds 2, 1, 0: (1 + 2/3) / 2. Image 1 is alone with its digit and asks nothing.
    expected = (2 * (1 / 2 + 2 / 3) / 2 + (1 + 2 / 3) / 2) / 3
    assert image_to_image_mean_average_precision(features, torch.tensor([0, 1, 0, 0])) == pytest.approx(expected)


def test_evaluate_computes_the_texts_anew_and_keeps_the_mode():
    torch.manual_seed(0)
    model = CLIP(8, width=2, captions="digit")
    images = torch.randint(128, (30, 28, 28), dtype=torch.uint8)
    before = model.zero_shot_classifier()
    with torch.no_grad():
        model.towers["text"].table.weight.neg_()
    assert not torch.allclose(before, model.zero_shot_classifier())
    scores = evaluate(model, Split(images, torch.arange(30) % 10))
    assert model.training
    assert 1 <= scores.pop("effective_rank") <= 8
    assert 0 < scores.pop("modality_gap") <= 2
    assert all(0 <= score <= 1 for score in scores.values())
    digits = [scores[f"accuracy_{digit}"] for digit in range(10)]
    assert statistics.mean(digits) == pytest.approx(scores["digit_accuracy"])  # three images each


def test_images_inverted_on_purpose_are_embedded_without_a_warning(recwarn):
    model, images = CLIP(8, width=2, captions="digit"), torch.zeros(1, 28, 28)
    embed_images(model, 1 - images)
    assert not recwarn.list
    with pytest.warns(UserWarning, match="bright"):
        model.eval().encode_image(1 - images)


def test_seen_and_unseen_combinations_are_measured_apart(data_path, monkeypatch):
    """Perfect embeddings of the combinations, but each second image of an unseen one has that of another."""
    split, model = Split(*(x[:1000] for x in load_mnist("val", data_path))), CLIP(8, width=2, unseen_seed=4)
    combinations = combination_ids(split.labels, measure(split.images))
    is_unseen = unseen_combinations(4).flatten()[combinations]
    wrong = is_unseen.nonzero().flatten()[::2]
    size = len(combination_description_ids())
    embeds = torch.eye(size)[combinations]
    embeds[wrong] = torch.eye(size)[(combinations[wrong] + 1) % size]
    monkeypatch.setattr("evaluation.metrics.embed_images", lambda *_: embeds)
    monkeypatch.setattr(model, "embed_descriptions", lambda ids: torch.eye(size)[: len(ids)])
    scores = evaluate(model, split)
    assert scores["seen_accuracy"] == 1
    assert scores["unseen_accuracy"] == pytest.approx(1 - len(wrong) / int(is_unseen.sum()))
    assert 0.1 < is_unseen.float().mean() < 0.3


def test_wilson_interval():
    for right, n in ((99, 100), (3, 10), (9959, 10_000)):  # its bounds are where a normal test just rejects
        for bound in wilson_interval(right, n):
            assert abs(right / n - bound) == pytest.approx(1.96 * math.sqrt(bound * (1 - bound) / n))
    assert all(wilson_interval(0, n)[0] == 0 and wilson_interval(n, n)[1] == 1 for n in range(1, 1200))


def test_calibration():
    probabilities = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.35, 0.65], [0.5, 0.5]])
    labels = torch.tensor([0, 1, 1, 0])  # right, wrong, right, right
    count, confidence, accuracy = reliability(probabilities, labels, bins=5)
    assert count.tolist() == [0, 0, 1, 1, 2]  # 0.5 lies in 0.4..0.6
    assert confidence.tolist() == pytest.approx([0, 0, 0.5, 0.65, 0.9])
    assert accuracy.tolist() == pytest.approx([0, 0, 1, 1, 0.5])
    expected = (0.5 + 0.35 + 2 * 0.4) / 4
    assert expected_calibration_error(probabilities, labels, bins=5) == pytest.approx(expected)


def test_the_fitted_temperature_gives_the_best_confidence():
    # Three of four are right with a margin of 1: the best confidence is 3/4, at 1 / temperature = ln 3.
    similarity, labels = torch.tensor([[1.0, 0.0]] * 4), torch.tensor([0, 0, 0, 1])
    temperature = fit_temperature(similarity, labels)
    assert temperature == pytest.approx(1 / math.log(3), rel=1e-3)
    assert expected_calibration_error((similarity / temperature).softmax(dim=1), labels) < 1e-3
    assert fit_temperature(similarity, torch.zeros(4).long()) < 0.1  # no mistake


def test_geometry():
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
