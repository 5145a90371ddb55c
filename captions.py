"""What is said of an image: words, templates, the captions of a batch, and which of them are true of which images.

Kinds of captions: "digit", a caption names the digit; "attributes", it names any part of digit, thickness and slant
(attributes.py), or says that the image shows no digit (an outlier, data/outliers.py); "scenes" (scenes.py). What is
true of an image (facts) and what a caption says (claims) are multi-hot vectors over LABELS: a caption is true if all
its claims are facts.
"""

import functools
import itertools
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from attributes import ATTRIBUTES, BIN_GRADES, GRADE_OF_BIN, GRADES, all_combinations

DATA = Path(__file__).parent / "data"
DIGIT_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


class Texts(NamedTuple):
    """B texts as places in a list: text b is `sentences[index[b]]`. A long list is then tokenized only once."""

    sentences: tuple[str, ...]
    index: Tensor  # int64 [B]

    def strings(self) -> list[str]:
        return [self.sentences[i] for i in self.index.tolist()]


# ---- words ----

# A number with its sign and decimals, or a word with its apostrophes.
TOKEN = re.compile(r"[-+]?\d+(?:[.,]\d+)*\w*|[^\W\d_]+(?:'[^\W\d_]+)*")


def words_of(text: str) -> list[str]:
    """The words of a text in lower case. A digit that stands alone is its word: "7" and "seven" are one.

    Hyphens and all other punctuation separate words. A longer number is one word, and no digit: 07, 7th, 7.0, 7,0, -7.
    """
    text = text.lower().replace("\u2019", "'").replace("\u2212", "-")  # typographic apostrophe and minus
    words = TOKEN.findall(re.sub(r"(?<=\w)-", " ", text))  # "left-leaning" are two words, "-7" is one
    return [DIGIT_WORDS[int(word)] if re.fullmatch("[0-9]", word) else word for word in words]


def with_article(text: str) -> str:
    """'a' before a vowel's sound becomes 'an': an eight, an 8, an upright seven."""
    return re.sub(r"\b([Aa]) (?=(?!one\b)[aeiou8])", r"\1n ", text)


# ---- captions that name the digit: {word} stands for zero ... nine, {numeral} for 0 ... 9 ----

# One sentence a line, for the language models of text_encoder_plus.py.
TRAIN_TEMPLATES = tuple((DATA / "templates.txt").read_text().splitlines())


def fill_templates(templates: Sequence[str]) -> tuple[str, ...]:
    """Every template with every digit: digit d in template t stands at d * len(templates) + t."""
    return tuple(
        with_article(template.format(word=word, numeral=digit))
        for digit, word in enumerate(DIGIT_WORDS)
        for template in templates
    )


# ---- captions that name attributes: their words stand in attributes.py ----

FRAMES = ("{}", "{}", "{}", "a photo of {}", "a scan of {}", "the picture shows {}", "this is {}", "I can read {}")
NOUNS = ("{word}", "{word}", "{numeral}", "handwritten {word}", "handwritten {numeral}")
HEADS = ("{word}", "{numeral}", "the digit {word}", "the number {numeral}", "the number {word}")
ANY_NOUNS = ("digit", "number", "numeral", "handwritten digit", "handwritten number")
ANY_HEADS = ("a digit", "a number", "a numeral", "a single digit", "some number")

# Outliers by kind, with what is said of them. data/outliers.py makes them.
OUTLIERS = {
    kind: tuple(phrases.split("; "))
    for kind, phrases in (line.split(" = ") for line in (DATA / "outliers.txt").read_text().splitlines())
}
NO_DIGIT = ("not a digit", "this is not a digit", "not one digit", "anything but one digit")

PARAPHRASES = 24  # sentences for each description
P_MENTION = 0.7  # probability that a caption names an attribute
P_EXTREME = 0.5  # probability that it then says "very thin" where that is true, and not just "thin"
UNSAID = -1  # in place of a digit or a grade


# ---- what is true: multi-hot vectors over LABELS, bool [B, S] ----

LABELS = (
    *DIGIT_WORDS,
    *OUTLIERS,
    "a digit",
    "no digit",
    *itertools.chain.from_iterable(attribute.grades for attribute in ATTRIBUTES),
)
LABEL_ID = {name: i for i, name in enumerate(LABELS)}


def multi_hot(*names: str) -> Tensor:
    """bool [S]."""
    vector = torch.zeros(len(LABELS), dtype=torch.bool)
    vector[[LABEL_ID[name] for name in names]] = True
    return vector


def match(facts: Tensor, claims: Tensor, unknown: Tensor) -> tuple[Tensor, Tensor]:
    """Which texts are true of which images: facts and unknown bool [B, S], claims [T, S] -> positive, ignored [B, T].

    Positive: all claims of the text are facts of the image. Ignored: every claim that is not a fact is unknown, so that
    training never shows whether the text is true.
    """
    claims = claims.float().T  # [S, T]
    positive = (~facts).float() @ claims == 0
    ignored = ~positive & ((~facts & ~unknown).float() @ claims == 0)
    return positive, ignored


