"""The table of losses: what each contrastive loss makes of the same towers, data and budget.

    python experiments/losses.py                         with the ten captions' table
    python experiments/losses.py --text-encoder plus --freeze-text --text-model FOLDER     with sentences

Every flag but --seeds goes to train.py. `infonce_distinct` draws groups of ten distinct digits; its batch is the
multiple of ten below. Runs stay in runs/losses-<encoder>/ and one that has finished is not run again; one that was cut
off is resumed. Writes benchmarks/results/losses-<encoder>.json and experiments/losses-<encoder>.png.
"""

import contextlib
import io
import json
import math
import shlex
import statistics
import sys
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from tqdm import tqdm  # noqa: E402

import train  # noqa: E402
from benchmarks.seeds import check_same  # noqa: E402
from losses import GROUP, LOSSES  # noqa: E402
from my_dataset import DATA_PATH  # noqa: E402
from my_utils import ArgumentParser, atomic_write, cpu_name, exit_on_input_error, number  # noqa: E402
from pictures import save_figure  # noqa: E402

BATCH_SIZES = (32, 256, 2048)
EPOCHS = 3
LR_AT_256 = 3e-3  # AdamW's; by the root of the batch size at others
# A small CNN on images as they are, so that the table takes minutes; the rest is as in the default.
BUDGET = f"--epochs {EPOCHS} --no-augment --blocks 0 1 0 --block-convs 1 --margin 4 --pool flatten".split()
MEASURES = {
    "zero_shot_accuracy": lambda m: m["test_zero_shot_accuracy"],
    "mean_average_precision": lambda m: m["test_mean_average_precision"],
    "excess_loss": lambda m: m["history"][-1]["excess_loss"],
    "temperature": lambda m: m["history"][-1]["temperature"],
    "modality_gap": lambda m: m["test_modality_gap"],
}


def main() -> None:
    parser = ArgumentParser(prog="losses.py", description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=number(int, 0), nargs="+", default=[0, 1, 2], help="training seeds")
    args, flags = parser.parse_known_args()
    settings = train.build_parser().parse_args(flags)
    encoder = settings.text_encoder
    runs = ROOT / "runs" / f"losses-{encoder}"

    table = [(batch, loss, seed) for batch in BATCH_SIZES for loss in LOSSES for seed in args.seeds]
    metrics = {}
    for batch, loss, seed in tqdm(table, desc="runs"):
        size = batch - batch % GROUP if loss == "infonce_distinct" else batch
        own = ["--loss", loss, "--seed", str(seed), "--batch-size", str(size)]
        own += ["--lr", f"{LR_AT_256 * math.sqrt(size / 256):.3g}"]
        metrics[batch, loss, seed] = finished(runs / f"{loss}-{size}-seed{seed}", [*BUDGET, *own, *flags])

    rows = []
    for batch in BATCH_SIZES:
        for loss in LOSSES:
            row = {"loss": loss, "batch_size": batch - batch % GROUP if loss == "infonce_distinct" else batch}
            for name, measure in MEASURES.items():
                values = [measure(metrics[batch, loss, seed]) for seed in args.seeds]
                spread = statistics.stdev(values) if len(values) > 1 else None  # of one seed there is no spread
                row[name] = {"mean": statistics.mean(values), "std": spread}
            rows.append(row)
    result = {
        "command": shlex.join(["python", "experiments/losses.py", *sys.argv[1:]]),
        "text_model": Path(settings.text_model).parent.name if encoder == "plus" else None,
        "epochs": EPOCHS,
        "seeds": args.seeds,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else cpu_name(),
        "torch_version": str(torch.__version__),
        "date": f"{date.today()}",
        "rows": rows,
    }
    path = ROOT / "benchmarks" / "results" / f"losses-{encoder}.json"
    atomic_write(path, (json.dumps(result, indent=2) + "\n").encode())
    save_figure(figure_of(rows), ROOT / "experiments" / f"losses-{encoder}.png")
    print(f"\n{'batch':>6} {'loss':18}" + "".join(f"{name:>26}" for name in MEASURES))
    for row in rows:
        cells = (f"{row[name]['mean']:.4f} +- {row[name]['std'] or 0:.4f}" for name in MEASURES)
        print(f"{row['batch_size']:6} {row['loss']:18}" + "".join(f"{cell:>26}" for cell in cells))


def finished(run: Path, flags: list[str]) -> dict:
    """The metrics of a run, after training it, going on with it, or neither."""
    check_same(run, flags)
    if not (run / "metrics.json").exists():
        where = ["--runs-dir", str(run.parent), "--run-name", run.name, "--data-path", str(ROOT / DATA_PATH)]
        how = ["--resume", str(run)] if (run / "last.pth").exists() else [*flags, *where]
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            code = train.main(how)
        if code:  # Ctrl-C, which train.py takes and saves
            raise KeyboardInterrupt
    return json.loads((run / "metrics.json").read_text())


def figure_of(rows: list[dict]) -> Figure:
    """Each measure over the batch size, a line for each loss, a standard deviation each way."""
    titles = {
        "zero_shot_accuracy": ("zero-shot accuracy (%)", 100),
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
            spread = [scale * (row[name]["std"] or 0) for row in own]
            sizes = [row["batch_size"] for row in own]
            axes.errorbar(sizes, values, spread, fmt=style, color=colour, capsize=3, markersize=5, label=loss)
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
