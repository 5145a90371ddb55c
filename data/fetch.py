"""The files of a data set: those that are there, else from the first source that has the right ones."""

import tempfile
from collections.abc import Callable
from pathlib import Path

from my_utils import InputError, atomic_write

TIMEOUT = 20  # seconds without an answer before the next source is tried


def obtain(
    folder: Path, what: str, files: dict[str, Callable[[bytes], bool]], sources: dict[str, Callable[[Path], str | None]]
) -> Path:
    """The folder with all files of the data set `what`; each file's check says whether its content is right.

    A source writes the files into a temporary folder, or returns why it cannot. What is there is never replaced.
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
            failure = fetch(Path(temporary))
            contents = {} if failure else {name: (Path(temporary) / name).read_bytes() for name in missing}
        wrong = [name for name, content in contents.items() if not files[name](content)]
        if not failure and not wrong:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise InputError(
                    f"cannot write {what} into {folder}: {error.strerror}; name another with --data-path"
                ) from None
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