class Labels(NamedTuple):
    """The labels of B images and B texts, which say which of them match."""

    facts: Tensor  # bool [B, S], of the images
    claims: Tensor  # bool [B, S], of the texts
    unknown: Tensor  # bool [B, S], of the images

    def match(self, images: Tensor | slice = slice(None), texts: Tensor | slice = slice(None)) -> tuple[Tensor, Tensor]:
        """`match` of these images and these texts."""
        return match(self.facts[images], self.claims[texts], self.unknown[images])


def one_hot_labels(ids: Tensor) -> Labels:
    """Pairs belong together where their ids int64 [B] are equal: for data with neither facts nor claims."""
    distinct, place = ids.unique(return_inverse=True)
    one_hot = place[:, None] == torch.arange(len(distinct), device=ids.device)
    return Labels(one_hot, one_hot, torch.zeros_like(one_hot))


def digit_facts(digits: Tensor) -> Tensor:
    """Digits [B] -> the label of each digit alone, bool [B, S]."""
    return digits[:, None] == torch.arange(len(LABELS), device=digits.device)


def image_facts(digits: Tensor, values: Tensor) -> Tensor:
    """Digits [B] and attribute values [B, A] -> all that is true of the images, bool [B, S]."""
    facts = [digit_facts(digits)[:, : LABEL_ID["a digit"]]]
    yes = torch.ones_like(digits, dtype=torch.bool)[:, None]
    facts += [yes, ~yes]  # "a digit", "no digit"
    for attribute, column in zip(ATTRIBUTES, values.T, strict=True):
        grade = attribute.grade(column)  # a very thin digit is thin too
        facts.append(torch.stack([grade == 0, grade <= 1, grade == 2, grade >= 3, grade == 4], dim=1))
    return torch.cat(facts, dim=1)


def unknown_labels(unseen: Tensor) -> Tensor:
    """Unseen combinations, bool of shape COMBINATIONS -> for each combination the labels unknown there, bool [C, S].

    These are the labels that would turn it into an unseen combination by a change of one attribute, of the same digit.
    No training image can show them to be true there, so none may teach that they are false.
    """
    unknown = torch.zeros(*unseen.shape, len(LABELS), dtype=torch.bool)
    for place in unseen.nonzero().tolist():
        for side, (attribute, bin) in enumerate(zip(ATTRIBUTES, place[1:], strict=True), start=1):
            neighbours = (*place[:side], slice(None), *place[side + 1 :])
            unknown[neighbours] |= multi_hot(*(attribute.grades[grade] for grade in BIN_GRADES[bin]))
    return unknown.flatten(end_dim=-2)


# ---- all captions of a kind ----


class Part(NamedTuple):
    """One thing that captions can name, such as the digit or the thickness. Its G alternatives exclude each other.

    `ids` int64 [G]: for each alternative the description that names it and nothing else. `facts` bool [G, S]: the
    labels that it makes true.
    """

    ids: Tensor
    facts: Tensor

    def shown_by(self, labels: Labels) -> tuple[Tensor, Tensor]:
        """Positive, ignored bool [B, G]: the alternative that each image shows, and those that are unknown there.

        A very thin image shows "very thin", not "thin", though both are true. An outlier shows no alternative.
        """
        part_labels = self.facts.any(dim=0)  # [S]
        positive = ~((labels.facts[:, None] ^ self.facts) & part_labels).any(dim=2)
        _, ignored = match(labels.facts, self.facts, labels.unknown)
        return positive, ignored

    def allowed_by(self, claims: Tensor) -> Tensor:
        """Claims of digits [T, S] -> the alternatives that each text allows, bool [G, T].

        "Thin" allows very thin and thin; a text that does not name this part allows all.
        """
        part_labels = self.facts.any(dim=0)  # [S]
        return match(self.facts, claims & part_labels, torch.zeros_like(self.facts))[0]


class Captions:
    """All captions: C descriptions, each in the same number of paraphrases.

    `kind` is their name in --captions. `sentences` [C * paraphrases]: paraphrase p of description c stands at
    c * paraphrases + p. `claims` bool [C, S]. `parts` are what they can name: the digit, then the grade of each
    attribute. `digit_ids` int64 [10]: the descriptions that name a digit and nothing else.
    """

    def __init__(self, kind: str, sentences: Sequence[str], claims: Tensor, parts: Sequence[Part], digit_ids: Tensor):
        self.kind, self.sentences, self.claims, self.parts = kind, tuple(sentences), claims, tuple(parts)
        self.digit_ids = digit_ids
        self.paraphrases = len(self.sentences) // max(1, len(claims))

    def sample(self, ids: Tensor) -> Texts:
        """Descriptions [B] -> a paraphrase of each at random."""
        which = torch.randint(self.paraphrases, ids.shape, device=ids.device)
        return Texts(self.sentences, ids * self.paraphrases + which)

    def all_paraphrases(self, ids: Tensor) -> Texts:
        """Descriptions [T] -> all their paraphrases, one description after the other: T * paraphrases texts."""
        places = ids[:, None] * self.paraphrases + torch.arange(self.paraphrases, device=ids.device)
        return Texts(self.sentences, places.flatten())


