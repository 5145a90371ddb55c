"""Train a small CLIP on MNIST: image and caption of the same digit close, others apart.

    python train.py                                  the default: 20 epochs, minutes on a CPU
    python train.py --epochs 50 --batch-size 32      the original setting
    python train.py --resume                         go on with the newest unfinished run
    torchrun --nproc-per-node 2 train.py             data parallel, one process a GPU; --batch-size is that of all

Writes runs/<run>/ (TensorBoard events, config.json, last.pth, best_model.pth, metrics.json) and, when the
run has finished, runs/best_model.pth.
"""

import argparse
import copy
import io
import itertools
import json
import os
import shlex
import shutil
import sys
import sysconfig
import time
from datetime import datetime
from pathlib import Path

import torch
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams
from tqdm import tqdm

import distributed
from augment import random_warp
from clip import CLIP, INIT_TEMPERATURE, TEXT_MODEL, load_checkpoint
from grad_cache import cached_backward
from losses import GROUP, LOSSES, loss_floor, sigmoid_bias
from metrics import embed_images, evaluate, zero_shot_classifier
from muon import Muon
from my_dataset import DATA_PATH, epoch_batches, epoch_images, load_mnist, provision
from my_utils import (
    ArgumentParser,
    InputError,
    Interrupt,
    atomic_write,
    bf16_by_default,
    cpu_name,
    enough_memory,
    exit_on_input_error,
    lock,
    number,
    pick_device,
    restore_rng_state,
    rng_state,
    seed_everything,
    short,
    warmup_cosine,
)
from pictures import similarity_matrix
from text_encoder import DIGIT_WORDS

PROJECTOR_IMAGES = 1000  # validation images in TensorBoard's embedding projector
NO_HYPERPARAMETERS = ("device", "data_path", "runs_dir", "run_name", "resume", "log_every", "picture_every")
TEXT_LR = 2e-5
STEP_COLUMNS = ("loss", "excess_loss", "grad_norm", "temperature")


# What --preset changes; flags that are given win over it.
PRESETS = {
    "default": {},
    # A wider CNN for longer; the weights' moving average evens out what the last steps happened to see.
    "accuracy": {
        "epochs": 30,
        "width": 32,
        "muon_lr": 0.05,
        "ema_decay": 0.998,
    },
    # No border, little of the CNN at full resolution, one epoch without augmentation.
    "speed": {
        "epochs": 1,
        "batch_size": 448,
        "embed_dim": 32,
        "lr": 1e-2,
        "muon_lr": 0.12,
        "muon_momentum": 0.65,
        "width": 32,
        "blocks": [1, 0],
        "block_convs": 1,
        "margin": 4,
        "stem_pool": True,
        "pool": "flatten",
        "init_temperature": 0.2,
        "no_augment": True,
    },
}


