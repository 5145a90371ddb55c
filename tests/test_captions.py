"""No caption is false: what a sentence says is read from its words here, by code that knows nothing of captions.py."""

import itertools
import re

import pytest
import torch

import captions
import my_dataset
from attributes import ATTRIBUTES, measure, unseen_combinations
from captions import (
    DIGIT_WORDS,
    LABELS,
    NEVER_NEGATED,
    OUTLIER_IDS,
    OUTLIERS,
    P_EXTREME,
    P_MENTION,
    P_NOT,
    UNSAID,
    attribute_captions,
)
from clip import captions_for
from data.outliers import make_outliers
from evaluation.claims import combination_caption, format_labels, parse_claims, short_caption
from my_dataset import MNISTPairs, load_mnist

GRADES = (
    ("very thin", "thin", "medium", "thick", "very thick"),
    ("leaning far left", "leaning left", "upright", "leaning right", "leaning far right"),
)
WORDS = {
    **{word: word for word in DIGIT_WORDS},
    **{str(digit): word for digit, word in enumerate(DIGIT_WORDS)},
    **dict.fromkeys(("thin", "fine", "delicate", "light"), "thin"),
    **dict.fromkeys(("medium", "ordinary"), "medium"),
    **dict.fromkeys(("thick", "bold", "heavy", "broad"), "thick"),
    **dict.fromkeys(("left", "left-leaning"), "leaning left"),
    **dict.fromkeys(("upright", "straight"), "upright"),
    **dict.fromkeys(("right", "right-leaning"), "leaning right"),
    **dict.fromkeys(("hairline", "hairlines", "spidery", "finest"), "very thin"),
    **dict.fromkeys(("fat", "massive", "brush", "marker"), "very thick"),
    **dict.fromkeys(("backhand", "backslanted", "backwards"), "leaning far left"),
    **dict.fromkeys(("italic", "italics", "oblique", "forwards"), "leaning far right"),
}
# The same of Chinese.
CHINESE = {
    **dict.fromkeys(("一个", "一张"), ""),
    **dict.fromkeys(("极细", "特别细", "细如发丝"), "very thin"),
    **dict.fromkeys(("粗细中等", "粗细适中", "中等粗细", "线条中等", "笔画适中", "线条适中"), "medium"),
    **dict.fromkeys(("极粗", "特别粗", "粗如毛笔"), "very thick"),
    **dict.fromkeys(("细体", "较细", "偏细", "线条细", "笔画细"), "thin"),
    **dict.fromkeys(("粗体", "较粗", "偏粗", "线条粗", "笔画粗"), "thick"),
    **dict.fromkeys(("极度左倾", "极度左斜", "大幅左斜", "向左大幅倾斜", "朝左大幅倾斜"), "leaning far left"),
    **dict.fromkeys(("极度右倾", "极度右斜", "大幅右斜", "向右大幅倾斜", "朝右大幅倾斜"), "leaning far right"),
    **dict.fromkeys(("向左倾斜", "朝左倾斜", "左倾", "左斜", "往左歪", "朝左歪"), "leaning left"),
    **dict.fromkeys(("向右倾斜", "朝右倾斜", "右倾", "右斜", "往右歪", "朝右歪"), "leaning right"),
    **dict.fromkeys(("直立", "竖直", "端正", "笔直", "挺直", "竖着"), "upright"),
    **dict(zip("零一二三四五六七八九", DIGIT_WORDS, strict=True)),
}


def claims_of(sentence: str) -> set[str]:
    """The claims of a caption, as labels."""
    for kind, phrases in {"no digit": captions.NO_DIGIT, **OUTLIERS}.items():
        if sentence in phrases:
            return {kind}
    claims = set()
    for clause in re.split("[,，]", sentence):
        said, *denied = re.split(r"\b(?:not|no|but)\b|不是", clause)
        assert len(denied) <= 1
        claims |= labels_of(said)
        claims |= {f"not {label}" for label in labels_of(" ".join(denied))}
    return claims if claims & set(DIGIT_WORDS) else claims | {"a digit"}


