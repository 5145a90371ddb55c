"""Sections of evaluate.py, as plain numbers, and the interval of an accuracy."""

import torch
import torch.nn.functional as F
from torch import Tensor

from evaluation.metrics import text_to_image_precision
from evaluation.retrieval import average_precision


def accuracy_with_ci(predicted: Tensor, labels: Tensor) -> dict:
    """The share of correct predictions, both [N], with its 95% interval (Wilson, 1927) and its counts."""
    from scipy.stats import binomtest  # scipy takes a second to import

    correct, n = int((predicted == labels).sum()), len(labels)
    interval = binomtest(correct, n).proportion_ci(method="wilson")
    return {"accuracy": correct / n, "interval": tuple(interval), "correct": correct, "images": n}


def retrieval(similarity: Tensor, labels: Tensor) -> dict:
    """Text -> image with the ten captions. similarity [N, 10], labels [N]."""
    is_relevant = labels == torch.arange(10)[:, None]  # [10, N]
    return {
        "r_precision": text_to_image_precision(similarity, labels),
        "mean_average_precision": average_precision(similarity.T, is_relevant).mean().item(),
    }


def linear_probe(train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor) -> dict:
    """Accuracy of a linear classifier of frozen image embeddings [N, embed_dim], fitted on training images."""
    from sklearn.linear_model import LogisticRegression  # scikit-learn takes a second to import

    probe = LogisticRegression(max_iter=1000).fit(train, train_labels)
    return accuracy_with_ci(torch.from_numpy(probe.predict(test)), test_labels)


def calibration(similarity: Tensor, labels: Tensor, temperature: float) -> dict:
    """Cross-entropy (nats) and calibration error of the softmax over captions. similarity [N, 10], labels [N]."""
    logits = similarity / temperature
    return {
        "temperature": temperature,
        "cross_entropy": F.cross_entropy(logits, labels).item(),
        "expected_calibration_error": expected_calibration_error(logits.softmax(dim=1), labels),
    }


def expected_calibration_error(probabilities: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Mean gap between confidence and accuracy over equal bins of confidence, weighted by their images: 0 is best.

    probabilities [N, 10], labels [N] (Guo et al., 2017, arXiv 1706.04599). A bin's upper edge belongs to it.
    """
    confidence, predicted = probabilities.double().max(dim=1)
    place = ((confidence * bins).ceil().long() - 1).clamp(0, bins - 1)  # [N]: the bin of each image
    gaps = torch.bincount(place, confidence - (predicted == labels).double(), bins)  # [bins]
    return gaps.abs().sum().item() / len(labels)
