"""Evaluate a trained CLIP: classification, unseen combinations, retrieval, calibration, robustness, OOD detection.

    python evaluate.py                       runs/best_model.pth, about a minute on 2 CPU cores
    python evaluate.py runs/x/best_model.pth --pictures x
    python evaluate.py runs/scenes/best_model.pth

Prints a table, writes evaluation.json beside the checkpoint and pictures to inference_test/. The results are those of
the test split: choose no model and no setting by them.
"""

import json
import shlex
import sys
import time
from datetime import date
from pathlib import Path

import torch
from sklearn.metrics import confusion_matrix

from clip import CLIP
from data.own import read_folder
from evaluation import pictures, sections
from evaluation.combinations import evaluate_attributes
from evaluation.corruptions import evaluate_robustness
from evaluation.metrics import embed_images
from evaluation.ood import evaluate_ood, ood_sets, uci_digits
from evaluation.own import evaluate_own
from evaluation.scene_pictures import five_captions
from evaluation.scenes import evaluate_scenes
from evaluation.table import print_table
from my_dataset import DATA_PATH, Split, load_mnist
from my_utils import ArgumentParser, atomic_write, device_name, exit_on_error, git_commit, pick_device, text

EVERY = 5  # every fifth training image is for the linear probe, every fifth test image is corrupted
OOD_IMAGES = 1_000  # of each OOD set that is made


def main(argv: list[str]) -> None:
    parser, started = ArgumentParser(prog="evaluate.py", description=__doc__.split("\n")[0]), time.perf_counter()
    parser.add_argument("checkpoint", nargs="?", type=text, default="runs/best_model.pth", help="the model's file")
    parser.add_argument("--data-path", type=text, help=f"folder of the data; None: {DATA_PATH}, or that of --data")
    parser.add_argument("--text-model", type=text, help="the language model's folder, if it has moved")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--pictures", type=text, default="inference_test", metavar="DIR", help="folder of the pictures")
    args = parser.parse_args(argv)

    # ---- the model; and whether the results can be written, before the long work ----
    device = pick_device(args.device)
    model = CLIP.load(args.checkpoint, device, args.text_model)
    json_path, folder = Path(args.checkpoint).parent / "evaluation.json", Path(args.pictures)
    pictures.check_writable(json_path.parent)
    pictures.check_writable(folder)

    # ---- measure, then pictures, JSON, table ----
    print("embedding the images ...", flush=True)
    about = {
        "command": shlex.join(["python", "evaluate.py", *argv]),
        "device": device_name(device),
        "torch_version": str(torch.__version__),
        "commit": git_commit(),
        "trained_at_commit": model.metrics.get("commit"),
        "date": f"{date.today()}",
    }
    measure = {"scenes": measure_scenes, "own": measure_own}.get(model.captions.kind, measure_digits)
    results, figures = measure(model, args.data_path or model.config.get("data") or DATA_PATH)
    for name, figure in figures.items():
        pictures.save_figure(figure, folder / f"evaluation_{name}.png")
    atomic_write(json_path, (json.dumps({"about": about} | results, indent=2) + "\n").encode())
    print_table(results)
    print(f"\n{time.perf_counter() - started:.0f} s; written: {json_path} and {folder}/evaluation_*.png")


def measure_own(model: CLIP, folder: str) -> tuple[dict, dict]:
    """Results and figures of a model of own data."""
    test = read_folder(folder, model.side, model.channels)["test"]
    return {"own": evaluate_own(model, test)}, {"search": pictures.own_search(model, test)}


def measure_scenes(model: CLIP, data_path: str) -> tuple[dict, dict]:
    """Results and figures of a model of scenes."""
    test = load_mnist("test", data_path)
    return {"scenes": evaluate_scenes(model, test)}, {"five_captions": five_captions(model, test)}


def measure_digits(model: CLIP, data_path: str) -> tuple[dict, dict]:
    """Results and figures of a model of single digits."""
    # ---- each set of images embedded once; what follows works on unit vectors on the CPU ----
    train, test = (load_mnist(split, data_path) for split in ("train", "test"))
    train, few = (Split(*(x[::EVERY] for x in split)) for split in (train, test))
    features = embed_images(model, test.images).cpu()  # [10000, embed_dim]
    train_features = embed_images(model, train.images).cpu()  # [11000, embed_dim]
    sets = ood_sets(test.images, data_path, OOD_IMAGES)
    ood_features = {"digits": features} | {name: embed_images(model, images).cpu() for name, images in sets.items()}
    uci, captions = uci_digits(), model.zero_shot_classifier().cpu()  # [10, embed_dim]
    uci_predicted = (embed_images(model, uci.images).cpu() @ captions.T).argmax(dim=1)  # [1797]
    similarity = features @ captions.T  # [10000, 10]
    predicted = similarity.argmax(dim=1)  # [10000]

    # ---- measure ----
    print("measuring ...", flush=True)
    results = {
        "classification": sections.accuracy_with_ci(predicted, test.labels),
        "confusion": confusion_matrix(test.labels, predicted).tolist(),  # rows: true digits
        "retrieval": sections.retrieval(similarity, test.labels),
        "linear_probe": sections.linear_probe(train_features, train.labels, features, test.labels),
        "calibration": sections.calibration(similarity, test.labels, 1 / model.logit_scale.exp().item()),
        "robustness": evaluate_robustness(model, captions, few),
        "uci_digits": sections.accuracy_with_ci(uci_predicted, uci.labels),
        "ood": evaluate_ood(model, ood_features),
    }
    if model.captions.kind == "attributes":
        results["attributes"] = evaluate_attributes(model, features, test)
    figures = {
        "map": pictures.embedding_map(features[:1000], test.labels[:1000], captions),
        "robustness": pictures.robustness_curves(results["robustness"]),
        "ood": pictures.ood_histograms(model, ood_features),
    }
    if "attributes" in results:
        figures["combinations"] = pictures.seen_unseen_curves({"this model": results["attributes"]["curve"]})
    return results, figures


if __name__ == "__main__":
    with exit_on_error():
        main(sys.argv[1:])
