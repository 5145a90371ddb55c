"""Data parallel training under `torchrun train.py`: one loss over the batch of all processes.

Each process embeds its share of the batch; `gather` brings all embeddings to every process, so that each compares all
images with all texts. Then the loss of the whole batch is computed everywhere, and DDP averages the towers' gradients.
(Each process draws its own captions of the parts.)
"""

import os

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from my_utils import InputError, short


def start(device: str = "auto") -> None:
    """Join the processes that torchrun has started, if it has; "cuda" then means a GPU of its own to each of them.

    Raises InputError if they cannot find each other, or if there are more of them than GPUs.
    """
    if "RANK" not in os.environ or dist.is_initialized():
        return
    gpus, processes = torch.cuda.device_count(), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if gpus and device in ("auto", "cuda"):
        if processes > gpus:
            raise InputError(f"{processes} processes but {gpus} GPUs: lower --nproc-per-node, or use --device cpu")
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    except (RuntimeError, ValueError) as error:
        raise InputError(f"the processes cannot find each other ({short(error)}): start them with torchrun") from None


def refuse(script: str) -> None:
    """Raises InputError if torchrun has started several processes of a script that trains with one."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise InputError(f"{script} trains with one process: start it with python, without torchrun")


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def wrap(model: nn.Module) -> nn.Module:
    """The model to call in training: DDP if there are several processes, else the model itself."""
    return DistributedDataParallel(model) if world_size() > 1 else model


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, share: Tensor) -> Tensor:
        parts = [torch.empty_like(share) for _ in range(world_size())]
        dist.all_gather(parts, share.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)  # the loss is the same in all processes: DDP's mean then gives its gradient
        return gradient.chunk(world_size())[rank()]


def gather(share: Tensor) -> Tensor:
    """Each process's rows [share, D] -> all rows [B, D], in the order of the ranks; gradients flow back."""
    return _Gather.apply(share) if world_size() > 1 else share


def broadcast(value):
    """A plain value of the first process, in all of them."""
    values = [value]
    if world_size() > 1:
        dist.broadcast_object_list(values)
    return values[0]


def stop(after_error: bool = False) -> None:
    """Leave together: a process that ends early looks like a lost one. (After an error, torchrun ends them all.)"""
    if dist.is_initialized() and not after_error:
        dist.barrier()
        dist.destroy_process_group()
