import math

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

from attributes import SLANT_BOUNDS, THICKNESS_BOUNDS, is_clear, measure, unseen_cells
from benchmarks.described import SENTENCES, SIDES, Heads, HeadsLoss, bits
from benchmarks.named_attributes import things_to_say
from captions import (
    FIRST_KIND,
    FIRST_SLANT,
    FIRST_THICKNESS,
    Texts,
    Truth,
    described_captions,
    facts_of,
    things_of_cells,
)
from evaluation.described import bootstrapped, described, of_cells, rank_correlation
from evaluation.metrics import caption_vectors
from my_dataset import MNISTPairs, Split, load_mnist
from text_encoder import words_of
from training.settings import Settings
from training.step import TrainingStep

UNSEEN = unseen_cells().flatten()
SMALL_WORDS = {"so", "its", "on", "of", "in", "that", "the", "to", "by", "with", "it", "and", "an", "from", "for"}


class Known(nn.Module):
    """A model whose texts are what they claim: one of ten directions for the digit, and for each attribute a place on
    a half circle, with its three steps a quarter apart. What is unsaid is 0."""

    def __init__(self):
        super().__init__()
        self.captions, self.unseen = described_captions(), unseen_cells()
        self.logit_scale = torch.zeros(())

    def encode_text(self, texts: Texts) -> torch.Tensor:
        claims = self.captions.claims[texts.index // self.captions.phrasings][:, None]
        steps = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])  # then the outer halves
        digit = (claims >> torch.arange(10) & 1).float()
        places = [(claims >> first + torch.arange(5) & 1).float() @ steps for first in (FIRST_THICKNESS, FIRST_SLANT)]
        return nn.functional.normalize(torch.cat([digit, *places], dim=1), dim=1)


def place(values: torch.Tensor, bounds: tuple[float, ...]) -> torch.Tensor:
    """Values [N] -> 0..1 along the half circle, in their order; the bounds of the steps halve their quarters."""
    points = (float(values.min()), *bounds[1:3], float(values.max()))
    return torch.from_numpy(np.interp(values, points, (0, 0.25, 0.75, 1))).float()


def features_of(digits, thickness, slant) -> torch.Tensor:
    angles = [math.pi * x for x in (thickness, slant)]
    circles = [f(angle)[:, None] for angle in angles for f in (torch.cos, torch.sin)]
    return torch.cat([torch.eye(10)[digits], *circles], dim=1) / math.sqrt(3)


@pytest.fixture(scope="module")
def split(data_path) -> Split:
    return load_mnist("val", data_path)


@pytest.fixture(scope="module")
def places(split):
    thickness, slant = measure(split.images)
    return place(thickness, THICKNESS_BOUNDS), place(slant, SLANT_BOUNDS)


def test_perfect_features_score_one(split, places):
    scores = described(Known(), features_of(split.labels, *places), split)
    for name in ("seen", "unseen", "seen_clear", "unseen_clear", "digit"):
        assert scores[name]["accuracy"] == scores[name]["interval"][1] == 1, name
    assert scores["harmonic_mean"] == 1
    for shares in (scores["parts"], scores["binding"]):
        assert all(shares[name][part]["accuracy"] == 1 for name in ("seen", "unseen") for part in shares[name])
    assert 0.9 < scores["unseen_map"] < 1  # an image at two bounds is as far away as one behind a bound
    in_steps = features_of(split.labels, *((2 * place).round() / 2 for place in places))
    assert described(Known(), in_steps, split)["unseen_map"] == pytest.approx(1)
    for ranks in scores["rank_correlation"].values():
        assert ranks["digits"] == pytest.approx([1] * 10, abs=1e-3)  # cosines of float32 tie at the ends
        assert ranks["interval"] == pytest.approx((1, 1), abs=2e-3)

    # Who is counted where.
    look = measure(split.images)
    is_unseen, clear = UNSEEN[facts_of(split.labels, *look)[1]], is_clear(*look)
    assert scores["seen"]["images"] + scores["unseen"]["images"] == len(split.labels)
    assert scores["unseen"]["images"] == int(is_unseen.sum())
    assert scores["unseen_clear"]["images"] == int((is_unseen & clear).sum())


def test_thin_taken_for_thick(split, places):
    thickness, slant = places
    scores = described(Known(), features_of(split.labels, 1 - thickness, slant), split)
    cells = facts_of(split.labels, *measure(split.images))[1]
    is_medium = cells // 3 % 3 == 1
    for name, which in (("seen", ~UNSEEN[cells]), ("unseen", UNSEEN[cells])):
        share = pytest.approx(is_medium[which].float().mean().item())
        assert scores[name]["accuracy"] == share
        for shares in (scores["parts"][name], scores["binding"][name]):
            assert shares["thickness"]["accuracy"] == share
            assert shares["digit"]["accuracy"] == shares["slant"]["accuracy"] == 1
    assert scores["digit"]["accuracy"] == 1
    assert scores["rank_correlation"]["thickness"]["minimum"] == pytest.approx(-1, abs=1e-3)
    assert scores["rank_correlation"]["slant"]["minimum"] == pytest.approx(1, abs=1e-3)
    assert scores["unseen_map"] < 0.9


