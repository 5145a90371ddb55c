"""Calibration: whether an answer given with 90% confidence is right in 90% of cases."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def reliability(probabilities: Tensor, labels: Tensor, bins: int = 15) -> tuple[Tensor, Tensor, Tensor]:
    """Count, mean confidence and accuracy [bins] of the images whose confidence falls into each of equal bins.

    probabilities [N, 10] with rows that sum to 1, labels [N]. The confidence is that of the best caption; a bin's
    upper edge belongs to it. An empty bin has zeros.
    """
    confidence, predicted = probabilities.double().max(dim=1)
    place = ((confidence * bins).ceil().long() - 1).clamp(0, bins - 1)
    count = torch.bincount(place, minlength=bins)
    mean_confidence = torch.bincount(place, confidence, bins) / count.clamp(min=1)
    accuracy = torch.bincount(place, (predicted == labels).double(), bins) / count.clamp(min=1)
    return count, mean_confidence, accuracy


def expected_calibration_error(probabilities: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Mean gap between confidence and accuracy over the bins, weighted by their images (Guo et al., 2017).

    arXiv 1706.04599. 0..1, 0 is best. probabilities [N, 10], labels [N].
    """
    count, confidence, accuracy = reliability(probabilities, labels, bins)
    return ((confidence - accuracy).abs() * count).sum().item() / len(labels)


def fit_temperature(similarity: Tensor, labels: Tensor, low: float = 1e-3, high: float = 10.0) -> float:
    """The temperature from `low` to `high` with the lowest cross-entropy of softmax(similarity / temperature).

    Temperature scaling (Guo et al., 2017) by golden-section search: the cross-entropy is convex in the inverse
    temperature, so along its logarithm too it falls and then rises. Without a mistake in the data it falls all the
    way, to `low`. similarity [N, 10], labels [N]: of a split that the figures are not taken from.
    """

    def loss(log_temperature: float) -> float:
        return F.cross_entropy(similarity.double() / math.exp(log_temperature), labels).item()

    golden = (math.sqrt(5) - 1) / 2
    a, b = math.log(low), math.log(high)
    while b - a > 1e-4:
        c, d = b - golden * (b - a), a + golden * (b - a)
        a, b = (a, d) if loss(c) <= loss(d) else (c, b)
    return math.exp((a + b) / 2)
