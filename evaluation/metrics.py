"""Validation metrics: both directions over a whole split, with text embeddings computed anew."""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from attributes import combination_ids, measure
from captions import combination_claims
from clip import CLIP
from my_dataset import Split


def embed(encode: Callable[[Tensor], Tensor], inputs: Tensor, batch_size: int = 250) -> Tensor:
    """N inputs through `model.encode_image` or the like -> unit vectors [N, embed_dim], in batches that fit a cache."""
    with torch.no_grad():
        return torch.cat([encode(batch) for batch in inputs.split(batch_size)])


def embed_images(model: CLIP, images: Tensor) -> Tensor:
    """Images [N, H, H] -> unit vectors [N, embed_dim], in eval mode; without the warning about bright images."""
    training = model.training
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "most of an image is bright")  # some are inverted on purpose
        embeds = embed(model.eval().encode_image, images)
    model.train(training)
    return embeds


def caption_accuracy(similarity: Tensor, labels: Tensor) -> float:
    """Share of images whose most similar caption is their own. similarity [N, T], labels [N] in 0 ... T - 1."""
    return (similarity.argmax(dim=1) == labels).float().mean().item()


def precision_at_k(similarity: Tensor, relevant: Tensor, k: int) -> Tensor:
    """Share of relevant items among the k most similar. similarity [..., N], relevant bool [N], k <= N -> [...]."""
    return relevant[similarity.topk(k).indices].float().mean(dim=-1)


def text_to_image_precision(similarity: Tensor, labels: Tensor) -> float:
    """R-precision: of the n images of a digit, the share among its caption's n best; over all digits, weighted by n."""
    right = 0.0
    for digit in labels.unique():
        n = int((labels == digit).sum())
        right += n * precision_at_k(similarity[:, digit], labels == digit, n).item()
    return right / len(labels)


@torch.no_grad()
def evaluate(model: CLIP, split: Split) -> dict[str, float]:
    """A split's accuracy in both directions, as plain numbers.

    With captions of attributes, seen_accuracy and unseen_accuracy choose among the captions of all combinations.
    """
    images, classifier = embed_images(model, split.images), model.zero_shot_classifier()
    similarity = images @ classifier.T  # [N, 10]
    scores = {
        "digit_accuracy": caption_accuracy(similarity, split.labels),
        "text_to_image_precision": text_to_image_precision(similarity, split.labels),
    }
    if model.captions.kind == "attributes":
        combinations = combination_ids(split.labels, measure(split.images))
        is_unseen = model.unseen.flatten().to(combinations.device)[combinations]
        to_combinations = model.log_probs(images, combination_claims())  # [N, C]
        for name, which in (("seen", ~is_unseen), ("unseen", is_unseen)):
            scores[f"{name}_accuracy"] = caption_accuracy(to_combinations[which], combinations[which])
    return scores
