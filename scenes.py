"""Scenes: two digits beside or above each other on one canvas; and captions, in which the order of words counts.

"A seven left of a three" and "a three left of a seven" have the same words, and at most one is true. What is true of a
scene (facts) and what a caption says (claims) are multi-hot vectors over the S LABELS, as in captions.py.
"""

import functools
import itertools
import math
import random
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from attributes import ATTRIBUTES
from captions import DIGIT_WORDS, HAN_DIGITS, UNSAID, Captions, with_article

CANVAS, TILE = 48, 28  # pixels: a canvas is square, a digit is a tile of MNIST, whose ink lies within 20 x 20
DISTANCE = 24  # pixels between the digits' centres, along the line on which they stand
JITTER, SIDE_JITTER = 1, 6  # pixels by which each digit moves at most: along this line, and across it
N_UNSEEN = 9  # of the 45 pairs of different digits

PLACES = ("left", "right", "top", "bottom")
THICKNESS = ATTRIBUTES[0]
NAMED_GRADES = ("thin", "thick")  # what captions say of a digit; the thickness between them is not named
PAIRS = tuple(itertools.combinations(range(10), 2))
LABELS = (
    *DIGIT_WORDS,
    *(f"{word} at the {place}" for place in PLACES for word in DIGIT_WORDS),
    *(f"{word} is {grade}" for grade in NAMED_GRADES for word in DIGIT_WORDS),
    *(f"{DIGIT_WORDS[a]} with {DIGIT_WORDS[b]}" for a, b in PAIRS),
)
FIRST_PLACE, FIRST_GRADE = 10, 10 + 10 * len(PLACES)  # where these labels begin
FIRST_PAIR = FIRST_GRADE + 10 * len(NAMED_GRADES)

# ---- captions: {a} and {b} stand for "a seven", "a thick seven"; a third of them are Chinese ----

# Of two digits; {a} is the left or the upper one.
RELATIONS = {
    "beside": ("{a} left of {b}", "{a} to the left of {b}", "{b} right of {a}", "{b} to the right of {a}"),
    "above": ("{a} above {b}", "{a} over {b}", "{b} below {a}", "{b} under {a}"),
    "and": ("{a} and {b}", "{b} and {a}", "{a} with {b}", "{b} with {a}"),
}
HAN_RELATIONS = {
    "beside": ("{a}在{b}的左边", "{a}在{b}的左侧", "{b}在{a}的右边", "{b}在{a}的右侧"),
    "above": ("{a}在{b}的上面", "{a}在{b}的上方", "{b}在{a}的下面", "{b}在{a}的下方"),
    "and": ("{a}和{b}", "{b}和{a}", "{a}与{b}", "{b}与{a}"),
}
BESIDE, ABOVE, AND = range(len(RELATIONS))
# Of one digit; the scene shows another one, too.
ONE_DIGIT = {
    "anywhere": ("{a}", "{a} somewhere", "a picture with {a}", "{a} and another digit"),
    "left": ("{a} at the left", "{a} on the left", "on the left {a}", "{a} on the left side"),
    "right": ("{a} at the right", "{a} on the right", "on the right {a}", "{a} on the right side"),
    "top": ("{a} at the top", "{a} in the upper half", "at the top {a}", "{a} up there"),
    "bottom": ("{a} at the bottom", "{a} in the lower half", "at the bottom {a}", "{a} down there"),
}
HAN_ONE_DIGIT = {
    "anywhere": ("{a}", "图中的{a}", "{a}和另一个数字", "另一个数字和{a}"),
    "left": ("{a}在左边", "{a}在左侧", "左边是{a}", "左侧是{a}"),
    "right": ("{a}在右边", "{a}在右侧", "右边是{a}", "右侧是{a}"),
    "top": ("{a}在上面", "{a}在上方", "上面是{a}", "上方是{a}"),
    "bottom": ("{a}在下面", "{a}在下方", "下面是{a}", "下方是{a}"),
}
P_RELATION, P_AND = 0.5, 0.1  # the share of captions that relate two digits, and that list two; the rest name one
P_PLACE = 0.7  # probability that a caption of one digit names its place
P_GRADE = 0.5  # probability that a caption says "thin" or "thick" of a digit where it can (`nameable_grades`)
GRADE_CHOICES = len(NAMED_GRADES) + 1  # 0: not said, then NAMED_GRADES
TWO_DIGITS_SHAPE = (len(RELATIONS), 10, GRADE_CHOICES, 10, GRADE_CHOICES)


