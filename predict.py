"""Read photos and scans: the nearest captions, the measured thickness and slant, and whether it is a digit at all.

    python predict.py photo.jpg scans/
    python predict.py scans/ --texts "seven" "a thick digit" --csv found.csv

Needs a trained CLIP of single digits (`make train`). Files that cannot be read are listed at the end; the exit code is
then 1.
"""

import sys
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from attributes import ATTRIBUTES, measure
from captions import DIGIT_WORDS, combination_description_ids
from clip import CLIP
from data.photo import SUFFIXES, photo_to_mnist, read_picture
from evaluation.claims import combination_caption
from evaluation.metrics import embed_images
from evaluation.ood import is_digit
from evaluation.pictures import check_writable
from my_utils import ArgumentParser, InputError, atomic_write, exit_on_error, pick_device, read_file, short, text

NEAREST = 3  # captions of each list in a CSV file, and of the user's own


@torch.no_grad()
def main(argv: list[str]) -> int:
    parser = ArgumentParser(prog="predict.py", description=__doc__.split("\n")[0])
    parser.add_argument("pictures", nargs="+", type=text, metavar="PICTURE", help="files, and folders of files")
    own = parser.add_mutually_exclusive_group()
    own.add_argument("--texts", nargs="+", type=text, metavar="TEXT", help="compare with these sentences")
    own.add_argument("--texts-from", type=text, metavar="FILE", help="compare with those of a file, one a line")
    parser.add_argument("--csv", type=text, metavar="FILE", help="write the table to this file, with more captions")
    parser.add_argument("--clip", type=text, default="runs/best_model.pth", metavar="FILE", help="the trained CLIP")
    parser.add_argument("--text-model", type=text, help="the language model's folder, if it moved")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    args = parser.parse_args(argv)
    if args.csv and Path(args.csv).suffix.lower() != ".csv":
        raise InputError(f"--csv {args.csv} is no name of a table: let it end in .csv")
    if args.csv:
        check_writable(Path(args.csv).parent)
    texts = args.texts
    if args.texts_from:
        lines = read_file(args.texts_from, "a file of sentences").decode("utf-8-sig", "replace").splitlines()
        texts = [line.strip() for line in lines if line.strip()]
        if not texts:
            raise InputError(f"{args.texts_from} holds no sentence: write one on a line, such as 'seven'")
    model = CLIP.load(args.clip, pick_device(args.device), args.text_model)
    model.require_digits()
    if texts:
        captions = {"text": (texts, model.encode_text(texts))}  # lists by name, with unit vectors [T, embed_dim]
    else:
        captions = {"caption": (DIGIT_WORDS, model.zero_shot_classifier())}
        if model.captions.kind == "attributes":
            ids = combination_description_ids()
            captions["description"] = (list(map(combination_caption, range(len(ids)))), model.embed_descriptions(ids))

    images, problems = {}, []  # uint8 [28, 28] by name; what is wrong with the other files
    for path in tqdm(find_pictures(args.pictures), "pictures", disable=None):
        try:
            images[str(path)] = photo_to_mnist(read_picture(path))
        except InputError as error:
            problems.append(error)
        except Exception as error:  # what a file says of its picture, such as EXIF, can be anything
            problems.append(f"{path} cannot be read: {short(error)}")
    if images:
        table = predict(model, images, captions, NEAREST if args.csv or texts else 1)
        if args.csv:
            atomic_write(args.csv, table.to_csv(index=False).encode(errors="backslashreplace"))  # names are any bytes
        else:
            aligned = table.apply(lambda column: column.str.ljust(column.str.len().max()))
            print(aligned.to_string(index=False, justify="left"))
        print(f"{(table['digit'] == 'yes').sum():,} of {len(images):,} pictures show a digit")
    for problem in problems:
        print(f"left out: {problem}", file=sys.stderr)
    return int(bool(problems))


def find_pictures(places: list[str]) -> list[Path]:
    """Files and folders -> files, each once. A folder without pictures stays: reading it says what is wrong."""
    paths = []
    for place in map(Path, places):
        inside = sorted(path for path in place.rglob("[!.]*") if path.suffix.lower() in SUFFIXES)
        paths += inside or [place]  # (a file has nothing inside)
    return list(dict.fromkeys(paths))


def predict(model: CLIP, images: dict[str, Tensor], captions: dict, count: int) -> pd.DataFrame:
    """Images uint8 [28, 28] by name -> a table of texts: is it a digit, nearest captions, measured attributes."""
    x = torch.stack(list(images.values()))
    features = embed_images(model, x)  # [N, embed_dim]
    table = {"file": list(images), "digit": ["yes" if yes else "no" for yes in is_digit(model, features)]}
    for title, (sentences, vectors) in captions.items():
        cosines, places = (features @ vectors.T).topk(min(count, len(sentences)))  # [N, count]
        for k in range(places.shape[1]):
            table[f"{title} {k + 1}"] = [sentences[place] for place in places[:, k]]
            table[f"cosine {title} {k + 1}"] = [f"{cosine:.3f}" for cosine in cosines[:, k]]
    for attribute, values in zip(ATTRIBUTES, measure(x).T, strict=True):
        table[f"{attribute.name} {attribute.format.split()[-1]}"] = [f"{value:.2f}" for value in values]
    return pd.DataFrame(table, dtype=object)  # (file names are any bytes)


if __name__ == "__main__":
    with exit_on_error():
        sys.exit(main(sys.argv[1:]))
