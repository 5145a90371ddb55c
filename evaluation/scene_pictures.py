"""Pictures of scenes and their captions, as matplotlib figures."""

from collections.abc import Sequence

import torch
from matplotlib.figure import Figure

from clip import CLIP
from evaluation.metrics import embed_images
from evaluation.scenes import evaluation_scenes, five_texts
from my_dataset import Split

RIGHT, WRONG = "#0072B2", "#D55E00"  # for colour-blind readers too (Okabe & Ito)


@torch.no_grad()
def five_captions(model: CLIP, split: Split, pairs: Sequence[int] = (0, 41, 87, 120, 163)) -> Figure:
    """A scene in each row, beside its cosines with five captions, of which the first, blue, is true.

    `pairs`: places among the scenes of `evaluation_scenes` with one of each ordered pair and direction, 0..179.
    """
    scenes, _ = evaluation_scenes(split, per_pair=1)
    images, index = embed_images(model, scenes.images).cpu(), list(pairs)
    figure = Figure(figsize=(8, 1.6 * len(index)), layout="constrained")
    grid = figure.subplots(len(index), 2, width_ratios=(1, 3.5), squeeze=False)
    for (image_axes, axes), i in zip(grid, index, strict=True):
        first, second = scenes.digits[i].tolist()
        texts = five_texts(first, second, bool(scenes.is_vertical[i]), other=next(iter({0, 1, 2} - {first, second})))
        cosines = (model.encode_text(texts).cpu() @ images[i]).tolist()
        image_axes.imshow(scenes.images[i, 0], cmap="gray", vmin=0, vmax=1)
        image_axes.set(xticks=[], yticks=[])
        if model.unseen[first, second]:
            image_axes.set_title("pair never trained", fontsize=9, color=WRONG)
        bars = axes.barh(range(5), cosines, color=[RIGHT] + [WRONG] * 4)
        axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=9)
        axes.set_yticks(range(5), texts, fontsize=10)
        axes.invert_yaxis()
        axes.set(xlim=(min(0, *cosines) - 0.1, 1.15), xticks=[])
        axes.spines[["top", "right", "bottom"]].set_visible(False)
    grid[-1, 1].set_xlabel("cosine similarity; blue: the caption that is true")
    return figure
