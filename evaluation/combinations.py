"""Combinations of a digit and a bin of each attribute: how well those are recognised that were never trained.

Compositional zero-shot learning reports seen, unseen and their harmonic mean in the same way (Xian et al., 2017, arXiv
1703.04394). Features are unit vectors [N, embed_dim] on the CPU; combinations are ids as in attributes.py.
"""

from statistics import harmonic_mean

import torch
from torch import Tensor

from attributes import ATTRIBUTES, COMBINATIONS, GRADE_OF_BIN, GRADES, combination_ids, measure
from captions import UNSAID, combination_description_ids, description_id
from clip import CLIP
from evaluation.retrieval import average_precision
from evaluation.sections import accuracy_with_ci
from my_dataset import Split

PARTS = ("digit", *(attribute.name for attribute in ATTRIBUTES))  # of a combination


def is_unambiguous(values: Tensor) -> Tensor:
    """Values [B, A] -> which images lie far from the edges of all bins: bool [B]."""
    pairs = zip(ATTRIBUTES, values.T, strict=True)
    return torch.stack([one.distance_to_edges(column) > one.clear for one, column in pairs]).all(dim=0)


def evaluate_attributes(model: CLIP, features: Tensor, split: Split) -> dict:
    """All of this module for a model with captions of attributes, as plain numbers."""
    values = measure(split.images)  # [N, A]
    combinations, unseen = combination_ids(split.labels, values), model.unseen.flatten()
    similarity = features @ model.embed_descriptions(combination_description_ids()).cpu().T  # [N, C]
    digits = features @ model.zero_shot_classifier().cpu().T  # [N, 10]
    results = combination_accuracies(similarity.argmax(dim=1), split, unseen)
    results["digit"] = accuracy_with_ci(digits.argmax(dim=1), split.labels)
    results["binding"] = binding(similarity, combinations, unseen)
    pairs = {"rank_correlation": (GRADE_OF_BIN[0], GRADE_OF_BIN[-1]), "rank_correlation_extremes": (0, GRADES - 1)}
    for name, pair in pairs.items():
        results[name] = {}
        for i, attribute in enumerate(ATTRIBUTES):  # from the caption of one grade, and nothing else, to the other's
            grades = torch.full((len(ATTRIBUTES), 2), UNSAID)
            grades[i] = torch.tensor(pair)
            low, high = model.embed_descriptions(description_id(UNSAID, list(grades))).cpu()  # [embed_dim] each
            results[name][attribute.name] = rank_correlation(features @ (high - low), values[:, i], split.labels)
    asked = combinations[unseen[combinations]].unique()  # text -> image, by the unseen captions that have images
    precisions = average_precision(similarity[:, asked].T, combinations == asked[:, None])
    return results | {"unseen_map": precisions.mean().item()}


def combination_accuracies(predicted: Tensor, split: Split, unseen: Tensor) -> dict:
    """Accuracies of predicted combinations, int64 [N], of any model: whole ones, and each part of them.

    unseen: bool [C]. The results of unambiguous images stand beside those of all.
    """
    values = measure(split.images)
    true, clear = combination_ids(split.labels, values), is_unambiguous(values)
    results, parts = {}, {}
    predicted_parts, true_parts = combination_parts(predicted), combination_parts(true)
    for name, which in (("seen", ~unseen[true]), ("unseen", unseen[true])):
        results[name] = accuracy_with_ci(predicted[which], true[which])
        results[f"{name}_unambiguous"] = accuracy_with_ci(predicted[which & clear], true[which & clear])
        parts[name] = {part: accuracy_with_ci(predicted_parts[part][which], true_parts[part][which]) for part in PARTS}
    both = [results[name]["accuracy"] for name in ("seen", "unseen")]
    return results | {"harmonic_mean": float(harmonic_mean(both)), "parts": parts}


def combination_parts(ids: Tensor) -> dict[str, Tensor]:
    """Combinations [N] -> the digit, and the bin of each attribute, [N] each."""
    return dict(zip(PARTS, torch.unravel_index(ids, COMBINATIONS), strict=True))


def binding(similarity: Tensor, combinations: Tensor, unseen: Tensor) -> dict:
    """For each part, the share of images whose own caption beats all captions that differ in this part alone.

    similarity [N, C], combinations [N], unseen bool [C].
    """
    own, parts = similarity.gather(1, combinations[:, None])[:, 0], combination_parts(torch.arange(len(unseen)))
    # differs[part] [C, C]: whether two combinations differ in this part
    differs = {part: values[:, None] != values for part, values in parts.items()}
    n_different = torch.stack(list(differs.values())).sum(dim=0)
    results = {"seen": {}, "unseen": {}}
    for part in PARTS:
        rivals = differs[part] & (n_different == 1)
        wins = own > similarity.masked_fill(~rivals[combinations], -torch.inf).amax(dim=1)  # [N]
        for name, which in (("seen", ~unseen[combinations]), ("unseen", unseen[combinations])):
            results[name][part] = accuracy_with_ci(wins[which], torch.ones_like(wins[which]))
    return results


def rank_correlation(scores: Tensor, values: Tensor, labels: Tensor) -> dict:
    """Spearman's correlation of scores with measured values, both [N], among the images of each digit that occurs.

    `interval` is the 95% interval of the lowest of them, by a bootstrap over its images.
    """
    from scipy.stats import bootstrap, spearmanr  # scipy takes a second to import

    def correlation(x, y) -> float:
        is_constant = len(x) < 2 or (x == x[0]).all() or (y == y[0]).all()  # then it is not defined
        return 0.0 if is_constant else float(spearmanr(x, y).statistic)

    pairs = [(scores[labels == digit].numpy(), values[labels == digit].numpy()) for digit in labels.unique()]
    correlations = [correlation(*pair) for pair in pairs]
    lowest = min(range(len(pairs)), key=correlations.__getitem__)
    how = {"paired": True, "vectorized": False, "n_resamples": 500, "method": "percentile", "random_state": 0}
    low, high = bootstrap(pairs[lowest], correlation, **how).confidence_interval
    return {"by_digit": correlations, "minimum": correlations[lowest], "interval": (float(low), float(high))}
