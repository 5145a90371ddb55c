"""What is said of an image: words, templates, the captions of a batch, and which of them are true of which images.

Kinds of captions: "digit", a caption names the digit; "attributes", it names any part of digit, thickness and slant
(attributes.py), or says that the image shows no digit (an outlier, data/outliers.py); "scenes" (scenes.py). What is
true of an image (facts) and what a caption says (claims) are multi-hot vectors over LABELS: a caption is true if all
its claims are facts. An attribute has five grades in three bins: thin and very thin are one bin, and negated together.

A description is what a caption says; a paraphrase is one sentence for it.
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

from attributes import ATTRIBUTES, BIN_GRADES, BINS, GRADE_OF_BIN, GRADES, all_combinations

DATA = Path(__file__).parent / "data"
DIGIT_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
WORD_OF_NUMERAL = {str(digit): word for digit, word in enumerate(DIGIT_WORDS)}


class Texts(NamedTuple):
    """B texts as places in a list: text b is `sentences[index[b]]`. A long list is then tokenized only once."""

    sentences: tuple[str, ...]
    index: Tensor  # int64 [B]

    def strings(self) -> list[str]:
        return [self.sentences[i] for i in self.index.tolist()]


# ---- words ----

# A Han character; a number with its sign and decimals; or a word with its apostrophes.
HAN, LETTER = "[\u4e00-\u9fff]", r"[^\W\d_\u4e00-\u9fff]"
TOKEN = re.compile(rf"{HAN}|[-+]?\d+(?:[.,]\d+)*[^\W\u4e00-\u9fff]*|{LETTER}+(?:'{LETTER}+)*")
# Of words joined by spaces: what negates all behind it, up to a CLAUSE_END. (Of 不是 the 是 counts as negated.)
NEGATOR = re.compile(r"(?<!\S)(?:not|no|anything but|不(?= 是))(?!\S)")
CLAUSE_END = re.compile(r"[,;:.](?=\s|$)|[，；：。、]")


def words_of(text: str) -> list[str]:
    """The words of a text in lower case. A digit that stands alone is its word: "7" and "seven" are one.

    Hyphens and all other punctuation separate words. A longer number is one word, and no digit: 07, 7th, 7.0, 7,0, -7.
    Each Han character is a word.
    """
    text = text.lower().replace("\u2019", "'").replace("\u2212", "-")  # typographic apostrophe and minus
    words = TOKEN.findall(re.sub(r"(?<=\w)-", " ", text))  # "left-leaning" are two words, "-7" is one
    return [WORD_OF_NUMERAL.get(word, word) for word in words]


def negated_words(text: str) -> list[tuple[str, bool]]:
    """The words of a text, each with whether it is negated: it stands behind a NEGATOR, before the next CLAUSE_END."""
    words = []
    for clause in CLAUSE_END.split(text):
        own = words_of(clause)
        negator = NEGATOR.search(" ".join(own))
        first = len(negator.string[: negator.end()].split()) if negator else len(own)  # of the negated words
        words += [(word, i >= first) for i, word in enumerate(own)]
    return words


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


# ---- captions that name attributes: their words stand in attributes.py. A third of them are Chinese ----

FRAMES = ("{}", "{}", "{}", "a photo of {}", "a scan of {}", "the picture shows {}", "this is {}", "I can read {}")
NOUNS = ("{word}", "{word}", "{numeral}", "handwritten {word}", "handwritten {numeral}")
HEADS = ("{word}", "{numeral}", "the digit {word}", "the number {numeral}", "the number {word}")
ANY_NOUNS = ("digit", "number", "numeral", "handwritten digit", "handwritten number")
ANY_HEADS = ("a digit", "a number", "a numeral", "a single digit", "some number")
NOT_DIGIT = ("not a {word}", "no {word}", "not a {numeral}", "anything but a {word}")
NOT_FRAMES = ("{}", "this is {}")

HAN_DIGITS = "零一二三四五六七八九"
HAN_FRAMES = ("{}", "{}", "一个{}", "一个{}", "这是{}", "图中是一个{}", "照片里是{}", "一张{}的图片")
HAN_NOUNS = ("{han}", "{han}", "{numeral}", "数字{han}", "手写的{han}")
HAN_ANY_NOUNS = ("数字", "手写数字")
HAN_NOT_DIGIT = ("不是{han}", "不是{numeral}", "绝不是{han}")

# Outliers by kind, with what is said of them. data/outliers.py makes them.
OUTLIERS = {
    kind: tuple(phrases.split("; "))
    for kind, phrases in (line.split(" = ") for line in (DATA / "outliers.txt").read_text("utf-8").splitlines())
}
NO_DIGIT = ("not a digit", "this is not a digit", "no digit", "anything but a digit", "不是数字", "这不是数字")

PARAPHRASES = 24  # sentences for each description
CHINESE = 8  # of them; the last ones
P_MENTION = 0.7  # probability that a caption names an attribute
P_EXTREME = 0.5  # probability that it then says "very thin" where that is true, and not just "thin"
P_NOT = 0.1  # probability that it denies something false instead of naming what is true: "not a seven", "not thick"
NEVER_NEGATED = ("two", "seven", "upright")  # in training, to test whether "not" carries over to them
UNSAID = -1  # in place of a digit or a grade
DIGIT_CHOICES, GRADE_CHOICES = 10 + 10, GRADES + BINS  # a digit, or not a digit; a grade, or not a bin of grades


# ---- what is true: multi-hot vectors over LABELS, bool [B, S] ----

AFFIRMED = (
    *DIGIT_WORDS,
    *OUTLIERS,
    "a digit",
    "no digit",
    *itertools.chain.from_iterable(attribute.grades for attribute in ATTRIBUTES),
)
NEGATABLE = (*DIGIT_WORDS, *itertools.chain.from_iterable(attribute.bins for attribute in ATTRIBUTES))
LABELS = (*AFFIRMED, *(f"not {name}" for name in NEGATABLE))
LABEL_ID = {name: i for i, name in enumerate(LABELS)}
# Where these x stand in LABELS, in the order of the labels "not x". (Slices: places in a list are copied to a GPU.)
NEGATABLE_PLACES = [slice(10), *(slice(LABEL_ID[one.bins[0]], LABEL_ID[one.bins[-1]] + 1) for one in ATTRIBUTES)]


def multi_hot(*names: str) -> Tensor:
    """The vector over LABELS with these names set: bool [S]."""
    vector = torch.zeros(len(LABELS), dtype=torch.bool)
    vector[[LABEL_ID[name] for name in names]] = True
    return vector


def with_negations(labels: Tensor) -> Tensor:
    """Labels of images of a digit, bool [..., S] -> the same, and "not x" for each x that is not among them."""
    return torch.cat([labels[..., : len(AFFIRMED)], *(~labels[..., own] for own in NEGATABLE_PLACES)], dim=-1)


def match(facts: Tensor, claims: Tensor, unknown: Tensor) -> tuple[Tensor, Tensor]:
    """Which texts are true of which images: facts and unknown bool [B, S], claims [T, S] -> positive, ignored [B, T].

    Positive: all claims of the text are facts of the image. Ignored: every claim that is not a fact is unknown, so that
    training must not treat the text as false.
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
    return with_negations(torch.cat(facts, dim=1))


