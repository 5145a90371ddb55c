"""Every option of train.py once, with its default, help and bounds; and how flags, checkpoints and --resume read them.

The settings of another training script are a dataclass of `option`s too (generation/train.py, modalities/train.py).
"""

import argparse
import functools
import math
from dataclasses import dataclass, field, fields
from pathlib import Path

from clip import MIN_TEMPERATURE, TEXT_ENCODERS
from data.augment import KINDS
from image_encoder import IMAGE_ENCODERS
from losses import LOSSES
from my_dataset import DATA_PATH
from my_utils import ArgumentParser, InputError, is_valid_unicode, number, quote, text
from training.optim import TEXT_LR

PLAIN_EPOCHS = 2  # at the end of a run: images without augmentation
RESERVED = (
    "best_model.pth",
    "evaluation.json",
    "generator",
    "strokes",
    "speech",
    "benchmarks",
    "readme.md",
)  # what else lies in a folder of runs
LOCATION = ("device", "data_path", "clip", "text_model")  # what may differ when a run is resumed
NOT_RECORDED = ("device", "data_path", "runs_dir", "run_name", "resume")  # where a run happens, not what it is


def option(default, help: str, **checks):
    """A field that becomes a flag. `checks`: `low`, `high` and `exclusive_min` of a number, `choices`, `type` if the
    default is None, `const` for a flag that may stand without a value."""
    return field(default=default, metadata={"help": help, **checks})


@dataclass
class Settings:
    # model
    image_encoder: str = option("residual", "the CNN: residual, or fast and small", choices=tuple(IMAGE_ENCODERS))
    embed_dim: int = option(64, "dimensions of the shared space", low=2, high=4096)
    width: int = option(16, "channels of the CNN's first stage", low=1, high=256)
    init_temperature: float = option(0.1, "temperature of the logits at the start", low=0.01, high=10)
    captions: str = option(
        "attributes",
        "what a text says: digit: which digit; attributes: any part of digit, thickness and slant, or no digit",
        choices=tuple(MIN_TEMPERATURE),
    )
    unseen_seed: int = option(
        0, "attributes: which fifth of the combinations of digit and attributes is never trained", low=0, high=2**31
    )
    text_encoder: str = option(
        "table", "table: the sum of a text's word vectors; plus: a language model", choices=tuple(TEXT_ENCODERS)
    )
    text_model: str = option("albert-base-v2", "plus: the language model, a Hugging Face name or a folder")
    freeze_text: bool = option(False, "plus: keep the language model as it is")
    # loss and optimisation
    loss: str = option("multi_positive", "contrastive loss", choices=tuple(LOSSES))
    epochs: int = option(8, "passes over the 55,000 training images", low=1, high=100_000)
    batch_size: int = option(256, "image-text pairs per step", low=2, high=60_000)
    chunk_size: int | None = option(
        None,
        "images per pass through the CNN, for a batch that does not fit (GradCache); None: the whole batch",
        type=int,
        low=2,
        high=60_000,
    )
    lr: float = option(
        3e-3, f"peak learning rate of AdamW; a language model has {TEXT_LR}", low=0, exclusive_min=True, high=100
    )
    muon_lr: float = option(
        0.05, "peak learning rate of Muon, for the CNN's kernels and matrices; 0: no Muon", low=0, high=100
    )
    muon_momentum: float = option(0.7, "Nesterov momentum of Muon", low=0, high=0.999)
    ema_decay: float = option(
        0.0, "evaluate and save a moving average of the weights, with this decay per step; 0: none", low=0, high=0.99999
    )
    augment: str = option(
        "affine",
        f"random changes of images before the last {PLAIN_EPOCHS} epochs: none; affine: rotated, sheared,"
        " scaled, shifted; elastic: bent too; corrupted: strokes of another thickness too, and some images noisy,"
        " blurred, pale, inverted or partly hidden",
        choices=KINDS,
    )
    seed: int = option(0, "seed of weights, order and augmentation", low=0, high=2**31)
    # machine
    device: str = option("auto", "auto, cpu, cuda or cuda:N")
    precision: str = option(
        "auto",
        "auto: bf16 on GPUs that compute in it, else fp32; fp32 is whole float32 on a GPU too, without TF32",
        choices=("auto", "fp32", "bf16"),
    )
    # files
    data_path: str = option(DATA_PATH, "folder of MNIST; downloaded if it is not there")
    runs_dir: str = option("runs", "folder that gets a folder for this run")
    run_name: str | None = option(None, "name of the run's folder; None: time, loss and seed", type=str)
    resume: str | None = option(
        None,
        "resume an unfinished run, by its name or folder, with its own settings; without a name: the latest",
        type=str,
        const="latest",
    )

    def augment_in(self, epoch: int) -> str:
        """The augmentation of this epoch, counted from 0."""
        return self.augment if epoch + PLAIN_EPOCHS < self.epochs else "none"

    def validate(self, overrides: dict) -> None:
        """Raises InputError for flags that contradict each other or have no effect."""
        if self.text_encoder != "plus" and overrides.keys() & {"freeze_text", "text_model"}:
            raise InputError("--text-model and --freeze-text are for sentences: add --text-encoder plus")
        if "muon_momentum" in overrides and not self.muon_lr:
            raise InputError("--muon-momentum is Muon's: give --muon-lr too, above 0, or leave it out")
        if overrides.get("augment", "none") != "none" and self.epochs <= PLAIN_EPOCHS:
            raise InputError(
                f"--augment {self.augment} changes no image in a run of {PLAIN_EPOCHS} epochs or less: add --epochs"
                f" {PLAIN_EPOCHS + 1} or more"
            )
        if self.captions == "attributes" and self.augment == "corrupted":
            raise InputError(
                "--augment corrupted is for --captions digit, for attributes of a corrupted image would be false: add"
                " --captions digit, or choose --augment elastic"
            )
        if self.captions == "digit" and "unseen_seed" in overrides:
            raise InputError("--unseen-seed is for --captions attributes: leave it out")
        if self.init_temperature < MIN_TEMPERATURE[self.captions]:
            raise InputError(
                f"--init-temperature {self.init_temperature} is below {MIN_TEMPERATURE[self.captions]}, the least with"
                f" --captions {self.captions}: make it larger"
            )
        if self.chunk_size and self.chunk_size > self.batch_size:
            raise InputError(f"--chunk-size {self.chunk_size} is larger than --batch-size {self.batch_size}")
        if self.chunk_size and self.batch_size % self.chunk_size == 1:
            raise InputError("batch norm needs two images at a time: change --chunk-size, so that none is left alone")


