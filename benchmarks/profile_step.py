"""Where the time of a training step goes, and what the usual remedies change.

    python benchmarks/profile_step.py

The torch profiler's operators, grouped, for the default step and that of --preset speed, as a figure
(benchmarks/profile.png); then variants of the step in turn, and the epoch's measures. Prints the table and writes it
to benchmarks/results/profile.json (CUDA: profile-cuda.json).
"""

import json
import os
import statistics
import sys
import time
from datetime import date
from pathlib import Path

os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"  # or a second run would not see what compiling costs
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from torch.autograd import DeviceType  # noqa: E402
from torch.profiler import ProfilerActivity, profile  # noqa: E402
from tqdm import tqdm  # noqa: E402

import train  # noqa: E402
from augment import random_warp  # noqa: E402
from benchmarks.recipes import Stopwatch  # noqa: E402
from clip import CLIP  # noqa: E402
from losses import multi_positive  # noqa: E402
from metrics import embed_images, evaluate, zero_shot_accuracy, zero_shot_classifier  # noqa: E402
from my_dataset import DATA_PATH, epoch_batches, load_mnist  # noqa: E402
from my_utils import ArgumentParser, atomic_write, bf16_by_default, cpu_name, exit_on_input_error, pick_device  # noqa: E402
from pictures import save_figure  # noqa: E402

STEPS = 40
# A profiler's operator belongs to the first group that its name contains a word of.
GROUPS = {
    "convolution, backward": ("convolution_backward",),
    "convolution, forward": ("convolution",),
    "batch norm": ("batch_norm",),
    "max pooling": ("max_pool",),
    "ReLU, sums": ("threshold", "clamp_min", "relu"),
    "matrix products": ("mm", "linear"),
    "augmentation": ("grid", "affine"),
    "optimizer, clipping": ("adam", "norm", "lerp", "Optimizer"),
    "the rest": ("",),
}


class Step:
    """A training step of the settings that `flags` ask train.py for, with the given choices of form."""

    def __init__(self, flags: list[str], device, channels_last=True, fused=True, bf16=None, compiled=False):
        self.args = train.build_parser(flags[1] if flags else "default").parse_args(flags)
        args = self.args
        torch.manual_seed(0)
        self.model = train.make_model(args)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        self.model.to(device, memory_format=layout)
        self.optimizers = train.make_optimizers(self.model, args)
        if not fused:
            groups = [
                {"params": g["params"], "weight_decay": g["weight_decay"]} for g in self.optimizers[0].param_groups
            ]
            self.optimizers[0] = torch.optim.AdamW(groups, lr=args.lr, foreach=False, fused=False)
        if compiled:
            self.model.image_encoder.compile(mode="reduce-overhead" if device.type == "cuda" else "default")
        self.bf16 = bf16_by_default(device) if bf16 is None else bf16
        self.device = device

    def __call__(self, images, labels) -> None:
        """At least a batch of the settings: uint8 images [B, 28, 28], labels [B]."""
        images, labels = images[: self.args.batch_size], labels[: self.args.batch_size]
        if not self.args.no_augment:
            images = random_warp(images)
        self.model.zero_grad()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            logits, _ = self.model(images, labels)
        multi_positive(logits, labels).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.args.grad_clip)
        for optimizer in self.optimizers:
            optimizer.step()


