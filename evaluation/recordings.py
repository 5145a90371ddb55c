"""Pictures of recordings, spoken or written with a pen, beside images and captions: of a model with their towers."""

import torch
from matplotlib.figure import Figure
from torch import Tensor

from captions import DIGIT_WORDS
from clip import CLIP
from data.fsdd import OFFICIAL_TEST, SPEAKERS, Sounds
from data.pendigits import Strokes, draw
from evaluation.metrics import digit_classifier, embed
from evaluation.pictures import closest_images, ranked_images, similarity_matrix
from generator import Generator
from my_dataset import Split
from speech_encoder import as_picture

EACH = 8  # images or recordings in a row
HARD = (1, 5, 7, 9)  # digits that pendigits' writers write unlike MNIST's


def one_of_each(sounds: Sounds) -> Sounds:
    """A recording of each digit from the official test split, by one speaker after the other."""
    places = [
        int(
            (
                (sounds.labels == digit) & (sounds.speakers == digit % len(SPEAKERS)) & (sounds.takes < OFFICIAL_TEST)
            ).nonzero()[0]
        )
        for digit in range(10)
    ]
    return Sounds(*(x[places] for x in sounds))


def names_of(sounds: Sounds) -> list[str]:
    return [f"{SPEAKERS[s]}:\n{DIGIT_WORDS[d]}" for s, d in zip(sounds.speakers, sounds.labels, strict=True)]


def speech_to_images(model: CLIP, sounds: Sounds, split: Split, features: Tensor) -> Figure:
    """The images closest to ten recordings; `features` are the split's [N, embed_dim]."""
    heard = one_of_each(sounds)
    similarity = embed_here(model, heard).cpu() @ features.T
    fits = split.labels == heard.labels[:, None]
    title = "The test images closest to a spoken digit"
    return closest_images(similarity, names_of(heard), split.images, fits, title, as_picture(heard.mels), EACH)


def speech_to_texts(model: CLIP, sounds: Sounds) -> Figure:
    """Ten recordings against the ten captions, which the speech tower was never trained with."""
    heard = one_of_each(sounds)
    similarity = (embed_here(model, heard) @ digit_classifier(model).T).cpu()
    names = [name.replace("\n", " ") for name in names_of(heard)]
    title = "Spoken digits against the ten captions"
    return similarity_matrix(similarity, DIGIT_WORDS, names, title, ylabel="speaker: what is said")


def speech_to_drawings(model: CLIP, sounds: Sounds, generator: Generator) -> Figure:
    """Drawn from ten recordings, as from texts, each drawing with the digit that the model sees in it."""
    heard = one_of_each(sounds)
    device = model.logit_scale.device
    vectors = embed_here(model, heard).repeat_interleave(EACH, dim=0)
    drawn = generator.draw(vectors, torch.Generator(device).manual_seed(0))
    with torch.no_grad():
        seen = (model.encode_image(drawn) @ digit_classifier(model).T).argmax(dim=1).cpu().view(10, EACH)
    drawn = drawn[:, 0].cpu().view(10, EACH, 28, 28)
    rows = [
        (name, picture, drawn[digit], [DIGIT_WORDS[d] for d in seen[digit]], (seen[digit] == digit).tolist())
        for digit, (name, picture) in enumerate(zip(names_of(heard), as_picture(heard.mels), strict=True))
    ]
    return ranked_images(rows, "Drawn from a spoken digit")


def strokes_to_images(model: CLIP, strokes: Strokes, split: Split, features: Tensor) -> Figure:
    """The images closest to the first recording of each digit; beside its name, how it looks when it is drawn."""
    first = [int((strokes.labels == digit).nonzero()[0]) for digit in range(10)]
    points, labels = strokes.points[first], strokes.labels[first]
    similarity = embed(model.encode_strokes, points.to(model.logit_scale.device)).cpu() @ features.T
    fits = split.labels == labels[:, None]
    title = "The test images closest to what a pen wrote"
    return closest_images(similarity, DIGIT_WORDS, split.images, fits, title, draw(points)[:, 0], EACH)


def strokes_read(model: CLIP, strokes: Strokes) -> Figure:
    """The first recordings of the digits that are hard to read, drawn, under the caption closest to the strokes."""
    captions, rows = digit_classifier(model), []
    for digit in HARD:
        points = strokes.points[strokes.labels == digit][:EACH]
        read = (embed(model.encode_strokes, points.to(captions.device)) @ captions.T).argmax(dim=1).tolist()
        words = [DIGIT_WORDS[one] for one in read]
        rows.append((DIGIT_WORDS[digit], None, draw(points)[:, 0], words, [one == digit for one in read]))
    return ranked_images(rows, "What a pen wrote, drawn, and the caption closest to the strokes")


def embed_here(model: CLIP, sounds: Sounds) -> Tensor:
    """Unit vectors [N, embed_dim] on the model's device."""
    return embed(model.encode_speech, sounds.mels.to(model.logit_scale.device))
