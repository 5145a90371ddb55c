"""Train one setting of train.py with several seeds: accuracy both ways and time, mean and standard deviation.

    python -m benchmarks.seeds --name default
    python -m benchmarks.seeds --name wide --seeds 0 1 2 -- --width 32 --epochs 30

Everything behind `--` goes to train.py. Writes results/NAME.json (with a GPU: NAME-cuda.json). Runs stay in
runs/benchmarks/NAME-seed<S>/: one that has finished is not trained again, one that was interrupted is resumed.
"""

import shlex
import sys

from benchmarks.common import cell, make_parser, parse, read_metrics, shared_origin, trained_clip, write_result
from my_utils import exit_on_error

# Title of each column: the metric, and its unit.
COLUMNS = {
    "test accuracy, image → text": ("test_digit_accuracy", "%"),
    "test R-precision, text → image": ("test_text_to_image_precision", "%"),
    "validation accuracy": ("val_digit_accuracy", "%"),
    "training": ("train_seconds", " s"),
}


def main(argv: list[str]) -> None:
    parser = make_parser("seeds", __doc__, seeds=[0, 1, 2])
    parser.add_argument("--name", required=True, help="name of the setting, its runs and its result")
    parser.add_argument("train_flags", nargs="*", metavar="FLAG", help="behind --: flags of train.py")
    args = parse(parser, argv)
    models = [trained_clip(args, seed, args.name, args.train_flags) for seed in args.seeds]
    metrics = [read_metrics(path.parent) for path in models]
    values = {name: [one[name] for one in metrics] for name, _ in COLUMNS.values()}
    trained_by = shlex.join(["python", "train.py", *args.train_flags])
    row = [f"`{trained_by}`", ", ".join(map(str, args.seeds))]
    row += [cell(values[name], unit) for name, unit in COLUMNS.values()]
    write_result(args, args.name + args.suffix, ["command", "seeds", *COLUMNS], [row], shared_origin(metrics), **values)


if __name__ == "__main__":
    with exit_on_error():
        sys.exit(main(sys.argv[1:]))
