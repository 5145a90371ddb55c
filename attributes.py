"""What an image looks like, measured: stroke thickness and slant, an `Attribute` each; and which combinations of digit
and attributes are never trained.

The definitions follow Morpho-MNIST (Castro et al., 2019, arXiv 1809.01965). An attribute has five grades, as
"very thin", "thin", "medium", "thick", "very thick": the sixths of the training images, the middle two taken together.
The first two grades are one bin, the last two another: thin, medium and thick are the terciles.
"""

import functools
import itertools
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

GRADES, BINS = 5, 3
BIN_GRADES = ((0, 1), (2,), (3, 4))  # the grades of each bin
GRADE_OF_BIN = (1, 2, 3)  # the one that gives the bin its name


@dataclass(frozen=True)
class Attribute:
    """All there is to an attribute: a further entry in ATTRIBUTES is a further attribute."""

    name: str
    format: str  # of a value with its unit
    measure: Callable[[Tensor], Tensor]  # float images [B, H, W] in [0, 1] -> values [B]
    edges: tuple[float, ...]  # between the grades: the 1/6, 1/3, 2/3, 5/6 quantiles of the training images
    margin: float  # captions skip the attribute this close to an edge
    clear: float  # an image is unambiguous if it lies further than this from the edges of its bin
    # A name for each grade, then its adjectives (before the noun), its phrases (behind it) and its phrases in Chinese.
    words: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]]

    @property
    def grades(self) -> tuple[str, ...]:
        """The names of the five grades."""
        return tuple(self.words)

    @property
    def bins(self) -> tuple[str, ...]:
        """The names of the three bins."""
        return tuple(self.grades[grade] for grade in GRADE_OF_BIN)

    def han_adjective(self, name: str) -> str:
        """The name of a grade -> what stands before a noun in Chinese: 粗体的."""
        _, _, phrases = self.words[name]
        return f"{phrases[0]}的"

    def grade(self, values: Tensor) -> Tensor:
        """Values [B] -> grades [B] in 0..4."""
        return sum((values >= edge).long() for edge in self.edges)

    def bin(self, values: Tensor) -> Tensor:
        """Values [B] -> bins [B] in 0..2."""
        return sum((values >= edge).long() for edge in self.edges[1:3])

    def distance_to_edges(self, values: Tensor, extremes: bool = False) -> Tensor:
        """Values [B] -> distance to the nearest edge of the bins, or of the extreme grades [B]."""
        edges = self.edges[::3] if extremes else self.edges[1:3]
        return torch.stack([(values - edge).abs() for edge in edges]).amin(dim=0)


# From (ink / outline) to pixels as a skeleton measures them: a line fitted to 5,000 training images.
THICKNESS_FACTOR, THICKNESS_OFFSET = 2.238, 0.013


def thickness(x: Tensor) -> Tensor:
    """Images [B, H, W] -> stroke thickness [B] in pixels: twice the mean distance to the outline along the skeleton.

    A stroke has the area length times thickness, and an outline of twice its length. The area is the ink, the outline's
    length is the total variation of the grey levels; both with more contrast, or blur would count as thickness.
    """
    sharp = (2 * x - 0.5).clamp(0, 1)
    right, down = F.pad(sharp, (1, 1, 1, 0)).diff(dim=2), F.pad(sharp, (1, 0, 1, 1)).diff(dim=1)  # [B, H + 1, W + 1]
    outline = torch.hypot(right, down).sum(dim=(1, 2))
    pixels = THICKNESS_FACTOR * sharp.sum(dim=(1, 2)) / outline.clamp(min=1e-6) + THICKNESS_OFFSET
    return torch.where(outline > 0, pixels, 0)


def slant(x: Tensor) -> Tensor:
    """Images [B, H, W] -> slant [B] in radians: arctan(-u11 / u02) of the grey moments, positive leans right."""
    rows = torch.arange(x.shape[1], device=x.device, dtype=x.dtype)
    columns = torch.arange(x.shape[2], device=x.device, dtype=x.dtype)
    mass = x.sum(dim=(1, 2)).clamp(min=1e-6)
    by_column, by_row = x.sum(dim=1), x.sum(dim=2)  # [B, W], [B, H]
    mean_x, mean_y = (by_column @ columns) / mass, (by_row @ rows) / mass
    u11 = (x @ columns * rows).sum(dim=1) / mass - mean_x * mean_y
    u02 = by_row @ rows.square() / mass - mean_y.square()
    return torch.where(mass > 1e-6, torch.atan2(-u11, u02.clamp(min=1e-6)), 0)


