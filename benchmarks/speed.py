"""`train.py --preset speed` and other people's recipes side by side, in one process.

    python -m benchmarks.speed            ten seeds of ours and of the plain classifier
    python -m benchmarks.speed --slow     three seeds of ours and of the recipes that take minutes

The recipes take turns. Seconds are those of training alone, from images in memory: no loading, no validation, no test.
Writes results/speed.json (--slow: speed-slow.json; with a GPU: speed-cuda.json).
"""

import statistics
import sys
import tempfile
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks import common
from benchmarks.common import Training, cell, timed_in_turn
from benchmarks.recipes import OpenClip, Trained, plain_classifier, plain_net, pytorch_example, toy_clip
from benchmarks.seeds import training_flops
from my_dataset import Split, load_mnist
from my_utils import exit_on_error, use_bf16

OURS = "ours, `--preset speed`"
FAST = {"plain classifier (train_mnist_fast)": plain_classifier}
SLOW = {"PyTorch's MNIST example": pytorch_example, "toy CLIP (mnist-clip)": toy_clip}
COLUMNS = ["recipe", "median seconds (min to max)", "times ours", "test accuracy", "seeds", "note"]


def main(argv: list[str]) -> None:
    parser = common.make_parser("speed", __doc__)
    parser.add_argument("--slow", action="store_true", help="the recipes that take minutes, with 3 seeds")
    args = common.parse(parser, argv)
    device, seeds = args.device, 1 if args.quick else 3 if args.slow else 10

    parts = [load_mnist(split, common.DATA, device) for split in ("train", "val", "test")]
    everything, test = common.joined(*parts[:2]), parts[2]  # others train on 60,000 images
    if args.quick:
        everything = Split(*(x[:2_560] for x in everything))
    recipes = {OURS: lambda seed: ours(seed, device)}
    for name, recipe in (SLOW if args.slow else FAST).items():
        limit = {"limit": 1} if args.quick and args.slow else {}
        recipes[name] = lambda seed, recipe=recipe, limit=limit: recipe(everything, test, seed, **limit)
    for name in (OURS, *(() if args.slow else FAST)):
        recipes[name](99)  # warm-up: libraries load, kernels are chosen
    runs = {name: [] for name in recipes}
    # In turn, now one first and now the other.
    for seed, name in tqdm([(s, name) for s in range(seeds) for name in list(recipes)[:: (-1) ** s]], desc="runs"):
        runs[name].append(recipes[name](seed))

    medians = {name: statistics.median(run.seconds for run in done) for name, done in runs.items()}
    rows = []
    for name, done in runs.items():
        seconds, accuracies = [run.seconds for run in done], [run.accuracy for run in done]
        spread = f"{cell(medians[name], '')} ({cell(min(seconds), '')} to {cell(max(seconds), '')})"
        notes = "; ".join(sorted({run.note for run in done}))
        rows.append([name, spread, cell(medians[name] / medians[OURS], ""), cell(accuracies), len(done), notes])
    note = "" if args.slow else f"{compare_flops(device)} {compare_with_open_clip(device)}"
    name = f"speed{'-slow' * args.slow}{args.suffix}"
    raw = {name: [run._asdict() for run in done] for name, done in runs.items()}
    common.write_result(args, name, COLUMNS, rows, common.origin(device), note, runs=raw)


def ours(seed: int, device: torch.device) -> Trained:
    """The program as it is: its own clock, its own test."""
    with tempfile.TemporaryDirectory() as folder:
        flags = ["--preset", "speed", "--seed", str(seed), "--device", str(device)]
        metrics = common.finished_run(Path(folder) / "run", flags, quiet=True)
    note = "one epoch" + (" in bf16" if use_bf16("auto", device) else "")  # the others compute in float32
    return Trained(metrics["train_seconds"], metrics["test_digit_accuracy"], note)


def compare_flops(device: torch.device) -> str:
    """The floating-point operations of both trainings, in a sentence."""
    net, x = plain_net().to(device), torch.zeros(256, 1, 28, 28, device=device)
    theirs = common.count_flops(lambda: net(x).sum().backward()) * 60_000 / len(x)
    flops = [cell(one / 1e12, "") for one in (training_flops(["--preset", "speed"], device), theirs)]
    return f"Training takes {flops[0]} TFLOP with ours, {flops[1]} with the plain classifier."


def compare_with_open_clip(device: torch.device) -> str:
    """Whole training steps of our model and loss and of open_clip's, in a sentence.

    Both have the same towers, batches, memory format, optimizer (open_clip has no Muon) and clipping, in float32.
    """
    training = Training(["--captions", "digit", "--muon-lr", "0"], device, bf16=False)
    theirs, batch = OpenClip(training.model), next(training.batches)
    works = {"ours": lambda: training.step(batch), "open_clip": lambda: theirs(batch)}
    seconds = timed_in_turn(device, works, rounds=40, warm_up=5)
    rate = {name: len(batch.images) / statistics.median(values) for name, values in seconds.items()}
    return (
        f"A training step at batch {len(batch.images)} with the same two towers: ours {cell(rate['ours'], '')}"
        f" images/s, with open_clip's model and ClipLoss {cell(rate['open_clip'], '')}."
    )


if __name__ == "__main__":
    with exit_on_error():
        sys.exit(main(sys.argv[1:]))
