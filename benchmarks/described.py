"""How well captions that describe are understood, in cells (digit, thickness, slant) that training never meets.

    python -m benchmarks.described --seeds 0 1 2 --unseen-seeds 0 1 2 --text-model FOLDER
    python -m benchmarks.described --name quick --seeds 0 -- --epochs 1 --image-encoder fast

Everything behind `--` goes to train.py. Beside train.py's runs, with the words' table and, given a --text-model, with
sentences, it trains what a plain classifier would be: the same CNN, images, optimizers and steps under linear layers.
All epochs are chosen by seen cells of validation; the test split is looked at once. Writes
benchmarks/results/<name>.json. Runs stay in runs/<name>/ (--runs: another folder than runs); one that has finished is
not run again; one of train.py's that was cut off is resumed.
"""

import copy
import os
import shlex
import statistics
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from attributes import measure, unseen_cells
from benchmarks.common import (
    DATA,
    ROOT,
    finished_run,
    machine,
    parse_with_flags,
    parser_of,
    same_origin,
    spread,
    steps_of,
    write_result,
)
from captions import (
    FIRST_SLANT,
    FIRST_THICKNESS,
    IS_DIGIT,
    Truth,
    described_captions,
    facts_of,
    holds,
    in_words,
    thing,
    things_of_cells,
)
from clip import CLIP, load_checkpoint, save_checkpoint
from evaluation.described import described, of_cells, parts_of
from evaluation.metrics import caption_vectors, digit_classifier, embed_images
from evaluation.other_images import drawn_letters, fashion, inverted_noise
from evaluation.retrieval import precision_at_k
from evaluation.sections import embed, open_set, open_set_score, right_of
from image_encoder import IMAGE_ENCODERS
from my_dataset import Split, load_mnist
from my_utils import (
    InputError,
    cpu_name,
    device_name,
    exit_on_input_error,
    number,
    pick_device,
    seed_everything,
    threads_told,
    use_precision,
)
from train import build_model, build_pairs
from training.ema import Ema
from training.optimizers import make_optimizers
from training.run import git_commit
from training.settings import WHERE, Settings, read_flags
from training.step import TrainingStep

HEADLINES = ("seen", "unseen", "seen_clear", "unseen_clear", "harmonic_mean", "digit")
OTHER_IMAGES = 1_000  # of each open set that is drawn here
BEST = 10  # images that a sentence finds

# Sentences of another hand: each has a word that no caption has. What they claim: digit, thickness, slant.
UNSAID, THIN, MEDIUM, THICK, LEFT, UPRIGHT, RIGHT = -1, 0, 1, 2, 0, 1, 2
SENTENCES = (
    ("It slopes to the left, drawn with a chunky felt-tip: seven.", 7, THICK, LEFT),
    ("someone pressed hard on the pencil while writing this 3, and it tips to the right", 3, THICK, RIGHT),
    ("a skinny little 1, bending over toward the right-hand side", 1, THIN, RIGHT),
    ("Wispy ink, perfectly vertical, clearly an eight.", 8, THIN, UPRIGHT),
    ("a chunky zero that falls over to the right", 0, THICK, RIGHT),
    ("the figure five, scrawny, with its top pushed to the left", 5, THIN, LEFT),
    ("Four, and its lines are wispy; it tilts leftwards.", 4, THIN, LEFT),
    ("a nine painted with a wide roller, its head hanging to the left", 9, THICK, LEFT),
    ("two, neither chunky nor skinny, sinking toward the left", 2, MEDIUM, LEFT),
    ("a chubby six whose top is pushed rightwards", 6, THICK, RIGHT),
    ("an eight as if cut by a razor, tipping to the right", 8, THIN, RIGHT),
    ("This 2 was traced by a crayon and slopes rightwards.", 2, THICK, RIGHT),
    ("a beefy four, vertical as a wall", 4, THICK, UPRIGHT),
    ("a vertical seven from a needle of a pen", 7, THIN, UPRIGHT),
    ("zero with an average line, bolt vertical", 0, MEDIUM, UPRIGHT),
    ("the nine slopes rightwards, its ink faint and slender", 9, THIN, RIGHT),
    ("a chubby 5", 5, THICK, UNSAID),
    ("a slender nine", 9, THIN, UNSAID),
    ("six, drawn with a chunky felt-tip", 6, THICK, UNSAID),
    ("skinny pencil lines forming the figure two", 2, THIN, UNSAID),
    ("the figure three, tipping over to the left", 3, UNSAID, LEFT),
    ("a four that slopes rightwards", 4, UNSAID, RIGHT),
    ("an 8, exactly vertical", 8, UNSAID, UPRIGHT),
    ("handwriting that tips to the right: one", 1, UNSAID, RIGHT),
    ("any numeral at all, so long as its lines are plump", UNSAID, THICK, UNSAID),
    ("something slender and skinny that one counts with", UNSAID, THIN, UNSAID),
    ("whichever numeral, provided it slopes leftwards", UNSAID, UNSAID, LEFT),
    ("some numeral that tips over to the right", UNSAID, UNSAID, RIGHT),
    ("how many toes are on one foot? This many: five", 5, UNSAID, UNSAID),
    ("between six and eight comes this one: seven", 7, UNSAID, UNSAID),
)


