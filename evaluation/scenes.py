"""Word order and binding: which of several captions with nearly the same words a scene is closest to.

Five captions for each scene (Lewis et al., 2022, arXiv 2212.10537); text, image and group score over two scenes with
the same digits (Winoground, Thrush et al., 2022, arXiv 2204.03162). All on pairs of digits seen and unseen in training.
"""

import itertools

import torch
from torch import Tensor

from captions import DIGIT_WORDS, HAN_DIGITS, UNSAID, with_article
from clip import CLIP
from evaluation.metrics import embed_images
from evaluation.retrieval import TIE
from my_dataset import ByDigit, Split
from scenes import NAMED_GRADES, THICKNESS, Scenes, make_scenes, nameable_grades

ORDERED_PAIRS = tuple(itertools.permutations(range(10), 2))  # of different digits

# Of each axis a relation R and its reverse S: "a R b" and "b S a" mean the same. Training has these forms, too.
FORMS = (("{} left of {}", "{} right of {}"), ("{} above {}", "{} below {}"))
HAN_FORMS = (("{}在{}的左边", "{}在{}的右边"), ("{}在{}的上面", "{}在{}的下面"))
PER_PAIR = 10  # scenes of each of the 90 ordered pairs, on each axis


def evaluation_scenes(split: Split, per_pair: int = PER_PAIR) -> tuple[Scenes, Scenes]:
    """Scenes of all ordered pairs, N = 90 * 2 * per_pair; and as many with the two digits exchanged, of other images.

    On the CPU, each tile a random image of the split.
    """
    generator = torch.Generator().manual_seed(0)
    pairs = torch.tensor(ORDERED_PAIRS).repeat_interleave(2 * per_pair, dim=0)  # [N, 2]
    is_vertical = torch.arange(len(pairs)) % 2 == 1
    images, by_digit = split.images.cpu(), ByDigit(split.labels.cpu())

    def scenes(digits: Tensor) -> Scenes:
        tiles = images[by_digit.sample(digits, generator)].float() / 255  # [N, 2, 28, 28]
        return make_scenes(tiles, digits, is_vertical, generator)

    return scenes(pairs), scenes(pairs.flip(1))


def relation_texts(is_chinese: bool = False) -> list[str]:
    """Every relation of every two digits, as "a seven left of a three", 七在三的左边: [4 * 10 * 10], at `text_id`."""
    forms = itertools.chain.from_iterable(HAN_FORMS if is_chinese else FORMS)
    nouns = HAN_DIGITS if is_chinese else [f"a {word}" for word in DIGIT_WORDS]
    return [with_article(form.format(a, b)) for form, a, b in itertools.product(forms, nouns, nouns)]


def text_id(relation, a, b):
    """The place of a text in `relation_texts`."""
    return (relation * 10 + a) * 10 + b


# a left of b, a above b: 180 places, ascending.
CANDIDATES = [text_id(relation, *pair) for relation in (0, 2) for pair in ORDERED_PAIRS]


def candidate_captions(is_chinese: bool = False) -> list[str]:
    """The texts of CANDIDATES."""
    texts = relation_texts(is_chinese)
    return [texts[place] for place in CANDIDATES]


