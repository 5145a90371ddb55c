"""Figures of recordings beside images and captions, for a model with towers for them."""

import torch
from matplotlib.figure import Figure
from torch import Tensor

from captions import DIGIT_WORDS
from clip import CLIP
from evaluation.pictures import closest_images, ranked_images
from evaluation.similarity import similarity_matrix
from generation.model import Generator
from modalities import speech, strokes
from my_dataset import Split

COLUMNS = 8  # images or recordings in a row
HARD_DIGITS = (1, 5, 7, 9)  # the writers of pendigits write them in other ways than those of MNIST


def one_of_each(sounds: speech.Sounds) -> tuple[Tensor, list[str]]:
    """A recording of each digit from the official test split, [10, 40, 64], the speakers in turn; and their names."""
    digits = torch.arange(10)[:, None]
    speakers = digits % len(speech.SPEAKERS)  # [10, 1]
    fits = (sounds.labels == digits) & (sounds.speakers == speakers) & (sounds.takes < speech.OFFICIAL_TEST)  # [10, N]
    names = [f"{speech.SPEAKERS[i]}:\n{word}" for i, word in zip(speakers, DIGIT_WORDS, strict=True)]
    return sounds.mels[fits.int().argmax(dim=1)], names  # the first that fits


def nearest_digits(model: CLIP, embeds: Tensor, digit: int) -> tuple[list[str], list[bool]]:
    """The digit that the model finds in each unit vector [N, embed_dim], as a word; and whether it is this one."""
    found = (embeds @ model.zero_shot_classifier().T).argmax(dim=1).tolist()
    return [DIGIT_WORDS[one] for one in found], [one == digit for one in found]


def speech_to_images(model: CLIP, sounds: speech.Sounds, split: Split, features: Tensor) -> Figure:
    """The images closest to ten recordings; `features` [N, embed_dim] are the embeddings of the split."""
    mels, names = one_of_each(sounds)
    return ten_to_images(model, "speech", mels, names, speech.to_image(mels), split, features)


def strokes_to_images(model: CLIP, recordings: strokes.Strokes, split: Split, features: Tensor) -> Figure:
    """The images closest to the first recording of each digit, which is drawn beside its name."""
    points = recordings.points[(recordings.labels == torch.arange(10)[:, None]).int().argmax(dim=1)]  # [10, 8, 2]
    return ten_to_images(model, "strokes", points, DIGIT_WORDS, strokes.draw(points)[:, 0], split, features)


@torch.no_grad()
def ten_to_images(model, modality, recordings, names, pictures, split, features) -> Figure:
    similarity = model.encode(modality, recordings).cpu() @ features.T  # [10, N]
    is_right, title = split.labels == torch.arange(10)[:, None], f"The test images closest to {modality}"
    return closest_images(similarity, names, split.images, is_right, title, pictures, count=COLUMNS)


@torch.no_grad()
def speech_to_texts(model: CLIP, sounds: speech.Sounds) -> Figure:
    """Ten recordings against the ten captions, with which the tower was never trained."""
    mels, names = one_of_each(sounds)
    similarity = (model.encode("speech", mels) @ model.zero_shot_classifier().T).cpu()  # [10, 10]
    names, title = [name.replace("\n", " ") for name in names], "Spoken digits against the ten captions"
    return similarity_matrix(similarity, DIGIT_WORDS, names, title, ylabel="speaker: spoken digit")


@torch.no_grad()
def speech_to_generated(model: CLIP, sounds: speech.Sounds, generator: Generator) -> Figure:
    """Images generated from ten recordings, as from texts, each under the digit that the model finds in it."""
    mels, names = one_of_each(sounds)
    embeds = model.encode("speech", mels).repeat_interleave(COLUMNS, dim=0)
    images = generator.sample(embeds, torch.Generator(embeds.device).manual_seed(0))  # [10 * COLUMNS, 1, 28, 28]
    found = [nearest_digits(model, model.encode_image(part), i) for i, part in enumerate(images.split(COLUMNS))]
    shown, pictures = images[:, 0].cpu().view(10, COLUMNS, 28, 28), speech.to_image(mels)
    rows = [(names[i], pictures[i], shown[i], *found[i]) for i in range(10)]
    return ranked_images(rows, "Images generated from a spoken digit")


@torch.no_grad()
def strokes_read(model: CLIP, recordings: strokes.Strokes) -> Figure:
    """The first recordings of the digits that are hard to read, drawn, under the caption closest to the strokes."""
    rows = []
    for digit in HARD_DIGITS:
        points = recordings.points[recordings.labels == digit][:COLUMNS]
        found = nearest_digits(model, model.encode("strokes", points), digit)
        rows.append((DIGIT_WORDS[digit], None, strokes.draw(points)[:, 0], *found))
    return ranked_images(rows, "Pen strokes, drawn, under the caption closest to them")
