"""Pen strokes and speech in the space of images and texts: how well captions fit them, without training on texts.

    python -m benchmarks.modalities                    both tables, each over three CLIPs
    python -m benchmarks.modalities --only speech      one of them

`strokes`: a tower for each CLIP, tested on 2,000 recordings; beside it a control with shuffled pairs, and the same
encoder trained on labels. `speech`: for each CLIP a tower without one speaker, six times, tested on that speaker; then
the official split. Speech settings were chosen on two of the speakers. Writes results/strokes.json and speech.json.
"""

import statistics
import sys
from argparse import Namespace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from benchmarks import common
from benchmarks.common import cell
from clip import CLIP
from evaluation.metrics import caption_accuracy, embed, embed_images, precision_at_k
from evaluation.retrieval import recall_at_k
from modalities import train as training
from modalities.speech import OFFICIAL_TEST, SPEAKERS, Sounds, load_fsdd
from modalities.strokes import StrokeEncoder, Strokes, augment, draw, load_pendigits
from my_dataset import Split, batch_indices, load_mnist
from my_utils import exit_on_error
from training.optim import make_optimizers, warmup_cosine
from training.settings import parse_flags
from training.step import GRAD_CLIP, update

DEVELOPMENT_SPEAKERS = ("george", "nicolas")
STROKES_COLUMNS = ("nearest caption", "strokes → own drawing, recall@1", "strokes → own drawing, recall@5")
STROKES_COLUMNS += ("drawing → own strokes, recall@1", "drawing → own strokes, recall@5")
SPEECH_COLUMNS = ("nearest caption", "speech → image, R-precision")
SPEECH_COLUMNS += ("image → speech, recall@1", "image → speech, recall@5")


def trained_tower(args: Namespace, modality: str, name: str, seed: int, *flags: str) -> CLIP:
    """The CLIP of this seed with a tower for the modality, trained with these flags if it is not there yet."""
    kind = training.RECIPES[modality][0]
    folder = args.runs / modality / f"{name}{args.suffix}-seed{seed}"
    flags = ["--clip", str(common.trained_clip(args, seed)), "--seed", str(seed), "--device", str(args.device), *flags]
    flags += ["--epochs", "1"] if args.quick else []
    common.finished_run(
        folder,
        flags,
        main=lambda argv: training.main([modality, *argv]),
        parse=lambda flags: parse_flags(kind, flags, "", "")[0],
    )
    return CLIP.load(folder / "best_model.pth", args.device)


def mean_over(measured: list[dict], columns: tuple[str, ...]) -> list[str]:
    return [cell([one[column] for one in measured]) for column in columns]


# ---- strokes ----


def evaluate_strokes(args: Namespace) -> None:
    train, test = (load_pendigits(split, common.DATA, args.device) for split in ("train", "test"))
    towers = [trained_tower(args, "strokes", "towers", seed) for seed in args.seeds]
    measured = [measure_strokes(clip, test) for clip in towers]
    control = measure_strokes(trained_tower(args, "strokes", "control", args.seeds[0], "--shuffled"), test)
    labelled = train_on_labels(training.TowerSettings(**({"epochs": 1} if args.quick else {})), train)
    accuracy = caption_accuracy(embed(labelled, test.points), test.labels)
    empty = [""] * (len(STROKES_COLUMNS) - 1)
    rows = [
        ["drawings, through the image encoder", cell([one["drawings"] for one in measured]), *empty],
        ["stroke encoder", *mean_over(measured, STROKES_COLUMNS)],
        ["stroke encoder, shuffled pairs (control)", *mean_over([control], STROKES_COLUMNS)],
        ["the same encoder trained on labels, without CLIP", cell(accuracy), *empty],
    ]
    by_digit = ", ".join(f"{digit} {value:.0%}" for digit, value in enumerate(measured[0]["by_digit"]))
    seconds = statistics.mean(clip.metrics["strokes"]["train_seconds"] for clip in towers)
    note = (
        f"{len(test.points):,} test recordings. The first stroke encoder, by digit: {by_digit}. Mean ± standard"
        f" deviation over {len(towers)} CLIPs; {seconds:.0f} s of training for each tower."
    )
    columns = ["test recordings", *STROKES_COLUMNS]
    zero_shot = statistics.mean(one["nearest caption"] for one in measured)
    origin = common.origin(args.device)
    common.write_result(args, f"strokes{args.suffix}", columns, rows, origin, note, zero_shot_accuracy=zero_shot)


def measure_strokes(clip: CLIP, test: Strokes) -> dict:
    """Shares of the test recordings. Recall: each one's own drawing among all, and the reverse."""
    classifier = clip.zero_shot_classifier()  # [10, embed_dim]
    strokes, drawings = embed(partial(clip.encode, "strokes"), test.points), embed_images(clip, draw(test.points))
    own = torch.eye(len(strokes), dtype=torch.bool, device=strokes.device)
    similarity = strokes @ drawings.T  # [N, N]
    recalls = [recall_at_k(matrix, own, k).mean().item() for matrix in (similarity, similarity.T) for k in (1, 5)]
    to_captions = strokes @ classifier.T  # [N, 10]
    figures = [caption_accuracy(to_captions, test.labels), *recalls]
    return dict(zip(STROKES_COLUMNS, figures, strict=True)) | {
        "drawings": caption_accuracy(drawings @ classifier.T, test.labels),
        "by_digit": [
            caption_accuracy(to_captions[test.labels == digit], test.labels[test.labels == digit])
            for digit in range(10)
        ],
    }


