"""The table of losses: what each contrastive loss makes of the same towers, data and budget.

    python -m benchmarks.losses                         with the ten captions' table
    python -m benchmarks.losses --text-encoder plus --freeze-text --text-model FOLDER     with sentences

Every flag but --seeds goes to train.py. `infonce_distinct` draws groups of ten distinct digits; its batch is the
multiple of ten below. Runs stay in runs/losses-<encoder>/ and one that has finished is not run again; one that was cut
off is resumed. Writes benchmarks/results/losses-<encoder>.json and benchmarks/losses-<encoder>.png.
"""

import math
from pathlib import Path

from matplotlib.figure import Figure
from tqdm import tqdm

from benchmarks.common import ROOT, finished_run, machine, parser_of, same_origin, spread, write_result
from evaluation.pictures import save_figure
from losses import GROUP, LOSSES
from my_utils import exit_on_input_error, number
from training.settings import read_flags

BATCH_SIZES = (32, 256, 2048)
EPOCHS = 3
LR_AT_256 = 3e-3  # AdamW's; by the root of the batch size at others
# A small CNN and AdamW on images as they are, so that the table takes minutes; the rest is as in the default.
BUDGET = f"--captions digit --image-encoder fast --epochs {EPOCHS} --no-augment --muon-lr 0 --width 16".split()
BUDGET += ["--init-temperature", "0.07"]
MEASURES = {
    "digit_accuracy": lambda m: m["test_digit_accuracy"],
    "mean_average_precision": lambda m: m["test_mean_average_precision"],
    "excess_loss": lambda m: m["history"][-1]["excess_loss"],
    "temperature": lambda m: m["history"][-1]["temperature"],
    "modality_gap": lambda m: m["test_modality_gap"],
}


def main() -> None:
    parser = parser_of(__doc__, device=False)
    parser.add_argument("--seeds", type=number(int, 0), nargs="+", default=[0, 1, 2], help="training seeds")
    args, flags = parser.parse_known_args()
    settings, _ = read_flags([*BUDGET, *flags])
    encoder = settings.text_encoder
    runs = ROOT / "runs" / f"losses-{encoder}"

    sizes = {(batch, loss): batch_size(batch, loss) for batch in BATCH_SIZES for loss in LOSSES}
    table = [(batch, loss, seed) for batch, loss in sizes for seed in args.seeds]
    metrics = {}
    for batch, loss, seed in tqdm(table, desc="runs"):
        size = sizes[batch, loss]
        own = ["--loss", loss, "--seed", str(seed), "--batch-size", str(size)]
        own += ["--lr", f"{LR_AT_256 * math.sqrt(size / 256):.3g}"]
        run = runs / f"{loss}-{size}-seed{seed}"
        metrics[batch, loss, seed] = finished_run(run, [*BUDGET, *own, *flags], quiet=True)

    rows = [
        {"loss": loss, "batch_size": size}
        | {name: spread([of(metrics[batch, loss, seed]) for seed in args.seeds]) for name, of in MEASURES.items()}
        for (batch, loss), size in sizes.items()
    ]
    origin = same_origin(list(metrics.values()))
    result = {
        "text_model": Path(settings.text_model).parent.name if encoder == "plus" else None,
        "epochs": settings.epochs,
        "seeds": args.seeds,
        "device": machine(origin),  # the runs' own: this machine may have a GPU that they did not use
        "torch_version": origin["torch_version"],
        "commit": origin["commit"],
        "date": max(m["date"] for m in metrics.values()),
        "rows": rows,
    }
    write_result(f"losses-{encoder}", result)
    save_figure(figure_of(rows), ROOT / "benchmarks" / f"losses-{encoder}.png")
    print(f"\n{'batch':>6} {'loss':18}" + "".join(f"{name:>26}" for name in MEASURES))
    for row in rows:
        cells = (f"{row[name]['mean']:.4f} +- {row[name]['std'] or 0:.4f}" for name in MEASURES)
        print(f"{row['batch_size']:6} {row['loss']:18}" + "".join(f"{cell:>26}" for cell in cells))


def batch_size(batch: int, loss: str) -> int:
    return batch - batch % GROUP if loss == "infonce_distinct" else batch


def figure_of(rows: list[dict]) -> Figure:
    """Each measure over the batch size, a line for each loss, a standard deviation each way."""
    titles = {
        "digit_accuracy": ("digit accuracy (%)", 100),
        "mean_average_precision": ("text to image mAP (%)", 100),
        "excess_loss": ("final excess loss (nats)", 1),
        "modality_gap": ("modality gap", 1),
    }
    styles = {
        "multi_positive": ("#0072B2", "o-"),
        "infonce": ("#D55E00", "s--"),
        "infonce_distinct": ("#009E73", "^-"),
        "sigmoid": ("#CC79A7", "D-"),
    }
    figure = Figure(figsize=(13, 3.6), layout="constrained")
    for axes, (name, (title, scale)) in zip(figure.subplots(1, len(titles)), titles.items(), strict=True):
        for loss, (colour, style) in styles.items():
            own = [row for row in rows if row["loss"] == loss]
            values = [scale * row[name]["mean"] for row in own]
            errors = [scale * (row[name]["std"] or 0) for row in own]
            sizes = [row["batch_size"] for row in own]
            axes.errorbar(sizes, values, errors, fmt=style, color=colour, capsize=3, markersize=5, label=loss)
        axes.set_xscale("log", base=2)
        if name == "excess_loss":  # the sigmoid's is a sum over the batch's texts
            axes.set_yscale("log")
        axes.set_xticks(BATCH_SIZES, [str(size) for size in BATCH_SIZES])
        axes.minorticks_off()
        axes.set_xlabel("batch size (pairs)")
        axes.set_title(title, fontsize=10)
        axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


if __name__ == "__main__":
    with exit_on_input_error():
        main()
