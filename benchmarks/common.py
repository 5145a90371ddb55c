"""What the benchmarks share: where results go and what they say of themselves, a clock, a training step, runs."""

import contextlib
import io
import itertools
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

import train
from clip import CLIP
from my_dataset import DATA_PATH, Batch, MNISTPairs, Split
from my_utils import ArgumentParser, InputError, atomic_write, cpu_threads, device_name, threads_sleep, use_precision
from training import align
from training.ema import Ema
from training.optimizers import WARMUP, make_optimizers, warmup_cosine
from training.run import git_commit
from training.settings import WHERE, Options, Settings, read_align_flags, read_flags
from training.step import TrainingStep

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
DATA = ROOT / DATA_PATH
SAME = ("commit", "device", "cpu", "torch_version")  # a mean over different machines or versions means nothing


# ---- the command line and the result file ----


def parser_of(doc: str, device: bool = True) -> ArgumentParser:
    """A parser for a script with this docstring; `device` adds --device."""
    parser = ArgumentParser(prog=f"python -m benchmarks.{Path(sys.argv[0]).stem}", description=doc.split("\n")[0])
    if device:
        parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    return parser


def parse_with_flags(parser: ArgumentParser) -> tuple[Namespace, list[str]]:
    """The script's own arguments, and what stands behind `--`: flags of train.py."""
    ours, flags = sys.argv[1:], []
    if "--" in ours:
        ours, flags = ours[: ours.index("--")], ours[ours.index("--") + 1 :]
    return parser.parse_args(ours), flags


def about(device: torch.device) -> dict:
    """What a figure depends on: the device, the threads, torch, the code, the day."""
    return {
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "threads_sleep": threads_sleep(),
        "torch_version": str(torch.__version__),
        "commit": git_commit(),
        "date": f"{date.today()}",
    }


