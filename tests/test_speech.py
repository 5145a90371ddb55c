import io
import json
import shutil
import zipfile

import numpy as np
import pytest
import torch
from scipy.io import wavfile

from clip import CLIP
from conftest import ROOT, first_tenth
from data import fsdd
from data.fsdd import SPEAKERS, Sounds, load_fsdd, random_change
from evaluation.metrics import digit_classifier
from my_dataset import DATA_PATH
from my_utils import InputError
from speech_encoder import FRAMES, MELS, RATE, SpeechEncoder, as_picture, as_sound, mel_spectrogram, read_wav
from training import align
from training.settings import read_align_flags


def said(digit: int, pitch: float = 1.0, rate: int = RATE, seconds: float = 0.4) -> np.ndarray:
    """A tone that glides from one height to another, which tell the digit; samples in -1..1."""
    start, end = 300 + 180 * digit, 300 + 180 * ((7 * digit + 3) % 10)
    time = np.arange(int(rate * seconds)) / rate
    height = pitch * (start + (end - start) * time / seconds)
    return 0.5 * np.sin(2 * np.pi * np.cumsum(height) / rate) * np.hanning(len(time))


def write(path, samples: np.ndarray, rate: int = RATE):
    wavfile.write(path, rate, samples)
    return path


def whole_numbers(samples: np.ndarray) -> np.ndarray:
    return (samples * 32_000).astype(np.int16)


# ---- wav files ----


def test_any_rate_width_and_number_of_channels_gives_the_same_sound(tmp_path):
    plain = read_wav(write(tmp_path / "plain.wav", whole_numbers(said(3))))
    assert plain.shape == (3_200,)
    forms = {
        "44,100 Hz": (whole_numbers(said(3, rate=44_100)), 44_100),
        "stereo": (whole_numbers(np.stack([said(3), said(3)], axis=1)), RATE),
        "float": (said(3).astype(np.float32), RATE),
        "bytes": ((said(3) * 127 + 128).astype(np.uint8), RATE),
        "32 bits": ((said(3) * 2**30).astype(np.int32), RATE),
    }
    spectrogram = SpeechEncoder.preprocess(plain)
    for name, (samples, rate) in forms.items():
        sound = read_wav(write(tmp_path / "other.wav", samples, rate))
        assert abs(len(sound) - 3_200) <= 1, name
        other = SpeechEncoder.preprocess(sound)
        shape = [x.flatten() / x.norm() for x in (spectrogram, other)]
        assert (shape[0] @ shape[1]) > 0.99, name


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no file"),
        (b"this is a text, not a sound\n", "is no wav file, or is cut off"),
        (b"", "is no wav file, or is cut off"),
        (b"RIFF", "is no wav file, or is cut off"),
        ("half", "is cut off"),
        ("empty", "the sound is empty"),
        ("silence", "all silence"),
        ("one loud sample", None),
        ("slow", "4,000 to 400,000 samples per second"),
        ("not finite", "not finite"),
    ],
)
def test_a_file_of_something_else_is_one_sentence(tmp_path, content, message):
    path = tmp_path / "a.wav"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        samples = {
            "empty": np.zeros(0, np.int16),
            "silence": np.full(8_000, 7, np.int16),
            "one loud sample": np.eye(1, 8_000, 4_000, np.float32)[0],
            "not finite": np.full(8_000, np.nan, np.float32),
        }.get(content, whole_numbers(said(3)))
        write(path, samples, 100 if content == "slow" else RATE)
        if content == "half":
            path.write_bytes(path.read_bytes()[:2_000])
    if message is None:
        assert SpeechEncoder.preprocess(read_wav(path)).isfinite().all()
        return
    with pytest.raises(InputError, match=message) as told:
        read_wav(path)
    assert str(path) in str(told.value)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("sounds", "message"),
    [
        ([], "one tensor"),
        ("seven", "one tensor"),
        ([[0.0, 1.0]], "one tensor"),
        (torch.zeros(2, 3, 4), "one tensor"),
        (torch.ones(800, dtype=torch.int64), "one tensor"),
        (torch.zeros(800), "all silence"),
        ([torch.ones(800), torch.ones(0)], "is empty"),
        (torch.full((800,), torch.nan), "not finite"),
    ],
)
def test_what_is_no_sound_is_refused(sounds, message):
    with pytest.raises(InputError, match=message):
        SpeechEncoder.preprocess(sounds)


