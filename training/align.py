"""Align a new modality to the images of a trained CLIP, whose own two towers stay as they are.

    make strokes                                     pen strokes: each recording beside its own drawing
    make speech                                      spoken digits: each recording beside images of its digit
    python -m training.align strokes --resume        go on with the newest unfinished run

The new tower is trained with images alone; that it then agrees with the texts is what ImageBind calls emergent (Girdhar
et al., 2023, arXiv 2305.05665). Writes runs/strokes/<run>/ or runs/speech/<run>/ as train.py does. In the end the tower
goes into the file of the CLIP, runs/best_model.pth, beside the others.
"""

import os
import sys
import time
from pathlib import Path

import my_utils
from training.settings import AlignSettings, SpeechSettings, StrokesSettings, read_align_flags

if __name__ == "__main__":  # a wrong flag is refused before torch takes its seconds to load
    FLAGS = my_utils.read_early(read_align_flags)

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from captions import Truth
from clip import CLIP, CLIPOutput
from data.fsdd import OFFICIAL_TEST, SPEAKERS, Sounds, load_fsdd, random_change
from data.pendigits import draw, load_pendigits, random_strokes
from evaluation.metrics import caption_accuracy, digit_classifier, embed, embed_images
from evaluation.retrieval import recall_at_k
from losses import pick_loss
from my_dataset import batches, load_mnist
from my_utils import InputError, device_name, enough_memory, exit_on_input_error, pick_device, seed_everything
from speech_encoder import SpeechEncoder
from stroke_encoder import StrokeEncoder
from training.eager import AdamW
from training.optimizers import WARMUP, warmup_cosine
from training.run import Interrupt, Run, locked, open_run
from training.step import GRAD_CLIP, update

COLUMNS = ("loss", "grad_norm")  # of a step
WEIGHT_DECAY = 0.05
# Both are fixed. That of strokes is low, because recordings of one digit must be told apart too; that of speech is the
# one that captions start from.
STROKES_TEMPERATURE, SPEECH_TEMPERATURE = 0.03, 0.1
IMAGES = 10_000  # training images that speech is paired with


def main(settings: AlignSettings, given: dict) -> int:
    """A whole run -> 0, or 130 when it was interrupted and saved. Raises InputError for what a person must change."""
    with enough_memory("start a new run with a lower --batch-size"):
        return train(settings, given)


def train(settings: AlignSettings, given: dict) -> int:
    # ---- settings, the CLIP, the recordings ----
    modality = "strokes" if isinstance(settings, StrokesSettings) else "speech"
    settings, run = open_run(settings, given, modality)
    device = pick_device(settings.device)
    clip = CLIP.load(settings.clip, device, settings.text_model).requires_grad_(False)
    folder = Path(settings.clip).resolve().parent
    if not is_measurement(settings) and not os.access(folder, os.W_OK):
        raise InputError(
            f"the tower is to go into {settings.clip}, and {folder} cannot be written: name a copy of it"
            " elsewhere with --clip"
        )
    seed_everything(settings.seed)
    material = (Strokes if modality == "strokes" else Speech)(settings, clip, device)
    batch_size = settings.batch_size
    if batch_size > material.size:
        raise InputError(
            f"--batch-size {batch_size} is larger than the {material.size:,} recordings of an epoch: make it smaller"
        )
    steps = material.size // batch_size
    total = settings.epochs * steps

    # ---- the tower, its optimizer, the run's folder ----
    tower = clip.add_tower(modality)
    optimizer = AdamW(tower.parameters(), lr=settings.lr, weight_decay=WEIGHT_DECAY, fused=True)
    mark = Mark(clip.fingerprint())
    state = run.begin([mark, tower, optimizer], settings, device, steps, len(COLUMNS))
    log = SummaryWriter(run.folder, purge_step=state["epoch"] * steps)
    parameters = sum(p.numel() for p in tower.parameters())
    print(f"{run.folder}: a tower for {modality} of {parameters:,} parameters on {device.type}")

    # ---- training ----
    with (
        Interrupt() as interrupt,
        tqdm(total=settings.epochs, initial=state["epoch"], desc="epochs", unit="epoch") as bar,
    ):
        while state["epoch"] < settings.epochs:
            epoch, skip, history = state["epoch"], state["step"], state["history"]
            tower.train()
            started = time.perf_counter()
            for step, rows in tqdm(
                batches(material.size, batch_size, settings.seed, epoch, skip, device), total=steps,
                initial=skip, desc=f"epoch {epoch + 1}", leave=False, disable=None,
            ):  # fmt: skip
                loss = material.loss(tower, rows)
                lr = settings.lr * warmup_cosine(epoch * steps + step, total, round(WARMUP * total))
                history[step] = torch.stack([loss.detach(), update(optimizer, loss, lr, GRAD_CLIP)])
                if interrupt.requested:
                    break
            run.stop_if_not_finite(history[skip : step + 1], COLUMNS, skip)
            state["seconds"] += time.perf_counter() - started
            if step + 1 < steps:  # Ctrl-C: keep this very step, so that --resume goes on after it
                state["step"] = step + 1
                run.save()
                break

            # ---- the end of an epoch: measure what was not trained on, save ----
            record = {"epoch": epoch + 1, **dict(zip(COLUMNS, history.mean(dim=0).tolist(), strict=True))}
            tower.eval()
            record |= material.measure()
            for name, value in record.items():
                log.add_scalar(f"epoch/{name}", value, (epoch + 1) * steps - 1)
            log.flush()
            state |= {"epoch": epoch + 1, "step": 0, "epochs": [*state["epochs"], record]}
            run.save()
            bar.set_postfix({name: f"{value:.3f}" for name, value in record.items() if name != "epoch"})
            bar.update()
            if interrupt.requested:
                break

    log.close()
    if state["epoch"] < settings.epochs:
        print(f"\nstopped at epoch {state['epoch'] + 1}; everything is saved")
        print(f"go on with: python -m training.align {modality} --resume {run.folder}")
        return 130
    finish(settings, run, clip, modality, device)
    return 0


