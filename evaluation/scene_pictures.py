"""Pictures of scenes and their captions, as matplotlib figures."""

import textwrap

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from clip import CLIP
from evaluation.metrics import embed_images
from evaluation.scenes import evaluation_scenes, five_texts, grade_texts
from evaluation.similarity import RIGHT, WRONG
from my_dataset import Split
from scenes import nameable_grades


@torch.no_grad()
def five_captions(model: CLIP, split: Split) -> Figure:
    """Five scenes, two of untrained pairs, each beside its cosines with five captions, the first of which is true."""
    scenes, _ = evaluation_scenes(split, per_pair=1)
    is_unseen = model.unseen[scenes.digits[:, 0], scenes.digits[:, 1]]
    seen, unseen = ((is_unseen == side).nonzero()[:, 0].tolist() for side in (False, True))
    index = [seen[7], seen[60], seen[len(seen) // 2 + 30], unseen[0], unseen[len(unseen) // 2 + 1]]
    images = embed_images(model, scenes.images[index]).cpu()
    figure = Figure(figsize=(8, 1.6 * len(index)), layout="constrained")
    grid = figure.subplots(len(index), 2, width_ratios=(1, 3.5), squeeze=False)
    for (image_axes, axes), image, i in zip(grid, images, index, strict=True):
        first, second = scenes.digits[i].tolist()
        texts = five_texts(first, second, bool(scenes.is_vertical[i]), other=min({0, 1, 2} - {first, second}))
        cosines = (model.prompt_ensemble(texts, paraphrases=1).cpu() @ image).tolist()
        draw_scene(image_axes, scenes.images[i, 0])
        if is_unseen[i]:
            image_axes.set_title("pair never trained", fontsize=9, color=WRONG)
        draw_cosines(axes, cosines, right=1.1)
        axes.set_yticks(range(5), texts, fontsize=10)
    grid[-1, 1].set_xlabel("cosine similarity; blue: the caption that is true")
    return figure


@torch.no_grad()
def failures(models: dict[str, CLIP], split: Split) -> Figure:
    """Two scenes, each with two captions of the same words, of which the first is true: the cosines of several models.

    Both scenes show pairs that the first model was never trained on.
    """
    scenes, _ = evaluation_scenes(split, per_pair=2)
    grades, model = nameable_grades(scenes.thickness), next(iter(models.values()))
    is_unseen = model.unseen[scenes.digits[:, 0], scenes.digits[:, 1]]
    is_contrast = grades.sort(dim=1).values.eq(torch.tensor([0, 1])).all(dim=1)  # a thin and a thick digit
    order = int(is_unseen.nonzero()[0])
    binding = int((is_unseen & is_contrast).nonzero()[0])
    first, second = scenes.digits[order].tolist()
    pairs = {
        order: five_texts(first, second, bool(scenes.is_vertical[order]), other=0)[:2],
        binding: grade_texts(scenes, binding, grades[binding].tolist()),
    }
    figure = Figure(figsize=(2 + 3.2 * len(models), 3.6), layout="constrained")
    grid = figure.subplots(2, 1 + len(models), width_ratios=(1, *[1.5] * len(models)))
    for (image_axes, *row), (i, texts) in zip(grid, pairs.items(), strict=True):
        draw_scene(image_axes, scenes.images[i, 0])
        for axes, (name, model) in zip(row, models.items(), strict=True):
            image = embed_images(model, scenes.images[[i]]).cpu()[0]
            cosines = (model.prompt_ensemble(texts, paraphrases=1).cpu() @ image).tolist()
            draw_cosines(axes, cosines, right=1.2)
            axes.set_yticks(range(2), [textwrap.fill(text, 16) for text in texts] if axes is row[0] else [], fontsize=9)
            if i == order:
                axes.set_title(name, fontsize=10)
    figure.supxlabel("cosine similarity; blue: the caption that is true", fontsize=10)
    return figure


def draw_scene(axes: Axes, image: Tensor) -> None:
    axes.imshow(image, cmap="gray", vmin=0, vmax=1)
    axes.set(xticks=[], yticks=[])


def draw_cosines(axes: Axes, cosines: list[float], right: float) -> None:
    """A bar for each caption, of which the first is true. `right` is the end of the axis: room for the numbers."""
    bars = axes.barh(range(len(cosines)), cosines, color=[RIGHT] + [WRONG] * (len(cosines) - 1))
    axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=9)
    axes.invert_yaxis()
    axes.set(xlim=(min(0.0, *cosines), right), xticks=[])
    axes.spines[["top", "right", "bottom"]].set_visible(False)
