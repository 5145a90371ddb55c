"""Build a page to try a trained model, draw, type, say: one HTML file that needs no server and no network.

    make demo                                     demo/minist-clip.html from runs/best_model.pth, and opens it
    make demo ARGS="--no-open --page try.html"

The generator and the speech tower are on the page if they are trained (`make generator`, `make speech`). The towers run
in the browser, in towers.js. Batch norms are folded into the convolutions; weights are rounded to float16, those of the
generator's linear layers to int8.
"""

import base64
import copy
import json
import sys
import webbrowser
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

import attributes
from attributes import ATTRIBUTES, GRADE_OF_BIN, all_combinations
from captions import DIGIT_WORDS, HAN_DIGITS, NO_DIGIT, OUTLIER_IDS, OUTLIERS
from clip import CLIP, PART_TEMPERATURE
from data import photo
from evaluation.claims import combination_caption
from evaluation.metrics import embed_images
from evaluation.ood import MIN_SCORE
from generation import model as generation
from generation.model import Generator
from image_encoder import PIXEL_MEAN, PIXEL_STD
from modalities import speech
from my_dataset import DATA_PATH, Split, load_mnist
from my_utils import ArgumentParser, InputError, atomic_write, exit_on_error, text

HERE = Path(__file__).parent
N_IMAGES = 1_000  # test images, the first ones, among which the page searches


class Page(NamedTuple):
    html: str
    clip: CLIP  # with the page's weights: folded and rounded
    generator: Generator | None  # the same
    sizes: dict[str, int]  # bytes of each part, before compression


def main(argv: list[str]) -> None:
    parser = ArgumentParser(prog="python -m demo.build", description=__doc__.split("\n")[0])
    parser.add_argument("--clip", type=text, default="runs/best_model.pth", metavar="FILE", help="the trained CLIP")
    path = "runs/generator/best_model.pth"
    parser.add_argument("--generator", type=text, default=path, metavar="FILE", help="its generator, if it is there")
    parser.add_argument("--data-path", type=text, default=DATA_PATH, help="folder of MNIST; downloaded if missing")
    parser.add_argument("--page", type=text, default=HERE / "minist-clip.html", metavar="FILE", help="the page to write")
    parser.add_argument("--no-open", action="store_true", help="do not open the page in the browser")
    args = parser.parse_args(argv)

    clip = CLIP.load(args.clip)
    try:
        generator = Generator.load(args.generator, clip)
    except InputError as error:
        generator = print(f"the page draws no images from texts: {error}")
    page = build(clip, generator, load_mnist("test", args.data_path))
    atomic_write(args.page, page.html.encode())
    parts = ", ".join(f"{name} {size / 1e6:.2f}" for name, size in page.sizes.items())
    print(f"written: {args.page}, {len(page.html.encode()) / 1e6:.2f} MB (before compression: {parts})")
    if not args.no_open:
        webbrowser.open(Path(args.page).resolve().as_uri())


@torch.no_grad()
def build(clip: CLIP, generator: Generator | None, test: Split) -> Page:
    """The page of a model. Raises InputError for towers that it cannot run."""
    clip.require_digits()
    towers = [clip.arch["image_encoder"], clip.arch["text_encoder"]]
    if towers != ["residual", "table"]:
        raise InputError(f"the page runs the towers residual and table, not {' and '.join(towers)}: name another --clip")
    clip, generator = fold(copy.deepcopy(clip).cpu()), generator and fold(copy.deepcopy(generator).cpu())
    images, digits = (part[:N_IMAGES].cpu() for part in test)
    parts = {f"{name} tower": pack(clip.towers[name], f"{name}.") for name in ("image", "text")}
    if "speech" in clip.towers:
        parts["speech tower"] = pack(clip.towers["speech"], "speech.")
        parts["speech tower"] |= {"speech.mel_bands.weight": speech.mel_bands().numpy()}
    if generator:
        parts["generator"] = pack(generator, "", without="autoencoder.encoder")
    tables = {"digit": clip.zero_shot_classifier()}
    if clip.captions.kind == "attributes":
        grades = zip(ATTRIBUTES, clip.captions.parts[1:], strict=True)
        tables |= {attribute.name: clip.embed_descriptions(part.ids) for attribute, part in grades}
        tables["outliers"] = clip.embed_descriptions(OUTLIER_IDS)
    parts["captions"] = {f"captions.{name}.weight": table.half().numpy() for name, table in tables.items()}
    parts["test images"] = {"test.images": images.flatten(1).numpy(), "test.digits": digits.byte().numpy()}
    parts["test images"]["test.weight"] = embed_images(clip, images).half().numpy()

    arrays = {name: array for part in parts.values() for name, array in part.items()}
    header = constants(clip) | {"tensors": [(name, str(x.dtype), x.shape) for name, x in arrays.items()]}
    header = json.dumps(header, ensure_ascii=False).encode()
    content = np.uint32(len(header)).tobytes() + header + b"".join(x.tobytes() for x in arrays.values())
    html = (HERE / "page.html").read_text("utf-8")
    for name in ("style.css", "towers.js", "photo.js", "worker.js", "page.js"):
        html = html.replace(f"{{{name}}}", (HERE / name).read_text("utf-8"))
    html = html.replace("{model}", base64.b64encode(zlib.compress(content, 9)).decode())
    return Page(html, clip, generator, {name: sum(x.nbytes for x in part.values()) for name, part in parts.items()})


