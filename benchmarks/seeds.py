"""Train one setting with several seeds and write mean and spread: the figures of the result tables.

    python -m benchmarks.seeds --name default --seeds 0 1 2
    python -m benchmarks.seeds --name wide --seeds 0 1 2 -- --width 32 --epochs 30

Everything behind `--` goes to train.py. The table goes to the screen, the figures to
benchmarks/results/<name>.json. Runs stay in runs/<name>-seed<S>/ (--runs: another folder); one that has finished is not
run again, one that was cut off is resumed.
"""

import shlex
from pathlib import Path

from benchmarks.common import (
    ROOT,
    finished_run,
    machine,
    parse_with_flags,
    parser_of,
    same_origin,
    spread,
    write_result,
)
from my_utils import exit_on_input_error, number

COLUMNS = (
    "val_digit_accuracy",
    "test_digit_accuracy",
    "test_text_to_image_precision",
    "train_seconds",
)


def main() -> None:
    parser = parser_of(__doc__, device=False)
    parser.add_argument("--name", required=True, help="name of the setting, and of its result file")
    parser.add_argument("--seeds", type=number(int, 0), nargs="+", default=[0, 1, 2], help="training seeds")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs", help="folder of the runs")
    args, flags = parse_with_flags(parser)

    runs = args.runs.resolve()
    metrics = [finished_run(runs / f"{args.name}-seed{seed}", ["--seed", str(seed), *flags]) for seed in args.seeds]
    rows = {column: spread([m[column] for m in metrics]) for column in COLUMNS}
    result = {
        "command": shlex.join(["python", "train.py", "--seed", "S", *flags]),
        "seeds": args.seeds,
        **same_origin(metrics),
        "epochs": metrics[0]["epochs"],
        "date": max(m["date"] for m in metrics),
        "results": rows,
    }
    write_result(args.name, result)

    print(f"\n{result['command']}\nseeds {args.seeds}, {machine(result)}, torch {result['torch_version']}")
    for column, row in rows.items():
        scale, unit = (1, " s") if column.endswith("seconds") else (100, "%")
        std = "" if row["std"] is None else f" +- {row['std'] * scale:.2f}"
        print(f"  {column:30}{row['mean'] * scale:8.2f}{std}{unit}")


if __name__ == "__main__":
    with exit_on_input_error():
        main()
