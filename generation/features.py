"""What a trained CLIP makes of images and captions, computed once; and whether generated images agree with captions."""

from typing import NamedTuple

import torch
from torch import Tensor

from attributes import combination_ids, measure
from captions import image_facts, sample_descriptions
from clip import CLIP
from evaluation.metrics import embed_images
from my_dataset import Split


class Cached(NamedTuple):
    """N images, with what the frozen CLIP makes of them."""

    images: Tensor  # float [N, 1, 28, 28] in [0, 1]
    digits: Tensor  # int64 [N]
    values: Tensor  # [N, A], of the attributes
    embeds: Tensor  # [N, embed_dim]


def precompute(clip: CLIP, split: Split) -> Cached:
    """What the CLIP makes of a split. With captions of attributes, images of its unseen combinations are left out."""
    (images, digits), values = split, measure(split.images)
    if clip.captions.kind == "attributes":
        is_seen = ~clip.unseen.flatten().to(digits.device)[combination_ids(digits, values)]  # [N]
        images, digits, values = images[is_seen], digits[is_seen], values[is_seen]
    images = images[:, None].float() / 255  # [N, 1, 28, 28]
    return Cached(images, digits, values, embed_images(clip, images))


def sample_captions(clip: CLIP, data: Cached, rows: Tensor) -> tuple[Tensor, Tensor]:
    """A true caption for each of these images: places among all sentences, and descriptions, int64 [B]."""
    ids = data.digits[rows]
    if clip.captions.kind == "attributes":
        ids = sample_descriptions(ids, data.values[rows])
    return clip.captions.sample(ids).index, ids


def agreement(facts: Tensor, claims: Tensor) -> Tensor:
    """Facts of images bool [B, S], claims bool [B, S] or [S] -> whether all claims of each are facts, bool [B]."""
    return torch.all(facts | ~claims, dim=-1)


def judge(clip: CLIP, images: Tensor, claims: Tensor) -> Tensor:
    """`agreement` of generated images [B, 1, 28, 28] with claims, bool [B]. The CLIP itself finds the digits."""
    digits = (embed_images(clip, images) @ clip.zero_shot_classifier().T).argmax(dim=1)
    return agreement(image_facts(digits, measure(images)), claims)
