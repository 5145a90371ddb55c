"""Captions of attributes: how well combinations of digit and attributes are recognised that training never shows.

    python -m benchmarks.combinations          about ten trainings, each as long as the default

CLIP with several seeds, with another draw of the unseen combinations, and with sentences through a frozen language
model. Beside it what a plain classifier reaches, with the same CNN, images, optimizers and steps, and CLIP in which
unknown pairs are negatives. Epochs are chosen by seen combinations of validation; the test split is used once.
Writes results/combinations.json. Runs stay in runs/benchmarks/.
"""

import math
import statistics
import sys
from argparse import Namespace
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attributes import COMBINATIONS, combination_ids, measure, unseen_combinations
from benchmarks import common
from benchmarks.common import Training, Variant, cell, parts_of_facts
from captions import LABEL_ID, Labels, combination_description_ids, image_facts, match, multi_hot
from clip import CLIP
from evaluation.combinations import combination_accuracies, combination_parts, evaluate_attributes
from evaluation.metrics import embed_images, precision_at_k
from evaluation.ood import evaluate_ood, ood_sets
from image_encoder import IMAGE_ENCODERS
from my_dataset import Batch, Split, load_mnist
from my_utils import exit_on_error, load_checkpoint, save_checkpoint
from training.optim import make_optimizers
from training.step import GRAD_CLIP, update

COLUMNS = {  # title: the key of what `evaluate_attributes` returns
    "seen": "seen",
    "unseen": "unseen",
    "seen, unambiguous": "seen_unambiguous",
    "unseen, unambiguous": "unseen_unambiguous",
    "harmonic mean": "harmonic_mean",
    "digit alone": "digit",
}
BASELINES = {  # name of the run: title of the row
    "joint": "classifier of all combinations",
    "parts": "a classifier for each part",
    "masked": "a classifier for each part, unknown labels masked",
    "no_mask": "CLIP without masking (unknown pairs as negatives)",
}
NEAREST = 10  # images that a sentence finds
# Sentences with words that no caption has, and what they claim.
NEW_WORDS = [line.split(" = ") for line in (Path(__file__).parent / "new_words.txt").read_text().splitlines()]


def main(argv: list[str]) -> None:
    parser = common.make_parser("combinations", __doc__, seeds=[0, 1, 2])
    parser.add_argument("--unseen-seeds", type=int, nargs="+", default=[0, 1], help="draws of the unseen combinations")
    args = common.parse(parser, argv)
    args.seeds, args.unseen_seeds = (args.seeds[:1], [0]) if args.quick else (args.seeds, args.unseen_seeds)

    # ---- training ----
    seed = args.seeds[0]
    models = [common.trained_clip(args, seed) for seed in args.seeds]
    redrawn = [common.trained_clip(args, seed, f"unseen{i}", ["--unseen-seed", str(i)]) for i in args.unseen_seeds if i]
    reader = common.trained_clip(args, seed, "sentences-attributes", common.SENTENCES)
    baselines = {title: trained_baseline(args, kind, seed) for kind, title in BASELINES.items()}

    # ---- the only use of the test split ----
    test = load_mnist("test", common.DATA)
    measured = [evaluate_clip(CLIP.load(path), test) for path in models]
    rows = [row("CLIP", measured, args.seeds)]
    if redrawn:
        others = [measured[0], *(evaluate_clip(CLIP.load(path), test) for path in redrawn)]
        rows.append(row("CLIP, over draws of the unseen combinations", others, [seed]))
    rows.append(row("CLIP, sentences through a frozen MiniLM", [evaluate_clip(CLIP.load(reader), test)], [seed]))
    for title, model in baselines.items():
        rows.append(
            row(title, [evaluate_predictions(predict(model, test.images), test, unseen_combinations())], [seed])
        )
    nearest = [nearest_seen(CLIP.load(path), test) for path in models]
    rows.append(row("CLIP, nearest seen combination", nearest, args.seeds))

    folders = [path.parent for path in (*models, *redrawn, reader)]
    folders += [baseline_folder(args, kind, seed) for kind in BASELINES]
    origin = common.shared_origin([common.read_metrics(folder) for folder in folders])
    raw = {key: statistics.mean(figures(one)[title] for one in measured) for title, key in COLUMNS.items()}
    note = describe(measured[0]) + describe_new_words(CLIP.load(reader), test)
    common.write_result(args, "combinations" + args.suffix, ["model", *COLUMNS, "seeds"], rows, origin, note, **raw)


