"""Training that fails, each failure beside its cure: curves of the loss, and accuracy.

    python -m benchmarks.failures                     all of them, into the table and the picture of the document
    python -m benchmarks.failures --only lies         one of them, printed

Each run takes the steps of one epoch of `--preset speed` with AdamW alone; a failure changes flags, one line of the
training, or one line of inference. Accuracy is that of the nearest of ten captions, on validation. Writes
results/failures.json and docs/pictures/failures.png; docs/when-training-fails.md explains them.
"""

import functools
import itertools
import math
import statistics
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import nn
from torchvision.transforms import Normalize
from tqdm import tqdm

from benchmarks import common
from benchmarks.common import Training, cell
from clip import CLIP
from evaluation.metrics import evaluate
from evaluation.pictures import save_figure
from evaluation.similarity import RIGHT, WRONG
from image_encoder import PIXEL_MEAN, PIXEL_STD
from my_dataset import load_mnist
from my_utils import exit_on_error
from training.optim import warmup_cosine

BASE = ["--preset", "speed", "--muon-lr", "0"]  # AdamW alone, as most people train
STEPS, QUICK_STEPS = 143, 20  # an epoch of batches of 384
LAST = 10  # steps, over which the final loss is a mean
RANGE_BATCHES = 20  # over which the loss at chance and its minimum are
WRONG_SHARE = 0.4  # of the labels, where captions lie


# ---- the changes ----


def remove_normalisation(training: Training) -> None:
    """Embeddings as long as the towers make them, so that dot products take the place of cosines."""
    model = training.model
    model.encode_image = lambda images: model.towers["image"](model.preprocess(images)).float()
    model.encode_text = lambda texts: model.towers["text"](model.tokenize(texts)).float()


def forget_the_logarithm(training: Training) -> None:
    """A scale of exp(1 / 0.07) in place of 1 / 0.07, that nothing clamps."""
    training.model.logit_scale.data.fill_(1 / 0.07)
    training.model.clamp_logit_scale = lambda: None


def mislabel(training: Training) -> None:
    """A share of the images gets the caption of a random digit."""
    labels = training.pairs.labels
    is_wrong = torch.rand(len(labels), device=labels.device) < WRONG_SHARE
    training.pairs.labels = torch.where(is_wrong, torch.randint_like(labels, 10), labels)


def shuffle_captions(training: Training) -> None:
    """The captions in another order than the images."""
    labels = training.pairs.labels
    training.pairs.labels = labels[torch.randperm(len(labels), device=labels.device)]


def normalise_twice(model: CLIP) -> None:
    """At inference the caller subtracts the mean, and then the encoder does."""
    model.towers["image"] = nn.Sequential(Normalize(PIXEL_MEAN, PIXEL_STD), model.towers["image"])


class Failure(NamedTuple):
    """What goes wrong: flags of train.py, a change before training, one before inference; and the cure's flags."""

    title: str
    flags: Sequence[str] = ()
    before: Callable[[Training], None] = lambda training: None
    after: Callable[[CLIP], None] = lambda model: None
    cure: Sequence[str] = ()


FAILURES = {
    "diagonal": Failure("diagonal InfoNCE, ten captions", ("--loss", "infonce")),
    "shuffled": Failure("captions in another order than images", before=shuffle_captions),
    "lies": Failure(f"{WRONG_SHARE:.0%} of the captions wrong", before=mislabel),
    "rate-high": Failure("learning rate too high", ("--lr", "10")),
    "rate-low": Failure("learning rate too low", ("--lr", "1e-5")),
    "temperature": Failure("logit scale without its logarithm", before=forget_the_logarithm),
    "unnormalised": Failure("embeddings not normalised", before=remove_normalisation),
    "small-batch": Failure("a batch of 4", ("--batch-size", "4")),
    "two-images": Failure(
        "batch norm over two images", ("--batch-size", "64", "--chunk-size", "2"), cure=("--batch-size", "64")
    ),
    "pixels": Failure("pixels normalised twice at inference", after=normalise_twice),
}


# ---- the runs ----


class Outcome(NamedTuple):
    """A run's loss at each step; at chance, its minimum, at the first step, mean of the last ones; and what it gave."""

    losses: list[float]
    chance: float
    minimum: float
    first: float
    final: float
    temperature: float  # after training
    accuracy: float


