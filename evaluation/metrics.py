"""Validation metrics: both directions over a whole split, with text embeddings computed anew."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from attributes import combination_ids, measure
from captions import combination_description_ids
from clip import CLIP
from evaluation.geometry import effective_rank, expected_calibration_error, modality_gap
from evaluation.retrieval import mean_average_precision, text_to_image_precision
from my_dataset import Split


def embed(encode: Callable[[Tensor], Tensor], inputs: Tensor, batch_size: int = 250) -> Tensor:
    """N inputs through `model.encode_image` or the like -> unit vectors [N, embed_dim], in batches that fit a cache."""
    with torch.no_grad():
        return torch.cat([encode(batch) for batch in inputs.split(batch_size)])


def embed_images(model: CLIP, images: Tensor) -> Tensor:
    """Images [N, 28, 28] -> unit vectors [N, embed_dim], in eval mode."""
    training = model.training
    embeds = embed(model.eval().encode_image, images)
    model.train(training)
    return embeds


def caption_accuracy(similarity: Tensor, labels: Tensor) -> float:
    """Share of images whose most similar caption is their own. similarity [N, T], labels [N] in 0 ... T - 1."""
    return (similarity.argmax(dim=1) == labels).float().mean().item()


def digit_accuracies(similarity: Tensor, labels: Tensor) -> list[float]:
    """`caption_accuracy` among the images of each digit that occurs, in the digits' order."""
    return [caption_accuracy(similarity[labels == digit], labels[labels == digit]) for digit in labels.unique()]


def wilson_interval(right: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Bounds of a share that was `right` of `n`, at 95% for z = 1.96 (Wilson, 1927). Never beyond 0..1, n > 0."""
    centre = (right + z**2 / 2) / (n + z**2)
    half = z / (n + z**2) * math.sqrt(right * (n - right) / n + z**2 / 4)
    return (centre - half if right else 0.0), (centre + half if right < n else 1.0)  # rounding would miss these two


@torch.no_grad()
def evaluate(model: CLIP, split: Split) -> dict[str, float]:
    """A split's accuracy in both directions, calibration and geometry, as plain numbers.

    Shares and `ece` lie in 0..1, modality_gap in 0..2, effective_rank in 1..embed_dim; accuracy_0 ... accuracy_9 are
    those of the digits that occur. `ece` is that of the softmax over the ten captions at the learned temperature.
    With captions of attributes, seen_accuracy and unseen_accuracy choose among the captions of all combinations.
    """
    images, classifier = embed_images(model, split.images), model.zero_shot_classifier()
    similarity = images @ classifier.T  # [N, 10]
    probabilities = (similarity * model.logit_scale.exp()).softmax(dim=1)
    digits = zip(split.labels.unique().tolist(), digit_accuracies(similarity, split.labels), strict=True)
    by_combination = {}
    if model.captions.name_attributes:
        combinations = combination_ids(split.labels, measure(split.images))
        is_unseen = model.unseen.flatten().to(combinations.device)[combinations]
        to_combinations = images @ model.embed_descriptions(combination_description_ids()).T  # [N, C]
        for name, which in (("seen", ~is_unseen), ("unseen", is_unseen)):
            by_combination[f"{name}_accuracy"] = caption_accuracy(to_combinations[which], combinations[which])
    return {
        "digit_accuracy": caption_accuracy(similarity, split.labels),
        "text_to_image_precision": text_to_image_precision(similarity, split.labels),
        "mean_average_precision": mean_average_precision(similarity, split.labels),
        "ece": expected_calibration_error(probabilities, split.labels),
        "modality_gap": modality_gap(images, classifier),
        "effective_rank": effective_rank(images),
        **by_combination,
        **{f"accuracy_{digit}": accuracy for digit, accuracy in digits},
    }
