"""Train one setting with several seeds and write mean and spread: the figures of the result tables.

    python benchmarks/seeds.py --name default --seeds 0 1 2
    python benchmarks/seeds.py --name wide --seeds 0 1 2 -- --width 32 --epochs 30

Everything behind `--` goes to train.py. The table goes to the screen, the figures to
benchmarks/results/<name>.json. Runs stay in runs/<name>-seed<S>/; one that has finished is not run again,
one that was cut off is resumed.
"""

import json
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import train  # noqa: E402
from clip import CLIP  # noqa: E402
from my_utils import ArgumentParser, InputError, atomic_write, exit_on_input_error, number  # noqa: E402

COLUMNS = (
    "val_zero_shot_accuracy",
    "test_zero_shot_accuracy",
    "test_text_to_image_precision",
    "train_seconds",
)
WHERE = ("resume", "runs_dir", "run_name", "data_path")  # these change no result
SAME = ("device", "cpu", "torch_version")  # a mean over different machines means nothing


def main() -> None:
    parser = ArgumentParser(prog="seeds.py", description=__doc__.split("\n")[0])
    parser.add_argument("--name", required=True, help="name of the setting, and of its result file")
    parser.add_argument("--seeds", type=number(int, 0), nargs="+", default=[0, 1, 2], help="training seeds")
    ours, rest = (sys.argv[1:], [])
    if "--" in ours:
        ours, rest = ours[: ours.index("--")], ours[ours.index("--") + 1 :]
    args = parser.parse_args(ours)

    metrics = [finished_run(f"{args.name}-seed{seed}", ["--seed", str(seed), *rest]) for seed in args.seeds]
    for name in SAME:
        if len({m[name] for m in metrics}) > 1:
            raise InputError(
                f"the seeds' runs differ in {name} ({', '.join(sorted({m[name] for m in metrics}))}): run all anew"
            )
    rows = {}
    for column in COLUMNS:
        values = [m[column] for m in metrics]
        rows[column] = {
            "mean": statistics.mean(values),
            "std": statistics.stdev(values) if len(values) > 1 else None,  # of one seed there is no spread
            "values": values,
        }
    result = {
        "command": " ".join(["python train.py --seed S", *rest]),
        "seeds": args.seeds,
        **{name: metrics[0][name] for name in SAME},
        "epochs": metrics[0]["epochs"],
        "date": max(m["date"] for m in metrics),
        "results": rows,
    }
    atomic_write(ROOT / "benchmarks" / "results" / f"{args.name}.json", (json.dumps(result, indent=2) + "\n").encode())

    print(
        f"\n{result['command']}\nseeds {args.seeds}, {result['device']} ({result['cpu']}),"
        f" torch {result['torch_version']}"
    )
    for column, row in rows.items():
        scale, unit = (1, " s") if column.endswith("seconds") else (100, "%")
        spread = "" if row["std"] is None else f" +- {row['std'] * scale:.2f}"
        print(f"  {column:30}{row['mean'] * scale:8.2f}{spread}{unit}")


def finished_run(name: str, flags: list[str]) -> dict:
    """The metrics of runs/<name>, after training, resuming or neither."""
    run = ROOT / "runs" / name
    check_same(run, flags)
    if not (run / "metrics.json").exists():
        how = ["--resume", str(run)] if (run / "last.pth").exists() else ["--run-name", name, *flags]
        if subprocess.run([sys.executable, "train.py", *how], cwd=ROOT).returncode:
            raise InputError(f"train.py failed in {run}: see its message above")
    return json.loads((run / "metrics.json").read_text())


def check_same(run: Path, flags: list[str]) -> None:
    """Raises InputError for a run that is there already but of other settings than `flags`, or of another version."""
    if not (run / "config.json").exists():
        return
    config = json.loads((run / "config.json").read_text())
    wanted = vars(train.settle_run([*flags, "--run-name", f"{run.name}-wanted"])[0])
    for setting, value in wanted.items():
        if setting not in WHERE and config.get(setting, "(nothing)") != value:
            raise InputError(
                f"{run} was trained with {setting} {config.get(setting, '(nothing)')}, not {value}: remove it to run"
                " it anew"
            )
    if (run / "metrics.json").exists():
        CLIP.load(run / "best_model.pth")


if __name__ == "__main__":
    with exit_on_input_error():
        main()
