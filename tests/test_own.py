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
from clip import CLIP
from conftest import metrics_of, train_here
from data.augment import augment
from data.own import read_folder, read_test
from evaluation.own import evaluate_own, search
from evaluation.retrieval import fair_recall_at_k
from my_dataset import OwnPairs, OwnSplit
from my_utils import InputError

TINY = ["--width", 4, "--embed-dim", 16, "--epochs", 1, "--batch-size", 32, "--device", "cpu", "--augment", "none"]


@pytest.fixture(scope="session")
def shapes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("shapes")
    make_shapes(folder, 300, side=32)
    return folder


@pytest.fixture(scope="session")
def run(shapes, tmp_path_factory) -> Path:
    """The folder of a run on the shapes."""
    runs = tmp_path_factory.mktemp("own")
    train_here("--data", shapes, "--image-size", 32, *TINY, "--runs-dir", runs, "--run-name", "first")
    return runs / "first"


def save(path: Path, level: int = 100, size=(30, 20), mode: str = "L") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full(size[::-1], level, np.uint8)).convert(mode).save(path)


def write_pictures(folder: Path, count: int = 40, table: str = "metadata.csv") -> list[dict]:
    """Pictures whose grey level is their number, each with a text of its own; and their table."""
    rows = [{"file_name": f"{i}.png", "text": f"picture number {i + 100}"} for i in range(count)]
    for i in range(count):
        save(folder / f"{i}.png", level=i)
    write_table(folder / table, rows)
    return rows


def write_table(path: Path, rows: list[dict]) -> None:
    if path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    else:
        lines = [",".join(rows[0]), *(",".join(f'"{value}"' for value in row.values()) for row in rows)]
        path.write_text("\n".join(lines))


def refused(folder: Path, **options) -> str:
    read_folder.cache_clear()
    with pytest.raises(InputError) as error:
        read_folder(str(folder), **options)
    assert "\n" not in str(error.value)
    return str(error.value)


# ---- reading ----


@pytest.mark.parametrize("table", ["metadata.csv", "metadata.jsonl"])
def test_each_picture_keeps_its_texts_and_is_in_one_split(tmp_path, table):
    rows = write_pictures(tmp_path, table=table)
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
                save(tmp_path / part / name / f"{i}.JPG", mode="RGB")
    (tmp_path / "train" / "bag" / "Thumbs.db").write_bytes(b"no picture")
    splits = read_folder(str(tmp_path), 32, 1)
    assert {name: tuple(split.images.shape) for name, split in splits.items()} == {
        "train": (24, 1, 32, 32),
        "val": (4, 1, 32, 32),
        "test": (6, 1, 32, 32),
    }
    assert all(split.classes == split.texts == ("ankle boot", "bag") for split in splits.values())
    assert splits["test"].pairs[:, 1].bincount().tolist() == [3, 3]


def write_idx(path: Path, array: np.ndarray, compress: bool = False) -> None:
    content = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes() + array.tobytes()
    path.with_name(path.name + ".gz" * compress).write_bytes(gzip.compress(content) if compress else content)


def test_idx_files_are_read_plain_or_compressed(tmp_path):
    pixels, labels = np.random.default_rng(0).integers(256, size=(60, 28, 28), dtype=np.uint8), np.arange(60) % 3
    for prefix, compress in (("train", True), ("t10k", False)):
        write_idx(tmp_path / f"{prefix}-images-idx3-ubyte", pixels, compress)
        write_idx(tmp_path / f"{prefix}-labels-idx1-ubyte", labels.astype(np.uint8), compress)
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
    assert "there is no folder" in refused(tmp_path / "no")
    assert "has no pictures" in refused(tmp_path)
    rows = write_pictures(tmp_path)
    table = tmp_path / "metadata.csv"
    for change, message in (
        ({"text": " "}, "row 9 of .*has no text"),
        ({"file_name": "gone.png"}, "row 9 of .*gone.png cannot be read: there is no file"),
        ({"file_name": "metadata.csv"}, "row 9 of .*cannot be read: cannot identify image"),
    ):
        write_table(table, [*rows[:7], rows[7] | change, *rows[8:]])
        assert re.search(message, refused(tmp_path))
    write_table(table, [row | {"split": "trian"} for row in rows])
    assert "row 2 of" in (message := refused(tmp_path))
    assert "has the split 'trian'" in message
    write_table(table, [row | {"text": "all the same"} for row in rows])
    assert "all of one text" in refused(tmp_path)
    write_table(table, rows[:3])
    assert "has 1 train pictures" in refused(tmp_path)
    write_table(table, [{"file": "0.png", "text": "a"}])
    assert "needs the columns file_name and text" in refused(tmp_path)
    write_table(table, rows)
    monkeypatch.setattr("os.sysconf", lambda name: 100)
    assert "40 pictures of 128 pixels take 0.0 GB of memory" in refused(tmp_path, side=128)


# ---- pairs, model, evaluation ----


