"""Spoken digits: the free spoken digit dataset 1.0.10 (FSDD; Jakobovski et al.; CC BY-SA 4.0).

3,000 recordings at 8 kHz: six people said each digit fifty times. The official test split is the indices 0 to 4.
"""

import functools
import hashlib
import http.client
import math
import shutil
import urllib.request
import zipfile
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from data.fetch import TIMEOUT, obtain
from my_utils import short
from speech_encoder import FRAMES, LOWEST, MELS, RATE, SpeechEncoder, read_wav
from training.settings import SPEAKERS

FILE = "free-spoken-digit-dataset-1.0.10.zip"
ADDRESS = "https://github.com/Jakobovski/free-spoken-digit-dataset/archive/refs/tags/v1.0.10.zip"
SHA256 = "45a9b976ba3397a2fd5c70a9f2e43c34f442a3a6be47392ecfc41174b678f37e"  # `digest` of it
OFFICIAL_TEST = 5  # indices below this are the official test split

# The range of each change in augmentation, chosen on two voices that were left out.
VOICE = 0.2  # frequencies scaled, relative, on a log scale: long and short vocal tracts
SPEED = 0.25  # duration scaled, relative, on a log scale
SHIFT = 0.1  # of a second
TILT = 6.0  # dB at the lowest and the highest frequency, and as much in a curve between: microphones
NOISE = (-48.0, -18.0)  # dB of white noise, relative to the mean power
MASKS, MASKED = 1, (6, 8)  # stretches that are silenced: how many, and at most so many bands, so many frames


class Sounds(NamedTuple):
    """N recordings: mel spectrograms float [N, 40, 64] as `SpeechEncoder` takes them, digits int64 [N],
    the speaker as an index into SPEAKERS and the number of the take, int64 [N]."""

    mels: Tensor
    labels: Tensor
    speakers: Tensor
    takes: Tensor


@functools.lru_cache(maxsize=1)
def load_fsdd(data_path: str | Path) -> Sounds:
    """All recordings, on the CPU. Fetches the archive on first use. Raises InputError when no source answers."""
    mels, names = [], []
    with zipfile.ZipFile(provision(data_path)) as archive:
        for member in recordings(archive):
            with archive.open(member) as file:
                mels.append(SpeechEncoder.preprocess(read_wav(file)))
            digit, speaker, take = Path(member).stem.split("_")
            names.append((int(digit), SPEAKERS.index(speaker), int(take)))
    return Sounds(torch.cat(mels), *torch.tensor(names).T)


# ---- where it comes from ----


def provision(data_path: str | Path) -> Path:
    """The archive, fetched where it is not there: what a person placed, or GitHub's of the tag."""
    return obtain(Path(data_path) / FILE, "FSDD (spoken digits)", _is_right, {"GitHub": _from_github})


def recordings(archive: zipfile.ZipFile) -> list[str]:
    """The recordings' names in the archive, in one order."""
    return sorted(name for name in archive.namelist() if name.endswith(".wav") and "/recordings/" in f"/{name}")


def _is_right(path: Path) -> bool:
    try:
        return digest(path) == SHA256
    except Exception:  # a damaged archive leads the reader to any error
        return False


def digest(path: Path) -> str:
    """SHA-256 over the names and contents of the recordings: an archive may be packed in any way."""
    total = hashlib.sha256()
    with zipfile.ZipFile(path) as archive:
        for name in recordings(archive):
            total.update(Path(name).name.encode())
            total.update(archive.read(name))
    return total.hexdigest()


def _from_github(path: Path) -> str | None:
    try:
        with urllib.request.urlopen(ADDRESS, timeout=TIMEOUT) as answer, open(path, "wb") as file:
            shutil.copyfileobj(answer, file)
    except (OSError, http.client.HTTPException) as error:  # the latter where the answer is cut off
        return short(error)


# ---- augmentation: a whole batch at once ----


def random_change(mels: Tensor) -> Tensor:
    """Power [B, 40, 64] -> as if said by another voice, at another speed, into another microphone, in some noise."""
    size, device = len(mels), mels.device
    voice, speed, shift, tilt, bend = torch.rand(5, size, 1, 1, device=device) * 2 - 1
    bands, frames = torch.linspace(-1, 1, MELS, device=device)[:, None], torch.linspace(-1, 1, FRAMES, device=device)
    # One resampling does it: frequencies by `voice`, time by `speed` around the middle, and by `shift`.
    low, high = mel(LOWEST), mel(RATE / 2)
    hertz = 700 * (10 ** ((low + (bands + 1) / 2 * (high - low)) / 2595) - 1)  # [40, 1], about the bands' middles
    y = 2 * (2595 * torch.log10(1 + hertz * torch.exp(VOICE * voice) / 700) - low) / (high - low) - 1  # [B, 40, 1]
    x = frames * torch.exp(SPEED * speed) + 2 * SHIFT * shift  # [B, 1, 64]
    grid = torch.stack(torch.broadcast_tensors(x, y), dim=3)  # [B, 40, 64, 2]
    mels = F.grid_sample(mels[:, None], grid, align_corners=True)[:, 0]
    mels = mels * 10 ** (TILT / 10 * (tilt * bands + bend * (1 - 2 * bands**2)))
    low, high = NOISE
    noise = 10 ** ((low + (high - low) * torch.rand(size, 1, 1, device=device)) / 10)
    mels = mels + noise * mels.mean(dim=(1, 2), keepdim=True) * 2 * torch.rand_like(mels)
    for places, most in (
        (torch.arange(MELS, device=device)[:, None], MASKED[0]),
        (torch.arange(FRAMES, device=device), MASKED[1]),
    ):
        for _ in range(MASKS):
            start, length = torch.rand(2, size, 1, 1, device=device)
            start = start * places.numel()
            mels = mels.masked_fill((places >= start) & (places < start + length * most), 0)
    return mels


def mel(hertz: float) -> float:
    """The mel scale (O'Shaughnessy, 1987)."""
    return 2595 * math.log10(1 + hertz / 700)
