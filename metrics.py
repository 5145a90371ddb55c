"""What is measured while training: both directions over a whole split, with text embeddings computed anew."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from captions import TEMPLATES, all_sentences
from clip import CLIP
from evaluation.calibration import expected_calibration_error
from evaluation.geometry import effective_rank, modality_gap
from evaluation.retrieval import mean_average_precision, text_to_image_precision
from my_dataset import Split


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

    With several templates a digit is the mean of its sentences' embeddings, normalised again (the prompt ensemble of
    Radford et al., 2021, section 3.1.4). None: the templates that the text encoder is trained on.
    """
    training = model.training
    model.eval()
    features = model.encode_text(all_sentences(templates or TEMPLATES[model.arch["text_encoder"]]))
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
