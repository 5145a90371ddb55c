"""What the page asks of the model: read a drawing, find and generate images by text, listen. No HTML in here.

Invalid user input is an InputError, whose message the page shows.
"""

import base64
import io
import itertools
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from attributes import ATTRIBUTES, COMBINATIONS, GRADE_OF_BIN, measure
from captions import DIGIT_WORDS, OUTLIER_IDS, UNSAID, image_facts
from clip import CLIP
from evaluation.claims import combination_caption, format_values, parse_claims, short_caption
from evaluation.metrics import embed_images
from evaluation.ood import to_mnist_form
from generation.features import agreement
from generation.model import Generator
from modalities.speech import read_wav
from my_dataset import Split
from my_utils import InputError, is_valid_unicode, quote

MAX_SENTENCES, MAX_LENGTH = 60, 200  # sentences in the list; characters of a text
N_BARS, N_NEAREST, N_SAMPLES = 8, 12, 8  # sentences, test images and generated images in an answer
MAX_REJECTED = 0.01  # share of the validation digits whose score is below the threshold of a digit
PNG = "data:image/png;base64,"
MAX_SIDE = 1024  # pixels of a drawing
MIN_INK = 0.1  # difference to the background, of 1, that counts as ink
EMPTY = "the canvas is empty: draw a digit with the mouse, a pen or a finger"


class Thumbnail(NamedTuple):
    """An image with the lines below it, and whether it matches the description (None: unknown)."""

    image: Tensor  # uint8 [28, 28]
    lines: tuple[str, ...]
    is_match: bool | None = None


class ImageResult(NamedTuple):
    """What the model finds in a drawing."""

    image: Tensor  # uint8 [28, 28], as the model gets it
    caption: str  # the nearest caption that names the digit and all attributes; or the digit alone
    measured: str  # the attributes in figures and words
    is_digit: bool
    score: float  # `Playground.digit_score`
    bars: list[tuple[str, float]]  # sentences and cosines, the best first
    nearest: list[Thumbnail]
    problems: list[str]  # why some sentences of the list are missing


class Playground:
    """A model with what is computed once: embeddings of test images and captions, the threshold of a digit.

    `no_generator` says why there is none. Embeddings are unit vectors [embed_dim], claims are bool [S].
    """

    def __init__(self, clip: CLIP, test: Split, val: Split, generator: Generator | None, no_generator: str = ""):
        self.clip, self.test = clip.requires_grad_(False), test
        self.generator, self.no_generator = generator, no_generator
        self.features = embed_images(clip, test.images)  # [10000, embed_dim]
        self.digits = clip.zero_shot_classifier()  # [10, embed_dim]
        self.captions, self.caption_embeds = DIGIT_WORDS, self.digits
        if clip.captions.name_attributes:
            self.outliers = clip.embed_descriptions(OUTLIER_IDS)  # [outliers, embed_dim]
            self.captions = [combination_caption(i) for i in range(math.prod(COMBINATIONS))]
            self.caption_embeds = clip.prompt_ensemble(self.captions, paraphrases=1)  # [combinations, embed_dim]
        self.threshold = self.digit_score(embed_images(clip, val.images)).quantile(MAX_REJECTED).item()

    @classmethod
    def load(cls, clip: CLIP, test: Split, val: Split, generator: str | Path) -> "Playground":
        """With the generator of that file, if it is there and belongs to this model."""
        try:
            return cls(clip, test, val, Generator.load(generator, clip))
        except InputError as error:
            return cls(clip, test, val, None, str(error))

    def digit_score(self, features: Tensor) -> Tensor:
        """Unit vectors [N, embed_dim] -> `evaluation.ood.ood_score` [N], with the embeddings computed once."""
        score = (features @ self.digits.T).amax(dim=1)
        return score - (features @ self.outliers.T).amax(dim=1) if self.clip.captions.name_attributes else score

    def suggested_sentences(self) -> list[str]:
        """The digits; and each attribute's bins, if captions name them."""
        sentences = list(DIGIT_WORDS)
        if self.clip.captions.name_attributes:
            for attribute, grade in itertools.product(ATTRIBUTES, GRADE_OF_BIN):
                grades = [grade if one is attribute else UNSAID for one in ATTRIBUTES]
                sentences.append(short_caption(UNSAID, grades))
            sentences += ["not a digit", "a scribble"]
        return sentences

    # ---- what the page asks ----

    def see(self, picture: str, sentences: str) -> ImageResult:
        """A drawing as a PNG data URL, and sentences, one per line. Raises InputError, also for an empty drawing."""
        image = to_mnist_form(ink_of(decode_png(picture)))  # uint8 [28, 28]
        feature = embed_images(self.clip, image[None])  # [1, embed_dim]
        score = self.digit_score(feature).item()
        bars, problems = self.compare(feature[0], sentences)
        caption, nearest = self.captions[(self.caption_embeds @ feature[0]).argmax()], self.nearest(feature[0])
        measured = describe_values(measure(image[None])[0])
        return ImageResult(image, caption, measured, score >= self.threshold, score, bars, nearest, problems)

    def find(self, text: str) -> tuple[list[Thumbnail], list[Thumbnail]]:
        """The test images closest to a text, and generated ones. Raises InputError for a text that cannot be read."""
        text = " ".join(text.split())
        if not text:
            raise InputError("there is no description yet: type one, such as 'seven'")
        embed, claims = self.embed_text(text), parse_claims(text)
        return self.nearest(embed, claims), self.sample(embed, claims)

    def hear(self, path: str) -> Tensor:
        """A wav file -> its embedding. Raises InputError for an invalid sound."""
        try:
            return self.clip.encode("speech", [read_wav(path)])[0]
        except InputError as error:  # hide the local path
            raise InputError(f"the sound cannot be used: {str(error).replace(f'{Path(path).parent}/', '')}") from None

    def compare(self, embed: Tensor, sentences: str) -> tuple[list[tuple[str, float]], list[str]]:
        """The sentences (one per line) closest to an embedding, with their cosines; and why others cannot be read."""
        lines = list(dict.fromkeys(" ".join(line.split()) for line in sentences.splitlines() if line.strip()))
        cosines, problems = {}, []
        if not lines:
            problems.append("the list of sentences is empty: write one on a line, such as 'seven'")
        if len(lines) > MAX_SENTENCES:
            problems.append(f"the list has {len(lines)} sentences, and only the first {MAX_SENTENCES} are compared")
        for line in lines[:MAX_SENTENCES]:
            try:
                cosines[line] = (self.embed_text(line) @ embed).item()
            except InputError as error:
                problems.append(f"{error} (left out of the bars)")
        return sorted(cosines.items(), key=lambda pair: -pair[1])[:N_BARS], problems

    def embed_text(self, text: str) -> Tensor:
        """A text of limited length -> its embedding. Raises InputError for a text that cannot be read."""
        if len(text) > MAX_LENGTH:
            raise InputError(f"the text {quote(text)} has more than {MAX_LENGTH} characters: make it shorter")
        if not is_valid_unicode(text):
            raise InputError(f"the text {quote(text)} is invalid Unicode (a lone surrogate): type it again")
        return self.clip.encode_text([text])[0]

    def nearest(self, embed: Tensor, claims: Tensor | None = None) -> list[Thumbnail]:
        """The test images closest to an embedding, with their true digits."""
        index = (self.features @ embed).topk(N_NEAREST).indices
        return thumbnails(self.test.images[index], self.test.labels[index], claims)

    def sample(self, embed: Tensor, claims: Tensor | None = None) -> list[Thumbnail]:
        """Generated images, with the digits that the model reads in them."""
        if self.generator is None:
            return []
        images = self.generator.sample(embed.expand(N_SAMPLES, -1))  # [N, 1, 28, 28]
        images = (images[:, 0] * 255).round().to(torch.uint8)
        digits = (embed_images(self.clip, images) @ self.digits.T).argmax(dim=1)
        return thumbnails(images, digits, claims)


