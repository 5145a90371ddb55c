"""Training on one's own data: clothes by the names of ten classes, and pictures of two shapes with sentences.

    python -m benchmarks.own

The files of Fashion-MNIST come from --fashion (Debian's package dataset-fashion-mnist), the pictures of shapes are made
here. Epochs are chosen by validation. Writes results/own.json.
"""

import csv
import itertools
import random
import sys
from pathlib import Path

from PIL import Image, ImageDraw

from benchmarks.common import cell, make_parser, parse, read_metrics, shared_origin, trained_clip, write_result
from my_utils import exit_on_error

CLASSES = "T-shirt or top\ntrouser\npullover\ndress\ncoat\nsandal\nshirt\nsneaker\nbag\nankle boot\n"
COLOURS = {"red": (220, 40, 40), "green": (40, 170, 60), "blue": (50, 80, 220), "yellow": (235, 210, 50)}
CORNERS = {"circle": 60, "square": 4, "triangle": 3}
COLUMNS = ("image_to_text_recall_at_1", "image_to_text_recall_at_5", "text_to_image_recall_at_1")
RECIPE = ["--image-encoder", "residual", "--width", "24", "--ema-decay", "0.998", "--epochs", "16"]
FLAGS = {  # name of the data: flags of train.py
    "fashion": [*RECIPE, "--augment", "flip"],
    "shapes": ["--image-size", "64", "--batch-size", "64"],
}


def main(argv: list[str]) -> None:
    parser = make_parser("own", __doc__, seeds=[0])
    parser.add_argument("--fashion", type=Path, default="/usr/share/datasets/fashion-mnist", help="folder of the files")
    args = parse(parser, argv)
    data = {name: args.runs / "data" / name for name in FLAGS}
    make_shapes(data["shapes"], 300 if args.quick else 2_000)
    data["fashion"].mkdir(parents=True, exist_ok=True)
    (data["fashion"] / "classes.txt").write_text(CLASSES)
    for path in args.fashion.glob("*-ubyte*"):
        (data["fashion"] / path.name).unlink(missing_ok=True)
        (data["fashion"] / path.name).symlink_to(path.resolve())
    rows, metrics = [], []
    for name, flags in FLAGS.items():
        quick = ["--epochs", "1", "--width", "4", "--augment", "none"] if args.quick else []
        all_flags = [*flags, *quick, "--data", str(data[name])]
        runs = [trained_clip(args, seed, f"own-{name}", all_flags, quick=()) for seed in args.seeds]
        own = [read_metrics(path.parent) for path in runs]
        figures = [cell([one[f"test_{key}"] for one in own]) for key in COLUMNS]
        rows.append([f"{name}: `{' '.join(flags)}`", *figures, cell([one["train_seconds"] for one in own], " s")])
        metrics += own
    columns = ["data, and flags beside `--data`", *(name.replace("_", " ") for name in COLUMNS), "training"]
    write_result(args, "own" + args.suffix, columns, rows, shared_origin(metrics), f"Seeds {args.seeds}.")


def make_shapes(folder: Path, count: int, side: int = 64) -> None:
    """Pictures of two shapes in colours and metadata.csv; test and val have 100 pictures of 100 captions each."""
    draw, rows = random.Random(0), [["file_name", "text", "split"]]
    pairs = itertools.permutations(itertools.product(COLOURS, CORNERS), 2)
    scenes = list(itertools.product(pairs, ("above", "left of")))  # 264
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        if i in (0, 100):
            draw.shuffle(scenes)
        pair, relation = scenes[i % 100] if i < 200 else draw.choice(scenes)
        image = Image.new("RGB", (side, side), (draw.randint(0, 60),) * 3)
        for place, (colour, shape) in enumerate(pair):
            centre = [(0.25 + 0.5 * place) * side, draw.uniform(0.35, 0.65) * side]  # along and across the relation
            x, y = (value + draw.uniform(-0.05, 0.05) * side for value in centre[:: 1 if relation == "left of" else -1])
            circle = (x, y, draw.uniform(0.12, 0.18) * side)
            ImageDraw.Draw(image).regular_polygon(circle, CORNERS[shape], fill=COLOURS[colour])
        image.save(folder / f"{i}.png")
        text = f"a {' '.join(pair[0])} {relation} a {' '.join(pair[1])}"
        rows.append([f"{i}.png", text, ("test", "val", "train")[min(2, i // 100)]])
    with open(folder / "metadata.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)


if __name__ == "__main__":
    with exit_on_error():
        sys.exit(main(sys.argv[1:]))
