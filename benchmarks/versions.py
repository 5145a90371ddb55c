"""Old and new in turn: `train.py` of two checkouts, each run a process of its own, one after the other.

    python -m benchmarks.versions --name default --old FOLDER --old-flags "--epochs 20" --flags "" --seeds 0 1 2

FOLDER is a checkout of the older commit (git worktree add FOLDER COMMIT); both run with this Python and this MNIST.
Which of the two goes first changes from seed to seed. Seconds are those of training alone, by each version's own clock.
Prints both medians and their ratio, and writes benchmarks/results/versions-<name>.json after every seed.
"""

import json
import shlex
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from tqdm import tqdm

from benchmarks.common import DATA, ROOT, environment, machine, parser_of, same_origin, spread, write_result
from my_utils import InputError, exit_on_input_error, number

MEASURES = ("train_seconds", "val_digit_accuracy", "test_digit_accuracy")


def main() -> None:
    parser = parser_of(__doc__, device=False)
    parser.add_argument("--name", required=True, help="name of the comparison, and of its result file")
    parser.add_argument("--old", type=Path, required=True, help="folder of the older checkout")
    parser.add_argument("--old-flags", default="", help="its train.py's flags, one string")
    parser.add_argument("--flags", default="", help="this train.py's flags, one string")
    parser.add_argument("--seeds", type=number(int, 0), nargs="+", default=[0, 1, 2], help="training seeds")
    parser.add_argument("--data-path", type=Path, default=DATA, help="folder of MNIST, for both")
    args = parser.parse_args()
    if not (args.old / "train.py").is_file():
        raise InputError(f"there is no train.py in {args.old}: name a checkout of this repository with --old")
    sides = {"old": (args.old.resolve(), args.old_flags), "new": (ROOT, args.flags)}

    metrics = {side: [] for side in sides}
    turns = [(seed, side) for i, seed in enumerate(args.seeds) for side in sorted(sides, reverse=i % 2 == 0)]
    with tempfile.TemporaryDirectory() as runs:
        for seed, side in tqdm(turns, desc="runs"):
            folder, flags = sides[side]
            run = Path(runs) / f"{side}-seed{seed}"
            metrics[side].append(train_in(folder, run, [*shlex.split(flags), "--seed", str(seed)], args.data_path))
            if len(metrics["old"]) == len(metrics["new"]):
                result = {"command": command_of(args)} | compare(args.seeds, sides, metrics)
                write_result(f"versions-{args.name}", result)

    for side in sides:
        row = result[side]
        accuracies = (f"{which} {row[f'{which}_digit_accuracy']['mean']:.2%}" for which in ("val", "test"))
        print(f"{side} {row['commit']}: {row['median_seconds']:.2f} s, {', '.join(accuracies)}  ({row['command']})")
    print(f"new to old: {result['new_to_old']:.3f} of the seconds, {len(args.seeds)} seeds, {result['device']}")


def command_of(args) -> str:
    """The command, without where the older checkout happened to lie."""
    told = ["--name", args.name, "--old", "FOLDER", "--old-flags", args.old_flags, "--flags", args.flags]
    return shlex.join(["python", "-m", "benchmarks.versions", *told, "--seeds", *map(str, args.seeds)])


def train_in(folder: Path, run: Path, flags: list[str], data_path: Path) -> dict:
    """The metrics of a run of the checkout `folder`, which is trained as a person would."""
    where = ["--data-path", str(data_path.resolve()), "--runs-dir", str(run.parent), "--run-name", run.name]
    command = [sys.executable, "train.py", *flags, *where]
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        raise InputError(f"train.py {shlex.join(flags)} failed in {folder}: {''.join(last)}")
    return json.loads((run / "metrics.json").read_text())


def compare(seeds: list[int], sides: dict, metrics: dict) -> dict:
    """What both sides have reached so far."""
    newest = metrics["new"][-1]
    same_origin(metrics["new"])
    result = {
        "device": machine(newest),
        "torch_version": newest["torch_version"],
        "commit": newest["commit"],
        "date": newest["date"],
        "seeds": seeds[: len(metrics["new"])],
    }
    for side, (folder, flags) in sides.items():
        row = {name: spread([m[name] for m in metrics[side]]) for name in MEASURES}
        row["median_seconds"] = statistics.median(row["train_seconds"]["values"])
        result[side] = {
            "commit": commit_of(folder, metrics[side][-1]),
            "command": f"python train.py {flags}".strip(),
        } | row
    return result | {"new_to_old": result["new"]["median_seconds"] / result["old"]["median_seconds"]}


def commit_of(folder: Path, metrics: dict) -> str:
    """The commit that a run tells; older versions tell none, so that their checkout is asked."""
    if "commit" in metrics:
        return metrics["commit"]
    command = ["git", "-C", str(folder), "describe", "--always", "--exclude=*", "--dirty=+"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() or "unknown"


if __name__ == "__main__":
    with exit_on_input_error():
        main()
