"""Own data: recall at k in both directions, and the pictures of a search."""

import textwrap

import torch
from matplotlib.figure import Figure
from torch import Tensor

from clip import CLIP
from evaluation.metrics import embed_images
from evaluation.pictures import ranked_images
from evaluation.retrieval import fair_recall_at_k
from my_dataset import OwnSplit
from my_utils import InputError

RECALLS = tuple(f"{way}_recall_at_{k}" for way in ("image_to_text", "text_to_image") for k in (1, 5))
ROWS = 500  # texts that are read, or queries that are compared with all candidates, at a time


def embed_texts(model: CLIP, texts: tuple[str, ...]) -> Tensor:
    """Texts -> unit vectors [T, embed_dim]. One that the model cannot read is a zero vector: its recall is chance."""
    embeds = torch.zeros(len(texts), model.arch["embed_dim"], device=model.logit_scale.device)
    known = [i for i, text in enumerate(texts) if can_read(model, text)]
    for first in range(0, len(known), ROWS):
        part = known[first : first + ROWS]
        embeds[part] = model.prompt_ensemble([texts[i] for i in part], paraphrases=1)
    return embeds


def can_read(model: CLIP, text: str) -> bool:
    try:
        model.tokenize(text)
    except InputError:  # an unknown word, or too many words
        return False
    return True


def evaluate_own(model: CLIP, split: OwnSplit) -> dict[str, float]:
    """RECALLS among all pictures and texts of a split, and the share of texts that cannot be read; plain numbers.

    With classes, class_accuracy is the share of pictures whose nearest text is their class.
    """
    images, texts = embed_images(model, split.images), embed_texts(model, split.texts)
    all_images, all_texts = (torch.arange(len(x), device=images.device) for x in (images, texts))
    by_image = ((images[i] @ texts.T, split.belongs(i, all_texts)) for i in all_images.split(ROWS))
    by_text = ((texts[i] @ images.T, split.belongs(all_images, i).T) for i in all_texts.split(ROWS))
    recalls = []
    for parts in (by_image, by_text):
        values = [torch.stack([fair_recall_at_k(*part, k) for k in (1, 5)]) for part in parts]  # [2, queries] each
        recalls += torch.cat(values, dim=1).nanmean(dim=1).tolist()
    metrics = dict(zip(RECALLS, recalls, strict=True))
    if split.classes:
        return metrics | {"class_accuracy": recalls[0]}
    return metrics | {"unread_texts": (texts == 0).all(dim=1).float().mean().item()}


def search(model: CLIP, split: OwnSplit, count: int = 6) -> Figure:
    """For some texts of a split the pictures closest to them, and for some pictures the closest texts."""
    split = split.to("cpu")
    images, texts = embed_images(model, split.images).cpu(), embed_texts(model, split.texts).cpu()
    pixels = split.images.permute(0, 2, 3, 1).squeeze(-1)  # [N, H, H, 3], of grey pictures [N, H, H]
    similarity, rows = images @ texts.T, []  # [N, T]
    for place in torch.arange(0, len(texts), -(-len(texts) // count)):
        best = similarity[:, place].topk(min(8, len(images)))
        is_right = split.belongs(best.indices, place[None])[:, 0].tolist()
        cosines = [f"{cosine:.2f}" for cosine in best.values.tolist()]
        rows.append((textwrap.fill(split.texts[place], 18), None, pixels[best.indices], cosines, is_right))
    shown = torch.arange(0, len(images), -(-len(images) // 8))
    nearest = similarity[shown].argmax(dim=1)
    is_right = [bool(split.belongs(one[None], text[None])) for one, text in zip(shown, nearest, strict=True)]
    names = [textwrap.fill(split.texts[i], 14) for i in nearest.tolist()]
    rows.append(("the nearest\ntext", None, pixels[shown], names, is_right))
    return ranked_images(rows, "the pictures closest to each text; and pictures under the closest text")