def thumbnails(images: Tensor, digits: Tensor, claims: Tensor | None) -> list[Thumbnail]:
    """Images uint8 [N, 28, 28] with digits [N]: digit and attributes below, and whether the claims are true of each."""
    values = measure(images)  # [N, A]
    lines = [(DIGIT_WORDS[digit], *format_values(row).split(", ")) for digit, row in zip(digits, values, strict=True)]
    is_match = [None] * len(images)
    if claims is not None and claims.any():
        is_match = agreement(image_facts(digits, values), claims.to(digits.device)).tolist()
    return [Thumbnail(*row) for row in zip(images.cpu(), lines, is_match, strict=True)]


def describe_values(values: Tensor) -> str:
    """Attribute values [A] in figures and words: "thickness 2.5 px (medium), slant +0.30 rad (leaning right)"."""
    pairs = zip(ATTRIBUTES, format_values(values).split(", "), values, strict=True)
    return ", ".join(f"{one.name} {figure} ({one.grades[one.grade(value)]})" for one, figure, value in pairs)


# ---- what comes through the page ----


def decode_png(url: str) -> Tensor:
    """A PNG data URL -> grey float [H, W] in 0..1. Raises InputError for anything else."""
    if not url:
        raise InputError(EMPTY)
    try:
        picture = Image.open(io.BytesIO(base64.b64decode(url.removeprefix(PNG), validate=True)), formats=["PNG"])
        if max(picture.size) > MAX_SIDE:
            raise ValueError
        return torch.from_numpy(np.array(picture.convert("L"))).float() / 255
    except (OSError, ValueError, SyntaxError, TypeError, AttributeError, Image.DecompressionBombError):
        raise InputError("the drawing cannot be read: clear the canvas and draw again") from None


def ink_of(grey: Tensor) -> Tensor:
    """A drawing [H, W] in 0..1, dark on bright or bright on dark -> each pixel's distance to the background [H, W].

    The background is the median of the outermost pixels. Raises InputError where all is background.
    """
    frame = torch.cat([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    ink = (grey - frame.median()).abs()
    if ink.max() < MIN_INK:
        raise InputError(EMPTY)
    return ink
