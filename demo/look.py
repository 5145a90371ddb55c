"""What the page asks of the model: to look at a drawing, to find and draw what a text says, to listen.

No HTML in here. What a person gave wrongly is an InputError whose message the page shows.
"""

import base64
import functools
import io
import threading
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from attributes import SLANT, SLANT_BOUNDS, THICKNESS, THICKNESS_BOUNDS, grade, measure
from captions import DIGIT_WORDS, claims_of, facts_of, holds, things_of_no_digits
from clip import CLIP
from evaluation.metrics import embed_images, prompt_ensemble
from evaluation.other_images import mnist_form
from evaluation.pictures import in_figures, in_short
from generator import Generator
from my_dataset import Split
from my_utils import InputError, is_whole

LOOKS = ("a thin digit", "a thick digit", "a digit leaning left", "an upright digit", "a digit leaning right")
LOOKS += ("a thick digit leaning left", "a thin upright digit", "not a digit", "a scribble")
MOST_SENTENCES, LONGEST = 60, 200  # sentences in the list; characters of one
SHOWN, FOUND, DRAWN = 8, 12, 8  # bars; test images; drawings
FEWEST_DIGITS = 0.01  # share of the validation digits that `digit_score` may call no digit
PNG = "data:image/png;base64,"
LARGEST_PNG, LARGEST_SIDE = 2_000_000, 1024  # characters, pixels
FAINTEST = 0.1  # difference to the background, of 1, that counts as ink
LARGEST_SOUND = 20_000_000  # bytes


class Shown(NamedTuple):
    """An image with what stands below it, and whether it is as asked; None: nobody can say."""

    image: Tensor  # uint8 [28, 28]
    lines: tuple[str, ...]
    fits: bool | None = None


class Seen(NamedTuple):
    """What the model makes of a drawing."""

    image: Tensor  # uint8 [28, 28], as the model gets it
    reading: str  # the nearest of all captions that name digit, thickness and slant; or the digit alone
    looks: str  # thickness and slant, measured
    is_digit: bool
    score: float  # `digit_score`
    bars: list[tuple[str, float]]  # sentences and cosines, the best first
    similar: list[Shown]
    problems: list[str]  # sentences of the list that could not be read


class Heard(NamedTuple):
    """What the model makes of a sound."""

    bars: list[tuple[str, float]]
    similar: list[Shown]
    drawn: list[Shown]
    problems: list[str]


