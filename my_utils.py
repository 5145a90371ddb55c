"""Odds and ends: clear errors, atomic files, seeds, devices, the learning-rate schedule."""

import argparse
import contextlib
import fcntl
import functools
import math
import os
import platform
import random
import signal
import sys
from pathlib import Path

import numpy as np
import torch


class InputError(ValueError):
    """Something a person gave was wrong; the message says what, and what to do. Programs exit with code 2."""


def short(error: Exception) -> str:
    """A library's error as one line that fits into a sentence."""
    text = (str(error).strip() or type(error).__name__).splitlines()[-1].strip()
    return text if len(text) <= 160 else text[:157] + "..."


@contextlib.contextmanager
def exit_on_input_error(interrupted: str = "no file is half-written"):
    """Turn an InputError, or a disk that says no, into one message on stderr and exit code 2."""
    try:
        yield
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"\ninterrupted: {interrupted}", file=sys.stderr)
        sys.exit(130)


@contextlib.contextmanager
def enough_memory(remedy: str):
    """Turn memory that runs out, the device's or the machine's, into an InputError that names the remedy."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        raise InputError(f"out of memory: {remedy}") from None


class ArgumentParser(argparse.ArgumentParser):
    """argparse without the usage lines before an error: the sentence alone, through InputError."""

    def __init__(self, **options):
        super().__init__(allow_abbrev=False, formatter_class=argparse.ArgumentDefaultsHelpFormatter, **options)

    def error(self, message: str):
        raise InputError(f"{message} (see --help)")


def number(kind: type, low: float, high: float = math.inf, low_ok: bool = True):
    """An argparse type: a finite int or float from low to high; `low_ok=False` leaves out low itself."""

    def parse(text: str):
        noun = "whole number" if kind is int else "number"
        bound = f"{'from' if low_ok else 'above'} {low:g}" + (f" to {high:g}" if high < math.inf else "")
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not (abs(value) < 1e300 and low <= value <= high and (low_ok or value > low)):
            raise argparse.ArgumentTypeError(f"{text!r} is not a {noun} {bound}")
        return value

    return parse


def atomic_write(path: str | Path, content: bytes) -> None:
    """Write a file so that the old or the new content stands there whole, even after a crash.

    Raises InputError when it cannot be written (no permission, disk full); the old file then stays.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise InputError(
            f"cannot write {path}: {error.strerror or error}; free the disk or choose another folder"
        ) from None


class Interrupt:
    """Within its `with` block the first Ctrl-C only sets `requested`; a second one acts at once.

    SIGTERM does the same for a process that is `alone`; among several it is torchrun's way to end them all.
    """

    requested = False

    def __init__(self, alone: bool = True):
        self.signals = (signal.SIGINT, signal.SIGTERM) if alone else (signal.SIGINT,)

    def __enter__(self) -> "Interrupt":
        self.previous = {number: signal.signal(number, self._handle) for number in self.signals}
        return self

    def __exit__(self, *exception) -> None:
        for signum, handler in self.previous.items():
            signal.signal(signum, handler)

    def _handle(self, signum, frame) -> None:
        self.requested = True
        self.__exit__()


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch, every device. CPU runs then repeat bit for bit; CUDA's kernels may not."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002, libraries below us draw from it
    torch.manual_seed(seed)


def rng_state(device: torch.device) -> dict:
    """The state of the generators that training draws from, as plain tensors."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_rng_state(state: dict, device: torch.device) -> None:
    torch.set_rng_state(state["cpu"].cpu())
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)


def pick_device(name: str) -> torch.device:
    """ "auto" -> CUDA where there is one, else CPU. Raises InputError for a device that is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"unknown device {name!r}: choose auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda") or (device.type == "cpu" and device.index):
        raise InputError(f"device {name!r} is not supported: choose auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"device {name!r} is not on this machine: use --device cpu, or auto")
    return device


@functools.cache  # asked in each step of a benchmark
def bf16_by_default(device: torch.device) -> bool:
    """Whether --precision auto means bf16: on GPUs that compute in it, not those that would emulate it."""
    if device.type != "cuda":
        return False
    with torch.cuda.device(device):
        return torch.cuda.is_bf16_supported(including_emulation=False)


def cpu_name() -> str:
    """The processor's name as the operating system tells it, and the vector instructions that torch uses there."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    return f"{name} ({torch.backends.cpu.get_cpu_capability()})"


def lock(folder: Path):
    """Take the folder for this process until it ends or dies; None when another process has it.

    Keep what it returns: the lock goes with it.
    """
    file = open(folder / ".lock", "w")  # noqa: SIM115, closing it would end the lock
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def warmup_cosine(step: int, total: int, warmup: int) -> float:
    """Factor on the learning rate at a step of 0..total-1: linear up over `warmup` steps, then a cosine to 0."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
