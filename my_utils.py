"""Device and file helpers, and the errors of a command line."""

import argparse
import contextlib
import gc
import io
import json
import math
import os
import platform
import re
import shutil
import signal
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import safetensors.torch
import torch

FORMAT = 5  # of checkpoints; raised when an older file can no longer be read
TEMPORARY = ".minist-clip-"  # the beginning of the names of our temporary files, and of no others
CODE = ("*.py", "*.txt", "demo", ":!tests")  # what figures depend on, as git names it: no documents, no results
MAX_FILE = 2**30  # bytes; no file that we read is larger, but a device or a pipe can be endless


class InputError(ValueError):
    """Invalid user input; the message says how to fix it. Programs exit with code 2."""


class WrongKindError(InputError):
    """A checkpoint of another kind than asked for: a generator in place of a CLIP."""


def short(text, limit: int = 160) -> str:
    """The last line of a library's error, or a path, short enough for a sentence."""
    text = (str(text).strip() or type(text).__name__).splitlines()[-1].strip()
    return text if len(text) <= limit else text[: limit - 3] + "..."


def quote(text: str) -> str:
    """What a user typed, in quotes, for a message: shortened, letters of any language as they are."""
    return short(repr(str(text)), 80)


def is_valid_unicode(text: str) -> bool:
    """Whether a text can be encoded: a byte that is no UTF-8 becomes a lone surrogate, which cannot."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


# ---- command lines ----


@contextlib.contextmanager
def exit_on_error(memory: str = "end other programs, or use --device cpu"):
    """Turn invalid input, a full disk, full memory (`memory` says what to do) and Ctrl-C into one sentence on stderr.

    The exit code is 2, after Ctrl-C 130.
    """
    gc.freeze()  # what the imports made lives to the end: no search for garbage need look at it (a second in a run)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the shell, as with 2>&-
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        getattr(sys, name).reconfigure(errors="backslashreplace")  # not every terminal can print every letter
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # whoever read our output has ended, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        where = f" {short(error.filename)}" if error.filename else ""
        print(f"error: cannot read or write{where}: {error.strerror or error}", file=sys.stderr)
        sys.exit(2)
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            print(f"error: out of memory: {memory}", file=sys.stderr)
            sys.exit(2)
        if int(os.environ.get("RANK", 0)) == 0:
            raise
        print(f"error in process {os.environ['RANK']}: {short(error)}", file=sys.stderr)  # as when the first one ends
        sys.exit(1)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        print("\ninterrupted: no file is half-written", file=sys.stderr)
        sys.exit(130)


class ArgumentParser(argparse.ArgumentParser):
    """argparse whose errors are one sentence, an InputError."""

    def __init__(self, **options):
        options.setdefault("formatter_class", argparse.ArgumentDefaultsHelpFormatter)
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str):
        raise InputError(f"{short(message, 300)} (see --help)")


def number(kind: type, low: float, high: float):
    """An argparse type: an int or float from `low` to `high`."""

    def parse(text: str):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:  # (a NaN is not inside)
            noun = "whole number" if kind is int else "number"
            raise argparse.ArgumentTypeError(f"{quote(text)} is not a {noun} from {low} to {high}")
        return value

    return parse


def text(value: str) -> str:
    """An argparse type: a text that is not empty and can be encoded."""
    if not value.strip():
        raise argparse.ArgumentTypeError("it is empty: give a value, or leave the flag out")
    if not is_valid_unicode(value):
        raise argparse.ArgumentTypeError(f"{quote(value)} holds a byte that is no UTF-8: type it in plain letters")
    return value


# ---- files ----


def atomic_write(path: str | Path, content: bytes) -> None:
    """Write a file so that the old or the new content is there whole, even after a crash; makes its folder if need be.

    Raises InputError if it cannot be written (no permission, disk full); the old file then stays.
    """
    path = Path(path)
    if not path.name:
        raise InputError(f"{quote(path)} names no file to write: give one, such as model.pth")
    temporary = path.with_name(f"{TEMPORARY}{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}; choose another folder") from None
    finally:
        with contextlib.suppress(OSError):  # Ctrl-C too leaves none behind
            temporary.unlink(missing_ok=True)


def clear_temporary(folder: Path) -> None:
    """Remove what `atomic_write` left in a run's own folder when its process was killed."""
    for path in folder.glob(f"{TEMPORARY}*"):
        with contextlib.suppress(OSError):
            path.unlink()


def read_file(path: str | Path, what: str, largest: int = MAX_FILE) -> bytes:
    """The content of a plain file named by the user, `what` in a few words.

    Raises InputError if it is missing, unreadable, above `largest` bytes, or no plain file (a pipe has no end).
    """
    try:
        info = os.stat(path)
        if not stat.S_ISREG(info.st_mode):
            raise InputError(f"{path} is a folder, a pipe or a device, not a file: name {what}")
        if info.st_size > largest:
            raise InputError(f"{path} has more than {largest / 1e6:,.0f} MB, too much for {what}")
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise InputError(f"there is no file {Path(path).absolute()}: name {what}") from None
    except (OSError, ValueError) as error:  # (a path with a null byte is a ValueError)
        if isinstance(error, InputError):
            raise
        raise InputError(f"cannot read {quote(path)}: {getattr(error, 'strerror', None) or error}") from None


