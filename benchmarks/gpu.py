"""All that needs an NVIDIA GPU: the tests that need one, then the tables that need one, one command after another.

    make gpu                        at most 25 minutes
    make gpu ARGS=--dry-run         print the commands, on any machine

A command that fails does not stop the others; one that does not fit into the time is ended, and its table stays empty.
"""

import shlex
import subprocess
import sys
import time

import torch

from benchmarks.common import ROOT
from my_utils import ArgumentParser, InputError, exit_on_error, number

# Run as `python -m ...`, what matters most first. If the tests fail, trust no figure.
COMMANDS = (
    "pytest -m cuda -n 0 tests/test_cuda.py",
    "benchmarks.seeds --name default --device cuda",
    "benchmarks.seeds --name speed-preset --device cuda --seeds 0 1 2 3 4 -- --preset speed",
    "benchmarks.speed --device cuda",
    "benchmarks.cost --device cuda",
    "benchmarks.seeds --name accuracy-50 --device cuda --seeds 0 1 2 3 4 -- --preset accuracy --epochs 50",
    "benchmarks.seeds --name accuracy-preset --device cuda -- --preset accuracy",
    "benchmarks.speed --slow --device cuda",
)
TABLES = "benchmarks.tables"


def main(argv: list[str]) -> int:
    parser = ArgumentParser(prog="benchmarks.gpu", description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=number(float, 1, 10_000), default=25, help="of all")
    parser.add_argument("--dry-run", action="store_true", help="print the commands alone")
    args = parser.parse_args(argv)
    if args.dry_run:
        print("\n".join(f"python -m {command}" for command in COMMANDS))
        return 0
    if not torch.cuda.is_available():
        raise InputError("torch can use no GPU on this machine, so nothing was measured")
    end = time.monotonic() + 60 * args.minutes
    failures = {command: run(command, end - time.monotonic()) for command in COMMANDS}
    run(TABLES, 60)
    print("\n" + "\n".join(f"{command}: {reason}" for command, reason in failures.items() if reason))
    return int(any(failures.values()))


def run(command: str, seconds: float) -> str:
    """Run a command in a process of its own. Returns what went wrong; an empty text: nothing."""
    if seconds <= 0:
        return "no time was left"
    print(f"\n---- python -m {command}", flush=True)
    try:
        done = subprocess.run([sys.executable, "-m", *shlex.split(command)], cwd=ROOT, timeout=seconds)
    except subprocess.TimeoutExpired:
        return "ended, the time was over"
    return "failed, see its message above" if done.returncode else ""


if __name__ == "__main__":
    with exit_on_error("the commands that ended have written their results"):
        sys.exit(main(sys.argv[1:]))
