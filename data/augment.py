"""Augmentation of a whole batch on its device, each image in its own way.

`augment(images, kind)` takes uint8 [B, 28, 28] and returns float [B, 1, 28, 28] in [0, 1].
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

KINDS = ("none", "affine", "elastic", "corrupted")
WARP_CHUNK = 1024  # images: the sampling grids of a large batch would not fit into memory

# The range of each change: handwriting slants, leans and varies in size by about this much.
ROTATE = 15.0  # degrees
SHIFT = 2.0  # pixels
SCALE = 0.12  # relative, on a log scale, for width and height apart
SHEAR = 0.15  # horizontal pixels per vertical pixel
ELASTIC_STD, ELASTIC_GRID = 0.7, 4  # pixels of displacement at each of 4 x 4 places; interpolated between them
THICKEN = 0.7  # pixels on each side of a stroke, more or less, in half of the images
P_CORRUPT = 0.08  # of each corruption


def augment(images: Tensor, kind: str) -> Tensor:
    """One of KINDS; "corrupted" is elastic warps, strokes of another thickness and, now and then, a corruption."""
    if kind not in KINDS:
        raise ValueError(f"there is no augmentation {kind!r}: choose {', '.join(KINDS)}")
    if kind == "none":
        return images[:, None].float() / 255
    x = torch.cat([random_warp(part, elastic=kind != "affine") for part in images.split(WARP_CHUNK)])
    return random_corruption(random_thickness(x)) if kind == "corrupted" else x


def random_warp(images: Tensor, elastic: bool = False) -> Tensor:
    """uint8 [B, 28, 28] -> float [B, 1, 28, 28], each rotated, sheared, scaled and shifted, sampled once.

    `elastic` adds elastic distortion (Simard et al., 2003, ICDAR).
    """
    x = images[:, None].float() / 255  # [B, 1, 28, 28]
    rotate, shear, scale_x, scale_y, shift_x, shift_y = torch.rand(6, len(x), device=x.device) * 2 - 1
    cos, sin = torch.cos(rotate * math.radians(ROTATE)), torch.sin(rotate * math.radians(ROTATE))
    scale_x, scale_y = torch.exp(scale_x * SCALE), torch.exp(scale_y * SCALE)
    shear = shear * SHEAR
    half = x.shape[-1] / 2  # affine_grid counts from -1 to 1
    # Rotation after shear after scaling, from the target's coordinates to the source's.
    rows = [
        torch.stack([cos * scale_x, (cos * shear - sin) * scale_y, shift_x * SHIFT / half], dim=1),
        torch.stack([sin * scale_x, (sin * shear + cos) * scale_y, shift_y * SHIFT / half], dim=1),
    ]
    grid = F.affine_grid(torch.stack(rows, dim=1), x.shape, align_corners=False)  # [B, 28, 28, 2]
    if elastic:
        field = torch.randn(len(x), 2, ELASTIC_GRID, ELASTIC_GRID, device=x.device) * (ELASTIC_STD / half)
        grid = grid + F.interpolate(field, x.shape[-2:], mode="bicubic", align_corners=False).permute(0, 2, 3, 1)
    return F.grid_sample(x, grid, align_corners=False)


def random_thickness(x: Tensor) -> Tensor:
    """Half of the images [B, 1, 28, 28] between themselves and their dilation, or erosion, of a pixel on each side."""
    pixels = THICKEN * (2 * uniform(x) - 1) * bernoulli(x, 0.5)  # [B, 1, 1, 1]
    thicker, thinner = pool3x3(x, torch.maximum), pool3x3(x, torch.minimum)
    return x + pixels.clamp(min=0) * (thicker - x) + pixels.clamp(max=0) * (x - thinner)


def random_corruption(x: Tensor) -> Tensor:
    """Float [B, 1, 28, 28] in [0, 1] -> some with a black square, blurred, paler, inverted, noisy."""
    x = random_erasing(x)
    x = torch.where(bernoulli(x, P_CORRUPT), pool3x3(pool3x3(x, torch.add), torch.add) / 81, x)
    mean = x.mean(dim=(2, 3), keepdim=True)
    x = torch.lerp(x, mean, 0.8 * uniform(x) * bernoulli(x, P_CORRUPT))
    x = torch.lerp(x, 1 - x, uniform(x) * bernoulli(x, P_CORRUPT))
    return (x + 0.3 * uniform(x) * bernoulli(x, P_CORRUPT) * torch.randn_like(x)).clamp(0, 1)


def random_erasing(x: Tensor) -> Tensor:
    """A black square of 4 to 10 pixels, anywhere (Zhong et al., 2020, arXiv 1708.04896)."""
    side = 4 + (7 * uniform(x)).floor()  # [B, 1, 1, 1]
    row, column = ((29 - side) * uniform(x)).floor(), ((29 - side) * uniform(x)).floor()
    place = torch.arange(28, device=x.device)
    rows = (place[:, None] >= row) & (place[:, None] < row + side)  # [B, 1, 28, 1]
    columns = (place >= column) & (place < column + side)  # [B, 1, 1, 28]
    return x.masked_fill(rows & columns & bernoulli(x, P_CORRUPT), 0)


def pool3x3(x: Tensor, combine: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Each pixel combined with its eight neighbours. (Slices: torch's pooling takes ten times as long on a CPU.)"""
    x = F.pad(x, (1, 1, 1, 1))
    x = combine(combine(x[..., :-2], x[..., 1:-1]), x[..., 2:])
    return combine(combine(x[..., :-2, :], x[..., 1:-1, :]), x[..., 2:, :])


def uniform(x: Tensor) -> Tensor:
    """A number in 0..1 for each image: [B, 1, 1, 1]."""
    return torch.rand(len(x), 1, 1, 1, device=x.device)


def bernoulli(x: Tensor, p: float) -> Tensor:
    """True for each image with probability p: bool [B, 1, 1, 1]."""
    return uniform(x) < p
