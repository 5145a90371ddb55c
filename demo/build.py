"""Build a page to try a trained model, draw, type, say: one HTML file that needs no server and no network.

    make demo          demo/minist-clip.html from runs/best_model.pth; opens it

With the generator, the speech tower and the CLIP of scenes (docs/word-order.md) if they are trained; without any model
it is the page of pretrained/. The towers run in the browser (towers.js): batch norms are folded into the convolutions,
weights rounded to float16, those of the generator's linear layers to int8.
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
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

import attributes
import image_encoder
from attributes import ATTRIBUTES, all_combinations
from captions import DIGIT_WORDS, HAN_DIGITS, NO_DIGIT, OUTLIER_IDS, OUTLIERS
from clip import CLIP, PART_TEMPERATURE
from data import photo
from evaluation.claims import combination_caption
from evaluation.metrics import embed_images
from evaluation.ood import MIN_SCORE
from evaluation.scenes import candidate_captions, evaluation_scenes
from generation import model as generation
from generation.model import Generator
from generation.rows import add_model_flags
from modalities import speech
from my_dataset import Split, load_mnist
from my_utils import ArgumentParser, InputError, atomic_write, exit_on_error, text

HERE = Path(__file__).parent
PRETRAINED = HERE.parent / "pretrained"  # in place of a model that is not trained yet
N_IMAGES = 1_000  # test images, the first ones, among which the page searches


class Page(NamedTuple):
    html: str
    clip: CLIP  # with the page's weights: folded and rounded
    generator: Generator | None  # the same
    scenes: CLIP | None  # the same, of scenes


def main(argv: list[str]) -> None:
    parser = ArgumentParser(prog="python -m demo.build", description=__doc__.split("\n")[0])
    add_model_flags(parser)
    parser.add_argument("--scenes", type=text, default="runs/scenes/best_model.pth", help="a CLIP of scenes, or none")
    parser.add_argument("--page", type=text, default=HERE / "minist-clip.html", help="the file to write")
    parser.add_argument("--no-open", action="store_true", help="do not open the page in the browser")
    args = parser.parse_args(argv)
    if args.clip == parser.get_default("clip") and not Path(args.clip).exists():
        args.clip = PRETRAINED
        print(f"there is no {parser.get_default('clip')} (`make train` makes it): the page is that of {PRETRAINED}/")
    clip = CLIP.load(args.clip, args.device, args.text_model)
    try:
        generator = Generator.load(args.generator, clip)
    except InputError as error:
        generator = print(f"the page draws no images from texts: {error}")
    try:
        scenes = CLIP.load(args.scenes, args.device)
    except InputError as error:
        scenes = print(f'the page has no canvas for two digits (`make train ARGS="--captions scenes"`): {error}')
    page = build(clip, generator, load_mnist("test", args.data_path), scenes)
    atomic_write(args.page, page.html.encode())
    print(f"written: {args.page}, {len(page.html.encode()) / 1e6:.2f} MB")
    if not args.no_open:
        webbrowser.open(Path(args.page).resolve().as_uri())


@torch.no_grad()
def build(clip: CLIP, generator: Generator | None, test: Split, scenes: CLIP | None = None) -> Page:
    """The page of a model, with that of scenes. Raises InputError for towers that it cannot run."""
    clip.require_digits()
    towers = [clip.arch["image_encoder"], clip.arch["text_encoder"]]
    if towers != ["residual", "table"]:
        raise InputError(f"the page runs the towers residual and table, not {' and '.join(towers)}: name another CLIP")
    wanted = {"captions": "scenes", "image_encoder": "scene", "text_encoder": "transformer"}
    if scenes and not wanted.items() <= scenes.arch.items():
        raise InputError('--scenes needs a CLIP of scenes, with a transformer: `make train ARGS="--captions scenes"`')
    clip, generator, scenes = (model and fold(copy.deepcopy(model).cpu()) for model in (clip, generator, scenes))
    arrays = pack(clip.towers["image"], "image.") | pack(clip.towers["text"], "text.")
    if generator:
        arrays |= pack(generator, "")
    if "speech" in clip.towers:
        arrays |= pack(clip.towers["speech"], "speech.") | {"speech.mel_bands.weight": speech.mel_bands().numpy()}
    arrays["captions.digit.weight"] = clip.zero_shot_classifier().numpy()  # [10, embed_dim]
    if clip.captions.kind == "attributes":
        arrays["captions.outliers.weight"] = clip.embed_descriptions(OUTLIER_IDS).numpy()  # [1 + kinds, embed_dim]
        for attribute, part in zip(ATTRIBUTES, clip.captions.parts[1:], strict=True):
            arrays[f"captions.{attribute.name}.weight"] = clip.embed_descriptions(part.ids).numpy()  # [5, embed_dim]
    images, digits = (x[:N_IMAGES].cpu() for x in test)
    arrays |= {"test.images": images.flatten(1).numpy(), "test.digits": digits.byte().numpy()}
    arrays["test.weight"] = embed_images(clip, images).half().numpy()
    header = constants(clip)
    if scenes:
        arrays |= pack(scenes.towers["image"], "scenes.image.") | pack(scenes.towers["text"], "scenes.text.")
        pixels = 255 * evaluation_scenes(test, per_pair=1)[0].images[::5]  # [36, 1, 48, 48]
        arrays["test.scenes.images"] = pixels.round().byte().flatten(1).numpy()
        tower = scenes.towers["text"]
        is_bilingual = HAN_DIGITS[0] in tower.vocabulary
        captions = {"en": candidate_captions(), "zh": candidate_captions(is_bilingual)}  # those that the page ranks
        header["scenes"] = tower.options | {"heads": tower.heads, "side": scenes.side, "captions": captions}
    header |= {"tensors": [(name, str(x.dtype), x.shape) for name, x in arrays.items()]}
    header = json.dumps(header, ensure_ascii=False).encode()
    content = np.uint32(len(header)).tobytes() + header + b"".join(x.tobytes() for x in arrays.values())
    html = (HERE / "page.html").read_text("utf-8")
    for name in ("style.css", "towers.js", "photo.js", "worker.js", "page.js"):
        html = html.replace(f"{{{name}}}", (HERE / name).read_text("utf-8"))
    html = html.replace("{model}", base64.b64encode(zlib.compress(content, 9)).decode())
    return Page(html, clip, generator, scenes)


def fold(model: nn.Module) -> nn.Module:
    """Fold each batch norm into the convolution before it, in place. (A pixel shuffle makes one channel of four.)"""
    for sequence in (module for module in model.modules() if isinstance(module, nn.Sequential)):
        for i, layer in enumerate(sequence):
            if isinstance(layer, nn.Conv2d):
                conv = layer
            elif isinstance(layer, nn.BatchNorm2d):
                copies = conv.out_channels // layer.num_features
                mean, var = (x.repeat_interleave(copies) for x in (layer.running_mean, layer.running_var))
                norm = mean, var, layer.eps, *(x.repeat_interleave(copies) for x in (layer.weight, layer.bias))
                conv.weight, conv.bias = fuse_conv_bn_weights(conv.weight, conv.bias, *norm)
                sequence[i] = nn.Identity()
    return model.eval()


def pack(model: nn.Module, prefix: str) -> dict[str, np.ndarray]:
    """The weights of a model as float16, or int8 with a scale for each row. The model's own are rounded to these."""
    arrays = {}
    for name, x in model.state_dict().items():
        if name.startswith("autoencoder.encoder"):  # only training needs it
            continue
        if isinstance(model, Generator) and x.ndim == 2:
            scale = x.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / 127  # [rows, 1]
            arrays[f"{prefix}{name}_scale"] = scale.numpy()  # it stands before its weights
            packed = (x / scale).round().to(torch.int8)
            x.copy_(packed * scale)
        else:
            packed = x.half()
            x.copy_(packed)
        if x.ndim == 4:  # a convolution's [out, in, kernel, kernel]: on the page the channels come last
            packed = packed.permute(0, 2, 3, 1)
        arrays[prefix + name] = packed.numpy()
    return arrays


