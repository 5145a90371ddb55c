"""The sections of evaluate.py: what is measured, as plain numbers, and what several sections and pictures share.

Features are unit vectors [N, embed_dim] on the CPU, captions [10, embed_dim], similarity [N, 10] their cosines.
"""

import warnings
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from captions import DIGIT_WORDS, NOT_DIGITS, things_of_no_digits
from clip import CLIP
from data.not_digits import MAKERS
from evaluation import geometry as of_space
from evaluation import pictures
from evaluation.calibration import expected_calibration_error, fit_temperature
from evaluation.calibration import reliability as reliability_bins
from evaluation.corruptions import CORRUPTIONS
from evaluation.metrics import caption_accuracy, caption_vectors, digit_classifier, embed_images, wilson_interval
from evaluation.other_images import drawn_letters, inverted_noise
from evaluation.retrieval import (
    image_to_image_mean_average_precision,
    mean_average_precision,
    precision_at_k,
    recall_at_k,
    text_to_image_precision,
)
from my_dataset import Split, stratified_indices

NEIGHBOURS = 20  # of the nearest-neighbour probe
SHOWN = 20  # images in a picture of images, and mistakes that are listed


# ---- the sections ----


def classification(similarity: Tensor, labels: Tensor, temperature: float) -> dict:
    """Accuracy, that of each digit, who is taken for whom, and the wrong answers given with most confidence."""
    confidence, predicted = (similarity / temperature).softmax(dim=1).max(dim=1)
    wrong = (predicted != labels).nonzero()[:, 0]
    wrong = wrong[confidence[wrong].argsort(descending=True)][:SHOWN]
    return right_of(predicted, labels) | {
        "digits": [right_of(predicted[labels == digit], labels[labels == digit]) for digit in range(10)],
        "confusion": (10 * labels + predicted).bincount(minlength=100).view(10, 10).tolist(),  # rows: true
        "most_confident_mistakes": [
            {"index": i, "true": int(labels[i]), "predicted": int(predicted[i]), "confidence": confidence[i].item()}
            for i in wrong.tolist()
        ],
    }


def retrieval(model: CLIP, features: Tensor, captions: Tensor, labels: Tensor) -> dict:
    """Text -> image with the ten captions; image -> text among all phrasings of them; image -> image."""
    with torch.no_grad():
        texts = model.encode_text(model.captions.all_of(model.captions.of_digits())).cpu()  # [T, embed_dim]
    digits = torch.arange(10).repeat_interleave(model.captions.phrasings)
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
    from sklearn.linear_model import LogisticRegression  # scikit-learn takes a second to import
    from sklearn.neighbors import KNeighborsClassifier

    linear = LogisticRegression(max_iter=1000).fit(train, train_labels)
    neighbours = KNeighborsClassifier(NEIGHBOURS).fit(train, train_labels)
    return {
        "fitted_on": len(train),
        "neighbours": NEIGHBOURS,
        "linear": right_of(torch.from_numpy(linear.predict(test)), test_labels),
        "nearest_neighbours": right_of(torch.from_numpy(neighbours.predict(test)), test_labels),
    }


def calibration(val: Tensor, val_labels: Tensor, test: Tensor, test_labels: Tensor, learned: float) -> dict:
    """Softmax over the ten captions, at the learned temperature and at the one that suits validation best.

    `val` and `test` are similarities.
    """
    result = {}
    for name, temperature in (("learned", learned), ("fitted", fit_temperature(val, val_labels))):
        probabilities = (test / temperature).softmax(dim=1)
        count, confidence, accuracy = reliability_bins(probabilities, test_labels)
        result[name] = {
            "temperature": temperature,
            "ece": expected_calibration_error(probabilities, test_labels),
            "nll": F.cross_entropy(test / temperature, test_labels).item(),
            "bins": {"count": count.tolist(), "confidence": confidence.tolist(), "accuracy": accuracy.tolist()},
        }
    return result


def geometry(features: Tensor, captions: Tensor, labels: Tensor) -> dict:
    return {
        "modality_gap": of_space.modality_gap(features, captions),
        "alignment": of_space.alignment(features, captions[labels]),
        "uniformity_images": of_space.uniformity(features),
        "uniformity_captions": of_space.uniformity(captions),
        "effective_rank_images": of_space.effective_rank(features),
        "effective_rank_captions": of_space.effective_rank(captions),
        "embed_dim": features.shape[1],
    }


def robustness(model: CLIP, captions: Tensor, split: Split) -> dict:
    """Accuracy under each corruption and severity; the error is 1 - accuracy.

    The mean corruption error is the mean over corruptions of the mean error over severities (Hendrycks & Dietterich,
    2019, arXiv 1903.12261), without their division by AlexNet's error, which MNIST does not have.
    """

    def accuracy(images: Tensor) -> float:
        return caption_accuracy(embed(model, images) @ captions.T, split.labels)

    result = {"images": len(split.labels), "clean": accuracy(split.images), "corruptions": {}}
    for name, (_, unit, amounts) in CORRUPTIONS.items():
        accuracies = [accuracy(corrupted(split.images, name, amount)) for amount in amounts]
        mean_error = 1 - sum(accuracies) / len(accuracies)
        result["corruptions"][name] = {"unit": unit, "amounts": amounts, "accuracies": accuracies, "error": mean_error}
    errors = [one["error"] for one in result["corruptions"].values()]
    return result | {"mean_corruption_error": sum(errors) / len(errors)}


