"""Whole runs of `--preset accuracy` with one change, looked at once on the test split: nothing is chosen by them.

    python -m benchmarks.whole                        the preset as it is, from finished runs or new ones
    python -m benchmarks.whole everything             trained on all 60,000 images, those of validation too
    python -m benchmarks.whole squares --seeds 0      on images changed as benchmarks/tries.py says

Where the preset keeps the best epoch on validation, a changed run keeps the last one. Models stay in runs/whole/.
Writes benchmarks/results/whole.json, where the new rows replace those of the same name and seed.
"""

import torch

from benchmarks.common import DATA, ROOT, about, finished_run, parser_of
from benchmarks.tries import TRIES, Try, keep, trained
from clip import CLIP
from evaluate import CORRUPTED_IMAGES
from evaluation.metrics import caption_accuracy, digit_classifier, embed_images
from evaluation.other_images import uci_digits
from evaluation.sections import robustness, subset
from my_dataset import MNISTPairs, load_mnist
from my_utils import InputError, exit_on_input_error, number

FLAGS = ["--preset", "accuracy"]
RUNS = ROOT / "runs" / "whole"
ROWS = {"preset": Try("as it is"), "everything": Try("trained on all 60,000 images")} | TRIES


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
            keep("whole", ROWS, name, seed, looked_at(model_of(name, seed)) | own)


def model_of(name: str, seed: int) -> CLIP:
    """The model of a whole run."""
    flags = ["--seed", str(seed), *FLAGS]
    if name == "preset":
        run = RUNS / f"preset-seed{seed}"
        finished_run(run, flags)
        return CLIP.load(run / "best_model.pth")
    model = trained(ROWS[name], flags, f"{name}, seed {seed}", add_validation if name == "everything" else None)
    model.save(RUNS / f"{name}-seed{seed}.pth")
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
