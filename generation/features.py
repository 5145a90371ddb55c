"""What a trained CLIP makes of images and captions, computed once: the generator is trained on it."""

from typing import NamedTuple

import torch
from torch import Tensor

from attributes import combination_ids, measure
from captions import Texts, sample_descriptions
from clip import CLIP
from evaluation.metrics import embed, embed_images
from my_dataset import Split


class Cached(NamedTuple):
    """N images, with what the frozen CLIP makes of them."""

    images: Tensor  # float [N, 1, 28, 28] in [0, 1]
    digits: Tensor  # int64 [N]
    values: Tensor  # [N, A], of the attributes
    embeds: Tensor  # [N, embed_dim]


def encode_captions(clip: CLIP) -> Tensor:
    """The embeddings of all sentences that captions are sampled from: [sentences, embed_dim]."""
    sentences = clip.captions.sentences
    places = torch.arange(len(sentences), device=clip.logit_scale.device)
    return embed(lambda some: clip.encode_text(Texts(sentences, some)), places)


def precompute(clip: CLIP, split: Split) -> Cached:
    """What the CLIP makes of a split. With captions of attributes, images of its unseen combinations are left out."""
    (images, digits), values = split, measure(split.images)
    if clip.captions.name_attributes:
        unseen = clip.unseen.flatten().to(digits.device)
        is_seen = ~unseen[combination_ids(digits, values)]  # [N]
        images, digits, values = images[is_seen], digits[is_seen], values[is_seen]
    images = images[:, None].float() / 255  # [N, 1, 28, 28]
    return Cached(images, digits, values, embed_images(clip, images))


def sample_captions(clip: CLIP, data: Cached, rows: Tensor) -> tuple[Tensor, Tensor]:
    """A true caption for each of these images: places among all sentences, and descriptions, int64 [B]."""
    ids = data.digits[rows]
    if clip.captions.name_attributes:
        ids = sample_descriptions(ids, data.values[rows])
    return clip.captions.sample(ids).index, ids
