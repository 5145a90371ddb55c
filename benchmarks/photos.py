"""Simulated photographs: how many digits are read right, and what is said to be a digit.

    python -m benchmarks.photos
    python -m benchmarks.photos --split val --results /tmp/val    by this the constants of data/photo.py were chosen

Writes results/photos.json and results/photos-digit.json.
"""

import itertools
import math
import statistics
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from matplotlib import get_data_path
from PIL import Image, ImageDraw, ImageFont
from skimage.filters import threshold_otsu
from sklearn.datasets import load_digits
from torch import Tensor
from torchvision.transforms.functional import resize

from benchmarks.common import DATA, cell, make_parser, origin, parse, trained_clip, write_result
from benchmarks.sentences import OTHER_SENTENCES
from clip import CLIP
from data.outliers import make_outliers
from data.photo import photo_to_mnist, to_mnist_form
from evaluation.metrics import caption_accuracy, embed_images
from evaluation.ood import FONTS, is_digit, ood_score, ood_sets, uci_digits
from my_dataset import epoch_generator, load_mnist
from my_utils import exit_on_error

PAPER, INK = 235, 40  # levels of 255
COLOURS = ((20, 40, 160), (170, 30, 40), (20, 110, 60), (90, 90, 90))  # pens in blue, red and green, a pencil
P_COLOUR = 0.3
FRAME, SHARE, DEGREES = (160, 640), (0.2, 0.9), 10  # side in pixels; the digit's share of it; rotated by up to this
DIMMED, SHADOW, NOISE = 0.5, 0.4, 8  # light lost in a corner at most, and in a shadow; noise in levels
PHOTOS = ("photographs", "coloured ink, shadow")
MODELS = {"attributes": ("default", ()), "digit": ("digit", ("--captions", "digit"))}
OTHERS = 500  # pictures of each kind that show no digit; five times as many digits


