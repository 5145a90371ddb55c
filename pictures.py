"""The pictures of training and inference, as matplotlib figures. Images are uint8 or float [N, 28, 28] on the CPU."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from my_utils import InputError

# Okabe and Ito's colours: told apart by colour-blind readers, and in print.
RIGHT, WRONG = "#0072B2", "#D55E00"


def show_digit(axes: Axes, image: Tensor, caption: str = "", colour: str = "black") -> None:
    axes.imshow(image, cmap="gray_r")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(caption, fontsize=9, color=colour)
    for spine in axes.spines.values():
        spine.set(edgecolor=colour, linewidth=1.5)


def prediction_grid(
    images: Tensor, true: Sequence[str], predicted: Sequence[str], title: str, columns: int = 10, notes=None
) -> Figure:
    """Each image under its true caption and, below that, the predicted one; mistakes in another colour.

    `notes` adds a third line to each image.
    """
    rows = -(-len(images) // columns)
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


def similarity_matrix(
    similarity: Tensor, captions: Sequence[str], image_names: Sequence[str], title: str, images: Tensor | None = None
) -> Figure:
    """Cosine similarity [N, T] with its values: the T texts along x, the N images along y.

    `images` adds the digits themselves beside their rows.
    """
    rows, columns = similarity.shape
    wide = max(map(len, captions)) > 8
    figure = Figure(figsize=(0.75 * columns + 2.2, 0.42 * rows + (3.0 if wide else 1.4)), layout="constrained")
    axes = figure.subplots()
    low = min(0.0, float(similarity.min()))
    picture = axes.imshow(similarity, cmap="cividis", aspect="auto", vmin=low, vmax=1)
    for i in range(rows):
        for j in range(columns):
            value = float(similarity[i, j])
            colour = "black" if value > (low + 1) / 2 else "white"
            axes.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=8, color=colour)
    axes.set_xticks(range(columns), captions, **({"rotation": 40, "ha": "right"} if wide else {}))
    axes.set_yticks(range(rows), image_names)
    axes.set_xlabel("text label")
    axes.set_ylabel("image index (true digit)")
    axes.set_title(title)
    figure.colorbar(picture, ax=axes, label="cosine similarity", fraction=0.05)
    if images is not None:
        axes.set_xlim(-1.5, columns - 0.5)  # room for one more column
        for i, image in enumerate(images):
            inset = axes.inset_axes((-1.45, i - 0.45, 0.9, 0.9), transform=axes.transData)
            inset.imshow(image, cmap="gray_r")
            inset.axis("off")
    return figure


def ranked_images(
    rows: Sequence[tuple[str, Tensor | None, Tensor, Sequence[str], Sequence[bool]]], title: str
) -> Figure:
    """A row for each query: its name (and image, where it has one), then its best images with captions.

    A row is (name, query image or None, images [K, 28, 28], captions K, right or wrong K).
    """
    columns = max(len(row[2]) for row in rows) + 1
    figure = Figure(figsize=(1.05 * columns, 1.35 * len(rows) + 0.6), layout="constrained")
    figure.suptitle(title)
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for line, (name, query, images, captions, right) in zip(grid, rows, strict=True):
        if query is None:
            line[0].axis("off")
            line[0].text(0.5, 0.5, name, ha="center", va="center", fontsize=11, transform=line[0].transAxes)
        else:
            show_digit(line[0], query, name)
        for axes, image, caption, good in zip(line[1:], images, captions, right, strict=True):
            show_digit(axes, image, caption, RIGHT if good else WRONG)
    return figure


def save_figure(figure: Figure, path: str | Path) -> Figure:
    """Write a PNG, making its folder, and hand the figure on. Raises InputError when it cannot be written."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=110)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}; choose another folder") from None
    return figure
