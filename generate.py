"""Draw digits through the shared space: from a text, an image, a recording, or on the way between two images.

    python generate.py "a thick seven leaning left" "a thin zero" --count 16
    python generate.py --image 3                              variations of a test image
    python generate.py --image 3 --direction thin thick       a difference of two texts, added to its vector
    python generate.py --from 3 --to 8                        from one test image to another, along the sphere
    python generate.py --speech seven.wav                     what a recording says; --strokes FILE: what a pen wrote

Needs a trained CLIP (`make train`) and its generator (`make generator`), for recordings also `make speech` or
`make strokes`. Writes a sheet to inference_test/.
"""

import sys
import time
from argparse import Namespace
from pathlib import Path

import my_utils
from my_utils import ArgumentParser, InputError, number
from training.settings import add_model_flags

TEST_IMAGES = 10_000
MOST_TEXTS, LONGEST = 40, 100  # what a sheet has room for
FARTHEST = 0.5  # share of the way from an image's vector to a direction


def read_flags(argv: list[str]) -> Namespace:
    """The flags. Raises InputError for what cannot be."""
    parser = ArgumentParser(prog="generate.py", description=__doc__.split("\n")[0])
    place = {"type": number(int, 0, TEST_IMAGES - 1), "metavar": "N"}
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="descriptions; each gets a row")
    parser.add_argument("--image", help="draw variations of this test image", **place)
    parser.add_argument("--direction", nargs=2, metavar="TEXT", help="with --image: move it from one text to the other")
    parser.add_argument("--from", dest="start", help="draw the way from this test image ...", **place)
    parser.add_argument("--to", dest="end", help="... to this one", **place)
    parser.add_argument("--speech", metavar="WAV", help="draw the digit that a wav file says")
    parser.add_argument(
        "--strokes",
        metavar="FILE",
        help="draw what a pen wrote: a text file, in each line x and y of a point, y upwards",
    )
    parser.add_argument("--count", type=number(int, 1, 100), default=16, metavar="N", help="images in a row")
    parser.add_argument("--seed", type=number(int, 0, 2**31), default=0, metavar="N", help="seed of the noise")
    add_model_flags(parser)
    parser.add_argument("--pictures", default="inference_test", metavar="DIR", help="folder of the sheet")
    args = parser.parse_args(argv)
    way = args.start is not None or args.end is not None
    asked = (args.texts, args.image is not None, way, args.speech is not None, args.strokes is not None)
    if sum(map(bool, asked)) != 1:
        raise InputError(
            "say what to draw: one or more texts, or --image N, or --from N --to M, or --speech or --strokes with a"
            " file, and only one of these"
        )
    if way and (args.start is None or args.end is None):
        raise InputError("a way has two ends: give both --from N and --to M")
    if len(args.texts) > MOST_TEXTS or any(len(text) > LONGEST for text in (*args.texts, *(args.direction or ()))):
        raise InputError(f"a sheet has room for {MOST_TEXTS} texts of {LONGEST} characters: give fewer or shorter ones")
    if not all(map(my_utils.is_whole, (args.speech or "", args.strokes or ""))):
        raise InputError("the recording's name holds a byte that is no UTF-8: rename the file in plain letters")
    if args.direction and args.image is None:
        raise InputError("--direction moves an image: give --image N too")
    return args


if __name__ == "__main__":  # a wrong flag is refused before torch takes its seconds to load
    FLAGS = my_utils.read_early(read_flags)

import torch
import torch.nn.functional as F
from torch import Tensor

from attributes import SLANT, THICKNESS, measure
from captions import DIGIT_WORDS, IS_NONE, NOT_DIGITS, STATEMENTS, claims_of, facts_of, holds, in_words
from clip import CLIP
from data.pendigits import draw
from evaluate import check_writable
from evaluation import pictures
from evaluation.generation import by_caption, drawn_facts
from evaluation.metrics import digit_classifier, embed_images
from generator import Generator, slerp
from my_dataset import Split, load_mnist
from my_utils import exit_on_input_error, pick_device
from speech_encoder import SpeechEncoder, as_picture, read_wav
from stroke_encoder import StrokeEncoder, read_strokes