def figures(results: dict) -> dict[str, float]:
    """The figure of each column, of what `evaluate_attributes` returns."""
    values = {title: results[key] for title, key in COLUMNS.items()}
    return {title: value["accuracy"] if isinstance(value, dict) else value for title, value in values.items()}


def row(title: str, measured: list[dict], seeds: list[int]) -> list[str]:
    cells = [cell([figures(one)[column] for one in measured]) for column in COLUMNS]
    return [title, *cells, ", ".join(map(str, seeds))]


def describe(results: dict) -> str:
    """What else was measured of a model, in sentences."""
    intervals = [
        f"{title} {results[key]['interval'][0]:.2%} to {results[key]['interval'][1]:.2%}"
        for title, key in COLUMNS.items()
        if key != "harmonic_mean"
    ]
    ranks = [f"{name} {one['minimum']:.3f}" for name, one in results["rank_correlation"].items()]
    aurocs = [f"{name.replace('_', ' ')} {one['auroc']:.3f}" for name, one in results["ood"].items()]
    return (
        f"95% intervals of the first model: {'; '.join(intervals)}. Its rank correlation with the measured attribute,"
        f" for the worst digit: {', '.join(ranks)}; text → image mAP of the unseen captions"
        f" {results['unseen_map']:.2%}; OOD detection AUROC: {', '.join(aurocs)}. "
    )


# ---- evaluation ----


def evaluate_clip(model: CLIP, test: Split) -> dict:
    sets = {"digits": test.images} | ood_sets(test.images, common.DATA)
    features = {name: embed_images(model, images).cpu() for name, images in sets.items()}
    return evaluate_attributes(model, features["digits"], test) | {"ood": evaluate_ood(model, features)}


def evaluate_predictions(predicted: Tensor, test: Split, unseen: Tensor) -> dict:
    """Predicted combinations int64 [N] -> figures as of CLIP; the digit is that of the combination."""
    is_right = combination_parts(predicted)["digit"] == test.labels
    return combination_accuracies(predicted, test, unseen.flatten()) | {"digit": is_right.float().mean().item()}


def nearest_seen(model: CLIP, test: Split) -> dict:
    """The same model if it may choose among the captions of seen combinations alone."""
    similarity = compare_with_combinations(model, test.images).masked_fill(model.unseen.flatten(), -torch.inf)
    return evaluate_predictions(similarity.argmax(dim=1), test, model.unseen)


def compare_with_combinations(model: CLIP, images: Tensor) -> Tensor:
    """Images [N, 28, 28] -> their cosines to the captions of all combinations [N, C]."""
    return embed_images(model, images) @ model.embed_descriptions(combination_description_ids()).T


@torch.no_grad()
def describe_new_words(model: CLIP, test: Split) -> str:
    """What the sentences of NEW_WORDS find among the test images, in a sentence."""
    claims = torch.stack([multi_hot(*names.split(", ")) for _, names in NEW_WORDS])  # [T, S]
    facts = image_facts(test.labels, measure(test.images))  # [N, S]
    is_true, _ = match(facts, claims, torch.zeros_like(facts))  # [N, T]
    similarity = embed_images(model, test.images) @ model.encode_text([text for text, _ in NEW_WORDS]).T  # [N, T]
    best = is_true.gather(0, similarity.argmax(dim=0, keepdim=True)).float().mean().item()
    precision = [precision_at_k(*pair, NEAREST).item() for pair in zip(similarity.T, is_true.T, strict=True)]
    return (
        f"{len(NEW_WORDS)} sentences with words that no caption has, read by MiniLM: the best of {len(test.labels):,}"
        f" images fits {best:.0%} of them, of the {NEAREST} best {statistics.mean(precision):.0%} (by chance"
        f" {is_true.float().mean().item():.0%})."
    )


# ---- baselines ----


