"""Captions of attributes: how well combinations of digit and attributes are recognised that training never shows.

    python -m benchmarks.combinations          about sixteen trainings, each as long as the default

CLIP with several seeds, with five draws of the unseen combinations, and with sentences through a frozen language
model. Beside it what a plain classifier reaches, with the same CNN, images, optimizers and steps, and CLIP without the
loss within parts or with unknown pairs as negatives. Epochs are chosen by seen combinations of validation; the test
split is used once. Writes results/combinations.json and docs/pictures/combinations.png.
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
from captions import LABEL_ID, Labels, combination_claims, combination_description_ids
from clip import CLIP
from evaluation.combinations import (
    area_under,
    combination_accuracies,
    combination_parts,
    evaluate_attributes,
    seen_unseen_curve,
)
from evaluation.metrics import embed_images
from evaluation.ood import evaluate_ood, ood_sets
from evaluation.pictures import save_figure, seen_unseen_curves
from image_encoder import IMAGE_ENCODERS
from my_dataset import Batch, Split, load_mnist
from my_utils import exit_on_error, load_checkpoint, save_checkpoint
from training.optim import make_optimizers
from training.step import GRAD_CLIP, update

COLUMNS = {  # title: the key of what `combination_accuracies` returns
    "seen": "seen",
    "unseen": "unseen",
    "unseen, unambiguous": "unseen_unambiguous",
    "best harmonic mean": "best_harmonic_mean",
    "AUC": "auc",
    "digit alone": "digit",
}
MASKED = "a classifier for each part, unknown labels masked"
BASELINES = {  # name of the run: title of the row
    "joint": "classifier of all combinations",
    "parts": "a classifier for each part",
    "no_mask": "CLIP without masking (unknown pairs as negatives)",
}
RESAMPLES = 200  # of the bootstrap


def main(argv: list[str]) -> None:
    parser = common.make_parser("combinations", __doc__, seeds=[0, 1, 2])
    parser.add_argument("--unseen-seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="draws of the unseen ones")
    args = common.parse(parser, argv)
    args.seeds, args.unseen_seeds = (args.seeds[:1], [0]) if args.quick else (args.seeds, args.unseen_seeds)

    # ---- training ----
    seed = args.seeds[0]
    models = [trained_clip(args, seed) for seed in args.seeds]
    draws = [trained_draw(args, seed, draw) for draw in args.unseen_seeds]
    masked = [trained_baseline(args, "masked", seed, draw) for draw in args.unseen_seeds]
    reader = trained_clip(args, seed, "sentences-attributes", common.SENTENCES)
    plain = trained_clip(args, seed, "plain", ["--part-weight", "0"])
    baselines = {title: trained_baseline(args, kind, seed) for kind, title in BASELINES.items()}

    # ---- the only use of the test split ----
    test = load_mnist("test", common.DATA)
    measured = [evaluate_clip(model, test) for model in models]
    whole = [evaluate_scores(score_whole_captions(model, test.images), test, model.unseen) for model in models]
    scores = [[score_parts(model, test.images) for model in pair] for pair in zip(draws, masked, strict=True)]
    of_draws, of_masked = (
        [evaluate_scores(pair[side], test, model.unseen) for pair, model in zip(scores, draws, strict=True)]
        for side in (0, 1)
    )
    rows = [
        row("CLIP", measured, args.seeds),
        row("CLIP, the same by the cosine of the whole caption", whole, args.seeds),
        row("CLIP, over draws of the unseen combinations", of_draws, [seed]),
        row(f"{MASKED}, over the same draws", of_masked, [seed]),
        row("CLIP, sentences through a frozen MiniLM", [evaluate_model(reader, test)], [seed]),
        row("CLIP without the loss within parts", [evaluate_model(plain, test)], [seed]),
    ]
    others = {title: evaluate_model(model, test) for title, model in baselines.items()}
    rows += [row(title, [one], [seed]) for title, one in others.items()]
    curves = {"CLIP": measured[0]["curve"], MASKED: of_masked[0]["curve"]}
    curves |= {title: one["curve"] for title, one in others.items() if title != BASELINES["joint"]}  # it knows none
    figure = seen_unseen_curves(curves)
    if not args.quick:
        save_figure(figure, common.ROOT / "docs" / "pictures" / "combinations.png")

    origin = common.shared_origin([model.metrics for model in (*models, *draws, *masked, reader, plain)])
    raw = {key: statistics.mean(figures(one)[title] for one in measured) for title, key in COLUMNS.items()}
    note = describe(measured[0]) + compare_draws(scores, [model.unseen.flatten() for model in draws], test)
    common.write_result(args, "combinations" + args.suffix, ["model", *COLUMNS, "seeds"], rows, origin, note, **raw)


def trained_clip(args: Namespace, seed: int, *variant) -> CLIP:
    """The model of `common.trained_clip`, with the metrics of its run."""
    return common.load_clip(common.trained_clip(args, seed, *variant).parent)


def trained_draw(args: Namespace, seed: int, draw: int) -> CLIP:
    """The default CLIP with another draw of the unseen combinations; draw 0 is the default itself."""
    return trained_clip(args, seed, *([f"unseen{draw}", ["--unseen-seed", str(draw)]] if draw else []))


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
        if isinstance(results[key], dict)
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


def score_parts(model: nn.Module, images: Tensor) -> Tensor:
    """Images uint8 [N, 28, 28] -> the log-probability of each combination [N, C], part by part."""
    if isinstance(model, CLIP):
        return model.log_probs(embed_images(model, images), combination_claims())
    return model.log_probs(images)


def score_whole_captions(model: CLIP, images: Tensor) -> Tensor:
    """The cosines to the captions of all combinations [N, C]."""
    return embed_images(model, images) @ model.embed_descriptions(combination_description_ids()).T


def evaluate_model(model: nn.Module, test: Split) -> dict:
    return evaluate_scores(score_parts(model, test.images), test, model.unseen)


def evaluate_scores(scores: Tensor, test: Split, unseen: Tensor) -> dict:
    """Scores [N, C] -> figures as `evaluate_attributes` gives; the digit is that of the combination."""
    is_right = combination_parts(scores.argmax(dim=1))["digit"] == test.labels
    return combination_accuracies(scores, test, unseen.flatten()) | {"digit": is_right.float().mean().item()}


def compare_draws(pairs: list[list[Tensor]], unseen_of_draws: list[Tensor], test: Split) -> str:
    """The AUC of CLIP less that of the masked classifiers, draw by draw, with the interval of a paired bootstrap.

    `pairs`: for each draw the scores [N, C] of both.
    """
    true, texts = combination_ids(test.labels, measure(test.images)), []
    generator = torch.Generator().manual_seed(0)
    for scores, unseen in zip(pairs, unseen_of_draws, strict=True):

        def difference(index: Tensor, scores: list = scores, unseen: Tensor = unseen) -> float:
            ours, theirs = (area_under(*seen_unseen_curve(one[index], true[index], unseen)) for one in scores)
            return ours - theirs

        resampled = [difference(torch.randint(len(true), true.shape, generator=generator)) for _ in range(RESAMPLES)]
        low, high = torch.tensor(resampled).quantile(torch.tensor([0.025, 0.975])).tolist()
        texts.append(f"{difference(torch.arange(len(true))):+.4f} ({low:+.4f} to {high:+.4f})")
    return f"AUC of CLIP less that of the masked classifiers, draw by draw, with 95% intervals: {', '.join(texts)}. "


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
    def log_probs(self, images: Tensor) -> Tensor:
        """uint8 [N, 28, 28] -> the log-probability of each combination [N, C], in eval mode."""
        self.eval()
        logits = [self(part[:, None].float() / 255) for part in images.split(500)]
        of_parts = [torch.cat(one).log_softmax(dim=1) for one in zip(*logits, strict=True)]
        if self.arch["is_joint"]:
            return of_parts[0]
        places = combination_parts(torch.arange(math.prod(COMBINATIONS))).values()  # [C] for each part
        return sum(part[:, place] for part, place in zip(of_parts, places, strict=True))

    def save(self, path: Path) -> None:
        save_checkpoint(path, "classifier", {"arch": self.arch, "state_dict": self.state_dict()})


def flat_ids(parts: Sequence[Tensor]) -> Tensor:
    """Places [N] along each side of COMBINATIONS -> places in a flat tensor [N]. Flat places stay as they are."""
    ids = parts[0]
    for part, size in zip(parts[1:], COMBINATIONS[1:], strict=len(parts) > 1):
        ids = ids * size + part
    return ids


def trained_baseline(args: Namespace, kind: str, seed: int, draw: int = 0) -> nn.Module:
    """A baseline on the CPU; trained as train.py trains CLIP if it is not there yet."""
    folder = args.runs / f"{kind}{draw or ''}{args.suffix}-seed{seed}"
    flags = [*(common.QUICK if args.quick else []), "--seed", str(seed), "--device", str(args.device)]
    flags += ["--unseen-seed", str(draw)] if draw else []
    val = load_mnist("val", common.DATA, args.device)
    true = combination_ids(val.labels, measure(val.images))
    is_seen = ~unseen_combinations(draw).flatten().to(args.device)[true]

    def validate(model: nn.Module) -> dict[str, float]:
        is_right = score_parts(model, val.images).argmax(dim=1) == true
        return {"seen_accuracy": is_right[is_seen].float().mean().item()}

    build = partial(build_baseline, kind, flags, args.device)
    common.train_variant(folder, common.settings_of(flags), args.command, build, validate, "val_seen_accuracy")
    path = folder / "best_model.pth"
    if kind == "no_mask":
        return CLIP.load(path)
    checkpoint = load_checkpoint(path, "classifier")
    model = Classifier(**checkpoint["arch"])
    model.load_state_dict(checkpoint["state_dict"])
    model.metrics, model.unseen = common.read_metrics(folder), unseen_combinations(draw)
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
