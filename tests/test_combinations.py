"""The evaluation of combinations, on models of which every result is known; and with a third attribute."""

import math
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr

from attributes import ATTRIBUTES, combination_ids, measure, unseen_combinations
from captions import LABEL_ID, attribute_captions, combination_description_ids
from clip import CLIP
from conftest import ROOT
from evaluation.combinations import (
    area_under,
    best_harmonic_mean,
    combination_accuracies,
    combination_parts,
    evaluate_attributes,
    is_unambiguous,
    rank_correlation,
    seen_unseen_curve,
)
from my_dataset import Split, load_mnist

UNSEEN = unseen_combinations().flatten()
# Each attribute is a place on a half circle, with the bins a quarter apart; the extreme grades lie beyond its ends.
DIAGONAL = math.sqrt(0.5)
PLACES = torch.tensor([[DIAGONAL, -DIAGONAL], [1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [-DIAGONAL, -DIAGONAL]])


class KnownModel:
    """A model whose texts are embedded as what they claim: a direction for each digit, a place for each attribute."""

    captions, unseen = attribute_captions(), unseen_combinations()

    def embed_descriptions(self, ids: torch.Tensor) -> torch.Tensor:
        claims = self.captions.claims[ids].float()
        grades = [claims[:, [LABEL_ID[grade] for grade in attribute.grades]] for attribute in ATTRIBUTES]
        return F.normalize(torch.cat([claims[:, :10], *(own @ PLACES for own in grades)], dim=1), dim=1)

    def zero_shot_classifier(self) -> torch.Tensor:
        return self.embed_descriptions(self.captions.digit_ids)

    def part_logits(self, images: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
        return 40 * images @ texts.T

    part_probs, log_probs = CLIP.part_probs, CLIP.log_probs


def features_of(digits: torch.Tensor, places: list[torch.Tensor]) -> torch.Tensor:
    circles = [f(math.pi * place)[:, None] for place in places for f in (torch.cos, torch.sin)]
    return torch.cat([torch.eye(10)[digits], *circles], dim=1) / math.sqrt(1 + len(places))


@pytest.fixture(scope="module")
def split(data_path) -> Split:
    return load_mnist("val", data_path)


@pytest.fixture(scope="module")
def places(split) -> list[torch.Tensor]:
    """For each attribute 0..1 along the half circle, in the order of the values; edges lie at 1/4 and 3/4."""
    found = []
    for attribute, values in zip(ATTRIBUTES, measure(split.images).T, strict=True):
        points = (float(values.min()), *attribute.edges[1:3], float(values.max()))
        found.append(torch.from_numpy(np.interp(values, points, (0, 0.25, 0.75, 1))).float())
    return found


def test_perfect_features_score_one(split, places):
    scores = evaluate_attributes(KnownModel(), features_of(split.labels, places), split)
    for name in ("seen", "unseen", "seen_unambiguous", "unseen_unambiguous", "digit"):
        assert scores[name]["accuracy"] == scores[name]["interval"][1] == 1, name
    assert scores["best_harmonic_mean"] == scores["auc"] == 1
    for group in ("seen", "unseen"):
        for part in ("digit", "thickness", "slant"):
            assert scores["parts"][group][part]["accuracy"] == 1
    rounded = features_of(split.labels, [(2 * place).round() / 2 for place in places])
    assert evaluate_attributes(KnownModel(), rounded, split)["unseen_map"] == pytest.approx(1)
    for attribute in ("thickness", "slant"):
        ranks = scores["rank_correlation"][attribute]
        assert ranks["by_digit"] == pytest.approx([1] * 10, abs=0.05)  # probabilities of float32 tie
        assert ranks["interval"] == pytest.approx((1, 1), abs=0.05)

    values = measure(split.images)
    is_unseen = UNSEEN[combination_ids(split.labels, values)]
    assert scores["unseen"]["images"] == int(is_unseen.sum()) == len(split.labels) - scores["seen"]["images"]
    assert scores["unseen_unambiguous"]["images"] == int((is_unseen & is_unambiguous(values)).sum())


def test_thin_taken_for_thick_leaves_the_medium_ones_right(split, places):
    thickness, slant = places
    scores = evaluate_attributes(KnownModel(), features_of(split.labels, [1 - thickness, slant]), split)
    combinations = combination_ids(split.labels, measure(split.images))
    is_medium = combination_parts(combinations)["thickness"] == 1
    for name, which in (("seen", ~UNSEEN[combinations]), ("unseen", UNSEEN[combinations])):
        share = pytest.approx(is_medium[which].float().mean().item())
        assert scores[name]["accuracy"] == share
        shares = scores["parts"][name]
        assert shares["thickness"]["accuracy"] == share
        assert shares["digit"]["accuracy"] == shares["slant"]["accuracy"] == 1
    assert scores["rank_correlation"]["thickness"]["minimum"] == pytest.approx(-1, abs=0.05)
    assert scores["rank_correlation"]["slant"]["minimum"] == pytest.approx(1, abs=0.05)
    assert scores["unseen_map"] < 0.9


def test_a_wrong_digit_leaves_the_other_parts_right(split, places):
    scores = evaluate_attributes(KnownModel(), features_of((split.labels + 1) % 10, places), split)
    assert scores["seen"]["accuracy"] == scores["auc"] == scores["digit"]["accuracy"] == 0
    assert [share["accuracy"] for share in scores["parts"]["unseen"].values()] == [0, 1, 1]


def test_a_model_that_answers_with_seen_combinations_alone_has_no_unseen_one_right(split, places):
    similarity = features_of(split.labels, places) @ KnownModel().embed_descriptions(combination_description_ids()).T
    scores = combination_accuracies(similarity.masked_fill(UNSEEN, -torch.inf), split, UNSEEN)
    assert scores["seen"]["accuracy"] == 1
    assert scores["unseen"]["accuracy"] == scores["auc"] == scores["best_harmonic_mean"] == 0
    wrong = sum(1 - share["accuracy"] for share in scores["parts"]["unseen"].values())
    assert wrong == pytest.approx(1, abs=0.05)  # the nearest seen combination mostly differs in one part


def test_the_seen_unseen_curve_by_hand():
    """Combinations 0 and 1 are seen, 2 is not; four images, of 0, 1, 2 and 2."""
    scores = torch.tensor([[0.9, 0.1, 0.6], [0.2, 0.3, 0.4], [0.7, 0.1, 0.5], [0.1, 0.2, 0.9]])
    seen, unseen = seen_unseen_curve(scores, torch.tensor([0, 1, 2, 2]), torch.tensor([False, False, True]))
    # The margins are 0.3, -0.1, 0.2, -0.7: seen ones are right up to theirs, unseen ones above.
    points = list(zip(seen.tolist(), unseen.tolist(), strict=True))
    assert points == [(1, 0), (1, 0.5), (0.5, 0.5), (0.5, 1), (0, 1)]
    assert area_under(seen, unseen) == pytest.approx(0.5 * 0.5 + 0.5 * 1)
    assert best_harmonic_mean(seen, unseen) == pytest.approx(2 / 3)


def test_rank_correlation_and_its_interval():
    generator = torch.Generator().manual_seed(1)
    values, labels = torch.randn(400, generator=generator), torch.arange(400) % 2
    scores = values.exp() + labels * torch.randn(400, generator=generator)  # digit 0: in the same order
    found = rank_correlation(scores, values, labels)
    expected = spearmanr(scores[labels == 1], values[labels == 1]).statistic
    assert found["by_digit"] == pytest.approx([1, expected])
    assert found["minimum"] == pytest.approx(expected)
    low, high = found["interval"]
    assert expected - 0.3 < low < expected < high < expected + 0.3
    assert rank_correlation(torch.ones(400), values, labels)["by_digit"] == [0, 0]


THIRD_ATTRIBUTE = """
import sys
import torch
import attributes

names = ("tiny", "small", "middling", "large", "huge")
chinese = ("极小", "偏小", "大小适中", "偏大", "极大")
words = {name: ((name,), (f"of a size that is {name}",), (han,)) for name, han in zip(names, chinese)}
columns = lambda x: (x > 0.5).any(dim=1).sum(dim=1).float()
size = attributes.Attribute("size", "{:.0f} columns", columns, (9, 12, 18, 19), 0, 0.5, words)
attributes.ATTRIBUTES = (*attributes.ATTRIBUTES, size)
attributes.COMBINATIONS = (*attributes.COMBINATIONS, attributes.BINS)

import captions
captions.PARAPHRASES, captions.CHINESE = 6, 2  # for there are 15,309 descriptions
from clip import CLIP
from evaluation import pictures, table
from evaluation.combinations import evaluate_attributes
from my_dataset import Split, load_mnist

split = Split(*(x[:2000] for x in load_mnist("val", sys.argv[1])))
model, features = CLIP(8, width=2).eval(), torch.nn.functional.normalize(torch.randn(2000, 8), dim=1)
table.print_table({"attributes": evaluate_attributes(model, features, split)})
for draw in (pictures.attribute_search, pictures.attribute_matrix):
    figure = draw(model, split, features)
    labels = [label for axes in figure.axes for label in (axes.title, *axes.texts, *axes.get_xticklabels())]
    print(draw.__name__, *(label.get_text() for label in labels))
"""


def test_a_third_attribute_shows_in_table_and_figures_without_a_change(data_path):
    command = [sys.executable, "-c", THIRD_ATTRIBUTE, str(data_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for name in ("parts, unseen, size", "rank correlation, size, minimum"):
        assert f"  {name} " in done.stdout
    _, search, matrix = re.split("attribute_(?:search|matrix) ", done.stdout)
    assert "a tiny digit" in search
    assert " columns" in search
    assert "a thin small four leaning left" in matrix
