"""What generate.py is asked for, as rows of its sheet: texts, a recording, test images, paths between embeddings."""

import argparse
import re
import textwrap
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from attributes import combination_ids, measure
from captions import DIGIT_WORDS, HAN
from clip import CLIP
from evaluation.claims import combination_caption
from modalities import speech
from my_dataset import DATA_PATH, Split
from my_utils import InputError, text

MAX_SHARE = 0.5  # of the way from an image's embedding to a direction


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of scripts that use trained models."""
    generator = "runs/generator/best_model.pth"
    parser.add_argument("--clip", type=text, default="runs/best_model.pth", metavar="FILE", help="the trained CLIP")
    parser.add_argument("--generator", type=text, default=generator, metavar="FILE", help="its generator")
    parser.add_argument("--text-model", type=text, help="the language model's folder, if it moved")
    parser.add_argument("--data-path", type=text, default=DATA_PATH, help="folder of MNIST; downloaded if missing")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")


class Row(NamedTuple):
    """A row of images that are generated from embeddings."""

    title: str
    picture: Tensor | None  # [H, W], what the row is made from
    caption: str  # what its images should show; empty if nobody knows
    embeds: Tensor  # [count, embed_dim]


def text_row(clip: CLIP, caption: str, count: int) -> Row:
    title = textwrap.fill(textwrap.shorten(caption, 100), 9 if re.search(HAN, caption) else 18)  # Han is twice as wide
    return Row(title, None, caption, clip.encode_text([caption]).expand(count, -1))


def speech_row(clip: CLIP, path: str, count: int) -> Row:
    """Images from a wav file. They should show the digit that the CLIP hears in it."""
    mels = speech.SpeechEncoder.preprocess([speech.read_wav(path)])  # [1, 40, 64]
    embed = clip.encode("speech", mels)[0]  # [embed_dim]
    word = DIGIT_WORDS[int((clip.zero_shot_classifier() @ embed).argmax())]
    return Row(f"{Path(path).name}:\nheard as {word}", speech.to_image(mels)[0], word, embed.expand(count, -1))


def image_row(clip: CLIP, test: Split, index: int, count: int) -> Row:
    """Variations of a test image, which should keep its digit and the bins of its attributes."""
    image, digits = test.images[index], test.labels[index : index + 1]
    caption = combination_caption(int(combination_ids(digits, measure(image))))
    return Row(f"test image {index}:\n{caption}", image, caption, clip.encode_image(image).expand(count, -1))


def path_row(start: Row, end: Tensor, name: str, share: float = 1.0) -> Row:
    """Images along the sphere from the row's first embedding, by this share of the way, to `end` [embed_dim]."""
    shares = torch.linspace(0, share, len(start.embeds), device=end.device)[:, None]  # [count, 1]
    embeds = F.normalize(torch.lerp(start.embeds[0], end, shares), dim=1)  # [count, embed_dim]
    return Row(f"{start.title}\n{name}", start.picture, "", embeds)


def direction_row(clip: CLIP, start: Row, low: str, high: str) -> Row:
    """The path along the difference of two texts. Raises InputError if they do not differ."""
    difference = clip.encode_text([high])[0] - clip.encode_text([low])[0]  # [embed_dim]
    if not difference.any():
        raise InputError("--direction needs two texts that differ in what they say")
    name = textwrap.fill(textwrap.shorten(f"{low} to {high}", 100), 18)
    return path_row(start, F.normalize(difference, dim=0), name, MAX_SHARE)
