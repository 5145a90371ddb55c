"""Where the time of a training step goes, and what the usual remedies change.

    python -m benchmarks.profile_step

The torch profiler's operators, grouped, for the default step and that of --preset speed, as a figure
(benchmarks/profile.png); then variants of the step in turn, and the epoch's measures. Prints the table and writes it
to benchmarks/results/profile.json (CUDA: profile-cuda.json).
"""

import statistics

from matplotlib.figure import Figure
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm

from benchmarks.common import DATA, ROOT, Training, about, parser_of, suffix, timed, write_result
from clip import CLIP
from evaluation.metrics import caption_accuracy, digit_classifier, embed_images, evaluate
from evaluation.pictures import save_figure
from my_dataset import load_mnist
from my_utils import bf16_by_default, exit_on_input_error, pick_device, use_precision

STEPS = 40
# A profiler's operator belongs to the first group that its name contains a word of.
GROUPS = {
    "convolution, backward": ("convolution_backward",),
    "convolution, forward": ("convolution",),
    "batch norm": ("batch_norm",),
    "max pooling": ("max_pool",),
    "ReLU, sums": ("threshold", "clamp_min", "relu"),
    "matrix products of Muon": ("bmm",),  # the only batched ones
    "matrix products of the towers, logits": ("mm", "linear"),
    "augmentation": ("grid", "affine"),
    "optimizer, clipping": ("adam", "norm", "foreach", "Optimizer"),
    "the rest": ("",),
}


def main() -> None:
    device = pick_device(parser_of(__doc__).parse_args().device)
    use_precision("fp32", device)  # what is called float32 below is whole float32 on a GPU too, without TF32
    speed, wide, adamw = ["--preset", "speed"], ["--width", "32"], ["--muon-lr", "0"]
    shares = {}
    for name, flags in (("default", []), ("--preset speed", speed)):
        training = Training(flags, device)
        for _ in range(5):
            training()
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
        with profile(activities=activities) as profiler:
            for _ in range(STEPS):
                training()
        shares[name] = grouped(profiler, device)
    save_figure(share_figure(shares), ROOT / "benchmarks" / f"profile{suffix(device)}.png")

    usual, precision = bf16_by_default(device), ("float32", "bf16 autocast")
    variants = {
        f"as it is (width 16, channels last, {precision[usual]})": Training([], device),
        "memory format NCHW": Training([], device, channels_last=False),
        "AdamW for all (--muon-lr 0), fused": Training(adamw, device),
        "AdamW for all, as a loop over parameters": Training(adamw, device, fused=False),
    }
    # Whether bf16 pays is a matter of each width, and so of what is measured, not of what the device can do.
    for name, flags in (("width 16", []), ("width 32", wide), ("--preset speed", speed)):
        for bf16 in (False, True):
            if name != "width 16" or bf16 != usual:  # that one is the first
                variants[f"{name}, {precision[bf16]}"] = Training(flags, device, bf16=bf16)
    # The first steps choose kernels.
    first = {name: sum(timed(device, training) for _ in range(3)) for name, training in variants.items()}
    seconds = {name: [] for name in variants}
    for _ in tqdm(range(STEPS), desc="variants in turn"):
        for name, training in variants.items():
            seconds[name].append(timed(device, training))
    rows = [
        {
            "variant": name,
            "batch_size": training.settings.batch_size,
            "ms": 1000 * statistics.median(seconds[name]),
            "first_seconds": first[name],
        }
        for name, training in variants.items()
    ]

    model = next(iter(variants.values())).model
    val, looks = load_mnist("val", DATA, device), {accuracy_only: [], evaluate: []}
    for _ in range(9):
        for look, times in looks.items():
            times.append(timed(device, lambda look=look: look(model, val)))
    one, all_ = (statistics.median(times) for times in looks.values())
    epoch = 55_000 // 256 * rows[0]["ms"] / 1000 + one
    measures = {"extra_ms": 1000 * (all_ - one), "share_of_epoch": (all_ - one) / epoch}
    result = about(device) | {"shares": shares, "variants": rows, "measures": measures}
    write_result(f"profile{suffix(device)}", result)
    for name, groups in shares.items():
        print(f"\n{name}: " + ", ".join(f"{group} {share:.0%}" for group, share in groups.items()))
    for row in rows:
        print(
            f"{row['variant']:50}{row['batch_size']:5}{row['ms']:8.1f} ms  first 3 steps {row['first_seconds']:5.1f} s"
        )
    extra, share = measures["extra_ms"], measures["share_of_epoch"]
    print(f"measures of an epoch beside accuracy: {extra:.0f} ms, {share:.2%} of a default epoch")


def accuracy_only(model: CLIP, split) -> float:
    return caption_accuracy(embed_images(model, split.images) @ digit_classifier(model).T, split.labels)


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
    colours = (
        "#0072B2",
        "#56B4E9",
        "#009E73",
        "#F0E442",
        "#E69F00",
        "#D55E00",
        "#CC79A7",
        "#882255",
        "#D8CFB8",
        "#999999",
    )
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