def fold(model: nn.Module) -> nn.Module:
    """Fold each batch norm of eval mode into the convolution before it, in place.

    A pixel shuffle may stand between them: it makes one channel of four.
    """
    for sequence in (module for module in model.modules() if isinstance(module, nn.Sequential)):
        for i, layer in enumerate(sequence):
            if isinstance(layer, nn.Conv2d):
                conv = layer
            elif isinstance(layer, nn.BatchNorm2d):
                copies = conv.out_channels // layer.num_features
                norm = (layer.running_mean, layer.running_var, layer.weight, layer.bias)
                mean, variance, weight, bias = (x.repeat_interleave(copies) for x in norm)
                conv.weight, conv.bias = fuse_conv_bn_weights(
                    conv.weight, conv.bias, mean, variance, layer.eps, weight, bias
                )
                sequence[i] = nn.Identity()
    return model.eval()


def pack(model: nn.Module, prefix: str, without: str = "nothing") -> dict[str, np.ndarray]:
    """The weights of a model as float16, or int8 with a scale for each row. The model's own are rounded to these."""
    arrays = {}
    for name, x in model.state_dict().items():
        if name.startswith(without):
            continue
        if isinstance(model, Generator) and x.ndim == 2:
            scale = x.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / 127  # [rows, 1]
            arrays[f"{prefix}{name}_scale"] = scale.numpy()  # before its weights
            rounded = (x / scale).round().to(torch.int8)
            x.copy_(rounded * scale)
        else:
            rounded = x.half()
            x.copy_(rounded)
        is_conv = x.ndim == 4  # [out, in, kernel, kernel]; on the page the channels come last
        arrays[prefix + name] = np.ascontiguousarray((rounded.permute(0, 2, 3, 1) if is_conv else rounded).numpy())
    return arrays


def constants(clip: CLIP) -> dict:
    """All numbers and words that the page's scripts share with Python."""
    english, chinese = [*DIGIT_WORDS], [*(HAN_DIGITS if "七" in clip.towers["text"].vocabulary else DIGIT_WORDS)]
    if clip.captions.kind == "attributes":
        english += [NO_DIGIT[0], *map(combination_caption, range(len(all_combinations())))]
        chinese += ["不是数字"]
        for digit, *bins in all_combinations():
            grades = [one.grades[GRADE_OF_BIN[bin]] for one, bin in zip(ATTRIBUTES, bins, strict=True)]
            words = [one.words[grade][2][0] for one, grade in zip(ATTRIBUTES, grades, strict=True)]
            chinese.append("".join(f"{word}的" for word in words) + HAN_DIGITS[digit])
    shared = {
        generation: ("STEPS", "FREQUENCIES", "SHARPEN", "DARKEN"),
        attributes: ("THICKNESS_FACTOR", "THICKNESS_OFFSET"),
        photo: ("SIDE", "WINDOW", "INK", "MIN_CONTRAST", "NEAR", "WHITE", "MIN_PART", "MIN_INK"),
        speech: ("WINDOW", "HOP", "MELS", "FRAMES", "QUIET", "SILENCE", "FLOOR", "RATE"),
    }
    numbers = [{name.lower(): getattr(module, name) for name in names} for module, names in shared.items()]
    return numbers[0] | numbers[1] | {
        "photo": numbers[2],
        "speech": numbers[3],
        "pixel_mean": PIXEL_MEAN,
        "pixel_std": PIXEL_STD,
        "part_temperature": PART_TEMPERATURE,
        "min_score": MIN_SCORE[clip.captions.kind],
        "vocabulary": list(clip.towers["text"].vocabulary),
        "sentences": {"en": english, "zh": chinese},
        "outliers": {"en": [own[0] for own in OUTLIERS.values()], "zh": [own[-1] for own in OUTLIERS.values()]},
    }


if __name__ == "__main__":
    with exit_on_error():
        main(sys.argv[1:])
