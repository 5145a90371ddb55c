import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt
from skimage.morphology import skeletonize

from attributes import ATTRIBUTES, all_combinations, bins, combination_ids, measure, unseen_combinations
from conftest import ROOT
from evaluation.claims import format_values
from evaluation.combinations import is_unambiguous
from my_dataset import load_mnist

ENLARGED = 4
THICKNESS, SLANT = ATTRIBUTES


@pytest.fixture(scope="module")
def images(data_path) -> torch.Tensor:
    return load_mnist("val", data_path).images[:300]


def thickness_on_the_skeleton(image: torch.Tensor) -> float:
    """As Morpho-MNIST: on an enlarged image, twice the mean distance to the outline along the skeleton."""
    large = torch.nn.functional.interpolate(image[None, None].float(), scale_factor=ENLARGED, mode="bicubic")
    ink = np.pad(large[0, 0].numpy() > 127.5, 1)
    return 2 * distance_transform_edt(ink)[skeletonize(ink)].mean() / ENLARGED


def slant_by_moments(image: list) -> float:
    """arctan(-u11 / u02), a pixel at a time."""
    pixels = [(x, y, value) for y, row in enumerate(image) for x, value in enumerate(row)]
    ink = sum(value for *_, value in pixels)
    mean_x, mean_y = (sum(pixel[k] * pixel[2] for pixel in pixels) / ink for k in (0, 1))
    u11 = sum((x - mean_x) * (y - mean_y) * value for x, y, value in pixels)
    return math.atan(-u11 / sum((y - mean_y) ** 2 * value for _, y, value in pixels))


def test_thickness_is_measured_as_along_the_skeleton(images):
    thickness = measure(images)[:, 0].numpy()
    expected = np.array([thickness_on_the_skeleton(image) for image in images])
    assert np.corrcoef(thickness, expected)[0, 1] > 0.97
    assert abs((thickness - expected).mean()) < 0.1
    assert abs(thickness - expected).mean() < 0.15


