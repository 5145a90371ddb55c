"""The geometry of the shared space, of unit vectors [N, embed_dim]; and calibration: whether an answer given with 90%
confidence is right in 90% of cases."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def modality_gap(images: Tensor, texts: Tensor) -> float:
    """Distance between the mean image and the mean text vector, 0..2 (Liang et al., 2022, arXiv 2203.02053)."""
    return (images.mean(dim=0) - texts.mean(dim=0)).norm().item()


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


def effective_rank(x: Tensor) -> float:
    """exp of the entropy of the singular values as shares of their sum, 1..embed_dim (Roy & Vetterli, 2007).

    Of the vectors as they are, not centred.
    """
    values = torch.linalg.svdvals(x)
    shares = values / values.sum()
    return torch.special.entr(shares).sum().exp().item()


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