ATTRIBUTES = (
    Attribute(
        name="thickness",
        format="{:.1f} px",
        measure=thickness,
        edges=(2.009, 2.302, 2.855, 3.271),
        margin=0.03,
        clear=0.12,
        words={
            "very thin": (
                ("hairline", "spidery"),
                ("in hairlines", "in the finest of lines"),
                ("极细", "笔画极细", "线条极细", "特别细", "笔画特别细", "细如发丝"),
            ),
            "thin": (
                ("thin", "fine", "delicate"),
                ("in light strokes", "in fine strokes", "as if with a thin pen"),
                ("细体", "较细", "笔画偏细", "线条较细", "线条细", "笔画细"),
            ),
            "medium": (
                ("medium", "ordinary"),
                ("in medium strokes", "of medium thickness", "as if with an ordinary pen"),
                ("粗细中等", "粗细适中", "中等粗细", "线条中等", "笔画适中", "线条适中", "笔画粗细中等"),
            ),
            "thick": (
                ("thick", "bold", "heavy"),
                ("in heavy strokes", "in bold strokes", "as if with a broad pen"),
                ("粗体", "较粗", "笔画偏粗", "线条较粗", "线条粗", "笔画粗"),
            ),
            "very thick": (
                ("fat", "massive"),
                ("as if with a brush", "as if with a marker"),
                ("极粗", "笔画极粗", "线条极粗", "特别粗", "笔画特别粗", "粗如毛笔"),
            ),
        },
    ),
    Attribute(
        name="slant",
        format="{:+.2f} rad",
        measure=slant,
        edges=(-0.148, -0.010, 0.220, 0.359),
        margin=0.012,
        clear=0.05,
        words={
            "leaning far left": (
                ("backhand", "backslanted"),
                ("in backhand", "falling backwards"),
                ("极度左倾", "极度左斜", "大幅左斜", "向左大幅倾斜", "朝左大幅倾斜"),
            ),
            "leaning left": (
                ("left-leaning",),
                ("leaning to the left", "leaning left", "tilted left", "slanting to the left"),
                ("向左倾斜", "朝左倾斜", "左倾", "左斜", "往左斜", "往左歪", "朝左歪"),
            ),
            "upright": (
                ("upright", "straight"),
                ("standing upright", "standing straight"),
                ("直立", "竖直", "端正", "笔直", "挺直", "竖着", "直立端正"),
            ),
            "leaning right": (
                ("right-leaning",),
                ("leaning to the right", "leaning right", "tilted right", "slanting to the right"),
                ("向右倾斜", "朝右倾斜", "右倾", "右斜", "往右斜", "往右歪", "朝右歪"),
            ),
            "leaning far right": (
                ("italic", "oblique"),
                ("in italics", "falling forwards"),
                ("极度右倾", "极度右斜", "大幅右斜", "向右大幅倾斜", "朝右大幅倾斜"),
            ),
        },
    ),
)


def measure(images: Tensor) -> Tensor:
    """Images [B, 28, 28] or [B, 1, 28, 28], uint8 or float, bright on black -> values [B, A], one for each attribute.

    An image without ink has zeros. Whole tensors on the images' device; nothing waits for it.
    """
    x = images.reshape(-1, *images.shape[-2:]).float()  # [B, H, W]
    if images.dtype == torch.uint8:
        x = x / 255
    return torch.stack([attribute.measure(x) for attribute in ATTRIBUTES], dim=1)


def bins(values: Tensor) -> Tensor:
    """Values [B, A] -> bins int64 [B, A] in 0..2."""
    return torch.stack([one.bin(column) for one, column in zip(ATTRIBUTES, values.T, strict=True)], dim=1)


# ---- combinations: a digit with a bin of each attribute; counted in the order of a tensor of COMBINATIONS ----

COMBINATIONS = (10, *[BINS] * len(ATTRIBUTES))  # the shape [10, 3, 3]


def combination_ids(digits: Tensor, values: Tensor) -> Tensor:
    """Digits [B] and values [B, A] -> combinations int64 [B]: places in a flat tensor of shape COMBINATIONS."""
    ids = digits
    for column in bins(values).unbind(dim=1):
        ids = ids * BINS + column
    return ids


def all_combinations() -> list[tuple[int, ...]]:
    """(digit, bin of each attribute) of every combination, in the order of their ids."""
    return list(itertools.product(*map(range, COMBINATIONS)))


@functools.cache  # so nobody may write into it
def unseen_combinations(seed: int = 0) -> Tensor:
    """Which combinations are never trained, a fifth of them at random: bool, of shape COMBINATIONS.

    Compositional zero-shot learning (Misra et al., 2017, CVPR) is measured on these. Each combination of bins is unseen
    with two digits. Of the combinations with a given digit and a given bin at most a third are unseen, so that each bin
    is still seen with each digit.
    """
    generator = random.Random(seed)
    slots = [bins for digit, *bins in all_combinations() if digit < 2]  # each combination of bins twice
    slots += [None] * (-len(slots) % 10)  # until ten digits have equally many
    per_digit, most = len(slots) // 10, max(1, BINS ** (len(ATTRIBUTES) - 1) // BINS)

    def is_allowed(own: list) -> bool:
        """Whether these slots may be one digit's: at most one is empty, no two are equal, no bin is in too many."""
        chosen = [tuple(bins) for bins in own if bins is not None]
        counts = [count for bins in zip(*chosen, strict=True) for count in Counter(bins).values()]
        return len(set(chosen)) == len(chosen) >= per_digit - 1 and all(count <= most for count in counts)

    while True:
        generator.shuffle(slots)
        by_digit = [slots[i : i + per_digit] for i in range(0, len(slots), per_digit)]
        if all(map(is_allowed, by_digit)):
            break
    unseen = torch.zeros(COMBINATIONS, dtype=torch.bool)
    for digit, own in enumerate(by_digit):
        for bins in own:
            if bins is not None:
                unseen[(digit, *bins)] = True
    return unseen
