"""Train a tower for a further modality on a trained CLIP, whose image and text tower stay unchanged.

    python -m modalities.train strokes             pen strokes: each recording is paired with its own drawing
    python -m modalities.train speech --resume     spoken digits: with images of its digit; resume the latest run

The tower is trained with images alone, and then agrees with texts too: emergent zero-shot classification (ImageBind,
Girdhar et al., 2023, arXiv 2305.05665). Writes runs/strokes/<run>/ or runs/speech/<run>/ as train.py does. When the
run has finished, the tower is added to the file of the CLIP.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # `python modalities/train.py` works too, from any folder

import torch
import torch.nn.functional as F
from torch import Tensor

from captions import one_hot_labels
from clip import CLIP
from evaluation.metrics import caption_accuracy, embed, embed_images
from losses import LOSSES, contrastive_loss
from modalities import speech, strokes
from my_dataset import ByDigit, batch_indices, load_mnist
from my_utils import InputError, device_name, exit_on_error, pick_device
from training import distributed
from training.optim import make_optimizers, warmup_cosine
from training.run import Run, locked
from training.settings import OnClipSettings, option, parse_flags
from training.step import GRAD_CLIP, update


@dataclass
class TowerSettings(OnClipSettings):
    epochs: int = option(12, "passes over the recordings", low=1, high=10_000)
    batch_size: int = option(256, "recordings per step", low=2, high=7_992)
    lr: float = option(3e-3, "peak learning rate of AdamW", low=1e-9, high=100)
    shuffled: bool = option(False, "ablation: pair each recording with the image of another one")
    runs_dir: str = option("runs/strokes", "folder that gets a folder for this run")
    held_out = "official"  # the test split; no option here


@dataclass
class SpeechSettings(TowerSettings):
    epochs: int = option(25, "passes over the recordings", low=1, high=10_000)
    batch_size: int = option(64, "recordings per step", low=2, high=2_500)
    runs_dir: str = option("runs/speech", "folder that gets a folder for this run")
    held_out: str = option("official", "the official test split, or a speaker", choices=("official", *speech.SPEAKERS))


def strokes_pairs(settings: TowerSettings, clip: CLIP, device: torch.device) -> tuple:
    """Each recording with its own drawing, tested on validation: size, sample, test recordings, test labels [N].

    sample(rows [B]) returns recordings, embeddings of images [B, embed_dim] and ids [B], of which equal ones match.
    """
    train, val = (strokes.load_pendigits(split, settings.data_path, device) for split in ("train", "val"))

    def sample(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        points = strokes.augment(train.points[rows])  # [B, 8, 2]
        return points, clip.encode_image(strokes.draw(points)), rows

    return len(train.points), sample, val.points, val.labels


def speech_pairs(settings: SpeechSettings, clip: CLIP, device: torch.device) -> tuple:
    """The same: each recording with a training image of its digit, so that here the labels make the pairs."""
    sounds = speech.Sounds(*(x.to(device) for x in speech.load_fsdd(settings.data_path)))
    is_test = sounds.takes < speech.OFFICIAL_TEST
    if settings.held_out != "official":
        is_test = sounds.speakers == speech.SPEAKERS.index(settings.held_out)
    images, digits = (x[:10_000] for x in load_mnist("train", settings.data_path, device))
    embeds, by_digit = embed_images(clip, images), ByDigit(digits)  # [10000, embed_dim]
    mels, labels = sounds.mels[~is_test], sounds.labels[~is_test]

    def sample(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        digits = labels[rows]
        return speech.augment(mels[rows]), embeds[by_digit.sample(digits)], digits

    return len(mels), sample, sounds.mels[is_test], sounds.labels[is_test]


# Settings, pairs, a fixed temperature (low for strokes, because instances must be separated), and the metric.
RECIPES = {
    "strokes": (TowerSettings, strokes_pairs, 0.03, "val_zero_shot_accuracy"),
    "speech": (SpeechSettings, speech_pairs, 0.1, "held_out_zero_shot_accuracy"),
}


def main(argv: list[str]) -> None:
    distributed.refuse("modalities/train.py")
    if argv[:1] in (["-h"], ["--help"]):
        return print(__doc__)
    if not argv or argv[0] not in RECIPES:
        raise InputError(f"name first {' or '.join(RECIPES)}, as in python -m modalities.train strokes --help")
    modality, kind = argv[0], RECIPES[argv[0]][0]
    settings, overrides = parse_flags(kind, argv[1:], f"python -m modalities.train {modality}", __doc__)
    with Run.open(settings, overrides, label=modality, program=[os.path.relpath(__file__), modality]) as run:
        train(run, run.settings, modality)


def train(run: Run, settings: TowerSettings, modality: str) -> None:
    _, make_pairs, temperature, metric = RECIPES[modality]
    device, file = pick_device(settings.device), Path(settings.clip).resolve()  # (a link stays a link)
    if file.is_dir():
        raise InputError(f"{settings.clip} is a folder: name a .pth file, to which the new tower is added")
    clip = CLIP.load(file, device, settings.text_model).requires_grad_(False)
    clip.require_digits()
    fingerprint, saved = clip.fingerprint(), run.folder / "best_model.pth"
    size, sample, test, test_labels = make_pairs(settings, clip, device)
    steps = size // settings.batch_size  # per epoch
    torch.manual_seed(settings.seed)  # loading a CLIP has drawn random numbers, as many as it has towers
    tower = clip.add_tower(modality)
    optimizers = make_optimizers(tower, settings.lr, muon_lr=0.0)
    run.restore(belongs_to=fingerprint, tower=tower, **optimizers)
    print(f"{run.folder}: {sum(p.numel() for p in tower.parameters()):,} parameters on {device_name(device)}")

    # ---- training: the last epoch is kept, whatever its accuracy ----
    clip_metrics, classifier = clip.metrics, clip.zero_shot_classifier()  # [10, embed_dim]
    for epoch in run.epochs():
        tower.train()
        batches = batch_indices(size, settings.batch_size, settings.seed, epoch, device)
        for rows in run.progress(batches, total=steps):
            tower.zero_grad()
            recordings, images, ids = sample(rows)
            images = images.roll(1, dims=0) if settings.shuffled else images  # [B, embed_dim]
            logits = images @ F.normalize(tower(recordings), dim=-1).T / temperature  # [B, B]
            # (Where each pair has an id of its own, this is InfoNCE.)
            loss = contrastive_loss(LOSSES["multi_positive"], logits, *one_hot_labels(ids).match())
            loss.backward()
            grad_norm = update(list(optimizers.values()), warmup_cosine(run.step, settings.epochs * steps), GRAD_CLIP)
            run.log({"loss": loss.detach(), "grad_norm": grad_norm})
        tower.eval()
        embeds = embed(lambda recordings: clip.encode(modality, recordings), test)  # [N, embed_dim]
        run.end_epoch({metric: caption_accuracy(embeds @ classifier.T, test_labels)}, clip)

    # ---- the end ----
    metrics = {metric: run.history[-1][metric]} | run.origin(device)
    clip.metrics = clip_metrics | {modality: metrics}
    clip.save(saved)
    is_ablation = settings.shuffled or settings.held_out != "official"  # the CLIP's file then stays unchanged
    if not is_ablation:
        with locked(file):
            target = CLIP.load(file, "cpu", settings.text_model)
            if target.fingerprint() != fingerprint:
                raise InputError(f"{file} has become another CLIP: name a copy of the old one with --clip")
            target.add_tower(modality).load_state_dict(tower.state_dict())
            target.metrics[modality] = metrics
            target.save(file)
    run.finish(metrics)
    print(f"\n{metric.replace('_', ' ')} {metrics[metric]:.1%}, {run.seconds:.0f} s of training; saved to {saved}")
    print(f"{file} stays unchanged" if is_ablation else f'added to {file}: model.encode("{modality}", ...)')


if __name__ == "__main__":
    with exit_on_error(memory="start a new run with a lower --batch-size"):
        main(sys.argv[1:])
