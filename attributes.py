"""What an image looks like, measured: stroke thickness and slant, in three steps each, and the cells never trained.

The meaning of both follows Morpho-MNIST (Castro et al., 2019, arXiv 1809.01965).
"""

import random

import torch
import torch.nn.functional as F
from torch import Tensor

# The three steps of each attribute, then the outer halves of the first and the last.
THICKNESS = ("thin", "medium", "thick", "very thin", "very thick")
SLANT = ("leaning left", "upright", "leaning right", "leaning far left", "leaning far right")
# Where they part: a sixth, a third, two thirds and five sixths of the 60,000 training images lie below, as they are, by
# `measure` (a test counts).
THICKNESS_BOUNDS = (2.009, 2.302, 2.855, 3.271)  # pixels
SLANT_BOUNDS = (-0.148, -0.010, 0.220, 0.359)  # radians
# This close to a bound a caption leaves unsaid on which side an image lies.
THICKNESS_BAND, SLANT_BAND = 0.03, 0.012
# An image further than this from the bounds of all steps is "clear" in the results.
THICKNESS_CLEAR, SLANT_CLEAR = 0.12, 0.05

# From (ink / outline) to pixels as the skeleton measures them: a line fitted to 5,000 training images.
THICKNESS_FACTOR, THICKNESS_OFFSET = 2.238, 0.013


def measure(images: Tensor) -> tuple[Tensor, Tensor]:
    """Images [B, 28, 28] or [B, 1, 28, 28], uint8 or float, bright on black -> thickness [B] and slant [B].

    Thickness, in pixels: twice the mean distance to the outline along the skeleton. A stroke has the area length times
    thickness, and an outline of twice its length. Area is the ink; the outline's length is the total variation of the
    grey levels; both with more contrast, or the blur of a resampled image would count as thickness.
    Slant, in radians: arctan(-u11 / u02) of the grey moments, positive where the digit leans right.
    An image without ink has thickness 0 and slant 0. Whole tensors on the images' device; nothing waits for it.
    """
    x = images.reshape(-1, *images.shape[-2:]).float()  # [B, H, W]
    if images.dtype == torch.uint8:
        x = x / 255
    sharp = (2 * x - 0.5).clamp(0, 1)
    # Total variation, from differences to the right and down; the frame is dark.
    right, down = F.pad(sharp, (1, 1, 1, 0)).diff(dim=2), F.pad(sharp, (1, 0, 1, 1)).diff(dim=1)  # [B, H + 1, W + 1]
    outline = torch.hypot(right, down).sum(dim=(1, 2))
    thickness = THICKNESS_FACTOR * sharp.sum(dim=(1, 2)) / outline.clamp(min=1e-6) + THICKNESS_OFFSET

    rows = torch.arange(x.shape[1], device=x.device, dtype=x.dtype)
    columns = torch.arange(x.shape[2], device=x.device, dtype=x.dtype)
    mass = x.sum(dim=(1, 2)).clamp(min=1e-6)
    across, along = x.sum(dim=1), x.sum(dim=2)  # [B, W], [B, H]
    mean_x, mean_y = (across @ columns) / mass, (along @ rows) / mass
    u11 = (x @ columns * rows).sum(dim=1) / mass - mean_x * mean_y
    u02 = along @ rows.square() / mass - mean_y.square()
    slant = torch.atan2(-u11, u02.clamp(min=1e-6))
    return torch.where(outline > 0, thickness, 0), torch.where(mass > 1e-6, slant, 0)


def grade(values: Tensor, bounds: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """Values [B], their attribute's four bounds -> their steps, int64 [B] in 0..2, and which lie in the outer half of
    step 0 or 2, bool [B]."""
    far_low, low, high, far_high = bounds
    return (values >= low).long() + (values >= high), (values < far_low) | (values >= far_high)


def from_bounds(values: Tensor, bounds: tuple[float, float]) -> Tensor:
    """Values [B] -> distance to the nearer of two bounds [B], in their unit."""
    low, high = bounds
    return torch.minimum((values - low).abs(), (values - high).abs())


def is_clear(thickness: Tensor, slant: Tensor) -> Tensor:
    """Which images are far from all bounds of steps: bool [B]."""
    return (from_bounds(thickness, THICKNESS_BOUNDS[1:3]) > THICKNESS_CLEAR) & (
        from_bounds(slant, SLANT_BOUNDS[1:3]) > SLANT_CLEAR
    )


def unseen_cells(seed: int = 0) -> Tensor:
    """Which cells are never trained: bool [10, 3, 3], by digit, thickness and slant. 18 of the 90 are.

    Each of the nine combinations of thickness and slant is unseen with two digits. A digit has one or two unseen cells;
    the two share neither thickness nor slant, so that each value of each attribute is still seen with each digit.
    """
    generator = random.Random(seed)
    slots = [(thickness, slant) for thickness in range(3) for slant in range(3)] * 2 + [None, None]
    while True:
        generator.shuffle(slots)
        pairs = list(zip(slots[::2], slots[1::2], strict=True))
        whole = [pair for pair in pairs if None not in pair]
        if len(whole) == 8 and all(a[0] != b[0] and a[1] != b[1] for a, b in whole):
            break
    cells = torch.zeros(10, 3, 3, dtype=torch.bool)
    for digit, pair in enumerate(pairs):
        for cell in pair:
            if cell is not None:
                cells[(digit, *cell)] = True
    return cells
