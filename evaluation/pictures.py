"""The pictures, as matplotlib figures. Images are uint8 or float [N, 28, 28] on the CPU.

Digits are shown as the model reads them, bright on black.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib import get_data_path
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from attributes import SLANT, THICKNESS, is_clear, measure
from captions import DIGIT_WORDS, facts_of, holds, thing, with_article
from clip import CLIP
from data.not_digits import overlap
from evaluation.metrics import embed_images
from my_dataset import Split
from my_utils import InputError

# Okabe and Ito's colours: told apart by colour-blind readers, and in print.
RIGHT, WRONG = "#0072B2", "#D55E00"
COLOURS = (RIGHT, WRONG, "#009E73", "#CC79A7")


def show_digit(axes: Axes, image: Tensor, caption: str = "", colour: str = "black") -> None:
    axes.imshow(image, cmap="gray", vmin=0, vmax=1 if image.is_floating_point() else 255)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(caption, fontsize=9, color=colour, parse_math=False)
    for spine in axes.spines.values():
        spine.set(edgecolor=colour, linewidth=1.5)


def prediction_grid(
    images: Tensor, true: Sequence[str], predicted: Sequence[str], title: str, columns: int = 10, notes=None
) -> Figure:
    """Each image under its true caption and, below that, the predicted one; mistakes in another colour.

    `notes` adds a third line to each image.
    """
    rows = max(1, -(-len(images) // columns))
    figure = Figure(figsize=(1.15 * columns, (1.75 if notes else 1.55) * rows + 0.6), layout="constrained")
    figure.suptitle(title)
    grid = figure.subplots(rows, columns, squeeze=False).flat
    for i, axes in enumerate(grid):
        if i >= len(images):
            axes.axis("off")
            continue
        caption = f"true: {true[i]}\npred: {predicted[i]}" + (f"\n{notes[i]}" if notes else "")
        show_digit(axes, images[i], caption, RIGHT if true[i] == predicted[i] else WRONG)
    return figure


def ranked_images(
    rows: Sequence[tuple[str, Tensor | None, Tensor, Sequence[str], Sequence[bool]]], title: str
) -> Figure:
    """A row for each query: its name (and image, where it has one), then its best images with captions.

    A row is (name, query image or None, images [K, 28, 28], captions K, right or wrong or None for neither K).
    """
    columns = max(len(row[2]) for row in rows)
    first = max(1.0, max(len(line) for row in rows for line in row[0].split("\n")) / 11)  # a long name needs room
    height = 1.35 + 0.18 * max(caption.count("\n") for row in rows for caption in row[3])
    figure = Figure(figsize=(1.05 * (columns + first), height * len(rows) + 0.6), layout="constrained")
    figure.suptitle(title)
    grid = figure.subplots(len(rows), columns + 1, squeeze=False, width_ratios=[first] + [1] * columns)
    for line, (name, query, images, captions, right) in zip(grid, rows, strict=True):
        if query is None:
            line[0].axis("off")
            line[0].text(
                0.5, 0.5, name, ha="center", va="center", fontsize=11, transform=line[0].transAxes, parse_math=False
            )
        else:
            show_digit(line[0], query, name)
        for axes, image, caption, good in zip(line[1:], images, captions, right, strict=True):
            show_digit(axes, image, caption, "black" if good is None else RIGHT if good else WRONG)
    return figure


def closest_images(
    similarity: Tensor, names: Sequence[str], images: Tensor, fits: Tensor, title: str, queries=None, count: int = 8
) -> Figure:
    """For each of Q queries the images closest to it, best first, with their cosines.

    similarity [Q, N]; `fits`, bool [Q, N], says which are right; `queries` [Q, 28, 28] where they are images.
    """
    best = similarity.topk(count, dim=1)
    rows = []
    for i, (name, found, cosines) in enumerate(zip(names, best.indices, best.values, strict=True)):
        query = None if queries is None else queries[i]
        rows.append((name, query, images[found], [f"{cosine:.3f}" for cosine in cosines], fits[i, found].tolist()))
    return ranked_images(rows, title)


# ---- the pictures of described captions: of a model that has them, a split, and its images' features ----

# Descriptions: (digit, thickness, slant), as `captions.thing` counts them; -1 is unsaid.
SEARCHED = ((7, 2, 0), (3, 0, -1), (-1, 2, 2), (0, -1, 1))
COMPARED = ((7, 2, 0), (7, 0, 2), (1, 0, 1), (1, 2, 1), (4, 0, 0), (4, 2, 2), (2, 1, 1), (8, 2, 0))
NEVER = "never trained"


def described_search(model: CLIP, split: Split, features: Tensor, count: int = 8) -> Figure:
    """The images closest to six descriptions, best first, with their measures; the last two are of unseen cells."""
    cells = facts_of(split.labels, *measure(split.images))[1].bincount(minlength=90).view(10, 3, 3)
    unseen = torch.unravel_index((cells * model.unseen).flatten().topk(2).indices, cells.shape)  # most frequent ones
    rows = []
    for said in (*SEARCHED, *zip(*(side.tolist() for side in unseen), strict=True)):
        best, notes, is_true = found(model, split, features, said, count)
        name = in_short(*said).replace(" leaning", "\nleaning") + f"\n({NEVER})" * is_unseen(model, said)
        rows.append((name, None, split.images[best], [note.replace(", ", "\n") for note in notes], is_true))
    return ranked_images(rows, "the test images closest to each description, and how they measure")


def described_sheet(model: CLIP, split: Split, features: Tensor, digit: int = 7) -> Figure:
    """One digit, thickness by slant: the image closest to each description. Unseen cells have dashed frames."""
    figure = Figure(figsize=(6.4, 7.6), layout="constrained")
    figure.suptitle(f"{DIGIT_WORDS[digit]}: the test image closest to each description")
    grid = figure.subplots(3, 3)
    for (thickness, slant), axes in np.ndenumerate(grid):
        said = (digit, thickness, slant)
        best, (note,), (is_true,) = found(model, split, features, said, 1)
        never = is_unseen(model, said)
        show_digit(axes, split.images[best[0]], f"{NEVER}\n" * never + note, RIGHT if is_true else WRONG)
        for spine in axes.spines.values() if never else ():
            spine.set(linestyle=(0, (2, 1.5)), linewidth=4)
        axes.title.set_fontsize(11)
        if slant == 0:
            axes.set_ylabel(THICKNESS[thickness], fontsize=13)
        if thickness == 2:
            axes.set_xlabel(SLANT[slant], fontsize=13)
    return figure


def described_matrix(model: CLIP, split: Split, features: Tensor) -> Figure:
    """An image of each of eight descriptions, the first that is clear of all bounds, and two digits on top of each
    other, against the nine sentences: those of the diagonal are true."""
    thickness, slant = measure(split.images)
    cells, clear = facts_of(split.labels, thickness, slant)[1], is_clear(thickness, slant)
    compared = np.ravel_multi_index(tuple(np.transpose(COMPARED)), (10, 3, 3))
    index = [int(((cells == cell) & clear).nonzero()[0, 0]) for cell in compared]
    two = overlap(split.images[:2, None].float() / 255, torch.Generator().manual_seed(0))[:1, 0]
    vectors = torch.cat([features[index], embed_images(model, two).cpu()])
    sentences = [*(in_short(*said) for said in COMPARED), "two digits on top of each other"]
    marks = [" *" * is_unseen(model, said) for said in COMPARED] + [""]
    names = [f"{DIGIT_WORDS[split.labels[i]]}, {in_figures(thickness[i], slant[i])}" for i in index] + ["two digits"]
    figure = similarity_matrix(
        vectors @ read(model, sentences).T,
        [sentence + mark for sentence, mark in zip(sentences, marks, strict=True)],
        names,
        f"test images against descriptions (*: {NEVER})",
        torch.cat([split.images[index].float() / 255, two]),
    )
    figure.axes[0].set_ylabel("image: digit, thickness, slant", fontsize=12)
    return figure


def found(model: CLIP, split: Split, features: Tensor, said: tuple, count: int) -> tuple[Tensor, list[str], list[bool]]:
    """The `count` images closest to a description: their places, their measures, and whether it is true of them."""
    best = (features @ read(model, [in_short(*said)])[0]).topk(count).indices
    thickness, slant = measure(split.images[best])
    facts, _ = facts_of(split.labels[best], thickness, slant)
    notes = [in_figures(*measures) for measures in zip(thickness, slant, strict=True)]
    return best, notes, holds(model.captions.claims[thing(*said)], facts).tolist()


def in_short(digit: int, thickness: int, slant: int) -> str:
    """A description in the fewest words: "a thick seven leaning left", "an upright digit"."""
    before = [THICKNESS[thickness]] * (thickness >= 0) + [SLANT[slant]] * (slant == 1)
    noun = DIGIT_WORDS[digit] if digit >= 0 else "digit"
    return with_article(" ".join(["a", *before, noun, *[SLANT[slant]] * (slant in (0, 2))]))


def in_figures(thickness: float, slant: float) -> str:
    return f"{thickness:.1f} px, {slant:+.2f} rad"


def is_unseen(model: CLIP, said: tuple) -> bool:
    return -1 not in said and bool(model.unseen[said])


@torch.no_grad()
def read(model: CLIP, sentences: list[str]) -> Tensor:
    return model.encode_text(sentences).cpu()


# ---- what is drawn ----


def drawn_cells(images: Tensor, unseen: Tensor) -> Figure:
    """One drawn image of each cell, float [90, 28, 28], digits by thickness and slant; unseen [10, 3, 3] are framed."""
    figure = Figure(figsize=(9.6, 11.2), layout="constrained")
    figure.suptitle(f"drawn from texts: digit by thickness and slant (framed: {NEVER}, neither by CLIP nor to draw)")
    grid = figure.subplots(10, 9)
    for (digit, column), axes in np.ndenumerate(grid):
        thickness, slant = divmod(column, 3)
        show_digit(axes, images[9 * digit + column], colour=WRONG if unseen[digit, thickness, slant] else "black")
        for spine in axes.spines.values():
            spine.set(linewidth=4 if unseen[digit, thickness, slant] else 0)
        if column == 0:
            axes.set_ylabel(DIGIT_WORDS[digit], fontsize=12)
        if digit == 0:
            axes.set_title(f"{THICKNESS[thickness]}\n{SLANT[slant]}", fontsize=11, color="black")
    return figure


# ---- the pictures of evaluate.py ----


def confusion_matrix(counts: Sequence[Sequence[int]], names: Sequence[str]) -> Figure:
    """Images of each true digit (y) by what they are taken for (x). Mistakes alone have colour, or none would show."""
    figure = Figure(figsize=(7.2, 6.4), layout="constrained")
    axes = figure.subplots()
    mistakes = [[0 if i == j else n for j, n in enumerate(row)] for i, row in enumerate(counts)]
    most = max(map(max, mistakes))
    picture = axes.imshow(mistakes, cmap="Oranges", vmin=0, vmax=max(1, most))
    for i, row in enumerate(counts):
        for j, n in enumerate(row):
            weight, colour = ("bold", RIGHT) if i == j else ("normal", "white" if 2 * n > most > 0 else "black")
            axes.text(j, i, f"{n:,}" if n else "", ha="center", va="center", fontsize=9, color=colour, weight=weight)
    axes.set_xticks(range(len(names)), names, rotation=40, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("predicted digit")
    axes.set_ylabel("true digit")
    axes.set_title("confusion matrix, test images")
    figure.colorbar(picture, ax=axes, label="mistakes (images)", fraction=0.05)
    return figure


def digit_accuracy(digits: Sequence[dict]) -> Figure:
    """Accuracy of each digit with its 95% interval, as `sections.right_of` gives them."""
    figure = Figure(figsize=(7.2, 3.8), layout="constrained")
    axes = figure.subplots()
    values = [100 * digit["accuracy"] for digit in digits]
    low, high = zip(*(digit["interval"] for digit in digits), strict=True)
    whiskers = [
        [v - 100 * x for v, x in zip(values, low, strict=True)],
        [100 * x - v for v, x in zip(values, high, strict=True)],
    ]
    axes.errorbar(range(len(values)), values, whiskers, fmt="o", color=RIGHT, capsize=4)
    axes.set_xticks(range(len(values)))
    axes.set_xlabel("digit")
    axes.set_ylabel("accuracy (%)")
    axes.set_title("accuracy of each digit, nearest caption, 95% Wilson intervals, test images")
    axes.grid(axis="y", alpha=0.3)
    return figure


def reliability_diagram(calibration: dict) -> Figure:
    """Accuracy by confidence before and after temperature scaling, above how many images each bin holds."""
    figure = Figure(figsize=(9.0, 5.2), layout="constrained")
    grid = figure.subplots(2, 2, sharex=True, sharey="row", height_ratios=(3, 1))
    for column, (name, one) in enumerate(calibration.items()):
        count, confidence, accuracy = (one["bins"][key] for key in ("count", "confidence", "accuracy"))
        filled = [i for i, n in enumerate(count) if n]
        above, below = grid[0, column], grid[1, column]
        above.plot([0, 1], [0, 1], color="grey", linestyle="--", label="perfect calibration")
        above.plot([confidence[i] for i in filled], [accuracy[i] for i in filled], "o-", color=RIGHT, label="model")
        above.set_title(f"{name} temperature {one['temperature']:.3f}: ECE {one['ece']:.2%}")
        above.legend(loc="upper left")
        below.bar([(i + 0.5) / len(count) for i in range(len(count))], count, 0.9 / len(count), color=RIGHT)
        below.set_yscale("log")
        below.set_ylim(bottom=0.5)  # one image shows too
        below.set_xlabel("confidence of the best caption")
    grid[0, 0].set_ylabel("accuracy")
    grid[1, 0].set_ylabel("images")
    figure.suptitle("reliability on test images; the fitted temperature is validation's")
    return figure


def embedding_map(points: Tensor, labels: Tensor, names: Sequence[str]) -> Figure:
    """Points [N + 10, 2] of N images with these labels, then of the captions, a star with its name each."""
    figure = Figure(figsize=(7.6, 6.6), layout="constrained")
    axes = figure.subplots()
    images, captions = points[: len(labels)], points[len(labels) :]
    # (Ten digits need ten colours, more than Okabe and Ito have: the names beside the stars say which is which.)
    axes.scatter(*images.T, c=labels, cmap="tab10", s=9, alpha=0.7, label="test image, coloured by its digit")
    axes.scatter(*captions.T, marker="*", s=200, color="black", edgecolor="white", label="caption")
    for digit, (name, (x, y)) in enumerate(zip(names, captions.tolist(), strict=True)):
        side = -1 if x < float(images[labels == digit, 0].mean()) else 1  # the name stands away from the images
        align = {"ha": "right" if side < 0 else "left", "va": "center", "fontsize": 10}
        axes.annotate(name, (x, y), (9 * side, 0), textcoords="offset points", **align)
    axes.margins(0.09)
    axes.set_xlabel("t-SNE 1 (no unit)")
    axes.set_ylabel("t-SNE 2 (no unit)")
    axes.set_title("images and captions in one space, by cosine distance")
    axes.legend(loc="best", fontsize=9)
    return figure


def robustness_curves(robustness: dict) -> Figure:
    """Accuracy by severity, a panel for each corruption with its own unit; the first point is the clean image."""
    corruptions = robustness["corruptions"]
    columns = -(-len(corruptions) // 2)
    figure = Figure(figsize=(3.0 * columns, 5.6), layout="constrained")
    grid = figure.subplots(2, columns, sharey=True)
    for axes, (name, one) in zip(grid.flat, corruptions.items(), strict=False):
        accuracies = [100 * accuracy for accuracy in (robustness["clean"], *one["accuracies"])]
        axes.plot(range(len(accuracies)), accuracies, "o-", color=RIGHT)
        axes.axhline(10, color=WRONG, linestyle="--")
        axes.set_xticks(range(len(accuracies)), ["clean", *(f"{amount:g}" for amount in one["amounts"])])
        axes.set_xlabel(one["unit"])
        axes.set_title(f"{name}: mean error {one['error']:.1%}", fontsize=10)
        axes.set_ylim(0, 103)
        axes.grid(axis="y", alpha=0.3)
    for axes in grid.flat[len(corruptions) :]:
        axes.axis("off")
        axes.legend(handles=grid.flat[0].lines, labels=["the model", "chance"], loc="center", fontsize=11)
    for axes in grid[:, 0]:
        axes.set_ylabel("accuracy (%)")
    figure.suptitle(f"robustness: mean corruption error {robustness['mean_corruption_error']:.1%}")
    return figure


def open_set(scores: dict[str, Tensor], label: str, examples: dict[str, Tensor]) -> Figure:
    """Histograms of a score, the digits' and each other set's, above some images of the other sets."""
    figure = Figure(figsize=(10.0, 3.6 + 0.7 * len(examples)), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(3.4, 0.7 * len(examples)))
    axes = top.subplots()
    low, high = (float(torch.cat(list(scores.values())).aminmax()[i]) for i in (0, 1))
    for (name, values), colour in zip(scores.items(), COLOURS, strict=False):
        edges = [low + (high - low) * i / 60 for i in range(61)]
        share = [100 / len(values)] * len(values)
        axes.hist(values, edges, weights=share, histtype="stepfilled", alpha=0.35, color=colour)
        axes.hist(values, edges, weights=share, histtype="step", color=colour, label=f"{name} ({len(values):,} images)")
    axes.set_xlabel(label)
    axes.set_ylabel("share of the set (%)")
    axes.set_title("digits, and images that are no digit")
    axes.legend(loc="best", fontsize=9)
    for axes, (name, images) in zip(
        bottom.subplots(len(examples), 1, squeeze=False).flat, examples.items(), strict=True
    ):
        axes.imshow(images.permute(1, 0, 2).flatten(1), cmap="gray", vmin=0, vmax=255)
        axes.set_title(name, fontsize=9)
        axes.axis("off")
    return figure


def save_figure(figure: Figure, path: str | Path) -> Figure:
    """Write a PNG, making its folder, and hand the figure on. Raises InputError when it cannot be written."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=110)
        figure.set_layout_engine("none")  # whoever shows it need not lay it out again
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}; choose another folder") from None
    return figure
