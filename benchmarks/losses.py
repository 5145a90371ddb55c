"""The contrastive losses compared, and how the modality gap depends on what captions name.

    python -m benchmarks.losses                       both tables
    python -m benchmarks.losses --only gap            one of them

`losses`: each loss trains a small CNN on sentences, with three learning rates at each batch size; its row is that of
the rate that is best on validation. With the same seed the images come in the same order, so that the difference to
`multi_positive` is taken seed by seed, with its 95% interval (Student's t).

`gap`: the same towers, images and steps, with captions that name the digit alone, one attribute more, or all. Schrodi
et al. (arXiv 2404.07983): what captions leave out opens the modality gap. Measured on the test split.

Writes results/losses.json and results/gap.json.
"""

import itertools
import math
import statistics
import sys
from argparse import Namespace
from functools import partial

import torch
from scipy.stats import t as student_t
from torch import Tensor
from tqdm import tqdm

from attributes import ATTRIBUTES, BINS, GRADE_OF_BIN, bins, measure
from benchmarks import common
from benchmarks.common import Training, Variant, cell, parts_of_facts
from captions import LABEL_ID, UNSAID, Captions, description_id
from clip import CLIP
from evaluation.metrics import caption_accuracy, embed_images
from evaluation.retrieval import average_precision
from losses import LOSSES
from my_dataset import Batch, Split, load_mnist
from my_utils import exit_on_error

# ---- the losses compared ----

BATCH_SIZES = (64, 256)
RATES = (3e-3, 9e-3, 2.7e-2)  # of AdamW at batch 256; others by the root of the batch size
REFERENCE = "multi_positive"
# A small CNN and AdamW on images without augmentation, so that 54 runs take three minutes.
BUDGET = ["--captions", "digit", "--image-encoder", "fast", "--epochs", "2", "--augment", "none"]
BUDGET += ["--muon-lr", "0", "--width", "16", "--init-temperature", "0.07", *common.SENTENCES]
# Title of each column: the metric in a run's last epoch, and its unit.
COLUMNS = {
    "R-precision, text → image": ("val_text_to_image_precision", "%"),
    "loss above its lowest value": ("kl", ""),
    "temperature": ("temperature", ""),
}


def compare_losses(args: Namespace) -> None:
    sizes, rates, seeds = BATCH_SIZES, RATES, [0, 1, 2]
    if args.quick:
        sizes, rates, seeds = BATCH_SIZES[1:], RATES[:1], [0, 1]
    keys = list(itertools.product(sizes, LOSSES, rates))
    metrics = {key: [] for key in keys}
    for seed, (size, loss, rate) in tqdm(list(itertools.product(seeds, keys)), desc="runs"):
        flags = ["--loss", loss, "--seed", str(seed), "--batch-size", str(size), "--lr", learning_rate(rate, size)]
        folder = args.runs / f"losses{args.suffix}" / f"{loss}-{size}-lr{rate:g}-seed{seed}"
        run = common.finished_run(folder, [*BUDGET, *flags, "--device", str(args.device)], quiet=True)
        metrics[size, loss, rate].append(run)
    accuracies = {key: [one["val_digit_accuracy"] for one in own] for key, own in metrics.items()}
    rows = []
    for size in sizes:
        best = {
            loss: max(rates, key=lambda rate, loss=loss: statistics.mean(accuracies[size, loss, rate]))
            for loss in LOSSES
        }
        for loss, rate in best.items():
            last = [one["history"][-1] for one in metrics[size, loss, rate]]
            mean, low, high = paired(accuracies[size, loss, rate], accuracies[size, REFERENCE, best[REFERENCE]])
            difference = "" if loss == REFERENCE else f"{100 * mean:+.2f} ({100 * low:+.2f} to {100 * high:+.2f})"
            row = [f"{size}", f"`{loss}`", learning_rate(rate, size), cell(accuracies[size, loss, rate]), difference]
            rows.append(row + [cell([one[name] for one in last], unit) for name, unit in COLUMNS.values()])
    columns = ["batch size", "loss", "best learning rate", "validation accuracy"]
    columns += [f"to `{REFERENCE}`, points (95% interval)", *COLUMNS]
    note = f"{len(seeds)} seeds, 2 epochs, sentences through all-MiniLM-L6-v2."
    origin = common.shared_origin([one for own in metrics.values() for one in own])
    common.write_result(args, "losses" + args.suffix, columns, rows, origin, note)


def learning_rate(rate: float, batch_size: int) -> str:
    return f"{rate * math.sqrt(batch_size / 256):.3g}"


def paired(values: list[float], others: list[float]) -> tuple[float, float, float]:
    """The mean difference of two lists of runs with the same seeds, and the bounds of its 95% interval."""
    differences = [value - other for value, other in zip(values, others, strict=True)]
    mean, n = statistics.mean(differences), len(differences)
    half = float(student_t.ppf(0.975, n - 1)) * statistics.stdev(differences) / math.sqrt(n)
    return mean, mean - half, mean + half


# ---- how many attributes captions name, and the gap between images and texts ----

GAP_FLAGS = ["--image-encoder", "fast", "--epochs", "2"]
GAP_LOSSES = ("multi_positive", "infonce")  # the latter is CLIP's own, as in the paper


