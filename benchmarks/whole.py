"""Whole runs of `--preset accuracy` and of others beside it, looked at on the test split: nothing is chosen by them.

    python -m benchmarks.whole                        the preset as it is, from finished runs or new ones
    python -m benchmarks.whole everything             trained on all 60,000 images, those of validation too
    python -m benchmarks.whole affine --seeds 0       with another augmentation

A run on all images keeps its last epoch, for none is left to choose the best by. Runs stay in runs/whole/.
Writes benchmarks/results/whole.json, where the new rows replace those of the same name and seed.
"""

import torch

from benchmarks.common import DATA, ROOT, about, finished_run, parser_of
from benchmarks.tries import Try, keep, trained
from clip import CLIP
from evaluate import CORRUPTED_IMAGES
from evaluation.metrics import caption_accuracy, digit_classifier, embed_images
from evaluation.other_images import uci_digits
from evaluation.sections import robustness, subset
from my_dataset import MNISTPairs, load_mnist
from my_utils import InputError, exit_on_input_error, number

FLAGS = ["--preset", "accuracy"]
RUNS = ROOT / "runs" / "whole"
ROWS = {
    "preset": Try("`--preset accuracy`"),
    "everything": Try("trained on all 60,000 images"),
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
            own = about(torch.device("cpu"))  # before training: the commit may be another one afterwards
            model = model_of(name, seed)
            trained_at = {"commit": model.metrics.get("commit", own["commit"])}
            keep("whole", ROWS, name, seed, looked_at(model) | own | trained_at)


def model_of(name: str, seed: int) -> CLIP:
    """The model of a whole run."""
    flags, run = ["--seed", str(seed), *FLAGS, *ROWS[name].flags.split()], RUNS / f"{name}-seed{seed}"
    if name != "everything":
        finished_run(run, flags)
        return CLIP.load(run / "best_model.pth")
    model = trained(ROWS[name], flags, run.name, add_validation)
    run.mkdir(parents=True, exist_ok=True)
    model.save(run / "best_model.pth")
    return model


def add_validation(pairs: MNISTPairs) -> None:
    images, labels = load_mnist("val", DATA)
    pairs.images, pairs.labels = torch.cat([pairs.images, images]), torch.cat([pairs.labels, labels])


def looked_at(model: CLIP) -> dict:
    """As evaluate.py measures it."""
    captions, test, uci = digit_classifier(model), load_mnist("test", DATA), uci_digits()
    error, uci_error = (
        1 - caption_accuracy(embed_images(model, split.images) @ captions.T, split.labels) for split in (test, uci)
    )
    corrupted = robustness(model, captions, subset(test, CORRUPTED_IMAGES))["mean_corruption_error"]
    return {"error": error, "uci_error": uci_error, "mean_corruption_error": corrupted}


if __name__ == "__main__":
    with exit_on_input_error():
        main()
