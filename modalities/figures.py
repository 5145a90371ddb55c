"""Figures of recordings beside images and captions, for a model with towers for them."""

import torch
from matplotlib.figure import Figure
from torch import Tensor

from captions import DIGIT_WORDS
from clip import CLIP
from evaluation.metrics import embed
from evaluation.pictures import closest_images, ranked_images
from evaluation.similarity import similarity_matrix
from generation.model import Generator
from modalities import speech, strokes
from my_dataset import Split

COLUMNS = 8  # images or recordings in a row
HARD_DIGITS = (1, 5, 7, 9)  # the writers of pendigits write them in other ways than those of MNIST


def one_of_each(sounds: speech.Sounds) -> tuple[speech.Sounds, list[str]]:
    """A recording of each digit from the official test split, the speakers in turn; and their names."""
    places = []
    for digit in range(10):
        fits = (sounds.labels == digit) & (sounds.speakers == digit % len(speech.SPEAKERS))
        places.append(int((fits & (sounds.takes < speech.OFFICIAL_TEST)).nonzero()[0]))
    names = [f"{speech.SPEAKERS[digit % len(speech.SPEAKERS)]}:\n{word}" for digit, word in enumerate(DIGIT_WORDS)]
    return speech.Sounds(*(x[places] for x in sounds)), names


def embed_recordings(model: CLIP, modality: str, inputs: Tensor) -> Tensor:
    """Unit vectors [N, embed_dim], on the model's device."""
    return embed(lambda batch: model.encode(modality, batch), inputs)


def speech_to_images(model: CLIP, sounds: speech.Sounds, split: Split, features: Tensor) -> Figure:
    """The images closest to ten recordings; `features` [N, embed_dim] are the embeddings of the split."""
    spoken, names = one_of_each(sounds)
    similarity = embed_recordings(model, "speech", spoken.mels).cpu() @ features.T  # [10, N]
    is_right = split.labels == spoken.labels[:, None]
    title = "The test images closest to a spoken digit"
    return closest_images(similarity, names, split.images, is_right, title, speech.to_image(spoken.mels), count=COLUMNS)


def speech_to_texts(model: CLIP, sounds: speech.Sounds) -> Figure:
    """Ten recordings against the ten captions, with which the tower was never trained."""
    spoken, names = one_of_each(sounds)
    similarity = embed_recordings(model, "speech", spoken.mels) @ model.zero_shot_classifier().T  # [10, 10]
    names = [name.replace("\n", " ") for name in names]
    title = "Spoken digits against the ten captions"
    return similarity_matrix(similarity.cpu(), DIGIT_WORDS, names, title, ylabel="speaker: spoken digit")


def speech_to_generated(model: CLIP, sounds: speech.Sounds, generator: Generator) -> Figure:
    """Images generated from ten recordings, as from texts, each under the digit that the model finds in it."""
    spoken, names = one_of_each(sounds)
    embeds = embed_recordings(model, "speech", spoken.mels).repeat_interleave(COLUMNS, dim=0)
    images = generator.sample(embeds, torch.Generator(embeds.device).manual_seed(0))  # [10 * COLUMNS, 1, 28, 28]
    with torch.no_grad():
        found = (model.encode_image(images) @ model.zero_shot_classifier().T).argmax(dim=1).view(10, COLUMNS)
    images, pictures = images[:, 0].cpu().view(10, COLUMNS, 28, 28), speech.to_image(spoken.mels)
    rows = [
        (names[i], pictures[i], images[i], [DIGIT_WORDS[j] for j in found[i]], (found[i] == i).tolist())
        for i in range(10)
    ]
    return ranked_images(rows, "Images generated from a spoken digit")


def strokes_to_images(model: CLIP, recordings: strokes.Strokes, split: Split, features: Tensor) -> Figure:
    """The images closest to the first recording of each digit, which is drawn beside its name."""
    first = [int((recordings.labels == digit).nonzero()[0]) for digit in range(10)]
    points, is_right = recordings.points[first], split.labels == torch.arange(10)[:, None]
    similarity = embed_recordings(model, "strokes", points).cpu() @ features.T  # [10, N]
    title = "The test images closest to pen strokes"
    drawings = strokes.draw(points)[:, 0]
    return closest_images(similarity, DIGIT_WORDS, split.images, is_right, title, drawings, count=COLUMNS)


def strokes_read(model: CLIP, recordings: strokes.Strokes) -> Figure:
    """The first recordings of the digits that are hard to read, drawn, under the caption closest to the strokes."""
    rows = []
    for digit in HARD_DIGITS:
        points = recordings.points[recordings.labels == digit][:COLUMNS]
        found = (embed_recordings(model, "strokes", points) @ model.zero_shot_classifier().T).argmax(dim=1).tolist()
        words = [DIGIT_WORDS[one] for one in found]
        rows.append((DIGIT_WORDS[digit], None, strokes.draw(points)[:, 0], words, [one == digit for one in found]))
    return ranked_images(rows, "Pen strokes, drawn, under the caption closest to them")