def labels_of(clause: str) -> set[str]:
    labels = set()
    for phrase in sorted(CHINESE, key=len, reverse=True):  # one can be part of another
        if phrase in clause:
            labels.add(CHINESE[phrase])
            clause = clause.replace(phrase, "")
    words = re.findall(r"[a-z-]+|\d", clause)
    return (labels | {WORDS[word] for word in words if word in WORDS}) - {""}


def facts_of(digit: int, values: list[float]) -> tuple[set[str], tuple[int, ...]]:
    """What is true of an image, as labels, and its combination."""
    facts, combination = {DIGIT_WORDS[digit], "a digit"}, [digit]
    for value, grades, attribute in zip(values, GRADES, ATTRIBUTES, strict=True):
        grade = sum(value >= edge for edge in attribute.edges)
        facts |= {grades[grade], grades[min(max(grade, 1), 3)]}  # a very thin digit is thin too
        combination.append(min(max(grade, 1), 3) - 1)
    facts |= {f"not {word}" for word in DIGIT_WORDS if word not in facts}
    facts |= {f"not {grade}" for grades in GRADES for grade in grades[1:4] if grade not in facts}
    return facts, tuple(combination)


def names(vector: torch.Tensor) -> set[str]:
    return {LABELS[i] for i in vector.nonzero().flatten().tolist()}


def test_a_digit_alone_is_its_word_and_punctuation_separates_words():
    for text, words in {
        "A bold SEVEN, leaning: right!": "a bold seven leaning right",
        "it's a 7, it\u2019s (8)?": "it's a seven it's eight",
        "left-leaning, hand-written 3": "left leaning hand written three",
        "1, 2 and 10": "one two and 10",
        "07 7th 7.0 7,0 -7 +7 \u22127 7e3 1.000,5": "07 7th 7.0 7,0 -7 +7 -7 7e3 1.000,5",  # no digit among these
        "七 ³ \uff17 ?!": "七 ³ \uff17",
        "一个粗体的7，不是八。": "一 个 粗 体 的 seven 不 是 八",
    }.items():
        assert captions.words_of(text) == words.split()


def test_not_negates_the_words_up_to_the_next_comma():
    for text, negated in {
        "not a seven": "a seven",
        "Not thick, a seven": "thick",
        "a thick digit that is not a 7, leaning left": "a seven",
        "anything but a seven; thick": "a seven",
        "not a seven, but a three": "a seven",
        "a thick but upright 7": "",
        "这不是七，粗体": "是 七",
        "a seven": "",
    }.items():
        assert [word for word, is_negated in captions.negated_words(text) if is_negated] == negated.split()


def test_an_eight_has_another_article_than_a_one():
    assert captions.with_article("a eight, A 8, a upright seven, a one, a seven, data eight") == (
        "an eight, An 8, an upright seven, a one, a seven, data eight"
    )
    assert captions.fill_templates(("{word}", "a {numeral}"))[14:18] == ("seven", "a 7", "eight", "an 8")


@pytest.mark.parametrize("kind", ["attributes", "scenes"])
def test_a_third_of_the_captions_is_chinese_but_for_language_models(kind):
    all_ = captions_for(kind, "table")
    english, chinese = (all_.in_language(is_chinese) for is_chinese in (False, True))
    assert english.paraphrases == 2 * chinese.paraphrases
    is_chinese = [bool(re.search("[一-鿿]", text)) for text in chinese.sentences]
    assert sum(is_chinese) / len(is_chinese) > 0.9, "the others are numerals"
    for model_reads in (english, captions_for(kind, "plus")):
        assert not any(re.search("[一-鿿]", text) for text in model_reads.sentences)


def test_a_sentence_claims_what_its_words_say_and_nothing_if_it_is_not_understood():
    for text, claims in {
        "A bold 7 leaning to the LEFT.": {"seven", "thick", "leaning left"},
        "3, as if with a thin pen": {"three", "thin"},
        "an eight, standing upright": {"eight", "upright"},
        "one digit on top of another": {"overlap"},
        "only noise": {"noise"},
        "This is not a digit!": {"no digit"},
        "Not a SEVEN": {"not seven"},
        "anything but a 7, not thick": {"not seven", "not thick"},
        "not thick, a seven": {"not thick", "seven"},
        "一个向左倾斜的粗体七": {"seven", "thick", "leaning left"},
        "粗体，不是一": {"thick", "not one"},
        "not a seven, but a thick three": {"not seven", "thick", "three"},
        "a thick but upright seven": {"thick", "upright", "seven"},
    }.items():
        assert names(parse_claims(text)) == claims
    unclear = ("this isn't a seven", "it isn\u2019t bold", "a seven, never bold", "not a thick seven")
    unclear += ("not very thick", "not seven or eight", "it cannot be a 7", "-7 or 7.0", "a dog on a beach", "不粗的七")
    for text in (*unclear, ""):
        assert not parse_claims(text).any(), text


