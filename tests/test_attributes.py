import itertools
import math

import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt
from skimage.morphology import skeletonize

from attributes import (
    SLANT_BOUNDS,
    SLANT_CLEAR,
    THICKNESS_BOUNDS,
    THICKNESS_CLEAR,
    from_bounds,
    grade,
    is_clear,
    measure,
    unseen_cells,
)
from my_dataset import load_mnist

ENLARGED = 4


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


def test_thickness_is_that_along_the_skeleton(images):
    thickness, expected = measure(images)[0].numpy(), np.array([thickness_on_the_skeleton(image) for image in images])
    assert np.corrcoef(thickness, expected)[0, 1] > 0.97
    assert abs((thickness - expected).mean()) < 0.1
    assert abs(thickness - expected).mean() < 0.15


def test_slant_is_that_of_the_moments_and_positive_to_the_right(images):
    expected = [slant_by_moments(image) for image in images[:100].tolist()]
    torch.testing.assert_close(measure(images[:100])[1], torch.tensor(expected), atol=1e-4, rtol=0)
    bar = torch.zeros(28, 28)
    bar[6:22, 13:15] = 1
    to_the_right = torch.stack([row.roll((14 - y) // 2) for y, row in enumerate(bar)])  # its upper rows
    slants = measure(torch.stack([bar, to_the_right, to_the_right.flip(1)]))[1]
    assert slants.tolist() == pytest.approx([0, math.atan(1 / 2), -math.atan(1 / 2)], abs=0.03)


def test_images_in_any_form_measure_the_same(images):
    thickness, slant = measure(images)
    for same in (images[:, None], images.float() / 255, images[:, None].double() / 255):
        for a, b in zip(measure(same), (thickness, slant), strict=True):
            assert (a.shape, a.dtype) == ((300,), torch.float32)
            torch.testing.assert_close(a, b, atol=1e-4, rtol=0)
    for alone, together in zip(measure(images[7:8]), (thickness, slant), strict=True):
        torch.testing.assert_close(alone[0], together[7], atol=1e-4, rtol=0)


def test_an_image_without_ink_measures_nothing(images):
    for image in (images[0], images[0] / 255):
        dark = torch.stack([torch.zeros_like(image), image])
        assert [values[0].item() for values in measure(dark)] == [0, 0]
        assert measure(dark)[0][1] > 1


def test_bounds_part_the_training_images_into_thirds_and_the_outer_ones_into_halves(data_path):
    parts = [measure(load_mnist(split, data_path).images) for split in ("train", "val")]
    for values, bounds in zip(map(torch.cat, zip(*parts, strict=True)), (THICKNESS_BOUNDS, SLANT_BOUNDS), strict=True):
        assert len(values) == 60_000
        quantiles = values.quantile(torch.tensor([1 / 6, 1 / 3, 2 / 3, 5 / 6]))
        torch.testing.assert_close(quantiles, torch.tensor(bounds), atol=0.005, rtol=0)


def test_steps_outer_halves_and_distances_by_hand():
    values, bounds = torch.tensor([-9.0, 1.0, 1.9, 2.0, 4.0, 4.9, 5.0, 7.9, 8.0, 9.0]), (1.0, 2.0, 5.0, 8.0)
    step, is_outer = grade(values, bounds)
    assert step.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 2]
    assert is_outer.tolist() == [True, *[False] * 7, True, True]
    assert from_bounds(values, bounds[1:3]).tolist() == pytest.approx([11, 1, 0.1, 0, 1, 0.1, 0, 2.9, 3, 4], abs=1e-6)
    near, far = 0.9, 1.1
    thickness = THICKNESS_BOUNDS[1] - THICKNESS_CLEAR * torch.tensor([far, far, near, near])
    slant = SLANT_BOUNDS[2] + SLANT_CLEAR * torch.tensor([far, near, far, near])
    assert is_clear(thickness, slant).tolist() == [True, False, False, False]


@pytest.mark.parametrize("seed", range(5))
def test_unseen_cells_leave_each_value_with_each_digit(seed):
    cells = unseen_cells(seed)
    assert (cells.shape, cells.dtype) == ((10, 3, 3), torch.bool)
    assert cells.sum() == 18
    assert set(cells.sum(dim=(1, 2)).tolist()) <= {1, 2}, "one or two for each digit"
    assert (cells.sum(dim=0) == 2).all(), "each combination of thickness and slant with two digits"
    for digit in range(10):
        for (t, s), (other_t, other_s) in itertools.combinations(cells[digit].nonzero().tolist(), 2):
            assert t != other_t
            assert s != other_s
    assert torch.equal(cells, unseen_cells(seed))
    assert not torch.equal(cells, unseen_cells(seed + 1))
