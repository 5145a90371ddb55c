"""What is said of an image: the words, the templates, and the drawing of a caption for each image of a batch.

Two kinds of captions. `digit`: a caption names the digit and nothing else. `described`: it names any part of {digit,
thickness, slant}, or says that there is no digit. What is true of an image, and what a caption claims, are sets of
STATEMENTS, each set the bits of one number: a caption is true of an image when all that it claims is true.
"""

import functools
import itertools
import random
import re
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from attributes import SLANT, SLANT_BAND, SLANT_BOUNDS, THICKNESS, THICKNESS_BAND, THICKNESS_BOUNDS, from_bounds, grade

DIGIT_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


class Texts(NamedTuple):
    """B texts as places in a list: text b is `sentences[index[b]]`. A long list is then read by a model only once."""

    sentences: tuple[str, ...]
    index: Tensor  # int64 [B]

    def strings(self) -> list[str]:
        return [self.sentences[i] for i in self.index.tolist()]


# ---- captions that name the digit: {word} stands for zero ... nine, {numeral} for 0 ... 9 ----


def with_article(text: str) -> str:
    """'a' before a vowel's sound becomes 'an': an eight, an 8, an upright seven."""
    return re.sub(r"\b([Aa]) (?=(?!one\b)[aeiou8])", r"\1n ", text)


def fill(template: str, digit: int) -> str:
    return with_article(template.format(word=DIGIT_WORDS[digit], numeral=digit))


def all_sentences(templates: Sequence[str]) -> tuple[str, ...]:
    """Every template filled with every digit: that of digit d and template t stands at d * len(templates) + t."""
    return tuple(fill(template, digit) for digit in range(10) for template in templates)


TRAIN_TEMPLATES = (
    # statements
    "This is a handwritten digit {word}.",
    "The picture shows a {word}.",
    "The number here is {word}.",
    "I can read a {word}.",
    "You are looking at the digit {word}.",
    "Someone wrote the number {word} by hand.",
    "There is a {word} in this image.",
    "Here you see the digit {word}.",
    # photos, scans and drawings
    "a photo of the digit {word}",
    "a photo of a handwritten {word}",
    "an image of the number {word}",
    "a scan of the number {word}",
    "a low resolution scan of a {word}",
    "a small grey picture of a {word}",
    "a handwritten {word}",
    "white on black: the digit {word}",
    "a drawing of the number {word}",
    "a single digit: {word}",
    # answers
    "Which digit is it? It is {word}.",
    "Question: what number is shown? Answer: {word}.",
    "My guess would be {word}.",
    "Read aloud, this is {word}.",
    # the numeral instead of the word
    "This is a handwritten digit {numeral}.",
    "a photo of the digit {numeral}",
    "a scan of the number {numeral}",
    "a handwritten {numeral}",
    "The picture shows a {numeral}.",
    "a drawing of the number {numeral}",
    "Question: what number is shown? Answer: {numeral}.",
    "handwriting that reads {numeral}",
)

# Never trained on: what is measured with these is what a sentence of the user's own will give.
HELD_OUT_TEMPLATES = (
    "It looks like a {word} to me.",
    "the numeral {word} as a thumbnail",
    "{word} is the number on this picture",
    "an old form with a {word} filled in",
    "What does it say? Clearly {word}!",
    "black and white handwriting, digit {word}",
    "a badly photographed {word} on paper",
    "someone's {numeral}",
    "The correct label is {numeral}.",
    "a black and white image of a {numeral}",
)

BARE_TEMPLATES = ("{word}", "{numeral}")  # not trained on either by `plus`

# No digit in any of them, and none is trained on: an image should be far from all.
OTHER_SENTENCES = (
    "a dog running on a beach",
    "a photo of an airplane",
    "This is a handwritten letter q.",
    "It looks like a flower to me.",
    "a messy kitchen",
    "The correct label is sandal.",
    "a black and white image of a bridge",
    "What does it say? Clearly hello!",
    "an old form with a name filled in",
    "the recipe calls for butter and sugar",
    "a crooked fence in the countryside",
    "a badly photographed face",
    "The weather is lovely today.",
    "He forgot his umbrella on the bus.",
    "a glass of water",
    "a horse standing in a field",
    "an empty page",
    "the sound of distant thunder",
    "a map of the old town",
    "black and white handwriting, letter k",
)


# ---- captions that describe ----