def main() -> None:
    parser = parser_of(__doc__, device=False)
    parser.add_argument("--name", default="described", help="name of the runs' folder and of the result file")
    parser.add_argument("--seeds", type=number(int, 0), nargs="+", default=[0, 1, 2], help="training seeds")
    parser.add_argument(
        "--unseen-seeds", type=number(int, 0), nargs="+", default=[0], help="other draws of the unseen cells too"
    )
    parser.add_argument(
        "--baseline-seeds", type=number(int, 0), nargs="+", default=[0], help="seeds of all but the words' table"
    )
    parser.add_argument("--text-model", type=os.path.realpath, help="a language model's folder: sentences too")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs", help="folder of the runs")
    args, flags = parse_with_flags(parser)
    runs = args.runs.resolve() / args.name

    # ---- train, or find trained ----
    metrics = {}

    def trained(name: str, seed: int, unseen_seed: int, *more: str) -> Path:
        run = runs / f"{name}-unseen{unseen_seed}-seed{seed}"
        metrics[run] = finished_run(run, ["--seed", str(seed), "--unseen-seed", str(unseen_seed), *more, *flags])
        return run / "best_model.pth"

    def trained_heads(kind: str, seed: int) -> Path:
        path = runs / f"{kind}-seed{seed}.pth"
        settings, _ = read_flags(["--data-path", str(DATA), "--seed", str(seed), *flags])
        metrics[path] = finished_heads(path, kind, settings)
        return path

    tables = [trained("table", seed, 0) for seed in args.seeds]
    redrawn = [trained("table", args.seeds[0], unseen_seed) for unseen_seed in args.unseen_seeds]
    plus = ["--text-encoder", "plus", "--freeze-text", "--text-model", args.text_model]
    readers = [trained("plus", seed, 0, *plus) for seed in args.baseline_seeds] if args.text_model else []
    heads = {kind: [trained_heads(kind, seed) for seed in args.baseline_seeds] for kind in KINDS}

    # ---- the one look at the test split ----
    test = load_mnist("test", DATA)
    others = other_images(test)
    over_seeds, over_few = ({"seeds": seeds, "unseen_seeds": [0]} for seeds in (args.seeds, args.baseline_seeds))
    models = [CLIP.load(path) for path in tables]
    measured = [of_model(model, test, others) for model in models]
    rows = [row_of("CLIP, table of words", measured, over_seeds)]
    if len(redrawn) > 1:
        over_cells = {"seeds": args.seeds[:1], "unseen_seeds": args.unseen_seeds}
        own = [of_model(CLIP.load(path), test, others) for path in redrawn]
        rows.append(row_of("CLIP, table, unseen cells drawn anew", own, over_cells))
    free = None
    if readers:
        readers = [CLIP.load(path) for path in readers]
        rows.append(row_of("CLIP, plus (frozen)", [of_model(model, test, others) for model in readers], over_few))
        free = {"text_model": Path(args.text_model).parent.name} | of_sentences(readers, test)
    for kind, paths in heads.items():
        rows.append(row_of(KINDS[kind], [of_heads(path, test) for path in paths], over_few))
    nearest = [nearest_seen(model, test) for model in models]
    rows.append(row_of("CLIP, table, the nearest seen cell", nearest, over_seeds))

    # ---- write and print ----
    origin = same_origin(list(metrics.values()))
    result = headlines_of(rows[0], measured) | {
        "rows": rows,
        "sentences": free,
        "trained_by": shlex.join(["python", "train.py", "--seed", "S", *flags]),
        "seeds": args.seeds,
        "epochs": read_flags(flags)[0].epochs,
        **origin,
        "date": max(one["date"] for one in metrics.values()),
    }
    write_result(args.name, result)
    print_result(result)