def train_on_labels(settings: training.TowerSettings, train: Strokes) -> StrokeEncoder:
    """The same encoder, augmentation, optimizer and steps under ten logits and cross-entropy."""
    torch.manual_seed(0)
    net, size = StrokeEncoder(10).to(train.points.device), len(train.points)
    optimizers = list(make_optimizers(net, settings.lr, muon_lr=0.0).values())
    step, total = 0, settings.epochs * (size // settings.batch_size)
    for epoch in tqdm(range(settings.epochs), desc="on labels", leave=False, disable=None):
        for rows in batch_indices(size, settings.batch_size, settings.seed, epoch, train.points.device):
            net.zero_grad()
            F.cross_entropy(net(augment(train.points[rows])), train.labels[rows]).backward()
            update(optimizers, warmup_cosine(step, total), GRAD_CLIP)
            step += 1
    return net.eval()


# ---- speech ----


def evaluate_speech(args: Namespace) -> None:
    sounds = Sounds(*(x.to(args.device) for x in load_fsdd(common.DATA)))
    test = load_mnist("test", common.DATA, args.device)
    measured = {name: [] for name in (*SPEAKERS[: 1 if args.quick else None], "official")}
    for seed in args.seeds:
        images = embed_images(CLIP.load(common.trained_clip(args, seed), args.device), test.images)
        for name, of_seeds in measured.items():
            clip = trained_tower(args, "speech", name, seed, "--held-out", name)
            is_test = sounds.takes < OFFICIAL_TEST if name == "official" else sounds.speakers == SPEAKERS.index(name)
            of_seeds.append(measure_speech(clip, Sounds(*(x[is_test] for x in sounds)), images, test))
    official = measured.pop("official")
    means = [
        {column: statistics.mean(one[column] for one in own) for column in SPEECH_COLUMNS}
        for own in zip(*measured.values(), strict=True)  # the speakers of each seed
    ]
    rows = [[f"all of {name}", *mean_over(own, SPEECH_COLUMNS)] for name, own in measured.items()]
    rows.append(["mean of the six speakers", *mean_over(means, SPEECH_COLUMNS)])
    rows.append(["official test split (known speakers)", *mean_over(official, SPEECH_COLUMNS)])
    others = [own for name, own in measured.items() if name not in DEVELOPMENT_SPEAKERS] or list(measured.values())
    accuracies = [statistics.mean(one["nearest caption"] for one in own) for own in zip(*others, strict=True)]
    seconds = statistics.mean(one["train_seconds"] for one in official)
    note = (
        f"Settings were chosen on {' and '.join(DEVELOPMENT_SPEAKERS)}; the mean of the other speakers is"
        f" {cell(accuracies)}. Mean ± standard deviation over {len(args.seeds)} CLIPs; {seconds:.0f} s of training for"
        " each tower."
    )
    columns, origin = ["not trained on", *SPEECH_COLUMNS], common.origin(args.device)
    raw = {"held_out_speakers_mean": statistics.mean(one["nearest caption"] for one in means)}
    common.write_result(args, f"speech{args.suffix}", columns, rows, origin, note, **raw)


def measure_speech(clip: CLIP, sounds: Sounds, images: Tensor, test: Split) -> dict[str, float]:
    """Shares of recordings that were not trained on, with the test images' vectors [N, embed_dim]."""
    embeds = embed(partial(clip.encode, "speech"), sounds.mels)  # [S, embed_dim]
    precision = []
    for digit in range(10):
        is_right = test.labels == digit
        precision.append(precision_at_k(embeds[sounds.labels == digit] @ images.T, is_right, int(is_right.sum())))
    is_own = test.labels[:, None] == sounds.labels  # [N, S]
    figures = [
        caption_accuracy(embeds @ clip.zero_shot_classifier().T, sounds.labels),
        torch.cat(precision).mean().item(),
        *(recall_at_k(images @ embeds.T, is_own, k).mean().item() for k in (1, 5)),
    ]
    train_seconds = clip.metrics["speech"]["train_seconds"]
    return dict(zip(SPEECH_COLUMNS, figures, strict=True)) | {"train_seconds": train_seconds}


TABLES = {"strokes": evaluate_strokes, "speech": evaluate_speech}


def main(argv: list[str]) -> None:
    args = common.parse(common.make_parser("modalities", __doc__, seeds=[0, 1, 2], tables=tuple(TABLES)), argv)
    for name in args.only:
        TABLES[name](args)


if __name__ == "__main__":
    with exit_on_error():
        sys.exit(main(sys.argv[1:]))