class Mark:
    """The CLIP that a run was begun with, saved beside the tower: a resumed run must have the same one."""

    def __init__(self, fingerprint: str):
        self.fingerprint = fingerprint

    def state_dict(self) -> dict:
        return {"fingerprint": self.fingerprint}

    def load_state_dict(self, state: dict) -> None:
        if state["fingerprint"] != self.fingerprint:
            raise InputError("this run was begun with another CLIP: name that one with --clip")


def finish(settings: AlignSettings, run: Run, clip: CLIP, modality: str, device: torch.device) -> None:
    """The tower goes into the CLIP's own file, where that is still the same CLIP; then the run counts as finished."""
    last = run.state["epochs"][-1]
    reached = {name: value for name, value in last.items() if name.startswith(("val_", "held_out_"))}
    metrics = reached | {"run": run.folder.name, "epochs": settings.epochs, "seed": settings.seed}
    metrics |= {"train_seconds": round(run.state["seconds"], 1), "device": device_name(device)}
    metrics |= {"commit": run.state["commit"]}
    clip.metrics[modality] = metrics
    clip.save(run.folder / "best_model.pth")
    told = join(settings, clip, modality)
    run.write_json("metrics.json", metrics | {"history": run.state["epochs"]})
    print()
    for name, value in reached.items():
        print(f"{name.replace('_', ' ')}: {value:.1%}")
    print(f"{metrics['train_seconds']:.0f} s of training; saved to {run.folder / 'best_model.pth'}\n{told}")


def is_measurement(settings: AlignSettings) -> bool:
    """Whether the tower is made to be measured alone, and goes into no CLIP's file."""
    return getattr(settings, "shuffled", False) or getattr(settings, "held_out", "official") != "official"


def join(settings: AlignSettings, clip: CLIP, modality: str) -> str:
    """Put the tower into the file that the CLIP came from -> what was done, in a sentence."""
    if is_measurement(settings):
        return f"this is a measurement: {settings.clip} stays as it is"
    place = Path(settings.clip).resolve()  # (a link stays a link)
    with locked(place):
        target = CLIP.load(place, "cpu", settings.text_model)
        if target.fingerprint() != clip.fingerprint():
            return f"{settings.clip} has become another CLIP meanwhile: it stays as it is"
        target.add_tower(modality).load_state_dict(clip.towers[modality].state_dict())
        target.metrics[modality] = clip.metrics[modality]
        target.save(place)
    return f"the tower is in {settings.clip} too: CLIP.load({settings.clip!r}).encode_{modality}(...)"


# ---- what goes with what: recordings, their images, the loss, what is measured ----


