"""All that needs an NVIDIA GPU, one after another on one card: its tests, then every row that says "not measured".

    make gpu                               at most 25 minutes
    make gpu ARGS=--dry-run                only tell the commands, here or there

A step that fails does not stop the others: the last lines tell what was not measured, and why. What does not fit into
the time is cut off, and those behind it are left out. The trained models lie in runs/gpu/: one that has finished is
not trained again, so remove the folder to measure other code.
"""

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time

import torch

from benchmarks.common import ROOT, parser_of
from my_utils import InputError, exit_on_input_error, number, why_no_cuda

SEEDS = "benchmarks.seeds --runs runs/gpu --name"
# What each step gives (a file of results/, but for the tests), and what is run as `python -m`. What matters most comes
# first. The tests tell whether the figures behind them mean anything; they stop none, for time on a card is short.
STEPS = {
    "tests": "pytest -m cuda -n 0 tests/test_cuda.py",
    "preset-default-cuda": f"{SEEDS} preset-default-cuda --seeds 0 1 2 -- --device cuda",
    "preset-speed-cuda": f"{SEEDS} preset-speed-cuda --seeds 0 1 2 3 4 -- --preset speed --device cuda",
    "speed-cuda": "benchmarks.speed --device cuda",
    "profile-cuda": "benchmarks.profile_step --device cuda",
    "accuracy-cuda": f"{SEEDS} accuracy-cuda --seeds 0 1 2 3 4 -- --preset accuracy --epochs 50 --device cuda",
    "cost-cuda": "benchmarks.cost --device cuda",
    "inference-cuda": "benchmarks.inference --device cuda",
    "text-encoders-cuda": "benchmarks.text_encoders --device cuda",
    "preset-accuracy-cuda": f"{SEEDS} preset-accuracy-cuda --seeds 0 1 2 -- --preset accuracy --device cuda",
    "speed-slow-cuda": "benchmarks.speed --slow --device cuda",
}
TABLES = "benchmarks.tables"  # takes a second, and always runs


def main() -> int:
    parser = parser_of(__doc__, device=False)
    limit = number(float, 0, 10_000, low_ok=False)
    told = "for all steps together; the end tells what did not fit and so was not measured"
    parser.add_argument("--minutes", type=limit, default=25, help=told)
    parser.add_argument("--dry-run", action="store_true", help="only tell the commands")
    args = parser.parse_args()
    if args.dry_run:
        print("\n".join(f"python -m {command}" for command in (*STEPS.values(), TABLES)))
        return 0
    if not torch.cuda.is_available():
        reason = why_no_cuda()
        raise InputError(
            f"no GPU that torch can use is on this machine{f' ({reason})' if reason else ''}, so that nothing was"
            " measured: --dry-run tells what would be"
        )
    end = time.monotonic() + 60 * args.minutes
    wrong = {name: run(command, end - time.monotonic()) for name, command in STEPS.items()}
    wrong["tables"] = run(TABLES, 60)
    print()
    for name, reason in wrong.items():
        if reason:
            print(f"{name}: {reason}" + "; trust no figure before that is clear" * (name == "tests"))
    if not any(wrong.values()):
        print("everything was measured, and the tables are written")
    return int(any(wrong.values()))


def run(command: str, seconds: float) -> str:
    """A step in a process of its own -> why it did not end well, or an empty text."""
    late = "not measured, for the time was over"
    if seconds <= 0:
        return late
    print(f"\n---- python -m {command}", flush=True)
    # A session of its own, so that the processes that it starts end with it.
    job = subprocess.Popen([sys.executable, "-m", *shlex.split(command)], cwd=ROOT, start_new_session=True)
    try:
        return "failed, see its message above" if job.wait(seconds) else ""
    except subprocess.TimeoutExpired:
        return late
    finally:
        if job.returncode is None:  # the time is over, or Ctrl-C
            stop(job)


def stop(job: subprocess.Popen) -> None:
    """Ends it with the processes that it started. train.py saves at SIGTERM; ten seconds are enough for that."""
    end = time.monotonic() + 10
    with contextlib.suppress(ProcessLookupError):  # none of them is left
        os.killpg(job.pid, signal.SIGTERM)
        while time.monotonic() < end:
            job.poll()
            os.killpg(job.pid, 0)
            time.sleep(0.05)
        os.killpg(job.pid, signal.SIGKILL)
    job.wait()


if __name__ == "__main__":
    with exit_on_input_error("the steps that ended have written their results"):
        sys.exit(main())
