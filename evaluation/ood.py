"""Images that MNIST does not have: digits of other writers, and out-of-distribution (OOD) images, which show no digit.

All are uint8 [N, 28, 28], bright on black, and the same for every model. OOD detection is measured by the AUROC of
`ood_score`: the chance that a digit has a higher score than an OOD image.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import get_data_path
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.datasets import FashionMNIST

from captions import OUTLIER_IDS
from clip import CLIP
from data.photo import to_mnist_form
from my_dataset import Split
from my_utils import InputError, short

# Above it a picture is said to show a digit; chosen on photographs of validation digits and outliers
# (benchmarks/photos.py).
MIN_SCORE = {"attributes": 0.35, "digit": 0.8}
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
    """The sets of OOD images by name; Fashion-MNIST (Xiao et al., 2017) only if torchvision has it in the folder.

    Raises InputError if its files there are damaged.
    """
    sets = {"letters": letters(count), "inverted_noise": inverted_noise(digits[:count])}
    fashion = Path(data_path) / "FashionMNIST" / "raw"
    if fashion.is_dir():
        try:
            sets["fashion_mnist"] = FashionMNIST(data_path, train=False).data
        except Exception as error:  # a damaged file leads its reader to any error
            raise InputError(f"{fashion} does not hold Fashion-MNIST ({short(error)}): replace or remove it") from None
    return sets


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


def ood_score(model: CLIP, features: Tensor) -> Tensor:
    """Features [N, embed_dim] -> how much each image looks like a digit [N]: its cosine to the nearest digit caption.

    A model that was trained with outliers: less its cosine to the nearest outlier caption.
    """
    score = (features @ model.zero_shot_classifier().cpu().T).amax(dim=1)
    if model.captions.kind == "attributes":
        score = score - (features @ model.embed_descriptions(OUTLIER_IDS).cpu().T).amax(dim=1)
    return score


def is_digit(model: CLIP, features: Tensor) -> list[bool]:
    """Features [N, embed_dim] of pictures -> whether each is said to show a digit."""
    return (ood_score(model, features.cpu()) > MIN_SCORE[model.captions.kind]).tolist()


def evaluate_ood(model: CLIP, features: dict[str, Tensor]) -> dict:
    """The features of "digits" and of OOD sets -> for each OOD set its size and the AUROC of `ood_score`."""
    scores = {name: ood_score(model, x) for name, x in features.items()}
    digits = scores.pop("digits")
    return {name: {"images": len(others), "auroc": auroc(digits, others)} for name, others in scores.items()}


def auroc(digits: Tensor, others: Tensor) -> float:
    """The chance that a digit's score is higher than another image's. Scores [N] and [M]."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score([1] * len(digits) + [0] * len(others), torch.cat([digits, others])))