def unknown_labels(unseen: Tensor) -> Tensor:
    """Unseen combinations, bool of shape COMBINATIONS -> for each combination the labels unknown there, bool [C, S].

    A grade is unknown where changing to it, all else equal, gives an unseen combination: no training image can show it
    to be true there, so none may teach that it is false.
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
    labels that it makes true, without the negated ones.
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
        """Claims of texts [T, S] -> the alternatives that each text allows, bool [G, T].

        "Thin" allows very thin and thin, "not thin" all others; a text that does not name this part allows all.
        """
        part_labels = self.facts.any(dim=0)  # [S]
        part_labels[len(AFFIRMED) :] = torch.cat([part_labels[own] for own in NEGATABLE_PLACES])  # and "not x" of each
        return match(with_negations(self.facts), claims & part_labels, torch.zeros_like(self.facts))[0]


class Captions:
    """All captions: C descriptions, each in the same number of paraphrases.

    `kind` is their name in --captions. `sentences` [C * paraphrases]: paraphrase p of description c stands at
    c * paraphrases + p. `claims` bool [C, S]. `parts` are what they can name: the digit, then the grade of each
    attribute. `digit_ids` int64 [10]: the descriptions that name a digit and nothing else. The last `n_chinese`
    paraphrases of each description are Chinese.
    """

    def __init__(
        self,
        kind: str,
        sentences: Sequence[str],
        claims: Tensor,
        parts: Sequence[Part],
        digit_ids: Tensor,
        n_chinese: int = 0,
    ):
        self.kind, self.sentences, self.claims, self.parts = kind, tuple(sentences), claims, tuple(parts)
        self.digit_ids, self.n_chinese = digit_ids, n_chinese
        self.paraphrases = len(self.sentences) // max(1, len(claims))

    @functools.cache  # noqa: B019  (they live as long as the program)
    def in_language(self, is_chinese: bool) -> "Captions":
        """The same descriptions in one language alone."""
        n_english = self.paraphrases - self.n_chinese
        sentences = [x for i, x in enumerate(self.sentences) if (i % self.paraphrases >= n_english) == is_chinese]
        return Captions(self.kind, sentences, self.claims, self.parts, self.digit_ids)

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
    """Every combination of a digit and a grade of each attribute, each said, negated or not said, at `description_id`.

    Followed by those of outliers, at OUTLIER_IDS: first "no digit", then one for each kind.
    """
    sentences, claims = [], []
    choices = [[None, *one.grades, *(f"not {name}" for name in one.bins)] for one in ATTRIBUTES]
    digits = [None, *DIGIT_WORDS, *(f"not {word}" for word in DIGIT_WORDS)]
    for names in itertools.product(digits, *choices):
        sentences += paraphrase(*names)
        claims.append(multi_hot(*([] if names[0] in DIGIT_WORDS else ["a digit"]), *filter(None, names)))
    for kind, phrases in {"no digit": NO_DIGIT, **OUTLIERS}.items():
        is_han = [bool(re.search(HAN, phrase)) for phrase in phrases]
        for language, count in ((False, PARAPHRASES - CHINESE), (True, CHINESE)):
            own = [phrase for phrase, han in zip(phrases, is_han, strict=True) if han == language]
            sentences += itertools.islice(itertools.cycle(own), count)
        claims.append(multi_hot(kind))
    digits = description_id(torch.arange(10))
    parts = [Part(digits, torch.stack([multi_hot(word, "a digit") for word in DIGIT_WORDS]))]
    for i, attribute in enumerate(ATTRIBUTES):
        grades = [UNSAID] * len(ATTRIBUTES)
        grades[i] = torch.arange(GRADES)
        low, less, middle, more, high = attribute.grades
        shown = [multi_hot(*names) for names in ((low, less), (less,), (middle,), (more,), (more, high))]
        parts.append(Part(description_id(UNSAID, grades), torch.stack(shown)))
    return Captions("attributes", sentences, torch.stack(claims), parts, digits, CHINESE)


def description_id(digit, grades: Sequence = ()):
    """The place of a description in `attribute_captions`. Numbers, or tensors of numbers; UNSAID is allowed.

    A digit of 10 + d stands for "not d", a grade of GRADES + b for "not in bin b".
    """
    place = digit + 1
    for grade in [*grades, *[UNSAID] * (len(ATTRIBUTES) - len(grades))]:
        place = place * (GRADE_CHOICES + 1) + grade + 1
    return place


def combination_description_ids() -> Tensor:
    """The descriptions that name the digit and all attributes, in the order of the combinations: int64 [C]."""
    ids = [description_id(digit, [GRADE_OF_BIN[bin] for bin in bins]) for digit, *bins in all_combinations()]
    return torch.tensor(ids)


def combination_claims() -> Tensor:
    """What these descriptions say: bool [C, S]."""
    return attribute_captions().claims[combination_description_ids()]


# Behind all others: "no digit", then each kind.
OUTLIER_IDS = torch.arange(1 + len(OUTLIERS)) + description_id(DIGIT_CHOICES)


def paraphrase(digit: str | None, *grades: str | None) -> list[str]:
    """PARAPHRASES sentences for a description, the same ones every time: "seven", "not seven" or None; "thick" ..."""
    random_ = random.Random(f"{digit} {grades}")
    words = {name: own for attribute in ATTRIBUTES for name, own in attribute.words.items()}
    names = [name for name in grades if name]
    said = [words[name] for name in names if not name.startswith("not ")]
    denied = [words[name.removeprefix("not ")] for name in names if name.startswith("not ")]
    place = DIGIT_WORDS.index(digit.removeprefix("not ")) if digit else None
    names = {"word": DIGIT_WORDS[place], "han": HAN_DIGITS[place], "numeral": place} if digit else {}
    is_named, is_denied = digit in DIGIT_WORDS, bool(digit) and digit not in DIGIT_WORDS
    writers = [english] * (PARAPHRASES - CHINESE) + [chinese] * CHINESE
    return [write(names, is_named, is_denied, said, denied, random_) for write in writers]


def english(
    names: dict, is_named: bool, is_denied: bool, said: list[tuple], denied: list[tuple], random_: random.Random
) -> str:
    """A sentence. `names` are those of the digit that is named or denied, if any; what else is said and what else is
    denied are (adjectives, phrases, Chinese phrases) each."""
    choose = random_.choice
    not_digit = [choose(NOT_DIGIT).format(**names)] if is_denied else []
    clauses = [f"not {choose((*adjectives, *phrases))}" for adjectives, phrases, _ in denied]
    if not_digit and not said and not clauses and random_.random() < 0.5:  # "this is not a seven"
        return with_article(choose(NOT_FRAMES).format(*not_digit))
    if random_.random() < 0.4:  # "the number 7, upright, in fine strokes"
        parts = [choose(phrases) for _, phrases, _ in said]
        random_.shuffle(parts)
        text = ", ".join([choose(HEADS if is_named else ANY_HEADS).format(**names), *parts])
    else:  # "a bold seven leaning to the right"
        before, behind = [], []
        for adjectives, phrases, _ in said:
            is_adjective = random_.random() < 0.5
            (before if is_adjective else behind).append(choose(adjectives if is_adjective else phrases))
        random_.shuffle(before)
        random_.shuffle(behind)
        noun = choose(NOUNS if is_named else ANY_NOUNS).format(**names)
        text = " ".join(" ".join(["a", ", ".join(before), noun, " and ".join(behind)]).split())
        text = choose(FRAMES).format(text)
        if not_digit and random_.random() < 0.5:  # "a bold digit that is not a seven"
            text = f"{text} that is {not_digit.pop()}"
    return with_article(", ".join(join_clauses(text, not_digit + clauses, random_)))


def chinese(
    names: dict, is_named: bool, is_denied: bool, said: list[tuple], denied: list[tuple], random_: random.Random
) -> str:
    """The same in Chinese. 一个向左倾斜的七，粗体"""
    choose = random_.choice
    not_digit = [choose(HAN_NOT_DIGIT).format(**names)] if is_denied else []
    clauses = [f"不是{choose(phrases)}的" for _, _, phrases in denied]
    if not_digit and not said and not clauses and random_.random() < 0.5:  # 这不是七
        return choose(("{}", "这{}")).format(*not_digit)
    phrases = [choose(phrases) for _, _, phrases in said]
    random_.shuffle(phrases)
    n_before = random_.randint(0, len(phrases))
    noun = choose(HAN_NOUNS if is_named else HAN_ANY_NOUNS).format(**names)
    text = "".join(f"{phrase}的" for phrase in phrases[:n_before]) + noun
    text = "，".join([choose(HAN_FRAMES).format(text), *phrases[n_before:]])
    return "，".join(join_clauses(text, not_digit + clauses, random_))


def join_clauses(text: str, denied: list[str], random_: random.Random) -> list[str]:
    """The clauses of a sentence: what it denies stands behind the rest, or in front, in random order."""
    random_.shuffle(denied)
    return [*denied, text] if random_.random() < 0.3 else [text, *denied]


def sample_descriptions(digits: Tensor, values: Tensor) -> Tensor:
    """Digits [B] and attribute values [B, A] -> for each image a description that is true of it, int64 [B].

    Each part is said with probability P_MENTION; an attribute close to an edge is left out. Of those that are said,
    P_NOT are negated, but for NEVER_NEGATED: any other digit, or any other bin.
    """
    names = [negate_some(digits, DIGIT_WORDS, digits)]
    for attribute, column in zip(ATTRIBUTES, values.T, strict=True):
        grade = attribute.grade(column)
        is_extreme = (grade == 0) | (grade == GRADES - 1)
        says_extreme = is_extreme & (attribute.distance_to_edges(column, extremes=True) >= attribute.margin)
        says_extreme &= torch.rand(column.shape, device=column.device) < P_EXTREME
        own = attribute.bin(column)
        name = torch.where(says_extreme, grade, own + GRADE_OF_BIN[0])
        name = negate_some(name, attribute.bins, own, first=GRADES)
        names.append(torch.where(attribute.distance_to_edges(column) >= attribute.margin, name, UNSAID))
    is_said = torch.rand(len(names), len(digits), device=digits.device) < P_MENTION
    digit, *grades = (torch.where(said, name, UNSAID) for said, name in zip(is_said, names, strict=True))
    return description_id(digit, grades)


def negate_some(said: Tensor, names: Sequence[str], own: Tensor, first: int = 10) -> Tensor:
    """What captions say of a part [B] -> the same, with P_NOT of them negated.

    `names` are what can be negated, and what is true of each image is `own` [B], a place in it. `first` is the number
    that stands for "not" the first name.
    """
    chance = torch.rand(len(said), len(names), device=said.device)  # [B, names]
    for i, name in enumerate(names):
        if name in NEVER_NEGATED:
            chance[:, i] = 0
    denied = chance.scatter(1, own[:, None], 0).argmax(dim=1)  # one that is not true
    return torch.where(torch.rand(said.shape, device=said.device) < P_NOT, first + denied, said)
