"""Whether a generated image agrees with its caption."""

from collections.abc import Callable

import torch
from torch import Tensor

from attributes import measure
from captions import image_facts
from clip import CLIP
from evaluation.metrics import embed_images


def zero_shot_digits(clip: CLIP) -> Callable[[Tensor], Tensor]:
    """The CLIP itself as a classifier: a function of images [B, 1, 28, 28] that returns digits int64 [B]."""
    classifier = clip.zero_shot_classifier()  # [10, embed_dim]
    return lambda images: (embed_images(clip, images) @ classifier.T).argmax(dim=1)


def generated_facts(images: Tensor, classify: Callable[[Tensor], Tensor]) -> Tensor:
    """Generated images [B, 1, 28, 28] -> what is true of them, bool [B, S]. `classify` finds the digit."""
    return image_facts(classify(images), measure(images))


def agreement(facts: Tensor, claims: Tensor) -> Tensor:
    """Facts of images bool [B, S], claims bool [B, S] or [S] -> whether all claims of each are facts, bool [B]."""
    return torch.all(facts | ~claims, dim=-1)
