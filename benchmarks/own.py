"""Training on one's own data: clothes by the names of ten classes, and pictures of shapes with sentences.

    python -m benchmarks.own

Fashion-MNIST's four files come from --fashion (Debian's package dataset-fashion-mnist); the pictures of shapes are made
here. Epochs are chosen by validation; the test split is used once. Writes results/own.json; runs stay in
runs/benchmarks/.
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
SHAPES, RELATIONS = ("circle", "square", "triangle"), ("above", "left of")
COLUMNS = {  # title: the metric behind "test_"
    "picture → text, recall@1": "image_to_text_recall_at_1",
    "recall@5": "image_to_text_recall_at_5",
    "text → picture, recall@1": "text_to_image_recall_at_1",
    " recall@5": "text_to_image_recall_at_5",
}
FLAGS = {  # name of the data: flags of train.py
    "fashion": ["--augment", "flip", "--epochs", "12"],
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
        (data["fashion"] / path.name).symlink_to(path)
    rows, metrics = [], []
    for name, flags in FLAGS.items():
        quick = ["--epochs", "1", "--width", "4"]
        where = ["--data", str(data[name])]
        runs = [trained_clip(args, seed, f"own-{name}", [*flags, *where], quick) for seed in args.seeds]
        own = [read_metrics(path.parent) for path in runs]
        figures = [cell([one[f"test_{key}"] for one in own]) for key in COLUMNS.values()]
        rows.append([name, *figures, cell([one["train_seconds"] for one in own], " s")])
        metrics += own
    write_result(args, "own" + args.suffix, ["data", *COLUMNS, "training"], rows, shared_origin(metrics))


def make_shapes(folder: Path, count: int, side: int = 64) -> None:
    """Pictures of two shapes in colours and metadata.csv; val and test have 100 pictures of 100 captions each."""
    draw = random.Random(0)
    nouns = list(itertools.product(COLOURS, SHAPES))
    scenes = list(itertools.product(itertools.permutations(nouns, 2), RELATIONS))  # 264
    rows = []
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        if i in (0, 100, 200):
            draw.shuffle(scenes)
        (first, second), relation = scenes[i % 100] if i < 200 else draw.choice(scenes)
        image = Image.new("RGB", (side, side), (draw.randint(0, 60),) * 3)
        for place, (colour, shape) in enumerate((first, second)):
            centre = [side / 4 + side / 2 * place, draw.uniform(0.35, 0.65) * side]  # along and across the relation
            x, y = (value + draw.uniform(-3, 3) for value in (centre if relation == "left of" else centre[::-1]))
            paint(ImageDraw.Draw(image), shape, x, y, draw.uniform(0.11, 0.17) * side, COLOURS[colour])
        image.save(folder / f"{i}.png")
        text = f"a {' '.join(first)} {relation} a {' '.join(second)}"
        rows.append([f"{i}.png", text, ("test", "val", "train")[min(2, i // 100)]])
    with open(folder / "metadata.csv", "w", newline="") as file:
        csv.writer(file).writerows([["file_name", "text", "split"], *rows])


def paint(draw: ImageDraw.ImageDraw, shape: str, x: float, y: float, radius: float, colour: tuple) -> None:
    if shape == "circle":
        draw.circle((x, y), radius, fill=colour)
    else:
        draw.regular_polygon((x, y, 1.2 * radius), {"triangle": 3, "square": 4}[shape], fill=colour)


if __name__ == "__main__":
    with exit_on_error():
        sys.exit(main(sys.argv[1:]))
