import json

import pytest
import torch

from captions import DIGIT_WORDS
from clip import CLIP
from conftest import ROOT, tensors
from data import fetch, pendigits
from data.pendigits import Strokes, draw, load_pendigits, random_strokes
from evaluation.retrieval import recall_at_k
from my_dataset import DATA_PATH
from my_utils import InputError
from stroke_encoder import BETWEEN, StrokeEncoder, curve, read_strokes, resample
from training import align
from training.run import Interrupt
from training.settings import read_align_flags


def made(count: int, seed: int) -> Strokes:
    """Recordings of two kinds: rings, and ways with a corner, each drawn by a shaky hand."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    turn = torch.linspace(0, 2 * torch.pi, 8)
    ring = torch.stack([turn.sin(), turn.cos()], dim=1) / 2 + 0.5
    corner = torch.tensor([[0, 1], [0.5, 1], [1, 1], [0.8, 0.8], [0.6, 0.6], [0.5, 0.4], [0.4, 0.2], [0.3, 0.0]])
    points = torch.stack([ring, corner])[labels] + 0.08 * torch.randn(count, 8, 2, generator=generator)
    return Strokes(pendigits.fill_square(points), labels)


@pytest.fixture
def clip_file(tmp_path):
    torch.manual_seed(0)
    CLIP(embed_dim=8, width=4, image_encoder="fast").save(tmp_path / "clip.pth")
    return tmp_path / "clip.pth"


@pytest.fixture
def recordings(monkeypatch) -> dict[str, Strokes]:
    """A few recordings of our own in the place of pendigits."""
    splits = {"train": made(96, seed=0), "val": made(40, seed=1)}
    monkeypatch.setattr(align, "load_pendigits", lambda split, path, device: splits[split])
    return splits


def train(clip_file, *flags) -> int:
    runs = ["--runs-dir", str(clip_file.parent / "runs"), "--clip", str(clip_file), "--device", "cpu"]
    return align.main(*read_align_flags(["strokes", *runs, "--batch-size", "32", "--epochs", "2", *flags]))


# ---- the way of the pen ----


def test_the_curve_goes_through_all_points_and_is_straight_on_a_line():
    points = torch.rand(3, 8, 2, generator=torch.Generator().manual_seed(0))
    way = curve(points)
    assert way.shape == (3, 7 * BETWEEN + 1, 2)
    assert torch.allclose(way[:, ::BETWEEN], points, atol=1e-6)
    line = torch.linspace(0, 1, 8)[None, :, None] * torch.tensor([1.0, 2.0])
    assert torch.allclose(curve(line)[0, :, 1], 2 * curve(line)[0, :, 0], atol=1e-6)


def test_points_stand_at_equal_steps_along_the_way():
    corner = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.5], [1.0, 6.0]])  # (one point twice)
    points = resample(corner)
    assert torch.allclose(points.diff(dim=0).norm(dim=1), torch.ones(7), atol=1e-6)
    assert points[0].tolist() == [0, 0]
    assert points[-1].tolist() == [1, 6]


def test_any_unit_and_any_number_of_points_gives_the_same_recording():
    turn = torch.linspace(0, 3, 201)
    way = torch.stack([turn.cos(), turn.sin()], dim=1)
    one, other = (StrokeEncoder.preprocess(x) for x in (way, [(1000 * way[::2] - 77).tolist()]))
    assert one.shape == (1, 8, 2)
    assert one.amin(dim=1).tolist() == [[0, 0]]
    assert one.amax(dim=1).tolist() == [[1, 1]]
    assert torch.allclose(one, other, atol=1e-2)
    for again in (one, one[0], one.numpy(), one.tolist()):  # eight points stay as they are, in any container
        assert torch.allclose(StrokeEncoder.preprocess(again), one, atol=1e-6)
    vertical = StrokeEncoder.preprocess([[(5, 0), (5, 3)]])
    assert (vertical[0, :, 0] == 0.5).all()


@pytest.mark.parametrize(
    ("strokes", "message"),
    [
        ([], "an empty list"),
        ([[(1, 2)]], "at least two points"),
        ([[(1, 2), (1, 2)]], "at least two points"),
        ([[(1, 2), (3, float("nan"))]], "not finite"),
        (torch.full((2, 8, 2), torch.nan), "not finite"),
        (torch.zeros(2, 8, 2), "at least two points"),
        (torch.zeros(0, 8, 2), "an empty list"),
        ([[(1, 2, 3), (4, 5, 6)]], r"shape \[T, 2\]"),
        ("seven", "arrays of numbers"),
        (7, "arrays of numbers"),
    ],
)
def test_what_is_no_way_of_a_pen_is_refused(strokes, message):
    with pytest.raises(InputError, match=message):
        StrokeEncoder.preprocess(strokes)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no file"),
        (b"", "two numbers"),
        (b"1 2 3\n4 5 6\n", "two numbers"),
        (b"one two\n", "two numbers"),
        (b"\xff\xfe\x00RIFF", "two numbers"),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "way.txt").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_strokes(tmp_path / "way.txt")


def test_a_file_of_points_is_read_with_spaces_or_commas(tmp_path):
    (tmp_path / "way.txt").write_text("0 1\n2, 3.5\n\n4,5\n")
    assert read_strokes(tmp_path / "way.txt").tolist() == [[0, 1], [2, 3.5], [4, 5]]


# ---- drawn ----


def test_a_drawing_has_mnists_form():
    images = draw(made(40, seed=3).points)
    assert images.shape == (40, 1, 28, 28)
    assert images.min() == 0
    assert images.max() == 1
    pixels = torch.arange(28.0)
    for dim in (2, 3):
        mass = images.sum(dim=5 - dim)[:, 0]  # [40, 28]
        centre = (mass * pixels).sum(dim=1) / mass.sum(dim=1)
        assert centre == pytest.approx(torch.full((40,), 13.5), abs=1.0)
        ink = (mass > 0.5).int()
        assert (ink.argmax(dim=1) <= 27 - ink.flip(1).argmax(dim=1)).all()
        assert (ink.sum(dim=1) <= pendigits.BOX + 2).all()


def test_y_goes_up_and_x_to_the_right():
    # A seven: along the top to the right, then down to the left.
    seven = torch.tensor([[[0, 1], [0.5, 1], [1, 1], [0.9, 0.8], [0.7, 0.6], [0.6, 0.4], [0.5, 0.2], [0.4, 0.0]]])
    image = draw(seven)[0, 0]
    rows = image.sum(dim=1).nonzero().flatten()
    top, bottom = image[rows[0] : rows[0] + 3].sum(dim=0), image[rows[-1] - 2 : rows[-1] + 1].sum(dim=0)
    assert top.sum() > 2 * bottom.sum()


def test_changed_strokes_stay_in_the_square():
    torch.manual_seed(0)
    points = made(40, seed=0).points
    changed = random_strokes(points)
    assert changed.min() == 0
    assert changed.max() == 1
    assert 0.01 < (changed - points).abs().mean() < 0.15


# ---- the tower ----


def test_a_model_without_the_tower_names_the_command():
    with pytest.raises(InputError, match="no tower for strokes: train one with `make strokes`"):
        CLIP(embed_dim=8, width=4, image_encoder="fast").encode_strokes([[(0, 0), (1, 1)]])


def test_the_tower_joins_the_file_of_its_clip_and_learns_each_drawing(clip_file, recordings, capsys):
    before = CLIP.load(clip_file)
    assert train(clip_file, "--epochs", "25", "--run-name", "run") == 0
    model = CLIP.load(clip_file)
    assert list(model.towers) == ["image", "text", "strokes"]
    assert model.fingerprint() == before.fingerprint()  # what was trained on this CLIP still fits
    for name in ("image", "text"):
        for one, other in zip(
            tensors(before.towers[name].state_dict()), tensors(model.towers[name].state_dict()), strict=True
        ):
            assert torch.equal(one, other)
    embeds = model.encode_strokes(recordings["train"].points)
    assert embeds.shape == (96, 8)
    assert embeds.norm(dim=1).detach() == pytest.approx(torch.ones(96), abs=1e-5)
    found = embeds @ model.encode_image(draw(recordings["train"].points)).T
    assert recall_at_k(found, torch.eye(96, dtype=torch.bool), 5).mean() > 0.5
    saved = json.loads((clip_file.parent / "runs" / "run" / "metrics.json").read_text())
    assert saved["history"][-1]["loss"] < saved["history"][0]["loss"]
    assert model.metrics["strokes"]["val_emergent"] == saved["val_emergent"]
    assert f"the tower is in {clip_file} too" in capsys.readouterr().out
    again = CLIP.load(clip_file.parent / "runs" / "run" / "best_model.pth")
    assert torch.equal(again.encode_strokes(recordings["train"].points), embeds)


def test_labels_take_no_part(clip_file, recordings, monkeypatch):
    towers = []
    for turn in range(2):
        assert train(clip_file, "--run-name", f"run{turn}") == 0
        towers.append(tensors(CLIP.load(clip_file).towers["strokes"].state_dict()))
        for split, strokes in recordings.items():
            recordings[split] = Strokes(strokes.points, strokes.labels.roll(1) + 3)
    for one, other in zip(*towers, strict=True):
        assert torch.equal(one, other)


def test_a_run_resumes_at_the_very_step_and_with_its_own_clip(clip_file, recordings, monkeypatch):
    assert train(clip_file, "--run-name", "whole") == 0
    runs = clip_file.parent / "runs"
    monkeypatch.setattr(Interrupt, "requested", True)  # Ctrl-C in the first step, then in the one after it
    assert train(clip_file, "--run-name", "parts") == 130
    assert train(clip_file, "--resume", str(runs / "parts")) == 130
    monkeypatch.setattr(Interrupt, "requested", False)
    torch.manual_seed(1)
    CLIP(embed_dim=8, width=4, image_encoder="fast").save(runs / "other.pth")
    with pytest.raises(InputError, match="another CLIP"):
        train(clip_file, "--resume", str(runs / "parts"), "--clip", str(runs / "other.pth"))
    assert train(clip_file, "--resume", str(runs / "parts")) == 0
    whole, parts = (torch.load(runs / name / "last.pth", weights_only=True)["parts"] for name in ("whole", "parts"))
    for one, other in zip(tensors(whole), tensors(parts), strict=True):
        assert torch.equal(one, other)


def test_the_control_stays_out_of_the_clips_file(clip_file, recordings):
    before = clip_file.read_bytes()
    assert train(clip_file, "--shuffled", "--run-name", "control") == 0
    assert clip_file.read_bytes() == before


def test_a_clip_that_cannot_be_written_is_refused_before_training(clip_file, recordings, monkeypatch):
    monkeypatch.setattr("training.align.os.access", lambda folder, mode: folder != clip_file.resolve().parent)
    with pytest.raises(InputError, match="cannot be written"):
        train(clip_file, "--run-name", "run")
    assert not (clip_file.parent / "runs" / "run").exists()
    assert train(clip_file, "--shuffled", "--run-name", "control") == 0, "a measurement goes into no file"


def test_a_clip_that_was_trained_anew_meanwhile_stays_as_it_is(clip_file, recordings, monkeypatch, capsys):
    finish = align.finish

    def later(*args):
        torch.manual_seed(1)
        CLIP(embed_dim=8, width=4, image_encoder="fast").save(clip_file)
        finish(*args)

    monkeypatch.setattr(align, "finish", later)
    assert train(clip_file) == 0
    assert "has become another CLIP meanwhile" in capsys.readouterr().out
    assert "strokes" not in CLIP.load(clip_file).towers


def test_a_file_that_cannot_be_written_at_the_end_leaves_a_run_to_resume(clip_file, recordings, monkeypatch):
    save = CLIP.save

    def full(self, path):
        if str(path) == str(clip_file):
            raise InputError("cannot write it")
        save(self, path)

    with monkeypatch.context() as patch:
        patch.setattr(CLIP, "save", full)
        with pytest.raises(InputError, match="cannot write it"):
            train(clip_file, "--run-name", "run")
    assert "strokes" not in CLIP.load(clip_file).towers
    assert train(clip_file, "--resume", str(clip_file.parent / "runs" / "run")) == 0
    assert "strokes" in CLIP.load(clip_file).towers


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "say first what to align"),
        (["smell"], "strokes or speech"),
        (["strokes", "--held-out", "theo"], "--held-out"),
        (["speech", "--held-out", "nobody"], "--held-out"),
        (["strokes", "--epochs", "0"], "from 1"),
        (["strokes", "--run-name", "a/b"], "plain folder"),
        (["speech", "--resume", "--run-name", "a"], "leave out --run-name"),
    ],
)
def test_wrong_flags_are_refused(flags, message):
    with pytest.raises(InputError, match=message):
        read_align_flags(flags)


# ---- where the recordings come from ----


def test_the_real_recordings():
    try:
        pendigits.provision(ROOT / DATA_PATH)
    except InputError as error:
        pytest.skip(f"pendigits cannot be fetched here: {error}")
    splits = [load_pendigits(split, ROOT / DATA_PATH) for split in ("train", "val", "test")]
    assert [len(split.labels) for split in splits] == [7_992, 1_000, 2_000]
    points = torch.cat([split.points for split in splits])
    assert points.amin(dim=1).eq(0).all()
    assert points.amax(dim=1).eq(1).all()
    assert len(points.flatten(1).unique(dim=0)) > 10_900  # the splits share next to nothing
    assert torch.cat([split.labels for split in splits]).bincount().tolist() == [
        1143, 1143, 1144, 1055, 1144, 1055, 1056, 1142, 1055, 1055,
    ]  # fmt: skip
    assert len(DIGIT_WORDS) == 10
    with pytest.raises(InputError, match="unknown split"):
        load_pendigits("all", ROOT / DATA_PATH)


def test_a_source_that_gives_something_else_does_not_count(tmp_path):
    target = tmp_path / "data" / "file"

    def wrong(path):
        path.write_text("wrong")

    def right(path):
        path.write_text("right")

    def is_right(path):
        return path.read_text() == "right"

    with pytest.raises(InputError, match=r"one: cannot be reached\n  - two: it gave another content"):
        fetch.obtain(target, "some data", is_right, {"one": lambda path: "cannot be reached", "two": wrong})
    assert list(target.parent.iterdir()) == []
    assert fetch.obtain(target, "some data", is_right, {"two": wrong, "three": right}) == target
    assert fetch.obtain(target, "some data", is_right, {}) == target
    target.write_text("damaged")
    with pytest.raises(InputError, match="truncated or corrupt"):
        fetch.obtain(target, "some data", is_right, {})
    assert target.read_text() == "damaged"  # never removed, for it is the user's


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path, read_only):
    folder = read_only(tmp_path / "blocked")
    with pytest.raises(InputError, match="cannot write some data"):
        fetch.obtain(folder / "file", "some data", lambda path: True, {})
