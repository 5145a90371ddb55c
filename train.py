"""Train a small CLIP on MNIST: image and caption of the same digit close, others apart.

    python train.py                                  the default: minutes on 2 CPU cores
    python train.py --preset speed                   99 % in seconds; --preset accuracy takes many minutes
    python train.py --captions scenes                two digits on a canvas, captions with word order; into runs/scenes/
    python train.py --resume                         resume the latest unfinished run; scenes: add --captions scenes
    python train.py --data FOLDER                    your own pictures and texts (docs/own-data.md); into runs/own/
    torchrun --nproc-per-node 2 train.py             data parallel, one process per GPU; they share --batch-size

Writes runs/<run>/ (TensorBoard events, config.json, last.pth, best_model.pth, metrics.json) and, when the
run has finished, runs/best_model.pth. Options: training/settings.py.
"""

import os
import shlex
import sys

import torch

from clip import CLIP, captions_for, unseen_for
from data.mnist import download
from evaluation.metrics import evaluate
from evaluation.own import RECALLS, evaluate_own
from evaluation.scenes import evaluate_scenes
from losses import SIGMOID_BIAS
from my_dataset import MNISTPairs, OwnPairs, ScenePairs, load_split
from my_utils import device_name, exit_on_error, pick_device, use_bf16
from training import distributed
from training.ema import Ema
from training.log import log_end, log_similarity
from training.optim import make_optimizers, warmup_cosine
from training.run import Run
from training.settings import PRESETS, Settings, parse_flags
from training.step import TrainingStep

# Validation metric for model selection. Held-out combinations do not influence it.
SCORES = {"digit": "val_digit_accuracy", "attributes": "val_seen_accuracy", "scenes": "val_seen_accuracy"}
SCORES["own"] = "val_image_to_text_recall_at_1"
# Of the metrics, those that a run prints in the end.
PRINTED = ("digit_accuracy", "text_to_image_precision", "seen_accuracy", "unseen_accuracy", "seen_swap", "unseen_swap")
PRINTED += ("class_accuracy", *RECALLS, "unread_texts")


def main(argv: list[str]) -> None:
    settings, overrides = parse_flags(Settings, argv, "train.py", "Train a small CLIP on MNIST.", PRESETS)
    distributed.start(settings.device)
    with Run.open(settings, overrides, label=settings.loss, program=[os.path.relpath(__file__)]) as run:
        train(run, run.settings)


def train(run: Run, settings: Settings) -> None:
    # ---- device and data ----
    device = pick_device(settings.device)
    rank, world_size = distributed.rank(), distributed.world_size()
    if settings.image_encoder == "fast":  # its work is too small for more threads
        torch.set_num_threads(min(2, torch.get_num_threads()))
    if run.is_main and not settings.data:
        download(settings.data_path)  # the first process downloads for all
    distributed.broadcast(None)
    pairs, val = build_pairs(settings, device), load_split("val", settings, device)
    settings.check_batch(len(pairs), world_size)
    steps = len(pairs) // settings.batch_size  # per epoch
    measure = {"scenes": evaluate_scenes, "own": evaluate_own}.get(settings.captions, evaluate)

    # ---- model, optimizers, the step ----
    model = build_model(settings, pairs).to(device, memory_format=torch.channels_last)
    optimizers = make_optimizers(model, settings.lr, settings.muon_lr)
    ema = Ema(model, settings.ema_decay) if settings.ema_decay else None
    evaluated = ema.model if ema else model  # the model we evaluate and save
    train_step = build_step(settings, model, optimizers, ema, use_bf16(settings.precision, device))
    if settings.init and run.saved is None:
        taken = model.start_from(settings.init)
        if run.is_main:
            print(f"started from {settings.init}: {taken}")
    language_model = model.towers["text"].frozen_hash
    run.restore(belongs_to=language_model, model=model, **optimizers, **({"ema": ema} if ema else {}))
    if run.is_main:
        size = sum(parameter.numel() for parameter in model.parameters())
        print(f"{run.folder}: CLIP of {size:,} parameters, {settings.loss} on {world_size} x {device_name(device)}")
        chance, minimum = train_step.loss_range(next(pairs.epoch(settings.batch_size, settings.seed)))
        print(f"loss of a first batch: {chance:.3f} at chance, {minimum:.3f} at its minimum")

    # ---- training ----
    for epoch in run.epochs():
        model.train()
        pairs.augment = settings.augment_in(epoch)
        batches = pairs.epoch(settings.batch_size, settings.seed, epoch, rank, world_size)
        for batch in run.progress(batches, total=steps):
            run.log(train_step(batch, warmup_cosine(run.step, settings.epochs * steps)))
        metrics = {f"val_{name}": value for name, value in measure(evaluated, val).items()}
        run.end_epoch(metrics, evaluated, best=SCORES[settings.captions])
        log_similarity(run, evaluated, val)

    # ---- the one look at the test split, with the model that validation chose ----
    if not run.is_main:
        return
    text_model = settings.text_model if settings.text_encoder == "plus" else None
    best = CLIP.load(run.folder / "best_model.pth", device, text_model).to(memory_format=torch.channels_last)
    test = measure(best, load_split("test", settings, device))
    best.metrics |= {f"test_{name}": value for name, value in test.items()} | run.origin(device)
    best.save(run.folder / "best_model.pth")
    log_end(run, best)
    note = run.publish("CLIP", SCORES[settings.captions])
    run.finish(best.metrics)
    print_results(run, best.metrics, note)