def headlines_of(first: dict, measured: list[dict]) -> dict:
    """The first row and its models' measures -> what the result file begins with: means, their spread, intervals."""
    with_interval = [name for name in HEADLINES if name != "harmonic_mean"]
    more = ("parts", "binding", "rank_correlation", "rank_correlation_outer", "unseen_map", "open_set")
    return {name: first[name]["mean"] for name in HEADLINES} | {
        "spread": {name: first[name] for name in HEADLINES},
        "intervals": averaged([{name: one[name]["interval"] for name in with_interval} for one in measured]),
        **{name: first[name] for name in more},
    }


def print_result(result: dict) -> None:
    print(f"\nright of 90 captions, % of test images, {machine(result)}, torch {result['torch_version']}")
    print(f"{'':38}" + "".join(f"{name:>15}" for name in HEADLINES))
    for row in result["rows"]:
        print(f"{row['name']:38}" + "".join(f"{shown(row[name]):>15}" for name in HEADLINES))
    for name, ranks in result["rank_correlation"].items():
        print(f"rank correlation with {name}, the worst digit: {ranks['minimum']:.3f}")
    print("text -> image mAP of the captions never seen:", f"{result['unseen_map']:.2%}")
    for name, score in result["open_set"].items():
        print(f"AUROC, digits against {name}: " + f"{score['auroc']:.4f}")
    if free := result["sentences"]:
        print("sentences of another hand: " + ", ".join(f"{name} {free[name]['mean']:.2%}" for name in SENTENCE_SCORES))


def shown(values: dict) -> str:
    """In percent, without the sign; of one value there is no deviation."""
    return f"{100 * values['mean']:.2f}" + ("" if values["std"] is None else f" +- {100 * values['std']:.2f}")


# ---- what a model reaches ----


def other_images(test: Split) -> dict[str, Tensor]:
    """Sets of images that are no digit; without Fashion-MNIST where it is not installed."""
    others = {
        "letters": drawn_letters(OTHER_IMAGES),
        "inverted_noise": inverted_noise(test.images[:OTHER_IMAGES]),
        "fashion_mnist": fashion(DATA),
    }
    return {name: images for name, images in others.items() if images is not None}


def of_model(model: CLIP, test: Split, others: dict[str, Tensor]) -> dict:
    """`described`, and how well digits are told from each set of other images."""
    features = {name: embed(model, images) for name, images in ({"digits": test.images} | others).items()}
    scores = {name: open_set_score(model, x) for name, x in features.items()}
    captions = digit_classifier(model).cpu()
    best = {name: (x @ captions.T).amax(dim=1) for name, x in features.items()}
    return described(model, features["digits"], test) | {"open_set": open_set(scores, best, others)}


def nearest_seen(model: CLIP, test: Split) -> dict:
    """The same model, which may answer with the captions of seen cells alone. The digit is that of its answer."""
    unseen = model.unseen.flatten()
    similarity = embed(model, test.images) @ caption_vectors(model, things_of_cells()).cpu().T  # [N, 90]
    return of_answers(similarity.masked_fill(unseen, -torch.inf).argmax(dim=1), test, unseen)


def of_answers(cells: Tensor, test: Split, unseen: Tensor) -> dict:
    return of_cells(cells, test, unseen) | {"digit": right_of(parts_of(cells)["digit"], test.labels)}


def row_of(name: str, measured: list[dict], over: dict) -> dict:
    """Some models' measures as one row: headlines with their spread, of all else the mean."""
    plain = [accuracies(one) for one in measured]
    headlines = {name: spread([one.pop(name) for one in plain]) for name in HEADLINES}
    return {"name": name} | over | headlines | averaged(plain)


def accuracies(value):
    """Shares as `right_of` gives them, in a nest of dicts -> their accuracies in the same nest."""
    if not isinstance(value, dict):
        return value
    return value["accuracy"] if "accuracy" in value else {name: accuracies(one) for name, one in value.items()}


def averaged(values: list):
    """Nests of dicts, lists and numbers, all of one form -> the means in the same form."""
    first = values[0]
    if isinstance(first, dict):
        return {name: averaged([value[name] for value in values]) for name in first}
    if isinstance(first, list | tuple):
        return [averaged(list(own)) for own in zip(*values, strict=True)]
    return statistics.mean(values)


# ---- sentences of another hand ----

SENTENCE_SCORES = ("best_image_fits", "precision_at_10", "own_caption_of_176", "own_caption_of_90")


