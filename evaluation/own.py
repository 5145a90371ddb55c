"""Own data: recall at k in both directions."""

import contextlib

import torch
from torch import Tensor

from clip import CLIP
from evaluation.metrics import embed_images
from evaluation.retrieval import fair_recall_at_k
from my_dataset import OwnSplit
from my_utils import InputError

RECALLS = tuple(f"{way}_recall_at_{k}" for way in ("image_to_text", "text_to_image") for k in (1, 5))
ROWS = 500  # texts that are read, or queries that are compared with all candidates, at a time


def embed_texts(model: CLIP, texts: tuple[str, ...]) -> Tensor:
    """Texts -> unit vectors [T, embed_dim]. One that the model cannot read is a zero vector."""
    embeds, known = torch.zeros(len(texts), model.arch["embed_dim"]), []
    for i, text in enumerate(texts):
        with contextlib.suppress(InputError):  # an unknown word, or too many words
            model.tokenize(text)
            known.append(i)
    for part in (known[first : first + ROWS] for first in range(0, len(known), ROWS)):
        embeds[part] = model.prompt_ensemble([texts[i] for i in part], paraphrases=1).cpu()
    return embeds


def evaluate_own(model: CLIP, split: OwnSplit) -> dict[str, float]:
    """RECALLS among all pictures and texts of a split, and the share of texts that cannot be read; plain numbers.

    A text that cannot be read finds nothing, and is not found. With classes, class_accuracy is the share of pictures
    whose nearest text is their class.
    """
    split, images, texts = split.to("cpu"), embed_images(model, split.images).cpu(), embed_texts(model, split.texts)
    all_images, all_texts = torch.arange(len(images)), torch.arange(len(texts))
    unread = (texts == 0).all(dim=1)  # [T]
    by_image = (
        ((images[i] @ texts.T).masked_fill(unread, -2), split.belongs(i, all_texts)) for i in all_images.split(ROWS)
    )
    by_text = ((texts[i] @ images.T, split.belongs(all_images, i).T) for i in all_texts.split(ROWS))
    recalls = []
    for parts, misses in ((by_image, torch.zeros(len(images), dtype=torch.bool)), (by_text, unread)):
        values = [torch.stack([fair_recall_at_k(*part, k) for k in (1, 5)]) for part in parts]  # [2, queries] each
        recalls += torch.cat(values, dim=1).masked_fill(misses, 0).nanmean(dim=1).tolist()
    metrics = dict(zip(RECALLS, recalls, strict=True)) | ({"class_accuracy": recalls[0]} if split.classes else {})
    return metrics | {"unread_texts": unread.float().mean().item()}
