"""What the page asks of the model: compare a drawing or a sound with sentences, find and generate images.

Invalid user input is an InputError, whose message the page shows.
"""

import base64
import functools
import io
import math
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from attributes import ATTRIBUTES, COMBINATIONS
from captions import DIGIT_WORDS, OUTLIER_IDS, OUTLIERS, combination_claims
from clip import CLIP
from data.photo import photo_to_mnist
from evaluation.claims import combination_caption, parse_claims
from evaluation.combinations import expected_grades
from evaluation.metrics import embed_images
from generation.model import Generator
from my_dataset import Split
from my_utils import InputError

N_BARS, N_NEAREST, N_SAMPLES = 8, 12, 8  # sentences, test images and generated images in an answer
PNG = "data:image/png;base64,"


class Playground:
    """A model, with its embeddings of test images and of every sentence so far: unit vectors [embed_dim].

    `generator` is a file. Without one that belongs to the model, `no_generator` says why.
    """

    def __init__(self, clip: CLIP, test: Split, generator: str | Path):
        self.clip, self.test = clip.requires_grad_(False), test
        self.features = embed_images(clip, test.images)  # [10000, embed_dim]
        self.digits = clip.zero_shot_classifier()  # [10, embed_dim]
        self.outliers = clip.embed_descriptions(OUTLIER_IDS) if clip.captions.kind == "attributes" else None
        self.embed_text = functools.cache(lambda text: clip.encode_text(text)[0])
        self.suggested = list(DIGIT_WORDS)  # sentences
        if clip.captions.kind == "attributes":
            self.suggested += ["not a digit", *map(combination_caption, range(math.prod(COMBINATIONS)))]
        self.generator, self.no_generator = None, ""
        try:
            self.generator = Generator.load(generator, clip)
        except InputError as error:
            self.no_generator = str(error)

    def nearest_digit(self, embed: Tensor) -> str:
        """The digit whose caption is closest to an embedding."""
        return DIGIT_WORDS[(self.digits @ embed).argmax()]

    def read(self, embed: Tensor) -> str:
        """The most probable combination for an embedding, with its expected grades; or which outlier it is."""
        if self.clip.captions.kind != "attributes":
            return self.nearest_digit(embed)
        outliers = self.outliers @ embed  # [1 + kinds]
        if outliers.max() > (self.digits @ embed).max():
            return f"no digit, but {list(OUTLIERS.values())[outliers[1:].argmax()][0]}"
        best = int(self.clip.log_probs(embed[None], combination_claims())[0].argmax())
        grades = expected_grades(self.clip, embed[None])[0]
        shown = [f"{one.name} {grade:.1f}" for one, grade in zip(ATTRIBUTES, grades, strict=True)]
        return f"{combination_caption(best)}; by the captions, from 0 to 4: {', '.join(shown)}"

    def compare(self, embed: Tensor, sentences: str) -> tuple[list[tuple[str, float]], list[str]]:
        """The sentences (one per line) closest to an embedding, with their cosines; and why others cannot be read."""
        lines = [line.strip() for line in sentences.splitlines() if line.strip()]
        cosines = {}
        problems = [] if lines else ["the list of sentences is empty: write one on a line, such as 'seven'"]
        for line in lines:
            try:
                cosines[line] = (self.embed_text(line) @ embed).item()
            except InputError as error:
                problems.append(f"{error} (left out of the bars)")
        return sorted(cosines.items(), key=lambda pair: -pair[1])[:N_BARS], problems

    def nearest(self, embed: Tensor) -> tuple[Tensor, Tensor]:
        """The test images closest to an embedding, uint8 [N, 28, 28], and their labels [N]."""
        index = (self.features @ embed).topk(N_NEAREST).indices
        return self.test.images[index], self.test.labels[index]

    def sample(self, embed: Tensor, text: str) -> tuple[Tensor, Tensor]:
        """An embedding [embed_dim] and what its images should show -> images uint8 [N, 28, 28], and the digits that the
        model reads in them [N]."""
        claims = parse_claims(text).expand(N_SAMPLES, -1)
        images = self.generator.sample(self.clip, embed.expand(N_SAMPLES, -1), claims)  # [N, 1, 28, 28]
        images = (images[:, 0] * 255).round().to(torch.uint8)
        return images, (embed_images(self.clip, images) @ self.digits.T).argmax(dim=1)


def decode_drawing(url: str) -> Tensor:
    """The canvas's PNG data URL, black on white -> uint8 [28, 28] in MNIST's form. Raises InputError."""
    if not url:
        raise InputError("the canvas is empty: draw a digit with the mouse, a pen or a finger")
    try:
        content = base64.b64decode(url.removeprefix(PNG), validate=True)
        return photo_to_mnist(Image.open(io.BytesIO(content), formats=["PNG"]))
    except Exception:  # arbitrary bytes lead the reader to any error
        raise InputError("the drawing cannot be read: clear the canvas and draw again") from None
