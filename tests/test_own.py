"""Training on one's own pictures and texts."""

import gzip
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import evaluate
from benchmarks.own import make_shapes
from clip import CLIP, fit
from conftest import metrics_of, train_here
from data.augment import augment
from data.own import read_folder
from evaluation.notebook import StopNotebook, load_model
from evaluation.own import evaluate_own
from evaluation.retrieval import fair_recall_at_k
from my_dataset import OwnPairs, OwnSplit
from my_utils import InputError

TINY = ["--width", 4, "--embed-dim", 16, "--epochs", 1, "--batch-size", 32, "--device", "cpu", "--augment", "none"]


def save(path: Path, level: int = 100) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (30, 20), level).save(path)


def write_table(path: Path, rows: list[dict]) -> None:
    lines = [",".join(rows[0]), *(",".join(f'"{value}"' for value in row.values()) for row in rows)]
    path.write_text("\n".join(map(json.dumps, rows) if path.suffix == ".jsonl" else lines))


def write_pictures(folder: Path, table: str = "metadata.csv") -> list[dict]:
    """40 pictures whose grey level is their number, each with a text of its own; and their table."""
    rows = [{"file_name": f"{i}.png", "text": f"picture number {i + 100}"} for i in range(40)]
    for i in range(40):
        save(folder / f"{i}.png", level=i)
    write_table(folder / table, rows)
    return rows


def refused(folder: Path, **options) -> str:
    read_folder.cache_clear()
    with pytest.raises(InputError) as error:
        read_folder(str(folder), **options)
    assert "\n" not in str(error.value)
    return str(error.value)


# ---- reading ----


def test_texts_of_the_same_words_are_one_and_classes_of_the_same_words_are_refused(tmp_path):
    rows = write_pictures(tmp_path)
    write_table(
        tmp_path / "metadata.csv", [row | {"text": ("a cat", "A cat.", "a dog")[i % 3]} for i, row in enumerate(rows)]
    )
    read_folder.cache_clear()
    assert set(read_folder(str(tmp_path))["train"].texts) == {"a cat", "a dog"}
    for name in ("Cat", "cat", "dog"):
        (tmp_path / "classes" / name).mkdir(parents=True)
        save(tmp_path / "classes" / name / "0.png", level=0)
    assert "two classes of" in refused(tmp_path / "classes")


@pytest.mark.parametrize("table", ["metadata.csv", "metadata.jsonl"])
def test_each_picture_keeps_its_texts_and_is_in_one_split(tmp_path, table):
    rows = write_pictures(tmp_path, table)
    write_table(tmp_path / table, [*rows, {"file_name": "3.png", "text": "another, with a comma"}])
    splits, levels = read_folder(str(tmp_path)), []
    for split in splits.values():
        assert split.images.shape[1:] == (3, 28, 28)
        for image, text in split.pairs.tolist():
            level = int(split.images[image, 0, 0, 0])
            assert split.texts[text] in (f"picture number {level + 100}", "another, with a comma" if level == 3 else "")
        levels += split.images[:, 0, 0, 0].tolist()
    assert sorted(levels) == list(range(40))
    assert sum(len(split.pairs) for split in splits.values()) == 41
    assert [len(splits[name].images) for name in ("val", "test")] == [4, 3]


def test_class_folders_are_classes_in_every_split(tmp_path):
    for part, count in (("train", 12), ("validation", 2), ("test", 3)):
        for name in ("ankle_boot", "bag"):
            for i in range(count):
                save(tmp_path / part / name / f"{i}.JPG")
    (tmp_path / "train" / "bag" / "Thumbs.db").write_bytes(b"no picture")
    splits = read_folder(str(tmp_path), 32, 1)
    shapes = {name: tuple(split.images.shape) for name, split in splits.items()}
    assert shapes == {"train": (24, 1, 32, 32), "val": (4, 1, 32, 32), "test": (6, 1, 32, 32)}
    assert all(split.classes == split.texts == ("ankle boot", "bag") for split in splits.values())
    assert splits["test"].pairs[:, 1].bincount().tolist() == [3, 3]


