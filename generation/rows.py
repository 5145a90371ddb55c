"""What generate.py is asked for, as rows of its sheet: texts, recordings, test images, paths between embeddings."""

from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from attributes import combination_ids, measure
from captions import DIGIT_WORDS
from clip import CLIP
from evaluation.claims import combination_caption
from my_dataset import Split
from my_utils import InputError

MAX_SHARE = 0.5  # of the way from an image's embedding to a direction


class Row(NamedTuple):
    """A row of images that are generated from embeddings."""

    title: str
    picture: Tensor | None  # [H, W], what the row is made from
    caption: str  # what its images should show; empty if nobody knows
    embeds: Tensor  # [count, embed_dim]


def recording_row(clip: CLIP, modality: str, path: str, count: int) -> Row:
    """Images from a wav file ("speech") or a file of points ("strokes"). They should show the digit found in it."""
    from modalities import speech, strokes  # texts need no modality

    if modality == "speech":
        inputs = speech.SpeechEncoder.preprocess(speech.read_wav(path))  # [1, 40, 64]
        picture, verb = speech.to_image(inputs)[0], "heard"
    else:
        inputs = strokes.StrokeEncoder.preprocess(strokes.read_strokes(path))  # [1, 8, 2]
        picture, verb = strokes.draw(inputs)[0, 0], "read"
    embed = clip.encode(modality, inputs)[0]  # [embed_dim]
    word = DIGIT_WORDS[int((clip.zero_shot_classifier() @ embed).argmax())]
    return Row(f"{Path(path).name}:\n{verb} as {word}", picture, word, embed.expand(count, -1))


def image_row(clip: CLIP, test: Split, index: int, count: int) -> Row:
    """Variations of a test image, which should keep its digit and the bins of its attributes."""
    image, digits = test.images[index], test.labels[index : index + 1]
    caption = combination_caption(int(combination_ids(digits, measure(image))))
    return Row(f"test image {index}:\n{caption}", image, caption, clip.encode_image(image).expand(count, -1))


def path_row(start: Row, end: Tensor, name: str, share: float = 1.0) -> Row:
    """Images along the sphere from the row's first embedding, by this share of the way, to `end` [embed_dim]."""
    shares = torch.linspace(0, share, len(start.embeds), device=end.device)
    return Row(f"{start.title}\n{name}", start.picture, "", slerp(start.embeds[0], end, shares))


def direction_row(clip: CLIP, start: Row, low: str, high: str) -> Row:
    """The path along the difference of two texts. Raises InputError if they do not differ."""
    difference = clip.encode_text([high])[0] - clip.encode_text([low])[0]  # [embed_dim]
    if not difference.any():
        raise InputError("--direction needs two texts that differ in what they say")
    return path_row(start, F.normalize(difference, dim=0), f"{low} to {high}", MAX_SHARE)


def slerp(start: Tensor, end: Tensor, shares: Tensor) -> Tensor:
    """Spherical interpolation of two unit vectors [embed_dim] at `shares` [K] in 0..1 -> [K, embed_dim].

    (Shoemake, 1985.) Opposite vectors have no shortest path on the sphere; then it is linear.
    """
    angle = torch.arccos((start @ end).clamp(-1, 1))
    if angle.sin() < 1e-4:
        return F.normalize(torch.lerp(start, end, shares[:, None]), dim=-1)
    weights = torch.stack([((1 - shares) * angle).sin(), (shares * angle).sin()], dim=1) / angle.sin()  # [K, 2]
    return weights @ torch.stack([start, end])
