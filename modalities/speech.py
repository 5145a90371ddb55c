"""Speech: spoken digits as mel spectrograms, and their encoder: `model.encode("speech", [read_wav("seven.wav")])`.

The data are the free spoken digit dataset 1.0.10 (FSDD; Jakobovski et al.; CC BY-SA 4.0): 3,000 recordings at 8 kHz,
each of ten digits said fifty times by each of six speakers.
"""

import functools
import hashlib
import io
import math
import urllib.request
import warnings
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.io import wavfile
from torch import Tensor, nn

from clip import TOWERS
from data.fetch import obtain
from image_encoder import ResidualBlock, downsample
from my_utils import InputError, read_file, short

FILE = "free-spoken-digit-dataset-1.0.10.zip"
ADDRESS = "https://github.com/Jakobovski/free-spoken-digit-dataset/archive/refs/tags/v1.0.10.zip"
SHA256 = "45a9b976ba3397a2fd5c70a9f2e43c34f442a3a6be47392ecfc41174b678f37e"  # of names and contents
SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")
OFFICIAL_TEST = 5  # takes of each digit and speaker

RATE = 8_000  # samples per second, as in FSDD; other rates are resampled
WINDOW, HOP = 256, 128  # samples: 32 ms and 16 ms
MELS, FRAMES = 40, 64  # bands up to 4 kHz, and one second of frames
LOWEST = 50.0  # Hz, where the first band begins
# Each band is a triangle over two of these equal steps on the mel scale log(1 + Hz / 700).
MEL_EDGES = (math.log1p(LOWEST / 700), math.log1p(RATE / 2 / 700), MELS + 2)  # of torch.linspace
QUIET = 1e-4  # share of the loudest frame's power below which the beginning and the end are cut off: -40 dB
SILENCE = 1e-4  # largest amplitude, of 1, that counts as silence
FLOOR = 1e-5  # share of the mean power that is added before the logarithm
# The range of each change in augmentation, chosen on two held-out speakers.
VOICE = 0.2  # frequencies scaled, on a log scale: long and short vocal tracts
SPEED = 0.25  # duration scaled, on a log scale
SHIFT = 0.1  # of a second
TILT = 6.0  # dB at the lowest and the highest frequency, and as much in a curve between: microphones
NOISE = (-48.0, -18.0)  # dB of white noise, relative to the mean power
MASKED_BANDS, MASKED_FRAMES = 6, 8  # at most so many neighbours are silenced


class SpeechEncoder(nn.Module):
    """Mel spectrograms [B, 40, 64] from `preprocess` -> features [B, embed_dim], not normalised."""

    def __init__(self, embed_dim: int, width: int = 16):
        super().__init__()
        self.stages = nn.Sequential(
            *downsample(1, width, kernel=5),  # [B, width, 20, 32]
            *downsample(width, 2 * width),  # [B, 2 * width, 10, 16]
            ResidualBlock(2 * width),
            *downsample(2 * width, 4 * width),  # [B, 4 * width, 5, 8]
            ResidualBlock(4 * width),
        )
        self.dropout = nn.Dropout(0.3)
        self.projection = nn.Linear(4 * width * 5, embed_dim)

    def forward(self, mels: Tensor) -> Tensor:
        x = self.stages(standardized_log_mel(mels)[:, None])  # [B, 4 * width, 5, 8]
        return self.projection(self.dropout(x.mean(dim=3).flatten(1)))

    @staticmethod
    def preprocess(sounds) -> Tensor:
        """A list of B waveforms from `read_wav` -> mel spectrograms of power, [B, 40, 64], which pass through."""
        return sounds if isinstance(sounds, Tensor) else torch.stack([mel_spectrogram(sound) for sound in sounds])


