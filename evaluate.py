"""Measure a trained model from many sides: captions, retrieval, probes, calibration, geometry, robustness, open set.

    python evaluate.py                       runs/best_model.pth, under a minute on 2 CPU cores
    python evaluate.py runs/x/best_model.pth --pictures x

Prints a table, writes evaluation.json beside the checkpoint and pictures to inference_test/. This is an analysis of a
finished model: its figures are those of the test split, so nothing here may choose between models or settings. What
is fitted is fitted elsewhere: the temperature on validation, the probes on training images.
"""

import json
import shlex
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path

import my_utils
from my_utils import ArgumentParser, InputError
from training.settings import Settings


def read_flags(argv: list[str]) -> Namespace:
    """The flags, and as `command` what was typed. Raises InputError for what cannot be."""
    parser = ArgumentParser(prog="evaluate.py", description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", nargs="?", default="runs/best_model.pth", help="the model's file")
    parser.add_argument("--data-path", default=Settings.data_path, help="folder of MNIST; fetched when it is not there")
    parser.add_argument("--text-model", default=None, help="the language model's folder, where it has moved")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--pictures", default="inference_test", metavar="DIR", help="folder of the pictures")
    return parser.parse_args(argv, Namespace(command=shlex.join(["python", "evaluate.py", *argv])))


if __name__ == "__main__":  # a wrong flag is refused before torch takes its seconds to load
    FLAGS = my_utils.read_early(read_flags)

import torch
from tqdm import tqdm

from captions import DIGIT_WORDS
from clip import CLIP
from evaluation import pictures, sections
from evaluation.described import described
from evaluation.metrics import digit_classifier
from evaluation.other_images import drawn_letters, fashion, inverted_noise, uci_digits
from evaluation.sections import SHOWN, embed, right_of, subset
from evaluation.table import print_table
from my_dataset import Split, load_mnist
from my_utils import atomic_write, device_name, enough_memory, exit_on_input_error, pick_device
from training.run import git_commit

PROBE_IMAGES = 10_000  # training images that the probes are fitted on
CORRUPTED_IMAGES = 2_000  # test images that are corrupted
OTHER_IMAGES = 1_000  # of each open set that is drawn here
MAP_IMAGES = 1_000  # test images on the 2-D map


def main(args: Namespace) -> None:
    started = time.perf_counter()

    # ---- the model; and whether the results can be written, before the long work ----
    device = pick_device(args.device)
    model = CLIP.load(args.checkpoint, device, args.text_model)
    json_path, pictures_path = Path(args.checkpoint).parent / "evaluation.json", Path(args.pictures)
    for folder in (json_path.parent, pictures_path):
        check_writable(folder)

    # ---- each set of images embedded once; what follows works on unit vectors on the CPU ----
    train, val, test = (load_mnist(split, args.data_path) for split in ("train", "val", "test"))
    train, few, uci = subset(train, PROBE_IMAGES), subset(test, CORRUPTED_IMAGES), uci_digits()
    others = {
        "letters": drawn_letters(OTHER_IMAGES),
        "inverted noise": inverted_noise(test.images[:OTHER_IMAGES]),
        "Fashion-MNIST": fashion(args.data_path),
    }
    installed = {name: images for name, images in others.items() if images is not None}
    sets = {"train": train.images, "val": val.images, "test": test.images, "UCI digits": uci.images} | installed
    features = dict(in_turn("embedding", {name: lambda x=images: embed(model, x) for name, images in sets.items()}))
    captions = digit_classifier(model).cpu()  # [10, embed_dim]
    similarity = {name: vectors @ captions.T for name, vectors in features.items()}  # [N, 10] each
    in_open_set = {"digits": "test"} | {name: name for name in installed}
    scores = {name: sections.open_set_score(model, features[place]) for name, place in in_open_set.items()}
    best = {name: similarity[place].amax(dim=1) for name, place in in_open_set.items()}  # the nearest caption's cosine
    temperature = 1 / model.logit_scale.exp().item()
    uci_predicted = similarity["UCI digits"].argmax(dim=1)

    # ---- the sections ----
    measured = {
        "classification": lambda: sections.classification(similarity["test"], test.labels, temperature),
        "retrieval": lambda: sections.retrieval(model, features["test"], captions, test.labels),
        "probes": lambda: sections.probes(features["train"], train.labels, features["test"], test.labels),
        "calibration": lambda: sections.calibration(
            similarity["val"], val.labels, similarity["test"], test.labels, temperature
        ),
        "geometry": lambda: sections.geometry(features["test"], captions, test.labels),
        "robustness": lambda: sections.robustness(model, captions, few),
        "another_hand": lambda: right_of(uci_predicted, uci.labels),
        "open_set": lambda: sections.open_set(scores, best, others),
    }
    if model.captions.described:
        measured["described"] = lambda: described(model, features["test"], test)
    results = dict(in_turn("measuring", measured))

    # ---- pictures, JSON, table ----
    digits, points = results["classification"], subset(Split(features["test"], test.labels), MAP_IMAGES)
    drawn = {
        "confusion": lambda: pictures.confusion_matrix(digits["confusion"], DIGIT_WORDS),
        "digits": lambda: pictures.digit_accuracy(digits["digits"]),
        "reliability": lambda: pictures.reliability_diagram(results["calibration"]),
        "map": lambda: sections.embedding_map(points, captions),
        "robustness": lambda: pictures.robustness_curves(results["robustness"]),
        "corruptions": lambda: sections.corruption_examples(model, captions, few),
        "another_hand": lambda: sections.predictions(uci, uci_predicted, "UCI digits brought to MNIST's form"),
        "open_set": lambda: pictures.open_set(
            scores, sections.open_set_label(model), {name: images[:SHOWN] for name, images in installed.items()}
        ),
    }
    if digits["most_confident_mistakes"]:
        drawn["mistakes"] = lambda: sections.mistakes(test, digits["most_confident_mistakes"])
    for name, figure in in_turn("drawing", drawn):
        pictures.save_figure(figure, pictures_path / f"evaluation_{name}.png")
    about = {
        "command": args.command,
        "images": {"test": len(test.labels), "corrupted": len(few.labels), "probes": len(train.labels)},
        "device": device_name(device),
        "torch_version": str(torch.__version__),
        "commit": git_commit(),
        "date": f"{date.today()}",
    }
    if "commit" in model.metrics:
        about["trained_at_commit"] = model.metrics["commit"]
    atomic_write(json_path, (json.dumps({"about": about} | results, indent=2) + "\n").encode())
    print_table(results)
    print(f"\n{time.perf_counter() - started:.0f} s; written: {json_path} and {pictures_path}/evaluation_*.png")


def in_turn(doing: str, parts: dict[str, Callable]) -> Iterator[tuple]:
    """Each part's name and result, one after the other; on a terminal a bar says which one is at work."""
    for name in (bar := tqdm(parts, leave=False, disable=None, bar_format="{desc} {bar:20} {n} of {total}, {elapsed}")):
        bar.set_description_str(f"{doing}: {name.replace('_', ' ')}")
        yield name, parts[name]()


def check_writable(folder: Path) -> None:
    """Raises InputError where no file can be made in the folder, which is made itself if need be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(
            f"cannot write into {folder}: {error.strerror or error}; free it, copy the checkpoint elsewhere, or choose"
            " another --pictures"
        ) from None


if __name__ == "__main__":
    with exit_on_input_error(), enough_memory("end other programs, or use --device cpu"):
        sys.exit(main(FLAGS))
