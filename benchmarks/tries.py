"""What can be tried for `--preset accuracy`: short runs on 45,000 training images, measured on 15,000 others.

    python -m benchmarks.tries                       all of them, 4 minutes each, or 8
    python -m benchmarks.tries elastic squares       some; their rows replace the older ones

A try is `--preset accuracy --augment elastic --width 16 --epochs 10` except for what its row says, on one thread, so
that two processes can run beside each other. The 15,000 are the validation split and the last 10,000 of the training
split; the test split takes no part. Writes benchmarks/results/tries.json.
"""

import contextlib
import json
from collections.abc import Callable
from typing import NamedTuple
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

import my_dataset
import training.settings
from benchmarks.common import DATA, RESULTS, Training, about, joined, parser_of, steps_of, write_result
from clip import CLIP
from evaluation.metrics import caption_accuracy, digit_classifier, embed_images
from evaluation.sections import robustness
from image_encoder import IMAGE_ENCODERS, ImageEncoder, ResidualBlock, halve
from my_dataset import Split, hide_square, load_mnist
from my_utils import InputError, cpu_threads, exit_on_input_error, number
from training.run import locked

HELD_OUT = 10_000  # of the training split, beside the validation split
BUDGET = ["--preset", "accuracy", "--augment", "elastic", "--width", "16", "--epochs", "10"]
# Factors on the cosines, of which the likelihood takes the best, so that calibration does not count.
SCALES = (8, 12, 16, 20, 25, 30, 40, 50, 60, 80)


class Try(NamedTuple):
    """`flags` of train.py; a `change` of the warped images, float [B, 1, 28, 28]; another `encoder`; other
    `constants` of my_dataset.py and training/settings.py."""

    title: str
    flags: str = ""
    change: Callable[[Tensor], Tensor] | None = None
    encoder: type[nn.Module] | None = None
    constants: dict = {}  # noqa: RUF012, nobody changes it


class Late(ImageEncoder):
    """Three times the channels in the second stage, six times in the third."""

    def __init__(self, embed_dim: int, width: int):
        super().__init__(embed_dim, width)
        wide = [1, width, 3 * width, 6 * width]
        stages = [[*halve(*wide[i : i + 2], kernel=3 + 2 * (i == 0)), ResidualBlock(wide[i + 1])] for i in range(3)]
        self.stages = nn.Sequential(*(layer for stage in stages for layer in stage))
        self.projection = nn.Linear(6 * width, embed_dim)


TRIES = {
    "affine": Try("`--augment affine`", "--augment affine"),
    "elastic": Try("the base: `--augment elastic`, 0.7 pixels at each of 4x4 places"),
    "elastic-0.5": Try("0.5 pixels", constants={"BEND": 0.5}),
    "elastic-0.9": Try("0.9 pixels", constants={"BEND": 0.9}),
    "strokes": Try("half of the strokes thicker or thinner", "--augment corrupted", constants={"CORRUPT": 0.0}),
    "squares": Try(
        "squares of 4 to 10 pixels hidden in 30% of the images", change=hide_square, constants={"CORRUPT": 0.3}
    ),
    "corrupted": Try("`--augment corrupted`: those strokes, and each of five corruptions in 8%", "--augment corrupted"),
    "corrupted-16": Try("each in 16%", "--augment corrupted", constants={"CORRUPT": 0.16}),
    "rotate-10": Try("rotations of 10 degrees, shear 0.1", constants={"ROTATE": 10.0, "SHEAR": 0.1}),
    "ema-0.994": Try("`--ema-decay 0.994`: an average over a third as many steps", "--ema-decay 0.994"),
    "muon-0.03": Try("`--muon-lr 0.03`", "--muon-lr 0.03"),
    "width-24": Try("`--width 24` (twice the time)", "--width 24"),
    "epochs-20": Try("`--epochs 20` (twice the time)", "--epochs 20"),
    "late": Try("more channels late: 12, 36, 72 for 16, 32, 64 (the same work)", "--width 12", encoder=Late),
}


def main() -> None:
    parser = parser_of(__doc__, device=False)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(TRIES)}; none: all")
    parser.add_argument("--seeds", type=number(int, 0), nargs="+", default=[0], help="training seeds")
    args = parser.parse_args()
    if unknown := set(args.names) - TRIES.keys():
        raise InputError(f"there is no try {', '.join(sorted(unknown))}: choose of {', '.join(TRIES)}")
    with cpu_threads(1):
        for seed in args.seeds:
            for name in args.names or TRIES:
                own = about(torch.device("cpu"))  # before training: the commit may be another one afterwards
                keep("tries", TRIES, name, seed, measured(TRIES[name], seed, name) | own)


def trained(one: Try, flags: list[str], title: str, split: Split) -> CLIP:
    """The averaged model after a training on `split` with `flags` and what is tried."""
    with contextlib.ExitStack() as stack:
        for constant, value in one.constants.items():
            place = my_dataset if hasattr(my_dataset, constant) else training.settings
            stack.enter_context(mock.patch.object(place, constant, value))
        if one.encoder:
            stack.enter_context(mock.patch.dict(IMAGE_ENCODERS, residual=one.encoder))
        of_flags = Training([*flags, *one.flags.split()], torch.device("cpu"))
        pairs, settings = of_flags.pairs, of_flags.settings
        pairs.images, pairs.labels = split

        def change(batch):
            if one.change is None or pairs.augment == "none":
                return batch
            return batch._replace(images=one.change(batch.images))

        total = settings.epochs * (len(pairs) // settings.batch_size)
        for _ in tqdm(steps_of(of_flags.step, pairs, settings, change), desc=title, total=total, disable=None):
            pass
    return of_flags.step.ema.model.eval()


def measured(one: Try, seed: int, name: str) -> dict:
    """What a short training's model reaches on the images that were held out."""
    train = load_mnist("train", DATA)
    kept, last = (Split(*(x[part] for x in train)) for part in (slice(-HELD_OUT), slice(-HELD_OUT, None)))
    held_out = joined(last, load_mnist("val", DATA))
    best = trained(one, ["--seed", str(seed), *BUDGET], f"{name}, seed {seed}", kept)
    captions = digit_classifier(best)
    similarity = embed_images(best, held_out.images) @ captions.T  # [15,000, 10]
    tenth = Split(*(x[::10] for x in held_out))
    return {
        "error": 1 - caption_accuracy(similarity, held_out.labels),
        "nll": min(F.cross_entropy(scale * similarity, held_out.labels).item() for scale in SCALES),
        "mean_corruption_error": robustness(best, captions, tenth)["mean_corruption_error"],
    }


def keep(file: str, tries: dict[str, Try], name: str, seed: int, row: dict) -> None:
    """Put a row into the result file, where another process may write too."""
    place = RESULTS / f"{file}.json"
    with locked(place):
        rows = json.loads(place.read_text())["tries"] if place.exists() else {}
        rows.setdefault(name, {})[str(seed)] = row
        in_order = {name: rows[name] for name in tries if name in rows}
        write_result(file, {"command": f"python -m benchmarks.{file}", "tries": in_order})
    print(f"{name}, seed {seed}: " + ", ".join(f"{k} {v:.4f}" for k, v in row.items() if isinstance(v, float)))


if __name__ == "__main__":
    with exit_on_input_error():
        main()