@dataclass
class OnClipSettings:
    """The options of every script that trains a further part on a trained CLIP."""

    clip: str = option("runs/best_model.pth", "the trained CLIP, whose image and text tower stay unchanged")
    text_model: str | None = option(None, "the folder of its language model, if it moved", type=str)
    seed: int = option(0, "seed of all random numbers", low=0, high=2**31)
    device: str = option("auto", "auto, cpu, cuda or cuda:N")
    data_path: str = option(DATA_PATH, "folder of the data; downloaded if they are not there")
    run_name: str | None = option(None, "name of the run's folder; None: time and seed", type=str)
    resume: str | None = option(
        None, "resume an unfinished run, by its name or folder; without a name: the latest", type=str, const="latest"
    )


# What --preset changes; flags that are given win over it.
PRESETS = {
    "default": {},
    # A wider CNN for longer, on images that are bent too; the moving average evens out what the last steps saw.
    "accuracy": {
        "captions": "digit",
        "init_temperature": 0.07,
        "epochs": 30,
        "width": 24,
        "augment": "elastic",
        "ema_decay": 0.998,
    },
    # No border, a single convolution, one epoch without augmentation.
    "speed": {
        "captions": "digit",
        "image_encoder": "fast",
        "embed_dim": 32,
        "width": 32,
        "init_temperature": 0.2,
        "epochs": 1,
        "batch_size": 384,
        "lr": 1e-2,
        "muon_lr": 0.12,
        "muon_momentum": 0.65,
        "augment": "none",
    },
}


