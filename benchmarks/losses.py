"""The table of losses: what each contrastive loss makes of the same towers, data and budget, on validation.

    python -m benchmarks.losses --text-encoder plus --freeze-text --text-model FOLDER     with sentences
    python -m benchmarks.losses                         with the ten captions' table

Each loss trains with three learning rates at each batch size, and its row is that of the rate that is best on
validation. `multi_positive` is what the others are set against: with the same seed the images come in the same order,
so that the difference is taken seed by seed, with its 95% interval (Student's t). (`infonce_distinct` has an order of
its own, groups of ten distinct digits, and for its batch the multiple of ten below.)

Every flag but --seeds goes to train.py. Runs stay in runs/losses-<encoder>/; one that has finished is not run again,
one that was cut off is resumed. Writes benchmarks/results/losses-<encoder>.json and benchmarks/losses-<encoder>.png.
"""

import math
import statistics
from pathlib import Path

from matplotlib.figure import Figure
from scipy.stats import t as student_t
from tqdm import tqdm

from benchmarks.common import ROOT, finished_run, machine, parser_of, same_origin, spread, write_result
from evaluation.pictures import save_figure
from losses import GROUP, LOSSES
from my_utils import InputError, exit_on_input_error, number
from training.settings import read_flags

BATCH_SIZES = (32, 256)
EPOCHS = 2
LRS_AT_256 = (3e-3, 9e-3, 2.7e-2)  # AdamW's; by the root of the batch size at others
# A small CNN and AdamW on images as they are, so that 120 runs take half an hour; the rest is as in the default.
BUDGET = f"--captions digit --image-encoder fast --epochs {EPOCHS} --augment none --muon-lr 0 --width 16".split()
BUDGET += ["--init-temperature", "0.07"]
SET_AGAINST = "multi_positive"
MEASURES = {
    "digit_accuracy": lambda m: m["val_digit_accuracy"],
    "mean_average_precision": lambda m: m["val_mean_average_precision"],
    "excess_loss": lambda m: m["history"][-1]["excess_loss"],
    "temperature": lambda m: m["history"][-1]["temperature"],
    "modality_gap": lambda m: m["val_modality_gap"],
}


def main() -> None:
    parser = parser_of(__doc__, device=False)
    parser.add_argument("--seeds", type=number(int, 0), nargs="+", default=[0, 1, 2, 3, 4], help="training seeds")
    args, flags = parser.parse_known_args()
    if len(args.seeds) < 2:
        raise InputError("one seed tells no spread: name two or more with --seeds")
    settings, _ = read_flags([*BUDGET, *flags])
    encoder = settings.text_encoder
    runs = ROOT / "runs" / f"losses-{encoder}"

    keys = [(batch, loss, lr) for batch in BATCH_SIZES for loss in LOSSES for lr in LRS_AT_256]
    metrics = {key: [] for key in keys}
    for seed, (batch, loss, lr) in tqdm([(seed, key) for seed in args.seeds for key in keys], desc="runs"):
        size = batch_size(batch, loss)
        own = ["--loss", loss, "--seed", str(seed), "--batch-size", str(size), "--lr", lr_of(lr, batch)]
        run = runs / f"{loss}-{size}-lr{lr:g}-seed{seed}"
        metrics[batch, loss, lr].append(finished_run(run, [*BUDGET, *own, *flags], quiet=True))

    measured = {
        key: {name: spread([of(one) for one in own]) for name, of in MEASURES.items()} for key, own in metrics.items()
    }
    rows = []
    for batch in BATCH_SIZES:
        best = {
            loss: max(LRS_AT_256, key=lambda lr: measured[batch, loss, lr]["digit_accuracy"]["mean"]) for loss in LOSSES
        }
        for loss, lr in best.items():
            row = measured[batch, loss, lr]
            against = measured[batch, SET_AGAINST, best[SET_AGAINST]]
            difference = paired(row["digit_accuracy"]["values"], against["digit_accuracy"]["values"])
            rates = {lr_of(one, batch): measured[batch, loss, one]["digit_accuracy"] for one in LRS_AT_256}
            rows.append({"loss": loss, "batch_size": batch_size(batch, loss), "lr": lr_of(lr, batch)} | row)
            rows[-1] |= {"difference": difference, "accuracy_by_lr": rates}
    origin = same_origin([one for own in metrics.values() for one in own])
    result = {
        "text_model": Path(settings.text_model).parent.name if encoder == "plus" else None,
        "epochs": settings.epochs,
        "seeds": args.seeds,
        "device": machine(origin),  # the runs' own: this machine may have a GPU that they did not use
        "torch_version": origin["torch_version"],
        "commit": origin["commit"],
        "date": max(one["date"] for own in metrics.values() for one in own),
        "set_against": SET_AGAINST,
        "rows": rows,
    }
    write_result(f"losses-{encoder}", result)
    save_figure(figure_of(rows), ROOT / "benchmarks" / f"losses-{encoder}.png")
    print(f"\n{'batch':>6} {'loss':18}{'lr':>10}{'validation accuracy':>22}   less {SET_AGAINST}, 95% interval")
    for row in rows:
        accuracy, difference = row["digit_accuracy"], row["difference"]
        low, high = difference["interval"]
        print(
            f"{row['batch_size']:6} {row['loss']:18}{row['lr']:>10}{accuracy['mean']:14.2%} +- {accuracy['std']:.2%}"
            f"   {100 * difference['mean']:+.2f} ({100 * low:+.2f} to {100 * high:+.2f})"
        )