class Scenes(NamedTuple):
    """B scenes of two different digits; of the two, the left or the upper one comes first."""

    images: Tensor  # float [B, 1, CANVAS, CANVAS] in [0, 1]
    digits: Tensor  # int64 [B, 2]
    is_vertical: Tensor  # bool [B]
    thickness: Tensor  # [B, 2] in pixels, of each digit's tile


def make_scenes(tiles: Tensor, digits: Tensor, is_vertical: Tensor, generator: torch.Generator | None = None) -> Scenes:
    """Tiles [B, 2, 28, 28] in [0, 1], the left or upper one first, their digits [B, 2], is_vertical bool [B] -> scenes.

    Each digit is moved a little at random. A tile may leave the canvas by 3 pixels of its empty border.
    """
    device, size = tiles.device, len(tiles)

    def jitter(most: int) -> Tensor:
        return torch.randint(-most, most + 1, (size, 2), device=device, generator=generator)

    middle = (CANVAS - TILE) // 2  # the corner of a tile in the middle of the canvas
    along = middle - DISTANCE // 2 + DISTANCE * torch.arange(2, device=device) + jitter(JITTER)  # [B, 2]
    across = middle + jitter(SIDE_JITTER)
    top = torch.where(is_vertical[:, None], along, across)
    left = torch.where(is_vertical[:, None], across, along)
    thickness = THICKNESS.measure(tiles.flatten(0, 1)).view(size, 2)

    # For each pixel of the canvas its place in either tile; outside of a tile, the empty border around it.
    framed = torch.nn.functional.pad(tiles, (1, 1, 1, 1))  # [B, 2, TILE + 2, TILE + 2]
    pixels = torch.arange(CANVAS, device=device) + 1  # the border shifts a tile by one
    rows, columns = ((pixels - corner[..., None]).clamp(0, TILE + 1) for corner in (top, left))  # [B, 2, CANVAS]
    canvas = framed.gather(2, rows[..., None].expand(-1, -1, -1, TILE + 2))  # [B, 2, CANVAS, TILE + 2]
    canvas = canvas.gather(3, columns[:, :, None].expand(-1, -1, CANVAS, -1))  # [B, 2, CANVAS, CANVAS]
    return Scenes(canvas.amax(dim=1, keepdim=True), digits, is_vertical, thickness)


# ---- which pairs are shown, and what is true ----


@functools.cache  # callers share the tensor: do not write into it
def unseen_pairs(seed: int = 0, count: int = N_UNSEEN) -> Tensor:
    """Which pairs of different digits are never shown together, at random: bool [10, 10], symmetric.

    Each digit is shown with at least one other (`count` is at most 40). With N_UNSEEN pairs or more, each takes part in
    at least one.
    """
    generator = random.Random(seed)
    while True:
        unseen = torch.zeros(10, 10, dtype=torch.bool)
        for a, b in generator.sample(PAIRS, count):
            unseen[a, b] = unseen[b, a] = True
        n_unseen = unseen.sum(dim=1)  # of each digit
        if n_unseen.max() < 9 and (n_unseen.min() > 0 or count < N_UNSEEN):
            return unseen


def multi_hot(*ids: int) -> Tensor:
    """Label numbers -> bool [S], True there."""
    vector = torch.zeros(len(LABELS), dtype=torch.bool)
    vector[list(ids)] = True
    return vector


