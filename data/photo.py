"""From any picture of a digit, such as a photo or a scan, to MNIST's form: uint8 [28, 28], bright on black."""

import io
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from scipy.ndimage import binary_dilation, center_of_mass, find_objects, label, sum_labels, uniform_filter
from torch import Tensor
from torchvision.ops import masks_to_boxes
from torchvision.transforms import functional

from clip import on_background
from my_utils import InputError, read_file

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM")  # that Pillow reads without other programs
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".ppm", ".pgm", ".pbm")
MAX_BYTES = 2**28  # of a picture's file
# Chosen on photographs of validation digits (benchmarks/photos.py). Lengths are pixels of the reduced picture.
SIDE = 160  # its longer side
WINDOW, SMOOTH = 81, 3  # sides of the boxes whose mean is the paper's colour, and finds ink in spite of noise
INK = 0.3  # of the strongest ink: what has more belongs to a stroke
MIN_CONTRAST = 20.0  # levels of 255 between ink and paper; with less, nothing is written
NEAR = 0.15  # of the longer side of the main stroke: strokes within this distance belong to the digit
WHITE = 0.9  # quantile of the digit's ink: this and all above becomes white
MIN_PART = 0.03  # of the main stroke's ink: a stroke with less is dirt
MIN_INK = 0.1  # of the brightest pixel: what is brighter lies within the crop


def read_picture(path: str | Path, smallest: int = SIDE) -> Image.Image:
    """A picture's file, decoded; a large JPEG is reduced, to not less than `smallest` pixels.

    Raises InputError if it cannot be read.
    """
    content = read_file(path, "a picture", MAX_BYTES)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(content), formats=FORMATS)
        image.draft("RGB", (smallest, smallest))
        image.load()
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        limit = f"{Image.MAX_IMAGE_PIXELS / 1e6:.0f} million pixels"
        raise InputError(f"{path} has more than {limit}: make it smaller") from None
    except Exception:  # arbitrary bytes lead the reader to any error
        raise InputError(f"{path} is not a picture, or is damaged: give a {', '.join(FORMATS)} file") from None
    return image


def photo_to_mnist(image: Image.Image) -> Tensor:
    """A picture of one digit, of any mode and size -> uint8 [28, 28] in MNIST's form; black if nothing is written.

    1. `reduced_rgb`: upright by its EXIF orientation, the longer side resized to SIDE (bilinear; a smaller picture is
       enlarged), `on_background` if it is transparent.
    2. Paper: the mean of the box of WINDOW x WINDOW pixels around each pixel, cut off at the picture's edge, channel by
       channel. Ink: the difference from it, of the channel where it is largest: dark on light or light on dark,
       whichever rises further above its mean along the picture's edges. Once more, with the mean of what was not ink.
    3. Strokes: connected pixels whose ink, smoothed, is above INK of the maximum. The main stroke has most ink, which
       counts less towards the corners. All but this one and those near it is erased, except for a rim of one pixel.
    4. The WHITE quantile of these strokes' ink, and all above it, becomes white; then `to_mnist_form`.
    """
    pixels = reduced_rgb(image)  # [3, H, W]
    paper = np.ones_like(pixels[:1])  # [1, H, W], 0 where there is ink
    is_edge = np.ones(pixels.shape[1:], bool)
    is_edge[1:-1, 1:-1] = False
    for _ in range(2):
        total, count = (uniform_filter(x, (1, WINDOW, WINDOW), mode="constant") for x in (pixels * paper, paper))
        difference = total / count.clip(1e-4) - pixels  # [3, H, W]
        inks = [side.max(axis=0) * (count[0] > 1e-4) for side in (difference, -difference)]  # [H, W] each
        smooths = [uniform_filter(x, SMOOTH) for x in inks]
        stronger = np.argmax([x.max() - x[is_edge].mean() for x in smooths])
        ink, smooth = inks[stronger], smooths[stronger]
        is_ink = smooth > max(INK * smooth.max(), MIN_CONTRAST)
        paper = 1 - is_ink[None].astype(np.float32)
    if not is_ink.any():
        return torch.zeros(28, 28, dtype=torch.uint8)
    digit = find_digit(smooth, is_ink)  # bool [H, W]
    white = (ink / max(float(np.quantile(ink[digit], WHITE)), MIN_CONTRAST)).clip(0, 1)
    return to_mnist_form(torch.from_numpy(white * binary_dilation(digit, np.ones((3, 3)))))


def reduced_rgb(image: Image.Image) -> np.ndarray:
    """Step 1: float32 [3, H, W] in 0..255. More than 8 bits are stretched from the darkest to the brightest pixel."""
    image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        levels = np.nan_to_num(np.asarray(image, np.float32))
        image = Image.fromarray((255 * (levels - levels.min()) / max(np.ptp(levels), 1e-6)).astype(np.uint8))
    size = [max(1, round(side * SIDE / max(image.size))) for side in image.size]
    image = image.convert("RGBA" if image.has_transparency_data else "RGB").resize(size, Image.Resampling.BILINEAR)
    return np.asarray(on_background(image), np.float32).transpose(2, 0, 1).copy()


def find_digit(ink: np.ndarray, is_ink: np.ndarray) -> np.ndarray:
    """Step 3: ink [H, W] and where it is ink, bool [H, W] -> where it is the digit, bool [H, W]."""
    strokes, count = label(is_ink, np.ones((3, 3)))  # [H, W]: 0, or the number of a stroke; corners connect
    mass = sum_labels(ink, strokes, range(1, count + 1))
    boxes = np.array([[[side.start, side.stop] for side in box] for box in find_objects(strokes)])  # [count, 2, 2]
    start, stop, middle = boxes[..., 0], boxes[..., 1], np.array(ink.shape) / 2
    from_middle = np.linalg.norm((start + stop) / 2 - middle, axis=1) / np.linalg.norm(middle)  # 1 in a corner
    main = (mass * (1 - from_middle)).argmax()
    reach = NEAR * (stop[main] - start[main]).max()
    is_near = ((start <= stop[main] + reach) & (stop >= start[main] - reach)).all(axis=1)
    return np.append(False, is_near & (mass >= MIN_PART * mass[main]))[strokes]


def to_mnist_form(ink: Tensor, box: int = 20) -> Tensor:
    """A bright digit of any size [H, W] -> uint8 [28, 28], as MNIST was made (LeCun et al., 1998).

    Cropped to its ink, the longer side resized to `box` pixels, centred by mass, the brightest pixel 255.
    """
    if not ink.max() > 0:
        raise InputError("an image without ink cannot be brought into MNIST's form")
    left, top, right, bottom = masks_to_boxes(ink[None] > MIN_INK * ink.max())[0].int().tolist()
    ink = ink[top : bottom + 1, left : right + 1]
    height, width = (max(1, round(side * box / max(ink.shape))) for side in ink.shape)
    ink = functional.resize(ink[None], [height, width])[0]  # [height, width]
    row, column = (round(13.5 - centre) for centre in center_of_mass(ink.numpy()))
    row, column = min(max(row, 0), 28 - height), min(max(column, 0), 28 - width)
    frame = torch.zeros(28, 28)
    frame[row : row + height, column : column + width] = ink / ink.max()
    return (frame * 255).round().to(torch.uint8)