class Classifier(nn.Module):
    """CLIP's CNN under linear layers with a softmax each: one over all combinations, or one for each part.

    `is_masked`: labels that are unknown for an image take no part in its softmax, as in CLIP's loss.
    """

    def __init__(self, image_encoder: str, embed_dim: int, width: int, is_joint: bool, is_masked: bool):
        super().__init__()
        self.arch = {"image_encoder": image_encoder, "embed_dim": embed_dim, "width": width}
        self.arch |= {"is_joint": is_joint, "is_masked": is_masked}
        self.sizes = [math.prod(COMBINATIONS)] if is_joint else list(COMBINATIONS)
        cnn = IMAGE_ENCODERS[image_encoder](embed_dim, width)
        self.towers = nn.ModuleDict({"image": cnn})  # the name by which Muon finds the CNN
        self.heads = nn.Linear(embed_dim, sum(self.sizes))  # all linear layers side by side
        self.metrics: dict = {}

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Float [B, 1, 28, 28] in [0, 1] -> the logits of each softmax [B, size]."""
        return self.heads(self.towers["image"](images)).float().split(self.sizes, dim=1)

    def loss(self, logits: tuple[Tensor, ...], labels: Labels) -> Tensor:
        """The sum of the cross-entropies, averaged over the digits of a batch: outliers do not count."""
        targets = parts_of_facts(labels.facts).unbind(dim=1)  # [B] for each part
        if self.arch["is_joint"]:
            targets = [flat_ids(targets)]
        total = 0  # [B]
        for i, (own, target) in enumerate(zip(logits, targets, strict=True)):
            if self.arch["is_masked"]:
                own = own.masked_fill(labels.unknown[:, common.PART_LABELS[i]], -torch.inf)
            total = total + F.cross_entropy(own, target, reduction="none")
        return total[labels.facts[:, LABEL_ID["a digit"]]].mean()

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """uint8 [N, 28, 28] -> combinations int64 [N], in eval mode."""
        self.eval()
        logits = [self(part[:, None].float() / 255) for part in images.split(500)]
        return flat_ids([torch.cat(one).argmax(dim=1) for one in zip(*logits, strict=True)])

    def save(self, path: Path) -> None:
        save_checkpoint(path, "classifier", {"arch": self.arch, "state_dict": self.state_dict()})


def flat_ids(parts: Sequence[Tensor]) -> Tensor:
    """Places [N] along each side of COMBINATIONS -> places in a flat tensor [N]. Flat places stay as they are."""
    ids = parts[0]
    for part, size in zip(parts[1:], COMBINATIONS[1:], strict=len(parts) > 1):
        ids = ids * size + part
    return ids


def predict(model: nn.Module, images: Tensor) -> Tensor:
    """uint8 [N, 28, 28] -> combinations int64 [N]: by the nearest caption, or by a classifier."""
    if isinstance(model, CLIP):
        return compare_with_combinations(model, images).argmax(dim=1)
    return model.predict(images)


def baseline_folder(args: Namespace, kind: str, seed: int) -> Path:
    return args.runs / f"{kind}{args.suffix}-seed{seed}"


def trained_baseline(args: Namespace, kind: str, seed: int) -> nn.Module:
    """A baseline on the CPU; trained as train.py trains CLIP if it is not there yet."""
    folder = baseline_folder(args, kind, seed)
    flags = [*(common.QUICK if args.quick else []), "--seed", str(seed), "--device", str(args.device)]
    val = load_mnist("val", common.DATA, args.device)
    true = combination_ids(val.labels, measure(val.images))
    is_seen = ~unseen_combinations().flatten().to(args.device)[true]

    def validate(model: nn.Module) -> dict[str, float]:
        return {"val_seen_accuracy": (predict(model, val.images) == true)[is_seen].float().mean().item()}

    build = partial(build_baseline, kind, flags, args.device)
    common.train_variant(folder, common.settings_of(flags), args.command, build, validate, "val_seen_accuracy")
    path = folder / "best_model.pth"
    if kind == "no_mask":
        return CLIP.load(path)
    checkpoint = load_checkpoint(path, "classifier")
    model = Classifier(**checkpoint["arch"])
    model.load_state_dict(checkpoint["state_dict"])
    return model


def build_baseline(kind: str, flags: list[str], device: torch.device) -> Variant:
    """What a baseline's run trains, and its step."""
    training = Training(flags, device)
    settings, pairs = training.settings, training.pairs
    if kind == "no_mask":
        pairs.unknown.zero_()
        return Variant(pairs, training.model, training.optimizers, training.step)
    arch = {name: getattr(settings, name) for name in ("image_encoder", "embed_dim", "width")}
    model = Classifier(**arch, is_joint=kind == "joint", is_masked=kind == "masked")
    model = model.to(device, memory_format=torch.channels_last)
    optimizers = make_optimizers(model, settings.lr, settings.muon_lr)

    def train_step(batch: Batch, lr_factor: float) -> dict[str, Tensor]:
        model.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=training.step.bf16):
            logits = model(batch.images)
        loss = model.loss(logits, batch.labels)
        loss.backward()
        return {"loss": loss.detach(), "grad_norm": update(list(optimizers.values()), lr_factor, GRAD_CLIP)}

    return Variant(pairs, model, optimizers, train_step)


if __name__ == "__main__":
    with exit_on_error():
        sys.exit(main(sys.argv[1:]))
