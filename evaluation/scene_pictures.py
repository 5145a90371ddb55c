"""Pictures of scenes and their captions, as matplotlib figures."""

import torch
from matplotlib.figure import Figure

from clip import CLIP
from evaluation.metrics import embed_images
from evaluation.scenes import evaluation_scenes, five_texts
from evaluation.similarity import RIGHT, WRONG
from my_dataset import Split


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
        image_axes.imshow(scenes.images[i, 0], cmap="gray", vmin=0, vmax=1)
        image_axes.set(xticks=[], yticks=[])
        if is_unseen[i]:
            image_axes.set_title("pair never trained", fontsize=9, color=WRONG)
        bars = axes.barh(range(5), cosines, color=[RIGHT] + [WRONG] * 4)
        axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=9)
        axes.set_yticks(range(5), texts, fontsize=10)
        axes.invert_yaxis()
        axes.set(xlim=(min(0.0, *cosines), 1.1), xticks=[])
        axes.spines[["top", "right", "bottom"]].set_visible(False)
    grid[-1, 1].set_xlabel("cosine similarity; blue: the caption that is true")
    return figure
