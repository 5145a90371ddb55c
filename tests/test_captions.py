"""No caption lies: what a sentence says is read from its words here, by code that knows nothing of captions.py."""

import itertools
import re

import pytest
import torch

import my_dataset
from attributes import SLANT_BOUNDS, THICKNESS_BOUNDS, measure, unseen_cells
from captions import (
    DIGIT_WORDS,
    NO_DIGIT_THING,
    NOT_DIGITS,
    SLANT_BAND,
    STATEMENTS,
    THICKNESS_BAND,
    captions_of,
    described_captions,
    facts_of,
    in_words,
    thing,
    things_of_cells,
)
from data.not_digits import no_digits
from my_dataset import MNISTPairs, load_mnist

STEPS = (("thin", "medium", "thick"), ("leaning left", "upright", "leaning right"))
OUTER = (("very thin", "very thick"), ("leaning far left", "leaning far right"))
# Words that give a kind away, the first that is found.
KINDS = {
    "noise": r"noise",
    "scrambled": r"scrambled|patches|shuffled",
    "empty": r"empty|nothing|blank",
    "overlap": r"two (digits|numbers|overlapping)|on top of",
    "inverted": r"inverted|negative|reverse|dark",
    "turned": r"side|turned|rotated",
    "scribble": r"scribble|random lines|lines that form|without meaning",
}
WORDS = {
    **{word: word for word in DIGIT_WORDS},
    **{str(digit): word for digit, word in enumerate(DIGIT_WORDS)},
    **dict.fromkeys(("thin", "fine", "delicate", "light"), "thin"),
    **dict.fromkeys(("medium", "ordinary"), "medium"),
    **dict.fromkeys(("thick", "bold", "heavy", "broad"), "thick"),
    **dict.fromkeys(("left", "left-leaning"), "leaning left"),
    **dict.fromkeys(("upright", "straight", "slant"), "upright"),
    **dict.fromkeys(("right", "right-leaning"), "leaning right"),
    **dict.fromkeys(("hairline", "hairlines", "spidery", "finest"), "very thin"),
    **dict.fromkeys(("fat", "massive", "brush", "marker"), "very thick"),
    **dict.fromkeys(("backhand", "backslanted", "backwards"), "leaning far left"),
    **dict.fromkeys(("italic", "italics", "oblique", "forwards"), "leaning far right"),
}


def said(sentence: str) -> set[str]:
    """What a sentence that describes says, in the words of STATEMENTS."""
    if re.fullmatch(r"(this is )?not (a|one) digit|anything but one digit", sentence):
        return {"no digit"}
    for kind, pattern in KINDS.items():
        if re.search(pattern, sentence):
            return {kind}
    words = re.findall(r"[\w-]+", sentence)
    found = {WORDS[word] for word in words if word in WORDS}
    if not found & set(DIGIT_WORDS):
        assert {"digit", "number", "numeral"} & set(words), sentence
        found.add("a digit")
    return found


def seen(digit: int, thickness: float, slant: float) -> tuple[set[str], tuple[int, int, int]]:
    """What is true of an image, in the words of STATEMENTS, and its cell."""
    names, cell = {DIGIT_WORDS[digit], "a digit"}, [digit]
    for value, (lowest, low, high, highest), steps, (very_low, very_high) in zip(
        (thickness, slant), (THICKNESS_BOUNDS, SLANT_BOUNDS), STEPS, OUTER, strict=True
    ):
        cell.append(sum(value >= bound for bound in (low, high)))
        names.add(steps[cell[-1]])
        if value < lowest:
            names.add(very_low)
        if value >= highest:
            names.add(very_high)
    return names, tuple(cell)


# ---- the sentences ----