def constants(clip: CLIP) -> dict:
    """All numbers and words that the page's scripts share with Python."""

    def numbers(module) -> dict[str, float]:
        return {name.lower(): x for name, x in vars(module).items() if name.isupper() and isinstance(x, int | float)}

    shared = numbers(image_encoder) | numbers(attributes) | numbers(generation)
    shared |= {"photo": numbers(photo), "speech": numbers(speech)}
    shared |= {"part_temperature": PART_TEMPERATURE, "min_score": MIN_SCORE[clip.captions.kind]}
    vocabulary = list(clip.towers["text"].vocabulary)
    english, chinese = list(DIGIT_WORDS), list(HAN_DIGITS if HAN_DIGITS[0] in vocabulary else DIGIT_WORDS)
    if clip.captions.kind == "attributes":
        english += [NO_DIGIT[0], *map(combination_caption, range(len(all_combinations())))]
        chinese.append(NO_DIGIT[-2])
        for digit, *bins in all_combinations():  # the Chinese captions of these combinations
            adjectives = [one.han_adjective(one.bins[bin]) for one, bin in zip(ATTRIBUTES, bins, strict=True)]
            chinese.append("".join(adjectives) + HAN_DIGITS[digit])
    outliers = {"en": [own[0] for own in OUTLIERS.values()], "zh": [own[-1] for own in OUTLIERS.values()]}
    return shared | {"vocabulary": vocabulary, "sentences": {"en": english, "zh": chinese}, "outliers": outliers}


if __name__ == "__main__":
    with exit_on_error():
        main(sys.argv[1:])
