"""Seven ways to spoil a digit, at five severities each: what a model should bear without having been trained for it.

(With `--augment corrupted` it is trained on milder forms of five of them, all but rotation and translation.)

A corruption takes float images [B, 28, 28] in [0, 1], an amount and a CPU generator, and returns as many such images.
The same generator state gives the same images.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor


def rotation(images: Tensor, degrees: float, generator: Generator) -> Tensor:
    """Each image turned by this angle, to a side drawn by lot. At 90 degrees some digits are no longer themselves."""
    angle = random_signs(len(images), generator) * math.radians(degrees)
    zero = torch.zeros(len(images))
    return affine(images, [[angle.cos(), -angle.sin(), zero], [angle.sin(), angle.cos(), zero]])


def translation(images: Tensor, pixels: float, generator: Generator) -> Tensor:
    """Each image moved this far, along x and along y, to sides drawn by lot; what leaves the frame is lost."""
    shift_x, shift_y = random_signs(2 * len(images), generator).view(2, -1) * pixels / 14  # the frame is -1..1
    one, zero = torch.ones(len(images)), torch.zeros(len(images))
    return affine(images, [[one, zero, shift_x], [zero, one, shift_y]])


def noise(images: Tensor, std: float, generator: Generator) -> Tensor:
    """Gaussian noise on every pixel, cut to [0, 1]."""
    return (images + std * torch.randn(images.shape, generator=generator)).clamp(0, 1)


def blur(images: Tensor, sigma: float, generator: Generator) -> Tensor:
    """A Gaussian filter of this standard deviation in pixels; beyond the frame all is dark."""
    radius = math.ceil(3 * sigma)
    kernel = torch.exp(-((torch.arange(-radius, radius + 1) / sigma) ** 2) / 2)
    kernel = kernel / kernel.sum()
    x = F.conv2d(images[:, None], kernel.view(1, 1, 1, -1), padding=(0, radius))
    return F.conv2d(x, kernel.view(1, 1, -1, 1), padding=(radius, 0))[:, 0].clamp(0, 1)


def contrast(images: Tensor, factor: float, generator: Generator) -> Tensor:
    """Each pixel's distance from its image's mean, times this factor."""
    mean = images.mean(dim=(1, 2), keepdim=True)
    return mean + factor * (images - mean)


def occlusion(images: Tensor, side: float, generator: Generator) -> Tensor:
    """A dark square of this side in pixels, wholly within the central 20x20 pixels, where the ink is."""
    side = int(side)
    corner = 4 + (torch.rand(2, len(images), 1, generator=generator) * (20 - side + 1)).long()
    rows, columns = (torch.arange(28) >= corner) & (torch.arange(28) < corner + side)  # [B, 28] each
    return images.masked_fill(rows[:, :, None] & columns[:, None, :], 0)


def inversion(images: Tensor, blend: float, generator: Generator) -> Tensor:
    """Colours from the image's own (0) towards its negative's (1): beyond one half, dark digits on bright ground."""
    return (1 - blend) * images + blend * (1 - images)


class Corruption(NamedTuple):
    """`change(images, amount, generator)` for each amount, mildest first; `unit` names what the amounts are."""

    change: Callable[[Tensor, float, Generator], Tensor]
    unit: str
    amounts: tuple[float, ...]


CORRUPTIONS = {
    "rotation": Corruption(rotation, "degrees", (18, 36, 54, 72, 90)),
    "translation": Corruption(translation, "pixels", (2, 4, 6, 8, 10)),
    "noise": Corruption(noise, "std", (0.05, 0.1, 0.2, 0.3, 0.5)),
    "blur": Corruption(blur, "sigma, pixels", (0.5, 1, 1.5, 2, 3)),
    "contrast": Corruption(contrast, "factor", (0.9, 0.7, 0.5, 0.3, 0.1)),
    "occlusion": Corruption(occlusion, "side, pixels", (4, 6, 8, 10, 12)),
    "inversion": Corruption(inversion, "share", (0.1, 0.2, 0.4, 0.8, 1)),
}


def random_signs(n: int, generator: Generator) -> Tensor:
    return torch.randint(2, (n,), generator=generator) * 2.0 - 1


def affine(images: Tensor, rows: list[list[Tensor]]) -> Tensor:
    """One map for each image, given as its two rows of three numbers [B], from the target's place to the source's."""
    matrix = torch.stack([torch.stack(row, dim=1) for row in rows], dim=1)  # [B, 2, 3]
    grid = F.affine_grid(matrix, [len(images), 1, 28, 28], align_corners=False)
    return F.grid_sample(images[:, None], grid, align_corners=False)[:, 0].clamp(0, 1)