def test_every_sentence_says_what_its_claims_say():
    captions = described_captions()
    assert len(captions.sentences) == len(captions.claims) * captions.phrasings
    for i, sentence in enumerate(captions.sentences):
        claims = int(captions.claims[i // captions.phrasings])
        assert said(sentence) == {name for k, name in enumerate(STATEMENTS) if claims >> k & 1}, sentence
        assert not re.search(r"\b[Aa] (?!one\b)[aeiou8]|\b[Aa]n (one\b|[^aeiou8])|  | ,", sentence), sentence


def test_each_thing_has_its_place_and_many_phrasings():
    captions = described_captions()
    names = (DIGIT_WORDS, STEPS[0] + OUTER[0], STEPS[1] + OUTER[1])
    places = []
    for parts in itertools.product(range(-1, 10), range(-1, 5), range(-1, 5)):
        expected = {of[part] for of, part in zip(names, parts, strict=True) if part >= 0}
        places.append(thing(*parts))
        sentences = captions.sentences[places[-1] * captions.phrasings :][: captions.phrasings]
        for sentence in sentences:
            assert said(sentence) - {"a digit"} == expected, sentence
        assert len(set(sentences)) >= 8
    for kind, name in enumerate(("no digit", *NOT_DIGITS)):
        places.append(NO_DIGIT_THING + kind)
        assert in_words(captions.claims[places[-1]]) == name
    assert sorted(places) == list(range(len(captions.claims)))
    assert captions.of_digits().tolist() == [thing(digit) for digit in range(10)]
    cells = [thing(*parts) for parts in itertools.product(range(10), range(3), range(3))]
    assert things_of_cells().tolist() == cells


def test_captions_that_name_the_digit_have_a_thing_for_each():
    assert captions_of("digit", "table").sentences == DIGIT_WORDS
    torch.manual_seed(0)
    sentences = captions_of("digit", "plus")
    assert sentences.claims.tolist() == [2**digit for digit in range(10)]
    drawn, claims = sentences.draw(torch.arange(10).repeat(500))
    assert set(drawn.strings()) == set(sentences.sentences)
    digits = {text: i // sentences.phrasings for i, text in enumerate(sentences.sentences)}
    assert [1 << digits[text] for text in drawn.strings()] == claims.tolist()


# ---- images with their captions ----


@pytest.fixture
def origins(monkeypatch):
    """What images of a batch were made of: bytes of an image -> its digit, or its kind where it is of no digit."""
    found, warp = {}, my_dataset.random_warp

    def remember(images: torch.Tensor, names: list) -> None:
        found.update(zip((image.numpy().tobytes() for image in images), names, strict=True))

    def make(pairs: MNISTPairs) -> dict:
        names = pairs.labels.tolist()
        whole = {image.numpy().tobytes(): digit for image, digit in zip(pairs.images, names, strict=True)}

        def warped(images, bent):
            result = warp(images, bent)
            remember(result, [whole[image.numpy().tobytes()] for image in images])
            return result

        def others(*arguments):
            result = no_digits(*arguments)
            remember(result.images, [list(NOT_DIGITS)[i % len(NOT_DIGITS)] for i in range(len(result.images))])
            return result

        monkeypatch.setattr(my_dataset, "random_warp", warped)
        monkeypatch.setattr(my_dataset, "no_digits", others)
        if pairs.augment == "none":
            remember(pairs.images[:, None].float() / 255, names)
        return found

    return make


@pytest.mark.parametrize("augment", ["none", "elastic"])
def test_no_caption_is_false_and_no_pair_lies_in_an_unseen_cell(data_path, origins, augment):
    torch.manual_seed(0)
    unseen = unseen_cells(3)
    pairs = MNISTPairs("val", data_path, unseen=unseen, augment=augment)
    known, kinds, claimed, digits = origins(pairs), set(), [], 0
    for batch in itertools.islice(pairs.epoch(250), 4):
        facts, cells, look = [], [], list(zip(*(x.tolist() for x in measure(batch.images)), strict=True))
        for image, (thickness, slant) in zip(batch.images, look, strict=True):
            origin = known[image.numpy().tobytes()]
            if isinstance(origin, str):
                names, cell = {origin, "no digit"}, None
                kinds.add(origin)
            else:
                names, cell = seen(origin, thickness, slant)
                assert not unseen[cell]
            facts.append(names)
            cells.append(cell)
        texts = [said(text) for text in batch.texts.strings()]
        for names, text, cell, (thickness, slant) in zip(facts, texts, cells, look, strict=True):
            assert text <= names
            digits += cell is not None
            for value, bounds, band, steps, outer in (
                (thickness, THICKNESS_BOUNDS, THICKNESS_BAND, STEPS[0], OUTER[0]),
                (slant, SLANT_BOUNDS, SLANT_BAND, STEPS[1], OUTER[1]),
            ):  # what lies close to a bound is unsaid
                assert not text & {*steps, *outer} or min(abs(value - bound) for bound in bounds[1:3]) > band - 1e-5
                assert not text & set(outer) or min(abs(value - bound) for bound in bounds[::3]) > band - 1e-5
            claimed += text

        true = torch.tensor([[text <= names for text in texts] for names in facts])
        found = batch.truth.decide()
        assert torch.equal(found[0], true)
        undecided = [
            [not text <= names and cell is not None and leads_to_unseen(text - names, cell, unseen) for text in texts]
            for names, cell in zip(facts, cells, strict=True)
        ]
        assert torch.equal(found[1], torch.tensor(undecided))
        assert 0 < found[1].sum() < true.sum()
    assert kinds == set(NOT_DIGITS)
    assert 800 < digits < 1000
    assert set(claimed) == set(STATEMENTS), "all that there is was said"
    assert 400 < sum(claimed.count(word) for word in DIGIT_WORDS) < 900
    if augment:  # there was something to leave out
        images = torch.stack([torch.frombuffer(bytearray(image), dtype=torch.float32) for image in known])
        labels = torch.tensor([-1 if isinstance(origin, str) else origin for origin in known.values()])
        look = measure(images.view(-1, 28, 28)[labels >= 0])
        assert unseen.flatten()[facts_of(labels[labels >= 0], *look)[1]].sum() > 100


def leads_to_unseen(missing: set[str], cell: tuple[int, int, int], unseen: torch.Tensor) -> bool:
    """Whether each of these claims would move the image, by itself, into a cell that is never trained."""
    digit, t, s = cell
    moved = {name: (digit, k, s) for k, name in enumerate(STEPS[0])}
    moved |= {name: (digit, k, s) for k, name in zip((0, 2), OUTER[0], strict=True)}
    moved |= {name: (digit, t, k) for k, name in enumerate(STEPS[1])}
    moved |= {name: (digit, t, k) for k, name in zip((0, 2), OUTER[1], strict=True)}
    return all(name in moved and bool(unseen[moved[name]]) for name in missing)


def test_described_batches_are_those_of_seed_epoch_and_the_generator(data_path):
    pairs = MNISTPairs("val", data_path, augment="affine")

    def batches(epoch: int = 0, **options) -> list:
        torch.manual_seed(1)
        return list(itertools.islice(pairs.epoch(200, 0, epoch, **options), 3))

    def same(one, other) -> bool:
        texts = one.texts.strings() == other.texts.strings()
        return texts and all(map(torch.equal, (one.images, *one.truth), (other.images, *other.truth)))

    first = batches()
    assert all(map(same, first, batches()))
    assert not same(first[0], batches(1)[0])
    torch.manual_seed(1)
    whole = pairs.epoch(200)
    assert same(next(whole), first[0])
    state = torch.get_rng_state()
    rest = list(itertools.islice(whole, 2))
    torch.set_rng_state(state)
    assert all(map(same, rest, itertools.islice(pairs.epoch(200, skip=1), 2))), "as a resumed run draws them"
    shares = [batches(share=(rank, 2))[0] for rank in range(2)]
    assert [len(share.images) for share in shares] == [100, 100]
    assert [share.size for share in shares] == [200, 200]


def test_one_pair_is_true(data_path):
    pairs, val = MNISTPairs("val", data_path), load_mnist("val", data_path)
    for i in range(50):
        image, text = pairs[i]
        look = (x.item() for x in measure(val.images[i : i + 1]))
        assert said(text) <= seen(int(val.labels[i]), *look)[0]
        assert torch.equal((image[0] * 255).round().byte(), val.images[i])


# ---- images of no digit ----


def test_images_of_no_digit_are_of_their_kind(data_path):
    images, labels = load_mnist("val", data_path)
    keeps_no_pose = (labels != 0) & (labels != 1) & (labels != 8)  # the others may look upright on their side
    images, labels = images[keeps_no_pose][:280], labels[keeps_no_pose][:280]
    made = no_digits(images, labels, torch.Generator().manual_seed(0))
    x, kinds = images[:, None].float() / 255, list(NOT_DIGITS)
    assert (made.images.shape, made.images.dtype) == (x.shape, torch.float32)
    for digit in (0, 1, 8):
        assert len(no_digits(images, torch.full_like(labels, digit), torch.Generator().manual_seed(0)).images) == 0
    assert made.images.min() >= 0
    assert made.images.max() <= 1
    again, other = (no_digits(images, labels, torch.Generator().manual_seed(seed)) for seed in (0, 1))
    assert torch.equal(made.images, again.images)
    assert not torch.equal(made.images, other.images)
    claims = described_captions().claims
    for i, (facts, place) in enumerate(zip(made.facts.tolist(), made.things.tolist(), strict=True)):
        assert in_words(facts) == kinds[i % len(kinds)]
        assert in_words(int(claims[place])) in ("no digit", kinds[i % len(kinds)])
    assert 0.4 < (made.things == NO_DIGIT_THING).float().mean() < 0.6

    of = {kind: (x[k :: len(kinds)], made.images[k :: len(kinds)]) for k, kind in enumerate(kinds)}
    before, after = of["inverted"]
    torch.testing.assert_close(after, 1 - before)
    before, after = (part.flatten(1) for part in of["scrambled"])
    torch.testing.assert_close(before.sort().values, after.sort().values)
    assert (before != after).any(dim=1).all()
    before, after = of["turned"]
    sides = [(after == before.rot90(k, (2, 3))).all((1, 2, 3)) for k in (1, -1)]
    assert (sides[0] | sides[1]).all()
    level = of["empty"][1].flatten(1)
    assert (level == level[:, :1]).all()
    assert level.max() < 0.2
    before, after = of["overlap"]
    assert (after >= before).all()
    assert (after.sum((1, 2, 3)) > 1.2 * before.sum((1, 2, 3))).float().mean() > 0.9
    noise = of["noise"][1]
    rough = noise.diff(dim=3).square().mean((1, 2, 3)) / noise.var((1, 2, 3))
    assert rough.min() > 1.5, "neighbours have nothing to do with each other"
    scribble = of["scribble"][1]
    assert scribble.sum((1, 2, 3)).min() > 20
    assert scribble.diff(dim=3).square().mean((1, 2, 3)).div(scribble.var((1, 2, 3))).max() < 1
