import hashlib
import io
import json
import os
import shutil
import zipfile

import numpy as np
import pytest
import torch
from scipy.io import wavfile

from clip import CLIP
from conftest import ROOT, first_tenth
from modalities import figures, speech, train
from modalities.speech import FRAMES, MELS, RATE, SPEAKERS, Sounds, SpeechEncoder, mel_spectrogram, read_wav
from my_dataset import DATA_PATH, Split
from my_utils import InputError


def tone(digit: int, pitch: float = 1.0, rate: int = RATE, seconds: float = 0.4) -> np.ndarray:
    """A tone that glides from one frequency to another, which encode the digit; samples in -1..1."""
    start, end = 300 + 180 * digit, 300 + 180 * ((7 * digit + 3) % 10)
    time = np.arange(int(rate * seconds)) / rate
    frequency = pitch * (start + (end - start) * time / seconds)
    return 0.5 * np.sin(2 * np.pi * np.cumsum(frequency) / rate) * np.hanning(len(time))


def waveform(digit: int, **options) -> torch.Tensor:
    return torch.from_numpy(tone(digit, **options)).float()


def to_int16(samples: np.ndarray) -> np.ndarray:
    return (samples * 32_000).astype(np.int16)


def wav_file(samples: np.ndarray) -> bytes:
    file = io.BytesIO()
    wavfile.write(file, RATE, to_int16(samples))
    return file.getvalue()


CUT_WAV = wav_file(tone(3))[:2_000]


def cosine(x: torch.Tensor, y: torch.Tensor) -> float:
    return torch.cosine_similarity(x.flatten(), y.flatten(), dim=0).item()


# ---- wav files and arrays ----


def test_any_rate_width_and_number_of_channels_gives_the_same_sound(tmp_path):
    for samples, rate in (
        (to_int16(tone(3, rate=44_100)), 44_100),
        (to_int16(np.stack([tone(3), 0 * tone(3)], axis=1)), RATE),
        (tone(3).astype(np.float32), RATE),
        ((tone(3) * 127 + 128).astype(np.uint8), RATE),
        ((tone(3) * 2**30).astype(np.int32), RATE),
    ):
        wavfile.write(tmp_path / "a.wav", rate, samples)
        sound = read_wav(tmp_path / "a.wav")
        assert abs(len(sound) - 3_200) <= 1
        assert cosine(mel_spectrogram(sound), mel_spectrogram(waveform(3))) > 0.99


@pytest.mark.parametrize(
    ("samples", "rate", "message"),
    [
        (b"this is a text, not a sound\n", None, "is no wav file"),
        (b"RIFF", None, "is no wav file"),
        (CUT_WAV, None, "is cut off"),
        (CUT_WAV[:-1], None, "is cut off"),
        (np.zeros(0, np.int16), RATE, "the sound is empty"),
        (np.full(8_000, 7, np.int16), RATE, "all silence"),
        (np.full(8_000, np.nan, np.float32), RATE, "not finite"),
        (to_int16(tone(3)), 100, "4,000 to 400,000 samples per second"),
    ],
)
def test_a_file_of_something_else_is_one_sentence(tmp_path, samples, rate, message):
    path = tmp_path / "a.wav"
    path.write_bytes(samples) if rate is None else wavfile.write(path, rate, samples)
    with pytest.raises(InputError, match=message):
        read_wav(path)


def test_only_plain_files_up_to_a_stated_size_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").touch()
    os.truncate(tmp_path / "large", 64_000_001)
    for path, message in (
        (tmp_path / "pipe", "not a file"),
        ("/dev/zero", "not a file"),
        (tmp_path / "large", "more than 64 MB"),
        (tmp_path / "none", f"there is no file {tmp_path}/none"),
    ):
        with pytest.raises(InputError, match=message):
            read_wav(path)


# ---- spectrograms ----


def test_the_spectrogram_is_that_of_transformers():
    from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

    sound = waveform(4)
    bands = mel_filter_bank(129, MELS, 50.0, RATE / 2, RATE, norm="slaney", mel_scale="htk")
    assert np.allclose(bands.T, speech.mel_bands(), atol=1e-7)
    options = {"power": 2.0, "mel_filters": bands, "pad_mode": "constant", "mel_floor": 0.0}
    reference = spectrogram((sound / sound.abs().max()).numpy(), window_function(256, "hann"), 256, 128, **options)
    own = speech.mel_spectrogram(sound)
    own = own[:, own.sum(dim=0) > 0].numpy()  # without padding
    starts = range(reference.shape[1] - own.shape[1] + 1)
    assert any(np.allclose(reference[:, i : i + own.shape[1]], own, rtol=1e-3, atol=1e-4) for i in starts)