def build_parser(preset: str = "default") -> ArgumentParser:
    parser = ArgumentParser(prog="train.py", description=__doc__.split("\n")[0])
    parser.add_argument("--preset", choices=sorted(PRESETS), default="default", help="settings that go together")
    group = parser.add_argument_group("model")
    group.add_argument("--embed-dim", type=number(int, 2, 4096), default=64, help="dimensions of the shared space")
    group.add_argument("--width", type=number(int, 1, 1024), default=16, help="channels of the CNN's first stage")
    group.add_argument("--blocks", type=number(int, 0), nargs="+", default=[1, 1, 1], help="residual blocks by stage")
    group.add_argument("--block-convs", type=number(int, 1, 9), default=2, help="convolutions of a residual block")
    group.add_argument("--margin", type=number(int, 0, 10), default=0, help="border pixels that the CNN cuts off")
    group.add_argument("--pool", choices=("mean", "flatten"), default="mean", help="what the CNN's last map becomes")
    group.add_argument("--stem-pool", action="store_true", help="max pooling in the CNN's first stage")
    group.add_argument(
        "--init-temperature", type=number(float, 0.01, 10), default=INIT_TEMPERATURE, help="of the logits at the start"
    )
    group.add_argument("--text-encoder", choices=("table", "plus"), default="table", help="ten captions, or sentences")
    group.add_argument("--text-model", default=TEXT_MODEL, help="plus: language model, Hugging Face name or folder")
    group.add_argument("--freeze-text", action="store_true", help="plus: keep the language model as it is")
    group = parser.add_argument_group("loss and optimisation")
    group.add_argument("--loss", choices=sorted(LOSSES), default="multi_positive", help="contrastive loss")
    group.add_argument("--epochs", type=number(int, 1), default=20, help="passes over the 55,000 training images")
    group.add_argument("--batch-size", type=number(int, 2), default=256, help="image-text pairs a step")
    group.add_argument(
        "--chunk-size",
        type=number(int, 1),
        default=None,
        help="images a pass through the CNN; smaller than a batch that does not fit (GradCache). None: the batch",
    )
    group.add_argument("--lr", type=number(float, 0, low_ok=False), default=3e-3, help="AdamW's peak learning rate")
    group.add_argument(
        "--muon-lr",
        type=number(float, 0),
        default=0.0,
        help="peak learning rate of Muon for the CNN's kernels and matrices; 0: AdamW for all",
    )
    group.add_argument("--muon-momentum", type=number(float, 0, 0.999), default=0.7, help="Nesterov momentum of Muon")
    group.add_argument(
        "--ema-decay",
        type=number(float, 0, 0.99999),
        default=0.0,
        help="measure and keep a moving average of the weights, with this decay a step; 0: the weights themselves",
    )
    group.add_argument("--text-lr", type=number(float, 0, low_ok=False), default=TEXT_LR, help="language model's peak")
    group.add_argument("--weight-decay", type=number(float, 0), default=0.05, help="on weight matrices only")
    group.add_argument("--warmup", type=number(float, 0, 1), default=0.1, help="share of the steps to warm up over")
    group.add_argument("--grad-clip", type=number(float, 0, low_ok=False), default=5.0, help="largest gradient norm")
    group.add_argument("--no-augment", action="store_true", help="train on the images as they are")
    group.add_argument("--elastic", type=number(float, 0, 14), default=0.0, help="pixels that augmentation bends by")
    group.add_argument("--seed", type=number(int, 0, 2**31), default=0, help="for weights, order and augmentation")
    group = parser.add_argument_group("machine")
    group.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    group.add_argument(
        "--compile",
        action="store_true",
        help="compile the CNN with torch.compile, on CUDA into CUDA graphs; the first step then takes long",
    )
    group.add_argument(
        "--precision", choices=("auto", "fp32", "bf16"), default="auto", help="auto: bf16 on GPUs that have it"
    )
    group = parser.add_argument_group("files and logging")
    group.add_argument("--data-path", default=DATA_PATH, help="folder of MNIST; fetched when it is not there")
    group.add_argument("--runs-dir", default="runs", help="folder that gets a folder for this run")
    group.add_argument("--run-name", default=None, help="the run's folder; None: time, loss and seed")
    group.add_argument(
        "--resume",
        nargs="?",
        const="newest",
        default=None,
        metavar="RUN",
        help="go on with an unfinished run's folder, with its own settings; without a name: the newest",
    )
    group.add_argument("--log-every", type=number(int, 1), default=10, help="steps between TensorBoard points")
    group.add_argument("--picture-every", type=number(int, 1), default=5, help="epochs between similarity matrices")
    parser.set_defaults(**PRESETS[preset])
    return parser


