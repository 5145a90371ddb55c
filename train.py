"""Train a small CLIP on MNIST: image and caption of the same digit close, others apart.

    python train.py                                  the default: minutes on 2 CPU cores
    python train.py --preset speed                   99 % in seconds; --preset accuracy takes many minutes
    python train.py --resume                         go on with the newest unfinished run
    torchrun --nproc-per-node 2 train.py             data parallel, one process per GPU; they share --batch-size

Writes runs/<run>/ (TensorBoard events, config.json, last.pth, best_model.pth, metrics.json) and, when the
run has finished, runs/best_model.pth. The options stand in training/settings.py.
"""

import os
import shlex
import sys
import time
from datetime import datetime

import my_utils
from training.settings import Settings, read_flags

if __name__ == "__main__":  # a wrong flag is refused before torch takes its seconds to load
    FLAGS = my_utils.read_early(read_flags)

import torch
from tqdm import tqdm

from attributes import unseen_cells
from captions import captions_of
from clip import CLIP
from data.mnist import provision
from evaluation.metrics import evaluate
from losses import GROUP, sigmoid_bias
from my_dataset import MNISTPairs, Split, load_mnist
from my_utils import InputError, device_name, enough_memory, exit_on_input_error, pick_device, seed_everything
from training import distributed
from training.ema import Ema
from training.log import CURVES, EVERY, PICTURE_EVERY, Log
from training.optimizers import WARMUP, make_optimizers, warmup_cosine
from training.run import Interrupt, Run, open_run
from training.step import COLUMNS, TrainingStep

# What the best epoch is chosen by. Cells that are never trained have no part in it.
SCORES = {"digit": "val_digit_accuracy", "described": "val_seen_accuracy"}


def main(settings: Settings, given: dict) -> int:
    """A whole run -> 0, or 130 when it was interrupted and saved. Raises InputError for what a person must change."""
    smaller = "--chunk-size" if settings.chunk_size else "--batch-size, or train in parts with --chunk-size"
    with enough_memory(f"start a new run with a lower {smaller}"), my_utils.cpu_threads():  # afterwards as before
        return train(settings, given)


