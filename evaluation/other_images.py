"""Images that MNIST does not have, in MNIST's form: digits of other writers, and images that are no digit.

All are uint8 [N, 28, 28]. What has ink is bright on dark, fitted into 20x20 pixels and centred by mass (as MNIST was
made: LeCun et al., 1998). Seeds are fixed: every model is shown the same images.
"""

import gzip
import hashlib
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import get_data_path
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from my_dataset import Split
from my_utils import InputError

INK = 0.1  # a pixel above this share of the brightest one is ink
# Fashion-MNIST's test images, plain or .gz: where Debian's package `dataset-fashion-mnist` puts them, and, below the
# data folder, where torchvision does.
FASHION_FILES = (
    Path("/usr/share/datasets/fashion-mnist/t10k-images-idx3-ubyte"),
    Path("FashionMNIST/raw/t10k-images-idx3-ubyte"),
)
FASHION_SHA256 = "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"  # of the plain file

FONTS = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSansMono", "DejaVuSerif", "DejaVuSerif-Italic")
# Left out, because some hand or font makes them look like a digit: BCDGIJLOQSTYZ and abcegijlopqstyz.
LETTERS = "AEFHKMNPRUVWXdfhkmnruvwx"
LETTER_BOXES = (16, 18, 20)  # pixels of the longer side
LETTER_DEGREES = 10.0  # turned by up to this much


def uci_digits() -> Split:
    """1,797 digits of 13 people, 8x8 with 17 levels (UCI; Alpaydin & Kaynak, 1998), as scikit-learn ships them."""
    from sklearn.datasets import load_digits  # scikit-learn takes a second to import

    data = load_digits()
    small = torch.from_numpy(data.images).float()[:, None] / 16
    smooth = F.interpolate(small, scale_factor=8, mode="bicubic").clamp(0, 1)[:, 0]  # [N, 64, 64]
    return Split(torch.stack([mnist_form(image) for image in smooth]), torch.from_numpy(data.target).long())


def drawn_letters(count: int = 1000, seed: int = 0) -> Tensor:
    """Letters of the fonts that matplotlib ships, in three sizes, each turned a little."""
    random = np.random.default_rng(seed)
    fonts = [ImageFont.truetype(str(Path(get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"), 64) for name in FONTS]
    images = []
    for i in range(count):
        canvas = Image.new("L", (128, 128))
        font = fonts[random.integers(len(fonts))]
        ImageDraw.Draw(canvas).text((64, 64), LETTERS[i % len(LETTERS)], fill=255, font=font, anchor="mm")
        canvas = canvas.rotate(random.uniform(-LETTER_DEGREES, LETTER_DEGREES), Image.Resampling.BICUBIC)
        images.append(mnist_form(torch.from_numpy(np.array(canvas)).float(), int(random.choice(LETTER_BOXES))))
    return torch.stack(images)


def inverted_noise(images: Tensor, seed: int = 0) -> Tensor:
    """The pixels of each image in a random order, then inverted: a bright field with a fifth of it in dark specks.

    It has the grey levels of a digit's negative and no shape at all. uint8 [N, 28, 28].
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(len(images), 28 * 28, generator=generator).argsort(dim=1)
    return 255 - images.flatten(1).gather(1, order).view_as(images)


def fashion(data_path: str | Path) -> Tensor | None:
    """Fashion-MNIST's 10,000 test images (Xiao et al., 2017), or None where they are not installed.

    They keep their own form, which fills the frame. Raises InputError for a file that does not hold them.
    """
    places = [Path(data_path) / file for file in FASHION_FILES]  # an absolute path stays as it is
    for path in [place.with_name(place.name + end) for place in places for end in ("", ".gz")]:
        if path.is_file():
            try:
                content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
            except (EOFError, gzip.BadGzipFile, gzip.zlib.error):
                content = b""
            if hashlib.sha256(content).hexdigest() != FASHION_SHA256:
                raise InputError(f"{path} is truncated or corrupt: place Fashion-MNIST's file again, or remove it")
            return torch.from_numpy(np.frombuffer(content, np.uint8, offset=16).copy()).view(-1, 28, 28)
    return None


def mnist_form(ink: Tensor, box: int = 20) -> Tensor:
    """A bright digit of any size [H, W] -> uint8 [28, 28]: cropped to its ink, the longer side `box` pixels.

    The aspect stays, the brightest pixel becomes 255, and the centre of mass the frame's, to the nearest pixel.
    Raises InputError when there is no ink.
    """
    if not ink.max() > 0:
        raise InputError("an image without ink cannot be brought into MNIST's form")
    ink = ink / ink.max()
    rows, columns = ((ink > INK).any(dim=dim).nonzero() for dim in (1, 0))
    ink = ink[int(rows[0]) : int(rows[-1]) + 1, int(columns[0]) : int(columns[-1]) + 1]
    height, width = (max(1, round(side * box / max(ink.shape))) for side in ink.shape)
    ink = F.interpolate(ink[None, None], (height, width), mode="bilinear", antialias=True)[0, 0]
    ink = ink / ink.max()

    def start(mass: Tensor) -> int:  # where the first of these rows (or columns) goes
        centre = float((mass * torch.arange(len(mass))).sum() / mass.sum())
        return min(max(round(13.5 - centre), 0), 28 - len(mass))

    top, left = start(ink.sum(dim=1)), start(ink.sum(dim=0))
    frame = torch.zeros(28, 28)
    frame[top : top + height, left : left + width] = ink
    return (frame * 255).round().to(torch.uint8)