def main(argv: list[str] | None = None) -> int:
    distributed.start()
    args, run, state = settle_run(sys.argv[1:] if argv is None else argv)
    if args.compile:
        require_compiler()

    # ---- device, seed, data ----
    device = distributed.own_device(pick_device(args.device))
    chief, processes = distributed.rank() == 0, distributed.size()
    run = Path(distributed.gather_objects(str(run))[0])  # its name may hold the time
    bf16 = args.precision == "bf16" or (args.precision == "auto" and bf16_by_default(device))
    seed_everything(args.seed)
    with distributed.together():
        if chief:
            provision(args.data_path)
    train_split = load_mnist("train", args.data_path, device)
    val_split = load_mnist("val", args.data_path, device)
    if args.batch_size > len(train_split.labels):
        raise InputError(f"--batch-size {args.batch_size} is larger than the {len(train_split.labels)} training images")
    if args.batch_size % processes or (processes > 1 and args.chunk_size):
        raise InputError(f"{processes} processes share a --batch-size that they divide, and go without --chunk-size")
    own = args.batch_size // processes  # of each process
    if 1 in (own, args.chunk_size, own % (args.chunk_size or own)):
        raise InputError("batch norm needs two images at a time: change --batch-size or --chunk-size, which leave one")
    distinct = args.loss == "infonce_distinct"
    if distinct and args.batch_size % GROUP:
        raise InputError(f"--loss infonce_distinct takes groups of {GROUP}: make --batch-size a multiple of it")
    steps = epoch_images(train_split, distinct) // args.batch_size  # an epoch
    total_steps = args.epochs * steps
    warmup_steps = round(args.warmup * total_steps)

    # ---- model, loss, optimizer ----
    bias = sigmoid_bias(train_split.labels, args.batch_size) if args.loss == "sigmoid" else None
    model = make_model(args, bias).to(device, memory_format=torch.channels_last)
    model.config = vars(args)
    loss_function = LOSSES[args.loss]
    optimizers = make_optimizers(model, args)
    final = copy.deepcopy(model) if args.ema_decay else model  # what is measured and kept
    if args.compile:
        model.image_encoder.compile(mode="reduce-overhead" if device.type == "cuda" else "default")
    parts = [model, *optimizers] + [final] * (final is not model)  # all that changes in training
    net = distributed.wrap(model)  # what the loop calls: the model, or DDP around it
    if not chief:
        torch.manual_seed(args.seed + distributed.rank())  # each process augments in its own way

    # ---- state: all that a resumed run needs beside the settings ----
    fresh = state is None
    with distributed.together():
        if chief and fresh:
            make_folder(run)
        held = lock(run) if chief else True
        if held is None:
            raise InputError(f"another process is training in {run}: wait for it, or start a run of your own")
    if fresh:
        state = {"epoch": 0, "step": 0, "seconds": 0.0, "best": -1.0, "epochs": []}
        state["history"] = torch.zeros(steps, len(STEP_COLUMNS), device=device)  # this epoch's steps
        save_state(run, state, parts, vars(args), device)
    else:
        restore_state(run, state, parts, device)
    if chief:
        save_text(run / "config.json", json.dumps(vars(args), indent=2))
        writer = SummaryWriter(run, purge_step=state["epoch"] * steps)  # points of an epoch that is now done again
        print(f"{run}: {describe(model)}, {args.loss} on {processes} x {device.type}{' in bf16' if bf16 else ''}")

    # ---- training ----
    smaller = "--chunk-size" if args.chunk_size else "--batch-size"
    if not args.chunk_size and processes == 1 and not args.compile:
        smaller += ", or one in parts with --chunk-size"
    model.train()
    with (
        enough_memory(f"start a new run with a lower {smaller}"),
        Interrupt(alone=processes == 1) as interrupt,
        tqdm(total=args.epochs, initial=state["epoch"], desc="epochs", unit="epoch", disable=not chief) as bar,
    ):
        while state["epoch"] < args.epochs:
            epoch, history, skip = state["epoch"], state["history"], state["step"]
            batches = epoch_batches(train_split, args.batch_size, args.seed, epoch, skip, distinct)
            started = time.perf_counter()
            step_bar = tqdm(
                batches,
                total=steps,
                initial=skip,
                desc=f"epoch {epoch + 1}",
                unit="images",
                unit_scale=args.batch_size,
                leave=False,
                disable=None if chief else True,  # a log file gets the epochs only
            )
            for step, (images, labels) in enumerate(step_bar, start=skip):
                factor = warmup_cosine(epoch * steps + step, total_steps, warmup_steps)
                for group in (group for optimizer in optimizers for group in optimizer.param_groups):
                    group["lr"] = group["peak_lr"] * factor
                images = distributed.share(images)
                if not args.no_augment:
                    # In chunks, like the CNN: a batch that does not fit would not fit here either.
                    chunks = images.split(args.chunk_size or len(images))
                    images = torch.cat([random_warp(chunk, args.elastic) for chunk in chunks])  # [B, 1, 28, 28]
                model.zero_grad()
                # (In chunks the CNN runs twice, and the second time must not reuse the first one's casts.)
                with torch.autocast(device.type, torch.bfloat16, enabled=bf16, cache_enabled=not args.chunk_size):
                    if args.chunk_size:
                        loss = cached_backward(model, images, labels, args.loss, args.chunk_size)
                    else:
                        logits, _ = net(images, distributed.share(labels))  # [B, B], of all processes
                if not args.chunk_size:
                    loss = loss_function(logits, labels)
                    loss.backward()
                grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), args.grad_clip)
                for optimizer in optimizers:
                    optimizer.step()
                model.clamp_logit_scale()
                if final is not model:
                    update_average(final, model, args.ema_decay, epoch * steps + step)

                # Kept on the device: reading a value here would make the CPU wait for the GPU.
                excess = loss.detach() - loss_floor(args.loss, labels)
                history[step] = torch.stack([loss.detach(), excess, grad_norm, 1 / model.logit_scale.detach().exp()])
                if device.type == "cpu":
                    if not loss.isfinite():
                        break
                    if step % args.log_every == 0:
                        step_bar.set_postfix(loss=f"{loss:.3f}", excess=f"{excess:.3f}", refresh=False)
                if interrupt.requested and processes == 1:  # several stop together, at the epoch's end
                    break
            step_bar.close()
            done = step + 1
            stop_if_not_finite(history[:done], epoch, skip, run)  # reads the history, and so waits for the device
            seconds = time.perf_counter() - started
            rate = (done - skip) * args.batch_size / seconds

            if done < steps:  # Ctrl-C: keep this very step, so that --resume goes on behind it
                state |= {"step": done, "seconds": state["seconds"] + seconds}
                save_state(run, state, parts, vars(args), device)
                break

            val = evaluate(final, val_split)
            means = dict(zip(STEP_COLUMNS, history.mean(dim=0).tolist(), strict=True))  # all batches are of one size
            record = {"epoch": epoch + 1, **means, "images_per_second": rate} | {f"val_{k}": v for k, v in val.items()}
            if chief:
                log_epoch(writer, history.cpu(), record, args, steps, total_steps)
                if (epoch + 1) % args.picture_every == 0 or epoch + 1 == args.epochs:
                    figure = validation_similarity(final, val_split)
                    writer.add_figure("similarity", figure, (epoch + 1) * steps - 1)
                writer.flush()

            if (
                chief and record["val_zero_shot_accuracy"] >= state["best"]
            ):  # of equals the later: it has trained longer
                state["best"] = record["val_zero_shot_accuracy"]
                final.metrics = {"best_epoch": epoch + 1} | {f"val_{name}": value for name, value in val.items()}
                final.save(run / "best_model.pth")
            state |= {"epoch": epoch + 1, "step": 0, "seconds": state["seconds"] + seconds}
            state["epochs"] = [*state["epochs"], record]
            save_state(run, state, parts, vars(args), device)
            bar.set_postfix(
                loss=f"{record['loss']:.3f}",
                excess=f"{record['excess_loss']:.3f}",
                val=f"{record['val_zero_shot_accuracy']:.2%}",
                images_s=f"{rate:,.0f}",
            )
            bar.update()
            if any(distributed.gather_objects(interrupt.requested)):
                break

    distributed.stop()
    if not chief:
        return 0
    if state["epoch"] < args.epochs:
        writer.close()
        print(f"\nstopped at epoch {state['epoch'] + 1}, step {state['step']} of {steps}; everything is saved")
        print(f"go on with: {shlex.join([os.path.relpath(sys.executable), 'train.py', '--resume', str(run)])}")
        return 130

    # ---- the one look at the test split, with the model that validation chose ----
    best = CLIP.load(run / "best_model.pth", device)
    test = evaluate(best, load_mnist("test", args.data_path, device))
    best.metrics |= {f"test_{name}": value for name, value in test.items()}
    best.metrics |= {
        "train_seconds": round(state["seconds"], 4),
        "epochs": args.epochs,
        "seed": args.seed,
        "processes": processes,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "cpu": f"{cpu_name()}, {torch.get_num_threads()} threads",
        "torch_version": str(torch.__version__),
        "date": f"{datetime.now():%Y-%m-%d}",
    }
    best.save(run / "best_model.pth")
    log_end(writer, best, val_split, args, total_steps)
    writer.close()
    atomic_write(Path(args.runs_dir) / "best_model.pth", (run / "best_model.pth").read_bytes())
    save_text(run / "metrics.json", json.dumps(best.metrics | {"history": state["epochs"]}, indent=2))

    print(f"\n{'':28}{'validation':>12}{'test':>12}")
    for name in ("zero_shot_accuracy", "text_to_image_precision"):
        print(f"{name:28}{best.metrics[f'val_{name}']:12.2%}{best.metrics[f'test_{name}']:12.2%}")
    print(
        f"best epoch {best.metrics['best_epoch']} of {args.epochs}, {state['seconds']:.0f} s of training,"
        f" seed {args.seed}"
    )
    print(f"saved to {run} and {Path(args.runs_dir) / 'best_model.pth'}\n")
    logdir = "" if args.runs_dir == "runs" else f' ARGS="--logdir {args.runs_dir}"'
    print(f"the curves:    make tensorboard{logdir}\nthe pictures:  make notebook")
    return 0