def test_slant_is_that_of_the_moments_and_positive_to_the_right(images):
    expected = [slant_by_moments(image) for image in images[:100].tolist()]
    torch.testing.assert_close(measure(images[:100])[:, 1], torch.tensor(expected), atol=1e-4, rtol=0)
    bar = torch.zeros(28, 28)
    bar[6:22, 13:15] = 1
    leaning_right = torch.stack([row.roll((14 - y) // 2) for y, row in enumerate(bar)])  # the upper rows move right
    slants = measure(torch.stack([bar, leaning_right, leaning_right.flip(1)]))[:, 1]
    assert slants.tolist() == pytest.approx([0, math.atan(1 / 2), -math.atan(1 / 2)], abs=0.03)


def test_an_image_has_the_same_values_in_every_form_and_batch_and_zeros_without_ink(images):
    values = measure(images)
    assert (values.shape, values.dtype) == ((300, 2), torch.float32)
    for same in (images[:, None], images.float() / 255, images[:, None].double() / 255):
        torch.testing.assert_close(measure(same), values, atol=1e-4, rtol=0)
    torch.testing.assert_close(measure(images[7:8]), values[7:8], atol=1e-4, rtol=0)
    for image in (images[0], images[0] / 255):
        beside_no_ink = measure(torch.stack([torch.zeros_like(image), image]))
        torch.testing.assert_close(beside_no_ink, torch.stack([torch.zeros(2), values[0]]), atol=1e-4, rtol=0)


def test_edges_are_the_sixths_of_the_training_images_with_the_middle_two_joined(data_path):
    images = torch.cat([load_mnist(split, data_path).images for split in ("train", "val")])
    assert len(images) == 60_000
    values = torch.cat([measure(part) for part in images.split(10_000)])
    quantiles = values.quantile(torch.tensor([1 / 6, 1 / 3, 2 / 3, 5 / 6]), dim=0).T  # [2, 4]
    torch.testing.assert_close(quantiles, torch.tensor([one.edges for one in ATTRIBUTES]), atol=0.005, rtol=0)


def test_grades_bins_and_distances_by_hand():
    assert THICKNESS.edges == (2.009, 2.302, 2.855, 3.271)
    values = torch.tensor([0.0, 2.0, 2.009, 2.3, 2.31, 2.8, 2.855, 3.27, 3.3, 9.0])
    assert THICKNESS.grade(values).tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert THICKNESS.bin(values).tolist() == [0, 0, 0, 0, 1, 1, 2, 2, 2, 2]
    distances = [2.302, 0.302, 0.293, 0.002, 0.008, 0.055, 0, 0.415, 0.445, 6.145]
    assert THICKNESS.distance_to_edges(values).tolist() == pytest.approx(distances, abs=1e-5)
    to_extremes = [2.009, 0.009, 0, 0.291, 0.301, 0.471, 0.416, 0.001, 0.029, 5.729]
    assert THICKNESS.distance_to_edges(values, extremes=True).tolist() == pytest.approx(to_extremes, abs=1e-5)
    assert THICKNESS.grades == ("very thin", "thin", "medium", "thick", "very thick")
    assert SLANT.bins == ("leaning left", "upright", "leaning right")


def test_an_image_is_unambiguous_if_all_its_values_lie_far_from_the_edges_of_the_bins():
    far, near = 1.1, 0.9
    thickness = 2.302 - THICKNESS.clear * torch.tensor([far, far, near, near])
    slant = 0.220 + SLANT.clear * torch.tensor([far, near, far, near])
    values = torch.stack([thickness, slant], dim=1)
    assert is_unambiguous(values).tolist() == [True, False, False, False]
    assert bins(values).tolist() == [[0, 2]] * 4
    assert format_values(torch.tensor([2.52, 0.3])) == "2.5 px, +0.30 rad"


def test_combinations_count_the_digit_first_and_the_last_attribute_fastest():
    assert all_combinations() == list(itertools.product(range(10), range(3), range(3)))
    values = torch.tensor([[2.0, -0.1], [2.5, 0.3], [4.0, 0.0]])  # thin and left, medium and right, thick and upright
    assert combination_ids(torch.tensor([0, 4, 9]), values).tolist() == [0, 4 * 9 + 5, 9 * 9 + 7]


@pytest.mark.parametrize("seed", range(5))
def test_unseen_combinations_leave_each_bin_with_each_digit(seed):
    unseen = unseen_combinations(seed)
    assert (unseen.shape, unseen.dtype) == ((10, 3, 3), torch.bool)
    assert unseen.sum() == 18, "a fifth of 90"
    assert set(unseen.sum(dim=(1, 2)).tolist()) == {1, 2}, "one or two of each digit"
    assert (unseen.sum(dim=0) == 2).all(), "each combination of bins with two digits"
    assert unseen.sum(dim=1).max() == unseen.sum(dim=2).max() == 1, "each bin of a digit once at most"
    assert torch.equal(unseen, unseen_combinations(seed))


def test_the_unseen_combinations_of_seed_0_stay_the_same():
    by_digit = ["11 22", "02 20", "01 10", "02 11", "00 21", "00 12", "22", "01 10", "12 21", "20"]
    expected = [f"{digit}{bins}" for digit, own in enumerate(by_digit) for bins in own.split()]
    assert ["".join(map(str, place)) for place in unseen_combinations(0).nonzero().tolist()] == expected


# Size, by the width of the bounding box, is added as any other attribute would be. The rest of the program follows.
THIRD_ATTRIBUTE = """
import attributes
import torch

def width(x):
    return (x > 0.5).any(dim=1).sum(dim=1).float()

names = ("very narrow", "narrow", "middling", "wide", "very wide")
chinese = ("极窄", "偏窄", "宽窄适中", "偏宽", "极宽")
words = {name: ((name,), (f"of {name} size",), (han,)) for name, han in zip(names, chinese)}
size = attributes.Attribute("size", "{:.0f} px", width, (10.5, 12.5, 15.5, 17.5), 0.4, 1.0, words)
attributes.ATTRIBUTES += (size,)
attributes.COMBINATIONS = (10, 3, 3, 3)

import captions
captions.PARAPHRASES, captions.CHINESE = 6, 2  # for there are 15,309 descriptions
from clip import CLIP
from evaluation.claims import parse_claims, short_caption
from evaluation.metrics import evaluate
from my_dataset import MNISTPairs, Split

unseen = attributes.unseen_combinations(0)
assert unseen.shape == (10, 3, 3, 3) and (unseen.sum(dim=0) == 2).all()
for others in ((2, 3), (1, 3), (1, 2)):
    assert unseen.sum(dim=others).max() <= 3, "at least six of the nine with each digit and each bin are seen"

torch.manual_seed(0)
pairs = MNISTPairs("val", "DATA_PATH", unseen=unseen)
batch = next(pairs.epoch(500))
values = attributes.measure(batch.images)
assert values.shape == (500, 3)
digits = batch.labels.facts[:, :10].int().argmax(dim=1)
is_digit = batch.labels.facts[:, captions.LABEL_ID["a digit"]]
assert torch.equal(captions.image_facts(digits, values)[is_digit], batch.labels.facts[is_digit])
assert not unseen.flatten()[attributes.combination_ids(digits, values)[is_digit]].any()
positive, ignored = batch.labels.match()
assert positive.diagonal().all() and 0 < ignored.sum() < positive.sum()
for text, claims in zip(batch.texts.strings(), batch.labels.claims):
    claims[captions.LABEL_ID["a digit"]] = False
    assert torch.equal(parse_claims(text), claims), text
own = [i for i, label in enumerate(captions.LABELS) if label.removeprefix("not ") in names]
assert 0.4 < batch.labels.claims[:, own].any(dim=1).float().mean() < 0.7
assert short_caption(7, [3, captions.UNSAID, 4]) == "a thick very wide seven"

model = CLIP(8, width=2)
model.loss(batch).backward()
metrics = evaluate(model, Split(pairs.images[:1000], pairs.labels[:1000]))
assert 0 <= metrics["unseen_accuracy"] < 0.1
"""


def test_a_third_attribute_is_one_more_entry(data_path):
    code = THIRD_ATTRIBUTE.replace("DATA_PATH", str(data_path))
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