def test_a_text_is_true_of_each_picture_that_has_it_and_of_no_other():
    pairs = torch.tensor([[0, 0], [0, 1], [1, 1], [2, 2]])
    split = OwnSplit(
        torch.arange(3, dtype=torch.uint8).view(3, 1, 1, 1).expand(3, 1, 28, 28), ("a", "b", "c"), pairs, ()
    )
    for shares in (1, 2):
        batches = [next(OwnPairs(split).epoch(4, rank=rank, world_size=shares)) for rank in range(shares)]
        images = torch.cat([(batch.images[:, 0, 0, 0] * 255).round().long() for batch in batches])
        texts = torch.cat([batch.texts.index for batch in batches])
        facts, claims = (torch.cat([batch.labels[i] for batch in batches]) for i in (0, 1))
        given = {tuple(pair) for pair in pairs.tolist()}
        positive = batches[0].labels._replace(facts=facts, claims=claims, unknown=torch.zeros_like(facts)).match()[0]
        assert positive.tolist() == [[(i, t) in given for t in texts.tolist()] for i in images.tolist()]


def test_recall_shares_the_point_among_ties():
    similarity = torch.tensor([[0.5, 0.5, 0.5, 0.9], [0.1, 0.2, 0.3, 0.4], [0.0, 0.0, 0.0, 0.0]])
    relevant = torch.tensor([[True, False, False, False], [False, False, False, True], [True, True, False, False]])
    torch.testing.assert_close(fair_recall_at_k(similarity, relevant, 1), torch.tensor([0, 1, 0.5]))
    torch.testing.assert_close(fair_recall_at_k(similarity, relevant, 2), torch.tensor([1 / 3, 1, 5 / 6]))
    assert fair_recall_at_k(similarity, relevant & False, 5).isnan().all()


@pytest.mark.parametrize("kind", ["shift", "flip"])
def test_shifted_pictures_keep_their_colours_and_flips_mirror_half_of_them(kind):
    ramp = torch.arange(28, dtype=torch.uint8).expand(200, 3, 28, 28)
    changed = augment(ramp, kind) * 255
    steps = changed[:, :, 14, 15:18].diff(dim=-1).round().mean(dim=(1, 2))
    assert set(steps.tolist()) == ({1, -1} if kind == "flip" else {1})
    assert changed[:, 0, 14, 14].round().unique().tolist() == ([11, 12, 13, 14, 15, 16][kind == "shift" :])


def test_a_run_on_own_pictures_is_loaded_evaluated_searched_and_started_from(run, shapes, tmp_path, capsys):
    model, metrics = CLIP.load(run / "best_model.pth"), metrics_of(run)
    assert 0 <= metrics["test_image_to_text_recall_at_1"] <= metrics["test_image_to_text_recall_at_5"] <= 1
    own = evaluate_own(model, read_test(model))
    assert {f"test_{name}": value for name, value in own.items()}.items() <= metrics.items()
    picture = Image.open(shapes / "0.png").convert("RGBA").resize((50, 40))
    assert model(picture, ["a red circle above a blue square", "a green square"]).logits_per_image.shape == (1, 2)
    with pytest.raises(InputError, match=r"must be \[B, 3, 32, 32\]"):
        model.encode_image(torch.zeros(2, 32, 32))
    with pytest.raises(InputError, match="'dragon'"):
        model.encode_text("a red dragon")
    with pytest.raises(InputError, match="pictures of its own data"):
        model.require_digits()
    assert len(search(model, read_test(model)).axes) > 50
    evaluate.main([str(run / "best_model.pth"), "--pictures", str(tmp_path)])
    assert "image to text recall at 1" in capsys.readouterr().out
    flags = ["--data", shapes, "--image-size", 32, *TINY, "--embed-dim", 8, "--runs-dir", tmp_path / "runs"]
    done = train_here(*flags, "--init", run / "best_model.pth")
    assert "new are towers.image.projection.weight, towers.image.projection.bias, towers.text.projection" in done.stdout
    with pytest.raises(InputError, match="is not a checkpoint"):
        train_here(*flags, "--init", shapes / "0.png")


def test_classes_are_in_the_checkpoint(tmp_path):
    model = CLIP(8, "scene", 2, "own", text_encoder="table", side=40, classes=("ankle boot", "bag"))
    model.save(tmp_path / "model.pth")
    loaded = CLIP.load(tmp_path / "model.pth")
    assert loaded.arch["classes"] == ["ankle boot", "bag"]
    assert torch.allclose(loaded.zero_shot_classifier(), model.eval().encode_text(["ankle boot", "bag"]))


def test_a_text_with_an_unknown_word_is_found_by_chance_alone():
    model = CLIP(8, "scene", 2, "own", side=28, sentences=("a cat", "a dog")).eval()
    images = torch.randint(256, (4, 1, 28, 28), dtype=torch.uint8)
    split = OwnSplit(images, ("a unicorn",), torch.tensor([[0, 0]]), ())
    metrics = evaluate_own(model, split)
    assert metrics["text_to_image_recall_at_1"] == pytest.approx(0.25)
    assert metrics["unread_texts"] == 1