@torch.no_grad()
def of_sentences(models: list[CLIP], test: Split) -> dict:
    """What SENTENCES find among all test images, and whether each lies closest to the caption that says the same.

    The captions: those of every combination of the three parts, said or not; and, for sentences that name all three
    parts, those of the cells.
    """
    texts, claims = [text for text, *_ in SENTENCES], torch.tensor([claims for _, *claims in SENTENCES])
    things = thing(*claims.T)
    is_whole = (claims >= 0).all(dim=1)
    facts, _ = facts_of(test.labels, *measure(test.images))
    fits = holds(models[0].captions.claims[things], facts[:, None])  # [N, S]
    grid = torch.cartesian_prod(torch.arange(-1, 10), torch.arange(-1, 3), torch.arange(-1, 3))
    candidates = {"own_caption_of_176": thing(*grid.T), "own_caption_of_90": things_of_cells()}
    scores, precisions = {name: [] for name in SENTENCE_SCORES}, []
    for model in models:
        features, vectors = embed(model, test.images), model.encode_text(texts).cpu()
        similarity = features @ vectors.T  # [N, S]
        of_each = [precision_at_k(*pair, BEST).item() for pair in zip(similarity.T, fits.T, strict=True)]
        precisions.append(of_each)
        best = fits.gather(0, similarity.argmax(dim=0, keepdim=True))[0]
        own = {}
        for name, some in candidates.items():
            own[name] = some[(vectors @ caption_vectors(model, some).cpu().T).argmax(dim=1)] == things
        own["own_caption_of_90"] = own["own_caption_of_90"][is_whole]
        scores["best_image_fits"].append(best.float().mean().item())
        scores["precision_at_10"].append(statistics.mean(of_each))
        for name, right in own.items():
            scores[name].append(right.float().mean().item())
    unseen = models[0].unseen
    each = [
        {
            "text": text,
            "claims": in_words(int(models[0].captions.claims[one])),
            "unseen": bool(whole and unseen[tuple(own)]),
            "fitting_images": int(column.sum()),
            "precision_at_10": precision,
        }
        for text, one, whole, own, column, precision in zip(
            texts, things, is_whole, claims.tolist(), fits.T, averaged(precisions), strict=True
        )
    ]
    of_unseen = [one["precision_at_10"] for one in each if one["unseen"]]
    return {name: spread(values) for name, values in scores.items()} | {
        "precision_at_10_by_chance": fits.float().mean().item(),
        "precision_at_10_of_unseen": statistics.mean(of_unseen) if of_unseen else None,
        "each": each,
    }


# ---- what it is compared with: a plain classifier, and CLIP without the rule of the unknown ----

KINDS = {
    "cells": "classifier of 90 cells",
    "heads": "three heads",
    "masked": "three heads, unknown ones masked",
    "no_rule": "CLIP, table, nothing is unknown: all that is not true is false",
}
SIDES = ((0, 10), (FIRST_THICKNESS, 3), (FIRST_SLANT, 3))  # the first statement of each part, and how many


class Heads(nn.Module):
    """CLIP's CNN under a softmax over the 90 cells, or three: digit, thickness and slant.

    `TrainingStep`, the optimizers and `embed_images` take it as they take CLIP; its "embeddings" are the logits.
    """

    def __init__(self, kind: str, settings: Settings):
        super().__init__()
        self.captions = described_captions()  # a training step asks of what kind they are
        self.sizes = (90,) if kind == "cells" else (10, 3, 3)
        self.loss_function = HeadsLoss(self.sizes, kind == "masked")
        self.towers = nn.ModuleDict(
            {"image": IMAGE_ENCODERS[settings.image_encoder](settings.embed_dim, settings.width)}
        )
        self.heads = nn.Linear(settings.embed_dim, sum(self.sizes))  # linear layers beside each other
        self.register_buffer("logit_scale", torch.zeros(()))  # there is no temperature

    def encode_image(self, images: Tensor) -> Tensor:
        """uint8 [B, 28, 28] or float [B, 1, 28, 28] in [0, 1] -> logits [B, sum of sizes]."""
        images = images[:, None].float() / 255 if images.dtype == torch.uint8 else images
        return self.heads(self.towers["image"](images)).float()

    def forward(self, images: Tensor, texts) -> Tensor:
        return self.encode_image(images)

    def clamp_logit_scale(self) -> None:
        pass


def model_of(kind: str, settings: Settings) -> nn.Module:
    return build_model(settings) if kind == "no_rule" else Heads(kind, settings)


