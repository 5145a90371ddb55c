"""Whole runs of `--preset accuracy` and of others beside it, looked at on the test split: nothing is chosen by them.

    python -m benchmarks.whole                        the preset as it is, from finished runs or new ones
    python -m benchmarks.whole everything             trained on all 60,000 images, those of validation too
    python -m benchmarks.whole affine --seeds 0       with another augmentation

A run on all images keeps its last epoch, for none is left to choose the best by. Runs stay in runs/whole/.
Writes benchmarks/results/whole.json, where the new rows replace those of the same name and seed.
"""

import torch

from benchmarks.common import DATA, ROOT, about, finished_run, joined, machine, parser_of
from benchmarks.tries import Try, keep, trained
from clip import CLIP
from evaluate import CORRUPTED_IMAGES
from evaluation.metrics import caption_accuracy, digit_classifier, embed_images
from evaluation.other_images import uci_digits
from evaluation.sections import robustness, subset
from my_dataset import load_mnist
from my_utils import InputError, exit_on_input_error, number

FLAGS = ["--preset", "accuracy"]
RUNS = ROOT / "runs" / "whole"
ROWS = {
    "preset": Try("`--preset accuracy`"),
    "everything": Try("trained on all 60,000 images, its last epoch"),
    "corrupted": Try("with `--augment corrupted`", "--augment corrupted"),
    "affine": Try("with `--augment affine`", "--augment affine"),
}


def main() -> None:
    parser = parser_of(__doc__, device=False)
    parser.add_argument("names", nargs="*", default=["preset"], help=f"of {', '.join(ROWS)}")
    parser.add_argument("--seeds", type=number(int, 0), nargs="+", default=[0, 1, 2], help="training seeds")
    args = parser.parse_args()
    if unknown := set(args.names) - ROWS.keys():
        raise InputError(f"there is no run {', '.join(sorted(unknown))}: choose of {', '.join(ROWS)}")
    for seed in args.seeds:
        for name in args.names:
            model = model_of(name, seed)
            origin = {key: model.metrics[key] for key in ("torch_version", "commit", "date")}
            keep("whole", ROWS, name, seed, measured_on_test(model) | {"device": machine(model.metrics)} | origin)


def model_of(name: str, seed: int) -> CLIP:
    """The model of a whole run, a finished one or a new one."""
    flags, run = ["--seed", str(seed), *FLAGS, *ROWS[name].flags.split()], RUNS / f"{name}-seed{seed}"
    path = run / "best_model.pth"
    if name != "everything":
        finished_run(run, flags)
    elif not path.exists():
        own = about(torch.device("cpu"))  # before training: the commit may be another one afterwards
        everything = joined(load_mnist("train", DATA), load_mnist("val", DATA))
        model = trained(ROWS[name], flags, run.name, everything)
        model.metrics = own
        run.mkdir(parents=True, exist_ok=True)
        model.save(path)
    return CLIP.load(path)


def measured_on_test(model: CLIP) -> dict:
    """As evaluate.py measures it."""
    captions, test, uci = digit_classifier(model), load_mnist("test", DATA), uci_digits()
    error, uci_error = (
        1 - caption_accuracy(embed_images(model, split.images) @ captions.T, split.labels) for split in (test, uci)
    )
    result = robustness(model, captions, subset(test, CORRUPTED_IMAGES))
    others = [one["error"] for kind, one in result["corruptions"].items() if kind not in ("rotation", "translation")]
    return {
        "error": error,
        "mean_corruption_error": result["mean_corruption_error"],
        "without_turns_and_shifts": sum(others) / len(others),
        "uci_error": uci_error,
    }


if __name__ == "__main__":
    with exit_on_input_error():
        main()