def batch_size(batch: int, loss: str) -> int:
    return batch - batch % GROUP if loss == "infonce_distinct" else batch


def lr_of(lr_at_256: float, batch: int) -> str:
    return f"{lr_at_256 * math.sqrt(batch / 256):.3g}"


def paired(values: list[float], others: list[float]) -> dict:
    """The mean difference of two lists of runs with the same seeds, and the bounds of its 95% interval."""
    differences = [value - other for value, other in zip(values, others, strict=True)]
    mean, n = statistics.mean(differences), len(differences)
    half = float(student_t.ppf(0.975, n - 1)) * statistics.stdev(differences) / math.sqrt(n)
    return {"mean": mean, "interval": [mean - half, mean + half]}


def figure_of(rows: list[dict]) -> Figure:
    """Validation accuracy over the learning rate, a line for each loss, a standard deviation each way."""
    styles = {
        "multi_positive": ("#0072B2", "o-"),
        "infonce": ("#D55E00", "s--"),
        "infonce_distinct": ("#009E73", "^-"),
        "sigmoid": ("#CC79A7", "D-"),
    }
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for axes, batch in zip(figure.subplots(1, len(BATCH_SIZES), sharey=True), BATCH_SIZES, strict=True):
        for place, (loss, (colour, style)) in enumerate(styles.items()):
            own = next(row for row in rows if (row["loss"], row["batch_size"]) == (loss, batch_size(batch, loss)))
            rates = own["accuracy_by_lr"]
            places = [float(lr) * 1.04 ** (place - 1.5) for lr in rates]  # beside each other, or they would overlap
            means, errors = ([100 * (row[key] or 0) for row in rates.values()] for key in ("mean", "std"))
            axes.errorbar(places, means, errors, fmt=style, color=colour, capsize=3, markersize=5, label=loss)
        axes.set_xscale("log")
        axes.set_xticks([float(lr) for lr in rates], list(rates))
        axes.minorticks_off()
        axes.set_xlabel("peak learning rate of AdamW")
        axes.set_title(f"batch {batch}", fontsize=10)
        axes.grid(alpha=0.3)
        axes.label_outer()
    figure.axes[0].set_ylabel("validation accuracy (%)")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


if __name__ == "__main__":
    with exit_on_input_error():
        main()