def test_idx_files_are_read_plain_or_compressed(tmp_path):
    pixels, labels = np.random.default_rng(0).integers(256, size=(60, 28, 28), dtype=np.uint8), np.arange(60) % 3
    for prefix, end in (("train", ".gz"), ("t10k", "")):
        for name, array in (("images-idx3", pixels), ("labels-idx1", labels.astype(np.uint8))):
            content = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes() + array.tobytes()
            (tmp_path / f"{prefix}-{name}-ubyte{end}").write_bytes(gzip.compress(content) if end else content)
    (tmp_path / "classes.txt").write_text("bag\nshoe\nshirt\n")
    splits = read_folder(str(tmp_path))
    assert torch.equal(splits["test"].images[:, 0], torch.from_numpy(pixels))
    assert [splits["test"].texts[i] for i in splits["test"].pairs[:4, 1]] == ["bag", "shoe", "shirt", "bag"]
    assert [len(splits[name].images) for name in ("train", "val")] == [54, 6]
    (tmp_path / "classes.txt").write_text("bag\nshoe\n")
    assert "not to 2 classes" in refused(tmp_path)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(b"\x00\x00")
    assert "is no IDX file" in refused(tmp_path)


def test_what_is_wrong_in_a_folder_is_one_sentence_with_the_row(tmp_path, monkeypatch):
    assert "no pictures in" in refused(tmp_path / "no")
    rows = write_pictures(tmp_path)
    changes = {
        "row 9 of .*has no text": {"text": " "},
        "row 9 of .*there is no file .*gone.png": {"file_name": "gone.png"},
        "row 9 of .*metadata.csv is not a picture": {"file_name": "metadata.csv"},
    }
    for message, change in changes.items():
        write_table(tmp_path / "metadata.csv", [*rows[:7], rows[7] | change, *rows[8:]])
        assert re.search(message, refused(tmp_path))
    tables = {
        "row 2 of .*has the split 'trian'": [row | {"split": "trian"} for row in rows],
        "train pictures, all of one text": [row | {"text": "all the same"} for row in rows],
        "has 1 train pictures": rows[:3],
        "needs the columns file_name and text": [{"file": "0.png", "text": "a"}],
    }
    for message, table in tables.items():
        write_table(tmp_path / "metadata.csv", table)
        assert re.search(message, refused(tmp_path))
    write_table(tmp_path / "metadata.csv", rows)
    monkeypatch.setattr("os.sysconf", lambda name: 100)
    assert "40 pictures of 128 pixels take 0.0 GB of memory" in refused(tmp_path, side=128)


@pytest.mark.parametrize(("ink", "paper"), [("white", 0), ("black", 255)])
def test_what_is_drawn_on_nothing_stays_visible(ink, paper):
    image = Image.new("RGBA", (40, 40))
    image.paste(ink, (10, 10, 30, 30))
    assert fit(image, 3, 40)[:, [0, 20], [0, 20]].tolist() == [[paper, 255 - paper]] * 3


# ---- pairs, evaluation, a run ----


def test_a_text_is_true_of_each_picture_that_has_it_and_of_no_other():
    given = [(0, 0), (0, 1), (1, 1), (2, 2)]
    images = torch.arange(3, dtype=torch.uint8).view(3, 1, 1, 1).expand(3, 1, 28, 28)
    for shares in (1, 2):
        pairs = OwnPairs(OwnSplit(images, ("a", "b", "c"), torch.tensor(given), ()))
        batches = [next(pairs.epoch(4, rank=rank, world_size=shares)) for rank in range(shares)]
        shown = torch.cat([(batch.images[:, 0, 0, 0] * 255).round().long() for batch in batches])
        texts = torch.cat([batch.texts.index for batch in batches])
        labels = batches[0].labels._make(map(torch.cat, zip(*(batch.labels for batch in batches), strict=True)))
        assert labels.match()[0].tolist() == [[(i, t) in given for t in texts.tolist()] for i in shown.tolist()]