def evaluate_scenes(model: CLIP, split: Split, per_pair: int = PER_PAIR, is_chinese: bool = False) -> dict[str, float]:
    """Figures of scenes of a split, for pairs of digits seen and unseen in training; plain numbers.

    docs/word-order.md says what each one asks. A guess reaches 1/180 of the accuracy, 1/5 of five captions and of
    paraphrase, a half of each swap and of relation, a quarter of the text and the image score, a sixth of the group
    score.
    """
    scenes, exchanged = evaluation_scenes(split, per_pair)
    features, other_features = (embed_images(model, one.images).cpu() for one in (scenes, exchanged))
    texts = model.prompt_ensemble(relation_texts(is_chinese), paraphrases=1).cpu()  # [400, embed_dim]
    similarity, other_similarity = features @ texts.T, other_features @ texts.T  # [N, 400]
    first, second = scenes.digits.unbind(dim=1)
    axis, is_unseen = 2 * scenes.is_vertical.long(), model.unseen[first, second]
    own, swapped = (text_id(axis, *pair)[:, None] for pair in ((first, second), (second, first)))  # [N, 1]

    # ---- the nearest of the 180 captions a left of b, a above b ----
    candidates = torch.tensor(CANDIDATES)
    results = {"accuracy": is_nearest(similarity[:, candidates], torch.searchsorted(candidates, own))}

    # ---- five captions, in both forms: "a left of b" and "b right of a" ----
    generator, both = torch.Generator().manual_seed(0), []
    for form, (a, b) in enumerate(((first, second), (second, first))):
        other = other_digit(a, b, torch.randint(1, 9, a.shape, generator=generator))
        both.append(similarity.gather(1, torch.stack(five_ids(axis + form, axis + 1 - form, a, b, other), dim=1)))
    both = torch.stack(both)  # [2, N, 5]
    results["five_captions"] = is_nearest(both).mean(dim=0)
    results["swap"], results["relation"] = (is_nearest(both[..., [0, i]]).mean(dim=0) for i in (1, 2))
    # The true caption of one form among the wrong ones of the other; and how far apart the two true ones are.
    results["paraphrase"] = is_nearest(torch.cat([both.flip(0)[..., :1], both[..., 1:]], dim=2)).mean(dim=0)
    results["paraphrase_gap"] = (both[0, :, 0] - both[1, :, 0]).abs()

    # ---- two scenes and their two captions; a tie is wrong, as in Winoground ----
    right, wrong = similarity.gather(1, own), similarity.gather(1, swapped)
    other_right, other_wrong = other_similarity.gather(1, swapped), other_similarity.gather(1, own)
    text_right = (right > wrong + TIE) & (other_right > other_wrong + TIE)
    image_right = (right > other_wrong + TIE) & (other_right > wrong + TIE)
    scores = {"text_score": text_right, "image_score": image_right, "group_score": text_right & image_right}
    results |= {name: values[:, 0].float() for name, values in scores.items()}

    chosen, values = attribute_swap(model, scenes, features, is_chinese)
    groups = {"seen": ~is_unseen, "unseen": is_unseen}
    metrics = {
        f"{group}_{name}": values[which].mean().item()
        for name, values in results.items()
        for group, which in groups.items()
    }
    return metrics | {f"{group}_attribute_swap": values[which[chosen]].mean().item() for group, which in groups.items()}


def five_ids(relation, opposite, a, b, other) -> list:
    """The places of a R b, b R a, a S b, c R b and a R c in `relation_texts`: the first is true. c is `other`."""
    texts = ((relation, a, b), (relation, b, a), (opposite, a, b), (relation, other, b), (relation, a, other))
    return [text_id(*text) for text in texts]


def five_texts(first: int, second: int, is_vertical: bool, other: int) -> list[str]:
    """The five captions of a scene, for a picture."""
    texts, axis = relation_texts(), 2 * is_vertical
    return [texts[place] for place in five_ids(axis, axis + 1, first, second, other)]


def other_digit(a: Tensor, b: Tensor, shift: Tensor) -> Tensor:
    """A digit that is neither a nor b: the `shift`-th (1..8) after a, leaving out b."""
    gap = (b - a) % 10  # 1..9
    return (a + shift + (shift >= gap).long()) % 10


def is_nearest(cosines: Tensor, true: Tensor | None = None) -> Tensor:
    """Cosines [..., T] -> 1 where the true one is the highest, a share of 1 where others tie with it, else 0 [...].

    true: its place, int64 [..., 1]; None: the first.
    """
    is_best = cosines >= cosines.amax(dim=-1, keepdim=True) - TIE
    own = is_best[..., :1] if true is None else is_best.gather(-1, true)
    return own[..., 0].float() / is_best.sum(dim=-1)


def attribute_swap(model: CLIP, scenes: Scenes, features: Tensor, is_chinese: bool) -> tuple[Tensor, Tensor]:
    """ "A thick seven left of a thin three" against "a thin seven left of a thick three".

    Of the M scenes of a clearly thin and a clearly thick digit: returns their places, and `is_nearest` of each [M].
    """
    grades = nameable_grades(scenes.thickness)  # [N, 2]
    chosen = ((grades != UNSAID).all(dim=1) & (grades[:, 0] != grades[:, 1])).nonzero()[:, 0]
    texts = [text for i in chosen.tolist() for text in grade_texts(scenes, i, grades[i].tolist(), is_chinese)]
    embeds = model.prompt_ensemble(texts, paraphrases=1).cpu().view(len(chosen), 2, -1)  # [M, 2, embed_dim]
    return chosen, is_nearest(torch.einsum("md,mtd->mt", features[chosen], embeds))


def grade_texts(scenes: Scenes, i: int, grades: list[int], is_chinese: bool = False) -> list[str]:
    """Two captions of scene i that exchange the grades of its digits: the true one comes first."""
    form = (HAN_FORMS if is_chinese else FORMS)[scenes.is_vertical[i]][0]

    def noun_phrase(grade: int, digit: int) -> str:
        if is_chinese:
            return THICKNESS.han_adjective(NAMED_GRADES[grade]) + HAN_DIGITS[digit]
        return f"a {NAMED_GRADES[grade]} {DIGIT_WORDS[digit]}"

    first, second = scenes.digits[i].tolist()
    pairs = (grades, grades[::-1])
    return [with_article(form.format(noun_phrase(x, first), noun_phrase(y, second))) for x, y in pairs]
