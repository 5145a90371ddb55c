"""Measure a trained model from many sides: zero-shot, retrieval, probes, calibration, geometry, robustness, open set.

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
from datetime import date
from pathlib import Path

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.manifold import TSNE
from sklearn.metrics import confusion_matrix, roc_auc_score
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

import pictures
from clip import CLIP
from corruptions import CORRUPTIONS
from geometry import alignment, effective_rank, modality_gap, uniformity
from metrics import (
    embed_images,
    expected_calibration_error,
    fit_temperature,
    reliability,
    wilson_interval,
    zero_shot_accuracy,
    zero_shot_classifier,
)
from my_dataset import DATA_PATH, Split, load_mnist, stratified_indices
from my_utils import ArgumentParser, InputError, atomic_write, exit_on_input_error, pick_device
from other_images import drawn_letters, fashion, inverted_noise, uci_digits
from retrieval import (
    image_to_image_mean_average_precision,
    mean_average_precision,
    precision_at_k,
    recall_at_k,
    text_to_image_precision,
)
from text_encoder import DIGIT_WORDS

PROBE_IMAGES = 10_000  # training images that the probes are fitted on
NEIGHBOURS = 20
CORRUPTED_IMAGES = 2_000  # test images that are corrupted
OTHER_IMAGES = 1_000  # of each open set that is drawn here
MAP_IMAGES = 1_000  # test images on the 2-D map
SHOWN = 20  # images in a picture of images


def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser(prog="evaluate.py", description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", nargs="?", default="runs/best_model.pth", help="the model's file")
    parser.add_argument("--data-path", default=DATA_PATH, help="folder of MNIST; fetched when it is not there")
    parser.add_argument("--text-model", default=None, help="the language model's folder, where it has moved")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--pictures", default="inference_test", metavar="DIR", help="folder of the pictures")
    args = parser.parse_args(argv)
    started = time.perf_counter()

    # ---- the model; and whether the results can be written, before the long work ----
    model = CLIP.load(args.checkpoint, pick_device(args.device), args.text_model)
    json_path = Path(args.checkpoint).parent / "evaluation.json"
    for folder in (json_path.parent, Path(args.pictures)):
        check_writable(folder)

    # ---- each split embedded once; what follows works on unit vectors on the CPU ----
    train, val, test = (load_mnist(split, args.data_path) for split in ("train", "val", "test"))
    train = subset(train, PROBE_IMAGES)
    train_features, val_features, test_features = (embed(model, split.images) for split in (train, val, test))
    captions = zero_shot_classifier(model).cpu()  # [10, embed_dim]
    similarity = test_features @ captions.T  # [10,000, 10]
    temperature = 1 / model.logit_scale.exp().item()

    # ---- the sections ----
    results = {
        "zero_shot": zero_shot(similarity, test.labels, temperature),
        "retrieval": retrieval(model, test_features, captions, test.labels),
        "probes": probes(train_features, train.labels, test_features, test.labels),
        "calibration": calibration(val_features @ captions.T, val.labels, similarity, test.labels, temperature),
        "geometry": geometry(test_features, captions, test.labels),
    }
    few = subset(test, CORRUPTED_IMAGES)
    results["robustness"] = robustness(model, captions, few)
    uci = uci_digits()
    uci_predicted = (embed(model, uci.images) @ captions.T).argmax(dim=1)
    results["another_hand"] = right_of(uci_predicted, uci.labels)
    others = {
        "letters": drawn_letters(OTHER_IMAGES),
        "inverted noise": inverted_noise(test.images[:OTHER_IMAGES]),
        "Fashion-MNIST": fashion(args.data_path),
    }
    best = {"digits": similarity.amax(dim=1)}  # the cosine to the nearest caption
    best |= {name: (embed(model, x) @ captions.T).amax(dim=1) for name, x in others.items() if x is not None}
    results["open_set"] = {name: auroc(best["digits"], best.get(name)) for name in others}

    # ---- pictures, JSON, table ----
    def save(name: str, figure) -> None:
        pictures.save_figure(figure, Path(args.pictures) / f"evaluation_{name}.png")

    mistakes = results["zero_shot"]["most_confident_mistakes"]
    points = subset(Split(test_features, test.labels), MAP_IMAGES)
    save("confusion", pictures.confusion_matrix(results["zero_shot"]["confusion"], DIGIT_WORDS))
    save("digits", pictures.digit_accuracy(results["zero_shot"]["digits"]))
    save("reliability", pictures.reliability_diagram(results["calibration"]))
    save("map", pictures.embedding_map(two_dimensions(points.images, captions), points.labels, DIGIT_WORDS))
    save("robustness", pictures.robustness_curves(results["robustness"]))
    save("corruptions", corruption_examples(model, captions, few))
    save("another_hand", predictions(uci, uci_predicted, "UCI digits brought to MNIST's form"))
    save("open_set", pictures.open_set(best, {name: x[:SHOWN] for name, x in others.items() if x is not None}))
    if mistakes:
        wrong = [one["index"] for one in mistakes]
        predicted = torch.tensor([one["predicted"] for one in mistakes])
        notes = [f"{one['confidence']:.0%} sure" for one in mistakes]
        shown = Split(test.images[wrong], test.labels[wrong])
        save("mistakes", predictions(shown, predicted, "the most confident mistakes on the test split", notes))
    about = {
        "command": shlex.join(["python", "evaluate.py", *(sys.argv[1:] if argv is None else argv)]),
        "images": {"test": len(test.labels), "corrupted": len(few.labels), "probes": len(train.labels)},
        "device": pick_device(args.device).type,
        "torch_version": str(torch.__version__),
        "date": f"{date.today()}",
    }
    atomic_write(json_path, (json.dumps({"about": about} | results, indent=2) + "\n").encode())
    print_table(results)
    print(f"\n{time.perf_counter() - started:.0f} s; written: {json_path} and {args.pictures}/evaluation_*.png")


# ---- the sections ----


def zero_shot(similarity: Tensor, labels: Tensor, temperature: float) -> dict:
    """Accuracy, that of each digit, who is taken for whom, and the wrong answers given with most confidence."""
    confidence, predicted = (similarity / temperature).softmax(dim=1).max(dim=1)
    wrong = (predicted != labels).nonzero()[:, 0]
    wrong = wrong[confidence[wrong].argsort(descending=True)][:SHOWN]
    return right_of(predicted, labels) | {
        "digits": [right_of(predicted[labels == digit], labels[labels == digit]) for digit in range(10)],
        "confusion": confusion_matrix(labels, predicted, labels=range(10)).tolist(),  # rows: true
        "most_confident_mistakes": [
            {"index": i, "true": int(labels[i]), "predicted": int(predicted[i]), "confidence": confidence[i].item()}
            for i in wrong.tolist()
        ],
    }


def retrieval(model: CLIP, features: Tensor, captions: Tensor, labels: Tensor) -> dict:
    """Text -> image with the ten captions; image -> text among all prompts of the text encoder; image -> image."""
    prompts = model.text_encoder.class_prompts
    with torch.no_grad():
        texts = model.encode_text([text for own in prompts for text in own]).cpu()  # [T, embed_dim]
    digits = torch.tensor([digit for digit, own in enumerate(prompts) for _ in own])
    similarity, to_texts, right = features @ captions.T, features @ texts.T, labels[:, None] == digits

    def precision(k: int) -> float:
        of_digits = [precision_at_k(similarity[:, digit], labels == digit, k).item() for digit in range(10)]
        return sum(of_digits) / 10

    return {
        "text_to_image": {f"precision_at_{k}": precision(k) for k in (1, 10, 100)}
        | {"r_precision": text_to_image_precision(similarity, labels)}
        | {"mean_average_precision": mean_average_precision(similarity, labels)},
        "image_to_text": {"texts": len(texts)}
        | {f"recall_at_{k}": recall_at_k(to_texts, right, k).mean().item() for k in (1, 2, 5)},
        "image_to_image": {"mean_average_precision": image_to_image_mean_average_precision(features, labels)},
    }


def probes(train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor) -> dict:
    """What the frozen image embeddings hold without the captions: two classifiers fitted on training images."""
    linear = LogisticRegression(max_iter=1000).fit(train, train_labels)
    neighbours = KNeighborsClassifier(NEIGHBOURS).fit(train, train_labels)
    return {
        "fitted_on": len(train),
        "linear": right_of(torch.from_numpy(linear.predict(test)), test_labels),
        "nearest_neighbours": right_of(torch.from_numpy(neighbours.predict(test)), test_labels),
    }


def calibration(val: Tensor, val_labels: Tensor, test: Tensor, test_labels: Tensor, learned: float) -> dict:
    """Softmax over the ten captions, at the learned temperature and at the one that suits validation best."""
    result = {}
    for name, temperature in (("learned", learned), ("fitted", fit_temperature(val, val_labels))):
        probabilities = (test / temperature).softmax(dim=1)
        count, confidence, accuracy = reliability(probabilities, test_labels)
        result[name] = {
            "temperature": temperature,
            "ece": expected_calibration_error(probabilities, test_labels),
            "nll": torch.nn.functional.cross_entropy(test / temperature, test_labels).item(),
            "bins": {"count": count.tolist(), "confidence": confidence.tolist(), "accuracy": accuracy.tolist()},
        }
    return result


def geometry(images: Tensor, captions: Tensor, labels: Tensor) -> dict:
    return {
        "modality_gap": modality_gap(images, captions),
        "alignment": alignment(images, captions[labels]),
        "uniformity_images": uniformity(images),
        "uniformity_captions": uniformity(captions),
        "effective_rank_images": effective_rank(images),
        "effective_rank_captions": effective_rank(captions),
        "embed_dim": images.shape[1],
    }


def robustness(model: CLIP, captions: Tensor, split: Split) -> dict:
    """Accuracy under each corruption and severity; the error is 1 - accuracy.

    The mean corruption error is the mean over corruptions of the mean error over severities (Hendrycks & Dietterich,
    2019, arXiv 1903.12261), without their division by AlexNet's error, which MNIST does not have.
    """

    def accuracy(images: Tensor) -> float:
        return zero_shot_accuracy(embed(model, images) @ captions.T, split.labels)

    result = {"clean": accuracy(split.images), "corruptions": {}}
    for name, (_, unit, amounts) in CORRUPTIONS.items():
        accuracies = [accuracy(corrupted(split.images, name, amount)) for amount in amounts]
        mean_error = 1 - sum(accuracies) / len(accuracies)
        result["corruptions"][name] = {"unit": unit, "amounts": amounts, "accuracies": accuracies, "error": mean_error}
    errors = [one["error"] for one in result["corruptions"].values()]
    return result | {"mean_corruption_error": sum(errors) / len(errors)}


def auroc(digits: Tensor, others: Tensor | None) -> dict | None:
    """How well the best similarity tells digits from others: the chance that a digit's is the larger one."""
    if others is None:
        return None
    score = roc_auc_score([1] * len(digits) + [0] * len(others), torch.cat([digits, others]))
    return {"images": len(others), "auroc": float(score)}


