"""What is measured while training: both directions over a whole split, with text embeddings computed anew."""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from attributes import measure
from captions import Texts, all_sentences, facts_of, things_of_cells
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
def embed(encode: Callable[[Tensor], Tensor], inputs: Tensor, batch_size: int = 500) -> Tensor:
    """`model.encode_strokes` or `model.encode_speech` on all of N inputs -> unit vectors [N, embed_dim]."""
    return torch.cat([encode(part) for part in inputs.split(batch_size)])


@torch.no_grad()
def prompt_ensemble(model: CLIP, texts: list[str] | Texts, phrasings: int) -> Tensor:
    """T * `phrasings` texts, those of one thing behind each other -> unit vectors [T, embed_dim], in eval mode.

    Each is the mean of its phrasings' embeddings, normalised again (Radford et al., 2021, section 3.1.4).
    """
    training = model.training
    model.eval()
    features = model.encode_text(texts)
    model.train(training)
    return F.normalize(features.view(-1, phrasings, features.shape[-1]).mean(dim=1), dim=-1)


def caption_vectors(model: CLIP, things: Tensor) -> Tensor:
    """Things to say [T], places in `model.captions` -> unit vectors [T, embed_dim], by the text tower as it is now."""
    texts = model.captions.all_of(things.to(model.logit_scale.device))
    return prompt_ensemble(model, texts, model.captions.phrasings)


def digit_classifier(model: CLIP, templates: Sequence[str] | None = None) -> Tensor:
    """Unit vectors [10, embed_dim], the captions that name a digit alone; `templates`: those filled with each digit."""
    if templates is None:
        return caption_vectors(model, model.captions.of_digits())
    return prompt_ensemble(model, list(all_sentences(templates)), len(templates))


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
    """What a split tells in a moment: both directions, calibration and geometry, as plain numbers.

    Shares and `ece` lie in 0..1, modality_gap in 0..2, effective_rank in 1..embed_dim; accuracy_0 ... accuracy_9 are
    those of the digits that occur. `ece` is that of the softmax over the ten captions at the learned temperature.
    """
    images, captions = embed_images(model, split.images), digit_classifier(model)
    similarity = images @ captions.T  # [N, 10]
    probabilities = (similarity * model.logit_scale.exp()).softmax(dim=1)
    digits = zip(split.labels.unique().tolist(), digit_accuracies(similarity, split.labels), strict=True)
    described = {}
    if model.captions.described:
        cells = facts_of(split.labels, *measure(split.images))[1]
        is_unseen = model.unseen.flatten().to(cells.device)[cells]
        of_cells = images @ caption_vectors(model, things_of_cells()).T  # [N, 90]
        for name, which in (("seen", ~is_unseen), ("unseen", is_unseen)):
            described[f"{name}_accuracy"] = caption_accuracy(of_cells[which], cells[which])
    return {
        "digit_accuracy": caption_accuracy(similarity, split.labels),
        "text_to_image_precision": text_to_image_precision(similarity, split.labels),
        "mean_average_precision": mean_average_precision(similarity, split.labels),
        "ece": expected_calibration_error(probabilities, split.labels),
        "modality_gap": modality_gap(images, captions),
        "effective_rank": effective_rank(images),
        **described,
        **{f"accuracy_{digit}": accuracy for digit, accuracy in digits},
    }
