"""Side by side: `train.py --preset speed` and what a person would train instead, in one process.

    python benchmarks/speed.py            ten seeds of ours and of the plain classifier, three of the slow ones
    python benchmarks/speed.py --quick    within 3 minutes: fewer seeds, the slow ones left out

The two fast ones take turns, and so do the two slow ones after them. Seconds are those of training alone, from images
in memory (uint8 for ours): no loading, no look at validation or test. Prints one table and writes it to
benchmarks/results/speed.json (--quick: speed-quick.json).
"""

import contextlib
import copy
import gc
import io
import itertools
import json
import shlex
import statistics
import sys
import tempfile
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from open_clip import ClipLoss, CustomTextCLIP  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402
from tqdm import tqdm  # noqa: E402

import train  # noqa: E402
from augment import random_warp  # noqa: E402
from benchmarks.recipes import Run, Stopwatch, our_step, plain_classifier, pytorch_example, toy_clip  # noqa: E402
from clip import CLIP  # noqa: E402
from losses import multi_positive  # noqa: E402
from my_dataset import DATA_PATH, Split, epoch_batches, load_mnist  # noqa: E402
from my_utils import (  # noqa: E402
    ArgumentParser,
    atomic_write,
    bf16_by_default,
    cpu_name,
    exit_on_input_error,
    number,
    pick_device,
)

OURS = "ours, --preset speed"


def main() -> None:
    parser = ArgumentParser(prog="speed.py", description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=number(int, 2), default=10, help="seeds of ours and the plain classifier")
    parser.add_argument("--slow-seeds", type=number(int, 1), default=3, help="seeds of the recipes that take minutes")
    parser.add_argument("--quick", action="store_true", help="3 seeds, the slow recipes left out")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    args = parser.parse_args()
    device = pick_device(args.device)
    if args.quick:
        args.seeds, args.slow_seeds = 3, 0

    parts = [load_mnist(split, ROOT / DATA_PATH, device) for split in ("train", "val", "test")]
    everything = Split(*(torch.cat(pair) for pair in zip(parts[0], parts[1], strict=True)))  # others train on 60,000
    test = parts[2]
    recipes = {
        OURS: lambda seed: ours(seed, device),
        "plain classifier (train_mnist_fast)": lambda seed: plain_classifier(everything, test, seed),
        "PyTorch's MNIST example": lambda seed: pytorch_example(everything, test, seed),
        "toy CLIP (mnist-clip)": lambda seed: toy_clip(everything, test, seed),
    }
    for name in list(recipes)[:2]:  # warm-up: libraries load, kernels are chosen
        recipes[name](99)
    gc.freeze()  # or the collector walks, within our clocks, through the libraries that the other recipes brought in
    open_clip, roof = open_clip_step(parts[0], device), roofline(parts[0], device)
    runs = {name: [] for name in recipes}
    # In turn, now one of a pair first and now the other. The slow pair comes last, for it would crowd out the fast one.
    pairs = ((args.seeds, list(recipes)[:2]), (args.slow_seeds, list(recipes)[2:]))
    table = [(seed, name) for seeds, pair in pairs for seed in range(seeds) for name in pair[:: (-1) ** seed]]
    for seed, name in tqdm(table, desc="runs"):
        runs[name].append(recipes[name](seed))

    medians = {name: statistics.median(run.seconds for run in done) for name, done in runs.items() if done}
    rows = []
    for name, done in runs.items():
        if done:
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
    result = {
        "command": shlex.join(["python", "benchmarks/speed.py", *sys.argv[1:]]),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name(),
        "threads": torch.get_num_threads(),
        "torch_version": str(torch.__version__),
        "date": f"{date.today()}",
        "recipes": rows,
        "open_clip_step": open_clip,
        "roofline": roof,
    }
    name = "speed-quick" if args.quick else "speed"
    if device.type == "cuda":
        name += "-cuda"
    atomic_write(ROOT / "benchmarks" / "results" / f"{name}.json", (json.dumps(result, indent=2) + "\n").encode())

    print(f"\n{result['device']}, {result['threads']} threads, torch {result['torch_version']}")
    print(f"{'recipe':38}{'median s':>9}{'min-max':>14}{'x ours':>8}{'test accuracy':>18}  seeds, note")
    for row in rows:
        spread = f" +- {row['accuracy_std']:.2%}" if row["accuracy_std"] is not None else ""
        print(
            f"{row['recipe']:38}{row['seconds']:9.2f}{row['seconds_min']:7.1f}-{row['seconds_max']:<6.1f}"
            f"{row['ratio_to_ours']:8.2f}{row['accuracy_mean']:10.2%}{spread}  {row['seeds']}, {row['note']}"
        )
    for step in (result["open_clip_step"], result["roofline"]):
        print(json.dumps(step))