def compare_captions(args: Namespace) -> None:
    test, rows, metrics = load_mnist("test", common.DATA, args.device), [], []
    seeds = [0] if args.quick else [0, 1, 2]
    for loss, named in itertools.product(GAP_LOSSES, range(len(ATTRIBUTES) + 1)):
        measured = []
        for seed in seeds:
            flags = [*GAP_FLAGS, "--loss", loss, "--seed", str(seed), "--device", str(args.device)]
            folder = args.runs / f"gap{args.suffix}" / f"{loss}-{named}-seed{seed}"
            build = partial(with_named_attributes, flags, named, args.device)
            metrics.append(common.train_variant(folder, common.settings_of(flags), args.command, build))
            measured.append(measure_space(CLIP.load(folder / "best_model.pth", args.device), named, test))
        columns, values = list(measured[0]), zip(*(one.values() for one in measured), strict=True)
        cells = [
            cell(list(of_seeds), "%" if "mAP" in name or "accuracy" in name else "")
            for name, of_seeds in zip(columns, values, strict=True)
        ]
        rows.append([f"`{loss}`", f"{named}", *cells])
    note = f"{len(seeds)} seeds, 2 epochs. A random order has an mAP of about a third within a digit."
    columns = ["loss", "attributes that captions name", *columns]
    common.write_result(args, "gap" + args.suffix, columns, rows, common.shared_origin(metrics), note)


def with_named_attributes(flags: list[str], named: int, device: torch.device) -> Variant:
    """train.py's training on all combinations, with captions of the digit and so many attributes."""
    training = Training(flags, device)
    training.pairs.unseen.zero_()
    training.pairs.unknown.zero_()
    captions, claims = training.model.captions, training.pairs.claims

    def train_step(batch: Batch, lr_factor: float) -> dict[str, Tensor]:
        return training.step(change_captions(batch, captions, claims, named), lr_factor)

    return Variant(training.pairs, training.model, training.optimizers, train_step)


def change_captions(batch: Batch, captions: Captions, claims: Tensor, named: int) -> Batch:
    """The same images with captions of the digit and so many attributes; outliers keep theirs."""
    facts = batch.labels.facts  # [B, S]
    parts = parts_of_facts(facts)  # [B, 1 + A]
    ids = describe(parts[:, 0], parts[:, 1:], named)
    ids = torch.where(facts[:, LABEL_ID["a digit"]], ids, batch.texts.index // captions.paraphrases)
    return batch._replace(texts=captions.sample(ids), labels=batch.labels._replace(claims=claims[ids]))


def describe(digits: Tensor, own_bins: Tensor, named: int) -> Tensor:
    """Digits [B] and bins [B, A] -> descriptions [B] of the digit and of `named` attributes, chosen at random."""
    is_named = torch.rand(own_bins.shape, device=digits.device).argsort(dim=1) < named  # [B, A]
    grades = torch.where(is_named, own_bins + GRADE_OF_BIN[0], UNSAID)
    return description_id(digits, grades.unbind(dim=1))


@torch.no_grad()
def measure_space(model: CLIP, named: int, test: Split) -> dict[str, float]:
    """The geometry of test images and captions of them as in training; and retrieval within a digit."""
    torch.manual_seed(0)
    images, own_bins = embed_images(model, test.images), bins(measure(test.images))
    texts = model.encode_text(model.captions.sample(describe(test.labels, own_bins, named)))
    retrieval = {
        f"{attribute.name} mAP within a digit": map_within_digits(model, images, test.labels, own_bins, place, named)
        for place, attribute in enumerate(ATTRIBUTES)
    }
    return {
        "modality gap": modality_gap(images, texts),
        "effective rank of the images": effective_rank(images),
        "effective rank of the captions": effective_rank(texts),
        **retrieval,
        "digit accuracy": caption_accuracy(images @ model.zero_shot_classifier().T, test.labels),
    }


def modality_gap(images: Tensor, texts: Tensor) -> float:
    """Distance between the mean image and the mean text vector, 0..2 (Liang et al., 2022, arXiv 2203.02053)."""
    return (images.mean(dim=0) - texts.mean(dim=0)).norm().item()


def effective_rank(x: Tensor) -> float:
    """exp of the entropy of the singular values as shares of their sum, 1..embed_dim (Roy & Vetterli, 2007)."""
    values = torch.linalg.svdvals(x)
    shares = values / values.sum()
    return torch.special.entr(shares).sum().exp().item()


def map_within_digits(model: CLIP, images: Tensor, digits: Tensor, own_bins: Tensor, place: int, named: int) -> float:
    """Mean average precision of captions of a digit and a bin of one attribute, among the images of that digit.

    If training captions always named all attributes, each vector is the mean over the bins of the other attributes.
    """
    others = GRADE_OF_BIN if named == len(ATTRIBUTES) else (UNSAID,)
    precisions = []
    for digit, bin in itertools.product(range(10), range(BINS)):
        choices = [(GRADE_OF_BIN[bin],) if i == place else others for i in range(len(ATTRIBUTES))]
        ids = torch.tensor([description_id(digit, grades) for grades in itertools.product(*choices)])
        vector = model.embed_descriptions(ids).mean(dim=0)  # [embed_dim]
        own = digits == digit
        precisions.append(average_precision(images[own] @ vector, own_bins[own, place] == bin).item())
    return statistics.mean(precisions)


TABLES = {"losses": compare_losses, "gap": compare_captions}


def main(argv: list[str]) -> None:
    args = common.parse(common.make_parser("losses", __doc__, tables=tuple(TABLES)), argv)
    for name in args.only:
        TABLES[name](args)


if __name__ == "__main__":
    with exit_on_error():
        sys.exit(main(sys.argv[1:]))