@functools.cache
def digit_captions(templates: tuple[str, ...]) -> Captions:
    """Description d is the digit d."""
    digits = torch.arange(10)
    parts = [Part(digits, digit_facts(digits))]
    return Captions("digit", fill_templates(templates), digit_facts(digits), parts, digits)


def own_captions(classes: Sequence[str]) -> Captions:
    """Description k is the name of class k; what else the texts of own data say is not kept."""
    no_labels = torch.zeros(len(classes), 0, dtype=torch.bool)
    return Captions("own", classes, no_labels, parts=(), digit_ids=torch.arange(len(classes)))


@functools.cache
def attribute_captions() -> Captions:
    """Every combination of a digit and a grade of each attribute, each said or not, at `description_id`.

    Followed by those of outliers, at OUTLIER_IDS: first "no digit", then one for each kind.
    """
    sentences, claims = [], []
    grades = [range(UNSAID, GRADES)] * len(ATTRIBUTES)
    for digit, *said in itertools.product(range(UNSAID, 10), *grades):
        sentences += paraphrase(digit, said)
        names = [one.grades[grade] for one, grade in zip(ATTRIBUTES, said, strict=True) if grade != UNSAID]
        claims.append(multi_hot("a digit" if digit == UNSAID else DIGIT_WORDS[digit], *names))
    for kind, phrases in {"no digit": NO_DIGIT, **OUTLIERS}.items():
        sentences += itertools.islice(itertools.cycle(phrases), PARAPHRASES)
        claims.append(multi_hot(kind))
    digits = description_id(torch.arange(10))
    parts = [Part(digits, torch.stack([multi_hot(word, "a digit") for word in DIGIT_WORDS]))]
    for i, attribute in enumerate(ATTRIBUTES):
        grades = [UNSAID] * len(ATTRIBUTES)
        grades[i] = torch.arange(GRADES)
        low, less, middle, more, high = attribute.grades
        shown = [multi_hot(*names) for names in ((low, less), (less,), (middle,), (more,), (more, high))]
        parts.append(Part(description_id(UNSAID, grades), torch.stack(shown)))
    return Captions("attributes", sentences, torch.stack(claims), parts, digits)


def description_id(digit, grades: Sequence = ()):
    """The place of a description in `attribute_captions`. Numbers, or tensors of numbers; UNSAID is allowed."""
    place = digit + 1
    for grade in [*grades, *[UNSAID] * (len(ATTRIBUTES) - len(grades))]:
        place = place * (GRADES + 1) + grade + 1
    return place


def combination_description_ids() -> Tensor:
    """The descriptions that name the digit and all attributes, in the order of the combinations: int64 [C]."""
    ids = [description_id(digit, [GRADE_OF_BIN[bin] for bin in bins]) for digit, *bins in all_combinations()]
    return torch.tensor(ids)


def combination_claims() -> Tensor:
    """What these descriptions say: bool [C, S]."""
    return attribute_captions().claims[combination_description_ids()]


OUTLIER_IDS = torch.arange(1 + len(OUTLIERS)) + description_id(10)  # behind the nines; the first is generic


def paraphrase(digit: int, grades: Sequence[int]) -> list[str]:
    """PARAPHRASES sentences for a description, the same ones every time."""
    said = [tuple(one.words.values())[grade] for one, grade in zip(ATTRIBUTES, grades, strict=True) if grade != UNSAID]
    nouns, heads = (ANY_NOUNS, ANY_HEADS) if digit == UNSAID else (NOUNS, HEADS)
    names = {"word": DIGIT_WORDS[digit], "numeral": digit}
    generator = random.Random(f"{digit} {grades}")
    sentences = []
    for _ in range(PARAPHRASES):
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


def sample_descriptions(digits: Tensor, values: Tensor) -> Tensor:
    """Digits [B] and attribute values [B, A] -> for each image a description that is true of it, int64 [B].

    Each part is said with probability P_MENTION; an attribute close to an edge is left out.
    """
    names = [digits]
    for attribute, column in zip(ATTRIBUTES, values.T, strict=True):
        grade = attribute.grade(column)
        is_extreme = (grade == 0) | (grade == GRADES - 1)
        says_extreme = is_extreme & (attribute.distance_to_edges(column, extremes=True) >= attribute.margin)
        says_extreme &= torch.rand(column.shape, device=column.device) < P_EXTREME
        name = torch.where(says_extreme, grade, attribute.bin(column) + GRADE_OF_BIN[0])
        names.append(torch.where(attribute.distance_to_edges(column) >= attribute.margin, name, UNSAID))
    is_said = torch.rand(len(names), len(digits), device=digits.device) < P_MENTION
    digit, *grades = (torch.where(said, name, UNSAID) for said, name in zip(is_said, names, strict=True))
    return description_id(digit, grades)