def test_labels_and_descriptions_in_few_words():
    for labels, text in (
        (("four", "a digit", "very thin", "thin", "leaning left"), "four, very thin, leaning left"),
        (("four", "medium", "leaning far right", "leaning right"), "four, medium, leaning far right"),
        (("noise", "no digit"), "noise"),
        (("a digit",), "a digit"),
        (("a digit", "not seven", "thick", "not thin"), "thick, not seven"),
    ):
        assert format_labels(captions.multi_hot(*labels)) == text
    assert short_caption(7, [3, 1]) == "a thick seven leaning left"
    assert short_caption(UNSAID, [UNSAID, 2]) == "an upright digit"
    assert combination_caption(4 * 9 + 2 * 3 + 1) == "a thick upright four"


# ---- the captions ----


def test_every_sentence_says_what_its_claims_say():
    texts = attribute_captions()
    assert len(texts.sentences) == len(texts.claims) * texts.paraphrases
    for i, sentence in list(enumerate(texts.sentences))[::5]:  # 24 sentences for each, and 5 is no divisor
        claims = names(texts.claims[i // texts.paraphrases])
        assert claims_of(sentence) == claims, sentence
        assert names(parse_claims(sentence)) == claims - {"a digit"}, sentence
        assert not re.search(r"\b[Aa] (?!one\b)[aeiou8]|\b[Aa]n (one\b|[^aeiou8])|  | ,", sentence), sentence


def test_each_description_has_its_place_and_many_paraphrases():
    texts, places = attribute_captions(), []
    choices = [[*grades, *(f"not {grade}" for grade in grades[1:4])] for grades in GRADES]
    for digit, *grades in itertools.product(range(UNSAID, 20), range(UNSAID, 8), range(UNSAID, 8)):
        expected = {own[grade] for own, grade in zip(choices, grades, strict=True) if grade != UNSAID}
        expected |= {DIGIT_WORDS[digit]} if 0 <= digit < 10 else {"a digit"}
        expected |= {f"not {DIGIT_WORDS[digit - 10]}"} if digit >= 10 else set()
        places.append(captions.description_id(digit, grades))
        assert names(texts.claims[places[-1]]) == expected
        assert len(set(texts.sentences[places[-1] * texts.paraphrases :][: texts.paraphrases])) >= 8
    for place, kind in zip(OUTLIER_IDS.tolist(), ("no digit", *OUTLIERS), strict=True):
        places.append(place)
        assert names(texts.claims[place]) == {kind}
    assert sorted(places) == list(range(len(texts.claims)))
    assert texts.digit_ids.tolist() == [captions.description_id(digit) for digit in range(10)]
    expected = [captions.description_id(d, (t, s)) for d in range(10) for t in (1, 2, 3) for s in (1, 2, 3)]
    assert captions.combination_description_ids().tolist() == expected


def test_digit_captions_are_words_for_the_table_and_sentences_for_a_language_model():
    assert captions_for("digit", "table").sentences == DIGIT_WORDS
    texts = captions_for("digit", "plus")
    assert texts.sentences == captions.fill_templates(captions.TRAIN_TEMPLATES)
    torch.manual_seed(0)
    digits = torch.arange(10).repeat(500)
    sampled = texts.sample(digits).strings()
    assert set(sampled) == set(texts.sentences)
    for digit, sentence in zip(digits.tolist(), sampled, strict=True):
        assert names(parse_claims(sentence)) == names(texts.claims[digit]) == {DIGIT_WORDS[digit]}
    everything = texts.all_paraphrases(torch.tensor([7, 2])).strings()
    assert everything == [sentence for d in (7, 2) for sentence in texts.sentences[d * 30 :][:30]]


# ---- what belongs together ----


def test_match_agrees_with_sets():
    generator = torch.Generator().manual_seed(0)
    chances = torch.tensor([0.6, 0.06, 0.5])[:, None, None]
    facts, claims, unknown = torch.rand(3, 60, len(LABELS), generator=generator) < chances
    positive, ignored = captions.match(facts, claims, unknown)
    assert 0.2 < positive.float().mean() < 0.6
    assert 0.1 < ignored.float().mean() < 0.4
    for i, j in itertools.product(range(60), range(60)):
        lacking = names(claims[j]) - names(facts[i])
        assert positive[i, j] == (not lacking)
        assert ignored[i, j] == (bool(lacking) and lacking <= names(unknown[i]))
    # pairs of other data belong together if their ids are equal
    positive, ignored = captions.one_hot_labels(torch.tensor([500, 3, 500, -1])).match()
    assert positive.int().tolist() == [[1, 0, 1, 0], [0, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 1]]
    assert not ignored.any()


def test_an_image_shows_one_alternative_of_each_part():
    digit, thickness, slant = attribute_captions().parts
    two = captions.multi_hot("two", "a digit", "very thin", "thin", "upright")
    facts = torch.stack([two, captions.multi_hot("scribble", "no digit")])
    unknown = torch.stack([captions.multi_hot("thick", "very thick"), captions.multi_hot()])
    labels = captions.Labels(facts, facts, unknown)
    positive, ignored = thickness.shown_by(labels)
    assert positive.tolist() == [[True, False, False, False, False], [False] * 5], "very thin, not only thin"
    assert ignored.tolist() == [[False, False, False, True, True], [False] * 5]
    assert slant.shown_by(labels)[0].nonzero().tolist() == [[0, 2]]
    assert digit.shown_by(labels)[0].nonzero().tolist() == [[0, 2]]
    claims = torch.stack([captions.multi_hot(*names) for names in (("a digit", "thin"), ("two",))])
    assert thickness.allowed_by(claims).T.tolist() == [[True, True, False, False, False], [True] * 5]
    assert digit.allowed_by(claims).sum(dim=0).tolist() == [10, 1]


def test_the_labels_that_lead_to_an_unseen_combination_are_unknown_by_hand():
    unseen = torch.zeros(10, 3, 3, dtype=torch.bool)
    unseen[7, 0, 1] = unseen[7, 1, 0] = True  # thin and upright, medium and leaning left
    unknown = captions.unknown_labels(unseen).view(10, 3, 3, -1)
    assert names(unknown[7, 0, 0]) == {"upright", "medium"}
    assert names(unknown[7, 0, 2]) == {"upright"}
    assert names(unknown[7, 1, 1]) == {"thin", "very thin", "leaning left", "leaning far left"}
    assert names(unknown[7, 2, 0]) == {"medium"}
    assert names(unknown[7, 2, 2]) == set()
    assert not unknown[:7].any()


def shares(values: tuple[float, float], n: int = 20_000) -> dict[str, float]:
    """How often each label is claimed in captions of sevens with these values."""
    torch.manual_seed(0)
    ids = captions.sample_descriptions(torch.full((n,), 7), torch.tensor(values).expand(n, 2))
    claims = attribute_captions().claims[ids].float().mean(dim=0)
    return {label: share for label, share in zip(LABELS, claims.tolist(), strict=True) if share}


def test_a_caption_mentions_each_part_at_random_some_negated_and_the_extreme_in_half_of_the_cases():
    denied, said = P_MENTION * P_NOT, P_MENTION * (1 - P_NOT)
    expected = {"seven": said, "a digit": 1 - said, "upright": said}
    expected |= {"very thin": said * P_EXTREME, "thin": said * (1 - P_EXTREME)}
    expected |= {f"not {word}": denied / 8 for word in DIGIT_WORDS if word not in NEVER_NEGATED}
    expected |= dict.fromkeys(("not medium", "not thick", "not leaning left", "not leaning right"), denied / 2)
    assert shares((1.8, 0.1)) == pytest.approx(expected, abs=0.015)


@pytest.mark.parametrize(("side", "attribute"), enumerate(ATTRIBUTES))
def test_a_value_close_to_an_edge_is_left_out(side, attribute):
    def words(value: float) -> set[str]:
        values = [2.6, 0.1]
        values[side] = value
        return shares(values, n=200).keys() & set(GRADES[side])

    _, low_name, middle_name, high_name, _ = GRADES[side]
    lowest, low, high, highest = attribute.edges
    inside, outside = 0.9 * attribute.margin, 1.1 * attribute.margin
    assert words(low - inside) == words(low + inside) == words(high - inside) == words(high + inside) == set()
    assert words(low - outside) == {low_name}
    assert words(low + outside) == words(high - outside) == {middle_name}
    assert words(high + outside) == {high_name}
    # Close to the edge of an extreme grade the bin is certain.
    assert words(lowest - inside) == words(lowest + inside) == {low_name}
    assert words(highest - inside) == words(highest + inside) == {high_name}
    assert words(lowest - outside) == set(GRADES[side][:2])
    assert words(highest + outside) == set(GRADES[side][3:])


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

    every_claim, every_kind, n_digits = set(), set(), 0
    for batch in itertools.islice(pairs.epoch(250), 4):
        facts, combinations = [], []
        for image, values in zip(batch.images, measure(batch.images).tolist(), strict=True):
            kind, digit = (origins.get(image.numpy().tobytes()) for origins in (kinds, digits))
            true, combination = ({kind, "no digit"}, None) if kind else facts_of(digit, values)
            facts.append(true)
            combinations.append(combination)
            every_kind.add(kind)
        assert not any(unseen[combination] for combination in combinations if combination)
        n_digits += sum(combination is not None for combination in combinations)
        claims = [claims_of(text) for text in batch.texts.strings()]
        every_claim.update(*claims)
        positive, ignored = batch.labels.match()
        assert positive.diagonal().all()
        assert 0 < ignored.sum() < positive.sum()
        for i, (is_true, is_ignored) in enumerate(zip(positive.tolist(), ignored.tolist(), strict=True)):
            lacking = [said - facts[i] for said in claims]
            assert is_true == [not some for some in lacking]
            is_digit = combinations[i] is not None
            expected = [is_digit and some and leads_to_unseen(some, combinations[i], unseen) for some in lacking]
            assert is_ignored == list(map(bool, expected))
    assert every_kind == {*OUTLIERS, None}
    assert 870 < n_digits < 930, "eleven of twelve"
    assert every_claim == set(LABELS) - {f"not {name}" for name in NEVER_NEGATED}, "each label was claimed"


def leads_to_unseen(lacking: set[str], combination: tuple[int, int, int], unseen: torch.Tensor) -> bool:
    """Whether each of these claims, by itself, would move the image into a combination that is never trained."""
    digit, thickness, slant = combination
    moved = {name: (digit, (0, 0, 1, 2, 2)[grade], slant) for grade, name in enumerate(GRADES[0])}
    moved |= {name: (digit, thickness, (0, 0, 1, 2, 2)[grade]) for grade, name in enumerate(GRADES[1])}
    return all(name in moved and bool(unseen[moved[name]]) for name in lacking)


def test_batches_depend_on_seed_epoch_process_and_the_random_state_alone(data_path):
    pairs = MNISTPairs("val", data_path, augment="affine")

    def batch(**options) -> list:
        torch.manual_seed(1)
        one = list(itertools.islice(pairs.epoch(200, **options), 2))[1]
        return [one.images, one.texts.index, *one.labels]

    assert all(map(torch.equal, batch(), batch()))
    assert not torch.equal(batch()[0], batch(epoch=1)[0])
    shares = [batch(rank=rank, world_size=2) for rank in range(2)]
    assert [len(part) for share in shares for part in share] == [100] * 10
    assert not torch.equal(shares[0][0], shares[1][0])


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
    assert (after["empty"] == after["empty"][..., :1, :1]).all()
    assert after["empty"].max() < 0.2
    assert (after["overlap"] >= before["overlap"]).all()
    assert after["overlap"].mean() > 1.5 * before["overlap"].mean()
    roughness = {kind: part.diff(dim=3).square().mean((1, 2, 3)) / part.var((1, 2, 3)) for kind, part in after.items()}
    assert roughness["noise"].min() > 1.5, "neighbouring pixels are independent"
    assert roughness["scribble"].max() < 1
