"""Side by side: `train.py --preset speed` and what a person would train instead, in one process.

    python -m benchmarks.speed            ten seeds of ours and of the plain classifier
    python -m benchmarks.speed --quick    three seeds, within 3 minutes
    python -m benchmarks.speed --slow     three seeds of ours and of the recipes that take minutes

The recipes take turns. Seconds are those of training alone, from images in memory (uint8 for ours): no loading, no
look at validation or test. Prints one table and writes it to benchmarks/results/speed.json (--quick: speed-quick.json,
--slow: speed-slow.json).
"""

import gc
import json
import statistics
import tempfile
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks.common import (
    DATA,
    Training,
    about,
    finished_run,
    flops_of,
    joined,
    parser_of,
    suffix,
    timed,
    write_result,
)
from benchmarks.recipes import OpenClip, Run, plain_classifier, pytorch_example, toy_clip
from my_dataset import load_mnist
from my_utils import bf16_by_default, exit_on_input_error, number, pick_device

OURS = "ours, --preset speed"


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--seeds", type=number(int, 2), default=None, help="seeds of each recipe; None: 10, or 3")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--quick", action="store_true", help="3 seeds")
    which.add_argument("--slow", action="store_true", help="3 seeds of the recipes that take minutes")
    args = parser.parse_args()
    device = pick_device(args.device)
    seeds = args.seeds or (3 if args.quick or args.slow else 10)

    parts = [load_mnist(split, DATA, device) for split in ("train", "val", "test")]
    everything = joined(*parts[:2])  # others train on 60,000
    test = parts[2]
    recipes = {OURS: lambda seed: ours(seed, device)}
    if args.slow:
        recipes["PyTorch's MNIST example"] = lambda seed: pytorch_example(everything, test, seed)
        recipes["toy CLIP (mnist-clip)"] = lambda seed: toy_clip(everything, test, seed)
    else:
        recipes["plain classifier (train_mnist_fast)"] = lambda seed: plain_classifier(everything, test, seed)
        recipes["plain classifier (train_mnist_fast)"](99)
    recipes[OURS](99)  # warm-up: libraries load, kernels are chosen
    gc.freeze()  # or the collector walks, within our clocks, through the libraries that the other recipes brought in
    steps = {} if args.slow else {"open_clip_step": open_clip_step(device), "roofline": roofline(device)}
    runs = {name: [] for name in recipes}
    # In turn, now one first and now the other.
    for seed, name in tqdm([(s, name) for s in range(seeds) for name in list(recipes)[:: (-1) ** s]], desc="runs"):
        runs[name].append(recipes[name](seed))

    medians = {name: statistics.median(run.seconds for run in done) for name, done in runs.items()}
    rows = []
    for name, done in runs.items():
        accuracies = [run.accuracy for run in done]
        rows.append(
            {
                "recipe": name,
                "seconds": medians[name],
                "seconds_min": min(run.seconds for run in done),
                "seconds_max": max(run.seconds for run in done),
                "seconds_of_runs": [round(run.seconds, 3) for run in done],
                "ratio_to_ours": medians[name] / medians[OURS],
                "accuracy_mean": statistics.mean(accuracies),
                "accuracy_std": statistics.stdev(accuracies) if len(done) > 1 else None,
                "seeds": len(done),
                "note": "; ".join(sorted({run.note for run in done})),
            }
        )
    validation = [run.val_accuracy for run in runs[OURS]]
    rows[0]["note"] += f"; on validation {statistics.mean(validation):.2%} ± {100 * statistics.stdev(validation):.2f}"
    result = about(device) | {"recipes": rows} | steps
    kind = "-quick" if args.quick else "-slow" if args.slow else ""
    write_result(f"speed{kind}{suffix(device)}", result)

    print(f"\n{result['device']}, {result['threads']} threads, torch {result['torch_version']}")
    print(f"{'recipe':38}{'median s':>9}{'min-max':>14}{'x ours':>8}{'test accuracy':>18}  seeds, note")
    for row in rows:
        spread = f" +- {row['accuracy_std']:.2%}" if row["accuracy_std"] is not None else ""
        print(
            f"{row['recipe']:38}{row['seconds']:9.2f}{row['seconds_min']:7.1f}-{row['seconds_max']:<6.1f}"
            f"{row['ratio_to_ours']:8.2f}{row['accuracy_mean']:10.2%}{spread}  {row['seeds']}, {row['note']}"
        )
    for step in steps.values():
        print(json.dumps(step))


def ours(seed: int, device: torch.device) -> Run:
    """The program as it is: its own clock, its own look at the test split."""
    with tempfile.TemporaryDirectory() as runs:
        flags = ["--preset", "speed", "--seed", str(seed), "--device", str(device)]
        metrics = finished_run(Path(runs) / "run", flags, quiet=True)
    epochs = "one epoch" if metrics["epochs"] == 1 else f"{metrics['epochs']} epochs"
    note = epochs + (" in bf16" if bf16_by_default(device) else "")  # the others are in float32
    return Run(metrics["train_seconds"], metrics["test_digit_accuracy"], note, metrics["val_digit_accuracy"])


def open_clip_step(device: torch.device, steps: int = 40) -> dict:
    """Images/s of whole training steps in turn, of our model and loss and of open_clip's: the same towers, batches,
    memory format, optimizer (AdamW, for open_clip has no Muon) and clipping, in float32. Ours takes each of the ten
    captions once, where open_clip takes one for each image."""
    ours = Training(["--captions", "digit", "--muon-lr", "0"], device, bf16=False)
    takers = {"ours": ours.step, "open_clip": OpenClip(ours.model)}
    seconds = {name: [] for name in takers}
    for step in range(steps + 5):
        batch = next(ours.batches)
        for name in sorted(takers, reverse=step % 2 == 0):
            elapsed = timed(device, lambda take=takers[name]: take(batch))  # noqa: B023, called at once
            if step >= 5:  # the first ones warm up
                seconds[name].append(elapsed)
    batch_size = ours.settings.batch_size
    rates = {name: batch_size / statistics.median(values) for name, values in seconds.items()}
    return {
        "batch_size": batch_size,
        "images_per_second": rates,
        "ours_to_open_clip": rates["ours"] / rates["open_clip"],
    }


def roofline(device: torch.device, steps: int = 30) -> dict:
    """FLOPs of the default training step over its time, against a large matrix product of its dtype, in turn."""
    training = Training([], device)
    flops = flops_of(training)
    dtype = torch.bfloat16 if training.step.bf16 else torch.float32
    a, b = torch.randn(2, 2048, 2048, device=device, dtype=dtype)
    step_seconds, product_seconds = [], []
    for _ in range(steps):
        step_seconds.append(timed(device, training))
        product_seconds.append(timed(device, lambda: a @ b))
    rate = flops / statistics.median(step_seconds)
    peak = 2 * 2048**3 / statistics.median(product_seconds)
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "step_gflop": flops / 1e9,
        "step_gflop_per_second": rate / 1e9,
        "matrix_product_gflop_per_second": peak / 1e9,
        "share_of_matrix_product": rate / peak,
    }


if __name__ == "__main__":
    with exit_on_input_error():
        main()
