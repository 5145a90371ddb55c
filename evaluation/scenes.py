"""Word order and binding: which of several captions with nearly the same words a scene is closest to.

Five captions for each scene (Lewis et al., 2022, arXiv 2212.10537); text, image and group score over two scenes with
the same digits (Winoground, Thrush et al., 2022, arXiv 2204.03162). All on pairs of digits seen and unseen in training.
"""

import itertools

import torch
from torch import Tensor

from captions import DIGIT_WORDS, with_article
from clip import CLIP
from evaluation.metrics import embed_images
from my_dataset import Split
from scenes import GRADES, THICKNESS, Scenes, make_scenes

FORMS = (("left of", "right of"), ("above", "below"))  # of each axis: a R b, b S a
PER_PAIR, TEST_PER_PAIR = 5, 20  # scenes of each of the 90 ordered pairs, in each direction


def evaluation_scenes(split: Split, per_pair: int = PER_PAIR, seed: int = 0) -> tuple[Scenes, Scenes]:
    """Scenes of all ordered pairs, N = 90 * 2 * per_pair; and as many with the two digits exchanged, of other images.

    On the CPU, from images of the split at random.
    """
    generator = torch.Generator().manual_seed(seed)
    pairs = torch.tensor(list(itertools.permutations(range(10), 2))).repeat_interleave(2 * per_pair, dim=0)  # [N, 2]
    is_vertical = torch.arange(len(pairs)) % 2 == 1
    images, labels = split.images.cpu(), split.labels.cpu()
    by_digit, counts = labels.argsort(stable=True), labels.bincount(minlength=10)

    def scenes(digits: Tensor) -> Scenes:
        place = (torch.rand(digits.shape, generator=generator) * counts[digits]).long()
        index = by_digit[(counts.cumsum(0) - counts)[digits] + place]  # [N, 2]
        return make_scenes(images[index].float() / 255, digits, is_vertical, generator)

    return scenes(pairs), scenes(pairs.flip(1))


def relation_texts() -> list[str]:
    """ "a seven left of a three": every relation of FORMS (flat) of every two digits, [4 * 10 * 10]."""
    relations = itertools.chain.from_iterable(FORMS)
    return [
        with_article(f"a {DIGIT_WORDS[a]} {relation} a {DIGIT_WORDS[b]}")
        for relation, a, b in itertools.product(relations, range(10), range(10))
    ]


def text_id(relation, a, b):
    """The place of a text in `relation_texts`."""
    return (relation * 10 + a) * 10 + b


@torch.no_grad()
def evaluate_scenes(model: CLIP, split: Split, per_pair: int = PER_PAIR) -> dict[str, float]:
    """Figures of scenes of a split, for pairs of digits seen and unseen in training; plain numbers."""
    scenes, exchanged = evaluation_scenes(split, per_pair)
    features, other_features = (embed_images(model, one.images).cpu() for one in (scenes, exchanged))
    model.eval()
    texts = model.encode_text(relation_texts()).cpu()  # [400, embed_dim]
    first, second = scenes.digits.unbind(dim=1)
    is_unseen = model.unseen[first, second]
    similarity, other_similarity = features @ texts.T, other_features @ texts.T  # [N, 400]
    rows = torch.arange(len(first))
    results = {}

    # ---- the nearest of the 180 captions a left of b, a above b ----
    distinct = torch.tensor(list(itertools.permutations(range(10), 2)))
    candidates = torch.cat([text_id(relation, *distinct.T) for relation in (0, 2)])  # [180]
    nearest = candidates[similarity[:, candidates].argmax(dim=1)]
    axis = 2 * scenes.is_vertical.long()
    results["accuracy"] = nearest == text_id(axis, first, second)

    # ---- five captions, in both forms ----
    generator = torch.Generator().manual_seed(0)
    five, swap, relation_right, trues, wrongs = 0, 0, 0, [], []
    for form in (0, 1):
        a, b = (first, second) if form == 0 else (second, first)
        other = other_digit(a, b, torch.randint(1, 9, a.shape, generator=generator))
        ids = five_ids(axis + form, axis + 1 - form, a, b, other)
        true, swapped, opposite, *others = similarity.gather(1, torch.stack(ids, dim=1)).T  # [N] each
        trues, wrongs = [*trues, true], [*wrongs, torch.stack([swapped, opposite, *others]).amax(dim=0)]
        five = five + (true > wrongs[-1]).float() / 2
        swap = swap + is_greater(true, swapped) / 2
        relation_right = relation_right + is_greater(true, opposite) / 2
    results |= {"five_captions": five, "swap": swap, "relation": relation_right}
    # "b right of a" in place of "a left of b", among the other's wrong captions; and how far apart the two are.
    results["paraphrase"] = (trues[1] > wrongs[0]).float() / 2 + (trues[0] > wrongs[1]).float() / 2
    results["paraphrase_gap"] = (trues[0] - trues[1]).abs()

    # ---- two scenes and their two captions ----
    own, swapped = text_id(axis, first, second), text_id(axis, second, first)
    right, wrong = similarity[rows, own], similarity[rows, swapped]
    other_right, other_wrong = other_similarity[rows, swapped], other_similarity[rows, own]
    text_right = (right > wrong) & (other_right > other_wrong)
    image_right = (right > other_wrong) & (other_right > wrong)
    results |= {"text_score": text_right, "image_score": image_right, "group_score": text_right & image_right}

    metrics = {}
    for name, values in results.items():
        for group, which in (("seen", ~is_unseen), ("unseen", is_unseen)):
            metrics[f"{group}_{name}"] = values[which].float().mean().item()
    return metrics | attribute_swap(model, scenes, features, is_unseen)


def five_ids(relation, opposite, a, b, other) -> list:
    """The places of a R b, b R a, a S b, c R b and a R c in `relation_texts`: the first is true."""
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


def is_greater(right: Tensor, wrong: Tensor) -> Tensor:
    """1 if the right one is closer, 0.5 for a tie up to rounding: [N]."""
    tie = (right - wrong).abs() < 1e-5
    return torch.where(tie, 0.5, (right > wrong).float())


def attribute_swap(model: CLIP, scenes: Scenes, features: Tensor, is_unseen: Tensor) -> dict[str, float]:
    """ "a thick seven left of a thin three" against "a thin seven left of a thick three", where one is true."""
    bins = THICKNESS.bin(scenes.thickness)  # [N, 2]
    far = (THICKNESS.distance_to_edges(scenes.thickness) >= THICKNESS.margin).all(dim=1)
    chosen = ((bins.sum(dim=1) == 2) & (bins[:, 0] != 1) & far).nonzero()[:, 0]  # one thin, one thick

    def texts(grades: Tensor) -> list[str]:
        return [
            with_article(f"a {GRADES[g]} {DIGIT_WORDS[a]} {FORMS[v][0]} a {GRADES[h]} {DIGIT_WORDS[b]}")
            for (g, h), (a, b), v in zip(
                grades.tolist(), scenes.digits[chosen].tolist(), scenes.is_vertical[chosen].int().tolist(), strict=True
            )
        ]

    grades = bins[chosen] // 2
    right, wrong = ((features[chosen] * model.encode_text(texts(one)).cpu()).sum(dim=1) for one in (grades, 1 - grades))
    values, unseen = is_greater(right, wrong), is_unseen[chosen]
    return {
        "seen_attribute_swap": values[~unseen].mean().item(),
        "unseen_attribute_swap": values[unseen].mean().item(),
    }