# Each value of attributes.THICKNESS and SLANT as adjectives, which stand before the noun, and as phrases behind it.
THICKNESS_WORDS = {
    "thin": (("thin", "fine", "delicate"), ("in light strokes", "in fine strokes", "as if with a thin pen")),
    "medium": (("medium", "ordinary"), ("in medium strokes", "of medium thickness", "as if with an ordinary pen")),
    "thick": (("thick", "bold", "heavy"), ("in heavy strokes", "in bold strokes", "as if with a broad pen")),
    "very thin": (("hairline", "spidery"), ("in hairlines", "in the finest of lines")),
    "very thick": (("fat", "massive"), ("as if with a brush", "as if with a marker")),
}
SLANT_WORDS = {
    "leaning left": (("left-leaning",), ("leaning to the left", "leaning left", "tilted left", "slanting to the left")),
    "upright": (("upright", "straight"), ("standing upright", "without a slant", "standing straight")),
    "leaning right": (
        ("right-leaning",),
        ("leaning to the right", "leaning right", "tilted right", "slanting to the right"),
    ),
    "leaning far left": (("backhand", "backslanted"), ("in backhand", "falling backwards")),
    "leaning far right": (("italic", "oblique"), ("in italics", "falling forwards")),
}
FRAMES = ("{}", "{}", "{}", "a photo of {}", "a scan of {}", "the picture shows {}", "this is {}", "I can read {}")
NOUNS = ("{word}", "{word}", "{numeral}", "handwritten {word}", "handwritten {numeral}")
HEADS = ("{word}", "{numeral}", "the digit {word}", "the number {numeral}", "the number {word}")
ANY_NOUNS = ("digit", "number", "numeral", "handwritten digit", "handwritten number")
ANY_HEADS = ("a digit", "a number", "a numeral", "a single digit", "some number")

# What is no digit, by kind: how data/not_digits.py makes it, and what is said of it.
NOT_DIGITS = {
    "noise": ("random noise", "pixel noise", "nothing but noise", "an image of random noise", "grey noise"),
    "scrambled": (
        "scrambled patches",
        "a scrambled image",
        "patches in the wrong order",
        "pieces of a digit, shuffled",
    ),
    "empty": ("an empty image", "an empty frame", "nothing at all", "a blank image", "an empty picture"),
    "overlap": (
        "two digits on top of each other",
        "two numbers written over each other",
        "two overlapping digits",
        "one digit on top of another",
    ),
    "inverted": (
        "an inverted digit",
        "a digit in negative",
        "black on white: a digit in reverse",
        "a dark digit on a bright background",
    ),
    "turned": ("a digit lying on its side", "a digit turned by a quarter", "a number on its side", "a rotated digit"),
    "scribble": ("a scribble", "a few random lines", "lines that form no digit", "strokes without meaning"),
}
NO_DIGIT = ("not a digit", "this is not a digit", "not one digit", "anything but one digit")

PHRASINGS = 24  # sentences that say the same, for each thing that can be said
SAID = 0.7  # chance that a caption names an attribute
SAID_OUTER = 0.5  # chance that it then says "very thin" where that is true, and not just "thin"

# ---- what can be true: statement k is bit k ----

STATEMENTS = (*DIGIT_WORDS, *NOT_DIGITS, "a digit", "no digit", *THICKNESS, *SLANT)
IS_DIGIT, IS_NONE = (1 << STATEMENTS.index(name) for name in ("a digit", "no digit"))
FIRST_KIND, FIRST_THICKNESS, FIRST_SLANT = (
    STATEMENTS.index(names[0]) for names in (tuple(NOT_DIGITS), THICKNESS, SLANT)
)


def holds(claims: Tensor, facts: Tensor) -> Tensor:
    """Whether all claims are among the facts: sets of statements of shapes that broadcast -> bool."""
    return (claims & ~facts) == 0


class Truth(NamedTuple):
    """What is true of B images, and what B texts claim of them: sets of statements, int32 [B] each.

    Text j is true of image i when all its claims are among i's facts, and false when one of them is neither a fact of i
    nor `unknown` there (see `unknown_claims`). Where `unknown` is None, every text is true or false.
    """

    facts: Tensor
    claims: Tensor
    unknown: Tensor | None = None

    def decide(
        self, images: Tensor | slice = slice(None), texts: Tensor | slice = slice(None)
    ) -> tuple[Tensor, Tensor | None]:
        """Of these images and these texts, which pairs are true, and which are neither true nor false.

        bool [images, texts] each; the second is None where none is undecided.
        """
        missing = self.claims[texts] & ~self.facts[images][:, None]  # [images, texts]
        true = missing == 0
        if self.unknown is None:
            return true, None
        return true, ~true & ((missing & ~self.unknown[images][:, None]) == 0)