def main() -> None:
    parser = ArgumentParser(prog="profile_step.py", description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    device = pick_device(parser.parse_args().device)
    split = load_mnist("train", ROOT / DATA_PATH, device)
    val = load_mnist("val", ROOT / DATA_PATH, device)
    largest = train.PRESETS["speed"]["batch_size"]  # the default step takes the first 256 of these
    batches = list(zip(range(STEPS), epoch_batches(split, largest, seed=0, epoch=0), strict=False))
    usual = bf16_by_default(device)
    precision = ("float32", "bf16 autocast")

    shares = {}
    for name, flags in (("default", []), ("--preset speed", ["--preset", "speed"])):
        step = Step(flags, device)
        for _, batch in batches[:5]:
            step(*batch)
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
        with profile(activities=activities) as profiler:
            for _, batch in batches:
                step(*batch)
        shares[name] = grouped(profiler, device)
    suffix = "-cuda" if device.type == "cuda" else ""
    save_figure(share_figure(shares), ROOT / "benchmarks" / f"profile{suffix}.png")

    variants = {
        f"as it is (channels last, fused AdamW, {precision[usual]})": Step([], device),
        "memory format NCHW": Step([], device, channels_last=False),
        "AdamW as a loop over parameters": Step([], device, fused=False),
        precision[not usual]: Step([], device, bf16=not usual),
        "width 32, float32": Step(["--preset", "default", "--width", "32"], device, bf16=False),
        "width 32, bf16 autocast": Step(["--preset", "default", "--width", "32"], device, bf16=True),
        "torch.compile": Step([], device, compiled=True),
        "--preset speed": Step(["--preset", "speed"], device),
        "--preset speed, torch.compile": Step(["--preset", "speed"], device, compiled=True),
    }
    first, seconds = {}, {name: [] for name in variants}
    for name, step in variants.items():  # the first steps choose kernels, or compile
        started = time.perf_counter()
        for _, batch in batches[:3]:
            step(*batch)
        first[name] = time.perf_counter() - started
    for _, batch in tqdm(batches, desc="variants in turn"):
        for name, step in variants.items():
            watch = Stopwatch(device)
            with watch:
                step(*batch)
            seconds[name].append(watch.seconds)
    rows = [
        {
            "variant": name,
            "batch_size": step.args.batch_size,
            "ms": 1000 * statistics.median(seconds[name]),
            "first_seconds": first[name],
        }
        for name, step in variants.items()
    ]

    model = CLIP().to(device, memory_format=torch.channels_last)
    looks = {"two": [], "all": []}
    for _ in range(9):
        for name, look in (("two", accuracy_only), ("all", evaluate)):
            watch = Stopwatch(device)
            with watch:
                look(model, val)
            looks[name].append(watch.seconds)
    extra = statistics.median(looks["all"]) - statistics.median(looks["two"])
    epoch = len(split.labels) // 256 * rows[0]["ms"] / 1000 + statistics.median(looks["two"])
    result = {
        "command": "python benchmarks/profile_step.py",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name(),
        "threads": torch.get_num_threads(),
        "torch_version": str(torch.__version__),
        "date": f"{date.today()}",
        "shares": shares,
        "variants": rows,
        "measures": {"extra_ms": 1000 * extra, "share_of_epoch": extra / epoch},
    }
    path = ROOT / "benchmarks" / "results" / f"profile{suffix}.json"
    atomic_write(path, (json.dumps(result, indent=2) + "\n").encode())
    for name, groups in shares.items():
        print(f"\n{name}: " + ", ".join(f"{group} {share:.0%}" for group, share in groups.items()))
    for row in rows:
        print(
            f"{row['variant']:50}{row['batch_size']:5}{row['ms']:8.1f} ms  first 3 steps {row['first_seconds']:5.1f} s"
        )
    print(f"measures of an epoch beside accuracy: {1000 * extra:.0f} ms, {extra / epoch:.2%} of a default epoch")


def accuracy_only(model: CLIP, split) -> float:
    return zero_shot_accuracy(embed_images(model, split.images) @ zero_shot_classifier(model).T, split.labels)


def grouped(profiler, device) -> dict[str, float]:
    """Share of the operators' own time by group."""
    totals = dict.fromkeys(GROUPS, 0.0)
    for event in profiler.key_averages():
        if event.device_type != DeviceType.CPU:
            continue  # a kernel's time is also in the operator that launched it
        own = event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total
        totals[next(group for group, words in GROUPS.items() if any(word in event.key for word in words))] += own
    return {group: total / sum(totals.values()) for group, total in totals.items()}


def share_figure(shares: dict[str, dict[str, float]]) -> Figure:
    """A bar for each step, cut into its groups."""
    colours = ("#0072B2", "#56B4E9", "#009E73", "#F0E442", "#E69F00", "#D55E00", "#CC79A7", "#D8CFB8", "#999999")
    figure = Figure(figsize=(9, 2.8), layout="constrained")
    axes = figure.subplots()
    for row, groups in enumerate(shares.values()):
        left = 0.0
        for (group, share), colour in zip(groups.items(), colours, strict=True):
            axes.barh(row, 100 * share, left=left, color=colour, label=group if row == 0 else None)
            if share > 0.03:
                axes.text(left + 50 * share, row, f"{share:.0%}", ha="center", va="center", fontsize=8)
            left += 100 * share
    axes.set_yticks(range(len(shares)), shares)
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("share of the operators' own time (%)")
    axes.set_title("where a training step's time goes")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    return figure


if __name__ == "__main__":
    with exit_on_input_error():
        main()
