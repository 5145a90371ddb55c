"""Augmentation of a whole batch at once, on the batch's device: one random warp per image, sampled once."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

# The range of each change: handwriting slants, leans and varies in size by about this much.
ROTATE = 15.0  # degrees
SHIFT = 2.0  # pixels
SCALE = 0.12  # relative, on a log scale, for width and height apart
SHEAR = 0.15  # horizontal pixels a vertical pixel
ELASTIC_CELLS = 6  # each way: an elastic warp bends over about 28 / 6 pixels


def random_warp(images: Tensor, elastic: float = 0.0) -> Tensor:
    """uint8 [B, 28, 28] -> float [B, 1, 28, 28] in [0, 1], each rotated, sheared, scaled and shifted at random.

    `elastic` is the standard deviation, in pixels, of a smooth random displacement on top, which bends the strokes
    (Simard et al., 2003, "Best practices for convolutional neural networks applied to visual document analysis").
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
        cells = torch.randn(len(x), 2, ELASTIC_CELLS, ELASTIC_CELLS, device=x.device) * elastic / half
        bend = F.interpolate(cells, x.shape[-2:], mode="bicubic", align_corners=True)  # [B, 2, 28, 28]
        grid = grid + bend.permute(0, 2, 3, 1)
    return F.grid_sample(x, grid, align_corners=False)
