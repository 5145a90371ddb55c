"""Train one setting of train.py with several seeds: accuracy both ways, time and floating-point operations.

    python -m benchmarks.seeds --name default
    python -m benchmarks.seeds --name wide --seeds 0 1 2 -- --width 32 --epochs 30

Everything behind `--` goes to train.py. Writes results/NAME.json (with a GPU: NAME-cuda.json). Runs stay in
runs/benchmarks/COMMIT/NAME-seed<S>/: one that has finished is not trained again, one that was interrupted is resumed.
"""

import shlex
import sys

import torch

from benchmarks.common import (
    QUICK,
    Training,
    cell,
    count_flops,
    make_parser,
    parse,
    read_metrics,
    shared_origin,
    trained_clip,
    write_result,
)
from my_utils import exit_on_error
from train import results_table

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
    row.append(cell(training_flops([*(QUICK if args.quick else []), *args.train_flags], args.device) / 1e12, ""))
    columns = ["command", "seeds", *COLUMNS, "training TFLOP"]
    values["printed"] = results_table(metrics[0])
    write_result(args, args.name + args.suffix, columns, [row], shared_origin(metrics), **values)


def training_flops(flags: list[str], device: torch.device) -> int:
    """Floating-point operations of a training with these flags: those that torch counts in a step, times the steps."""
    training = Training(flags, device)
    steps = len(training.pairs) // training.settings.batch_size * training.settings.epochs
    return count_flops(training) * steps


if __name__ == "__main__":
    with exit_on_error():
        sys.exit(main(sys.argv[1:]))