def parse_flags(kind: type, argv: list[str], prog: str, description: str, presets: dict | None = None) -> tuple:
    """Flags -> settings of the dataclass `kind`, and the flags that were given, by name.

    Raises InputError on invalid flags.
    """
    parser = ArgumentParser(prog=prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if presets:
        changes = "\n".join(
            f"  {name:10}" + (" ".join(f"{flag(k)} {v}" for k, v in preset.items()) or "the defaults")
            for name, preset in presets.items()
        )
        parser.epilog = f"what each preset sets:\n{changes}\n"
        parser.add_argument("--preset", choices=tuple(presets), help="settings that go together (see below)")
    for one in fields(kind):
        checks, type_ = one.metadata, _type(one)
        help = checks["help"].replace("%", "%%") + ("" if one.default is False else f" (default: {one.default})")
        if type_ is bool:
            parser.add_argument(flag(one.name), action="store_true", default=None, help=help)
        elif "choices" in checks:
            parser.add_argument(flag(one.name), choices=checks["choices"], help=help)
        else:
            const = {"nargs": "?", "const": checks["const"]} if "const" in checks else {}
            convert = functools.partial(_convert, one)
            parser.add_argument(flag(one.name), help=help, type=convert, metavar=type_.__name__.upper(), **const)
    overrides = {name: value for name, value in vars(parser.parse_args(argv)).items() if value is not None}
    if overrides.keys() & {"preset", "run_name"} and "resume" in overrides:
        raise InputError("--resume takes the run's own settings and name: leave out --preset and --run-name")
    preset = overrides.pop("preset", "default")
    settings = kind(**(presets or {"default": {}})[preset] | overrides)
    if settings.resume is None and hasattr(settings, "validate"):
        settings.validate(overrides)
    if settings.run_name is not None:
        check_run_name(settings.run_name)
    return settings, overrides


def check_run_name(name: str) -> None:
    """Raises InputError unless it is the name of one folder, on any file system, and of none of our files."""
    is_plain = name.isprintable() and not set(name) & set('/\\:*?"<>|') and is_valid_unicode(name)
    if not is_plain or name != name.strip(" .") or not name or len(name.encode()) > 200:
        raise InputError(f"--run-name {quote(name)} is not a plain folder name: use letters, digits, - and _")
    if name.lower() in RESERVED:
        raise InputError(f"--run-name {name} is reserved for what else lies in a folder of runs: choose another")


def from_record(kind: type, record: dict, source: str | Path):
    """Settings from their record (`dataclasses.asdict`). Raises InputError if it is of another kind."""
    if not isinstance(record, dict) or record.keys() != {one.name for one in fields(kind)}:
        raise InputError(f"{source} is a run of another training script or version: start a new run")
    return kind(**record)


def resumed_settings(kind: type, overrides: dict, record: dict, folder: Path):
    """The settings of a resumed run; only paths and the device may be overridden. Raises InputError for others."""
    settings = from_record(kind, record, folder / "last.pth")
    for name, value in overrides.items():
        if name == "text_model" and getattr(settings, "text_encoder", "plus") != "plus":
            raise InputError(f"{folder} has no language model: leave out --text-model")
        if name in LOCATION:
            setattr(settings, name, value)
        elif name not in NOT_RECORDED and value != getattr(settings, name):
            own = f"{flag(name)} {getattr(settings, name)}"
            raise InputError(f"--resume takes the run's own settings ({own}): leave out {flag(name)}")
    settings.runs_dir, settings.run_name, settings.resume = str(folder.parent), folder.name, None
    return settings


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _type(one) -> type:
    return one.metadata.get("type") or type(one.default)


def _convert(one, value: str):
    """A flag's text -> its value. Raises argparse.ArgumentTypeError."""
    checks = one.metadata
    if _type(one) is str:
        return text(value)
    return number(_type(one), checks["low"], checks.get("high", math.inf), checks.get("exclusive_min", False))(value)


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of scripts that use trained models."""
    parser.add_argument("--clip", type=text, default="runs/best_model.pth", metavar="FILE", help="the trained CLIP")
    parser.add_argument(
        "--generator", type=text, default="runs/generator/best_model.pth", metavar="FILE", help="its generator"
    )
    parser.add_argument("--text-model", type=text, help="the language model's folder, if it moved")
    parser.add_argument("--data-path", type=text, default=DATA_PATH, help="folder of MNIST; downloaded if missing")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