# ---- what the recipe above calls ----


def settle_run(argv: list[str]) -> tuple:
    """The settings, the run's folder and, when resuming, the saved state (else None)."""
    args = build_parser().parse_args(argv)
    args = build_parser(args.preset).parse_args(argv)
    runs = Path(args.runs_dir)
    if args.resume is None:
        if args.compile and args.chunk_size:
            raise InputError("--compile keeps one step's results at a time: leave out --chunk-size, or --compile")
        if args.text_encoder == "table" and (args.freeze_text or args.text_model != TEXT_MODEL):
            raise InputError("--text-model and --freeze-text are for sentences: add --text-encoder plus")
        if args.text_lr != TEXT_LR and (args.text_encoder == "table" or args.freeze_text):
            raise InputError("--text-lr is for a language model that trains: --text-encoder plus, no --freeze-text")
        name = args.run_name or f"{datetime.now():%Y-%m-%d_%H-%M-%S}_{args.loss}_seed{args.seed}"
        if Path(name).name != name or name in (".", ".."):
            raise InputError(f"--run-name {name!r} is not a plain folder name")
        if (runs / name).exists():
            raise InputError(f"{runs / name} is there already: choose another --run-name, or go on with --resume")
        return args, runs / name, None

    if args.resume == "newest":
        # The first process chooses for all: to look whether a run is free takes its lock for a moment.
        run = distributed.gather_objects(newest_unfinished(runs) if distributed.rank() == 0 else None)[0]
        if run is None:
            raise InputError(f"there is no unfinished run in {runs} to resume")
    else:
        run = Path(args.resume)
        if not (run / "last.pth").is_file():
            raise InputError(f"there is nothing to resume in {run}: name a folder in {runs} that holds last.pth")
        if ended(run):
            raise InputError(f"{run} {ended(run)}, nothing is left to resume: start a new run")
    state = load_checkpoint(run / "last.pth")
    if not {"config", "parts", "rng", "epoch", "step", "seconds", "best", "epochs", "history"} <= state.keys():
        raise InputError(f"{run / 'last.pth'} is not the state of a training run")

    # The run's own settings hold; only where it runs may change. (argparse leaves alone what stands in a namespace
    # already, so that None remains where a flag was not given.)
    config = vars(args) | state.pop("config")
    given = build_parser().parse_args(argv, argparse.Namespace(**dict.fromkeys(vars(args))))
    for name, value in vars(given).items():
        if name in ("device", "data_path"):
            config[name] = value or config[name]
        elif name not in ("resume", "runs_dir") and value not in (None, config[name]):
            flag = "--" + name.replace("_", "-")
            raise InputError(f"--resume goes on with the run's own settings ({flag} {config[name]}): leave out {flag}")
    return argparse.Namespace(**config | {"resume": None, "runs_dir": str(run.parent)}), run, state


