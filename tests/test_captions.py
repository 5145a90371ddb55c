"""No caption is false: what a sentence says is read from its words here, by code that knows nothing of captions.py."""

import itertools
import re

import pytest
import torch

import my_dataset
from attributes import ATTRIBUTES, measure, unseen_combinations
from captions import (
    DIGIT_WORDS,
    LABELS,
    OUTLIER_IDS,
    OUTLIERS,
    P_EXTREME,
    P_MENTION,
    TRAIN_TEMPLATES,
    UNSAID,
    attribute_captions,
    captions_for,
    combination_caption,
    combination_description_ids,
    description_id,
    fill_templates,
    format_labels,
    image_facts,
    match,
    multi_hot,
    one_hot_labels,
    parse_claims,
    sample_descriptions,
    short_caption,
    unknown_labels,
    with_article,
    words_of,
)
from data.outliers import make_outliers
from my_dataset import MNISTPairs, load_mnist

GRADES = (
    ("very thin", "thin", "medium", "thick", "very thick"),
    ("leaning far left", "leaning left", "upright", "leaning right", "leaning far right"),
)
# Words that give a kind of outlier away; the first that is found counts.
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


def claims_of(sentence: str) -> set[str]:
    """The claims of a caption, as labels."""
    if re.fullmatch(r"(this is )?not (a|one) digit|anything but one digit", sentence):
        return {"no digit"}
    for kind, pattern in KINDS.items():
        if re.search(pattern, sentence):
            return {kind}
    words = re.findall(r"[\w-]+", sentence)
    claims = {WORDS[word] for word in words if word in WORDS}
    if not claims & set(DIGIT_WORDS):
        assert {"digit", "number", "numeral"} & set(words), sentence
        claims.add("a digit")
    return claims


def facts_of(digit: int, values: list[float]) -> tuple[set[str], tuple[int, ...]]:
    """What is true of an image, as labels, and its combination."""
    facts, combination = {DIGIT_WORDS[digit], "a digit"}, [digit]
    for value, grades, attribute in zip(values, GRADES, ATTRIBUTES, strict=True):
        grade = sum(value >= edge for edge in attribute.edges)
        facts |= {grades[grade], grades[min(max(grade, 1), 3)]}  # a very thin digit is thin too
        combination.append(min(max(grade, 1), 3) - 1)
    return facts, tuple(combination)


def names(vector: torch.Tensor) -> set[str]:
    return {LABELS[i] for i in vector.nonzero().flatten().tolist()}


# ---- words ----


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("7", "seven"),
        ("A bold SEVEN, leaning: right!", "a bold seven leaning right"),
        ("it's a 7", "it's a seven"),
        ("it\u2019s (7)?", "it's seven"),
        ("left-leaning", "left leaning"),
        ("hand-written 3", "hand written three"),
        ("1, 2 and 10", "one two and 10"),
        ("07 7th 7.0 7,0 -7 +7 \u22127 7e3 1.000,5", "07 7th 7.0 7,0 -7 +7 -7 7e3 1.000,5"),  # numbers, but no digits
        ("七 ³ \uff17", "七 ³ \uff17"),
        (" ?! ", ""),
    ],
)
def test_a_digit_alone_is_its_word_and_punctuation_separates_words(text, words):
    assert words_of(text) == words.split()


def test_an_eight_has_another_article_than_a_one():
    assert with_article("a eight, A 8, a upright seven, a one, a seven, data eight") == (
        "an eight, An 8, an upright seven, a one, a seven, data eight"
    )
    assert fill_templates(("{word}", "a {numeral}"))[14:18] == ("seven", "a 7", "eight", "an 8")


