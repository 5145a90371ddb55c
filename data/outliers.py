"""Outlier exposure (Hendrycks et al., 2019, arXiv 1812.04606): images of no digit, made of digits on their device.

`captions.OUTLIERS` names their kinds and what is said of them.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from captions import OUTLIER_IDS, OUTLIERS, multi_hot

PATCH = 7  # pixels along each side of the squares that are scrambled
STROKES = 6  # of a scribble, at most; fewer strokes could look like a one


class Outliers(NamedTuple):
    images: Tensor  # float [N, 1, 28, 28] in [0, 1]
    facts: Tensor  # bool [N, S]
    ids: Tensor  # int64 [N], a description of each (captions.attribute_captions)


def make_outliers(images: Tensor, digits: Tensor, generator: torch.Generator) -> Outliers:
    """Digits, uint8 [M, 28, 28] and [M] -> an outlier of each, but for the digits 0, 1 and 8.

    The kinds take turns; half of the descriptions name the kind.
    """
    x = images[(digits != 0) & (digits != 1) & (digits != 8), None].float() / 255
    index = torch.arange(len(x), device=x.device)
    kinds = index % len(MAKERS)
    made = torch.empty_like(x)
    for kind, name in enumerate(OUTLIERS):
        made[kinds == kind] = MAKERS[name](x[kinds == kind], generator)
    facts = torch.stack([multi_hot(name, "no digit") for name in OUTLIERS]).to(x.device)[kinds]
    names_kind = index // len(MAKERS) % 2
    return Outliers(made, facts, OUTLIER_IDS.to(x.device)[names_kind * (1 + kinds)])


# Each takes digits [N, 1, 28, 28] and a generator on their device.


def noise(x: Tensor, generator: torch.Generator) -> Tensor:
    """Each pixel by itself: all grey levels in one half, a share of bright specks in the other."""
    level, chance = torch.rand(2, *x.shape, generator=generator, device=x.device)
    share, is_specks = torch.rand(2, len(x), 1, 1, 1, generator=generator, device=x.device)
    share = 0.05 + 0.95 * share  # or it could be empty
    return torch.where(is_specks < 0.5, (chance < share) * level.sqrt(), level)


def scrambled(x: Tensor, generator: torch.Generator) -> Tensor:
    """The squares of 7x7 pixels in a random order; in one half the four quarters, each moved on to the next corner."""
    patches = F.unfold(x, PATCH, stride=PATCH)  # [N, 49, 16]
    order = torch.rand(len(x), 1, patches.shape[2], generator=generator, device=x.device).argsort(dim=2)
    squares = F.fold(patches.gather(2, order.expand_as(patches)), x.shape[-2:], PATCH, stride=PATCH)
    (a, b), (c, d) = (half.chunk(2, dim=3) for half in x.chunk(2, dim=2))
    quarters = torch.cat([torch.cat([c, a], dim=3), torch.cat([d, b], dim=3)], dim=2)
    return torch.where(torch.rand(len(x), 1, 1, 1, generator=generator, device=x.device) < 0.5, squares, quarters)


def turned(x: Tensor, generator: torch.Generator) -> Tensor:
    """A quarter turn, to the left or to the right. (0, 1 and 8 may look upright then: `make_outliers` skips them.)"""
    to_left = torch.rand(len(x), 1, 1, 1, generator=generator, device=x.device) < 0.5
    return torch.where(to_left, x.rot90(1, (2, 3)), x.rot90(-1, (2, 3)))


def empty(x: Tensor, generator: torch.Generator) -> Tensor:
    """One dark grey level, black in half of the cases."""
    level = torch.rand(len(x), 1, 1, 1, generator=generator, device=x.device)
    return (0.3 * (level - 0.5).clamp(min=0)).expand_as(x)


def overlap(x: Tensor, generator: torch.Generator) -> Tensor:
    """Each digit and the one before it, a few pixels aside."""
    aside = int(torch.randint(-4, 5, (), generator=generator, device=x.device))
    return torch.maximum(x, x.roll((1, aside), dims=(0, 3)))


def inverted(x: Tensor, generator: torch.Generator) -> Tensor:
    return 1 - x


def scribble(x: Tensor, generator: torch.Generator) -> Tensor:
    """Four to six straight strokes between random points, most of them joined, as thick as a pen's."""
    n, device = len(x), x.device
    ends = torch.rand(2, n, STROKES, 2, generator=generator, device=device)
    on_grid = torch.rand(n, 1, 1, generator=generator, device=device) < 0.5  # upright and level strokes, as of letters
    start, end = 5 + 18 * torch.where(on_grid, (ends * 2).round() / 2, ends)
    is_joined = torch.rand(n, STROKES, 1, generator=generator, device=device) < 0.6
    start = torch.where(is_joined, end.roll(1, dims=1), start)[:, :, None]  # [N, STROKES, 1, 2]
    along = end[:, :, None] - start
    strokes = torch.randint(4, STROKES + 1, (n, 1), generator=generator, device=device)
    is_drawn = torch.arange(STROKES, device=device) < strokes  # [N, STROKES]
    lines = torch.arange(28.0, device=device)
    pixels = torch.cartesian_prod(lines, lines)  # [784, 2]
    place = ((pixels - start) * along).sum(dim=-1) / along.square().sum(dim=-1).clamp(min=1e-3)  # 0..1 on the stroke
    nearest = start + place.clamp(0, 1)[..., None] * along
    away = (pixels - nearest).norm(dim=-1).masked_fill(~is_drawn[..., None], torch.inf).amin(dim=1)  # [N, 784]
    half = 0.8 + 1.2 * torch.rand(n, 1, generator=generator, device=device)  # pixels
    return (half + 0.5 - away).clamp(0, 1).view_as(x)


MAKERS = {maker.__name__: maker for maker in (noise, scrambled, empty, overlap, inverted, turned, scribble)}
