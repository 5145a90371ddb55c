"""From a sentence back to its claims, and from a description to a short caption: for pictures, scripts and the page."""

import functools
import re
from collections.abc import Sequence

import torch
from torch import Tensor

from attributes import ATTRIBUTES, COMBINATIONS, GRADE_OF_BIN
from captions import (
    CLAUSE_END,
    DIGIT_WORDS,
    HAN_DIGITS,
    LABEL_ID,
    LABELS,
    NEGATOR,
    NO_DIGIT,
    OUTLIERS,
    UNSAID,
    multi_hot,
    with_article,
    words_of,
)
from my_dataset import Batch

# What our captions do not say, so that a sentence with it is not understood.
OTHER_NEGATIONS = {"cannot", "non", "不", "never", "neither", "nor", "without", "except", "nothing", "none", "other"}
OTHER_NEGATIONS |= {"rather", "instead", "hardly", "unlike", "excluding", "isnt", "非", "无", "没", "除"}


@functools.cache
def _phrases() -> list[tuple[str, str]]:
    """Every phrase, as words with a space around, with the label that it claims ("": none); the longest first."""
    phrases = [(word, word) for word in DIGIT_WORDS] + list(zip(HAN_DIGITS, DIGIT_WORDS, strict=True))
    phrases += [("一个", ""), ("一张", "")]  # "a", and not the digit one
    phrases += [(phrase, "no digit") for phrase in NO_DIGIT]
    phrases += [(phrase, kind) for kind, own in OUTLIERS.items() for phrase in own]
    for attribute in ATTRIBUTES:
        for grade, (adjectives, behind, chinese) in attribute.words.items():
            phrases += [(phrase, grade) for phrase in (grade, *adjectives, *behind, *chinese)]
    phrases = [(f" {' '.join(words_of(phrase))} ", label) for phrase, label in phrases]
    return sorted(phrases, key=lambda phrase: -len(phrase[0]))


def parse_claims(text: str) -> Tensor:
    """A sentence -> its claims bool [S], by the words and phrases of our captions.

    None are set if it has none of them, names several digits, or denies what captions do not: "not a thick seven" may
    mean a thin one, or another digit.
    """
    claims = []
    for clause in CLAUSE_END.split(text):
        rest = f" {' '.join(words_of(clause))} "
        for phrase, label in _phrases():  # a long phrase hides the words in it: "as if with a thin pen"
            rest = rest.replace(phrase, f" |{label}| ")
        said, *denied = NEGATOR.split(rest)
        claims += labels_in(said)
        names = labels_in(" ".join(denied))
        claims += [f"not {name}" for name in names]
        words = set(re.sub(r"\|.*?\|", "", " ".join([said, *denied])).split())
        is_understood = len(names) == len(denied) <= 1 and not words & OTHER_NEGATIONS
        if not is_understood or any(word.endswith("n't") for word in words) or not set(claims) <= LABEL_ID.keys():
            return multi_hot()
    is_one_digit = len(set(claims) & set(DIGIT_WORDS)) <= 1  # "seven or eight" is not understood either
    return multi_hot(*claims) if is_one_digit else multi_hot()


def labels_in(clause: str) -> list[str]:
    """The labels that stand in a clause, each between bars."""
    return [label for label in re.findall(r"\|(.*?)\|", clause) if label]


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
    for part in (DIGIT_WORDS, *(attribute.grades for attribute in ATTRIBUTES)):
        if set(part) & set(names):
            implied |= {f"not {name}" for name in part}
    return ", ".join([name for name in names if name not in implied] or names)


def describe_batch(batch: Batch) -> list[str]:
    """A line of text for each pair of a batch."""
    lines, (positive, _) = [], batch.labels.match()
    for i, text in enumerate(batch.texts.strings()):
        others = [str(j) for j in positive[:, i].nonzero().flatten().tolist() if j != i]
        also = f"true also of {', '.join(others)}" if others else "true of no other"
        lines.append(f"{i}: image of {format_labels(batch.labels.facts[i])} <-> {text!r}, {also}")
    return lines