def newest_unfinished(runs: Path) -> Path | None:
    free = [p.parent for p in runs.glob("*/last.pth") if not ended(p.parent) and lock(p.parent)]
    return max(free, key=lambda folder: (folder / "last.pth").stat().st_mtime, default=None)


def ended(run: Path) -> str:
    """Why a run cannot go on: it is finished, or its loss was not finite; empty when it can."""
    return "is finished" if (run / "metrics.json").exists() else "diverged" if (run / "diverged.txt").exists() else ""


def require_compiler() -> None:
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")  # torch's own choice
    if not shutil.which(compiler.split()[0]):
        raise InputError(
            f"--compile needs a C++ compiler, and {compiler} is not here: install it, name another in the environment"
            " variable CXX, or train without --compile"
        )
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        raise InputError("--compile needs Python's headers: install them (python3-dev), or train without --compile")


def make_model(args, init_logit_bias: float | None = None) -> CLIP:
    return CLIP(
        embed_dim=args.embed_dim,
        width=args.width,
        init_logit_bias=init_logit_bias,
        text_encoder=args.text_encoder,
        text_model=args.text_model,
        freeze_text=args.freeze_text,
        blocks=args.blocks,
        block_convs=args.block_convs,
        margin=args.margin,
        pool=args.pool,
        stem_pool=args.stem_pool,
        init_temperature=args.init_temperature,
    )


