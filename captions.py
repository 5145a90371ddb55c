"""What is said of an image: the words, the templates, and the drawing of a caption for each image of a batch.

In a template {word} stands for zero ... nine and {numeral} for 0 ... 9.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

DIGIT_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


class Texts(NamedTuple):
    """B texts as places in a list: text b is `sentences[index[b]]`. A long list is then read by a model only once."""

    sentences: tuple[str, ...]
    index: Tensor  # int64 [B]

    def strings(self) -> list[str]:
        return [self.sentences[i] for i in self.index.tolist()]


def fill(template: str, digit: int) -> str:
    sentence = template.format(word=DIGIT_WORDS[digit], numeral=digit)
    return re.sub(r"\b([Aa]) (?=eight|8)", r"\1n ", sentence)  # an eight


def all_sentences(templates: Sequence[str]) -> tuple[str, ...]:
    """Every template filled with every digit: that of digit d and template t stands at d * len(templates) + t."""
    return tuple(fill(template, digit) for digit in range(10) for template in templates)


def draw_texts(digits: Tensor, sentences: tuple[str, ...]) -> Texts:
    """For each digit [B] one of its sentences, at random; `sentences` as `all_sentences` gives them."""
    templates = len(sentences) // 10
    drawn = torch.randint(templates, digits.shape, device=digits.device) if templates > 1 else 0
    return Texts(sentences, digits * templates + drawn)


TRAIN_TEMPLATES = (
    # statements
    "This is a handwritten digit {word}.",
    "The picture shows a {word}.",
    "The number here is {word}.",
    "I can read a {word}.",
    "You are looking at the digit {word}.",
    # photos, scans and drawings
    "a photo of the digit {word}",
    "a photo of a handwritten {word}",
    "an image of the number {word}",
    "a scan of the number {word}",
    "a low resolution scan of a {word}",
    "a small grey picture of a {word}",
    "a child's drawing of the number {word}",
    "white on black: the digit {word}",
    # neat and sloppy hands
    "a sloppy handwritten {word}",
    "a neatly written {word}",
    "a {word} scribbled in a hurry",
    "a slanted, thin {word}",
    "the number {word} in thick strokes",
    # where digits are found
    "a {word} from a postal code",
    "a {word} on a bank cheque",
    "the digit {word} in a phone number",
    # answers
    "Which digit is it? It is {word}.",
    "Question: what number is shown? Answer: {word}.",
    "My guess would be {word}.",
    # the numeral instead of the word
    "This is a handwritten digit {numeral}.",
    "a photo of the digit {numeral}",
    "a scan of the number {numeral}",
    "a sloppy handwritten {numeral}",
    "The picture shows a {numeral}.",
    "a {numeral} on a bank cheque",
    "Question: what number is shown? Answer: {numeral}.",
    "handwriting that reads {numeral}",
)

# Never trained on: what is measured with these is what a sentence of the user's own will give.
HELD_OUT_TEMPLATES = (
    "It looks like a {word} to me.",
    "the numeral {word} as a thumbnail",
    "a crooked {word} drawn with a marker",
    "an old form with a {word} filled in",
    "What does it say? Clearly {word}!",
    "black and white handwriting, digit {word}",
    "a badly photographed {word} on paper",
    "a messy {numeral}",
    "The correct label is {numeral}.",
    "a black and white image of a {numeral}",
)

BARE_TEMPLATES = ("{word}", "{numeral}")  # not trained on either by `plus`

# What each text encoder is trained on, and what stands for a digit when images are classified by caption.
TEMPLATES = {"table": ("{word}",), "plus": TRAIN_TEMPLATES}

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