def ours(seed: int, device: torch.device) -> Run:
    """The program as it is: its own clock, its own look at the test split."""
    with tempfile.TemporaryDirectory() as runs:
        flags = [
            "--preset",
            "speed",
            "--seed",
            str(seed),
            "--device",
            str(device),
            "--data-path",
            str(ROOT / DATA_PATH),
        ]
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            if train.main([*flags, "--runs-dir", runs, "--run-name", "run"]):  # Ctrl-C, which train.py takes
                raise KeyboardInterrupt
        metrics = json.loads((Path(runs) / "run" / "metrics.json").read_text())
    epochs = "one epoch" if metrics["epochs"] == 1 else f"{metrics['epochs']} epochs"
    note = epochs + (" in bf16" if bf16_by_default(device) else "")  # the others are in float32
    return Run(metrics["train_seconds"], metrics["test_zero_shot_accuracy"], note, metrics["val_zero_shot_accuracy"])


def open_clip_model(ours: CLIP) -> CustomTextCLIP:
    """open_clip's own model class around copies of our two towers: its forward, its normalisation, its scale."""
    vision = {"layers": 1, "width": 64, "patch_size": 14, "image_size": 28}  # small stand-ins, replaced at once
    text = {"context_length": 1, "vocab_size": 10, "width": 64, "heads": 1, "layers": 1}
    model = CustomTextCLIP(64, vision, text)
    model.visual, model.text = copy.deepcopy(ours.image_encoder), copy.deepcopy(ours.text_encoder)
    return model


def open_clip_step(split: Split, device: torch.device, batch_size: int = 256, steps: int = 40) -> dict:
    """Images/s of whole training steps, the same towers, batch, memory format and optimizer, in turn: our model and
    loss against open_clip's."""
    ours = CLIP().to(device, memory_format=torch.channels_last)
    models = {"ours": ours, "open_clip": open_clip_model(ours).to(device, memory_format=torch.channels_last)}
    optimizers = {name: torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True) for name, model in models.items()}
    reference = ClipLoss()
    seconds = {name: [] for name in models}
    batches = itertools.islice(epoch_batches(split, batch_size, seed=0, epoch=0), steps + 5)
    for step, (images, labels) in enumerate(batches):
        images = random_warp(images)
        for name in sorted(models, reverse=step % 2 == 0):
            model, watch = models[name], Stopwatch(device)
            with watch:
                if name == "ours":
                    loss = multi_positive(model(images, labels)[0], labels)
                else:
                    out = model(images, labels)
                    loss = reference(*out[:3])
                optimizers[name].zero_grad()
                loss.backward()
                optimizers[name].step()
            if step >= 5:  # the first ones warm up
                seconds[name].append(watch.seconds)
    rates = {name: batch_size / statistics.median(values) for name, values in seconds.items()}
    return {
        "batch_size": batch_size,
        "images_per_second": rates,
        "ours_to_open_clip": rates["ours"] / rates["open_clip"],
    }


def roofline(split: Split, device: torch.device, steps: int = 30) -> dict:
    """FLOPs of the default training step over its time, against a large matrix product of its dtype, in turn."""
    model = CLIP().to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    images, labels = next(epoch_batches(split, 256, seed=0, epoch=0))

    def step() -> None:
        our_step(model, optimizer, images, labels)

    with FlopCounterMode(display=False) as counter:
        step()
    dtype = torch.bfloat16 if bf16_by_default(device) else torch.float32
    a, b = torch.randn(2, 2048, 2048, device=device, dtype=dtype)
    step_seconds, product_seconds = [], []
    for _ in range(steps):
        for work, seconds in ((step, step_seconds), (lambda: a @ b, product_seconds)):
            watch = Stopwatch(device)
            with watch:
                work()
            seconds.append(watch.seconds)
    rate = counter.get_total_flops() / statistics.median(step_seconds)
    peak = 2 * 2048**3 / statistics.median(product_seconds)
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "step_gflop": counter.get_total_flops() / 1e9,
        "step_gflop_per_second": rate / 1e9,
        "matrix_product_gflop_per_second": peak / 1e9,
        "share_of_matrix_product": rate / peak,
    }


if __name__ == "__main__":
    with exit_on_input_error():
        main()
