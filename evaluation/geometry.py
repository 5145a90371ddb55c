"""Geometry of the shared space, of unit vectors [N, embed_dim]; calibration; and the interval of an accuracy."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def alignment(x: Tensor, y: Tensor) -> float:
    """Mean squared distance of the pairs (x[i], y[i]), 0..4; 0 is best (Wang & Isola, 2020, arXiv 2005.10242)."""
    return (x - y).square().sum(dim=1).mean().item()


def uniformity(x: Tensor) -> float:
    """Logarithm of the mean of exp(-2 distance^2) over all pairs of rows (Wang & Isola, 2020).

    Lower is more uniform; 0: all vectors are one.
    """
    return torch.pdist(x).square_().mul_(-2).exp_().mean().log().item()


def fit_temperature(similarity: Tensor, labels: Tensor) -> float:
    """The temperature with the lowest cross-entropy of softmax(similarity / temperature), of 0.001 to 10.

    Temperature scaling (Guo et al., 2017). similarity [N, 10], labels [N]: of another split than the figures.
    """
    from scipy.optimize import minimize_scalar  # scipy takes a second to import

    def loss(log_temperature: float) -> float:
        return F.cross_entropy(similarity.double() / math.exp(log_temperature), labels).item()

    return math.exp(minimize_scalar(loss, bounds=(math.log(1e-3), math.log(10)), method="bounded").x)


def reliability(probabilities: Tensor, labels: Tensor, bins: int = 15) -> tuple[Tensor, Tensor, Tensor]:
    """Count, mean confidence and accuracy [bins] of the images whose confidence falls into each of equal bins.

    probabilities [N, 10], labels [N] (Guo et al., 2017, arXiv 1706.04599). A bin's upper edge belongs to it; an empty
    bin has zeros.
    """
    confidence, predicted = probabilities.double().max(dim=1)
    place = ((confidence * bins).ceil().long() - 1).clamp(0, bins - 1)
    count = torch.bincount(place, minlength=bins)
    mean_confidence = torch.bincount(place, confidence, bins) / count.clamp(min=1)
    accuracy = torch.bincount(place, (predicted == labels).double(), bins) / count.clamp(min=1)
    return count, mean_confidence, accuracy


def expected_calibration_error(probabilities: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Mean gap between confidence and accuracy over the bins of `reliability`, weighted by their images: 0 is best."""
    count, confidence, accuracy = reliability(probabilities, labels, bins)
    return ((confidence - accuracy).abs() * count).sum().item() / len(labels)


def wilson_interval(correct: int, n: int) -> tuple[float, float]:
    """The 95% interval of the share correct / n (Wilson, 1927)."""
    z = 1.96
    centre = (correct + z**2 / 2) / (n + z**2)
    half = z / (n + z**2) * math.sqrt(correct * (n - correct) / n + z**2 / 4)
    return (centre - half if correct else 0.0), (centre + half if correct < n else 1.0)  # rounding would miss these two


def accuracy_with_ci(predicted: Tensor, labels: Tensor) -> dict:
    """The share of correct predictions, both [N], with its 95% interval and its counts."""
    correct, n = int((predicted == labels).sum()), len(labels)
    return {"accuracy": correct / n, "interval": wilson_interval(correct, n), "correct": correct, "images": n}