class Playground:
    """A model with all that is computed once: the test images' vectors, their facts, the bound of what is a digit.

    `no_generator` says why there is none. Methods may be called from several threads.
    """

    def __init__(self, clip: CLIP, test: Split, val: Split, generator: Generator | None, no_generator: str = ""):
        self.clip, self.test, self.generator, self.no_generator = clip, test, generator, no_generator
        self.features = embed_images(clip, test.images)  # [10000, embed_dim]
        thickness, slant = measure(test.images)
        self.measures = list(zip(thickness.tolist(), slant.tolist(), strict=True))
        self.facts = facts_of(test.labels, thickness, slant)[0]
        self.digits = self.vectors_of(clip.captions.of_digits())  # [10, embed_dim]
        self.readings, self.of_readings = DIGIT_WORDS, self.digits
        self.no_digits = None
        if clip.captions.described:
            self.readings = [in_short(*divmod(cell // 3, 3), cell % 3) for cell in range(90)]
            self.of_readings = prompt_ensemble(clip, self.readings, phrasings=1)  # [90, embed_dim]
            self.no_digits = self.vectors_of(things_of_no_digits())
        # The test split has no say in this.
        self.least_score = self.digit_score(embed_images(clip, val.images)).quantile(FEWEST_DIGITS).item()
        self.read = functools.lru_cache(maxsize=16)(self._read)  # a new stroke asks for the same sentences
        self.drawing = threading.Lock()  # one drawing at a time: two would only slow each other down

    @classmethod
    def load(cls, clip: CLIP, test: Split, val: Split, generator: str | Path) -> "Playground":
        """With the generator of that file, if it is there and belongs to this model."""
        if not Path(generator).is_file():
            return cls(clip, test, val, None, "no generator is trained for this model yet")
        try:
            return cls(clip, test, val, Generator.load(generator, clip))
        except InputError as error:
            return cls(clip, test, val, None, str(error))

    def vectors_of(self, things: Tensor) -> Tensor:
        """`evaluation.metrics.caption_vectors`, which has all captions read first: a minute for a language model."""
        captions = self.clip.captions
        return prompt_ensemble(self.clip, captions.all_of(things).strings(), captions.phrasings)

    @property
    def can_hear(self) -> bool:
        return "speech" in self.clip.towers

    def first_sentences(self) -> list[str]:
        return [*DIGIT_WORDS, *(LOOKS if self.clip.captions.described else ())]

    def digit_score(self, features: Tensor) -> Tensor:
        """Unit vectors [N, embed_dim] -> `evaluation.sections.open_set_score`, without reading its captions anew."""
        score = (features @ self.digits.T).amax(dim=1)
        return score if self.no_digits is None else score - (features @ self.no_digits.T).amax(dim=1)

    # ---- what the page asks ----

    @torch.no_grad()
    def see(self, picture: str, sentences: str) -> Seen:
        """A drawing as a PNG data URL, and sentences, one a line. Raises InputError, also for an empty drawing."""
        image = mnist_form(ink_of(decode_png(picture)))
        feature = self.clip.encode_image(image[None])
        thickness, slant = (x.item() for x in measure(image[None]))
        score = self.digit_score(feature).item()
        reading, looks = self.readings[(self.of_readings @ feature[0]).argmax()], in_words(thickness, slant)
        bars, problems = self.compare(feature[0], sentences)
        is_digit, similar = score >= self.least_score, self.nearest(feature[0])
        return Seen(image, reading, looks, is_digit, score, bars, similar, problems)

    @torch.no_grad()
    def find(self, text: str) -> tuple[list[Shown], list[Shown]]:
        """The test images that fit a text best, and drawings of it. Raises InputError for what cannot be read."""
        text = " ".join(text.split())
        if not text:
            raise InputError("there is no description yet: type one, such as 'seven'")
        vector = self.clip.encode_text([check_length(text, "the description")])[0]
        claims = claims_of(text) if self.clip.captions.described else 0
        return self.nearest(vector, claims), self.draw(vector, claims)

    @torch.no_grad()
    def hear(self, path: str | None, sentences: str) -> Heard:
        """A wav file, and sentences, one a line. Raises InputError for what is no sound."""
        from speech_encoder import read_wav

        if not path:
            raise InputError("there is no sound yet: record a digit, or choose a wav file")
        try:
            if not Path(path).is_file():  # old ones are removed while the page stays open
                raise InputError("it is no longer there: record or choose it again")
            if Path(path).stat().st_size > LARGEST_SOUND:
                raise InputError(f"it has more than {LARGEST_SOUND // 10**6} MB: record a single digit")
            vector = self.clip.encode_speech([read_wav(path)])[0]
        except InputError as error:  # (the file's place on this machine tells a person nothing)
            raise InputError(
                f"the sound cannot be used: {str(error).replace(f'{path}: ', '').replace(path, 'it')}"
            ) from None
        bars, problems = self.compare(vector, sentences)
        return Heard(bars, self.nearest(vector), self.draw(vector, claims=0), problems)

    # ---- its parts ----

    def compare(self, vector: Tensor, sentences: str) -> tuple[list[tuple[str, float]], list[str]]:
        """A unit vector [embed_dim] -> the sentences nearest to it with their cosines, and what could not be read."""
        names, vectors, problems = self.read(sentences)
        if not names:
            return [], problems or ["the list of sentences is empty: write one on a line, such as 'seven'"]
        best = (vectors @ vector).sort(descending=True)
        pairs = zip(best.indices[:SHOWN].tolist(), best.values[:SHOWN].tolist(), strict=True)
        return [(names[i], cosine) for i, cosine in pairs], problems

    @torch.no_grad()
    def _read(self, sentences: str) -> tuple[list[str], Tensor | None, list[str]]:
        """Sentences, one a line -> those that can be read, their unit vectors [T, embed_dim], and why not the rest."""
        if len(sentences) > 10 * MOST_SENTENCES * LONGEST:
            return [], None, [f"the list is too long: at most {MOST_SENTENCES} sentences of {LONGEST} characters"]
        lines = list(dict.fromkeys(" ".join(line.split()) for line in sentences.splitlines() if line.strip()))
        problems = []
        if len(lines) > MOST_SENTENCES:
            problems.append(f"the list has {len(lines)} sentences, and only the first {MOST_SENTENCES} are compared")
        names, vectors = [], []
        for line in lines[:MOST_SENTENCES]:
            try:
                vectors.append(self.clip.encode_text([check_length(line, f"the sentence '{line[:20]}...'")]))
                names.append(line)
            except InputError as error:
                problems.append(f"{error} (left out of the bars)")
        return names, torch.cat(vectors) if vectors else None, problems

    def nearest(self, vector: Tensor, claims: int = 0) -> list[Shown]:
        """A unit vector [embed_dim] -> the test images nearest to it, with their true labels and measures."""
        places = (self.features @ vector).topk(FOUND).indices
        fits = self.judge(claims, self.facts[places])
        notes = [(DIGIT_WORDS[self.test.labels[i]], *figures(*self.measures[i])) for i in places.tolist()]
        return [Shown(*one) for one in zip(self.test.images[places].cpu(), notes, fits, strict=True)]

    def draw(self, vector: Tensor, claims: int) -> list[Shown]:
        """A unit vector [embed_dim] -> drawings, with the digit that the model reads in them, and their measures."""
        if self.generator is None:
            return []
        noise = torch.Generator(vector.device)
        noise.seed()
        vectors = vector.expand(DRAWN, -1)
        with self.drawing:
            images = self.generator.draw(vectors, noise)
        images = (images[:, 0] * 255).round().to(torch.uint8)
        digits = (self.clip.encode_image(images) @ self.digits.T).argmax(dim=1)
        thickness, slant = measure(images)
        fits = self.judge(claims, facts_of(digits, thickness, slant)[0])
        rows = zip(digits.tolist(), thickness.tolist(), slant.tolist(), strict=True)
        notes = [(DIGIT_WORDS[digit], *figures(*measures)) for digit, *measures in rows]
        return [Shown(*one) for one in zip(images.cpu(), notes, fits, strict=True)]

    @staticmethod
    def judge(claims: int, facts: Tensor) -> list[bool | None]:
        """What a text claims, and the facts of N images -> whether it is true of each."""
        return holds(torch.tensor(claims, device=facts.device), facts).tolist() if claims else [None] * len(facts)


# ---- drawings and words ----


def decode_png(url: str) -> Tensor:
    """A PNG data URL -> grey float [H, W] in 0..1. Raises InputError for anything else."""
    if not url:
        raise InputError("the canvas is empty: draw a digit with the mouse, a pen or a finger")
    unread = InputError("the drawing cannot be read: clear the canvas and draw again")
    if not isinstance(url, str) or not url.startswith(PNG) or len(url) > LARGEST_PNG:
        raise unread
    try:
        picture = Image.open(io.BytesIO(base64.b64decode(url.removeprefix(PNG), validate=True)), formats=["PNG"])
        if max(picture.size) > LARGEST_SIDE:
            raise unread
        return torch.from_numpy(np.array(picture.convert("L"))).float() / 255
    except (OSError, ValueError, SyntaxError):  # what base64 and Pillow raise for bytes that are no picture
        raise unread from None


def ink_of(grey: Tensor) -> Tensor:
    """A drawing [H, W] in 0..1, dark on bright or bright on dark -> how far each pixel is from the background.

    The background is what most of the frame's outermost pixels show. Raises InputError where all is background.
    """
    frame = torch.cat([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    ink = (grey - frame.median()).abs()
    if ink.max() < FAINTEST:
        raise InputError("the canvas is empty: draw a digit with the mouse, a pen or a finger")
    return ink


def check_length(text: str, name: str) -> str:
    """The text itself. Raises InputError for one that is too long or holds broken characters."""
    if len(text) > LONGEST:
        raise InputError(f"{name} has {len(text):,} characters, but at most {LONGEST} are read: make it shorter")
    if not is_whole(text):
        raise InputError(f"{name} holds a broken character: type it again")
    return text


def figures(thickness: float, slant: float) -> list[str]:
    """Both measures, a line each."""
    return in_figures(thickness, slant).split(", ")


def in_words(thickness: float, slant: float) -> str:
    """Both measures in figures and words: "2.5 px thick (medium), slant +0.30 rad (leaning right)"."""
    names = []
    for value, bounds, steps in ((thickness, THICKNESS_BOUNDS, THICKNESS), (slant, SLANT_BOUNDS, SLANT)):
        step, is_outer = (int(x) for x in grade(torch.tensor(value), bounds))
        names.append(steps[3 + step // 2] if is_outer else steps[step])
    px, rad = figures(thickness, slant)
    return f"{px} thick ({names[0]}), slant {rad} ({names[1]})"
