"""From a sentence back to its claims, and from a description to a short caption: for pictures, scripts and the page."""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from attributes import ATTRIBUTES, COMBINATIONS, GRADE_OF_BIN
from captions import DIGIT_WORDS, LABEL_ID, LABELS, NO_DIGIT, OUTLIERS, UNSAID, multi_hot, with_article, words_of
from my_dataset import Batch

NEGATIONS = {"not", "cannot", "no", "non", "never", "neither", "nor", "without", "except", "but", "nothing", "none"}
NEGATIONS |= {"other", "rather", "instead", "hardly", "unlike", "excluding", "isnt"}


@functools.cache
def _phrases() -> list[tuple[str, str]]:
    """Every phrase, as words with a space around, with the label that it claims; the longest first."""
    phrases = [(word, word) for word in DIGIT_WORDS] + [(phrase, "no digit") for phrase in NO_DIGIT]
    phrases += [(phrase, kind) for kind, own in OUTLIERS.items() for phrase in own]
    for attribute in ATTRIBUTES:
        phrases += [(phrase, grade) for grade, own in attribute.words.items() for phrase in (grade, *own[0], *own[1])]
    phrases = [(f" {' '.join(words_of(phrase))} ", label) for phrase, label in phrases]
    return sorted(phrases, key=lambda phrase: -len(phrase[0]))


def parse_claims(text: str) -> Tensor:
    """A sentence -> its claims bool [S], by the words and phrases of our captions.

    None are set if it has none of them, negates, or names several digits: "not a seven" is not understood.
    """
    rest, claims = f" {' '.join(words_of(text))} ", multi_hot()
    for phrase, label in _phrases():  # a long phrase hides the words in it: "as if with a thin pen"
        if phrase in rest:
            claims[LABEL_ID[label]] = True
            rest = rest.replace(phrase, " | ")
    is_negated = any(word in NEGATIONS or word.endswith("n't") for word in rest.split())
    is_one_digit = claims[: len(DIGIT_WORDS)].sum() <= 1  # "seven or eight" is not understood either
    return claims if is_one_digit and not is_negated else multi_hot()


def short_caption(digit: int, grades: Sequence[int]) -> str:
    """A description in few words: "a thick seven leaning left", "an upright digit". UNSAID is allowed."""
    before, behind = [], []
    for attribute, grade in zip(ATTRIBUTES, grades, strict=True):
        if grade != UNSAID:
            name = attribute.grades[grade]
            (behind if name.startswith("leaning") else before).append(name)
    noun = "digit" if digit == UNSAID else DIGIT_WORDS[digit]
    return with_article(" ".join(["a", *before, noun, *behind]))


def combination_caption(combination: int) -> str:
    """`short_caption` of a combination, by its id."""
    digit, *bins = torch.unravel_index(torch.tensor(combination), COMBINATIONS)
    return short_caption(int(digit), [GRADE_OF_BIN[bin] for bin in bins])


def format_values(values: Tensor) -> str:
    """The values [A] of one image as text: "2.5 px, +0.30 rad"."""
    return ", ".join(one.format.format(value) for one, value in zip(ATTRIBUTES, values.tolist(), strict=True))


def format_labels(vector: Tensor) -> str:
    """A multi-hot vector [S] as text, without implied labels: "four, very thin, leaning left"."""
    names = [name for name, is_set in zip(LABELS, vector.tolist(), strict=True) if is_set]
    implied = {"a digit", "no digit"}
    for lowest, low, _, high, highest in (attribute.grades for attribute in ATTRIBUTES):
        implied |= {low for extreme, low in ((lowest, low), (highest, high)) if extreme in names}
    return ", ".join([name for name in names if name not in implied] or names)


def describe_batch(batch: Batch) -> list[str]:
    """A line of text for each pair of a batch."""
    lines, (positive, _) = [], batch.labels.match()
    for i, text in enumerate(batch.texts.strings()):
        others = [str(j) for j in positive[:, i].nonzero().flatten().tolist() if j != i]
        also = f"true also of {', '.join(others)}" if others else "true of no other"
        lines.append(f"{i}: image of {format_labels(batch.labels.facts[i])} <-> {text!r}, {also}")
    return lines
