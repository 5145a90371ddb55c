"""Word order and binding: scenes of two digits, whose captions differ in order alone; on pairs never trained together.

    python -m benchmarks.order          about 24 trainings of two minutes each
    python -m benchmarks.order --only order

Nine runs of the default, three seeds for each of three draws of the unseen pairs, in both languages; then, in English,
other text towers, an image tower that averages its map, swapped captions as further negatives, no masking; and how many
pairs must be trained. Epochs are chosen by seen pairs of validation; the test split is used once. Writes
results/order.json and results/order-share.json.
"""

import copy
import statistics
import sys
from argparse import Namespace
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks import common
from benchmarks.common import SENTENCES, Training, Variant, cell
from captions import Labels
from clip import CLIP
from evaluation.metrics import embed_images
from evaluation.pictures import save_figure
from evaluation.scene_pictures import failures
from evaluation.scenes import PER_PAIR, evaluate_scenes, evaluation_scenes
from evaluation.similarity import RIGHT, WRONG
from losses import multi_positive
from my_dataset import Batch, ScenePairs, Split, load_mnist
from my_utils import exit_on_error
from scenes import swapped_descriptions, unseen_pairs
from training.step import GRAD_CLIP, update

TABLES = ("order", "order-share")
IN_CHINESE = "transformer, captions in Chinese"
COLUMNS = {  # title: the key of what `evaluate_scenes` returns, behind "seen_" or "unseen_"
    "swap": "swap",
    "relation": "relation",
    "five captions": "five_captions",
    "paraphrase": "paraphrase",
    "of 180 captions": "accuracy",
    "text score": "text_score",
    "image score": "image_score",
    "group score": "group_score",
    "attribute swap": "attribute_swap",
}
TOWERS = {  # title: flags
    "bag of words": ["--text-encoder", "table"],
    "word times place": ["--text-encoder", "order"],
    "frozen MiniLM": SENTENCES,
    "the image's map averaged": ["--image-encoder", "residual"],
    "AdamW alone, without Muon": ["--muon-lr", "0"],
}
SHARE_TOWERS = {"transformer": "transformer", "word times place": "order"}  # title: kind of `build_variant`
QUICK = ["--epochs", "1", "--width", "4", "--augment", "none"]  # of --quick
SHARES = (5, 27, 36, 40)  # unseen pairs, of 45


def main(argv: list[str]) -> None:
    parser = common.make_parser("order", __doc__, seeds=[0, 1, 2], tables=TABLES)
    parser.add_argument("--unseen-seeds", type=int, nargs="+", default=[0, 1, 2], help="draws of the unseen pairs")
    args = common.parse(parser, argv)
    if args.quick:
        args.seeds, args.unseen_seeds = args.seeds[:1], args.unseen_seeds[:1]
    test = load_mnist("test", common.DATA)
    if "order" in args.only:
        measure_towers(args, test)
    if "order-share" in args.only:
        measure_shares(args, test)


def measure_towers(args: Namespace, test: Split) -> None:
    nine = [trained(args, seed, f"scenes{draw}", draw) for draw in args.unseen_seeds for seed in args.seeds]
    first = args.seeds[0]
    others = {title: [trained(args, first, f"scenes-{title.split()[-1]}", 0, flags)] for title, flags in TOWERS.items()}
    others["swapped captions in the batch (NegCLIP)"] = [trained_variant(args, first, "swapped")]
    others["unknown pairs as negatives"] = [trained_variant(args, first, "no_mask")]
    others["texts alone (all scenes embedded as their mean)"] = [blind(nine[0], test)]
    rows = []
    runs = {"transformer": nine, IN_CHINESE: nine} | others
    raw = {}
    for title, models in runs.items():
        per_pair, is_chinese = 1 if args.quick else PER_PAIR, title == IN_CHINESE
        measured = [evaluate_scenes(model, test, per_pair, is_chinese) for model in models]
        seeds = f"{len(models)} runs" if len(models) > 1 else str(first)
        for group in ("seen", "unseen"):
            values = {column: [one[f"{group}_{key}"] for one in measured] for column, key in COLUMNS.items()}
            rows.append([f"{title}: {group} pairs", *(cell(one) for one in values.values()), seeds])
            if title == "transformer":
                gaps = [one["unseen_paraphrase_gap"] for one in measured]
                raw |= {f"{group} {column}": statistics.mean(one) for column, one in values.items()}
        print(*rows[-2:], sep="\n", flush=True)
    if not args.quick:
        shown = ("transformer", "bag of words", "the image's map averaged")
        figure = failures({title: runs[title][0] for title in shown}, test)
        save_figure(figure, common.ROOT / "docs" / "pictures" / "order_failures.png")
    trained_models = [model for models in runs.values() for model in models if "train_seconds" in model.metrics]
    seconds = [model.metrics["train_seconds"] for model in nine]
    origin = common.shared_origin([model.metrics for model in trained_models])
    note = (
        f"Training took {cell(seconds, ' s')}. Of the transformer's cosines with a scene, those of 'a left of b' and 'b"
        f" right of a' differ by {cell(gaps, '')} in the mean, on unseen pairs."
    )
    common.write_result(args, "order" + args.suffix, ["model", *COLUMNS, "seeds"], rows, origin, note, **raw)