def place_label(place: str, digit: int) -> int:
    return FIRST_PLACE + 10 * PLACES.index(place) + digit


def pair_label(low, high):
    """Of two digits, numbers or tensors, the lower one first."""
    return FIRST_PAIR + low * (19 - low) // 2 + high - low - 1


def scene_facts(scenes: Scenes) -> Tensor:
    """The labels that are true of each scene: bool [B, S]. Left and right are only of horizontal scenes."""
    facts = torch.zeros(len(scenes.digits), len(LABELS), dtype=torch.bool, device=scenes.digits.device)
    places = FIRST_PLACE + 20 * scenes.is_vertical[:, None] + 10 * torch.arange(2, device=facts.device)  # [B, 2]
    pairs = pair_label(scenes.digits.amin(dim=1), scenes.digits.amax(dim=1))[:, None]  # [B, 1]
    facts.scatter_(1, scenes.digits, True).scatter_(1, places + scenes.digits, True).scatter_(1, pairs, True)
    bins = THICKNESS.bin(scenes.thickness)  # [B, 2]
    for i in range(len(NAMED_GRADES)):  # bin 0 is thin, 2 is thick
        facts.scatter_(1, FIRST_GRADE + 10 * i + scenes.digits, bins == 2 * i)
    return facts


def unknown_labels(unseen: Tensor) -> Tensor:
    """Unseen pairs, bool [10, 10] -> the labels unknown in a scene that shows the digit, for each digit: bool [10, S].

    These are the labels of each other digit that is never shown together with it, and of the pair: no scene could show
    them to be true, so training must not call them false.
    """
    low, high = torch.tensor(PAIRS, device=unseen.device).T  # [45] each
    digits = torch.arange(10, device=unseen.device)[:, None]
    pairs = ((low == digits) | (high == digits)) & unseen[low, high]  # [10, 45]
    return torch.cat([unseen.repeat(1, FIRST_PAIR // 10), pairs], dim=1)  # the others are blocks of ten digits each


# ---- all captions ----


def two_digits_id(relation, a, a_grade, b, b_grade):
    """The number of a description of two digits in `scene_captions`. Numbers or tensors; a grade can be UNSAID.

    `relation` is the place of its name in RELATIONS.
    """
    number = relation * 10 + a
    for value, size in ((a_grade + 1, GRADE_CHOICES), (b, 10), (b_grade + 1, GRADE_CHOICES)):
        number = number * size + value
    return number


def nameable_grades(thickness: Tensor) -> Tensor:
    """Thickness in pixels -> its place in NAMED_GRADES, or UNSAID where it is medium or close to the edge of a bin."""
    bins = THICKNESS.bin(thickness)  # 0 is thin, 2 is thick
    is_clear = (bins != 1) & (THICKNESS.distance_to_edges(thickness) >= THICKNESS.margin)
    return torch.where(is_clear, bins // 2, UNSAID)


def swapped_descriptions(ids: Tensor) -> Tensor:
    """Descriptions [B] -> the same with the two digits exchanged, now false, except "and". Those of one digit stay."""
    relation, a, a_grade, b, b_grade = torch.unravel_index(ids % math.prod(TWO_DIGITS_SHAPE), TWO_DIGITS_SHAPE)
    swapped = two_digits_id(relation, b, b_grade - 1, a, a_grade - 1)
    return torch.where(ids < math.prod(TWO_DIGITS_SHAPE), swapped, ids)


def one_digit_id(form, digit, grade=UNSAID):
    """The number of a description of one digit; `form` is the place of its name in ONE_DIGIT."""
    return math.prod(TWO_DIGITS_SHAPE) + (form * 10 + digit) * GRADE_CHOICES + grade + 1


@functools.cache
def scene_captions() -> Captions:
    """Every description of two digits, at `two_digits_id`, then every one of a single digit, at `one_digit_id`."""
    sentences, claims, generator = [], [], random.Random(0)

    def noun_phrase(digit: int, grade: int) -> str:
        adjectives = THICKNESS.words[NAMED_GRADES[grade]][0] if grade != UNSAID else ("",)
        return with_article(" ".join(f"a {generator.choice(adjectives)} {DIGIT_WORDS[digit]}".split()))

    def han_noun_phrase(digit: int, grade: int) -> str:
        adjective = THICKNESS.han_adjective(NAMED_GRADES[grade]) if grade != UNSAID else ""
        # Seldom 一个: it moves the words behind it. With it in every other caption order is learned less well.
        return generator.choice(("", "", "", "一个")) + adjective + HAN_DIGITS[digit]

    def paraphrase(forms: Sequence[str], han_forms: Sequence[str], **digits: tuple[int, int]) -> list[str]:
        """Each English form twice, its adjectives drawn anew, and each Chinese one once: {a} is a digit and a grade."""
        ways = [(form, noun_phrase) for form in (*forms, *forms)] + [(form, han_noun_phrase) for form in han_forms]
        return [form.format(**{name: phrase(*own) for name, own in digits.items()}) for form, phrase in ways]

    def claimed_labels(digit: int, grade: int, place: str | None) -> list[int]:
        labels = [digit] + ([] if place is None else [place_label(place, digit)])
        return labels + ([] if grade == UNSAID else [FIRST_GRADE + 10 * grade + digit])

    grades = range(UNSAID, len(NAMED_GRADES))
    places = {"beside": ("left", "right"), "above": ("top", "bottom"), "and": (None, None)}
    # (Descriptions with a == b are never used; they keep the numbers regular.)
    for (relation, forms), a, a_grade, b, b_grade in itertools.product(
        RELATIONS.items(), range(10), grades, range(10), grades
    ):
        sentences += paraphrase(forms, HAN_RELATIONS[relation], a=(a, a_grade), b=(b, b_grade))
        first, second = places[relation]
        pair = [] if a == b else [pair_label(min(a, b), max(a, b))]
        claims.append(multi_hot(*claimed_labels(a, a_grade, first), *claimed_labels(b, b_grade, second), *pair))
    for (name, forms), digit, grade in itertools.product(ONE_DIGIT.items(), range(10), grades):
        sentences += paraphrase(forms, HAN_ONE_DIGIT[name], a=(digit, grade))
        claims.append(multi_hot(*claimed_labels(digit, grade, None if name == "anywhere" else name)))
    digit_ids, n_chinese = one_digit_id(0, torch.arange(10)), len(HAN_RELATIONS["and"])
    return Captions("scenes", sentences, torch.stack(claims), (), digit_ids, n_chinese)


def sample_descriptions(scenes: Scenes) -> Tensor:
    """For each scene a description that is true of it, int64 [B]."""
    device, size = scenes.digits.device, len(scenes.digits)

    def chance(*shape: int) -> Tensor:
        return torch.rand(*shape, device=device)

    grade = torch.where(chance(size, 2) < P_GRADE, nameable_grades(scenes.thickness), UNSAID)  # [B, 2]
    draw = chance(size)
    relation = torch.where(draw < P_RELATION, torch.where(scenes.is_vertical, ABOVE, BESIDE), AND)
    two = two_digits_id(relation, scenes.digits[:, 0], grade[:, 0], scenes.digits[:, 1], grade[:, 1])
    which = torch.randint(2, (size, 1), device=device)  # the digit that is named alone
    form = torch.where(chance(size) < P_PLACE, 1 + 2 * scenes.is_vertical + which[:, 0], 0)  # its place, or anywhere
    one = one_digit_id(form, scenes.digits.gather(1, which)[:, 0], grade.gather(1, which)[:, 0])
    return torch.where(draw < P_RELATION + P_AND, two, one)
