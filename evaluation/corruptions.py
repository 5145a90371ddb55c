"""Robustness: the accuracy on test images that are corrupted in seven ways, at five severities each.

A corruption takes float images [B, 28, 28] in [0, 1], an amount and a CPU generator, and returns as many such images.
"""

import math
from statistics import fmean

import torch
from torch import Generator, Tensor
from torchvision.transforms import InterpolationMode, functional

from clip import CLIP
from evaluation.metrics import caption_accuracy, embed_images
from my_dataset import Split


def rotation(images: Tensor, degrees: float, generator: Generator) -> Tensor:
    """Each image rotated by + or - this angle. At 90 degrees some digits are no longer themselves."""
    left, right = (functional.rotate(images, angle, InterpolationMode.BILINEAR) for angle in (degrees, -degrees))
    return torch.where(coins(images, generator), left, right).clamp(0, 1)


def translation(images: Tensor, pixels: int, generator: Generator) -> Tensor:
    """Each image shifted by + or - this distance along x and along y; what leaves the frame is lost."""
    frame = functional.pad(images, pixels)  # [B, 28 + 2 pixels, 28 + 2 pixels]
    frame = torch.where(coins(images, generator), frame[:, :, -28:], frame[:, :, :28])
    return torch.where(coins(images, generator), frame[:, -28:], frame[:, :28])  # [B, 28, 28]


def noise(images: Tensor, std: float, generator: Generator) -> Tensor:
    """Gaussian noise on every pixel."""
    return (images + std * torch.randn(images.shape, generator=generator)).clamp(0, 1)


def blur(images: Tensor, sigma: float, generator: Generator) -> Tensor:
    """A Gaussian filter with this standard deviation in pixels."""
    radius = math.ceil(3 * sigma)
    frame = functional.pad(images, radius)  # black around it
    return functional.gaussian_blur(frame, 2 * radius + 1, sigma)[:, radius:-radius, radius:-radius].clamp(0, 1)


def contrast(images: Tensor, factor: float, generator: Generator) -> Tensor:
    """The distance of each pixel from its image's mean, times this factor."""
    return functional.adjust_contrast(images[:, None], factor)[:, 0]


def occlusion(images: Tensor, side: float, generator: Generator) -> Tensor:
    """A black square of this side in pixels, within the central 20x20 pixels, where the ink is."""
    side = int(side)
    corner = 4 + (torch.rand(2, len(images), 1, generator=generator) * (20 - side + 1)).long()
    rows, columns = (torch.arange(28) >= corner) & (torch.arange(28) < corner + side)  # [B, 28] each
    return images.masked_fill(rows[:, :, None] & columns[:, None, :], 0)


def inversion(images: Tensor, blend: float, generator: Generator) -> Tensor:
    """From the image (0) towards its negative (1): beyond one half, dark digits on a bright background."""
    return (1 - blend) * images + blend * (1 - images)


# Each one's function and its amounts, mildest first.
CORRUPTIONS = {
    "rotation": (rotation, (18, 36, 54, 72, 90)),
    "translation": (translation, (2, 4, 6, 8, 10)),
    "noise": (noise, (0.05, 0.1, 0.2, 0.3, 0.5)),
    "blur": (blur, (0.5, 1, 1.5, 2, 3)),
    "contrast": (contrast, (0.9, 0.7, 0.5, 0.3, 0.1)),
    "occlusion": (occlusion, (4, 6, 8, 10, 12)),
    "inversion": (inversion, (0.1, 0.2, 0.4, 0.8, 1)),
}


def coins(images: Tensor, generator: Generator) -> Tensor:
    """True for half of the images: bool [B, 1, 1]."""
    return torch.randint(2, (len(images), 1, 1), generator=generator) == 1


def evaluate_robustness(model: CLIP, captions: Tensor, split: Split) -> dict:
    """Accuracy under each corruption and severity. captions [10, embed_dim] on the CPU.

    The mean corruption error is the mean of 1 - accuracy over severities and corruptions (Hendrycks & Dietterich, 2019,
    arXiv 1903.12261), without their division by AlexNet's error, which MNIST does not have.
    """
    clean = split.images.float() / 255

    def accuracy(images: Tensor) -> float:
        return caption_accuracy(embed_images(model, images).cpu() @ captions.T, split.labels)

    results = {"images": len(clean), "clean": accuracy(clean), "corruptions": {}}
    for name, (corrupt, amounts) in CORRUPTIONS.items():
        # the same random numbers at every severity
        accuracies = [accuracy(corrupt(clean, amount, Generator().manual_seed(0))) for amount in amounts]
        results["corruptions"][name] = {"amounts": amounts, "accuracies": accuracies, "error": 1 - fmean(accuracies)}
    results["mean_corruption_error"] = fmean(one["error"] for one in results["corruptions"].values())
    return results
