import json

import pytest
import torch

from clip import CLIP
from conftest import ROOT, tensors
from data import fetch
from evaluation.retrieval import recall_at_k
from modalities import figures, strokes, train
from modalities.strokes import PIECES, StrokeEncoder, Strokes, catmull_rom, draw, load_pendigits, resample
from my_dataset import DATA_PATH, Split
from my_utils import InputError
from training.run import Run
from training.step import update


def made(count: int, seed: int) -> Strokes:
    """Recordings of two kinds, circles and angles, each drawn by a shaky hand."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    turn = torch.linspace(0, 2 * torch.pi, 8)
    circle = torch.stack([turn.sin(), turn.cos()], dim=1) / 2 + 0.5
    angle = torch.tensor([[0, 1], [0.5, 1], [1, 1], [0.8, 0.8], [0.6, 0.6], [0.5, 0.4], [0.4, 0.2], [0.3, 0.0]])
    points = torch.stack([circle, angle])[labels] + 0.08 * torch.randn(count, 8, 2, generator=generator)
    return Strokes(strokes.to_unit_square(points), labels)


def save_clip(path, seed: int = 0):
    torch.manual_seed(seed)
    CLIP(embed_dim=8, width=4, image_encoder="fast").save(path)
    return path


@pytest.fixture
def clip_file(tmp_path):
    return save_clip(tmp_path / "clip.pth")


@pytest.fixture
def recordings(monkeypatch) -> dict[str, Strokes]:
    """A few recordings in place of pendigits."""
    splits = {"train": made(96, seed=0), "val": made(40, seed=1)}
    monkeypatch.setattr(strokes, "load_pendigits", lambda split, path, device: splits[split])
    return splits


def train_strokes(clip_file, *flags):
    """Train a tower; the folder of the runs."""
    runs = clip_file.parent / "runs"
    options = ["--runs-dir", str(runs), "--clip", str(clip_file), "--device", "cpu"]
    train.main(["strokes", *options, "--batch-size", "32", "--epochs", "2", *flags])
    return runs


# ---- points ----


def test_the_curve_goes_through_all_points_and_is_straight_on_a_line():
    points = torch.rand(3, 8, 2, generator=torch.Generator().manual_seed(0))
    curve = catmull_rom(points)
    assert curve.shape == (3, 7 * PIECES + 1, 2)
    assert torch.allclose(curve[:, ::PIECES], points, atol=1e-6)
    line = torch.linspace(0, 1, 8)[None, :, None] * torch.tensor([1.0, 2.0])
    assert torch.allclose(catmull_rom(line)[0, :, 1], 2 * catmull_rom(line)[0, :, 0], atol=1e-6)


def test_resampled_points_are_at_equal_steps():
    corner = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.5], [1.0, 6.0]])  # (one point twice)
    points = resample(corner)
    assert points.diff(dim=0).norm(dim=1) == pytest.approx(torch.ones(7), abs=1e-6)
    assert points[[0, -1]].tolist() == [[0, 0], [1, 6]]


def test_any_unit_and_any_number_of_points_gives_the_same_recording():
    turn = torch.linspace(0, 3, 201)
    path = torch.stack([turn.cos(), turn.sin()], dim=1)
    one, other = (StrokeEncoder.preprocess([x]) for x in (path, (1000 * path[::2] - 77).tolist()))
    assert one.shape == (1, 8, 2)
    assert one.amin(dim=1).tolist() == [[0, 0]]
    assert one.amax(dim=1).tolist() == [[1, 1]]
    assert torch.allclose(one, other, atol=1e-2)
    assert StrokeEncoder.preprocess(one) is one
    vertical = StrokeEncoder.preprocess([[(5, 0), (5, 3)]])
    assert (vertical[0, :, 0] == 0.5).all()


# ---- drawings ----


def test_a_drawing_looks_like_mnist():
    images = draw(made(40, seed=3).points)
    assert images.shape == (40, 1, 28, 28)
    assert (images.min(), images.max()) == (0, 1)
    for dim in (2, 3):
        mass = images.sum(dim=5 - dim)[:, 0]  # [40, 28]
        centre = (mass * torch.arange(28.0)).sum(dim=1) / mass.sum(dim=1)
        assert centre == pytest.approx(torch.full((40,), 13.5), abs=1.0)
        assert ((mass > 0.5).sum(dim=1) <= strokes.BOX + 2).all()


def test_y_goes_up():
    seven = torch.tensor([[[0, 1], [0.5, 1], [1, 1], [0.9, 0.8], [0.7, 0.6], [0.6, 0.4], [0.5, 0.2], [0.4, 0.0]]])
    rows = draw(seven)[0, 0].sum(dim=1)  # [28]
    rows = rows[rows > 0]
    assert rows[:3].sum() > 2 * rows[-3:].sum()


def test_augmented_strokes_stay_in_the_square():
    torch.manual_seed(0)
    points = made(40, seed=0).points
    changed = strokes.augment(points)
    assert (changed.min(), changed.max()) == (0, 1)
    assert 0.01 < (changed - points).abs().mean() < 0.15


# ---- the tower ----


def test_the_tower_is_added_to_the_file_of_its_clip_and_finds_each_drawing(clip_file, recordings):
    before = CLIP.load(clip_file)
    with pytest.raises(InputError, match="no tower for strokes: train one with `make strokes`"):
        before.encode("strokes", [[(0, 0), (1, 1)]])
    runs = train_strokes(clip_file, "--epochs", "25", "--run-name", "run")
    model, points = CLIP.load(clip_file), recordings["train"].points
    assert list(model.towers) == ["image", "text", "strokes"]
    assert model.fingerprint() == before.fingerprint()
    embeds = model.encode("strokes", points)  # [96, 8]
    assert embeds.norm(dim=1).detach() == pytest.approx(torch.ones(96), abs=1e-5)
    similarity = embeds @ model.encode_image(draw(points)).T
    assert recall_at_k(similarity, torch.eye(96, dtype=torch.bool), 5).mean() > 0.5
    saved = json.loads((runs / "run" / "metrics.json").read_text())
    assert saved["history"][-1]["loss"] < saved["history"][0]["loss"]
    assert model.metrics["strokes"]["val_zero_shot_accuracy"] == saved["val_zero_shot_accuracy"]
    assert torch.equal(CLIP.load(runs / "run" / "best_model.pth").encode("strokes", points), embeds)

    ten = Strokes(points[:10], torch.arange(10))
    features = torch.nn.functional.normalize(torch.rand(20, 8))
    split = Split(torch.zeros(20, 28, 28, dtype=torch.uint8), torch.arange(20) % 10)
    assert figures.recordings_to_images(model, "strokes", ten, split, features).axes[9].get_title() == "one"
    assert len(figures.strokes_read(model, ten).axes) > 4


def test_labels_and_towers_that_are_there_make_no_difference(clip_file, recordings):
    towers = []
    for run in ("one", "two"):  # the second time the file has a tower, and the labels are others
        train_strokes(clip_file, "--run-name", run)
        towers.append(tensors(CLIP.load(clip_file).towers["strokes"].state_dict()))
        for split, (points, labels) in recordings.items():
            recordings[split] = Strokes(points, labels + 3)
    assert all(torch.equal(one, other) for one, other in zip(*towers, strict=True))


def interrupt():
    raise KeyboardInterrupt


def test_an_interrupted_run_ends_with_the_same_bits_and_needs_its_own_clip(clip_file, recordings, monkeypatch):
    runs = train_strokes(clip_file, "--run-name", "whole")
    with monkeypatch.context() as patch:
        updates = iter(range(4))  # of 6; the interruption falls into the second epoch
        patch.setattr(train, "update", lambda *args: update(*args) if next(updates, None) is not None else interrupt())
        with pytest.raises(SystemExit, match="130"):
            train_strokes(clip_file, "--run-name", "parts")
    own = clip_file.read_bytes()
    save_clip(clip_file, seed=1)
    with pytest.raises(InputError, match=r"last.pth belongs to another CLIP or language model: name that one"):
        train_strokes(clip_file, "--resume", str(runs / "parts"))
    clip_file.write_bytes(own)
    train_strokes(clip_file, "--resume", str(runs / "parts"))
    whole, parts = (torch.load(runs / name / "last.pth", weights_only=True)["parts"] for name in ("whole", "parts"))
    assert all(torch.equal(one, other) for one, other in zip(tensors(whole), tensors(parts), strict=True))


def test_a_clip_that_is_replaced_during_training_stays_unchanged(clip_file, recordings, monkeypatch):
    own, finish = clip_file.read_bytes(), Run.end_epoch
    monkeypatch.setattr(Run, "end_epoch", lambda *args: (save_clip(clip_file, seed=1), finish(*args)))
    with pytest.raises(InputError, match=r"clip\.pth has become another CLIP"):
        train_strokes(clip_file, "--run-name", "run")
    assert "strokes" not in CLIP.load(clip_file).towers
    clip_file.write_bytes(own)
    train_strokes(clip_file, "--resume", str(clip_file.parent / "runs" / "run"))
    assert "strokes" in CLIP.load(clip_file).towers


def test_an_ablation_leaves_the_clip_unchanged(clip_file, recordings):
    before = clip_file.read_bytes()
    train_strokes(clip_file, "--shuffled", "--run-name", "ablation")
    assert clip_file.read_bytes() == before


def test_wrong_flags_and_torchrun_are_refused(clip_file, recordings, monkeypatch):
    for flags, message in (
        ([], "name first strokes or speech"),
        (["smell"], "name first strokes or speech"),
        (["strokes", "--held-out", "theo"], "--held-out"),
        (["speech", "--held-out", "nobody"], "--held-out"),
        (["strokes", "--batch-size", "7993"], "from 2 to 7992"),
    ):
        with pytest.raises(InputError, match=message):
            train.main(flags)
    monkeypatch.setenv("WORLD_SIZE", "2")  # as torchrun --nproc-per-node 2 sets it
    with pytest.raises(InputError, match="without torchrun"):
        train_strokes(clip_file)


# ---- data ----


def test_the_real_recordings():
    try:
        splits = [load_pendigits(split, ROOT / DATA_PATH) for split in ("train", "val", "test")]
    except InputError as error:
        pytest.skip(f"pendigits cannot be downloaded here: {error}")
    assert [len(split.labels) for split in splits] == [7_992, 1_000, 2_000]
    points = torch.cat([split.points for split in splits])
    assert points.amin(dim=1).eq(0).all()
    assert points.amax(dim=1).eq(1).all()
    counts = torch.cat([split.labels for split in splits]).bincount().tolist()
    assert counts == [1143, 1143, 1144, 1055, 1144, 1055, 1056, 1142, 1055, 1055]


def test_a_source_that_has_another_content_does_not_count(tmp_path, read_only):
    folder = tmp_path / "data"
    files = {"file": lambda content: content == b"right"}
    wrong, right = (lambda to, text=text: (to / "file").write_text(text) and None for text in ("wrong", "right"))
    with pytest.raises(InputError, match=r"one: cannot be reached\n  - two: another content for file"):
        fetch.obtain(folder, "some data", files, {"one": lambda to: "cannot be reached", "two": wrong})
    with pytest.raises(InputError, match=r"cannot write .*blocked"):
        fetch.obtain(read_only(tmp_path / "blocked"), "some data", files, {"two": right})
    for sources in ({"two": wrong, "three": right}, {}):  # the second time the file is there
        assert (fetch.obtain(folder, "some data", files, sources) / "file").read_text() == "right"
    (folder / "file").write_text("of the user")
    with pytest.raises(InputError, match="is not the file of some data"):
        fetch.obtain(folder, "some data", files, {"three": right})
    assert (folder / "file").read_text() == "of the user"
