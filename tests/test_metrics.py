"""Accuracy, retrieval and calibration, against numbers computed by hand."""

import math

import pytest
import torch
from sklearn.metrics import average_precision_score

from attributes import combination_ids, measure, unseen_combinations
from benchmarks.losses import effective_rank, modality_gap
from captions import combination_description_ids
from clip import CLIP
from evaluation.metrics import caption_accuracy, embed_images, evaluate, precision_at_k, text_to_image_precision
from evaluation.retrieval import average_precision, recall_at_k
from evaluation.sections import accuracy_with_ci, calibration, expected_calibration_error, linear_probe
from my_dataset import Split, load_mnist

# Four images, three captions; images 0 and 1 are digit 0, image 2 is digit 1, image 3 is digit 2.
SIMILARITY = torch.tensor([[0.9, 0.1, 0.0], [0.2, 0.3, 0.1], [0.5, 0.8, 0.0], [0.0, 0.1, 0.7]])
LABELS = torch.tensor([0, 0, 1, 2])


def test_accuracies():
    assert caption_accuracy(SIMILARITY, LABELS) == pytest.approx(3 / 4)  # image 1 goes to caption 1
    found = accuracy_with_ci(SIMILARITY.argmax(dim=1), LABELS)
    assert (found["accuracy"], found["correct"], found["images"]) == (3 / 4, 3, 4)


def test_the_interval_ends_where_a_normal_test_just_rejects():
    for right, n in ((99, 100), (3, 10), (9959, 10_000), (0, 7), (7, 7)):
        interval = accuracy_with_ci(torch.arange(n) < right, torch.ones(n))["interval"]
        assert 0 <= interval[0] <= right / n <= interval[1] <= 1
        for bound in interval:
            distance = 1.96 * math.sqrt(bound * (1 - bound) / n)
            assert abs(right / n - bound) == pytest.approx(distance, rel=1e-3, abs=1e-6)


def test_text_to_image_finds_the_images_of_each_digit():
    # Caption 0 has two images and finds 0 and 2: one right. Captions 1 and 2 have their one image first.
    assert text_to_image_precision(SIMILARITY, LABELS) == pytest.approx((1 + 1 + 1) / 4)
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
    assert all(0 <= score <= 1 for score in scores.values())


def test_images_inverted_on_purpose_are_embedded_without_a_warning(recwarn):
    model, images = CLIP(8, width=2, captions="digit"), torch.zeros(1, 28, 28)
    embed_images(model, 1 - images)
    assert not recwarn.list
    with pytest.warns(UserWarning, match="bright"):
        model.eval().encode_image(1 - images)


def test_seen_and_unseen_combinations_are_measured_apart(data_path, monkeypatch):
    """Every image of a combination is recognised, but each second one of an unseen combination as another."""
    split, model = Split(*(x[:1000] for x in load_mnist("val", data_path))), CLIP(8, width=2, unseen_seed=4)
    combinations = combination_ids(split.labels, measure(split.images))
    is_unseen = unseen_combinations(4).flatten()[combinations]
    wrong = is_unseen.nonzero().flatten()[::2]
    scores = torch.eye(len(combination_description_ids()))[combinations]
    scores[wrong] = scores[wrong].roll(1, dims=1)
    monkeypatch.setattr(model, "log_probs", lambda *_: scores)
    scores = evaluate(model, split)
    assert scores["seen_accuracy"] == 1
    assert scores["unseen_accuracy"] == pytest.approx(1 - len(wrong) / int(is_unseen.sum()))
    assert 0.1 < is_unseen.float().mean() < 0.3


def test_calibration():
    probabilities = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.35, 0.65], [0.5, 0.5]])
    labels = torch.tensor([0, 1, 1, 0])  # right, wrong, right, right; 0.5 lies in the bin 0.4..0.6
    expected = (0.5 + 0.35 + 2 * 0.4) / 4
    assert expected_calibration_error(probabilities, labels, bins=5) == pytest.approx(expected)
    # Three of four are right with a margin of 1: the confidence is 3/4 at 1 / temperature = ln 3.
    similarity, labels = torch.tensor([[1.0, 0.0]] * 4), torch.tensor([0, 0, 0, 1])
    found = calibration(similarity, labels, 1 / math.log(3))
    assert found["expected_calibration_error"] < 1e-6
    assert found["cross_entropy"] == pytest.approx(-(3 * math.log(3 / 4) + math.log(1 / 4)) / 4)


def test_a_linear_probe_finds_what_a_line_separates():
    features, labels = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]]), torch.tensor([3, 3, 5, 5])
    assert linear_probe(features, labels, features[[0, 3]], torch.tensor([3, 3]))["accuracy"] == 1 / 2


def test_geometry():
    x, y = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    assert modality_gap(x, y) == pytest.approx(math.hypot(0.5, 0.5))
    assert effective_rank(torch.eye(4)) == pytest.approx(4)
    assert effective_rank(y) == pytest.approx(1)
    expected = math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
    assert effective_rank(torch.diag(torch.tensor([3.0, 1.0]))) == pytest.approx(expected)