def test_neither_loudness_nor_silence_around_a_sound_makes_a_difference():
    torch.manual_seed(0)
    encoder, quiet = SpeechEncoder(8).eval(), torch.zeros(128 * 20)
    features = encoder(SpeechEncoder.preprocess([waveform(5)]))
    for other in (1e-30 * waveform(5), 1e20 * waveform(5), torch.cat([quiet, waveform(5), quiet])):
        assert torch.allclose(encoder(SpeechEncoder.preprocess([other])), features, atol=1e-3)


def test_the_loudest_second_of_a_long_recording_is_kept():
    loud, hum = waveform(5, seconds=0.8), waveform(1, seconds=3)
    mels = SpeechEncoder.preprocess([torch.cat([0.1 * hum, loud, 0.1 * hum])])
    assert mels.shape == (1, MELS, FRAMES)
    assert mels.sum() > 0.95 * speech.mel_spectrogram(loud).sum()
    image = speech.to_image(mels)
    assert (image.min(), image.max()) == (0, 1)


@pytest.fixture
def voice_alone(monkeypatch):
    """Augmentation that scales frequencies and does nothing else."""
    for name in ("TILT", "SHIFT", "SPEED", "MASKED_BANDS", "MASKED_FRAMES"):
        monkeypatch.setattr(speech, name, 0.0)
    monkeypatch.setattr(speech, "NOISE", (-200.0, -200.0))


def test_augmentation_changes_a_batch_within_its_bounds(voice_alone, monkeypatch):
    torch.manual_seed(0)
    mels = SpeechEncoder.preprocess([waveform(5)]).repeat(200, 1, 1)

    def pitch(x):  # [B], the mean band
        return (x.sum(dim=2) * torch.arange(MELS)).sum(dim=1) / x.sum(dim=(1, 2))

    assert pitch(speech.augment(mels)).std() > 0.5
    assert pitch(speech.augment(mels)).mean() == pytest.approx(pitch(mels)[0].item(), abs=1)
    monkeypatch.setattr(speech, "VOICE", 0.0)
    assert torch.allclose(speech.augment(mels), mels, rtol=1e-3, atol=1e-3 * mels.max())
    monkeypatch.setattr(speech, "SPEED", 0.3)
    durations = (speech.augment(mels).sum(dim=1) > 0.01 * mels.sum(dim=1).max()).sum(dim=1).float()
    assert durations.min() < 0.85 * durations.mean() < durations.mean() < 0.85 * durations.max()


