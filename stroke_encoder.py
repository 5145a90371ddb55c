"""Stroke tower: a time series of pen positions through a one-dimensional CNN."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from my_utils import InputError

POINTS = 8  # of a recording, at equal steps along the stroke, as UCI's pendigits have them
BETWEEN = 4  # pieces of the curve from one point to the next


def curve(points: Tensor) -> Tensor:
    """Points [B, P, 2] -> a smooth stroke through them: [B, (P - 1) * BETWEEN + 1, 2].

    Catmull-Rom splines (1974): at each point it runs in parallel to the line between its two neighbours.
    """
    before, after = 2 * points[:, :1] - points[:, 1:2], 2 * points[:, -1:] - points[:, -2:-1]
    p = torch.cat([before, points, after], dim=1)  # [B, P + 2, 2]
    p0, p1, p2, p3 = (p[:, i : i + points.shape[1] - 1, None] for i in range(4))  # [B, P - 1, 1, 2] each
    t = (torch.arange(BETWEEN, device=points.device) / BETWEEN)[:, None]  # [BETWEEN, 1]
    stroke = p1 + t / 2 * (p2 - p0 + t * (2 * p0 - 5 * p1 + 4 * p2 - p3 + t * (3 * (p1 - p2) + p3 - p0)))
    return torch.cat([stroke.flatten(1, 2), points[:, -1:]], dim=1)


def resample(stroke: Tensor, count: int = POINTS) -> Tensor:
    """A stroke [T, 2] -> `count` points at equal steps along it, [count, 2]."""
    lengths = stroke.diff(dim=0).norm(dim=1).cumsum(dim=0)
    lengths = torch.cat([lengths.new_zeros(1), lengths])  # [T], from the start
    at = torch.linspace(0, 1, count, dtype=stroke.dtype) * lengths[-1]
    i = torch.searchsorted(lengths, at, right=True).clamp(1, len(stroke) - 1)
    share = (at - lengths[i - 1]) / (lengths[i] - lengths[i - 1]).clamp(min=1e-12)
    return torch.lerp(stroke[i - 1], stroke[i], share.clamp(0, 1)[:, None])


def fill_square(points: Tensor) -> Tensor:
    """Points [B, P, 2] -> each coordinate stretched to 0..1, as pendigits has it; one without extent is 0.5."""
    low, high = points.amin(dim=1, keepdim=True), points.amax(dim=1, keepdim=True)
    extent = high - low
    return torch.where(extent > 1e-9, (points - low) / extent.clamp(min=1e-9), 0.5)


def read_strokes(path: str | Path) -> Tensor:
    """A text file with a point in each line, x and y (upwards), in the order of writing -> the stroke [T, 2].

    Raises InputError for a file that is not there or holds anything else.
    """
    try:
        lines = Path(path).read_text().replace(",", " ").split("\n")
        stroke = np.loadtxt(lines, ndmin=2) if any(map(str.strip, lines)) else np.zeros((0, 0))
    except FileNotFoundError:
        raise InputError(f"there is no file {path}: name a text file with x and y of a point in each line") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    except ValueError:
        stroke = np.zeros((0, 0))
    if stroke.shape[1] != 2:
        raise InputError(f"{path} holds something else than two numbers, x and y, in each line")
    return torch.from_numpy(stroke)


class StrokeBlock(nn.Module):
    """Convolutions along time around a skip connection."""

    def __init__(self, channels: int):
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv1d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm1d(channels),
            nn.ReLU(),
            nn.Conv1d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm1d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.branch(x))


class StrokeEncoder(nn.Module):
    """Points [B, 8, 2] in 0..1 -> features [B, embed_dim], not normalised."""

    def __init__(self, embed_dim: int, width: int = 64):
        super().__init__()
        self.stages = nn.Sequential(
            nn.Conv1d(4, width, 5, padding=2, bias=False),  # [B, width, 28]
            nn.BatchNorm1d(width),
            nn.ReLU(),
            StrokeBlock(width),
            nn.Conv1d(width, 2 * width, 4, stride=2, padding=1, bias=False),  # [B, 2 * width, 14]
            nn.BatchNorm1d(2 * width),
            nn.ReLU(),
            StrokeBlock(2 * width),
            nn.Conv1d(2 * width, 4 * width, 4, stride=2, padding=1, bias=False),  # [B, 4 * width, 7]
            nn.BatchNorm1d(4 * width),
            nn.ReLU(),
            nn.Flatten(),  # (not pooled: where along it something happens tells a digit)
            nn.Linear(4 * width * 7, 4 * width),
            nn.ReLU(),
        )
        self.projection = nn.Linear(4 * width, embed_dim)

    def forward(self, points: Tensor) -> Tensor:
        stroke = curve(points - 0.5)  # [B, 29, 2]
        direction = stroke.diff(dim=1) * BETWEEN * POINTS / 2
        x = torch.cat([stroke[:, :-1], direction], dim=2)  # [B, 28, 4]
        return self.projection(self.stages(x.transpose(1, 2)))

    @staticmethod
    def preprocess(strokes) -> Tensor:
        """One stroke of the pen [T, 2], or a list of B of them -> points [B, 8, 2], as `forward` takes them.

        x to the right, y up (most drawing programs count y downwards: negate it), in any unit: each coordinate is
        stretched to 0..1. A stroke of eight points is taken as it is, others are resampled to eight. A stroke is a
        whole digit: join its pieces in order. Raises InputError for what is no stroke.
        """
        is_one = getattr(strokes, "ndim", 0) == 2
        try:
            strokes = [x.detach().cpu() if isinstance(x, Tensor) else x for x in ([strokes] if is_one else strokes)]
            strokes = [torch.as_tensor(np.asarray(stroke, dtype=np.float64)) for stroke in strokes]
        except (TypeError, ValueError, RuntimeError):
            raise InputError("strokes must be arrays of numbers of shape [T, 2], or a list of such") from None
        if not strokes:
            raise InputError("strokes is an empty list: give at least one")
        for stroke in strokes:
            if stroke.ndim != 2 or stroke.shape[1] != 2:
                raise InputError(f"a stroke must have the shape [T, 2], its points' x and y, not {list(stroke.shape)}")
            if not stroke.isfinite().all():
                raise InputError("a stroke holds a number that is not finite (NaN or infinite): leave that point out")
            if not (stroke != stroke[:1]).any():
                raise InputError("a stroke needs at least two points that differ: this is a dot")
        points = [stroke if len(stroke) == POINTS else resample(stroke) for stroke in strokes]
        return fill_square(torch.stack(points)).float()
