"""Odds and ends: clear errors, command lines, atomic files, seeds, devices. torch is imported where it is needed."""

import argparse
import contextlib
import functools
import gc
import math
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import psutil


def choose_how_threads_wait() -> None:
    """Tell OpenMP, before torch loads, how its threads wait for work: spinning for a while, as they do by themselves,
    or asleep where other programs use more than half a core.

    Spinning saves a quarter of a training step or more on a quiet machine, and nearly doubles it on a busy one
    (benchmarks/waiting.py). What a person has set stands. Programs that this one starts wait as it does.
    """
    if "torch" in sys.modules or os.environ.keys() & {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"}:
        return
    try:
        percent = psutil.cpu_percent(interval=0.1, percpu=True)  # this program sleeps meanwhile
        allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(len(percent))
        in_use = sum(percent[core] for core in allowed) / 100
    except (OSError, LookupError, psutil.Error):  # no permission to look: the safe way
        in_use = math.inf
    if in_use > 0.5:
        os.environ["OMP_WAIT_POLICY"] = "passive"
    else:
        os.environ["GOMP_SPINCOUNT"] = "300000"  # GNU OpenMP's own


def threads_sleep() -> bool:
    return os.environ.get("GOMP_SPINCOUNT", "0") == "0" and os.environ.get("OMP_WAIT_POLICY", "").lower() == "passive"


choose_how_threads_wait()  # so this module is imported first


class InputError(ValueError):
    """Something a person gave was wrong; the message says what, and what to do. Programs exit with code 2."""


class WriteError(InputError):
    """A file that cannot be written: no permission, or the disk is full."""


def short(error) -> str:
    """A library's error, or a long path, as one line that fits into a sentence."""
    text = (str(error).strip() or type(error).__name__).splitlines()[-1].strip()
    return text if len(text) <= 160 else text[:157] + "..."


def is_whole(text: str) -> bool:
    """Whether a text holds whole characters: a lone surrogate, as a byte that is no UTF-8 becomes, can't be printed."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


# ---- the program: its errors, its command line ----


def read_early(read, interrupted: str = "nothing was started yet"):
    """`read(sys.argv[1:])` before torch is imported, which takes seconds: a wrong flag is refused at once.

    From here on Ctrl-C is one line, also while the imports that follow are at work. These make objects that stay, so
    that Python's search for garbage pauses until `exit_on_input_error`.
    """
    gc.disable()

    def stop(signum, frame):
        os.write(2, f"\ninterrupted: {interrupted}\n".encode())
        os._exit(130)

    signal.signal(signal.SIGINT, stop)
    with exit_on_input_error(interrupted, interrupts=False):
        return read(sys.argv[1:])


@contextlib.contextmanager
def exit_on_input_error(interrupted: str = "no file is half-written", interrupts: bool = True, disk: str = ""):
    """Turn an InputError, or a disk that says no, into one message on stderr and exit code 2.

    `disk` says what to do when the disk is full or cannot be read or written.
    """
    if interrupts:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        gc.freeze()  # what the imports made is no garbage: no search looks at it
        gc.enable()
    try:
        yield
    except InputError as error:
        print(f"error: {error}" + (f"; {disk}" if disk and isinstance(error, WriteError) else ""), file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        where = f" {short(error.filename)}" if error.filename else ""
        remedy = disk or "free the disk, or choose another folder, and start again"
        print(f"error: cannot read or write{where}: {error.strerror or error}; {remedy}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"\ninterrupted: {interrupted}", file=sys.stderr)
        sys.exit(130)
    finally:
        if interrupts:
            gc.freeze()  # nor does the one at the exit look at what else there is: all of it ends with the process


class ArgumentParser(argparse.ArgumentParser):
    """argparse without the usage lines before an error: the sentence alone, through InputError."""

    def __init__(self, **options):
        options.setdefault("formatter_class", argparse.ArgumentDefaultsHelpFormatter)
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str):
        raise InputError(f"{message} (see --help)")


def number(kind: type, low: float, high: float = math.inf, low_ok: bool = True):
    """An argparse type: a finite int or float from low to high; `low_ok=False` leaves out low itself."""

    def parse(text: str):
        noun = "whole number" if kind is int else "number"
        bound = f"{'from' if low_ok else 'above'} {low}" + (f" to {high}" if high < math.inf else "")
        try:
            value = kind(text)
        except (ValueError, TypeError):
            value = math.nan
        if not (abs(value) < 1e300 and low <= value <= high and (low_ok or value > low)):
            raise argparse.ArgumentTypeError(f"{text!r} is not a {noun} {bound}")
        return value

    return parse


@contextlib.contextmanager
def enough_memory(remedy: str):
    """Turn memory that runs out, the device's or the machine's, into an InputError that names the remedy."""
    import torch

    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        raise InputError(f"out of memory: {remedy}") from None


# ---- files ----


def atomic_write(path: str | Path, content: bytes) -> None:
    """Write a file so that the old or the new content stands there whole, even after a crash.

    Raises InputError when it cannot be written (no permission, disk full); the old file then stays.
    """
    path = Path(path)
    if not path.name:
        raise InputError(f"{str(path)!r} names no file to write: give one, such as model.pth")
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
        raise WriteError(
            f"cannot write {path}: {error.strerror or error}; free the disk or choose another folder"
        ) from None


def clear_temporary(folder: Path, age: float = 0) -> None:
    """Remove what `atomic_write` left in the folder when its process was killed, at least `age` seconds ago."""
    for path in folder.glob(".*.tmp"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime >= age:
                path.unlink()


# ---- seeds and devices ----


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch, every device. CPU runs then repeat bit for bit; CUDA's kernels may not."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002, libraries below us draw from it
    torch.manual_seed(seed)


def pick_device(name: str):
    """ "auto" -> CUDA where there is one, else CPU -> torch.device. Raises InputError for one that cannot be used.

    Where an NVIDIA GPU is on the machine and cannot be used, "auto" says why in one line and takes the CPU.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
        if name == "cpu" and (reason := why_no_cuda()):
            print(f"computing on the CPU, although an NVIDIA GPU is here: {reason}", file=sys.stderr)
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"unknown device {name!r}: choose auto, cpu, cuda or cuda:N") from None
    if device.type == "mps":
        raise InputError("device 'mps' (Apple's GPU) is not supported, for nothing was ever tested on it: use cpu")
    if device.type not in ("cpu", "cuda") or (device.type == "cpu" and device.index):
        raise InputError(f"device {name!r} is not supported: choose auto, cpu, cuda or cuda:N")
    if device.type == "cuda":
        if (device.index or 0) >= torch.cuda.device_count():
            reason = why_no_cuda()
            raise InputError(
                f"device {name!r} is not on this machine{f' ({reason})' if reason else ''}: use --device cpu, or auto"
            )
        try:
            torch.ones(1, device=device).add_(1).item()
        except torch.OutOfMemoryError:
            raise InputError(
                f"the memory of {name} is full: end the program that fills it, or use --device cpu"
            ) from None
        except RuntimeError as error:
            raise InputError(
                f"this PyTorch cannot compute on {name} ({short(error)}): install one built for that GPU, or use"
                " --device cpu"
            ) from None
    return device


