"""Figures of recordings beside images and captions, for a model with towers for them."""

import torch
from matplotlib.figure import Figure
from torch import Tensor

from captions import DIGIT_WORDS
from clip import CLIP
from evaluation.pictures import closest_images, ranked_images
from modalities import speech, strokes
from my_dataset import Split

COLUMNS = 8  # images or recordings in a row
HARD_DIGITS = (1, 5, 7, 9)  # the writers of pendigits write them in other ways than those of MNIST


@torch.no_grad()
def recordings_to_images(model: CLIP, modality: str, recordings, split: Split, features: Tensor) -> Figure:
    """The images closest to the first recording of each digit; `features` [N, embed_dim] are the split's embeddings.

    `recordings` are speech.Sounds or strokes.Strokes, whose first field is what the encoder takes.
    """
    inputs = recordings[0][(recordings.labels == torch.arange(10)[:, None]).int().argmax(dim=1)]  # [10, ...]
    pictures = speech.to_image(inputs) if modality == "speech" else strokes.draw(inputs)[:, 0]  # [10, H, W]
    similarity = model.encode(modality, inputs).cpu() @ features.T  # [10, N]
    is_right, title = split.labels == torch.arange(10)[:, None], f"The test images closest to {modality}"
    return closest_images(similarity, DIGIT_WORDS, split.images, is_right, title, pictures, count=COLUMNS)


@torch.no_grad()
def strokes_read(model: CLIP, recordings: strokes.Strokes) -> Figure:
    """The first recordings of the digits that are hard to read, drawn, under the caption closest to the strokes."""
    rows = []
    for digit in HARD_DIGITS:
        points = recordings.points[recordings.labels == digit][:COLUMNS]
        nearest = (model.encode("strokes", points) @ model.zero_shot_classifier().T).argmax(dim=1).tolist()
        captions, is_right = [DIGIT_WORDS[one] for one in nearest], [one == digit for one in nearest]
        rows.append((DIGIT_WORDS[digit], None, strokes.draw(points)[:, 0], captions, is_right))
    return ranked_images(rows, "Pen strokes, drawn, under the caption closest to them")
