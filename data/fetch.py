"""One file of a data set: what is there already, else from the first source that gives the right content."""

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from my_utils import InputError

STALE_SECONDS = 3600  # a killed download's temporary folder is removed after this
TIMEOUT = 20  # seconds without an answer before the next source is tried


def obtain(
    path: Path, what: str, is_right: Callable[[Path], bool], sources: dict[str, Callable[[Path], str | None]]
) -> Path:
    """The file `path`, which holds `what`. A source writes it to the place that it is given, or says why it cannot.

    It arrives in a temporary folder and moves in by rename once `is_right`, so that an interrupted download never
    counts. Raises InputError when no source gives the right content.
    """
    tried = []
    if path.is_file():
        if is_right(path):
            return path
        tried.append(f"  - {path}: truncated or corrupt")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        clear_stale(path.parent)
        for name, source in sources.items():
            with tempfile.TemporaryDirectory(dir=path.parent, prefix=".fetch-") as temporary:
                fetched = Path(temporary).resolve() / path.name
                failure = source(fetched)
                if not failure and is_right(fetched):
                    os.replace(fetched, path)
                    return path
                tried.append(f"  - {name}: {failure or 'it gave another content than expected'}")
    except OSError as error:
        raise InputError(
            f"cannot write {what} into {path.parent}: {error.strerror or error}; free the folder or name another with"
            " --data-path"
        ) from None
    raise InputError(
        f"{what} is not here and no source gave it:\n" + "\n".join(tried) + f"\nPlace {path} by hand and start again."
    )


def clear_stale(folder: Path) -> None:
    """Remove the temporary folders of downloads that were killed."""
    for stale in folder.glob(".fetch-*"):
        with contextlib.suppress(FileNotFoundError):  # another process may just have cleared it
            if time.time() - stale.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(stale, ignore_errors=True)