def test_samples_of_a_wrong_form_are_refused():
    unequal = [[0.1, 0.2], [0.3]]
    for samples in (np.zeros((2, 3, 4)), np.array(["a", "b"]), np.array(1.0), np.array([3, 5, -9]), unequal):
        with pytest.raises(InputError, match=r"shape|8, 16 or 32 bits"):
            as_sound(samples, RATE)
    for rate in (None, "8000", 8000.5):
        with pytest.raises(InputError, match="a whole number"):
            as_sound(whole_numbers(said(3)), rate)


# ---- spectrograms ----


def test_the_spectrogram_is_that_of_the_library_it_takes_the_bands_from():
    from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

    sound = torch.from_numpy(said(4)).float()
    sound = sound / sound.abs().max()
    bands = mel_filter_bank(129, MELS, 50.0, RATE / 2, RATE, norm="slaney", mel_scale="htk")
    window = window_function(256, "hann")
    reference = spectrogram(
        sound.numpy(), window, 256, 128, power=2.0, mel_filters=bands, pad_mode="constant", mel_floor=0.0
    )
    own = mel_spectrogram(sound)
    start = next(i for i in range(reference.shape[1]) if np.allclose(reference[:, i], own[:, 0], rtol=1e-3, atol=1e-4))
    assert np.allclose(reference[:, start : start + own.shape[1]], own.numpy(), rtol=1e-3, atol=1e-4)


def test_what_is_quiet_around_a_sound_does_not_count():
    sound = torch.from_numpy(said(5)).float()
    quiet = torch.zeros(128 * 20)
    alone, within = (SpeechEncoder.preprocess(x) for x in (sound, torch.cat([quiet, sound, quiet])))
    assert torch.allclose(alone, within, rtol=1e-3, atol=1e-4 * alone.max())


def test_of_a_long_recording_the_loudest_second_counts():
    loud, hum = torch.from_numpy(said(5, seconds=0.8)).float(), torch.from_numpy(said(1, seconds=3)).float()
    mels = SpeechEncoder.preprocess(torch.cat([0.1 * hum, loud, 0.1 * hum]))
    assert mels.shape == (1, MELS, FRAMES)
    assert mels.sum() > 0.95 * mel_spectrogram(loud).sum()
    picture = as_picture(mels)
    assert picture.min() == 0
    assert picture.max() == 1


def test_the_tower_does_not_hear_how_loud_a_sound_is():
    torch.manual_seed(0)
    tower = SpeechEncoder(8).eval()
    sound = torch.from_numpy(said(5)).float()
    plain = tower(SpeechEncoder.preprocess(sound))
    for factor in (1e-30, 0.01, 1e20):
        assert torch.allclose(plain, tower(SpeechEncoder.preprocess(factor * sound)), atol=1e-3)


def test_augmentation_changes_voice_speed_and_place(monkeypatch):
    for name, none in (("TILT", 0.0), ("MASKS", 0), ("NOISE", (-200.0, -200.0)), ("SHIFT", 0.0), ("SPEED", 0.0)):
        monkeypatch.setattr(fsdd, name, none)
    torch.manual_seed(0)
    mels = SpeechEncoder.preprocess(torch.from_numpy(said(5)).float()).repeat(200, 1, 1)
    bands = torch.arange(MELS)

    def height(x):
        return (x.sum(dim=2) * bands).sum(dim=1) / x.sum(dim=(1, 2))

    voices = height(random_change(mels))
    assert voices.std() > 0.5
    assert voices.mean() == pytest.approx(height(mels)[0].item(), abs=1)
    monkeypatch.setattr(fsdd, "VOICE", 0.0)
    assert torch.allclose(random_change(mels), mels, rtol=1e-3, atol=1e-3 * mels.max())
    monkeypatch.setattr(fsdd, "SPEED", 0.3)
    durations = (random_change(mels).sum(dim=1) > 0.01 * mels.sum(dim=1).max()).sum(dim=1).float()
    assert durations.min() < 0.85 * durations.mean() < durations.mean() < 0.85 * durations.max()


# ---- the recordings ----


def zipped(path, change=lambda name, content: content):
    """An archive as GitHub's, of a few recordings of our own."""
    with zipfile.ZipFile(path, "w") as archive:
        for digit in range(10):
            for take, speaker in enumerate(SPEAKERS[:2]):
                file = io.BytesIO()
                wavfile.write(file, RATE, whole_numbers(said(digit)))
                name = f"free-spoken-digit-dataset-1.0.10/recordings/{digit}_{speaker}_{take}.wav"
                archive.writestr(name, change(name, file.getvalue()))
        archive.writestr("free-spoken-digit-dataset-1.0.10/README.md", "about")


