"""Speech tower: a spoken digit as a log-mel spectrogram, through a small CNN as an image goes."""

import functools
import math
import warnings
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from image_encoder import ResidualBlock, halve
from my_utils import InputError, short

RATE = 8_000  # samples per second, as in FSDD; others are resampled
WINDOW, HOP = 256, 128  # samples: 32 ms and 16 ms
MELS, FRAMES = 40, 64  # bands up to 4 kHz, and one second of them
LOWEST = 50.0  # Hz, where the lowest band begins
QUIET = 1e-4  # share of the loudest frame's power below which the beginning and the end are cut off: -40 dB
SILENCE = 1e-4  # largest amplitude of what counts as all silence, of 1
FLOOR = 1e-5  # share of the mean power that is added before the logarithm


class SpeechEncoder(nn.Module):
    """Mel spectrograms [B, 40, 64], as `preprocess` gives them -> features [B, embed_dim], not normalised."""

    def __init__(self, embed_dim: int, width: int = 16):
        super().__init__()
        self.stages = nn.Sequential(
            *halve(1, width, kernel=5),  # [B, width, 20, 32]
            *halve(width, 2 * width),  # [B, 2 * width, 10, 16]
            ResidualBlock(2 * width),
            *halve(2 * width, 4 * width),  # [B, 4 * width, 5, 8]
            ResidualBlock(4 * width),
        )
        self.dropout = nn.Dropout(0.3)
        self.projection = nn.Linear(4 * width * 5, embed_dim)

    def forward(self, mels: Tensor) -> Tensor:
        x = self.stages(in_decibels(mels)[:, None])  # [B, 4 * width, 5, 8]
        return self.projection(self.dropout(x.mean(dim=3).flatten(1)))

    @staticmethod
    def preprocess(sounds) -> Tensor:
        """One sound [T], or a list of B of them, float at 8 kHz (`as_sound`, `read_wav`) -> mel spectrograms, power in
        40 bands of 64 frames: [B, 40, 64]. A tensor [B, 40, 64] is such already. Raises InputError for anything else.
        """
        if isinstance(sounds, Tensor) and sounds.shape[1:] == (MELS, FRAMES):
            if not sounds.is_floating_point() or not sounds.isfinite().all():
                raise InputError("mel spectrograms must be finite floats")
            return sounds.float()
        sounds = [sounds] if isinstance(sounds, Tensor) and sounds.ndim == 1 else sounds
        is_list = isinstance(sounds, list | tuple) and len(sounds) > 0
        if not is_list or not all(isinstance(x, Tensor) and x.ndim == 1 and x.is_floating_point() for x in sounds):
            raise InputError("sounds must be one tensor [T] at 8 kHz, or a list of such: make them with read_wav")
        sounds = [sound.detach().cpu().float() for sound in sounds]
        if not all(sound.isfinite().all() and sound.any() for sound in sounds):
            raise InputError("a sound is empty, all silence or not finite: record it again")
        return torch.stack([in_the_middle(mel_spectrogram(sound)) for sound in sounds])


def as_picture(mels: Tensor) -> Tensor:
    """Spectrograms [B, 40, 64] -> pictures [B, 40, 64] in 0..1, high notes above."""
    log = in_decibels(mels).flip(1)
    low, high = log.amin(dim=(1, 2), keepdim=True), log.amax(dim=(1, 2), keepdim=True)
    return (log - low) / (high - low).clamp(min=1e-6)


def in_decibels(mels: Tensor) -> Tensor:
    """Power [B, MELS, T] -> its logarithm, of mean 0 and variance 1 in each sound."""
    log = (mels / mels.mean(dim=(1, 2), keepdim=True).clamp(min=1e-12) + FLOOR).log()
    return (log - log.mean(dim=(1, 2), keepdim=True)) / log.std(dim=(1, 2), keepdim=True).clamp(min=1e-3)