def write_result(name: str, result: dict) -> None:
    """Write results/NAME.json; a result without a `command` gets that of this script."""
    command = shlex.join(["python", "-m", f"benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]])
    content = json.dumps({"command": command} | result, indent=2) + "\n"
    atomic_write(RESULTS / f"{name}.json", content.encode())


def suffix(device: torch.device) -> str:
    """The end of a result's name: figures of a GPU stand beside those of a CPU."""
    return "-cuda" if device.type == "cuda" else ""


def spread(values: list[float]) -> dict:
    """Mean, standard deviation (of one value there is none) and the values themselves."""
    std = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.mean(values), "std": std, "values": values}


def joined(*splits: Split) -> Split:
    """One behind the other."""
    return Split(*map(torch.cat, zip(*splits, strict=True)))


def environment() -> dict[str, str]:
    """For a program that chooses by itself, or is told, how its threads wait: what `my_utils` has set stays out."""
    return {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}


# ---- the clock ----


class Stopwatch:
    """Seconds of what runs within its `with` blocks, the device's work included."""

    def __init__(self, device: torch.device):
        self.device, self.seconds = device, 0.0

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def __enter__(self):
        self._wait()
        self.started = time.perf_counter()

    def __exit__(self, *exception):
        self._wait()
        self.seconds += time.perf_counter() - self.started


def timed(device: torch.device, work) -> float:
    """Seconds of one call."""
    watch = Stopwatch(device)
    with watch:
        work()
    return watch.seconds


def flops_of(work: Callable[[], object]) -> int:
    """Of one call, as torch counts them: those of convolutions and matrix products."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


# ---- a training step ----


class Training:
    """What train.py makes of `flags`: each call draws a batch and takes a training step.

    `channels_last`, `fused` (AdamW's kernels) and `bf16` (None: as --precision says) choose another form of it.
    """

    def __init__(
        self,
        flags: list[str],
        device: torch.device,
        *,
        channels_last: bool = True,
        fused: bool = True,
        bf16: bool | None = None,
    ):
        self.settings, _ = read_flags(["--data-path", str(DATA), *flags])
        settings = self.settings
        torch.manual_seed(settings.seed)
        self.pairs = pairs = train.build_pairs(settings, device)
        pairs.augment = settings.augment
        train.check_batch(settings, pairs, world_size=1)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        self.model = train.build_model(settings, pairs).to(device, memory_format=layout).train()
        optimizers = make_optimizers(self.model, settings)
        for group in optimizers[0].param_groups if not fused else ():
            group |= {"fused": False, "foreach": False}
        self.step = TrainingStep(
            self.model,
            optimizers,
            bf16=use_precision(settings.precision, device) if bf16 is None else bf16,
            chunk_size=settings.chunk_size,
            ema=Ema(self.model, settings.ema_decay) if settings.ema_decay else None,
        )
        epochs = (pairs.epoch(settings.batch_size, settings.seed, epoch) for epoch in itertools.count())
        self.batches = itertools.chain.from_iterable(epochs)

    def __call__(self) -> torch.Tensor:
        with cpu_threads(self.settings.threads):
            return self.step(next(self.batches))


def steps_of(
    step: TrainingStep,
    pairs: MNISTPairs,
    settings: Settings,
    change: Callable[[Batch], Batch] = lambda batch: batch,
) -> Iterator[int]:
    """A whole training as train.py's: yields how many steps are done, after each one. `change` makes another batch."""
    total = settings.epochs * (len(pairs) // settings.batch_size)
    done = 0
    for epoch in range(settings.epochs):
        pairs.augment = settings.augment_of(epoch)
        for batch in pairs.epoch(settings.batch_size, settings.seed, epoch):
            step(change(batch), warmup_cosine(done, total, round(WARMUP * total)))
            done += 1
            yield done


# ---- runs of train.py ----


def finished_run(run: Path, flags: list[str], quiet: bool = False) -> dict:
    """The metrics of a run in the folder `run`, after training it, going on with it, or neither.

    A process of its own as a person starts it; `quiet`: in this process, without a word. `flags` without folders.
    """
    check_same(run, read_flags(flags)[0])
    if not (run / "metrics.json").exists():
        place = ["--resume", str(run)]
        if not (run / "last.pth").exists():
            place = ["--runs-dir", str(run.parent), "--run-name", run.name, *flags]
        command = ["--data-path", str(DATA), *place]
        if quiet:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                code = train.main(*read_flags(command))
        else:
            code = subprocess.run([sys.executable, "train.py", *command], cwd=ROOT).returncode
        if code == 130:  # Ctrl-C, which train.py has taken and saved
            raise KeyboardInterrupt
        if code:
            raise InputError(f"train.py failed in {run}: see its message above")
    return json.loads((run / "metrics.json").read_text())


def aligned(modality: str, run: Path, clip: str, device: torch.device, *flags: str) -> CLIP:
    """A copy of the CLIP with a tower for `modality` that training/align.py has trained with these flags in `run`.

    One that has finished is taken as it is. The file `clip` stays as it is. Raises InputError for a run of another
    CLIP, or one that was stopped.
    """
    check_same(run, read_align_flags([modality, *flags])[0])
    if not (run / "metrics.json").exists():
        copy = run.parent / f"{run.name}-clip.pth"
        copy.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(copy, Path(clip).read_bytes())
        place = ["--resume", str(run)]
        if not (run / "last.pth").exists():
            place = ["--runs-dir", str(run.parent), "--run-name", run.name, *flags]
        where = ["--clip", str(copy), "--data-path", str(DATA), "--device", str(device)]
        code = align.main(*read_align_flags([modality, *where, *place]))
        if code == 130:  # Ctrl-C, which align.py has taken and saved
            raise KeyboardInterrupt
        copy.unlink()
    trained, own = CLIP.load(run / "best_model.pth", device), CLIP.load(clip, device)
    if trained.fingerprint() != own.fingerprint():
        raise InputError(f"{run} was trained on another CLIP than {clip}: remove it to run it anew")
    return trained


def check_same(run: Path, settings: Options) -> None:
    """Raises InputError for a run that is there already but of other settings, or of another version."""
    if not (run / "config.json").exists():
        return
    config, wanted = json.loads((run / "config.json").read_text()), settings.record()
    for setting in wanted | config:
        is_there, is_wanted = (one.get(setting, "(nothing)") for one in (config, wanted))
        if setting not in (*WHERE, "clip") and is_there != is_wanted:
            raise InputError(f"{run} was trained with {setting} {is_there}, not {is_wanted}: remove it to run it anew")
    if (run / "metrics.json").exists():
        CLIP.load(run / "best_model.pth")


def same_origin(metrics: list[dict]) -> dict:
    """The commit, device, cpu and torch version of some runs. Raises InputError when they differ.

    A commit's "+", for files that differ from it, is kept where any run has it.
    """
    for name in SAME:
        values = sorted({str(m.get(name, "(nothing)")).rstrip("+" if name == "commit" else "") for m in metrics})
        if len(values) > 1:
            raise InputError(f"the runs differ in {name} ({', '.join(values)}): remove them and run all anew")
    return {name: max((m[name] for m in metrics), key=len) for name in SAME}


def machine(metrics: dict) -> str:
    """What a run's figures were measured on: its GPU, or its processor with the threads."""
    return metrics["cpu"] if metrics["device"] == "cpu" else metrics["device"]