def make_optimizers(model: CLIP, args) -> list[torch.optim.Optimizer]:
    """AdamW, and with --muon-lr also Muon, which then has the CNN's kernels and matrices.

    Weight decay for matrices and kernels; none for norms, biases, the embedding table and the temperature. A language
    model that trains has a peak learning rate of its own.
    """
    table = {id(p) for m in model.modules() if isinstance(m, torch.nn.Embedding) for p in m.parameters()}
    muon, groups = [], {}
    for name, parameter in model.named_parameters():
        if args.muon_lr and name.startswith("image_encoder") and parameter.ndim > 1:
            muon.append(parameter)
            continue
        peak = args.text_lr if "language_model" in name else args.lr
        decay = args.weight_decay if parameter.ndim > 1 and id(parameter) not in table else 0.0
        groups.setdefault((peak, decay), []).append(parameter)
    groups = [{"params": p, "lr": peak, "peak_lr": peak, "weight_decay": decay} for (peak, decay), p in groups.items()]
    optimizers = [torch.optim.AdamW(groups, fused=True)]
    if muon:
        group = {"params": muon, "peak_lr": args.muon_lr, "weight_decay": args.weight_decay}
        optimizers.append(Muon([group], momentum=args.muon_momentum))
    return optimizers


@torch.no_grad()
def update_average(average: CLIP, model: CLIP, decay: float, step: int) -> None:
    """Exponential moving average of the weights and the batch norms' statistics, after `step` 0, 1, 2 ...

    At first, while fewer steps are done than it reaches back over, it is their plain mean: the random start has no part
    in it. (torch's AveragedModel does the like, but makes the CPU wait for the GPU in each step.)
    """
    weight = max(1 - decay, 1 / (step + 1))
    pairs = zip(
        itertools.chain(average.parameters(), average.buffers()),
        itertools.chain(model.parameters(), model.buffers()),
        strict=True,
    )
    for mean, new in pairs:
        if mean.is_floating_point():  # the rest counts batches
            mean.lerp_(new, weight)


def make_folder(run: Path) -> None:
    try:
        run.mkdir(parents=True)
    except OSError as error:
        raise InputError(
            f"cannot make the folder {run}: {error.strerror or error}; choose another --runs-dir"
        ) from None


def save_state(run: Path, state: dict, parts: list, config: dict, device: torch.device) -> None:
    """All processes call this, for each has random numbers of its own; the first one writes."""
    whole = {"config": config, "parts": [part.state_dict() for part in parts]}
    whole["rng"] = distributed.gather_objects(rng_state(device))
    if distributed.rank() == 0:
        content = io.BytesIO()
        torch.save(state | whole, content)
        atomic_write(run / "last.pth", content.getvalue())


