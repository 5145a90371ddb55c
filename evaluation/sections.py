"""Sections of evaluate.py, as plain numbers: classification, retrieval, probes, calibration, geometry.

Features are unit vectors [N, embed_dim] on the CPU, captions [10, embed_dim], similarity [N, 10] their cosines.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from clip import CLIP
from evaluation import geometry as measures
from evaluation.geometry import accuracy_with_ci
from evaluation.metrics import effective_rank, modality_gap, text_to_image_precision
from evaluation.retrieval import image_to_image_mean_average_precision, mean_average_precision, recall_at_k
from my_dataset import Split, stratified_indices

NEIGHBOURS = 20  # of the nearest-neighbour probe
MISTAKES = 20  # that are listed


def stratified_subset(split: Split, size: int) -> Split:
    """The same stratified sample every time."""
    index = stratified_indices(split.labels, size, seed=0)
    return Split(split.images[index], split.labels[index])


def classification(similarity: Tensor, labels: Tensor, temperature: float) -> dict:
    """Accuracy, that of each digit, the confusion matrix, and the most confident mistakes."""
    confidence, predicted = (similarity / temperature).softmax(dim=1).max(dim=1)
    wrong = (predicted != labels).nonzero()[:, 0]
    wrong = wrong[confidence[wrong].argsort(descending=True)][:MISTAKES]
    return accuracy_with_ci(predicted, labels) | {
        "digits": [accuracy_with_ci(predicted[labels == digit], labels[labels == digit]) for digit in range(10)],
        "confusion": (10 * labels + predicted).bincount(minlength=100).view(10, 10).tolist(),  # rows: true
        "most_confident_mistakes": [
            {"index": i, "true": int(labels[i]), "predicted": int(predicted[i]), "confidence": confidence[i].item()}
            for i in wrong.tolist()
        ],
    }


def retrieval(model: CLIP, features: Tensor, captions: Tensor, labels: Tensor) -> dict:
    """Text -> image with the ten captions; image -> text among all their paraphrases; image -> image."""
    with torch.no_grad():
        texts = model.encode_text(model.captions.all_paraphrases(model.captions.digit_ids)).cpu()  # [T, embed_dim]
    digits = torch.arange(10).repeat_interleave(model.captions.paraphrases)  # [T]
    similarity, to_texts, is_true = features @ captions.T, features @ texts.T, labels[:, None] == digits
    hits = labels[similarity.argsort(dim=0, descending=True)] == torch.arange(10)  # [N, 10], best first
    return {
        "text_to_image": {f"precision_at_{k}": hits[:k].float().mean().item() for k in (1, 10, 100)}
        | {"r_precision": text_to_image_precision(similarity, labels)}
        | {"mean_average_precision": mean_average_precision(similarity, labels)},
        "image_to_text": {"texts": len(texts)}
        | {f"recall_at_{k}": recall_at_k(to_texts, is_true, k).mean().item() for k in (1, 2, 5)},
        "image_to_image": {"mean_average_precision": image_to_image_mean_average_precision(features, labels)},
    }


def probes(train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor) -> dict:
    """Two classifiers of the frozen image embeddings, fitted on training images without the captions."""
    from sklearn.linear_model import LogisticRegression  # scikit-learn takes a second to import
    from sklearn.neighbors import KNeighborsClassifier

    results = {"fitted_on": len(train), "neighbours": NEIGHBOURS}
    probes = {"linear": LogisticRegression(max_iter=1000), "nearest_neighbours": KNeighborsClassifier(NEIGHBOURS)}
    for name, probe in probes.items():
        predicted = torch.from_numpy(probe.fit(train, train_labels).predict(test))
        results[name] = accuracy_with_ci(predicted, test_labels)
    return results


def calibration(similarity: dict[str, Tensor], val_labels: Tensor, test_labels: Tensor, learned: float) -> dict:
    """Softmax of the test similarities, at the learned temperature and at the one fitted on validation."""
    results, fitted = {}, measures.fit_temperature(similarity["val"], val_labels)
    for name, temperature in (("learned", learned), ("fitted", fitted)):
        logits = similarity["test"] / temperature
        probabilities = logits.softmax(dim=1)
        count, confidence, accuracy = measures.reliability(probabilities, test_labels)
        results[name] = {
            "temperature": temperature,
            "ece": measures.expected_calibration_error(probabilities, test_labels),
            "cross_entropy": F.cross_entropy(logits, test_labels).item(),  # nats
            "bins": {"count": count.tolist(), "confidence": confidence.tolist(), "accuracy": accuracy.tolist()},
        }
    return results


def geometry(features: Tensor, captions: Tensor, labels: Tensor) -> dict:
    return {
        "modality_gap": modality_gap(features, captions),
        "alignment": measures.alignment(features, captions[labels]),
        "uniformity_images": measures.uniformity(features),
        "uniformity_captions": measures.uniformity(captions),
        "effective_rank_images": effective_rank(features),
        "effective_rank_captions": effective_rank(captions),
        "embed_dim": features.shape[1],
    }
