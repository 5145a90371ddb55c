"""What captions that describe reach, in cells (digit, thickness, slant) that were trained and in those that never were.

Features are unit vectors [N, embed_dim] on the CPU. Cells are places in a flat [10, 3, 3].
"""

import torch
from torch import Tensor

from attributes import is_clear, measure
from captions import facts_of, thing, things_of_cells
from clip import CLIP
from evaluation.metrics import caption_vectors, digit_classifier
from evaluation.retrieval import average_precision
from evaluation.sections import right_of
from my_dataset import Split

PARTS = ("digit", "thickness", "slant")
DRAWS = 1000  # of the bootstrap


def described(model: CLIP, features: Tensor, split: Split) -> dict:
    """All of this module for a model with captions that describe; plain numbers. Shares have their 95% intervals."""
    thickness, slant = measure(split.images)
    cells = facts_of(split.labels, thickness, slant)[1]
    unseen = model.unseen.flatten()  # bool [90]
    similarity = features @ caption_vectors(model, things_of_cells()).cpu().T  # [N, 90]
    digits = features @ digit_classifier(model).cpu().T  # [N, 10]
    # What says one attribute and nothing else, its upper step without its lower one.
    ends = [(-1, 2, -1), (-1, 0, -1), (-1, -1, 2), (-1, -1, 0)]
    ends += [(-1, 4, -1), (-1, 3, -1), (-1, -1, 4), (-1, -1, 3)]  # of the outer halves
    vectors = caption_vectors(model, torch.tensor([thing(*end) for end in ends])).cpu()
    thick, thin, right, left, fat, hairline, italic, backhand = vectors
    return {
        **of_cells(similarity.argmax(dim=1), split, unseen),
        "digit": right_of(digits.argmax(dim=1), split.labels),
        "binding": binding(similarity, cells, unseen),
        "rank_correlation": {
            "thickness": rank_correlation(features @ (thick - thin), thickness, split.labels),
            "slant": rank_correlation(features @ (right - left), slant, split.labels),
        },
        "rank_correlation_outer": {
            "thickness": rank_correlation(features @ (fat - hairline), thickness, split.labels),
            "slant": rank_correlation(features @ (italic - backhand), slant, split.labels),
        },
        "unseen_map": unseen_map(similarity, cells, unseen),
    }


def of_cells(predicted: Tensor, split: Split, unseen: Tensor) -> dict:
    """Cells that N images are taken for, int64 [N], by whatever model: right ones, and right parts of them."""
    thickness, slant = measure(split.images)
    cells = facts_of(split.labels, thickness, slant)[1]
    is_unseen, clear = unseen[cells], is_clear(thickness, slant)
    groups = {"seen": ~is_unseen, "unseen": is_unseen}
    groups |= {f"{name}_clear": which & clear for name, which in groups.items()}
    result = {name: right_of(predicted[which], cells[which]) for name, which in groups.items()}
    a, b = (result[name]["accuracy"] for name in ("seen", "unseen"))
    result["harmonic_mean"] = 2 * a * b / (a + b) if a + b else 0.0
    guesses, truths = parts_of(predicted), parts_of(cells)
    result["parts"] = {
        name: {part: right_of(guesses[part][groups[name]], truths[part][groups[name]]) for part in PARTS}
        for name in ("seen", "unseen")
    }
    return result


def parts_of(cells: Tensor) -> dict[str, Tensor]:
    """Places in a flat [10, 3, 3] -> the place along each side."""
    return dict(zip(PARTS, torch.unravel_index(cells, (10, 3, 3)), strict=True))


def binding(similarity: Tensor, cells: Tensor, unseen: Tensor) -> dict:
    """Images for which the true caption beats all that differ from it in this one part. similarity [N, 90]."""
    own, parts = similarity.gather(1, cells[:, None])[:, 0], parts_of(torch.arange(90))
    result = {"seen": {}, "unseen": {}}
    for part in PARTS:
        others = [parts[name] for name in PARTS if name != part]
        swapped = torch.stack([x[:, None] == x for x in others]).all(dim=0) & ~torch.eye(90, dtype=torch.bool)
        wins = own > similarity.masked_fill(~swapped[cells], -torch.inf).amax(dim=1)
        for name, which in (("seen", ~unseen[cells]), ("unseen", unseen[cells])):
            result[name][part] = right_of(wins[which], torch.ones_like(wins[which]))
    return result


def rank_correlation(scores: Tensor, values: Tensor, labels: Tensor) -> dict:
    """Spearman's correlation of scores [N] with what is measured [N], among the images of each digit that occurs.

    `interval` is the 95% interval of the digits' minimum, by a bootstrap over each digit's images.
    """
    from scipy.stats import spearmanr  # scipy takes a second to import

    generator, digits, drawn = torch.Generator().manual_seed(0), [], []
    for digit in labels.unique():
        x, y = scores[labels == digit], values[labels == digit]
        is_constant = len(x) < 2 or bool((x == x[0]).all() or (y == y[0]).all())
        digits.append(0.0 if is_constant else float(spearmanr(x, y).statistic))  # no order agrees with none
        drawn.append(bootstrapped(x, y, generator))
    low, high = torch.stack(drawn).amin(dim=0).quantile(torch.tensor([0.025, 0.975])).tolist()
    return {"digits": digits, "minimum": min(digits), "interval": (low, high)}


def bootstrapped(x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
    """Spearman's correlation of x [n] and y [n] in DRAWS samples of n with replacement: [DRAWS].

    An item drawn c times has c equal places, of which it takes the mean. (Ties within x or y themselves are rare and
    stand in some order.)
    """
    n = len(x)
    counts = torch.zeros(DRAWS, n).scatter_add_(
        1, torch.randint(n, (DRAWS, n), generator=generator), torch.ones(DRAWS, n)
    )
    ranks = []
    for values in (x, y):
        order = values.argsort()
        ordered = counts[:, order]
        place = ordered.cumsum(dim=1) - (ordered - 1) / 2
        ranks.append((place - (n + 1) / 2)[:, order.argsort()])  # from the mean rank
    a, b = ranks
    weight = ((counts * a * a).sum(dim=1) * (counts * b * b).sum(dim=1)).sqrt()
    return (counts * a * b).sum(dim=1) / weight.clamp(min=1e-6)


def unseen_map(similarity: Tensor, cells: Tensor, unseen: Tensor) -> float:
    """Text -> image mean average precision of the captions never seen, over those that have images."""
    asked = [cell for cell in unseen.nonzero()[:, 0].tolist() if (cells == cell).any()]
    return sum(average_precision(similarity[:, cell], cells == cell).item() for cell in asked) / len(asked)