@functools.cache
def _phrases() -> list[tuple[str, int]]:
    """Every phrase with the bit of its statement, the longest first."""
    bits = {name: 1 << k for k, name in enumerate(STATEMENTS)}
    found = [(word, bits[word]) for word in DIGIT_WORDS] + [(str(k), 1 << k) for k in range(10)]
    found += [(phrase, bits[kind]) for kind, phrases in NOT_DIGITS.items() for phrase in phrases]
    found += [(phrase, IS_NONE) for phrase in NO_DIGIT]
    for words in (THICKNESS_WORDS, SLANT_WORDS):
        found += [(phrase, bits[step]) for step, both in words.items() for phrase in itertools.chain(*both)]
    return sorted(found, key=lambda one: -len(one[0]))


def claims_of(text: str) -> int:
    """What a sentence claims, by the words and phrases of this module; 0 where it has none of them."""
    text, claims = text.lower(), 0
    for phrase, bit in _phrases():  # a long phrase hides the words in it: "as if with a thin pen"
        text, n = re.subn(rf"(?<![\w-]){re.escape(phrase)}(?![\w-])", "|", text)
        claims |= bit if n else 0
    return claims


def in_words(statements: int) -> str:
    """A set of statements, as a person reads it, without what goes without saying: "four, very thin, leaning left"."""
    names = [name for k, name in enumerate(STATEMENTS) if statements >> k & 1]
    implied = {"a digit", "no digit"} | {
        steps[k] for steps in (THICKNESS, SLANT) for k in (0, 2) if steps[3 + k // 2] in names
    }
    return ", ".join([name for name in names if name not in implied] or names)


# ---- all captions of a kind ----


class Captions:
    """All that can be said: C things, each in the same number of phrasings.

    `sentences` [C * phrasings]; phrasing p of thing c stands at c * phrasings + p. `claims` int32 [C]. `described`
    says whether images are measured for them.
    """

    def __init__(self, sentences: Sequence[str], claims: Sequence[int], described: bool):
        self.sentences, self.described = tuple(sentences), described
        self.claims = torch.tensor(claims, dtype=torch.int32)
        self._claims_on: dict[torch.device, Tensor] = {}  # copied to a device once: a copy waits for it
        self.phrasings = len(self.sentences) // len(self.claims)

    @property
    def one_each(self) -> bool:
        """Whether of all sentences one alone is true of an image."""
        return not self.described and self.phrasings == 1

    def draw(self, things: Tensor) -> tuple[Texts, Tensor]:
        """For each of B things a phrasing at random -> the texts and their claims [B]."""
        device = things.device
        drawn = torch.randint(self.phrasings, things.shape, device=device) if self.phrasings > 1 else 0
        if device not in self._claims_on:
            self._claims_on[device] = self.claims.to(device)
        return Texts(self.sentences, things * self.phrasings + drawn), self._claims_on[device][things]

    def all_of(self, things: Tensor) -> Texts:
        """Every phrasing of T things, one thing after the other: T * phrasings texts."""
        places = things[:, None] * self.phrasings + torch.arange(self.phrasings, device=things.device)
        return Texts(self.sentences, places.flatten())

    def of_digits(self) -> Tensor:
        """The things that name a digit and nothing else, int64 [10]."""
        return thing(torch.arange(10)) if self.described else torch.arange(10)


def captions_of(kind: str, text_encoder: str) -> Captions:
    """The captions of `--captions` kind that a text encoder, "table" or "plus", is trained on."""
    if kind == "described":
        return described_captions()
    return digit_captions(("{word}",) if text_encoder == "table" else TRAIN_TEMPLATES)


@functools.cache
def digit_captions(templates: tuple[str, ...]) -> Captions:
    """Thing c is the digit c."""
    return Captions(all_sentences(templates), [1 << digit for digit in range(10)], described=False)


@functools.cache
def described_captions() -> Captions:
    """Every combination of a digit, a thickness and a slant, each of them said or not, at `thing(...)`.

    Behind them: what is no digit of any kind, and then each kind of NOT_DIGITS.
    """
    sentences, claims = [], []
    for digit, thickness, slant in itertools.product(range(-1, 10), range(-1, len(THICKNESS)), range(-1, len(SLANT))):
        sentences += phrasings(digit, thickness, slant)
        claims.append(
            (IS_DIGIT if digit == -1 else 1 << digit)
            + (1 << FIRST_THICKNESS + thickness if thickness >= 0 else 0)
            + (1 << FIRST_SLANT + slant if slant >= 0 else 0)
        )
    for kind, phrases in enumerate((NO_DIGIT, *NOT_DIGITS.values()), start=-1):
        sentences += itertools.islice(itertools.cycle(phrases), PHRASINGS)
        claims.append(IS_NONE if kind == -1 else 1 << FIRST_KIND + kind)
    return Captions(sentences, claims, described=True)


def thing(digit, thickness=-1, slant=-1):
    """The place of a combination in `described_captions`; -1 is unsaid. Numbers or tensors of numbers."""
    return ((digit + 1) * (len(THICKNESS) + 1) + thickness + 1) * (len(SLANT) + 1) + slant + 1


def things_of_cells() -> Tensor:
    """The things that name digit, thickness and slant, in the order of the cells: int64 [90]."""
    return thing(*torch.cartesian_prod(torch.arange(10), torch.arange(3), torch.arange(3)).T)


NO_DIGIT_THING = thing(10)  # behind the nines; the kinds follow


def things_of_no_digits() -> Tensor:
    """The things that say that there is no digit: of any kind, then of each kind. int64 [1 + kinds]."""
    return NO_DIGIT_THING + torch.arange(1 + len(NOT_DIGITS))


def phrasings(digit: int, thickness: int, slant: int) -> list[str]:
    """PHRASINGS sentences that say this, the same ones every time; -1 is unsaid."""
    said = [THICKNESS_WORDS[THICKNESS[thickness]]] * (thickness >= 0) + [SLANT_WORDS[SLANT[slant]]] * (slant >= 0)
    nouns, heads = (ANY_NOUNS, ANY_HEADS) if digit == -1 else (NOUNS, HEADS)
    names = {"word": DIGIT_WORDS[digit], "numeral": digit}
    generator = random.Random(f"{digit} {thickness} {slant}")
    sentences = []
    for _ in range(PHRASINGS):
        if generator.random() < 0.4:  # the number 7, upright, in fine strokes
            parts = [generator.choice(phrases) for _, phrases in said]
            generator.shuffle(parts)
            text = ", ".join([generator.choice(heads).format(**names), *parts])
        else:  # a bold seven leaning to the right
            before, behind = [], []
            for adjectives, phrases in said:
                is_adjective = generator.random() < 0.5
                (before if is_adjective else behind).append(generator.choice(adjectives if is_adjective else phrases))
            generator.shuffle(before)
            generator.shuffle(behind)
            noun = generator.choice(nouns).format(**names)
            text = " ".join(["a", ", ".join(before), noun, " and ".join(behind)])
            text = generator.choice(FRAMES).format(with_article(" ".join(text.split())))
        sentences.append(text)
    return sentences


# ---- what is true of digits, and what to say of them ----


def facts_of(digits: Tensor, thickness: Tensor, slant: Tensor) -> tuple[Tensor, Tensor]:
    """Digits [B], thickness in pixels [B] and slant in radians [B] -> the facts, int32 [B], as in `Truth`; and in which
    cells the images lie, int64 [B], places in a flat [10, 3, 3]."""
    facts, cells = (1 << digits) + IS_DIGIT, digits
    for first, values, bounds in (
        (FIRST_THICKNESS, thickness, THICKNESS_BOUNDS),
        (FIRST_SLANT, slant, SLANT_BOUNDS),
    ):
        step, is_outer = grade(values, bounds)
        facts = facts + (1 << first + step) + is_outer * (1 << first + 3 + step // 2)
        cells = cells * 3 + step
    return facts.int(), cells


def things_of(digits: Tensor, thickness: Tensor, slant: Tensor) -> Tensor:
    """The same -> things to say of each image, int64 [B], drawn at random. What lies close to a bound is unsaid."""
    names = [digits]
    for values, bounds, band in (
        (thickness, THICKNESS_BOUNDS, THICKNESS_BAND),
        (slant, SLANT_BOUNDS, SLANT_BAND),
    ):
        step, is_outer = grade(values, bounds)
        says_outer = is_outer & (from_bounds(values, bounds[::3]) >= band)
        says_outer &= torch.rand(values.shape, device=values.device) < SAID_OUTER
        name = torch.where(says_outer, 3 + step // 2, step)
        names.append(torch.where(from_bounds(values, bounds[1:3]) >= band, name, -1))
    is_said = torch.rand(3, len(digits), device=digits.device) < SAID
    return thing(*(torch.where(said, name, -1) for said, name in zip(is_said, names, strict=True)))


def unknown_claims(unseen: Tensor) -> Tensor:
    """The cells never trained, bool [10, 3, 3] -> for each cell the claims that are unknown there, int32 [10, 3, 3].

    They differ from the cell in one attribute, and lead into an unseen cell: no image could show them to be true there,
    so no image of this cell may teach that they are false. (All other wrong claims do count.)
    """
    unknown = torch.zeros(10, 3, 3, dtype=torch.int32)
    for digit, thickness, slant in unseen.nonzero().tolist():
        unknown[digit, :, slant] |= step_bits(FIRST_THICKNESS, thickness)
        unknown[digit, thickness, :] |= step_bits(FIRST_SLANT, slant)
    return unknown


def step_bits(first: int, step: int) -> int:
    """A step's statements: its own, and for the lower and the upper one that of the outer half."""
    return 1 << first + step | (step != 1) << first + 3 + step // 2