def train(settings: Settings, given: dict) -> int:
    # ---- settings, device, seed ----
    distributed.start()
    settings, run = open_run(settings, given, settings.loss)
    with distributed.share_errors():
        device = pick_device(distributed.own_device(settings.device))
    bf16 = my_utils.use_precision(settings.precision, device)
    my_utils.limit_threads(settings.threads)
    is_main, world_size = distributed.is_main(), distributed.world_size()
    seed_everything(settings.seed)

    # ---- data ----
    with distributed.share_errors():
        if is_main:
            provision(settings.data_path)  # the first process fetches for all
    pairs = build_pairs(settings, device)
    val_split = load_mnist("val", settings.data_path, device)
    check_batch(settings, pairs, world_size)
    steps = len(pairs) // settings.batch_size  # an epoch
    total_steps = settings.epochs * steps
    warmup, score = round(WARMUP * total_steps), SCORES[settings.captions]

    # ---- model, optimizers, the step ----
    model = build_model(settings, pairs).to(device, memory_format=torch.channels_last)
    optimizers = make_optimizers(model, settings)
    ema = Ema(model, settings.ema_decay) if settings.ema_decay else None
    measured = ema.model if ema else model  # what is measured and kept
    training_step = TrainingStep(model, optimizers, bf16=bf16, chunk_size=settings.chunk_size, ema=ema)
    if not is_main:
        torch.manual_seed(settings.seed + distributed.rank())  # each process augments in its own way

    # ---- the run's folder; a resumed run is brought to where it was ----
    parts = [model, *optimizers] + ([ema] if ema else [])
    state = run.begin(parts, settings, device, steps, len(CURVES))
    with distributed.share_errors():
        log = Log(run.folder, purge_step=state["epoch"] * steps) if is_main else None  # drops what comes after
    if is_main:
        kind = f"{device.type}{' in bf16' * bf16}"
        if device.type == "cpu":
            kind += f" with {my_utils.threads_told()}"
        print(f"{run.folder}: {describe(model)}, {settings.loss} on {world_size} x {kind}")

    # ---- training ----
    model.train()
    with (
        Interrupt() as interrupt,
        tqdm(total=settings.epochs, initial=state["epoch"], desc="epochs", unit="epoch", disable=not is_main) as bar,
    ):
        while state["epoch"] < settings.epochs:
            epoch, skip, history = state["epoch"], state["step"], state["history"]
            pairs.augment = settings.augment_of(epoch)
            batches = pairs.epoch(
                settings.batch_size, settings.seed, epoch, skip, share=(distributed.rank(), world_size)
            )
            started = time.perf_counter()
            with tqdm(
                batches, total=steps, initial=skip, desc=f"epoch {epoch + 1}", unit="images",
                unit_scale=settings.batch_size, leave=False, disable=None if is_main else True,
            ) as step_bar:  # fmt: skip
                for step, batch in enumerate(step_bar, start=skip):
                    values = training_step(batch, warmup_cosine(epoch * steps + step, total_steps, warmup))
                    history[step, 0], history[step, 2:] = values[0], values[1:]
                    if step % EVERY == 0:
                        history[step, 1] = training_step.excess(values[0])
                    if device.type == "cpu":  # on a GPU, reading a value would wait for it
                        if not values[0].isfinite():
                            break
                        if step % EVERY == 0:
                            step_bar.set_postfix(loss=f"{values[0]:.3f}", refresh=False)
                    if interrupt.requested and world_size == 1:  # several stop together, at the epoch's end
                        break
            done = step + 1
            # This reads the history, and so waits for the device. (The excess loss tells nothing more.)
            run.stop_if_not_finite(history[skip:done, [0, 2, 3]], COLUMNS, skip)
            seconds = time.perf_counter() - started
            state["seconds"] += seconds
            if done < steps:  # Ctrl-C: keep this very step, so that --resume goes on after it
                state["step"] = done
                run.save()
                break

            # ---- the end of an epoch: measure on validation, keep the best, save ----
            val = {f"val_{name}": value for name, value in evaluate(measured, val_split).items()}
            record = {"epoch": epoch + 1, **dict(zip(CURVES, history.mean(dim=0).tolist(), strict=True))}
            record["excess_loss"] = float(history[::EVERY, 1].mean())  # where it was measured
            record |= {"images_per_second": (done - skip) * settings.batch_size / seconds} | val
            with distributed.share_errors():
                # Of two equal epochs the later one: it has trained longer.
                if is_main and record[score] >= state["best"]:
                    state["best"] = record[score]
                    measured.metrics = {"best_epoch": epoch + 1} | val
                    measured.save(run.folder / "best_model.pth")
                if is_main:
                    log.epoch(history.cpu(), record, settings, warmup)
            state |= {"epoch": epoch + 1, "step": 0, "epochs": [*state["epochs"], record]}
            run.save()
            with distributed.share_errors():
                if is_main and ((epoch + 1) % PICTURE_EVERY == 0 or epoch + 1 == settings.epochs):
                    log.similarity(measured, val_split, (epoch + 1) * steps - 1)
            bar.set_postfix(
                loss=f"{record['loss']:.3f}", excess=f"{record['excess_loss']:.3f}", val=f"{record[score]:.2%}"
            )
            bar.update()
            if any(distributed.gather_objects(interrupt.requested)):
                break

    distributed.stop()
    if not is_main:
        return 0
    if state["epoch"] < settings.epochs:
        log.close()
        print(f"\nstopped at epoch {state['epoch'] + 1}, step {state['step']} of {steps}; everything is saved")
        program = [os.path.relpath(sys.executable)]
        if world_size > 1:
            program += ["-m", "torch.distributed.run", "--nproc-per-node", str(world_size)]
        print(f"go on with: {shlex.join([*program, 'train.py', '--resume', str(run.folder)])}")
        return 130
    finish(settings, run, log, val_split, device, world_size)
    return 0


