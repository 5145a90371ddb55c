"""Augmentation of a whole batch on its device, each image in its own way.

`augment(images, kind)` takes uint8 [B, H, H] or [B, C, H, H] and returns float [B, C, H, H] in [0, 1].
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

KINDS = ("none", "shift", "flip", "affine", "elastic")

# The range of each change: handwriting slants, leans and varies in size by about this much.
ROTATE = 15.0  # degrees
SHIFT = 2.0  # pixels of 28
SCALE = 0.12  # relative, on a log scale, for width and height apart
SHEAR = 0.15  # horizontal pixels per vertical pixel
ELASTIC_STD, ELASTIC_GRID = 0.7, 4  # pixels of displacement at each of 4 x 4 places; interpolated between them


def augment(images: Tensor, kind: str) -> Tensor:
    """Change the images in one of KINDS."""
    if kind not in KINDS:
        raise ValueError(f"there is no augmentation {kind!r}: choose {', '.join(KINDS)}")
    if kind == "none":
        return as_float(images)
    return random_warp(images, kind)


def as_float(images: Tensor) -> Tensor:
    return (images if images.ndim == 4 else images[:, None]).float() / 255


def random_warp(images: Tensor, kind: str = "affine") -> Tensor:
    """As `augment`: each image rotated, sheared, scaled and shifted, sampled once.

    "elastic" adds elastic distortion (Simard et al., 2003, ICDAR). "shift" only shifts, the border goes on outside;
    "flip" also mirrors half of the images, left to right.
    """
    x, only_shift = as_float(images), kind in ("shift", "flip")
    rotate, shear, scale_x, scale_y, shift_x, shift_y = torch.rand(6, len(x), device=x.device) * 2 - 1
    cos, sin = torch.cos(rotate * math.radians(ROTATE)), torch.sin(rotate * math.radians(ROTATE))
    scale_x, scale_y = torch.exp(scale_x * SCALE), torch.exp(scale_y * SCALE)
    shear, half = shear * SHEAR, 14  # pixels of 28: affine_grid counts from -1 to 1
    if only_shift:
        cos, sin, shear, scale_x, scale_y = (torch.full_like(cos, value) for value in (1, 0, 0, 1, 1))
    if kind == "flip":
        scale_x = torch.where(torch.rand_like(cos) < 0.5, -1.0, 1.0)
    # Rotation after shear after scaling, from the target's coordinates to the source's.
    rows = [
        torch.stack([cos * scale_x, (cos * shear - sin) * scale_y, shift_x * SHIFT / half], dim=1),
        torch.stack([sin * scale_x, (sin * shear + cos) * scale_y, shift_y * SHIFT / half], dim=1),
    ]
    grid = F.affine_grid(torch.stack(rows, dim=1), x.shape, align_corners=False)  # [B, H, H, 2]
    if kind == "elastic":
        field = torch.randn(len(x), 2, ELASTIC_GRID, ELASTIC_GRID, device=x.device) * (ELASTIC_STD / half)
        grid = grid + F.interpolate(field, x.shape[-2:], mode="bicubic", align_corners=False).permute(0, 2, 3, 1)
    return F.grid_sample(x, grid, padding_mode="border" if only_shift else "zeros", align_corners=False)