@pytest.mark.parametrize(
    ("text", "claims"),
    [
        ("seven", {"seven"}),
        ("A bold 7 leaning to the LEFT.", {"seven", "thick", "leaning left"}),
        ("3, as if with a thin pen", {"three", "thin"}),
        ("an eight without a slant", {"eight", "upright"}),
        ("in the finest of lines, backslanted", {"very thin", "leaning far left"}),
        ("one digit on top of another", {"overlap"}),
        ("nothing but noise", {"noise"}),
        ("not a digit", {"no digit"}),
        ("This is not a digit!", {"no digit"}),
        ("not a seven", set()),
        ("this isn't a seven", set()),
        ("it isn\u2019t bold", set()),
        ("anything but a seven", set()),
        ("a seven, never bold", set()),
        ("-7 or 7.0", set()),
        ("a dog running on a beach", set()),
        ("", set()),
    ],
)
def test_a_sentence_claims_what_its_words_say_and_nothing_if_it_negates(text, claims):
    assert names(parse_claims(text)) == claims


def test_labels_and_descriptions_in_few_words():
    assert format_labels(multi_hot("four", "a digit", "very thin", "thin", "leaning left")) == (
        "four, very thin, leaning left"
    )
    assert format_labels(multi_hot("noise", "no digit")) == "noise"
    assert format_labels(multi_hot("a digit")) == "a digit"
    assert format_labels(multi_hot("four", "medium", "leaning far right", "leaning right")) == (
        "four, medium, leaning far right"
    )
    assert short_caption(7, [3, 1]) == "a thick seven leaning left"
    assert short_caption(UNSAID, [UNSAID, 2]) == "an upright digit"
    assert short_caption(8, [UNSAID, UNSAID]) == "an eight"
    assert combination_caption(4 * 9 + 2 * 3 + 1) == "a thick upright four"


# ---- the captions ----