@functools.cache
def why_no_cuda() -> str:
    """Why torch cannot use the NVIDIA GPU of this machine; empty where there is none, or where it can."""
    import torch

    if torch.cuda.is_available() or not shutil.which("nvidia-smi"):
        return ""
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
    if "GPU" not in listed:
        return ""
    if torch.version.cuda is None:
        return "this PyTorch is a build for CPUs; install a CUDA build"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.cuda.init()
    except Exception as error:  # torch raises several kinds, by what is wrong
        return short(error)
    return "CUDA_VISIBLE_DEVICES hides it" if "CUDA_VISIBLE_DEVICES" in os.environ else "CUDA finds no device"


@functools.cache  # asked in each step of a benchmark
def bf16_by_default(device) -> bool:
    """Whether --precision auto means bf16: on GPUs that compute in it, not those that would emulate it."""
    import torch

    if device.type != "cuda":
        return False
    with torch.cuda.device(device):
        return torch.cuda.is_bf16_supported(including_emulation=False)


def use_precision(name: str, device) -> bool:
    """Whether to compute in bf16. "fp32" means whole float32 on a GPU too: TF32, which drops 13 bits, is off."""
    import torch

    if name == "fp32":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    return name == "bf16" or (name == "auto" and bf16_by_default(device))


def limit_threads(count: int | None) -> None:
    """Torch works with so many threads at most; None: as before."""
    import torch

    if count:
        torch.set_num_threads(min(count, torch.get_num_threads()))


@contextlib.contextmanager
def cpu_threads(count: int | None = None):
    """`limit_threads` within its `with` block; then as before, whatever changed."""
    import torch

    before = torch.get_num_threads()
    limit_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def threads_told() -> str:
    """As "2 threads", or "2 sleeping threads", which sleep while they wait for work."""
    import torch

    count = torch.get_num_threads()
    return f"{count} {'sleeping ' * threads_sleep()}thread{'s' * (count > 1)}"


def cpu_name() -> str:
    """The processor's name as the operating system tells it, and the vector instructions that torch uses there."""
    import torch

    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    return f"{name} ({torch.backends.cpu.get_cpu_capability()})"


def device_name(device) -> str:
    """What did the work, for a result's record: the GPU's name, or the processor's."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()