# ---- helpers ----


def build_pairs(settings: Settings, device: torch.device) -> MNISTPairs | ScenePairs | OwnPairs:
    """The training pairs of these settings."""
    if settings.data:
        return OwnPairs(load_split("train", settings, device))
    pairs = ScenePairs if settings.captions == "scenes" else MNISTPairs
    captions = captions_for(settings.captions, settings.text_encoder)
    unseen = unseen_for(settings.captions, settings.unseen_seed)
    return pairs("train", settings.data_path, device, captions, unseen)


def build_model(settings: Settings, pairs: OwnPairs | None = None) -> CLIP:
    """The model of these settings; of own data it knows the words of these pairs."""
    names = ("embed_dim", "image_encoder", "width", "captions", "unseen_seed", "text_encoder", "loss")
    arch = {name: getattr(settings, name) for name in (*names, "init_temperature")}
    if settings.text_encoder == "plus":
        names = ("text_model", "freeze_text")
        arch["text_options"] = {name: getattr(settings, name) for name in names} | {"download": True}
    if settings.loss == "sigmoid":
        arch["init_logit_bias"] = SIGMOID_BIAS
    if settings.data:
        _, channels, side, _ = pairs.images.shape
        arch |= {"side": side, "channels": channels, "classes": pairs.split.classes, "sentences": pairs.split.texts}
    model = CLIP(**arch)
    model.config = vars(settings).copy()
    return model


def build_step(settings: Settings, model: CLIP, optimizers: dict, ema: Ema | None, bf16: bool) -> TrainingStep:
    """The training step of these settings."""
    return TrainingStep(
        model,
        list(optimizers.values()),
        bf16=bf16,
        chunk_size=settings.chunk_size,
        ema=ema,
        part_weight=settings.part_weight,
    )


def results_table(metrics: dict) -> str:
    lines = [f"{'':28}{'validation':>12}{'test':>12}"]
    for name in (name for name in PRINTED if f"val_{name}" in metrics):
        lines.append(f"{name:28}{metrics[f'val_{name}']:12.2%}{metrics[f'test_{name}']:12.2%}")
    seconds = f"{metrics['train_seconds']:.0f} s of training"
    return "\n".join([*lines, f"best epoch {metrics['best_epoch']}, {seconds}, seed {metrics['seed']}"])


def print_results(run: Run, metrics: dict, note: str) -> None:
    print(f"\n{results_table(metrics)}")
    print(f"saved to {run.folder} and {run.published}" + (f"\nnote: {note}" if note else ""))
    logdir = shlex.quote(f"--logdir {shlex.quote(str(run.folder.parent))}")
    print(f"\nthe curves:    make tensorboard ARGS={logdir}")
    if run.settings.captions in ("scenes", "own"):
        print(f"the pictures:  make evaluate ARGS={shlex.quote(shlex.quote(str(run.published)))}")
    else:
        print(f"the pictures:  make notebook, with MODEL = {str(run.published)!r} in its first cell")


if __name__ == "__main__":
    with exit_on_error(memory="start a new run with a lower --batch-size, or with --chunk-size"):
        main(sys.argv[1:])