def train_once(flags: Sequence[str], before: Callable, after: Callable, seed: int, device: str, steps: int) -> Outcome:
    training = Training([*BASE, *flags, "--seed", str(seed), "--device", device], torch.device(device))
    before(training)
    batches = itertools.islice(training.pairs.epoch(training.settings.batch_size, seed), RANGE_BATCHES)
    ranges = [training.step.loss_range(batch) for batch in batches]
    chance, minimum = (statistics.mean(values) for values in zip(*ranges, strict=True))
    factors = [warmup_cosine(step, steps) for step in range(steps)]
    losses = [training.step(next(training.batches), factor)["loss"].item() for factor in factors]
    temperature = 1 / training.model.logit_scale.exp().item()
    after(training.model)
    accuracy = evaluate(training.model, load_mnist("val", common.DATA, device))["digit_accuracy"]
    return Outcome(losses, chance, minimum, losses[0], statistics.mean(losses[-LAST:]), temperature, accuracy)


def main(argv: list[str]) -> None:
    args = common.parse(common.make_parser("failures", __doc__, seeds=(0, 1, 2), tables=tuple(FAILURES)), argv)
    seeds, steps = (args.seeds[:1], QUICK_STEPS) if args.quick else (args.seeds, STEPS)
    train = functools.cache(functools.partial(train_once, device=str(args.device), steps=steps))  # cures are shared
    rows, runs = [], {}
    for failure in tqdm([FAILURES[name] for name in args.only], desc="failures"):
        failed = [train(failure.flags, failure.before, failure.after, seed) for seed in seeds]
        cured = [train(failure.cure, Failure("").before, Failure("").after, seed) for seed in seeds]
        accuracies = [[run.accuracy for run in own] for own in (failed, cured)]
        cells = [cell([getattr(run, name) for run in failed], "") for name in ("chance", "minimum", "first", "final")]
        cells += [f"{statistics.mean(run.temperature for run in failed):.2g}", cell(accuracies[0])]
        rows.append([failure.title, *cells, cell([run.final for run in cured], ""), cell(accuracies[1])])
        shown = "accuracy {:.1%}, cured {:.1%}".format(*map(statistics.mean, accuracies))
        runs[f"{failure.title}\n{shown}"] = failed[0], cured[0]
    columns = ["failure", "loss at chance", "minimum", "first loss", "final loss", "temperature at the end"]
    columns += ["validation accuracy", "cured: final loss", "cured: validation accuracy"]
    if set(args.only) != FAILURES.keys():
        print(*([f"{name}: {text}" for name, text in zip(columns, row, strict=True)] for row in rows), sep="\n")
        return
    if not args.quick:
        save_figure(draw(runs), common.ROOT / "docs" / "pictures" / f"failures{args.suffix}.png")
    note = f"Seeds {', '.join(map(str, seeds))}; {steps} steps; the final loss is the mean of the last {LAST} steps."
    common.write_result(args, "failures" + args.suffix, columns, rows, common.origin(args.device), note)


# ---- the picture ----


def draw(runs: dict[str, tuple[Outcome, Outcome]]) -> Figure:
    """Small multiples: the loss of each failure and of its cure, over the steps."""
    figure = Figure(figsize=(9, 10), layout="constrained")
    places = figure.subplots(math.ceil((len(runs) + 1) / 3), 3, sharex=True).flatten()
    for axes, (title, (failed, cured)) in zip(places, runs.items(), strict=False):
        draw_curves(axes, failed, cured)
        axes.set_title(title, fontsize=9)
    for axes in places[len(runs) :]:
        axes.axis("off")
    for axes in places[len(runs) - 3 : len(runs)]:
        axes.set_xlabel("step")
        axes.tick_params(labelbottom=True)
    for axes in places[: len(runs) : 3]:
        axes.set_ylabel("loss (nats)")
    places[len(runs)].legend(*places[0].get_legend_handles_labels(), loc="center", fontsize=10)
    return figure


def draw_curves(axes: Axes, failed: Outcome, cured: Outcome) -> None:
    axes.plot(failed.losses, color=WRONG, linewidth=2.5, label="failure")
    axes.plot(cured.losses, color=RIGHT, linewidth=1, label="cure")
    is_same = math.isclose(failed.chance, cured.chance, abs_tol=0.1)
    for run, colour in ((failed, "black" if is_same else WRONG), (cured, RIGHT))[: 1 if is_same else 2]:
        axes.axhline(run.chance, color=colour, linestyle="--", linewidth=1, label="at chance: ln B")
        axes.axhline(run.minimum, color=colour, linestyle=":", linewidth=1.5, label="minimum")
    if max(failed.losses) > 100:
        axes.set_yscale("log")
    axes.grid(alpha=0.3)


if __name__ == "__main__":
    with exit_on_error():
        sys.exit(main(sys.argv[1:]))