# ---- what the sections and the pictures share ----


def embed(model: CLIP, images: Tensor) -> Tensor:
    return embed_images(model, images).cpu()


def subset(split: Split, size: int) -> Split:
    """The same stratified sample every time."""
    index = stratified_indices(split.labels, size, seed=0)
    return Split(split.images[index], split.labels[index])


def right_of(predicted: Tensor, labels: Tensor) -> dict:
    right, n = int((predicted == labels).sum()), len(labels)
    return {"accuracy": right / n, "interval": wilson_interval(right, n), "right": right, "images": n}


def corrupted(images: Tensor, name: str, amount: float) -> Tensor:
    """Every severity of a corruption draws the same lots, so that severities differ in their amount alone."""
    return CORRUPTIONS[name].change(images.float() / 255, amount, torch.Generator().manual_seed(0))


def two_dimensions(images: Tensor, captions: Tensor) -> Tensor:
    """t-SNE (van der Maaten & Hinton, 2008) of images and captions together, by cosine distance -> [N + 10, 2]."""
    return torch.from_numpy(TSNE(metric="cosine", random_state=0).fit_transform(torch.cat([images, captions])))


def predictions(split: Split, predicted: Tensor, title: str, notes=None):
    true, names = ([DIGIT_WORDS[digit] for digit in digits[:SHOWN]] for digits in (split.labels, predicted))
    return pictures.prediction_grid(split.images[:SHOWN], true, names, title, notes=notes)


