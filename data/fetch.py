"""The files of a data set: those that are there, else from the first source that has the right ones."""

import socket
import tempfile
from collections.abc import Callable
from pathlib import Path

from my_utils import InputError, atomic_write, short

TIMEOUT = 20  # seconds without an answer before the next source is tried


def obtain(
    folder: Path, what: str, files: dict[str, Callable[[bytes], bool]], sources: dict[str, Callable[[Path], str | None]]
) -> Path:
    """The folder with all files of the data set `what`; each file's check says whether its content is right.

    A source writes the files into a temporary folder, or returns or raises why it cannot. What is there is never
    replaced.
    Raises InputError if a file has another content, or if no source has the files.
    """
    missing = [name for name in files if not (folder / name).is_file()]
    for name, is_right in files.items():
        if name not in missing and not is_right((folder / name).read_bytes()):
            raise InputError(
                f"{(folder / name).absolute()} is not the file of {what}: its content has another check sum. Move it"
                " away to download that one, or name another folder with --data-path"
            )
    tried = []
    for source, fetch in sources.items() if missing else ():
        with tempfile.TemporaryDirectory() as temporary:
            timeout, contents = socket.getdefaulttimeout(), {}
            socket.setdefaulttimeout(TIMEOUT)
            try:
                failure = fetch(Path(temporary))
                if not failure:
                    contents = {name: (Path(temporary) / name).read_bytes() for name in missing}
            except Exception as error:  # an address or an archive can be wrong in many ways
                failure = f"failed ({short(error)})"
            finally:
                socket.setdefaulttimeout(timeout)
        wrong = [name for name, content in contents.items() if not files[name](content)]
        if not failure and not wrong:
            for name, content in contents.items():
                atomic_write(folder / name, content)
            return folder
        tried.append(f"  - {source}: {failure or 'another content for ' + ', '.join(wrong)}")
    if missing:
        raise InputError(
            f"{what} is not in {folder.absolute()} and no source has it:\n"
            + "\n".join(tried)
            + f"\nPlace {', '.join(missing)} there by hand"
        )
    return folder
