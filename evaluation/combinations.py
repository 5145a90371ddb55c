"""Combinations of a digit and a bin of each attribute: how well those are recognised that were never trained.

Compositional zero-shot learning reports seen, unseen and their harmonic mean in the same way (Xian et al., 2017, arXiv
1703.04394). Features are unit vectors [N, embed_dim] on the CPU; combinations are ids as in attributes.py.
"""

import torch
from torch import Tensor

from attributes import ATTRIBUTES, COMBINATIONS, GRADES, combination_ids, measure
from captions import combination_claims, combination_description_ids
from clip import CLIP
from evaluation.retrieval import average_precision
from evaluation.sections import accuracy_with_ci
from my_dataset import Split

CURVE_POINTS = 100  # of a seen-unseen curve that are kept for its picture
PARTS = ("digit", *(attribute.name for attribute in ATTRIBUTES))  # of a combination


def is_unambiguous(values: Tensor) -> Tensor:
    """Values [B, A] -> which images lie far from the edges of all bins: bool [B]."""
    pairs = zip(ATTRIBUTES, values.T, strict=True)
    return torch.stack([one.distance_to_edges(column) > one.clear for one, column in pairs]).all(dim=0)


def evaluate_attributes(model: CLIP, features: Tensor, split: Split) -> dict:
    """All of this module for a model with captions of attributes, as plain numbers."""
    values = measure(split.images)  # [N, A]
    combinations, unseen = combination_ids(split.labels, values), model.unseen.flatten()
    ids = combination_description_ids()
    digits = features @ model.zero_shot_classifier().cpu().T  # [N, 10]
    results = combination_accuracies(model.log_probs(features, combination_claims()), split, unseen)
    results["digit"] = accuracy_with_ci(digits.argmax(dim=1), split.labels)
    grades = expected_grades(model, features)  # [N, A]
    results["rank_correlation"] = {
        attribute.name: rank_correlation(grades[:, i], values[:, i], split.labels)
        for i, attribute in enumerate(ATTRIBUTES)
    }
    asked = combinations[unseen[combinations]].unique()  # text -> image, by the unseen captions that have images
    similarity = model.embed_descriptions(ids[asked]).cpu() @ features.T  # [Q, N]
    return results | {"unseen_map": average_precision(similarity, combinations == asked[:, None]).mean().item()}


def expected_grades(model: CLIP, features: Tensor) -> Tensor:
    """The mean grade of each attribute under the model's probabilities, in 0..4: [N, A]."""
    _, *probs = model.part_probs(features)  # [N, 5] for each attribute
    return torch.stack([grades @ torch.arange(float(GRADES), device=grades.device) for grades in probs], dim=1)


def combination_accuracies(scores: Tensor, split: Split, unseen: Tensor) -> dict:
    """Accuracies of the combination with the highest score, [N, C], of any model: whole, and each part of it.

    unseen: bool [C]. The results of unambiguous images stand beside those of all.
    """
    values, predicted = measure(split.images), scores.argmax(dim=1)
    true, clear = combination_ids(split.labels, values), is_unambiguous(values)
    results, parts = {}, {}
    predicted_parts, true_parts = combination_parts(predicted), combination_parts(true)
    for name, which in (("seen", ~unseen[true]), ("unseen", unseen[true])):
        results[name] = accuracy_with_ci(predicted[which], true[which])
        results[f"{name}_unambiguous"] = accuracy_with_ci(predicted[which & clear], true[which & clear])
        parts[name] = {part: accuracy_with_ci(predicted_parts[part][which], true_parts[part][which]) for part in PARTS}
    curve = seen_unseen_curve(scores, true, unseen)
    results |= {"best_harmonic_mean": best_harmonic_mean(*curve), "auc": area_under(*curve), "parts": parts}
    shown = torch.linspace(0, len(curve[0]) - 1, CURVE_POINTS).long()
    return results | {"curve": [side[shown].tolist() for side in curve]}


def seen_unseen_curve(scores: Tensor, true: Tensor, unseen: Tensor) -> tuple[Tensor, Tensor]:
    """Accuracy [K] on seen and on unseen combinations, at every bias that is added to the scores of the unseen ones.

    scores [N, C], true [N], unseen bool [C]. Training makes models prefer what it showed; a bias evens this out, and
    all of them together tell what a model knows (Chao et al., 2016, arXiv 1605.04253; Purushwalkam et al., 2019, arXiv
    1905.05908; CSP, Nayak et al., 2023, arXiv 2204.03574).
    """
    of_seen, of_unseen = scores.masked_fill(unseen, -torch.inf), scores.masked_fill(~unseen, -torch.inf)
    margin = of_seen.amax(dim=1) - of_unseen.amax(dim=1)  # [N]: with a higher bias an unseen combination wins
    is_unseen = unseen[true]
    seen_until = margin[~is_unseen & (of_seen.argmax(dim=1) == true)].sort().values
    unseen_from = margin[is_unseen & (of_unseen.argmax(dim=1) == true)].sort().values
    bias = torch.cat([margin.sort().values, margin.amax()[None] + 1])  # [K]
    seen = len(seen_until) - torch.searchsorted(seen_until, bias)  # those whose margin is at least the bias
    unseen_right = torch.searchsorted(unseen_from, bias)
    return seen / (~is_unseen).sum(), unseen_right / is_unseen.sum()


def area_under(seen: Tensor, unseen: Tensor) -> float:
    """The area under a seen-unseen curve, 0..1: 1 is best."""
    return -torch.trapezoid(unseen.double(), seen.double()).item()


def best_harmonic_mean(seen: Tensor, unseen: Tensor) -> float:
    return (2 * seen * unseen / (seen + unseen).clamp(min=1e-9)).max().item()


def combination_parts(ids: Tensor) -> dict[str, Tensor]:
    """Combinations [N] -> the digit, and the bin of each attribute, [N] each."""
    return dict(zip(PARTS, torch.unravel_index(ids, COMBINATIONS), strict=True))


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