def photograph(ink: Tensor, seed: int, is_hard: bool = False) -> Image.Image:
    """Ink uint8 [H, W] -> a photograph of it on paper. `is_hard`: coloured ink, and a shadow on a part of the paper."""
    random = np.random.default_rng(seed)
    side, crop = int(random.integers(*FRAME)), Image.fromarray(ink.numpy())
    crop = crop.crop(crop.getbbox())
    scale = random.uniform(*SHARE) * side / max(crop.size)
    crop = crop.resize([max(1, round(scale * x)) for x in crop.size], Image.Resampling.BICUBIC)
    crop = crop.rotate(random.uniform(-DEGREES, DEGREES), Image.Resampling.BICUBIC, expand=True)
    page = Image.new("L", (side, side))
    page.paste(crop, tuple(int(random.uniform(min(0, side - x), max(1, side - x))) for x in crop.size))
    share = np.asarray(page, np.float32)[..., None] / 255  # [side, side, 1]
    is_coloured = is_hard or random.random() < P_COLOUR
    pen = np.array(COLOURS[random.integers(len(COLOURS))] if is_coloured else [INK] * 3)
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    angle = random.uniform(0, 2 * math.pi)
    along = (math.cos(angle) * x + math.sin(angle) * y) / math.sqrt(2)  # -1..1
    light = 1 - random.uniform(0, DIMMED) * (1 + along) / 2
    if is_hard:
        light *= 1 - SHADOW / (1 + np.exp((random.uniform(-0.4, 0.4) - along) / 0.05))
    pixels = (PAPER + (pen - PAPER) * share) * light[..., None] + random.normal(0, NOISE, (side, side, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def printed(seed: int, sentences: list[str]) -> Tensor:
    """A sentence in two lines, as ink uint8 [H, W]."""
    path = Path(get_data_path()) / "fonts" / "ttf" / f"{FONTS[seed % len(FONTS)]}.ttf"
    words, page = sentences[seed % len(sentences)].split(), Image.new("L", (2000, 200))
    lines = [" ".join(part) for part in np.array_split(words, 2)]
    ImageDraw.Draw(page).text((10, 10), "\n".join(lines), fill=255, font=ImageFont.truetype(str(path), 64))
    return torch.from_numpy(np.array(page))


WAYS = {  # grey levels uint8 [H, W] of a photograph -> uint8 [28, 28]
    "grey and resize": lambda grey: resize(grey[None], [28, 28])[0],
    "inverted": lambda grey: 255 - resize(grey[None], [28, 28])[0],
    "inverted, in MNIST's form": lambda grey: to_mnist_form(255.0 - grey),
    "Otsu's threshold, in MNIST's form": lambda grey: to_mnist_form((grey < threshold_otsu(grey.numpy())).float()),
}
OURS = "`photo_to_mnist`"


def read(ink: Tensor, seed: int, is_hard: bool = False) -> dict[str, Tensor]:
    """The image that each way makes of a photograph of this ink."""
    photo = photograph(ink, seed, is_hard)
    grey = torch.from_numpy(np.array(photo.convert("L")))
    return {name: way(grey) for name, way in WAYS.items()} | {OURS: photo_to_mnist(photo)}


def main(argv: list[str]) -> None:
    parser = make_parser("photos", __doc__, seeds=[0, 1, 2])
    parser.add_argument("--split", choices=("val", "test"), default="test", help="where the digits come from")
    args = parse(parser, argv)
    is_test, count = args.split == "test", 20 if args.quick else OTHERS
    split, uci = load_mnist(args.split, DATA), uci_digits()
    digits, labels = (x[: 5 * count] for x in split)
    outliers = make_outliers(split.images[-2 * count :], split.labels[-2 * count :], epoch_generator(0, 0)).images
    inks = ood_sets(split.images, DATA, count) if is_test else {"outliers": (255 * outliers[:, 0]).to(torch.uint8)}
    inks["printed sentences"] = [printed(seed, OTHER_SENTENCES[is_test::2]) for seed in range(count)]
    inks["empty paper"] = torch.zeros(count, 28, 28, dtype=torch.uint8)

    # ---- photographs -> uint8 [N, 28, 28] ----
    first = is_test * 10**6  # seed of the photographs: validation has others
    images = defaultdict(list)
    for ink, seed in zip(digits, itertools.count(first)):
        for is_hard, title in enumerate(PHOTOS):
            for way, image in read(ink, seed, bool(is_hard)).items():
                images[way, title].append(image)
    others = {
        name: torch.stack([photo_to_mnist(photograph(ink, first + i)) for i, ink in enumerate(some[:count])])
        for name, some in inks.items()
    }
    small = [photo_to_mnist(Image.fromarray((15 * pixels).astype(np.uint8))) for pixels in load_digits().images]
    uci_sets = {"in MNIST's form": uci.images, OURS: torch.stack(small)}

    # ---- what the models say: a figure per seed in each cell ----
    accuracy, passed, on_uci, lowest = (defaultdict(list) for _ in range(4))
    for kind, seed in itertools.product(MODELS, args.seeds):
        model = CLIP.load(trained_clip(args, seed, *MODELS[kind]), args.device)
        classifier = model.zero_shot_classifier().T

        def score(images: Tensor, labels: Tensor, model=model, classifier=classifier) -> float:
            return caption_accuracy((embed_images(model, images) @ classifier).cpu(), labels)

        for (way, title), some in images.items():
            accuracy[way, f"{title}, {kind}"].append(score(torch.stack(some), labels))
        for title, some in ({"digits": torch.stack(images[OURS, PHOTOS[0]])} | others).items():
            passed[title, f"--captions {kind}"].append(statistics.mean(is_digit(model, embed_images(model, some))))
        ours = embed_images(model, torch.stack(images[OURS, PHOTOS[0]]))
        lowest[kind].append(ood_score(model, ours.cpu()).quantile(0.025).item())
        for title, some in uci_sets.items():
            on_uci[f"{title}, {kind}"].append(score(some, uci.labels))
    notes = [f"{len(labels):,} {args.split} digits. UCI digits: "]
    notes[0] += "; ".join(f"{title} {cell(values)}" for title, values in on_uci.items()) + "."
    scores = "; ".join(f"{kind} {cell(values, '')}" for kind, values in lowest.items())
    notes.append(f"{count} pictures of each kind but digits. 2.5% of the digits have a score below: {scores}.")
    for name, table, note in zip(("photos", "photos-digit"), (accuracy, passed), notes, strict=True):
        columns = list(dict.fromkeys(column for _, column in table))
        rows = [[row, *(cell(table[row, x]) for x in columns)] for row in dict.fromkeys(row for row, _ in table)]
        write_result(args, name + args.suffix, ["pictures", *columns], rows, origin(args.device), note)


if __name__ == "__main__":
    with exit_on_error():
        sys.exit(main(sys.argv[1:]))