def save_checkpoint(path: str | Path, kind: str, content: dict) -> None:
    """Write tensors and plain values to one file, whole or not at all. `kind` is "CLIP", "generator" or "run".

    Raises ValueError for numbers that are not finite, InputError if the file cannot be written. The old one then stays.
    """
    if not _is_finite(content):
        raise ValueError(f"{path} is not written: the {kind} holds numbers that are not finite")
    file = io.BytesIO()
    torch.save({"kind": kind, "format": FORMAT} | content, file)
    atomic_write(path, file.getvalue())


def load_checkpoint(path: str | Path, kind: str) -> dict:
    """Read such a file, or a folder of `save_folder`, onto the CPU; never runs code from it.

    Raises InputError if it is missing, damaged, of another kind or version, or holds numbers that are not finite.
    """
    if os.path.isdir(path):
        return _checked(_read_folder(Path(path)), path, kind)
    command = "make generator" if kind == "generator" else "make train"
    content = read_file(path, largest=2**40, what=f"the checkpoint of a {kind}; `{command}` makes one")
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            damaged = archive.testzip()  # torch does not look at the check sums
        checkpoint = None if damaged else torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception:  # the unpickler meets arbitrary bytes and raises whatever they lead it to
        checkpoint = None
    if not isinstance(checkpoint, dict):
        raise InputError(f"{path} is not a checkpoint, or is damaged: train again with `{command}`, or name another")
    return _checked(checkpoint, path, kind)


def _checked(checkpoint: dict, path: str | Path, kind: str) -> dict:
    if checkpoint.get("format") != FORMAT:
        raise InputError(f"{path} was saved by another version of this program, or by another program: train again")
    if checkpoint.get("kind") != kind:
        raise WrongKindError(f"{path} is the checkpoint of a {checkpoint.get('kind')}, not of a {kind}: name another")
    if not _is_finite(checkpoint):
        raise InputError(f"{path} holds numbers that are not finite: train again")
    return checkpoint


def save_folder(folder: str | Path, kind: str, content: dict) -> None:
    """Write a checkpoint as model.safetensors and config.json. Raises InputError if it cannot."""
    config = _checked({"kind": kind, "format": FORMAT} | content, folder, kind)
    weights = {name: value.contiguous() for name, value in config.pop("state_dict").items()}
    atomic_write(Path(folder) / "model.safetensors", safetensors.torch.save(weights, {"format": "pt"}))
    atomic_write(Path(folder) / "config.json", json.dumps(config, indent=1, ensure_ascii=False).encode())


def _read_folder(folder: Path) -> dict:
    what = "a folder that save_pretrained wrote, or a .pth file"
    config, weights = (read_file(folder / name, what) for name in ("config.json", "model.safetensors"))
    try:
        return json.loads(config) | {"state_dict": safetensors.torch.load(weights)}
    except Exception as error:  # the files can hold anything
        raise InputError(f"{folder} is damaged ({short(error)}): write or download it again") from None


def _is_finite(value) -> bool:
    """Whether all tensors in a nest of dicts and lists are finite."""
    if isinstance(value, torch.Tensor):
        return bool(value.isfinite().all())
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return all(map(_is_finite, values))


def git_commit() -> str:
    """The last commit that changed CODE, with a + if the code differs from it; "unknown" outside a git checkout."""
    root = Path(__file__).resolve().parent
    if not shutil.which("git") or not (root / ".git").exists():
        return "unknown"

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True).stdout.strip()

    changed = "+" if git("status", "--porcelain", "--untracked-files=no", "--", *CODE) else ""
    return git("log", "-1", "--format=%h", "--", *CODE) + changed or "unknown"


# ---- devices ----


def pick_device(name: str) -> torch.device:
    """ "auto" is CUDA if it works, else the CPU. Raises InputError for a device that cannot be used."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d{1,3})?", name):
        raise InputError(f"device {quote(name)} is not supported: choose auto, cpu, cuda or cuda:N")
    device = torch.device(name)
    if device.type == "cuda":
        if (device.index or 0) >= torch.cuda.device_count():
            raise InputError(f"device {name} is not on this machine, or this PyTorch cannot use it: use --device cpu")
        try:
            torch.ones(1, device=device).add_(1).item()
        except RuntimeError as error:  # its memory is full, or torch was built for other GPUs
            raise InputError(f"{name} cannot be used ({short(error)}): free it, or use --device cpu") from None
    return device


def use_bf16(precision: str, device: torch.device) -> bool:
    """Whether --precision means bf16 here; "auto" does on GPUs that compute in it, not those that would emulate it.

    "fp32" means whole float32 on a GPU too: it turns off TF32, which drops 13 bits.
    """
    if precision == "fp32":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    if precision == "auto" and device.type == "cuda":
        with torch.cuda.device(device):
            return torch.cuda.is_bf16_supported(including_emulation=False)
    return precision == "bf16"


def device_name(device: torch.device) -> str:
    """The GPU's name; or the processor's, with the vector instructions that torch uses, and the threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    return f"{name} ({torch.backends.cpu.get_cpu_capability()}), {torch.get_num_threads()} threads"
