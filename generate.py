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
import time
from argparse import Namespace
from pathlib import Path

import torch
from tqdm import tqdm

from attributes import format_values, measure
from captions import LABEL_ID, OUTLIERS, format_labels, parse_claims
from clip import CLIP
from evaluation.pictures import check_writable, ranked_images, save_figure
from generation.evaluate import agreement, generated_facts, zero_shot_digits
from generation.model import Generator
from generation.rows import direction_row, interpolation_row, recording_row, text_rows, variation_row
from my_dataset import load_mnist
from my_utils import ArgumentParser, InputError, exit_on_error, number, pick_device, text
from training.settings import add_model_flags

TEST_IMAGES = 10_000
MAX_TEXTS, MAX_LETTERS, MAX_IMAGES = 40, 100, 400  # what a sheet has room for


def read_flags(argv: list[str]) -> Namespace:
    """The flags. Raises InputError on invalid ones."""
    parser = ArgumentParser(prog="generate.py", description=__doc__.split("\n")[0])
    index = {"type": number(int, 0, TEST_IMAGES - 1), "metavar": "N"}
    parser.add_argument("texts", nargs="*", type=text, metavar="TEXT", help="captions; each gets a row")
    parser.add_argument("--image", help="variations of this test image", **index)
    parser.add_argument(
        "--direction", nargs=2, type=text, metavar="TEXT", help="with --image: move it from one text to the other"
    )
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
        raise InputError(
            "say what to generate: one or more texts, or --image N, or --from N --to M, or --speech or --strokes with a"
            " file, and only one of these"
        )
    if is_path and (args.start is None or args.end is None):
        raise InputError("an interpolation has two ends: give both --from N and --to M")
    if args.direction and args.image is None:
        raise InputError("--direction moves an image: give --image N too")
    if len(args.texts) > MAX_TEXTS or any(len(one) > MAX_LETTERS for one in (*args.texts, *(args.direction or ()))):
        raise InputError(
            f"a sheet has room for {MAX_TEXTS} texts of {MAX_LETTERS} characters: give fewer, or shorten them"
        )
    if len(args.texts) * args.count > MAX_IMAGES:
        raise InputError(
            f"a sheet has room for {MAX_IMAGES} images, not {len(args.texts)} x {args.count}: lower --count"
        )
    return args


@torch.no_grad()
def main(argv: list[str]) -> None:
    args = read_flags(argv)
    device, count = pick_device(args.device), args.count
    clip = CLIP.load(args.clip, device, args.text_model)
    generator = Generator.load(args.generator, clip)
    check_writable(Path(args.pictures))

    # ---- what to generate: rows of a title, a caption and embeddings ----
    is_image = args.image is not None or args.start is not None
    test = load_mnist("test", args.data_path) if is_image else None
    if args.texts:
        name, rows = "texts", text_rows(clip, args.texts, count)
    elif args.speech or args.strokes:
        name = "speech" if args.speech else "strokes"
        rows = [recording_row(clip, name, args.speech or args.strokes, count)]
    elif args.start is not None:
        name, rows = f"path_{args.start}_to_{args.end}", [interpolation_row(clip, test, args.start, args.end, count)]
    elif args.direction:
        name, rows = f"direction_{args.image}", [direction_row(clip, test, args.image, args.direction, count)]
    else:
        name, rows = f"variations_{args.image}", [variation_row(clip, test, args.image, count)]

    # ---- images: [count, 1, 28, 28] for each row ----
    noise = torch.Generator(device).manual_seed(args.seed)
    started, images = time.perf_counter(), []
    for row in tqdm(rows, desc="generating", unit="row", leave=False, disable=None):
        embeds = row.embeds if is_image else generator.sample_prior(row.embeds, noise)
        images.append(generator.decode(embeds, noise, same_noise=name.startswith(("path", "direction"))))
    seconds = time.perf_counter() - started

    # ---- do they agree with their captions? ----
    sheet, classify = [], zero_shot_digits(clip)
    for row, own in zip(rows, images, strict=True):
        claims = parse_claims(row.caption)
        is_outlier = claims[[LABEL_ID[label] for label in ("no digit", *OUTLIERS)]].any()
        agrees = agreement(generated_facts(own, classify), claims.to(device)).tolist()
        notes = [format_values(values).replace(", ", "\n") for values in measure(own)]
        sheet.append((row.title, row.picture, own[:, 0].cpu(), notes, agrees if claims.any() else [None] * count))
        report = row.title.replace("\n", " ")
        if is_outlier:
            print(f"{report}: 0 of {count}, the generator has learned digits alone")
        elif claims.any():
            print(f"{report}: {sum(agrees)} of {count} are {format_labels(claims)}")
        elif row.caption:
            print(f"{report}: not judged: it negates, or names no digit or attribute in the words of captions.py")
    path = Path(args.pictures) / f"generated_{name}.png"
    save_figure(ranked_images(sheet, "generated images"), path)
    print(f"{len(rows) * count} image{'s' * (len(rows) * count > 1)} in {seconds:.1f} s: {path}")
    print("(the CLIP itself says which digit an image shows; attributes are measured)")


if __name__ == "__main__":
    with exit_on_error():
        sys.exit(main(sys.argv[1:]))