def test_an_archive_counts_by_what_its_recordings_hold(tmp_path, monkeypatch):
    monkeypatch.setattr(fsdd, "_from_github", lambda path: "cannot be reached")
    path = tmp_path / fsdd.FILE
    zipped(path)
    with pytest.raises(InputError, match=r"corrupt\n  - GitHub: cannot be reached\nPlace .*zip by hand"):
        load_fsdd(tmp_path)
    monkeypatch.setattr(fsdd, "SHA256", fsdd.digest(path))
    sounds = load_fsdd(tmp_path)
    assert sounds.mels.shape == (20, MELS, FRAMES)
    assert sounds.labels.bincount().tolist() == [2] * 10
    assert sounds.speakers.unique().tolist() == sounds.takes.unique().tolist() == [0, 1]
    zipped(path, lambda name, content: content[:-2] if "7_george" in name else content)
    load_fsdd.cache_clear()
    with pytest.raises(InputError, match="corrupt"):
        load_fsdd(tmp_path)
    path.write_bytes(path.read_bytes()[:5_000])
    with pytest.raises(InputError, match="corrupt"):
        load_fsdd(tmp_path)


def test_the_real_recordings():
    try:
        fsdd.provision(ROOT / DATA_PATH)
    except InputError as error:
        pytest.skip(f"FSDD cannot be fetched here: {error}")
    with zipfile.ZipFile(fsdd.provision(ROOT / DATA_PATH)) as archive:
        names = fsdd.recordings(archive)
        assert len(names) == 3_000
        for name in names[::300]:
            with archive.open(name) as file:
                assert 500 < len(read_wav(file)) < 20_000


# ---- the tower ----


@pytest.fixture
def clip_file(tmp_path, trained, data_path, monkeypatch):
    """A trained CLIP, a tenth of MNIST, and gliding tones in the place of FSDD: six voices, each of another pitch."""
    monkeypatch.setattr(align, "load_mnist", lambda *args: first_tenth(args[0], data_path))
    names = torch.cartesian_prod(torch.arange(10), torch.arange(6), torch.arange(3, 8))  # digit, speaker, take
    tones = [said(d, 0.94 + 0.02 * s, seconds=0.3 + 0.03 * t) for d, s, t in names.tolist()]
    sounds = Sounds(SpeechEncoder.preprocess([torch.from_numpy(x).float() for x in tones]), *names.T)
    monkeypatch.setattr(align, "load_fsdd", lambda path: sounds)
    shutil.copy(trained.checkpoint, tmp_path / "clip.pth")
    return tmp_path / "clip.pth"


def train(clip_file, *flags) -> int:
    runs = ["--runs-dir", str(clip_file.parent / "runs"), "--clip", str(clip_file), "--device", "cpu"]
    return align.main(*read_align_flags(["speech", *runs, "--run-name", "run", *flags]))


def test_the_tower_learns_which_images_a_sound_goes_with(clip_file):
    before = CLIP.load(clip_file)
    with pytest.raises(InputError, match="no tower for speech: train one with `make speech`"):
        before.encode_speech(torch.from_numpy(said(3)).float())
    assert train(clip_file, "--epochs", "12") == 0
    model = CLIP.load(clip_file)
    assert model.fingerprint() == before.fingerprint()
    history = json.loads((clip_file.parent / "runs" / "run" / "metrics.json").read_text())["history"]
    assert history[-1]["loss"] < history[0]["loss"] - 0.1
    assert history[-1]["held_out_accuracy"] > 0.6  # by captions, which training had none of; by chance 0.1
    spoken = model.encode_speech([torch.from_numpy(said(digit)).float() for digit in range(10)])
    assert ((spoken @ digit_classifier(model).T).argmax(dim=1) == torch.arange(10)).sum() >= 6


def test_a_tower_without_a_speaker_stays_out_of_the_clips_file(clip_file):
    before = clip_file.read_bytes()
    assert train(clip_file, "--epochs", "1", "--held-out", "theo") == 0
    assert clip_file.read_bytes() == before
    run = clip_file.parent / "runs" / "run"
    assert 0 <= json.loads((run / "metrics.json").read_text())["held_out_accuracy"] <= 1
    assert "speech" in CLIP.load(run / "best_model.pth").towers


def test_what_is_held_out(clip_file):
    sounds = align.load_fsdd(None)
    assert align.held_out(sounds, "official").sum() == 10 * 6 * 2
    of_theo = align.held_out(sounds, "theo")
    assert of_theo.sum() == 50
    assert set(sounds.speakers[of_theo].tolist()) == {SPEAKERS.index("theo")}