def cells_of(model: nn.Module, images: Tensor) -> Tensor:
    """uint8 [N, 28, 28] -> what each image is taken for, int64 [N]."""
    if isinstance(model, CLIP):
        return (embed_images(model, images) @ caption_vectors(model, things_of_cells()).T).argmax(dim=1)
    cells = 0
    for logits in embed_images(model, images).split(model.sizes, dim=1):
        cells = cells * logits.shape[1] + logits.argmax(dim=1)
    return cells


@dataclass(frozen=True)
class HeadsLoss:
    """The sum of the softmaxes' cross-entropies, the mean over the digits of a batch; images of no digit do not count.

    `masked`: what is unknown for an image (captions.unknown_claims) has no part in its softmax, as in CLIP's losses.
    """

    sizes: tuple[int, ...]
    masked: bool

    def __call__(self, logits: Tensor, truth: Truth) -> Tensor:
        targets, unknown = ([bits(x, *side) for side in SIDES] for x in (truth.facts, truth.unknown))
        targets = [target.int().argmax(dim=1) for target in targets]  # [B] each
        if self.sizes == (90,):
            targets = [(targets[0] * 3 + targets[1]) * 3 + targets[2]]
        total = 0
        for own, target, hidden in zip(logits.split(self.sizes, dim=1), targets, unknown, strict=False):
            own = own.masked_fill(hidden, -torch.inf) if self.masked else own
            total = total + F.cross_entropy(own, target, reduction="none")
        is_digit = (truth.facts & IS_DIGIT) != 0
        return (total * is_digit).sum() / is_digit.sum()

    def floor(self, truth: Truth) -> float:
        return 0.0


def bits(sets: Tensor, first: int, count: int) -> Tensor:
    """Sets of statements [B] -> which of `count` statements from `first` on each has: bool [B, count]."""
    return (sets[:, None] >> first + torch.arange(count, device=sets.device) & 1).bool()


def finished_heads(path: Path, kind: str, settings: Settings) -> dict:
    """A plain classifier's metrics, from its file, or after training it as train.py trains CLIP."""
    wanted = {name: value for name, value in settings.record().items() if name not in WHERE}
    if path.exists():
        saved = load_checkpoint(path)
        if saved["settings"] != wanted:
            raise InputError(f"{path} was trained with other settings: remove it to run it anew")
        return saved["metrics"]
    device = pick_device(settings.device)
    bf16 = use_precision(settings.precision, device)
    seed_everything(settings.seed)
    pairs, val = build_pairs(settings, device), load_mnist("val", DATA, device)
    if kind == "no_rule":
        pairs.unknown.zero_()
    cells = facts_of(val.labels, *measure(val.images))[1]
    is_seen = ~pairs.unseen[cells]
    steps = len(pairs) // settings.batch_size

    model = model_of(kind, settings).to(device, memory_format=torch.channels_last).train()
    ema = Ema(model, settings.ema_decay) if settings.ema_decay else None
    chosen = ema.model if ema else model
    step = TrainingStep(model, make_optimizers(model, settings), bf16=bf16, ema=ema)
    started, best = time.perf_counter(), -1.0
    training = steps_of(step, pairs, settings)
    for done in tqdm(training, total=settings.epochs * steps, desc=path.stem, unit="step", disable=None):
        if done % steps:
            continue
        seen = (cells_of(chosen, val.images) == cells)[is_seen].float().mean().item()  # at an epoch's end
        if seen >= best:
            best, weights = seen, copy.deepcopy(chosen.state_dict())
            best_epoch = done // steps
    metrics = {
        "val_seen_accuracy": best,
        "best_epoch": best_epoch,
        "train_seconds": round(time.perf_counter() - started, 4),
        "device": device_name(device) if device.type == "cuda" else "cpu",
        "cpu": f"{cpu_name()}, {threads_told()}",
        "torch_version": str(torch.__version__),
        "commit": git_commit(),
        "date": f"{date.today()}",
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(path, {"kind": kind, "settings": wanted, "metrics": metrics, "state_dict": weights})
    return metrics


def of_heads(path: Path, test: Split) -> dict:
    saved = load_checkpoint(path)
    settings = read_flags([])[0]
    for name, value in saved["settings"].items():
        setattr(settings, name, value)
    model = model_of(saved["kind"], settings)
    model.load_state_dict(saved["state_dict"])
    return of_answers(cells_of(model, test.images), test, unseen_cells(settings.unseen_seed).flatten())


if __name__ == "__main__":
    with exit_on_input_error():
        main()