def read_wav(path: str | Path) -> Tensor:
    """A wav file of any rate and number of channels -> waveform, float [T] at 8 kHz.

    Raises InputError if it is missing, no wav file, above 64 MB, cut off, empty or all silence.
    """
    content = read_file(path, "a wav file", largest=64_000_000)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "Reached EOF")
            rate, samples = wavfile.read(io.BytesIO(content))
    except Exception as error:  # arbitrary bytes lead the reader to any error
        raise InputError(
            f"{path} is no wav file, is cut off or was written into a pipe ({short(error)}): convert or copy it again"
        ) from None
    try:
        return to_waveform(rate, samples)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def to_waveform(rate: int, samples: np.ndarray) -> Tensor:
    """Samples [T] or [T, channels], integers or floats in -1..1 -> the mean of the channels, float [T'] at 8 kHz.

    Raises InputError for samples that are empty, all silence or not finite, and for a rate below 4 kHz.
    """
    from scipy.signal import resample_poly  # it takes a second to import

    if not 4_000 <= rate <= 400_000:
        raise InputError(f"a sound must have 4,000 to 400,000 samples per second, not {rate}")
    if not samples.size or not np.isfinite(samples).all():
        raise InputError("the sound is empty, or holds numbers that are not finite: record it again")
    loudest = 1.0 if samples.dtype.kind == "f" else 2.0 ** (8 * samples.dtype.itemsize - 1)
    sound = (samples / loudest).reshape(len(samples), -1).mean(axis=1)  # [T]
    common = math.gcd(rate, RATE)
    sound = resample_poly(sound - sound.mean(), RATE // common, rate // common)  # [T']
    sound = sound - sound.mean()
    if np.abs(sound).max() < SILENCE:
        raise InputError("the sound is all silence: record it again, closer to the microphone")
    return torch.from_numpy(sound).float()


@functools.cache
def mel_bands() -> Tensor:
    """The weight of each frequency in each band: triangles of equal area, [MELS, WINDOW / 2 + 1]."""
    from transformers.audio_utils import mel_filter_bank  # it takes a second to import

    scale = {"norm": "slaney", "mel_scale": "htk"}
    return torch.from_numpy(mel_filter_bank(WINDOW // 2 + 1, MELS, LOWEST, RATE / 2, RATE, **scale).T).float()


def mel_spectrogram(sound: Tensor) -> Tensor:
    """Waveform [T] -> power [MELS, FRAMES]: the loudest second of a long sound, zeros on both sides of a short one."""
    sound = F.pad(sound / sound.abs().max(), (0, max(0, WINDOW - len(sound))))
    window = torch.hann_window(WINDOW)
    power = torch.stft(sound, WINDOW, HOP, window=window, pad_mode="constant", return_complex=True).abs() ** 2
    loudness = power.sum(dim=0)  # [frames]
    loud = (loudness > QUIET * loudness.max()).nonzero()[:, 0]
    mels = mel_bands() @ power[:, int(loud[0]) : int(loud[-1]) + 1]  # [MELS, frames], without quiet ends
    missing = max(0, FRAMES - mels.shape[1])
    mels = F.pad(mels, (missing // 2, missing - missing // 2))
    start = int(mels.sum(dim=0).unfold(0, FRAMES, 1).sum(dim=1).argmax())
    return mels[:, start : start + FRAMES]


def standardized_log_mel(mels: Tensor) -> Tensor:
    """Power [B, 40, 64] -> its logarithm, of mean 0 and variance 1 in each sound."""
    log = (mels / mels.mean(dim=(1, 2), keepdim=True).clamp(min=1e-12) + FLOOR).log()
    return (log - log.mean(dim=(1, 2), keepdim=True)) / log.std(dim=(1, 2), keepdim=True).clamp(min=1e-3)


def to_image(mels: Tensor) -> Tensor:
    """Power [B, 40, 64] -> images [B, 40, 64] in [0, 1], high frequencies at the top."""
    log = standardized_log_mel(mels).flip(1)
    low, high = log.amin(dim=(1, 2), keepdim=True), log.amax(dim=(1, 2), keepdim=True)
    return (log - low) / (high - low).clamp(min=1e-6)


class Sounds(NamedTuple):
    """N recordings."""

    mels: Tensor  # float [N, 40, 64], as `SpeechEncoder` takes them
    labels: Tensor  # int64 [N], the digits
    speakers: Tensor  # int64 [N], indices into SPEAKERS
    takes: Tensor  # int64 [N], 0..49; those below OFFICIAL_TEST are the official test split


def load_fsdd(data_path: str | Path) -> Sounds:
    """All recordings, on the CPU. Downloads them on first use; raises InputError if no source has them."""

    def is_right(archive: bytes) -> bool:
        content = b"".join(name.encode() + wav for name, wav in recordings(archive).items())
        return hashlib.sha256(content).hexdigest() == SHA256

    folder = obtain(Path(data_path), "FSDD (spoken digits)", {FILE: is_right}, {"GitHub": _from_github})
    wavs = recordings((folder / FILE).read_bytes())
    sounds = [wavfile.read(io.BytesIO(wav)) for wav in wavs.values()]
    mels = SpeechEncoder.preprocess([to_waveform(*sound) for sound in sounds])
    names = [name.removesuffix(".wav").split("_") for name in wavs]  # ["7", "theo", "12"]: digit, speaker, take
    labels = torch.tensor([(int(digit), SPEAKERS.index(speaker), int(take)) for digit, speaker, take in names])
    return Sounds(mels, *labels.T)


def recordings(archive: bytes) -> dict[str, bytes]:
    """The wav files of the zip archive, by name in ascending order; none if it is damaged."""
    try:
        with zipfile.ZipFile(io.BytesIO(archive)) as file:
            names = sorted(name for name in file.namelist() if Path(name).match("recordings/*.wav"))
            return {Path(name).name: file.read(name) for name in names}
    except Exception:  # arbitrary bytes lead the reader to any error
        return {}


def _from_github(folder: Path) -> None:
    (folder / FILE).write_bytes(urllib.request.urlopen(ADDRESS).read())


def augment(mels: Tensor) -> Tensor:
    """Power [B, 40, 64] -> as if said by another voice, at another speed, into another microphone, in some noise.

    VTLP (Jaitly & Hinton, 2013) scales frequencies, SpecAugment (Park et al., 2019, arXiv 1904.08779) masks regions.
    """
    size, device = len(mels), mels.device
    voice, speed, shift, tilt, bend = torch.rand(5, size, 1, 1, device=device) * 2 - 1  # [B, 1, 1] each
    # One resampling: frequencies scaled by `voice`; time scaled around the middle by `speed`, and moved by `shift`.
    middles = torch.linspace(*MEL_EDGES, device=device)[1:-1, None]  # [40, 1], of the bands, on the mel scale
    scaled = torch.log1p(torch.expm1(middles) * torch.exp(VOICE * voice))  # [B, 40, 1]
    y = 2 * (scaled - middles[0]) / (middles[-1] - middles[0]) - 1
    x = torch.linspace(-1, 1, FRAMES, device=device) * torch.exp(SPEED * speed) + 2 * SHIFT * shift  # [B, 1, 64]
    grid = torch.stack(torch.broadcast_tensors(x, y), dim=3)  # [B, 40, 64, 2]
    mels = F.grid_sample(mels[:, None], grid, align_corners=True)[:, 0]
    bands = torch.linspace(-1, 1, MELS, device=device)[:, None]
    mels = mels * 10 ** (TILT / 10 * (tilt * bands + bend * (1 - 2 * bands**2)))
    decibels = torch.empty(size, 1, 1, device=device).uniform_(*NOISE)
    mels = mels + 10 ** (decibels / 10) * mels.mean(dim=(1, 2), keepdim=True) * 2 * torch.rand_like(mels)
    for length, most, dim in ((MELS, MASKED_BANDS, 1), (FRAMES, MASKED_FRAMES, 2)):
        start, share = torch.rand(2, size, 1, 1, device=device)
        places = torch.arange(length, device=device).view(1, -1, 1).transpose(1, dim)  # [1, 40, 1] or [1, 1, 64]
        mels = mels.masked_fill((places >= start * length) & (places < start * length + share * most), 0)
    return mels


TOWERS["speech"] = SpeechEncoder