def test_a_wrong_digit_leaves_the_other_parts_right(split, places):
    scores = described(Known(), features_of((split.labels + 1) % 10, *places), split)
    assert scores["seen"]["accuracy"] == scores["unseen"]["accuracy"] == scores["harmonic_mean"] == 0
    assert scores["digit"]["accuracy"] == 0
    for shares in (scores["parts"], scores["binding"]):
        assert [shares["unseen"][part]["accuracy"] for part in shares["unseen"]] == [0, 1, 1]
    assert scores["rank_correlation"]["thickness"]["minimum"] == pytest.approx(1, abs=1e-3)


def test_who_answers_with_seen_cells_alone_has_no_unseen_one_right(split, places):
    similarity = features_of(split.labels, *places) @ caption_vectors(Known(), things_of_cells()).T
    scores = of_cells(similarity.masked_fill(UNSEEN, -1).argmax(dim=1), split, UNSEEN)
    assert scores["seen"]["accuracy"] == 1
    assert scores["unseen"]["accuracy"] == scores["harmonic_mean"] == 0
    wrong = sum(1 - share["accuracy"] for share in scores["parts"]["unseen"].values())
    assert wrong == pytest.approx(1, abs=0.05)  # the nearest seen cell differs in one part, mostly


def test_rank_correlation_and_its_interval():
    generator = torch.Generator().manual_seed(1)
    values, labels = torch.randn(400, generator=generator), torch.arange(400) % 2
    scores = values.exp() + labels * torch.randn(400, generator=generator)  # digit 0: in the same order
    found = rank_correlation(scores, values, labels)
    expected = spearmanr(scores[labels == 1], values[labels == 1]).statistic
    assert found["digits"] == pytest.approx([1, expected])
    assert found["minimum"] == pytest.approx(expected)
    low, high = found["interval"]
    assert expected - 0.3 < low < expected < high < expected + 0.3
    assert rank_correlation(torch.ones(400), values, labels)["digits"] == [0, 0]

    x, y = scores[:50], values[:50]
    drawn = torch.randint(50, (1000, 50), generator=torch.Generator().manual_seed(3))
    samples = bootstrapped(x, y, torch.Generator().manual_seed(3))
    for i in range(5):
        assert samples[i].item() == pytest.approx(spearmanr(x[drawn[i]], y[drawn[i]]).statistic, abs=1e-5)


def test_sentences_of_another_hand_have_a_word_that_no_caption_has():
    known = {word for sentence in described_captions().sentences for word in words_of(sentence)}
    for text, *_ in SENTENCES:
        assert set(words_of(text)) - known - SMALL_WORDS, text
    whole = [claims for _, *claims in SENTENCES if -1 not in claims]
    unseen = [claims for claims in whole if unseen_cells()[tuple(claims)]]
    assert 4 <= len(unseen) < len(whole) - 4


def test_heads_by_hand():
    facts, _ = facts_of(torch.tensor([3, 0]), torch.tensor([9.0, 2.5]), torch.tensor([-0.5, 0.1]))
    truth = Truth(facts, facts, torch.zeros_like(facts))
    for sizes, share in (((90,), 90), ((10, 3, 3), 90)):  # the softmaxes multiply
        loss = HeadsLoss(sizes, masked=False)
        assert loss(torch.zeros(2, sum(sizes)), truth).item() == pytest.approx(math.log(share))
    right = torch.full((2, 16), -50.0)
    for i, (digit, thickness, slant) in enumerate(((3, 2, 0), (0, 1, 1))):
        right[i, [digit, 10 + thickness, 13 + slant]] = 50
    assert HeadsLoss((10, 3, 3), masked=False)(right, truth).item() == pytest.approx(0)

    # An image of no digit does not count; what is unknown has no part in its softmax.
    empty = torch.tensor([1 << FIRST_KIND], dtype=torch.int32)
    hidden = torch.tensor([1 << FIRST_THICKNESS, 0, 0], dtype=torch.int32)
    three = Truth(torch.cat([facts, empty]), torch.cat([facts, empty]), hidden)
    loss = HeadsLoss((10, 3, 3), masked=True)(torch.zeros(3, 16), three).item()
    assert loss == pytest.approx((math.log(60) + math.log(90)) / 2)


@pytest.mark.parametrize("named", [0, 1, 2])
def test_captions_name_so_many_attributes_and_are_true(named):
    digits, look = torch.arange(10).repeat(20), (1.5 + 2 * torch.rand(200), torch.rand(200) - 0.5)
    facts, _ = facts_of(digits, *look)
    claims = described_captions().claims[things_to_say(facts, named)]
    assert ((claims & ~facts) == 0).all()
    said = torch.stack([bits(claims, *side).any(dim=1) for side in SIDES], dim=1)  # [B, 3]
    assert said[:, 0].all()
    assert (said.sum(dim=1) == 1 + named).all()
    assert said.any(dim=0).tolist() == [True, named > 0, named > 0]


@pytest.mark.parametrize("kind", ["cells", "heads", "masked"])
def test_the_plain_classifiers_train_by_the_same_step(kind, data_path):
    model = Heads(kind, Settings(image_encoder="fast", width=4, embed_dim=16))
    batch = next(MNISTPairs("val", data_path).epoch(60))
    before = model.heads.weight.clone()
    loss = TrainingStep(model, [torch.optim.SGD([{"params": model.parameters(), "peak_lr": 0.1}], lr=0.1)])(batch)[0]
    assert loss.isfinite()
    assert not torch.equal(model.heads.weight, before)
