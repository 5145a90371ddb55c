"""Images that MNIST does not have: digits of other writers, and out-of-distribution (OOD) images, which show no digit.

All are uint8 [N, 28, 28], bright on black, and the same for every model. OOD detection is measured by the AUROC of
`ood_score`: the chance that a digit has a higher score than an OOD image.
"""

import contextlib
import gzip
import hashlib
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import get_data_path
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import center_of_mass
from torch import Tensor
from torchvision.ops import masks_to_boxes
from torchvision.transforms import functional

from captions import OUTLIER_IDS
from clip import CLIP
from my_dataset import Split
from my_utils import InputError, read_file

MIN_INK = 0.1  # of the brightest pixel: what is brighter than this is ink
# Fashion-MNIST's test images: Debian's package `dataset-fashion-mnist`; in the data folder, as torchvision has them.
FASHION_FILES = (
    "/usr/share/datasets/fashion-mnist/t10k-images-idx3-ubyte.gz",
    "FashionMNIST/raw/t10k-images-idx3-ubyte",
)
FASHION_SHA256 = "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"  # unpacked

FONTS = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSansMono", "DejaVuSerif", "DejaVuSerif-Italic")
# Without those that some handwriting or font makes look like a digit: BCDGIJLOQSTYZ and abcegijlopqstyz.
LETTERS = "AEFHKMNPRUVWXdfhkmnruvwx"
LETTER_BOXES = (16, 18, 20)  # pixels of the longer side
LETTER_DEGREES = 10.0  # rotated by up to this much


def uci_digits() -> Split:
    """1,797 digits of 13 people, 8x8 with 17 levels (UCI; Alpaydin & Kaynak, 1998), from scikit-learn."""
    from sklearn.datasets import load_digits  # scikit-learn takes a second to import

    data = load_digits()
    small = torch.from_numpy(data.images).float()[:, None] / 16  # [N, 1, 8, 8]
    smooth = F.interpolate(small, scale_factor=8, mode="bicubic").clamp(0, 1)[:, 0]  # [N, 64, 64]
    return Split(torch.stack([to_mnist_form(image) for image in smooth]), torch.from_numpy(data.target).long())


def ood_sets(digits: Tensor, data_path: str | Path, count: int = 1000) -> dict[str, Tensor]:
    """The sets of OOD images by name; `fashion_mnist` only if it is installed. Noise is made of the first digits."""
    sets = {"letters": letters(count), "inverted_noise": inverted_noise(digits[:count])}
    fashion = fashion_mnist(data_path)
    return sets if fashion is None else sets | {"fashion_mnist": fashion}


def letters(count: int) -> Tensor:
    """Letters in the fonts that matplotlib ships, in three sizes, each slightly rotated."""
    random = np.random.default_rng(0)
    fonts = [ImageFont.truetype(str(Path(get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"), 64) for name in FONTS]
    images = []
    for i in range(count):
        canvas = Image.new("L", (128, 128))
        font = fonts[random.integers(len(fonts))]
        ImageDraw.Draw(canvas).text((64, 64), LETTERS[i % len(LETTERS)], fill=255, font=font, anchor="mm")
        canvas = canvas.rotate(random.uniform(-LETTER_DEGREES, LETTER_DEGREES), Image.Resampling.BICUBIC)
        images.append(to_mnist_form(torch.from_numpy(np.array(canvas)).float(), int(random.choice(LETTER_BOXES))))
    return torch.stack(images)


def inverted_noise(images: Tensor) -> Tensor:
    """The pixels of each image in a random order, inverted: the grey levels of a digit's negative without its shape."""
    order = torch.rand(len(images), 28 * 28, generator=torch.Generator().manual_seed(0)).argsort(dim=1)
    return 255 - images.flatten(1).gather(1, order).view_as(images)


def fashion_mnist(data_path: str | Path) -> Tensor | None:
    """Fashion-MNIST's 10,000 test images (Xiao et al., 2017), or None if they are not installed."""
    path = next((place for file in FASHION_FILES if (place := Path(data_path) / file).is_file()), None)
    if path is None:
        return None
    content = read_file(path, "Fashion-MNIST's test images")
    with contextlib.suppress(OSError, EOFError, gzip.zlib.error):  # then it is not packed, or damaged
        content = gzip.decompress(content)
    if hashlib.sha256(content).hexdigest() != FASHION_SHA256:
        raise InputError(f"{path.absolute()} is not Fashion-MNIST's file, or is damaged: replace or remove it")
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=16).copy()).view(-1, 28, 28)


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


def ood_score(model: CLIP, features: Tensor) -> Tensor:
    """Features [N, embed_dim] -> how much each image looks like a digit [N]: its cosine to the nearest digit caption.

    A model that was trained with outliers: less its cosine to the nearest outlier caption.
    """
    score = (features @ model.zero_shot_classifier().cpu().T).amax(dim=1)
    if model.captions.name_attributes:
        score = score - (features @ model.embed_descriptions(OUTLIER_IDS).cpu().T).amax(dim=1)
    return score


def evaluate_ood(model: CLIP, features: dict[str, Tensor]) -> dict:
    """The features of "digits" and of OOD sets -> for each set the AUROC of `ood_score`, and of its first term."""
    captions, results = model.zero_shot_classifier().cpu(), {}
    best = {name: (x @ captions.T).amax(dim=1) for name, x in features.items()}
    scores = {name: ood_score(model, x) for name, x in features.items()}
    for name in [name for name in features if name != "digits"]:
        of_scores, of_best = auroc(scores["digits"], scores[name]), auroc(best["digits"], best[name])
        results[name] = {"images": len(features[name]), "auroc": of_scores, "auroc_best_similarity": of_best}
    return results


def auroc(digits: Tensor, others: Tensor) -> float:
    """The chance that a digit's score is higher than another image's. Scores [N] and [M]."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score([1] * len(digits) + [0] * len(others), torch.cat([digits, others])))
