"""Own pictures with texts, in memory, of one size, in fixed splits. A folder holds one of these:

    metadata.csv or metadata.jsonl    with columns file_name and text (and split), as Hugging Face's imagefolder
    CLASS/picture.png ...             a folder for each class, whose name is the text
    train-images-idx3-ubyte ...       four IDX files with MNIST's names, .gz or not; classes.txt has a name in each line

The first two may lie in folders train, val and test. A tenth of the training pictures becomes the part that is missing.
"""

import functools
import io
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torchvision.transforms.functional import resize

from captions import words_of
from clip import fit
from data.mnist import read_idx
from data.photo import SUFFIXES, read_picture
from my_dataset import SPLIT_SEED, OwnSplit, stratified_indices
from my_utils import InputError, quote, read_file, short

# Names of folders or in the column `split`, and the part that they mean.
PARTS = {"": "train", "train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


@functools.cache  # each picture is read once
def read_folder(folder: str, side: int = 28, channels: int | None = None) -> dict[str, OwnSplit]:
    """The splits of a folder, by name. `channels` None: 3, of IDX files 1.

    Raises InputError, with the row, for what cannot be read, and for texts that cannot be trained on.
    """
    root = Path(folder)
    is_idx = any(root.glob("train-images-idx3-ubyte*"))
    images, rows, classes = read_idx_rows(root, side, channels or 1) if is_idx else read_rows(root, side, channels or 3)
    if len({tuple(words_of(name)) for name in classes}) < len(classes):
        raise InputError(f"two classes of {root} have the same words: rename one (case and punctuation do not count)")
    pictures = rows.drop_duplicates("image")
    parts, text_ids = pictures["part"].to_numpy(object), torch.from_numpy(pd.factorize(pictures["text"])[0])
    for seed, name in enumerate(("val", "test"), start=SPLIT_SEED):
        train = np.flatnonzero(parts == "train")
        if name not in parts and len(train):
            parts[train[stratified_indices(text_ids[train], max(1, len(train) // 10), seed)]] = name
    splits = {}
    for name in ("train", "val", "test"):
        own = rows[parts[rows["image"]] == name]
        image, places = pd.factorize(own["image"], sort=True)
        texts = classes or tuple(own["text"].unique())  # all classes, but only the sentences of this split
        pairs = np.stack([image, pd.Categorical(own["text"], categories=texts).codes], axis=1)
        splits[name] = OwnSplit(images[places], texts, torch.from_numpy(pairs).long().unique(dim=0), classes)
        if own["text"].nunique() < (2 if name == "train" else 1):
            raise InputError(f"{root} has {len(places)} {name} pictures, all of one text: a CLIP compares, add others")
    return splits


def read_rows(root: Path, side: int, channels: int) -> tuple[Tensor, pd.DataFrame, tuple[str, ...]]:
    """The pictures, uint8 [N, channels, side, side]; of each row its image's place, text and part; and the classes."""
    has_parts = not find_table(root) and (find_table(root / "train") or any((root / "train").glob("*/")))
    folders = [root / name for name in PARTS if name and (root / name).is_dir()] if has_parts else [root]
    rows = pd.concat([list_rows(one, one.name if has_parts else "") for one in folders])
    if rows.empty:
        raise InputError(f"no pictures in {root.absolute()}: it needs metadata.csv, a folder a class, or IDX files")
    for row in rows.itertuples():
        if not words_of(row.text):
            raise InputError(f"{row.place} has no text: write one, or remove it")
        if row.part not in PARTS:
            raise InputError(f"{row.place} has the split {quote(row.part)}: write train, val or test")
    rows["part"], rows["image"] = rows["part"].map(PARTS), pd.factorize(rows["path"])[0]
    n_parts = rows.groupby("path")["part"].nunique()
    if n_parts.max() > 1:
        raise InputError(f"{n_parts.idxmax()} is in two parts of the data: keep its rows in one of train, val and test")
    classes = () if any(map(find_table, folders)) else tuple(rows["text"].unique())
    if not classes:  # "a cat" and "A cat." are one text
        same_words = rows["text"].map(lambda text: " ".join(words_of(text)))
        rows["text"] = rows.groupby(same_words)["text"].transform("first")
    pictures = rows.drop_duplicates("image")
    check_memory(len(pictures), side, channels)

    def read(place: str, path: Path) -> Tensor:
        try:
            return fit(read_picture(path, side), channels, side)
        except Exception as error:  # what a file says of its picture, such as EXIF, can be anything
            raise InputError(f"{place}: {short(error)}") from None

    with ThreadPoolExecutor() as pool:
        return torch.stack(list(pool.map(read, pictures["place"], pictures["path"]))), rows, classes


def list_rows(folder: Path, part: str) -> pd.DataFrame:
    """Where each row stands, in words, with its path, text and part: of metadata, or of pictures in class folders."""
    table = find_table(folder)
    if table is None:
        paths = sorted(path for path in folder.glob("[!._]*/[!.]*") if path.suffix.lower() in SUFFIXES)
        places, texts = list(map(str, paths)), [path.parent.name.replace("_", " ") for path in paths]
        return pd.DataFrame({"place": places, "path": paths, "text": texts, "part": part})
    content, is_csv = io.BytesIO(read_file(table, what="a table of pictures and texts")), table.suffix == ".csv"
    try:
        read, options = (pd.read_csv, {"keep_default_na": False}) if is_csv else (pd.read_json, {"lines": True})
        rows = read(content, dtype=str, **options).fillna("").astype(str)
        paths, texts = [folder / name for name in rows["file_name"]], rows["text"].str.strip()
    except (ValueError, KeyError) as error:
        raise InputError(f"{table} needs the columns file_name and text, in UTF-8 ({short(error)})") from None
    places = [f"row {number} of {table}" for number in range(1 + is_csv, len(rows) + 1 + is_csv)]
    return pd.DataFrame({"place": places, "path": paths, "text": texts, "part": rows.get("split", part)})


def find_table(folder: Path) -> Path | None:
    return next((path for kind in ("csv", "jsonl") if (path := folder / f"metadata.{kind}").exists()), None)


def check_memory(count: int, side: int, channels: int) -> None:
    """Raises InputError if that many pictures, and a copy of them in splits, do not fit into the memory."""
    needed, memory = 2 * count * channels * side**2, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > memory:
        sizes = f"{needed / 1e9:.1f} GB of memory, of {memory / 1e9:.1f}"
        raise InputError(f"{count:,} pictures of {side} pixels take {sizes}: lower --image-size")


def read_idx_rows(root: Path, side: int, channels: int) -> tuple[Tensor, pd.DataFrame, tuple[str, ...]]:
    """As `read_rows`; the t10k files are the test split."""
    lines = read_file(root / "classes.txt", what="the classes, a name in each line").decode(errors="replace")
    names = tuple(line.strip() for line in lines.splitlines() if words_of(line))
    images, rows = [], []
    for prefix, part in (("train", "train"), ("t10k", "test")):
        pixels, labels = (read_idx(root / f"{prefix}-{end}") for end in ("images-idx3-ubyte", "labels-idx1-ubyte"))
        has_images = pixels.ndim == 3 and pixels.numel() > 0
        if not has_images or labels.shape != pixels.shape[:1] or labels.max() >= len(names):
            raise InputError(f"the {prefix} files of {root} do not fit together, or not to {len(names)} classes")
        check_memory(len(pixels), side, channels)
        images.append(resize(pixels[:, None], [side, side]).expand(-1, channels, -1, -1))
        rows += [(names[label], part) for label in labels.tolist()]
    return torch.cat(images), pd.DataFrame(rows, columns=["text", "part"]).rename_axis("image").reset_index(), names
