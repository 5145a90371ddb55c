"""Processes of their own that start in a moment: forked from one that has imported torch and train.py already."""

import multiprocessing
import os
import signal
import socket
import sys
from pathlib import Path

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["train", "torch._dynamo"])


def start(function, *arguments, output: Path, **environment) -> multiprocessing.Process:
    """A process that calls a module's function as a program's main. Writes `output`.stdout and `output`.stderr."""
    child = context.Process(target=_run, args=(function, arguments, str(output), environment))
    child.start()
    return child


def start_two(function, *arguments, output: Path) -> list[multiprocessing.Process]:
    """Two such processes with the environment that torchrun gives them. They write `output`-0.stdout, ..."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    torchrun = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    outputs = [output.with_name(f"{output.name}-{rank}") for rank in range(2)]
    return [start(function, *arguments, output=o, RANK=str(rank), **torchrun) for rank, o in enumerate(outputs)]


def exit_codes(children: list[multiprocessing.Process]) -> list[int]:
    for child in children:
        child.join(timeout=200)
    return [child.exitcode for child in children]


def _run(function, arguments: tuple, output: str, environment: dict) -> None:
    from my_utils import exit_on_error

    os.environ.update(environment)
    os.chdir(Path(__file__).resolve().parent.parent)
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(f"{output}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    with exit_on_error():
        sys.exit(function(*arguments))


def train(flags: list, moment: str = "", number: int = signal.SIGKILL, to_parent: bool = False) -> None:
    """`train.py` with these flags on 2,000 images of each split; at a moment, this process or its parent gets a signal.

    "step 30" is the moment before step 30; "last.pth 2", before last.pth is written for the second time; "last.pth.tmp
    2", when it is about to be renamed from its temporary file for the second time.
    """
    import my_dataset
    import my_utils
    import train
    from data import own
    from training.step import TrainingStep

    def small(split, *where):
        return my_dataset.Split(*(x[:2000] for x in load(split, *where)))

    def with_signal(call, name_of):
        def signalled(*arguments):
            names.append(name_of(*arguments))
            if f"{names[-1]} {names.count(names[-1])}" == moment:
                os.kill(os.getppid() if to_parent else os.getpid(), number)
                if to_parent:
                    signal.pause()
            return call(*arguments)

        return signalled

    load, names = my_dataset.load_mnist, []
    my_dataset.load_mnist = own.load_mnist = small
    if os.environ.get("RANK", "0") == "0":
        TrainingStep.__call__ = with_signal(TrainingStep.__call__, lambda *_: "step")
        my_utils.atomic_write = with_signal(my_utils.atomic_write, lambda path, _: path.name)
        os.replace = with_signal(os.replace, lambda _, path: f"{Path(path).name}.tmp")
    train.main([str(flag) for flag in flags])