def restore_state(run: Path, state: dict, parts: list, device: torch.device) -> None:
    """Undo save_state. Raises InputError when the state fits another version's model or optimizers."""
    try:
        for part, saved in zip(parts, state.pop("parts"), strict=True):
            part.load_state_dict(saved)
        states = state.pop("rng")
        if len(states) != distributed.size():
            raise InputError(f"{run} was trained by {len(states)} processes: resume it with as many")
        restore_rng_state(states[distributed.rank()], device)
        state["history"] = state["history"].to(device)
    except InputError:
        raise
    except (KeyError, RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{run / 'last.pth'} fits another version of this program: {short(error)}") from None


def save_text(path: Path, text: str) -> None:
    atomic_write(path, (text + "\n").encode())


def stop_if_not_finite(history: torch.Tensor, epoch: int, first: int, run: Path) -> None:
    """A gradient counts too: it is the loss of the next step. No state with bad weights is ever saved."""
    bad = (~history[first:].isfinite()).any(dim=1).nonzero()
    if len(bad):
        step = first + int(bad[0])
        values = ", ".join(
            f"{name} {value:.3g}" for name, value in zip(STEP_COLUMNS, history[step].tolist(), strict=True)
        )
        message = (
            f"training diverged at epoch {epoch + 1}, step {step + 1} ({values}): start a new run with a lower --lr"
        )
        if distributed.rank() == 0:
            save_text(run / "diverged.txt", message)
        sys.exit(f"error: {message}")


def describe(model: CLIP) -> str:
    def count(module):
        return f"{sum(p.numel() for p in module.parameters()):,}"

    return f"CLIP of {count(model.image_encoder)} image and {count(model.text_encoder)} text parameters"


def log_epoch(writer: SummaryWriter, history: torch.Tensor, record: dict, args, steps: int, total_steps: int) -> None:
    """TensorBoard: the step's curves thinned by --log-every, the epoch's as they are; x counts steps throughout."""
    first = (record["epoch"] - 1) * steps
    warmup = round(args.warmup * total_steps)
    for step in range(0, steps, args.log_every):
        for name, value in zip(STEP_COLUMNS, history[step].tolist(), strict=True):
            writer.add_scalar(f"step/{name}", value, first + step)
        learning_rate = args.lr * warmup_cosine(first + step, total_steps, warmup)
        writer.add_scalar("step/learning_rate", learning_rate, first + step)
    for name, value in record.items():
        if name != "epoch":
            tag = f"validation/{name[4:]}" if name.startswith("val_") else f"epoch/{name}"
            writer.add_scalar(tag, value, first + steps - 1)


@torch.no_grad()
def validation_similarity(model: CLIP, split, count: int = 20):
    """The similarity matrix of the first validation images against the ten captions, as a figure."""
    order = split.labels[:count].argsort(stable=True)
    images = split.images[:count][order]
    similarity = embed_images(model, images) @ zero_shot_classifier(model).T
    names = [f"{i} ({digit})" for i, digit in zip(order.tolist(), split.labels[order].tolist(), strict=True)]
    return similarity_matrix(similarity.cpu(), DIGIT_WORDS, names, "validation images against captions", images.cpu())


def log_end(writer: SummaryWriter, best: CLIP, val_split, args, total_steps: int) -> None:
    """TensorBoard: the settings beside the results, and the embeddings with their digits' thumbnails."""
    settings = {name: value for name, value in vars(args).items() if name not in NO_HYPERPARAMETERS}
    settings["blocks"] = " ".join(map(str, args.blocks))
    settings["chunk_size"] = args.chunk_size or args.batch_size
    results = {f"final/{name}": best.metrics[name] for name in ("val_zero_shot_accuracy", "test_zero_shot_accuracy")}
    for summary in hparams(settings, results):
        writer.file_writer.add_summary(summary)
    for name, value in results.items():
        writer.add_scalar(name, value, total_steps - 1)
    images, labels = val_split.images[:PROJECTOR_IMAGES], val_split.labels[:PROJECTOR_IMAGES]
    writer.add_embedding(
        torch.cat([embed_images(best, images), zero_shot_classifier(best)]),
        metadata=[str(label) for label in labels.tolist()] + [f"caption {word}" for word in DIGIT_WORDS],
        # A caption has no picture: its thumbnail is a grey square.
        label_img=1 - torch.cat([images.float() / 255, torch.full((10, 28, 28), 0.5, device=images.device)])[:, None],
        tag="images and captions",
    )


if __name__ == "__main__":
    saved = "what was finished is saved, and train.py --resume goes on from there"
    with exit_on_input_error(saved), distributed.clean_exit():
        sys.exit(main())