def test_augmentation_scales_a_tone_by_the_factor_of_the_voice(voice_alone, monkeypatch):
    middles = 700 * torch.expm1(torch.linspace(*speech.MEL_EDGES)[1:-1])  # [MELS], in hertz
    monkeypatch.setattr(speech, "VOICE", (middles[30] / middles[20]).log().item())
    monkeypatch.setattr(torch, "rand", lambda *size, **options: torch.ones(size))  # the largest factor
    mels = torch.zeros(1, MELS, FRAMES)
    mels[:, 30] = 1
    assert speech.augment(mels)[0, 20, FRAMES // 2] == pytest.approx(1, abs=0.01)


# ---- the recordings ----


def test_an_archive_is_known_by_the_content_of_its_recordings(tmp_path, monkeypatch):
    monkeypatch.setattr(speech, "_from_github", lambda folder: "cannot be reached")
    with pytest.raises(InputError, match=r"GitHub: cannot be reached\nPlace .*zip there by hand"):
        speech.load_fsdd(tmp_path)
    path, wav = tmp_path / speech.FILE, wav_file(tone(7))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("free-spoken-digit-dataset-1.0.10/README.md", "about")
        archive.writestr("free-spoken-digit-dataset-1.0.10/recordings/7_theo_12.wav", wav)
    monkeypatch.setattr(speech, "SHA256", hashlib.sha256(b"7_theo_12.wav" + wav).hexdigest())
    mels, *names = speech.load_fsdd(tmp_path)
    assert torch.allclose(mels[0], mel_spectrogram(waveform(7)), rtol=1e-2, atol=1e-3 * mels.max())
    assert names == [7, SPEAKERS.index("theo"), 12]
    monkeypatch.setattr(speech, "SHA256", "of other recordings")
    for size in (path.stat().st_size, 500):
        os.truncate(path, size)
        with pytest.raises(InputError, match="another check sum"):
            speech.load_fsdd(tmp_path)
        assert path.stat().st_size == size


def test_the_real_recordings():
    try:
        sounds = speech.load_fsdd(ROOT / DATA_PATH)
    except InputError as error:
        pytest.skip(f"FSDD cannot be downloaded here: {error}")
    assert sounds.mels.shape == (3_000, MELS, FRAMES)
    assert sounds.labels.bincount().tolist() == [300] * 10
    assert (sounds.takes < speech.OFFICIAL_TEST).sum() == 300


# ---- the tower ----


@pytest.fixture
def clip_file(tmp_path, trained, data_path, monkeypatch):
    """A trained CLIP, a tenth of MNIST, and in place of FSDD gliding tones: six speakers, each of another pitch."""
    monkeypatch.setattr(train, "load_mnist", lambda *args: first_tenth(args[0], data_path))
    names = torch.cartesian_prod(torch.arange(10), torch.arange(6), torch.arange(3, 8))  # digit, speaker, take
    tones = [waveform(d, pitch=0.94 + 0.02 * s, seconds=0.3 + 0.03 * t) for d, s, t in names.tolist()]
    sounds = Sounds(SpeechEncoder.preprocess(tones), *names.T)
    monkeypatch.setattr(speech, "load_fsdd", lambda path: sounds)
    shutil.copy(trained.checkpoint, tmp_path / "clip.pth")
    return tmp_path / "clip.pth"


def train_speech(clip_file, *flags) -> dict:
    """The metrics of a trained tower."""
    runs = ["--runs-dir", str(clip_file.parent / "runs"), "--clip", str(clip_file), "--device", "cpu"]
    train.main(["speech", *runs, "--run-name", "run", *flags])
    return json.loads((clip_file.parent / "runs" / "run" / "metrics.json").read_text())


def test_the_tower_agrees_with_captions_that_it_was_never_trained_with(clip_file):
    before = CLIP.load(clip_file)
    with pytest.raises(InputError, match="no tower for speech: train one with `make speech`"):
        before.encode("speech", [waveform(3)])
    metrics = train_speech(clip_file, "--epochs", "12")
    model = CLIP.load(clip_file)
    assert model.fingerprint() == before.fingerprint()
    assert metrics["history"][-1]["loss"] < metrics["history"][0]["loss"] - 0.1
    assert metrics["held_out_zero_shot_accuracy"] > 0.6  # by chance 0.1
    embeds = model.encode("speech", [waveform(digit) for digit in range(10)])
    assert ((embeds @ model.zero_shot_classifier().T).argmax(dim=1) == torch.arange(10)).sum() >= 6

    split, sounds = Split(torch.zeros(20, 28, 28, dtype=torch.uint8), torch.arange(20) % 10), speech.load_fsdd(None)
    features = torch.nn.functional.normalize(torch.rand(20, 32))
    figure = figures.recordings_to_images(model, "speech", sounds, split, features)
    assert [axes.get_title() for axes in figure.axes[::9]][:2] == ["zero", "one"]


def test_a_held_out_speaker_is_an_ablation_that_leaves_the_clip_unchanged(clip_file):
    clip, before = CLIP.load(clip_file), clip_file.read_bytes()
    for held_out, count in (("official", 10 * 6 * 2), ("theo", 10 * 5)):  # recordings that are not trained on
        size, _, test, _ = train.speech_pairs(train.SpeechSettings(held_out=held_out), clip, torch.device("cpu"))
        assert (size, len(test)) == (300 - count, count)
    metrics = train_speech(clip_file, "--epochs", "1", "--held-out", "theo")
    assert 0 <= metrics["held_out_zero_shot_accuracy"] <= 1
    assert clip_file.read_bytes() == before
    assert "speech" in CLIP.load(clip_file.parent / "runs" / "run" / "best_model.pth").towers