def finish(settings: Settings, run: Run, log: Log, val_split: Split, device: torch.device, world_size: int) -> None:
    """The one look at the test split, with the model that validation chose; then the run counts as finished."""
    best = CLIP.load(run.folder / "best_model.pth", device).to(memory_format=torch.channels_last)  # as it was trained
    test = evaluate(best, load_mnist("test", settings.data_path, device))
    best.metrics |= {f"test_{name}": value for name, value in test.items()}
    best.metrics |= {
        "train_seconds": round(run.state["seconds"], 4),
        "epochs": settings.epochs,
        "seed": settings.seed,
        "run": run.folder.name,
        "world_size": world_size,
        "device": device_name(device) if device.type == "cuda" else "cpu",
        "cpu": f"{my_utils.cpu_name()}, {my_utils.threads_told()}",
        "torch_version": str(torch.__version__),
        "commit": run.state["commit"],
        "date": f"{datetime.now():%Y-%m-%d}",
    }
    best.save(run.folder / "best_model.pth")
    log.end(best, val_split, settings, settings.epochs * len(run.state["history"]) - 1)
    log.close()
    earlier = run.publish(SCORES[settings.captions])
    run.write_json("metrics.json", best.metrics | {"history": run.state["epochs"]})
    print_end(settings, run.folder, best.metrics, earlier)


# ---- what the recipe above calls ----


def build_pairs(settings: Settings, device: torch.device) -> MNISTPairs:
    """The training pairs of these settings."""
    return MNISTPairs(
        "train",
        settings.data_path,
        device,
        captions_of(settings.captions, settings.text_encoder),
        unseen_cells(settings.unseen_seed),
        distinct=settings.loss == "infonce_distinct",
    )


def build_model(settings: Settings, pairs: MNISTPairs | None = None) -> CLIP:
    """The model of these settings. The sigmoid loss's bias starts at the rate of true pairs in batches of `pairs`."""
    names = ("embed_dim", "image_encoder", "width", "captions", "unseen_seed", "text_encoder", "text_model")
    names += ("freeze_text", "loss", "init_temperature")
    shape = {name: getattr(settings, name) for name in names}
    if settings.loss == "sigmoid" and pairs is not None:
        shape["init_logit_bias"] = sigmoid_bias(next(pairs.epoch(settings.batch_size)).truth)
    model = CLIP(**shape)
    model.config = settings.record()
    return model


def check_batch(settings: Settings, pairs: MNISTPairs, world_size: int) -> None:
    """Raises InputError for a batch that the data, the loss, batch norm or the processes cannot have."""
    batch, chunk = settings.batch_size, settings.chunk_size
    if batch > len(pairs):
        raise InputError(f"--batch-size {batch} is larger than the {len(pairs):,} pairs of an epoch: make it smaller")
    if world_size > 1 and chunk:
        raise InputError("several processes go without --chunk-size: leave it out, or train with one process")
    if batch // world_size < 2 or (chunk and batch % chunk == 1):
        raise InputError(
            "batch norm needs two images at a time: change --batch-size or --chunk-size, so that none is alone"
        )
    if settings.loss == "infonce_distinct" and batch % GROUP:
        raise InputError(f"--loss infonce_distinct takes groups of {GROUP}: make --batch-size a multiple of it")


def describe(model: CLIP) -> str:
    image, text = (f"{sum(p.numel() for p in model.towers[name].parameters()):,}" for name in ("image", "text"))
    return f"CLIP of {image} image and {text} text parameters"


def print_end(settings: Settings, folder, metrics: dict, earlier: str) -> None:
    print(f"\n{'':28}{'validation':>12}{'test':>12}")
    names = ("digit_accuracy", "text_to_image_precision", "seen_accuracy", "unseen_accuracy")
    for name in names if settings.captions == "described" else names[:2]:
        print(f"{name:28}{metrics[f'val_{name}']:12.2%}{metrics[f'test_{name}']:12.2%}")
    print(
        f"best epoch {metrics['best_epoch']} of {settings.epochs}, {metrics['train_seconds']:.0f} s of training,"
        f" seed {settings.seed}"
    )
    print(f"saved to {folder} and {folder.parent / 'best_model.pth'}" + (f"\nnote: {earlier}" if earlier else ""))
    logdir = "" if str(folder.parent) == "runs" else f' ARGS="--logdir {folder.parent}"'
    print(f"\nthe curves:    make tensorboard{logdir}\nthe pictures:  make notebook")


if __name__ == "__main__":
    saved = "what was finished is saved, and train.py --resume goes on from there"
    with (
        exit_on_input_error(saved, disk="free it, then train.py --resume goes on from there"),
        distributed.clean_exit(),
    ):
        sys.exit(main(*FLAGS))
