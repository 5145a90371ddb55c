"""Geometry of the shared space, of unit vectors [N, embed_dim]; calibration; and the interval of an accuracy."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def alignment(x: Tensor, y: Tensor) -> float:
    """Mean squared distance of the pairs (x[i], y[i]), 0..4; 0 is best (Wang & Isola, 2020, arXiv 2005.10242)."""
    return (x - y).square().sum(dim=1).mean().item()


def uniformity(x: Tensor, t: float = 2.0) -> float:
    """Logarithm of the mean of exp(-t distance^2) over all pairs of two different rows; lower is more uniform.

    Wang & Isola, 2020, arXiv 2005.10242. 0: all vectors are one. Unit vectors only: distance^2 is 2 - 2 cosine.
    """
    n, total = len(x), 0.0
    for rows in x.split(1000):
        total += torch.exp(2 * t * (rows @ x.T - 1)).sum(dtype=torch.double).item()
    own = torch.exp(2 * t * (x.square().sum(dim=1) - 1)).sum(dtype=torch.double).item()  # each row with itself
    return torch.tensor((total - own) / (n * (n - 1))).log().item()


def fit_temperature(similarity: Tensor, labels: Tensor, low: float = 1e-3, high: float = 10.0) -> float:
    """The temperature from `low` to `high` with the lowest cross-entropy of softmax(similarity / temperature).

    Temperature scaling (Guo et al., 2017). similarity [N, 10], labels [N]: of a split that the figures are not taken
    from. Without a mistake in the data it is `low`.
    """
    from scipy.optimize import minimize_scalar  # scipy takes a second to import

    def loss(log_temperature: float) -> float:
        return F.cross_entropy(similarity.double() / math.exp(log_temperature), labels).item()

    return math.exp(minimize_scalar(loss, bounds=(math.log(low), math.log(high)), method="bounded").x)


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


def wilson_interval(correct: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """The interval of the share correct / n, at 95% for z = 1.96 (Wilson, 1927). Within 0..1, n > 0."""
    centre = (correct + z**2 / 2) / (n + z**2)
    half = z / (n + z**2) * math.sqrt(correct * (n - correct) / n + z**2 / 4)
    return (centre - half if correct else 0.0), (centre + half if correct < n else 1.0)  # rounding would miss these two


def accuracy_with_ci(predicted: Tensor, labels: Tensor) -> dict:
    """The share of correct predictions, both [N], with its 95% interval and its counts."""
    correct, n = int((predicted == labels).sum()), len(labels)
    return {"accuracy": correct / n, "interval": wilson_interval(correct, n), "correct": correct, "images": n}
