"""Generate digits from texts, images or recordings, or between two images, through the shared space.

    python generate.py "a thick seven leaning left" "a thin zero" --count 16
    python generate.py --image 3                              variations of a test image
    python generate.py --image 3 --direction thin thick       its embedding, moved from one text towards the other
    python generate.py --from 3 --to 8                        from one test image to another, along the sphere
    python generate.py --speech seven.wav                     what a recording says; --strokes FILE: what a pen wrote

Needs a trained CLIP (`make train`) and its generator (`make generator`), for recordings also `make speech` or
`make strokes`. Writes a sheet of pictures to inference_test/.
"""

import sys
from argparse import Namespace
from pathlib import Path

import torch
from tqdm import tqdm

from attributes import measure
from captions import LABEL_ID, OUTLIERS, format_labels
from clip import CLIP
from evaluation.claims import format_values, parse_claims
from evaluation.pictures import check_writable, ranked_images, save_figure
from generation.features import judge
from generation.model import Generator
from generation.rows import Row, direction_row, image_row, path_row, recording_row
from my_dataset import load_mnist
from my_utils import ArgumentParser, InputError, exit_on_error, number, pick_device, text
from training.settings import add_model_flags

MAX_TEXTS, MAX_LETTERS, MAX_IMAGES = 40, 100, 400  # what a sheet has room for
CHUNK = 20  # images that are generated at a time
NO_DIGIT = [LABEL_ID[label] for label in ("no digit", *OUTLIERS)]


def read_flags(argv: list[str]) -> Namespace:
    """The flags. Raises InputError on invalid ones."""
    parser = ArgumentParser(prog="generate.py", description=__doc__.split("\n")[0])
    index = {"type": number(int, 0, 9_999), "metavar": "N"}
    parser.add_argument("texts", nargs="*", type=text, metavar="TEXT", help="captions; each gets a row")
    parser.add_argument("--image", help="variations of this test image", **index)
    parser.add_argument("--direction", nargs=2, type=text, metavar="TEXT", help="move --image from one text to another")
    parser.add_argument("--from", dest="start", help="interpolate from this test image ...", **index)
    parser.add_argument("--to", dest="end", help="... to this one", **index)
    parser.add_argument("--speech", type=text, metavar="WAV", help="the digit that a wav file says")
    parser.add_argument("--strokes", type=text, metavar="FILE", help='what a pen wrote: lines of "x y", y upwards')
    parser.add_argument("--count", type=number(int, 1, 100), default=16, metavar="N", help="images in a row")
    parser.add_argument("--seed", type=number(int, 0, 2**31), default=0, metavar="N", help="seed of the noise")
    add_model_flags(parser)
    parser.add_argument("--pictures", type=text, default="inference_test", metavar="DIR", help="folder of the sheet")
    args = parser.parse_args(argv)
    is_path = args.start is not None or args.end is not None
    if sum(map(bool, (args.texts, args.image is not None, is_path, args.speech, args.strokes))) != 1:
        raise InputError("say what to generate: texts, an image, --from and --to, or a file; only one of these")
    if (args.start is None) != (args.end is None):
        raise InputError("an interpolation has two ends: give both --from N and --to M")
    if args.direction and args.image is None:
        raise InputError("--direction moves an image: give --image N too")
    if len(args.texts) > MAX_TEXTS or any(len(one) > MAX_LETTERS for one in (*args.texts, *(args.direction or ()))):
        raise InputError(f"a sheet has room for {MAX_TEXTS} texts of {MAX_LETTERS} characters: give fewer, or shorter")
    if len(args.texts) * args.count > MAX_IMAGES:
        raise InputError(f"a sheet has room for {MAX_IMAGES} images, not {len(args.texts)} x {args.count}: lower it")
    return args


@torch.no_grad()
def main(argv: list[str]) -> None:
    args = read_flags(argv)
    device, count = pick_device(args.device), args.count
    clip = CLIP.load(args.clip, device, args.text_model)
    generator = Generator.load(args.generator, clip)
    check_writable(Path(args.pictures))

    # ---- what to generate ----
    is_image, is_path = args.image is not None or args.start is not None, args.direction or args.start is not None
    test = load_mnist("test", args.data_path) if is_image else None
    if args.texts:
        rows, name = [Row(one, None, one, clip.encode_text([one]).expand(count, -1)) for one in args.texts], "texts"
    elif args.speech or args.strokes:
        name = "speech" if args.speech else "strokes"
        rows = [recording_row(clip, name, args.speech or args.strokes, count)]
    elif args.image is None:
        first, last = image_row(clip, test, args.start, count), image_row(clip, test, args.end, 1)
        rows, name = [path_row(first, last.embeds[0], f"to {last.title}")], f"path_{args.start}_to_{args.end}"
    elif args.direction:
        row = image_row(clip, test, args.image, count)
        rows, name = [direction_row(clip, row, *args.direction)], f"direction_{args.image}"
    else:
        rows, name = [image_row(clip, test, args.image, count)], f"variations_{args.image}"

    # ---- images: of a path all from the same noise, so that only the embedding differs ----
    noise, images = torch.Generator(device).manual_seed(args.seed), []
    embeds = torch.cat([row.embeds for row in rows])  # [rows * count, embed_dim]
    for part in tqdm(embeds.split(1 if is_path else CHUNK), desc="generating", leave=False, disable=None):
        noise = noise.manual_seed(args.seed) if is_path else noise
        images.append(generator.decode(part if is_image else generator.sample_prior(part, noise), noise))
    images = torch.cat(images)  # [rows * count, 1, 28, 28]

    # ---- do they agree with their captions? ----
    claims = torch.stack([parse_claims(row.caption) for row in rows])  # [rows, S]
    agrees = judge(clip, images, claims.to(device).repeat_interleave(count, dim=0))  # [rows * count]
    sheet, notes = [], [format_values(values).replace(", ", "\n") for values in measure(images)]
    for i, (row, said) in enumerate(zip(rows, claims, strict=True)):
        own, report = slice(i * count, (i + 1) * count), row.title.replace("\n", " ")
        is_right = agrees[own].tolist() if said.any() else [None] * count
        sheet.append((row.title, row.picture, images[own, 0].cpu(), notes[own], is_right))
        if said[NO_DIGIT].any():
            print(f"{report}: 0 of {count}, the generator has learned digits alone")
        elif said.any():
            print(f"{report}: {sum(is_right)} of {count} are {format_labels(said)}")
        elif row.caption:
            print(f"{report}: not judged: it negates, or names no digit or attribute in the words of captions.py")
    print("drawing the sheet ...", flush=True)
    path = Path(args.pictures) / f"generated_{name}.png"
    save_figure(ranked_images(sheet, "generated images"), path)
    print(f"{len(images)} image{'s' * (len(images) > 1)} in {path}")
    print("(the CLIP itself says which digit an image shows; attributes are measured)")


if __name__ == "__main__":
    with exit_on_error():
        main(sys.argv[1:])