def test_recall_shares_the_point_among_ties_and_an_unread_text_finds_nothing():
    similarity = torch.tensor([[0.5, 0.5, 0.5, 0.9], [0.1, 0.2, 0.3, 0.4], [0.0, 0.0, 0.0, 0.0]])
    relevant = torch.tensor([[True, False, False, False], [False, False, False, True], [True, True, False, False]])
    torch.testing.assert_close(fair_recall_at_k(similarity, relevant, 1), torch.tensor([0, 1, 0.5]))
    torch.testing.assert_close(fair_recall_at_k(similarity, relevant, 2), torch.tensor([1 / 3, 1, 5 / 6]))
    assert fair_recall_at_k(similarity, relevant & False, 5).isnan().all()
    model = CLIP(8, "scene", 2, "own", side=28, sentences=("a cat", "a dog")).eval()
    split = OwnSplit(torch.randint(256, (4, 1, 28, 28), dtype=torch.uint8), ("a unicorn",), torch.tensor([[0, 0]]), ())
    metrics = evaluate_own(model, split)
    assert metrics["text_to_image_recall_at_1"] == 0
    assert metrics["unread_texts"] == 1


@pytest.mark.parametrize(("kind", "steps"), [("shift", {1}), ("flip", {1, -1})])
def test_shifted_pictures_keep_their_pixels_and_flips_mirror_some_of_them(kind, steps):
    changed = augment(torch.arange(28, dtype=torch.uint8).expand(200, 3, 28, 28), kind) * 255
    assert set(changed[:, :, 14, 15:18].diff(dim=-1).mean(dim=(1, 2)).round().tolist()) == steps
    assert 11 < changed[:, :, :, 14].min() < 13 < 14 < changed[:, :, :, 14].max() < 16.01


def test_a_run_on_own_pictures_is_loaded_evaluated_searched_and_started_from(tmp_path, capsys, monkeypatch):
    make_shapes(tmp_path / "shapes", 300, side=32)
    flags = ["--data", tmp_path / "shapes", "--image-size", 32, *TINY, "--runs-dir", tmp_path]
    train_here(*flags, "--run-name", "first")
    checkpoint = tmp_path / "first" / "best_model.pth"
    model, test = CLIP.load(checkpoint), read_folder(str(tmp_path / "shapes"), 32)["test"]
    metrics, reached = evaluate_own(model, test), metrics_of(tmp_path / "first")
    assert all(reached[f"test_{name}"] == value for name, value in metrics.items())
    picture = Image.open(tmp_path / "shapes" / "0.png").convert("RGBA").resize((50, 40))
    assert model(picture, ["a red circle above a blue square", "a green square"]).logits_per_image.shape == (1, 2)
    with pytest.raises(InputError, match=r"must be \[B, 3, 32, 32\]"):
        model.encode_image(torch.zeros(2, 32, 32))
    with pytest.raises(InputError, match="'dragon'"):
        model.encode_text("a red dragon")
    evaluate.main([str(checkpoint), "--pictures", str(tmp_path / "pictures")])
    assert "image to text recall at 1" in capsys.readouterr().out
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StopNotebook, match="reads the pictures of its own data"):
        load_model(str(checkpoint))
    assert (tmp_path / "inference_test" / "search.png").exists()
    done = train_here(*flags, "--embed-dim", 8, "--init", checkpoint)
    assert "new are towers.image.projection.weight, towers.image.projection.bias, towers.text.projection" in done.stdout
    with pytest.raises(InputError, match="is not a checkpoint"):
        train_here(*flags, "--run-name", "third", "--init", tmp_path / "shapes" / "0.png")


def test_the_classes_are_in_the_checkpoint(tmp_path):
    model = CLIP(8, "scene", 2, "own", side=40, classes=("ankle boot", "bag"))
    model.save(tmp_path / "model.pth")
    loaded = CLIP.load(tmp_path / "model.pth")
    assert torch.allclose(loaded.zero_shot_classifier(), model.eval().encode_text(["ankle boot", "bag"]))
