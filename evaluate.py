"""Evaluate a trained CLIP: classification, unseen combinations, retrieval, calibration, robustness, OOD detection.

    python evaluate.py                       runs/best_model.pth, about a minute on 2 CPU cores
    python evaluate.py runs/x/best_model.pth --pictures x

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

from clip import CLIP
from evaluation import pictures, sections
from evaluation.combinations import evaluate_attributes
from evaluation.corruptions import evaluate_robustness
from evaluation.geometry import accuracy_with_ci
from evaluation.metrics import embed_images
from evaluation.ood import evaluate_ood, ood_sets, uci_digits
from evaluation.sections import stratified_subset
from evaluation.table import print_table
from my_dataset import DATA_PATH, Split, load_mnist
from my_utils import ArgumentParser, atomic_write, device_name, exit_on_error, git_commit, pick_device, text

PROBE_IMAGES = 10_000  # training images that the probes are fitted on
CORRUPTED_IMAGES = 2_000  # test images that are corrupted
OOD_IMAGES = MAP_IMAGES = 1_000  # of each made set of images of no digit; on the 2-D map


def main(argv: list[str]) -> None:
    parser, started = ArgumentParser(prog="evaluate.py", description=__doc__.split("\n")[0]), time.perf_counter()
    parser.add_argument("checkpoint", nargs="?", type=text, default="runs/best_model.pth", help="the model's file")
    parser.add_argument(
        "--data-path", type=text, default=DATA_PATH, help="folder of MNIST; downloaded if it is not there"
    )
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

    # ---- each set of images embedded once; what follows works on unit vectors on the CPU ----
    print("embedding the images ...", flush=True)
    train, val, test = (load_mnist(split, args.data_path) for split in ("train", "val", "test"))
    train, few, uci = stratified_subset(train, PROBE_IMAGES), stratified_subset(test, CORRUPTED_IMAGES), uci_digits()
    others = ood_sets(test.images, args.data_path, OOD_IMAGES)
    sets = {"train": train.images, "val": val.images, "test": test.images, "uci": uci.images} | others
    features = {name: embed_images(model, images).cpu() for name, images in sets.items()}  # [N, embed_dim] each
    captions = model.zero_shot_classifier().cpu()  # [10, embed_dim]
    similarity = {name: features[name] @ captions.T for name in ("val", "test", "uci")}  # [N, 10] each
    temperature, uci_predicted = 1 / model.logit_scale.exp().item(), similarity["uci"].argmax(dim=1)
    ood_features = {"digits": features["test"]} | {name: features[name] for name in others}

    # ---- measure ----
    print("measuring and drawing ...", flush=True)
    results = {
        "about": {
            "command": shlex.join(["python", "evaluate.py", *argv]),
            "images": {"probes": PROBE_IMAGES, "corrupted": CORRUPTED_IMAGES},
            "device": device_name(device),
            "torch_version": str(torch.__version__),
            "commit": git_commit(),
            "trained_at_commit": model.metrics.get("commit"),
            "date": f"{date.today()}",
        },
        "classification": sections.classification(similarity["test"], test.labels, temperature),
        "retrieval": sections.retrieval(model, features["test"], captions, test.labels),
        "probes": sections.probes(features["train"], train.labels, features["test"], test.labels),
        "calibration": sections.calibration(similarity, val.labels, test.labels, temperature),
        "geometry": sections.geometry(features["test"], captions, test.labels),
        "robustness": evaluate_robustness(model, captions, few),
        "uci_digits": accuracy_with_ci(uci_predicted, uci.labels),
        "ood": evaluate_ood(model, ood_features),
    }
    if model.captions.name_attributes:
        results["attributes"] = evaluate_attributes(model, features["test"], test)

    # ---- pictures, JSON, table ----
    points = stratified_subset(Split(features["test"], test.labels), MAP_IMAGES)
    figures = {
        "confusion": pictures.confusion_matrix(results["classification"]),
        "reliability": pictures.reliability_diagram(results["calibration"]),
        "map": pictures.embedding_map(*points, captions),
        "robustness": pictures.robustness_curves(results["robustness"]),
        "corruptions": pictures.corruption_examples(model, captions, few),
        "ood": pictures.ood_histograms(model, ood_features),
        "uci_digits": pictures.prediction_grid(uci.images[:20], uci.labels[:20], uci_predicted[:20], "UCI digits"),
    }
    for name, figure in figures.items():
        pictures.save_figure(figure, folder / f"evaluation_{name}.png")
    atomic_write(json_path, (json.dumps(results, indent=2) + "\n").encode())
    print_table(results)
    print(f"\n{time.perf_counter() - started:.0f} s; written: {json_path} and {folder}/evaluation_*.png")


if __name__ == "__main__":
    with exit_on_error():
        main(sys.argv[1:])
