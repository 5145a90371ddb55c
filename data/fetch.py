"""The files of a data set: those that are there, else from the first source that has the right ones."""

import contextlib
import functools
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from my_utils import TEMPORARY, InputError

STALE_SECONDS = 3600  # the temporary folder of a killed download is removed after this
TIMEOUT = 20  # seconds without an answer before the next source is tried


def obtain(
    folder: Path, what: str, files: dict[str, Callable[[Path], bool]], sources: dict[str, Callable[[Path], str | None]]
) -> Path:
    """The folder with all files of the data set `what`; each file's check says whether its content is right.

    A source writes the files into a temporary folder, or returns why it cannot. They move to their place by rename once
    they are right, so that an interrupted download never counts. A file that is there is never replaced.
    Raises InputError if one has another content, or if no source has the files.
    """
    missing = [name for name in files if not (folder / name).is_file()]
    for name, is_right in files.items():
        if name not in missing and not _checked(is_right, folder / name, *_state(folder / name)):
            raise InputError(
                f"{(folder / name).absolute()} is not the file of {what}: its content has another check sum. Move it"
                " away to download that one, or name another folder with --data-path"
            )
    if not missing:
        return folder
    tried = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _clear_stale(folder)
        for source, fetch in sources.items():
            with tempfile.TemporaryDirectory(dir=folder, prefix=f"{TEMPORARY}fetch-") as temporary:
                temporary = Path(temporary).resolve()
                failure = fetch(temporary)
                if not failure:
                    wrong = [name for name in missing if not _is_right(files[name], temporary / name)]
                    failure = f"it gave another content for {', '.join(wrong)}" if wrong else None
                if not failure:
                    for name in missing:
                        os.replace(temporary / name, folder / name)
                    return folder
                tried.append(f"  - {source}: {failure}")
    except OSError as error:
        raise InputError(
            f"cannot write {what} into {folder}: {error.strerror or error}; free the folder or name another with"
            " --data-path"
        ) from None
    raise InputError(
        f"{what} is not in {folder.absolute()} and no source has it:\n" + "\n".join(tried) + "\nPlace there by hand: "
        + ", ".join(missing)
    )


def _is_right(is_right: Callable[[Path], bool], path: Path) -> bool:
    try:
        return path.is_file() and is_right(path)
    except Exception:  # arbitrary bytes lead a reader to any error
        return False


def _state(path: Path) -> tuple[int, int]:
    return path.stat().st_size, path.stat().st_mtime_ns


@functools.cache  # a file that has not changed is checked once in a process
def _checked(is_right: Callable[[Path], bool], path: Path, size: int, modified: int) -> bool:
    return _is_right(is_right, path)


def _clear_stale(folder: Path) -> None:
    for stale in folder.glob(f"{TEMPORARY}fetch-*"):
        with contextlib.suppress(FileNotFoundError):  # another process may just have cleared it
            if time.time() - stale.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(stale, ignore_errors=True)
