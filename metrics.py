"""What is measured: both directions over a whole split, with text embeddings computed anew, and calibration."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from clip import CLIP
from geometry import effective_rank, modality_gap
from my_dataset import Split
from retrieval import mean_average_precision, text_to_image_precision
from templates import fill


@torch.no_grad()
def embed_images(model: CLIP, images: Tensor, batch_size: int = 250) -> Tensor:
    """Images [N, 28, 28] -> unit vectors [N, embed_dim], in eval mode, in batches that fit into a CPU's cache."""
    training = model.training
    model.eval()
    features = torch.cat([model.encode_image(batch) for batch in images.split(batch_size)])
    model.train(training)
    return features


@torch.no_grad()
def zero_shot_classifier(model: CLIP, templates: Sequence[str] | None = None) -> Tensor:
    """Unit vectors [10, embed_dim], one for each digit, from the text tower as it is now.

    With several prompts a digit is the mean of their embeddings, normalised again (the prompt ensemble of
    Radford et al., 2021, section 3.1.4). `templates` holds {word} or {numeral}; None: the encoder's own prompts.
    """
    prompts = [[fill(template, digit) for template in templates] for digit in range(10)] if templates else None
    training = model.training
    model.eval()
    features = model.encode_text([text for texts in prompts or model.text_encoder.class_prompts for text in texts])
    model.train(training)
    return F.normalize(features.view(10, -1, features.shape[-1]).mean(dim=1), dim=-1)


def zero_shot_accuracy(similarity: Tensor, labels: Tensor) -> float:
    """Share of images whose most similar caption is their own. similarity [N, 10], labels [N]."""
    return (similarity.argmax(dim=1) == labels).float().mean().item()


def digit_accuracies(similarity: Tensor, labels: Tensor) -> list[float]:
    """zero_shot_accuracy among the images of each digit that occurs, in the digits' order."""
    return [zero_shot_accuracy(similarity[labels == digit], labels[labels == digit]) for digit in labels.unique()]


def wilson_interval(right: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Bounds of a share that was `right` of `n`, at 95% for z = 1.96 (Wilson, 1927). Never beyond 0..1, n > 0."""
    centre = (right + z**2 / 2) / (n + z**2)
    half = z / (n + z**2) * math.sqrt(right * (n - right) / n + z**2 / 4)
    return (centre - half if right else 0.0), (centre + half if right < n else 1.0)  # rounding would miss these two


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


@torch.no_grad()
def evaluate(model: CLIP, split: Split) -> dict[str, float]:
    """What a split tells in a moment: both directions, calibration and geometry, as plain numbers.

    Shares and `ece` lie in 0..1, modality_gap in 0..2, effective_rank in 1..embed_dim; accuracy_0 ... accuracy_9 are
    those of the digits that occur. `ece` is that of the softmax over the ten captions at the learned temperature.
    """
    images, captions = embed_images(model, split.images), zero_shot_classifier(model)
    similarity = images @ captions.T  # [N, 10]
    probabilities = (similarity * model.logit_scale.exp()).softmax(dim=1)
    digits = zip(split.labels.unique().tolist(), digit_accuracies(similarity, split.labels), strict=True)
    return {
        "zero_shot_accuracy": zero_shot_accuracy(similarity, split.labels),
        "text_to_image_precision": text_to_image_precision(similarity, split.labels),
        "mean_average_precision": mean_average_precision(similarity, split.labels),
        "ece": expected_calibration_error(probabilities, split.labels),
        "modality_gap": modality_gap(images, captions),
        "effective_rank": effective_rank(images),
        **{f"accuracy_{digit}": accuracy for digit, accuracy in digits},
    }