@functools.cache
def mel_bands() -> Tensor:
    """How much of each frequency goes into each band: [MELS, WINDOW / 2 + 1]."""
    from transformers.audio_utils import mel_filter_bank  # transformers takes seconds to import

    bands = mel_filter_bank(WINDOW // 2 + 1, MELS, LOWEST, RATE / 2, RATE, norm="slaney", mel_scale="htk")
    return torch.from_numpy(bands).float().T.contiguous()


def mel_spectrogram(sound: Tensor) -> Tensor:
    """Samples [T] -> power [MELS, frames]; what is quiet before and behind is cut off."""
    sound = F.pad(sound / sound.abs().max(), (0, max(0, WINDOW - len(sound))))
    window = torch.hann_window(WINDOW)
    power = torch.stft(sound, WINDOW, HOP, window=window, pad_mode="constant", return_complex=True).abs() ** 2
    loud = power.sum(dim=0)
    frames = (loud > QUIET * loud.max()).nonzero()[:, 0]
    return mel_bands() @ power[:, int(frames[0]) : int(frames[-1]) + 1]


def in_the_middle(mels: Tensor) -> Tensor:
    """Power [MELS, frames] -> [MELS, FRAMES]: the loudest second of what is longer, silence around what is shorter."""
    spare = FRAMES - mels.shape[1]
    if spare >= 0:
        return F.pad(mels, (spare // 2, spare - spare // 2))
    start = int(mels.sum(dim=0).unfold(0, FRAMES, 1).sum(dim=1).argmax())
    return mels[:, start : start + FRAMES]


def read_wav(path: str | Path) -> Tensor:
    """A wav file of any rate and number of channels -> float samples [T] at 8 kHz, one channel.

    Raises InputError for a file that is not there, no wav, cut off, empty or all silence.
    """
    from scipy.io import wavfile

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Chunk .non-data. not understood")
            warnings.filterwarnings("error", "Reached EOF", wavfile.WavFileWarning)
            rate, samples = wavfile.read(path)
    except FileNotFoundError:
        raise InputError(f"there is no file {path}: name a wav file") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    except wavfile.WavFileWarning:
        raise InputError(f"{path} is cut off: record or copy it again") from None
    except Exception as error:  # arbitrary bytes lead the reader to any error
        raise InputError(f"{path} is no wav file, or is cut off ({short(error)}): convert or copy it again") from None
    try:
        return as_sound(samples, rate)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def as_sound(samples: np.ndarray, rate: int) -> Tensor:
    """Samples [T] or [T, channels] at `rate` per second, whole numbers or floats in -1..1 -> float [T'] at 8 kHz.

    Channels are averaged. Raises InputError for what is empty, all silence, not finite or of a rate below 4 kHz.
    """
    from scipy.signal import resample_poly

    try:
        samples = np.asarray(samples)
    except ValueError:
        raise InputError("a sound's channels must be of equal length: shape [T] or [T, channels]") from None
    if samples.ndim not in (1, 2) or samples.dtype.kind not in "iuf":
        raise InputError("a sound must be numbers of shape [T] or [T, channels]")
    if samples.dtype.kind in "iu" and samples.dtype.itemsize > 4:
        raise InputError("a sound of whole numbers must have 8, 16 or 32 bits: its loudest value is not known else")
    if not isinstance(rate, int | np.integer) or not 4_000 <= rate <= 400_000:
        raise InputError(f"a sound must have 4,000 to 400,000 samples per second, a whole number, not {rate}")
    if samples.dtype.kind in "iu":
        full = 2.0 ** (8 * samples.dtype.itemsize - 1)
        samples = samples / full - (1.0 if samples.dtype.kind == "u" else 0.0)
    samples = samples.astype(np.float64)
    if samples.ndim == 2:
        samples = samples.mean(axis=1) if samples.shape[1] else samples[:, 0:0].ravel()
    if not len(samples):
        raise InputError("the sound is empty: record it again")
    if not np.isfinite(samples).all():
        raise InputError("the sound holds numbers that are not finite: record it again")
    if np.abs(samples - samples.mean()).max() < SILENCE:
        raise InputError("the sound is all silence: record it again, closer to the microphone")
    if rate != RATE:
        common = math.gcd(int(rate), RATE)
        samples = resample_poly(samples, RATE // common, int(rate) // common)
    return torch.from_numpy(samples - samples.mean()).float()
