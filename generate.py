"""Generate digits from texts, images or speech, or between two images, through the shared space.

    python generate.py "a thick seven leaning left" "a thin zero" --count 16
    python generate.py --image 3                              variations of a test image
    python generate.py --image 3 --to 8                       from one test image to another
    python generate.py --image 3 --direction thin thick       its embedding, moved from one text towards the other
    python generate.py --speech seven.wav                     the digit that a recording says

Needs a trained CLIP (`make train`) and its generator (`make generator`), for a recording also `make speech`. Writes a
sheet of pictures to inference_test/.
"""

import sys
from argparse import Namespace
from pathlib import Path

import torch

from attributes import measure
from clip import CLIP
from evaluation.claims import format_labels, format_values, parse_claims
from evaluation.pictures import check_writable, ranked_images, save_figure
from generation.features import judge
from generation.model import BEST_OF, Generator
from generation.rows import add_model_flags, direction_row, image_row, path_row, speech_row, text_row
from my_dataset import load_mnist
from my_utils import ArgumentParser, InputError, exit_on_error, number, pick_device, text

MAX_TEXTS, MAX_IMAGES = 40, 400  # what a sheet has room for


def read_flags(argv: list[str]) -> Namespace:
    """The flags. Raises InputError on invalid ones."""
    parser = ArgumentParser(prog="generate.py", description=__doc__.split("\n")[0])
    index = {"type": number(int, 0, 9_999), "metavar": "N"}
    what, path = parser.add_mutually_exclusive_group(required=True), parser.add_mutually_exclusive_group()
    what.add_argument("texts", nargs="*", default=[], type=text, metavar="TEXT", help="captions; each gets a row")
    what.add_argument("--image", help="variations of this test image", **index)
    path.add_argument("--to", help="images on the way from --image to this test image", **index)
    path.add_argument("--direction", nargs=2, type=text, metavar="TEXT", help="move --image from one text to another")
    what.add_argument("--speech", type=text, metavar="WAV", help="the digit that a wav file says")
    parser.add_argument("--count", type=number(int, 1, 100), default=16, metavar="N", help="images in a row")
    best_of = {"type": number(int, 1, 32), "default": BEST_OF, "metavar": "N"}
    parser.add_argument(
        "--best-of", help="proposals and drawings of each text, among which the CLIP chooses", **best_of
    )
    parser.add_argument("--seed", type=number(int, 0, 2**31), default=0, metavar="N", help="seed of the noise")
    add_model_flags(parser)
    parser.add_argument("--pictures", type=text, default="inference_test", metavar="DIR", help="folder of the sheet")
    args = parser.parse_args(argv)
    if args.image is None and (args.to is not None or args.direction):
        raise InputError("--to and --direction move an image: give --image N too")
    if len(args.texts) > MAX_TEXTS or len(args.texts) * args.count > MAX_IMAGES:
        raise InputError(
            f"a sheet has room for {MAX_TEXTS} texts and {MAX_IMAGES} images: give fewer, or lower --count"
        )
    return args


@torch.no_grad()
def main(argv: list[str]) -> None:
    args = read_flags(argv)
    check_writable(Path(args.pictures))
    device, count = pick_device(args.device), args.count
    clip = CLIP.load(args.clip, device, args.text_model)
    clip.require_digits()
    generator = Generator.load(args.generator, clip)

    # ---- what to generate ----
    if args.texts:
        rows, name = [text_row(clip, caption, count) for caption in args.texts], "texts"
    elif args.speech:
        rows, name = [speech_row(clip, args.speech, count)], "speech"
    else:
        test = load_mnist("test", args.data_path)
        row, name = image_row(clip, test, args.image, count), f"variations_{args.image}"
        if args.to is not None:
            end = image_row(clip, test, args.to, 1)
            row, name = path_row(row, end.embeds[0], f"to {end.title}"), f"path_{args.image}_to_{args.to}"
        if args.direction:
            row, name = direction_row(clip, row, *args.direction), f"direction_{args.image}"
        rows = [row]

    # ---- images: of a path all from the same noise, so that only the embedding differs ----
    noise = torch.Generator(device).manual_seed(args.seed)
    embeds = torch.cat([row.embeds for row in rows])  # [rows * count, embed_dim]
    row_claims = torch.stack([parse_claims(row.caption) for row in rows])  # [rows, S]
    claims = row_claims.to(device).repeat_interleave(count, dim=0)  # [rows * count, S]
    if args.image is None:
        images = generator.sample(clip, embeds, claims, noise, args.best_of)  # [rows * count, 1, 28, 28]
    elif args.to is None and not args.direction:
        images = generator.decode(embeds, noise)
    else:
        images = torch.cat([generator.decode(embed, noise.manual_seed(args.seed)) for embed in embeds.split(1)])

    # ---- do they agree with their captions? ----
    agrees = judge(clip, images, claims)  # [rows * count]
    sheet, notes = [], [format_values(values).replace(", ", "\n") for values in measure(images)]
    for i, (row, said) in enumerate(zip(rows, row_claims, strict=True)):
        own, report = slice(i * count, (i + 1) * count), row.caption if args.texts else row.title.replace("\n", " ")
        is_right = agrees[own].tolist() if said.any() else [None] * count
        sheet.append((row.title, row.picture, images[own, 0].cpu(), notes[own], is_right))
        if said.any():
            print(f"{report}: {sum(is_right)} of {count} are {format_labels(said)}")
        elif row.caption:
            print(f"{report}: not judged: it says nothing of one digit or an attribute in the words of captions.py")
    path = Path(args.pictures) / f"generated_{name}.png"
    save_figure(ranked_images(sheet, "generated images"), path)
    print(f"{len(images)} images in {path} (digits as the CLIP itself reads them, attributes as measured)")


if __name__ == "__main__":
    with exit_on_error():
        main(sys.argv[1:])