def test_every_sentence_says_what_its_claims_say():
    captions = attribute_captions()
    assert len(captions.sentences) == len(captions.claims) * captions.paraphrases
    for i, sentence in enumerate(captions.sentences):
        claims = captions.claims[i // captions.paraphrases]
        assert claims_of(sentence) == names(claims), sentence
        assert names(parse_claims(sentence)) | {"a digit"} == names(claims) | {"a digit"}, sentence
        assert not re.search(r"\b[Aa] (?!one\b)[aeiou8]|\b[Aa]n (one\b|[^aeiou8])|  | ,", sentence), sentence


def test_each_description_has_its_place_and_many_paraphrases():
    captions, places = attribute_captions(), []
    for digit, *grades in itertools.product(range(UNSAID, 10), range(UNSAID, 5), range(UNSAID, 5)):
        expected = {own[grade] for own, grade in zip(GRADES, grades, strict=True) if grade != UNSAID}
        expected.add("a digit" if digit == UNSAID else DIGIT_WORDS[digit])
        places.append(description_id(digit, grades))
        assert names(captions.claims[places[-1]]) == expected
        sentences = captions.sentences[places[-1] * captions.paraphrases :][: captions.paraphrases]
        assert len(set(sentences)) >= 8
    for place, kind in zip(OUTLIER_IDS.tolist(), ("no digit", *OUTLIERS), strict=True):
        places.append(place)
        assert names(captions.claims[place]) == {kind}
    assert sorted(places) == list(range(len(captions.claims)))
    assert captions.digit_ids.tolist() == [description_id(digit) for digit in range(10)]
    combinations = [
        description_id(digit, grades) for digit in range(10) for grades in itertools.product((1, 2, 3), (1, 2, 3))
    ]
    assert combination_description_ids().tolist() == combinations


def test_digit_captions_are_words_for_the_table_and_sentences_for_a_language_model():
    assert captions_for("digit", "table").sentences == DIGIT_WORDS
    captions = captions_for("digit", "plus")
    assert captions.sentences == fill_templates(TRAIN_TEMPLATES)
    assert [names(claims) for claims in captions.claims] == [{word} for word in DIGIT_WORDS]
    torch.manual_seed(0)
    digits = torch.arange(10).repeat(500)
    sampled = captions.sample(digits).strings()
    assert set(sampled) == set(captions.sentences)
    for digit, sentence in zip(digits.tolist(), sampled, strict=True):
        assert names(parse_claims(sentence)) == {DIGIT_WORDS[digit]}
    everything = captions.all_paraphrases(torch.tensor([7, 2])).strings()
    assert everything == [sentence for d in (7, 2) for sentence in captions.sentences[d * 30 :][:30]]


# ---- what belongs together ----


def test_match_agrees_with_sets():
    generator = torch.Generator().manual_seed(0)
    chances = torch.tensor([0.6, 0.06, 0.5])[:, None, None]
    facts, claims, unknown = torch.rand(3, 60, len(LABELS), generator=generator) < chances
    positive, ignored = match(facts, claims, unknown)
    assert 0.2 < positive.float().mean() < 0.6
    assert 0.1 < ignored.float().mean() < 0.4
    for i, j in itertools.product(range(60), range(60)):
        lacking = names(claims[j]) - names(facts[i])
        assert positive[i, j] == (not lacking)
        assert ignored[i, j] == (bool(lacking) and lacking <= names(unknown[i]))


def test_labels_match_some_rows_as_they_match_all(data_path):
    labels = next(MNISTPairs("val", data_path).epoch(50)).labels
    rows = torch.tensor([3, 7, 40])
    for some, every in zip(labels.match(images=rows), labels.match(), strict=True):
        assert torch.equal(some, every[rows])
    for some, every in zip(labels.match(texts=rows), labels.match(), strict=True):
        assert torch.equal(some, every[:, rows])


def test_pairs_of_other_data_belong_together_if_their_ids_are_equal():
    positive, ignored = one_hot_labels(torch.tensor([500, 3, 500, -1])).match()
    assert positive.int().tolist() == [[1, 0, 1, 0], [0, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 1]]
    assert not ignored.any()


def test_the_labels_that_lead_to_an_unseen_combination_are_unknown_by_hand():
    unseen = torch.zeros(10, 3, 3, dtype=torch.bool)
    unseen[7, 0, 1] = unseen[7, 1, 0] = True  # thin and upright, medium and leaning left
    unknown = unknown_labels(unseen).view(10, 3, 3, -1)
    assert names(unknown[7, 0, 0]) == {"upright", "medium"}
    assert names(unknown[7, 0, 2]) == {"upright"}
    assert names(unknown[7, 1, 1]) == {"thin", "very thin", "leaning left", "leaning far left"}
    assert names(unknown[7, 2, 0]) == {"medium"}
    assert names(unknown[7, 2, 2]) == set()
    assert not unknown[:7].any()


def test_facts_name_the_grade_and_its_bin():
    values = torch.tensor([[1.9, 0.3], [2.5, -0.2], [3.3, 0.1]])
    expected = [{"seven", "a digit", "very thin", "thin", "leaning right"}]
    expected += [{"zero", "a digit", "medium", "leaning far left", "leaning left"}]
    expected += [{"nine", "a digit", "very thick", "thick", "upright"}]
    assert [names(facts) for facts in image_facts(torch.tensor([7, 0, 9]), values)] == expected


# ---- sampling ----


def test_a_caption_mentions_each_part_at_random_and_the_extreme_in_half_of_the_cases():
    torch.manual_seed(0)
    n = 20_000
    ids = sample_descriptions(torch.full((n,), 7), torch.tensor([1.8, 0.1]).expand(n, 2))  # very thin, upright
    claims = attribute_captions().claims[ids].float().mean(dim=0)
    shares = dict(zip(LABELS, claims.tolist(), strict=True))
    assert shares["seven"] == pytest.approx(P_MENTION, abs=0.015)
    assert shares["upright"] == pytest.approx(P_MENTION, abs=0.015)
    assert shares["very thin"] == pytest.approx(P_MENTION * P_EXTREME, abs=0.015)
    assert shares["thin"] == pytest.approx(P_MENTION * (1 - P_EXTREME), abs=0.015)
    assert sum(shares.values()) == pytest.approx(3 * P_MENTION + 1 - P_MENTION, abs=0.03), "nothing else"
    mentions = attribute_captions().claims[ids].int()
    both = mentions[:, LABELS.index("seven")] * mentions[:, LABELS.index("upright")]
    assert both.float().mean() == pytest.approx(P_MENTION**2, abs=0.015), "independently"


@pytest.mark.parametrize(("side", "attribute"), enumerate(ATTRIBUTES))
def test_a_value_close_to_an_edge_is_left_out(side, attribute):
    middle = torch.tensor([2.6, 0.1])

    def words(value: float) -> set[str]:
        values = middle.clone()
        values[side] = value
        ids = sample_descriptions(torch.full((200,), 7), values.expand(200, 2))
        return {label for row in attribute_captions().claims[ids] for label in names(row)} & set(GRADES[side])

    lowest, low, high, highest = attribute.edges
    inside, outside = 0.9 * attribute.margin, 1.1 * attribute.margin
    for edge in (low, high):
        assert words(edge - inside) == words(edge + inside) == set()
    assert words(low - outside) == {GRADES[side][1]}
    assert words(high + outside) == {GRADES[side][3]}
    assert words(low + outside) == words(high - outside) == {GRADES[side][2]}
    for edge, name, extreme in ((lowest, GRADES[side][1], -1), (highest, GRADES[side][3], 1)):
        assert words(edge + extreme * inside) == words(edge - extreme * inside) == {name}, "but the bin is certain"
        assert len(words(edge + extreme * outside)) == 2


# ---- images with their captions ----


@pytest.mark.parametrize("augment", ["none", "elastic"])
def test_no_caption_is_false_and_no_pair_lies_in_an_unseen_combination(data_path, monkeypatch, augment):
    torch.manual_seed(0)
    unseen = unseen_combinations(3)
    pairs = MNISTPairs("val", data_path, unseen=unseen, augment=augment)
    originals = {
        image.numpy().tobytes(): digit for image, digit in zip(pairs.images, pairs.labels.tolist(), strict=True)
    }
    digits, kinds = {}, {}  # of the images that go into training, by their bytes
    real_augment = my_dataset.augment

    def augmented(images, kind):
        result = real_augment(images, kind)
        for before, after in zip(images, result, strict=True):
            digits[after.numpy().tobytes()] = originals[before.numpy().tobytes()]
        return result

    def outliers(*arguments):
        result = make_outliers(*arguments)
        kinds.update((image.numpy().tobytes(), list(OUTLIERS)[i % 7]) for i, image in enumerate(result.images))
        return result

    monkeypatch.setattr(my_dataset, "augment", augmented)
    monkeypatch.setattr(my_dataset, "make_outliers", outliers)

    every_claim, n_digits, n_outliers = set(), 0, {kind: 0 for kind in OUTLIERS}
    for batch in itertools.islice(pairs.epoch(250), 4):
        facts, combinations = [], []
        for image, values in zip(batch.images, measure(batch.images).tolist(), strict=True):
            if (kind := kinds.get(image.numpy().tobytes())) is not None:
                facts.append({kind, "no digit"})
                combinations.append(None)
                n_outliers[kind] += 1
            else:
                own, combination = facts_of(digits[image.numpy().tobytes()], values)
                assert not unseen[combination]
                facts.append(own)
                combinations.append(combination)
                n_digits += 1
        claims = [claims_of(text) for text in batch.texts.strings()]
        every_claim.update(*claims)
        positive, ignored = batch.labels.match()
        assert positive.diagonal().all()
        assert positive.tolist() == [[said <= own for said in claims] for own in facts]
        expected = [
            [not said <= own and place is not None and leads_to_unseen(said - own, place, unseen) for said in claims]
            for own, place in zip(facts, combinations, strict=True)
        ]
        assert ignored.tolist() == expected
        assert 0 < ignored.sum() < positive.sum()
    assert min(n_outliers.values()) > 0
    assert 880 < n_digits < 920, "eleven of twelve"
    assert every_claim == set(LABELS), "each label was claimed"


def leads_to_unseen(lacking: set[str], combination: tuple[int, int, int], unseen: torch.Tensor) -> bool:
    """Whether each of these claims, by itself, would move the image into a combination that is never trained."""
    digit, thickness, slant = combination
    moved = {name: (digit, (0, 0, 1, 2, 2)[grade], slant) for grade, name in enumerate(GRADES[0])}
    moved |= {name: (digit, thickness, (0, 0, 1, 2, 2)[grade]) for grade, name in enumerate(GRADES[1])}
    return all(name in moved and bool(unseen[moved[name]]) for name in lacking)


def test_batches_depend_on_seed_epoch_and_the_random_state_alone(data_path):
    pairs = MNISTPairs("val", data_path, augment="affine")

    def batches(epoch: int = 0, **options) -> list:
        torch.manual_seed(1)
        return list(itertools.islice(pairs.epoch(200, 0, epoch, **options), 3))

    def is_same(one, other) -> bool:
        tensors = zip((one.images, *one.labels), (other.images, *other.labels), strict=True)
        return one.texts.strings() == other.texts.strings() and all(torch.equal(*both) for both in tensors)

    first = batches()
    assert all(map(is_same, first, batches()))
    assert not is_same(first[0], batches(epoch=1)[0])
    shares = [batches(rank=rank, world_size=2)[0] for rank in range(2)]
    assert [len(share.images) for share in shares] == [100, 100]
    assert not torch.equal(shares[0].images[1:], shares[1].images[1:])


def test_one_pair_is_true(data_path):
    pairs, val = MNISTPairs("val", data_path), load_mnist("val", data_path)
    for i in range(50):
        image, text = pairs[i]
        assert claims_of(text) <= facts_of(int(val.labels[i]), measure(val.images[i]).tolist()[0])[0]
        assert torch.equal((image[0] * 255).round().byte(), val.images[i])


# ---- outliers ----


def test_outliers_are_of_their_kinds(data_path):
    images, digits = load_mnist("val", data_path)
    can_be_turned = (digits != 0) & (digits != 1) & (digits != 8)
    images, digits = images[can_be_turned][:280], digits[can_be_turned][:280]
    made, again, other = (make_outliers(images, digits, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(made.images, again.images)
    assert not torch.equal(made.images, other.images)
    x, kinds = images[:, None].float() / 255, list(OUTLIERS)
    assert (made.images.shape, made.images.dtype) == (x.shape, torch.float32)
    assert made.images.min() >= 0
    assert made.images.max() <= 1
    for digit in (0, 1, 8):  # these may look upright when they are turned
        assert len(make_outliers(images, torch.full_like(digits, digit), torch.Generator()).images) == 0
    for i, (facts, place) in enumerate(zip(made.facts, made.ids.tolist(), strict=True)):
        assert names(facts) == {kinds[i % 7], "no digit"}
        assert names(attribute_captions().claims[place]) < names(facts)
    assert (made.ids == OUTLIER_IDS[0]).float().mean() == 0.5, "half of the descriptions name the kind"

    before, after = ({kind: part[k::7] for k, kind in enumerate(kinds)} for part in (x, made.images))
    torch.testing.assert_close(after["inverted"], 1 - before["inverted"])
    scrambled, digits = after["scrambled"].flatten(1), before["scrambled"].flatten(1)
    torch.testing.assert_close(scrambled.sort().values, digits.sort().values)
    assert (scrambled != digits).any(dim=1).all()
    sides = [(after["turned"] == before["turned"].rot90(k, (2, 3))).all((1, 2, 3)) for k in (1, -1)]
    assert (sides[0] | sides[1]).all()
    level = after["empty"].flatten(1)
    assert (level == level[:, :1]).all()
    assert level.max() < 0.2
    assert (after["overlap"] >= before["overlap"]).all()
    more = after["overlap"].sum((1, 2, 3)) / before["overlap"].sum((1, 2, 3))
    assert (more > 1.2).float().mean() > 0.9
    roughness = {kind: part.diff(dim=3).square().mean((1, 2, 3)) / part.var((1, 2, 3)) for kind, part in after.items()}
    assert roughness["noise"].min() > 1.5, "neighbouring pixels are independent"
    assert roughness["scribble"].max() < 1
    assert after["scribble"].sum((1, 2, 3)).min() > 20