def open_set(scores: dict[str, Tensor], best: dict[str, Tensor], names: Iterable[str]) -> dict:
    """How well the "digits" are told from each set of others: by `open_set_score`, and by the best similarity alone.

    A set without a score is not installed: None.
    """
    result = {name: auroc(scores["digits"], scores.get(name)) for name in names}
    for name, one in result.items():
        if one is not None:
            one["auroc_of_best_similarity"] = auroc(best["digits"], best[name])["auroc"]
    return result


def open_set_score(model: CLIP, features: Tensor) -> Tensor:
    """How much each image looks like a digit, [N]: the cosine to the nearest of the ten captions, less that to the
    nearest caption of no digit where the model has been trained on such."""
    score = (features @ digit_classifier(model).cpu().T).amax(dim=1)
    if model.captions.described:
        no_digit = caption_vectors(model, things_of_no_digits()).cpu()
        score = score - (features @ no_digit.T).amax(dim=1)
    return score


def open_set_label(model: CLIP) -> str:
    """What `open_set_score` is, for an axis."""
    nearest = "cosine to the nearest of the ten captions"
    return f"{nearest}, less that to the nearest caption of no digit" if model.captions.described else nearest


def auroc(digits: Tensor, others: Tensor | None) -> dict | None:
    """How well a score tells digits from others: the chance that a digit's is the larger one."""
    if others is None:
        return None
    from sklearn.metrics import roc_auc_score

    score = roc_auc_score([1] * len(digits) + [0] * len(others), torch.cat([digits, others]))
    return {"images": len(others), "auroc": float(score)}


# ---- what they share ----


def embed(model: CLIP, images: Tensor) -> Tensor:
    """Any images -> features. Some are inverted on purpose, so the model's warning of bright images is not wanted."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "most of an image is bright")
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


# ---- pictures that need more than a section's numbers ----


def embedding_map(split: Split, captions: Tensor):
    """Features and their labels, and the captions, in two dimensions: t-SNE (van der Maaten & Hinton, 2008)."""
    from sklearn.manifold import TSNE

    points = TSNE(metric="cosine", random_state=0).fit_transform(torch.cat([split.images, captions]))
    return pictures.embedding_map(torch.from_numpy(points), split.labels, DIGIT_WORDS)


def corruption_examples(model: CLIP, captions: Tensor, split: Split):
    """A row for each corruption: one test image, itself and at the five severities, and what it is taken for."""
    rows = []
    for i, (name, (_, unit, amounts)) in enumerate(CORRUPTIONS.items()):
        images = torch.cat([corrupted(split.images[i : i + 1], name, amount) for amount in amounts])
        predicted = (embed(model, images) @ captions.T).argmax(dim=1)
        notes = [f"{amount:g}: {DIGIT_WORDS[digit]}" for amount, digit in zip(amounts, predicted, strict=True)]
        rows.append((f"{name}\n{unit}", split.images[i], images, notes, (predicted == split.labels[i]).tolist()))
    return pictures.ranked_images(rows, "corruptions at five severities, and what the model reads")


def no_digit_images(model: CLIP, split: Split, count: int = 8):
    """A row for each kind of image that is no digit, below one of digits, and the nearest of all captions that name a
    digit alone or say that there is none. Letters and inverted noise take no part in training."""
    generator = torch.Generator().manual_seed(0)
    digits = split.images[split.labels > 1][:count, None].float() / 255  # (a zero on its side is a zero)
    sets = {"digits": split.images[:count]} | {name: MAKERS[name](digits, generator)[:, 0] for name in NOT_DIGITS}
    sets |= {"letters\n(never trained)": drawn_letters(count)}
    sets |= {"inverted noise\n(never trained)": inverted_noise(split.images[:count])}
    things = torch.cat([model.captions.of_digits(), things_of_no_digits()])
    captions, names = caption_vectors(model, things).cpu(), (*DIGIT_WORDS, "no digit", *NOT_DIGITS)
    rows = []
    for name, images in sets.items():
        nearest = (embed(model, images) @ captions.T).argmax(dim=1)
        is_right = nearest == split.labels[:count] if name == "digits" else nearest >= len(DIGIT_WORDS)
        rows.append((name, None, images, [names[i] for i in nearest], is_right.tolist()))
    return pictures.ranked_images(rows, "images that are no digit, and the nearest caption")


def predictions(split: Split, predicted: Tensor, title: str):
    true, names = ([DIGIT_WORDS[digit] for digit in digits[:SHOWN]] for digits in (split.labels, predicted))
    return pictures.prediction_grid(split.images[:SHOWN], true, names, title)


def mistakes(test: Split, listed: list[dict]):
    """The mistakes that `classification` lists."""
    true, names = ([DIGIT_WORDS[one[key]] for one in listed] for key in ("true", "predicted"))
    notes = [f"{one['confidence']:.0%} sure" for one in listed]
    title = "the most confident mistakes on the test split"
    return pictures.prediction_grid(test.images[[one["index"] for one in listed]], true, names, title, notes=notes)
