"""Data parallel training under `torchrun train.py`: torch.distributed as it is, one loss over all processes.

Each process embeds its share of the batch; `gather` brings all embeddings to every process, with gradients on the
way back, so that each compares all images with all texts. The same loss then stands in every process: what flows
back through `gather` is the sum over the processes, and DDP's mean over them makes it the gradient of that one loss.
"""

import contextlib
import os
import signal
import sys
import threading
import warnings

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.nn.functional import all_gather
from torch.nn.parallel import DistributedDataParallel

from my_utils import InputError, short

TORCHRUN = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # the environment variables that it sets


def launched() -> bool:
    """Whether torchrun, or what sets the same variables, has started this process."""
    return all(name in os.environ for name in TORCHRUN)


def start() -> None:
    """Join the processes of torchrun, where there are any. Raises InputError when they cannot find each other."""
    if dist.is_initialized():
        return
    if launched():
        try:
            dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
        except (RuntimeError, ValueError) as error:
            raise InputError(
                f"the processes cannot find each other ({short(error)}): start them with torchrun"
            ) from None
    elif os.environ.get("WORLD_SIZE", "1") != "1":
        missing = ", ".join(name for name in TORCHRUN if name not in os.environ)
        raise InputError(f"there are several processes by WORLD_SIZE, but no {missing}: start them with torchrun")


def own_device(name: str) -> str:
    """The device's name for this process: of several processes each takes a GPU of its own."""
    if world_size() == 1 or not (name == "cuda" or (name == "auto" and torch.cuda.is_available())):
        return name
    local = int(os.environ.get("LOCAL_RANK", rank()))
    if local >= torch.cuda.device_count():
        raise InputError(f"{local + 1} processes but {torch.cuda.device_count()} GPUs: lower --nproc-per-node")
    torch.cuda.set_device(local)
    return f"cuda:{local}"


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def is_main() -> bool:
    """Whether this is the process that writes and speaks."""
    return rank() == 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def wrap(model: nn.Module) -> nn.Module:
    """The model to call in training: DDP where there are several processes, else the model itself."""
    return DistributedDataParallel(model) if world_size() > 1 else model


def gather(features: Tensor, total: int) -> Tensor:
    """Every process's features [share, D] -> [total, D], in the order of `tensor_split`; gradients flow through.

    Shares differ by one row where the processes do not divide `total`: the smaller ones travel with a row of zeros.
    """
    if world_size() == 1:
        return features
    shares = [len(part) for part in torch.arange(total).tensor_split(world_size())]
    padded = F.pad(features, (0, 0, 0, max(shares) - len(features)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # its successor's name is not there in older versions
        if features.requires_grad:
            parts = all_gather(padded.contiguous())
        else:
            parts = [torch.empty_like(padded) for _ in shares]
            dist.all_gather(parts, padded.contiguous())
    return torch.cat([part[:share] for part, share in zip(parts, shares, strict=True)])


def gather_objects(item) -> list:
    """A plain value from each process, in their order."""
    items = [item] * world_size()
    if world_size() > 1:
        dist.all_gather_object(items, item)
    return items


@contextlib.contextmanager
def share_errors():
    """An error of input or of the file system in one process, within the `with` block, is raised in all of them."""
    wrong = None
    try:
        yield
    except InputError as error:
        wrong = str(error)
    except OSError as error:
        wrong = (
            f"cannot read or write {error.filename or 'a file'}: {error.strerror or error}; free the disk and resume"
        )
    wrong = next(filter(None, gather_objects(wrong)), None)
    if wrong:
        raise InputError(wrong)


def stop() -> None:
    """Leave together: to the others a process that is gone early looks like a lost one."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


@contextlib.contextmanager
def clean_exit():
    """When another process of torchrun is gone, end with one message and exit code 1.

    A process notices by a collective call that fails, or by the SIGTERM that torchrun then sends to those left. A
    process whose own work is done ends in a way that the others cannot take for a crash.
    """

    def give_up(reason: str) -> None:
        sys.stderr.write(
            f"error: another process of this run has ended ({reason}): go on from the last whole epoch with torchrun,"
            " as before, and train.py --resume\n"
        )
        sys.stderr.flush()
        os._exit(1)  # without the exit handlers, which would wait for the lost process

    several = launched() and os.environ["WORLD_SIZE"] != "1"
    if several:  # one process alone saves its state at SIGTERM (run.Interrupt)
        # A thread of its own takes the signal: the main one may be waiting for the GPU or for the lost process, and
        # Python runs no handler until that ends.
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        signal.set_wakeup_fd(writing)
        signal.signal(signal.SIGTERM, lambda *_: None)

        def watch() -> None:
            while os.read(reading, 1)[0] != signal.SIGTERM:
                pass
            give_up("torchrun says so")

        threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    except SystemExit as end:
        if not launched() or isinstance(end.code, str):
            raise
        # A thread of the collectives that meets Python's shutdown can abort a process whose work is done.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(end.code or 0)
    except RuntimeError as error:
        if world_size() == 1 or not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        give_up(short(error))