class Strokes:
    """Each recording beside its own drawing. Labels and texts take no part in training."""

    def __init__(self, settings: StrokesSettings, clip: CLIP, device: torch.device):
        self.clip, self.shuffled, self.loss_function = clip, settings.shuffled, pick_loss("infonce")
        self.train, self.val = (load_pendigits(split, settings.data_path, device) for split in ("train", "val"))
        self.size = len(self.train.points)
        self.val_images = embed_images(clip, draw(self.val.points))

    def loss(self, tower: StrokeEncoder, rows: Tensor) -> Tensor:
        points = random_strokes(self.train.points[rows])  # [B, 8, 2]; changed first, then drawn
        with torch.no_grad():
            images = self.clip.encode_image(draw(points))  # [B, embed_dim]
        if self.shuffled:
            images = images.roll(1, dims=0)
        embeds = F.normalize(tower(points), dim=-1)
        # Each recording is true of its own drawing alone: infonce looks at nothing else.
        nothing = torch.zeros(len(rows), dtype=torch.int32, device=rows.device)
        return self.loss_function(compare(images, embeds, STROKES_TEMPERATURE), Truth(nothing, nothing))

    def measure(self) -> dict[str, float]:
        """On validation: the nearest of ten captions, of strokes and of their drawings; and each one's own drawing."""
        embeds, captions = embed(self.clip.encode_strokes, self.val.points), digit_classifier(self.clip)
        own = torch.eye(len(embeds), dtype=torch.bool, device=embeds.device)
        return {
            "val_emergent": caption_accuracy(embeds @ captions.T, self.val.labels),
            "val_drawings": caption_accuracy(self.val_images @ captions.T, self.val.labels),
            "val_recall_at_1": recall_at_k(embeds @ self.val_images.T, own, 1).mean().item(),
        }


class Speech:
    """Each recording beside training images of its digit: here the label makes the pairs."""

    def __init__(self, settings: SpeechSettings, clip: CLIP, device: torch.device):
        self.clip, self.loss_function = clip, pick_loss("multi_positive")
        sounds = Sounds(*(x.to(device) for x in load_fsdd(settings.data_path)))
        is_out = held_out(sounds, settings.held_out)
        self.train, self.test = (Sounds(*(x[which] for x in sounds)) for which in (~is_out, is_out))
        self.size = len(self.train.mels)
        images, digits = (x[:IMAGES] for x in load_mnist("train", settings.data_path, device))
        self.images = embed_images(clip, images[digits.argsort()])  # in the digits' order
        self.count = digits.bincount(minlength=10)
        self.first = self.count.cumsum(dim=0) - self.count

    def loss(self, tower: SpeechEncoder, rows: Tensor) -> Tensor:
        digits = self.train.labels[rows]
        drawn = torch.rand(len(rows), device=rows.device) * self.count[digits]
        images = self.images[self.first[digits] + drawn.long()]  # [B, embed_dim], an image of each digit at random
        embeds = F.normalize(tower(random_change(self.train.mels[rows])), dim=-1)
        facts = (1 << digits).int()
        truth = Truth(facts, facts)
        return self.loss_function(compare(images, embeds, SPEECH_TEMPERATURE), truth)

    def measure(self) -> dict[str, float]:
        """The nearest of ten captions, on what is held out. (The last epoch is kept: nothing is chosen by it.)"""
        similarity = embed(self.clip.encode_speech, self.test.mels) @ digit_classifier(self.clip).T
        return {"held_out_accuracy": caption_accuracy(similarity, self.test.labels)}


def held_out(sounds: Sounds, which: str) -> Tensor:
    """Which recordings `--held-out` means: bool [N]."""
    return sounds.takes < OFFICIAL_TEST if which == "official" else sounds.speakers == SPEAKERS.index(which)


def compare(image_embeds: Tensor, embeds: Tensor, temperature: float) -> CLIPOutput:
    """Unit vectors [B, embed_dim] of both sides -> what a loss takes, as `CLIP.compare`, at this temperature."""
    logits = image_embeds @ embeds.T / temperature
    return CLIPOutput(image_embeds, embeds, logits, logits.T, logits.new_tensor(1 / temperature))


if __name__ == "__main__":
    saved = "what was finished is saved, and --resume goes on from there"
    with exit_on_input_error(saved, disk="free it, then --resume goes on from there"):
        sys.exit(main(*FLAGS))