def corruption_examples(model: CLIP, captions: Tensor, split: Split):
    """A row for each corruption: one test image, itself and at the five severities, and what it is taken for."""
    rows = []
    for i, (name, (_, unit, amounts)) in enumerate(CORRUPTIONS.items()):
        images = torch.cat([corrupted(split.images[i : i + 1], name, amount) for amount in amounts])
        predicted = (embed(model, images) @ captions.T).argmax(dim=1)
        notes = [f"{amount:g}: {DIGIT_WORDS[digit]}" for amount, digit in zip(amounts, predicted, strict=True)]
        rows.append((f"{name}\n{unit}", split.images[i], images, notes, (predicted == split.labels[i]).tolist()))
    return pictures.ranked_images(rows, "corruptions at five severities, and what the model reads")


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


def print_table(results: dict) -> None:
    def share(value: dict) -> str:
        low, high = value["interval"]
        return f"{value['accuracy']:.2%} (95%: {low:.2%} to {high:.2%}), {value['right']:,} of {value['images']:,}"

    zero, found, probe = results["zero_shot"], results["retrieval"], results["probes"]
    confused = [(n, i, j) for i, row in enumerate(zero["confusion"]) for j, n in enumerate(row) if n and i != j]
    to_image, to_text, near = found["text_to_image"], found["image_to_text"], found["image_to_image"]
    rows = [
        ("Zero-shot classification, test split", None),
        ("accuracy", share(zero)),
        ("digits 0 to 4", "  ".join(f"{one['accuracy']:.2%}" for one in zero["digits"][:5])),
        ("digits 5 to 9", "  ".join(f"{one['accuracy']:.2%}" for one in zero["digits"][5:])),
        ("most frequent mistakes", ", ".join(f"{i} as {j}: {n}" for n, i, j in sorted(confused)[:-6:-1]) or "none"),
        ("Retrieval, everything of the right digit is right", None),
        (
            "text to image, precision at 1, 10, 100",
            "  ".join(f"{to_image[f'precision_at_{k}']:.2%}" for k in (1, 10, 100)),
        ),
        ("text to image, R-precision", f"{to_image['r_precision']:.2%}"),
        ("text to image, mean average precision", f"{to_image['mean_average_precision']:.2%}"),
        (
            f"image to {to_text['texts']} texts, recall at 1, 2, 5",
            "  ".join(f"{to_text[f'recall_at_{k}']:.2%}" for k in (1, 2, 5)),
        ),
        ("image to image, mean average precision", f"{near['mean_average_precision']:.2%}"),
        (f"Frozen image embeddings, fitted on {probe['fitted_on']:,} training images", None),
        ("logistic regression", share(probe["linear"])),
        (f"{NEIGHBOURS} nearest neighbours", share(probe["nearest_neighbours"])),
        ("Calibration, softmax over the ten captions", None),
        *[
            (
                f"{name} temperature {one['temperature']:.4f}",
                f"ECE {one['ece']:.3%}, cross-entropy {one['nll']:.4f} nats",
            )
            for name, one in results["calibration"].items()
        ],
        ("Geometry", None),
        *[(name.replace("_", " "), f"{value:.4g}") for name, value in results["geometry"].items()],
        (f"Robustness, {CORRUPTED_IMAGES:,} test images, accuracy at severities 1 to 5", None),
        ("clean", f"{results['robustness']['clean']:.2%}"),
        *[
            (f"{name} ({one['unit']})", "  ".join(f"{accuracy:.1%}" for accuracy in one["accuracies"]))
            for name, one in results["robustness"]["corruptions"].items()
        ],
        ("mean corruption error", f"{results['robustness']['mean_corruption_error']:.2%}"),
        ("Another hand: UCI digits in MNIST's form, not trained on", None),
        ("accuracy", share(results["another_hand"])),
        ("Open set: AUROC of the best similarity, digits against", None),
        *[
            (
                name,
                f"{one['auroc']:.4f}  {one['images']:,} images"
                if one
                else "not installed: Debian's package dataset-fashion-mnist",
            )
            for name, one in results["open_set"].items()
        ],
    ]
    for name, text in rows:
        print(f"\n{name}" if text is None else f"  {name:48}{text}")


if __name__ == "__main__":
    with exit_on_input_error():
        sys.exit(main())
