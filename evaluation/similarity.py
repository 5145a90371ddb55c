"""The similarity matrix as a matplotlib figure; and the colours of all pictures."""

from collections.abc import Sequence

from matplotlib.figure import Figure
from torch import Tensor

# The colours of all pictures, for colour-blind readers too (Okabe & Ito).
RIGHT, WRONG, *OTHERS = "#0072B2", "#D55E00", "#009E73", "#CC79A7"


def similarity_matrix(
    similarity: Tensor,
    captions: Sequence[str],
    image_names: Sequence[str],
    title: str,
    images: Tensor | None = None,
    ylabel: str = "image index (true digit)",
) -> Figure:
    """Cosine similarity [N, T] with its values: the T texts along x, the N images along y.

    `images` adds the digits beside their rows. Large type, as TensorBoard shows it small.
    """
    rows, columns = similarity.shape
    strip = int(images is not None)  # one more column, for the digits
    wide = max(map(len, captions)) > 8
    height = 0.46 * rows + (3.2 if wide else 1.5)
    figure = Figure(figsize=(0.5 * (columns + strip) + (2.6 if wide else 1.5), height), layout="constrained")
    axes = figure.subplots()
    low, high = min(0.0, float(similarity.min())), 1.0
    axes.imshow(similarity, cmap="cividis", vmin=low, vmax=high)
    for i, row in enumerate(similarity.tolist()):
        for j, value in enumerate(row):
            colour = "black" if value > (low + high) / 2 else "white"
            axes.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=11, color=colour, in_layout=False)
    if images is not None:  # one picture of all digits
        top = 1 if images.is_floating_point() else 255
        place = (-1.5, -0.5, rows - 0.5, -0.5)  # left, right, bottom, top
        axes.imshow(images.reshape(-1, images.shape[-1]), cmap="gray", vmin=0, vmax=top, extent=place)
    axes.set(xlim=(-0.5 - strip, columns - 0.5), ylim=(rows - 0.5, -0.5))
    axes.set_xticks(range(columns), captions, fontsize=11, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(rows), image_names, fontsize=11)
    axes.set_xlabel("text label", fontsize=12)
    axes.set_ylabel(ylabel, fontsize=12)
    axes.set_title(f"{title}\ncosine similarity", fontsize=12)
    return figure
