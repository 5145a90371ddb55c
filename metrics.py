"""What is measured: image -> text and text -> image, over a whole split, with text embeddings computed anew."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from clip import CLIP
from my_dataset import Split
from templates import fill


@torch.no_grad()
def embed_images(model: CLIP, images: Tensor, batch_size: int = 1000) -> Tensor:
    """Images [N, 28, 28] -> unit vectors [N, embed_dim], in eval mode, in batches that fit anywhere."""
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


def text_to_image_precision(similarity: Tensor, labels: Tensor) -> float:
    """R-precision of text -> image: of the n images that a digit has, the share among the caption's n best images.

    Every image of the digit is right. Over all digits, weighted by n. similarity [N, 10], labels [N].
    """
    right = 0
    for digit in labels.unique():
        n = int((labels == digit).sum())
        best = similarity[:, digit].topk(n).indices
        right += int((labels[best] == digit).sum())
    return right / len(labels)


def evaluate(model: CLIP, split: Split) -> dict[str, float]:
    """Both directions of a split, as plain numbers in 0..1."""
    similarity = embed_images(model, split.images) @ zero_shot_classifier(model).T  # [N, 10]
    return {
        "zero_shot_accuracy": zero_shot_accuracy(similarity, split.labels),
        "text_to_image_precision": text_to_image_precision(similarity, split.labels),
    }