def measure_shares(args: Namespace, test: Split) -> None:
    """Swap and five captions on unseen pairs over the share of pairs that are trained, for two text towers."""
    rows, metrics, figures_by_tower = [], [], {title: [] for title in SHARE_TOWERS}
    counts = SHARES[:1] if args.quick else SHARES
    for count in counts:
        figures = []
        for title, kind in SHARE_TOWERS.items():
            model = trained_variant(args, args.seeds[0], kind, count)
            measured = evaluate_scenes(model, test, 1 if args.quick else PER_PAIR)
            figures += [measured["unseen_swap"], measured["unseen_five_captions"]]
            figures_by_tower[title].append(figures[-2:])
            metrics.append(model.metrics)
        rows.append([f"{1 - count / 45:.0%}", *map(cell, figures)])
    columns = [f"{title}: {what}" for title in SHARE_TOWERS for what in ("swap", "five captions")]
    if not args.quick:
        figure = share_curves([1 - count / 45 for count in counts], figures_by_tower)
        save_figure(figure, common.ROOT / "docs" / "pictures" / f"order_share{args.suffix}.png")
    origin = common.shared_origin(metrics)
    note = f"One run for each cell, seed {args.seeds[0]}."
    common.write_result(args, "order-share" + args.suffix, ["pairs trained", *columns], rows, origin, note)


def share_curves(shares: list[float], figures: dict[str, list]) -> Figure:
    """Swap and five captions, on unseen pairs, over the share of pairs; of each tower [shares, 2], all in 0..1."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    x = 100 * np.array(shares)
    for place, (axes, title, chance) in enumerate(
        zip(figure.subplots(1, 2), ("swap", "five captions"), (50, 20), strict=True)
    ):
        for (tower, values), colour in zip(figures.items(), (RIGHT, WRONG), strict=True):
            axes.plot(x, 100 * np.array(values)[:, place], "o-", color=colour, label=tower)
        axes.axhline(chance, color="grey", linestyle="--", label="chance")
        axes.set(xlabel="pairs of digits that are trained (%)", title=title, xlim=(0, 100), ylim=(0, 102))
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("accuracy, pairs never trained (%)")
    figure.axes[1].legend(loc="lower right")
    return figure


def trained(args: Namespace, seed: int, name: str, draw: int, flags: Sequence[str] = ()) -> CLIP:
    """A model of train.py --captions scenes, with the metrics of its run; trained if it is not there yet."""
    flags = ["--captions", "scenes", "--unseen-seed", str(draw), *flags]
    return common.load_clip(common.trained_clip(args, seed, name, flags, QUICK).parent)


def trained_variant(args: Namespace, seed: int, kind: str, unseen_count: int | None = None) -> CLIP:
    """A model that train.py does not train: other negatives, or another number of unseen pairs."""
    folder = args.runs / f"scenes-{kind}{unseen_count or ''}{args.suffix}-seed{seed}"
    flags = [*(QUICK if args.quick else []), "--captions", "scenes", "--seed", str(seed), "--device", str(args.device)]
    flags += ["--text-encoder", "order"] if kind == "order" else []
    val = load_mnist("val", common.DATA, args.device)
    measure = partial(evaluate_scenes, split=val)
    build = partial(build_variant, kind, unseen_count, flags, args.device)
    common.train_variant(folder, common.settings_of(flags), args.command, build, measure, "val_seen_accuracy")
    model = common.load_clip(folder)
    if unseen_count:
        model.unseen = unseen_pairs(0, unseen_count)
    return model


def build_variant(kind: str, unseen_count: int | None, flags: list[str], device: torch.device) -> Variant:
    """What a variant's run trains, and its step."""
    training = Training(flags, device)
    pairs, model = training.pairs, training.model
    if unseen_count:
        model.unseen = unseen_pairs(0, unseen_count)
        pairs = ScenePairs("train", common.DATA, device, unseen=model.unseen)
    if kind == "no_mask":
        pairs.unknown.zero_()
    step = partial(swapped_step, training) if kind == "swapped" else training.step
    return Variant(pairs, model, training.optimizers, step)


def swapped_step(training: Training, batch: Batch, lr_factor: float) -> dict[str, Tensor]:
    """A training step in which each caption also stands with its two digits exchanged (NegCLIP, arXiv 2210.01936).

    Only the images' half of the loss sees the exchanged ones, as there.
    """
    model, captions = training.model, training.pairs.captions
    ids = batch.texts.index // captions.paraphrases
    others, size = swapped_descriptions(ids), len(ids)
    texts = captions.sample(others)
    model.zero_grad()
    with training.step.autocast():
        output, extra = model(batch.images, batch.texts), model.encode_text(texts)
    facts, claims, unknown = batch.labels
    labels = Labels(facts, torch.cat([claims, training.pairs.claims[others]]), unknown)
    positive, ignored = labels.match()  # [B, 2B]
    is_new = others != ids  # captions of one digit stay as they are
    positive[:, size:] &= is_new
    ignored[:, size:] |= ~is_new
    logits = torch.cat([output.logits_per_image, model.compare(output.image_embeds, extra).logits_per_image], dim=1)
    per_image = multi_positive(logits, positive, ignored, own=None)
    per_text = multi_positive(output.logits_per_text, positive[:, :size].T, ignored[:, :size].T, own=None)
    loss = (per_image.mean() + per_text.mean()) / 2
    loss.backward()
    grad_norm = update(list(training.optimizers.values()), lr_factor, GRAD_CLIP)
    model.clamp_logit_scale()
    return {"loss": loss.detach(), "grad_norm": grad_norm}


def blind(model: CLIP, test: Split) -> CLIP:
    """The model, for which all images look the same."""
    scenes, _ = evaluation_scenes(test, per_pair=1)
    mean = F.normalize(embed_images(model, scenes.images).mean(dim=0), dim=0)  # [embed_dim]
    model = copy.copy(model)
    model.encode_image = lambda images: mean.expand(len(images), -1)
    model.metrics = {}
    return model


if __name__ == "__main__":
    with exit_on_error():
        sys.exit(main(sys.argv[1:]))
