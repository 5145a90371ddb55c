"""What generate.py is asked for, as rows of its sheet: captions, recordings, test images, paths between embeddings."""

from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from attributes import combination_ids, measure
from captions import DIGIT_WORDS, combination_caption
from clip import CLIP
from generation.model import slerp
from my_dataset import Split
from my_utils import InputError

MAX_SHARE = 0.5  # of the way from an image's embedding to a direction


class Row(NamedTuple):
    """A row of images that are generated from embeddings."""

    title: str
    picture: Tensor | None  # [H, W], what the row is made from
    caption: str  # what its images should show; empty if nobody knows
    embeds: Tensor  # [count, embed_dim]


def text_rows(clip: CLIP, texts: list[str], count: int) -> list[Row]:
    """`count` images for each text."""
    embeds = clip.encode_text(texts)  # [T, embed_dim]
    return [Row(text, None, text, embed.expand(count, -1)) for text, embed in zip(texts, embeds, strict=True)]


def recording_row(clip: CLIP, modality: str, path: str, count: int) -> Row:
    """Images from a wav file ("speech") or a file of points ("strokes"). They should show the digit found in it."""
    if modality == "speech":
        from modalities import speech

        sound = speech.read_wav(path)  # [T]
        embed, picture = clip.encode("speech", sound)[0], speech.to_image(speech.SpeechEncoder.preprocess(sound))[0]
    else:
        from modalities import strokes

        points = strokes.StrokeEncoder.preprocess(strokes.read_strokes(path))
        embed, picture = clip.encode("strokes", points)[0], strokes.draw(points)[0, 0]
    word = DIGIT_WORDS[int((clip.zero_shot_classifier() @ embed).argmax())]
    verb = "heard" if modality == "speech" else "read"
    return Row(f"{Path(path).name}:\n{verb} as {word}", picture, word, embed.expand(count, -1))


def variation_row(clip: CLIP, test: Split, index: int, count: int) -> Row:
    """Variations of a test image, which should keep its digit and the bins of its attributes."""
    image, digits = test.images[index], test.labels[index : index + 1]
    caption = combination_caption(int(combination_ids(digits, measure(image))))
    return Row(f"test image {index}:\n{caption}", image, caption, clip.encode_image(image).expand(count, -1))


def interpolation_row(clip: CLIP, test: Split, start: int, end: int, count: int) -> Row:
    """The path between two test images."""
    first, last = variation_row(clip, test, start, count), variation_row(clip, test, end, 1)
    shares = torch.linspace(0, 1, count, device=first.embeds.device)
    return first._replace(
        title=f"{first.title}\nto {last.title}", caption="", embeds=slerp(first.embeds[0], last.embeds[0], shares)
    )


def direction_row(clip: CLIP, test: Split, index: int, texts: list[str], count: int) -> Row:
    """The path from a test image along the difference of two texts. Raises InputError if they do not differ."""
    low, high = clip.encode_text(texts)
    if torch.equal(low, high):
        raise InputError("--direction needs two texts that differ in what they say")
    first = variation_row(clip, test, index, count)
    shares = MAX_SHARE * torch.linspace(0, 1, count, device=low.device)
    path = slerp(first.embeds[0], F.normalize(high - low, dim=0), shares)  # [count, embed_dim]
    return first._replace(title=f"{first.title}\n{' to '.join(texts)}", caption="", embeds=path)