def main(args: Namespace) -> None:
    # ---- the models ----
    device, folder = pick_device(args.device), Path(args.pictures)
    clip = CLIP.load(args.clip, device, args.text_model)
    generator = Generator.load(args.generator, clip)
    check_writable(folder)
    noise = torch.Generator(device).manual_seed(args.seed)
    count = args.count

    # ---- what is asked for: rows of names, images to start from, and image vectors [count, embed_dim] ----
    is_recording = args.speech is not None or args.strokes is not None
    test = None if args.texts or is_recording else load_mnist("test", args.data_path, device)
    started = time.perf_counter()
    with torch.no_grad():
        if args.texts:
            vectors = clip.encode_text(args.texts).repeat_interleave(count, dim=0)
            images = generator.draw(vectors, noise)
            asked = [(text, None, claims_of(text)) for text in args.texts]
            name, title = "drawn_texts", "drawn from texts"
        elif is_recording:
            vector, row = of_recording(clip, args.speech, args.strokes)
            images = generator.draw(vector.expand(count, -1), noise)  # (the decoder alone draws fewer as asked)
            asked = [row]
            what = "strokes" if args.speech is None else "speech"
            name, title = f"drawn_{what}", f"drawn from {what}"
        else:
            first = args.image if args.image is not None else args.start
            vector = embed_images(clip, test.images[first : first + 1])[0]  # [embed_dim]
            asked = [describe(test, first)]
            shares = torch.linspace(0, 1, count, device=device)
            if args.start is not None:
                other = embed_images(clip, test.images[args.end : args.end + 1])[0]
                images = generator.decode(slerp(vector, other, shares), generator=noise, alike=True)
                asked[0] = (f"{asked[0][0]}\nto {describe(test, args.end)[0]}", asked[0][1], 0)
                name, title = f"drawn_way_{first}_to_{args.end}", "drawn on the way from one image to another"
            elif args.direction:
                low, high = clip.encode_text(args.direction)
                if torch.equal(low, high):
                    raise InputError("--direction needs two texts that differ in what they say")
                towards = F.normalize(high - low, dim=0)
                images = generator.decode(slerp(vector, towards, FARTHEST * shares), generator=noise, alike=True)
                asked[0] = (f"{asked[0][0]}\n{args.direction[0]} to {args.direction[1]}", asked[0][1], 0)
                name, title = f"drawn_direction_{first}", "drawn along the difference of two texts"
            else:
                images = generator.decode(vector.expand(count, -1), generator=noise)
                name, title = f"drawn_variations_{first}", "drawn anew from the vector of an image"
        seconds = time.perf_counter() - started

        # ---- what was drawn ----
        facts = drawn_facts(images, by_caption(clip)).view(-1, count)  # [rows, count]
    thickness, slant = (x.view(-1, count).tolist() for x in measure(images))
    rows = []
    for row, (text, query, claims) in enumerate(asked):
        fits = holds(torch.tensor(claims, device=device), facts[row]).tolist() if claims else [None] * count
        notes = [pictures.in_figures(t, s).replace(", ", "\n") for t, s in zip(thickness[row], slant[row], strict=True)]
        rows.append((text, query, images[row * count : (row + 1) * count, 0].cpu(), notes, fits))
        line = text.replace("\n", " ")
        if claims and says_no_digit(claims):
            print(f"{line}: 0 of {count}, for the generator has learned digits alone")
        elif claims:
            print(f"{line}: {sum(fits)} of {count} are {in_words(claims)}")
        elif args.texts:
            print(f"{line}: not judged: name a digit, a thickness or a slant in the words of captions.py")
    path = folder / f"{name}.png"
    pictures.save_figure(pictures.ranked_images(rows, title), path)
    print(f"{len(images)} image{'s' * (len(images) > 1)} in {seconds:.1f} s: {path}")
    print("(the model itself says which digit it is; thickness and slant are measured)")


def of_recording(clip: CLIP, speech: str | None, strokes: str | None) -> tuple[Tensor, tuple]:
    """A wav file's or a pen's vector [embed_dim]; its name, its picture, and as a claim the digit of the caption that
    lies closest to it."""
    if speech is not None:
        mels = SpeechEncoder.preprocess(read_wav(speech))
        vector, picture, verb = clip.encode_speech(mels)[0], as_picture(mels)[0], "heard"
    else:
        points = StrokeEncoder.preprocess(read_strokes(strokes))
        vector, picture, verb = clip.encode_strokes(points)[0], draw(points)[0, 0], "read"
    digit = int((digit_classifier(clip) @ vector).argmax())
    return vector, (f"{Path(speech or strokes).name}:\n{verb} as {DIGIT_WORDS[digit]}", picture, 1 << digit)


def says_no_digit(claims: int) -> bool:
    return bool(claims & (IS_NONE | sum(1 << STATEMENTS.index(kind) for kind in NOT_DIGITS)))


def describe(test: Split, place: int) -> tuple[str, Tensor, int]:
    """A test image's name, the image, and what its variations should keep: digit, thickness and slant."""
    image, digit = test.images[place : place + 1], test.labels[place : place + 1]
    cell = int(facts_of(digit, *measure(image))[1])
    said = ", ".join((DIGIT_WORDS[cell // 9], THICKNESS[cell // 3 % 3], SLANT[cell % 3]))
    return f"test image {place}:\n{said}", image[0].cpu(), claims_of(said)


if __name__ == "__main__":
    with exit_on_input_error():
        sys.exit(main(FLAGS))
