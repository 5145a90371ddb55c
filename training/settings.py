"""Every option of train.py once, with its default, help and bounds; and how flags, checkpoints and --resume read them.

The settings of another training script are a dataclass of `option`s too (generation/train.py, modalities/train.py).
"""

import argparse
import re
from dataclasses import dataclass, field, fields
from pathlib import Path

from clip import MIN_TEMPERATURE, TEXT_ENCODERS
from data.augment import KINDS
from image_encoder import IMAGE_ENCODERS
from losses import LOSSES
from my_dataset import DATA_PATH
from my_utils import ArgumentParser, InputError, number, quote, text
from training.optim import TEXT_LR

PLAIN_EPOCHS = 2  # at the end of a run: images without augmentation
# What else lies in a folder of runs, so that no run can have its name.
RESERVED = ("best_model.pth", "evaluation.json", "generator", "strokes", "speech", "scenes", "own", "benchmarks")
RESERVED += ("readme.md",)
LOCATION = ("device", "data_path", "data", "clip", "text_model")  # what may differ when a run is resumed
NOT_RECORDED = ("device", "data_path", "runs_dir", "run_name", "resume")  # where a run happens, not what it is


def option(default, help: str, **checks):
    """A field that becomes a flag. `checks`: `low` and `high` of a number, `choices`, `type` if the default is None,
    `const` for a flag that may stand without a value."""
    return field(default=default, metadata={"help": help, **checks})


@dataclass
class RunSettings:
    """The options of every training script."""

    seed: int = option(0, "seed of all random numbers", low=0, high=2**31)
    device: str = option("auto", "auto, cpu, cuda or cuda:N")
    data_path: str = option(DATA_PATH, "folder of the data; downloaded if they are not there")
    run_name: str | None = option(None, "name of the run's folder; None: time, loss and seed", type=str)
    resume: str | None = option(
        None, "resume an unfinished run, by its name or folder; without a name: the latest", type=str, const="latest"
    )

    def validate(self, overrides: dict) -> None:
        """Raises InputError for flags that are wrong, contradict each other or have no effect."""
        name = self.run_name
        if name is not None and (not re.fullmatch(r"\w[\w.+-]{0,80}", name) or name.lower() in RESERVED):
            raise InputError(f"--run-name {quote(name)} is no name of a new folder: use other letters, digits, - and _")


@dataclass
class Settings(RunSettings):
    # model
    image_encoder: str = option("residual", "the CNN, see below", choices=tuple(IMAGE_ENCODERS))
    embed_dim: int = option(64, "dimensions of the shared space", low=2, high=4096)
    width: int = option(16, "channels of the CNN's first stage", low=1, high=256)
    init_temperature: float = option(0.1, "temperature of the logits at the start", low=0.01, high=10)
    captions: str = option("attributes", "what a text says, see below", choices=tuple(MIN_TEMPERATURE))
    unseen_seed: int = option(0, "which fifth of combinations, or of pairs in scenes, is unseen", low=0, high=2**31)
    data: str | None = option(None, "folder of your own pictures with texts; MNIST without it", type=str)
    image_size: int = option(28, "data: pixels to which pictures are resized, in width and height", low=28, high=128)
    channels: int | None = option(None, "data: 1 is grey, 3 RGB; None: 3, of IDX files 1", type=int, choices=(1, 3))
    init: str | None = option(None, "a checkpoint whose weights the run starts from, as far as they fit", type=str)
    text_encoder: str = option("table", "the text tower, see below", choices=tuple(TEXT_ENCODERS))
    text_model: str = option("albert-base-v2", "plus: the language model, a Hugging Face name or a folder")
    freeze_text: bool = option(False, "plus: keep the language model as it is")
    # loss and optimisation
    loss: str = option("multi_positive", "contrastive loss", choices=tuple(LOSSES))
    part_weight: float = option(0.75, "attributes: share of the loss within each part of a caption", low=0, high=1)
    epochs: int = option(8, "passes over the 55,000 training images", low=1, high=100_000)
    batch_size: int = option(256, "image-text pairs per step", low=2, high=60_000)
    chunk_size: int | None = option(None, "images in the CNN at a time, GradCache", type=int, low=2, high=60_000)
    lr: float = option(3e-3, f"learning rate of AdamW; {TEXT_LR} for a language model", low=1e-9, high=100)
    muon_lr: float = option(0.05, "learning rate of Muon, for the CNN and the transformer; 0: no Muon", low=0, high=100)
    ema_decay: float = option(0.0, "moving average of the weights, per step; 0: none", low=0, high=0.99999)
    augment: str = option("affine", "random changes of images, see below", choices=KINDS)
    precision: str = option("auto", "numbers of the towers, see below", choices=("auto", "fp32", "bf16"))
    runs_dir: str = option("runs", "folder that gets a folder for this run")

    def augment_in(self, epoch: int) -> str:
        """The augmentation of this epoch, counted from 0."""
        return self.augment if epoch + PLAIN_EPOCHS < self.epochs else "none"

    def validate(self, overrides: dict) -> None:
        super().validate(overrides)
        if self.text_encoder != "plus" and overrides.keys() & {"freeze_text", "text_model"}:
            raise InputError("--text-model and --freeze-text are for sentences: add --text-encoder plus")
        if overrides.get("augment", "none") != "none" and self.epochs <= PLAIN_EPOCHS:
            raise InputError(f"--augment changes no image in {PLAIN_EPOCHS} epochs or less: make --epochs larger")
        if self.captions != "attributes" and "part_weight" in overrides:
            raise InputError("--part-weight is for --captions attributes: leave it out")
        if not self.data and (self.captions == "own" or overrides.keys() & {"image_size", "channels"}):
            raise InputError("--captions own, --image-size and --channels are for your own pictures: add --data FOLDER")
        if self.data and (self.captions != "own" or "data_path" in overrides):
            raise InputError("--data FOLDER has captions of its own: leave out --captions, --preset and --data-path")
        if self.captions in ("digit", "own") and "unseen_seed" in overrides:
            raise InputError("--unseen-seed is for --captions attributes or scenes: leave it out")
        wrong, right = ("fast", "scene") if self.captions in ("scenes", "own") else ("scene", "fast")
        if self.image_encoder == wrong:
            what = f"the images of --captions {self.captions}"
            raise InputError(f"--image-encoder {wrong} does not read {what}: choose residual, or {right}")
        if self.init_temperature < (low := MIN_TEMPERATURE[self.captions]):
            raise InputError(f"--init-temperature is below {low}, the least with --captions {self.captions}: raise it")
        if self.chunk_size and self.chunk_size > self.batch_size:
            raise InputError(f"--chunk-size {self.chunk_size} is larger than --batch-size {self.batch_size}")
        if self.chunk_size and self.batch_size % self.chunk_size == 1:
            raise InputError("batch norm needs two images at a time: change --chunk-size, so that none is left alone")

    def check_batch(self, n_pairs: int, world_size: int) -> None:
        """Raises InputError for a batch that does not fit the data or the processes."""
        batch = self.batch_size
        if batch > n_pairs:
            raise InputError(f"--batch-size {batch} is larger than the {n_pairs:,} pairs of an epoch: make it smaller")
        if world_size > 1 and self.chunk_size:
            raise InputError("several processes go without --chunk-size: leave it out, or train with one process")
        if batch % world_size or batch // world_size < 2:
            raise InputError(
                f"--batch-size {batch} does not give each of {world_size} processes the same two or more pairs"
            )


@dataclass
class OnClipSettings(RunSettings):
    """The options of every script that trains a further part on a trained CLIP."""

    clip: str = option("runs/best_model.pth", "the trained CLIP, whose image and text tower stay unchanged")
    text_model: str | None = option(None, "the folder of its language model, if it moved", type=str)


# What keeps the places of what a picture shows, and the order of words.
PLACES = dict(image_encoder="scene", text_encoder="transformer", embed_dim=128)
# What --preset changes; flags that are given win over it. `--captions scenes` means `--preset scenes`, `--data` "own".
PRESETS = {
    "default": {},
    "scenes": dict(captions="scenes", epochs=7, runs_dir="runs/scenes", **PLACES),
    "own": dict(captions="own", init_temperature=0.07, epochs=20, augment="shift", runs_dir="runs/own", **PLACES),
    # A wider CNN for longer, on images that are bent too; the moving average evens out what the last steps saw.
    "accuracy": dict(captions="digit", init_temperature=0.07, epochs=30, width=24, augment="elastic", ema_decay=0.998),
    # No border, a single convolution, one epoch without augmentation.
    "speed": dict(
        captions="digit",
        image_encoder="fast",
        embed_dim=32,
        width=32,
        init_temperature=0.2,
        epochs=1,
        batch_size=384,
        lr=1e-2,
        muon_lr=0.12,
        augment="none",
    ),
}

NOTES = f"""
captions      digit: a text names the digit. attributes: any part of digit, thickness and slant, or that it is no digit.
              scenes: two digits on one canvas, one or both named, with places, relations and thickness
              own: the texts of the folder --data
image encoder residual: the mean over its last map. scene: the whole map, for scenes and own pictures.
              fast: small, for single digits
text encoder  table: a bag of words. order, transformer: the order of words counts, too. plus: a language model
augment       none; shift; flip: shifted, and mirrored left to right; affine: rotated, sheared, scaled, shifted;
              elastic: bent too; in the last {PLAIN_EPOCHS} epochs none
precision     auto: bf16 on GPUs that compute in it, else fp32. fp32: on a GPU too, without TF32
"""


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
        parser.epilog = f"what each preset sets:\n{changes}\n{NOTES}"
        parser.add_argument("--preset", choices=tuple(presets), help="settings that go together (see below)")
    for one in fields(kind):
        checks, type_ = one.metadata, one.metadata.get("type", type(one.default))
        help = checks["help"].replace("%", "%%") + ("" if one.default is False else f" (default: {one.default})")
        if type_ is bool:
            parser.add_argument(flag(one.name), action="store_true", default=None, help=help)
        elif "choices" in checks:
            parser.add_argument(flag(one.name), choices=checks["choices"], type=type_, help=help)
        else:
            const = {"nargs": "?", "const": checks["const"]} if "const" in checks else {}
            convert = text if type_ is str else number(type_, checks["low"], checks["high"])
            parser.add_argument(flag(one.name), help=help, type=convert, metavar=type_.__name__.upper(), **const)
    overrides = {name: value for name, value in vars(parser.parse_args(argv)).items() if value is not None}
    if overrides.keys() & {"preset", "run_name"} and "resume" in overrides:
        raise InputError("--resume takes the run's own settings and name: leave out --preset and --run-name")
    presets = presets or {"default": {}}
    captions = "own" if "data" in overrides else overrides.get("captions")
    preset = overrides.pop("preset", captions if captions in presets else "default")
    if captions in presets and preset != captions:
        what = "--data" if captions == "own" else f"--captions {captions}"
        raise InputError(f"{what} has settings of its own: leave out --preset {preset}")
    settings = kind(**presets[preset] | overrides)
    if settings.resume is None:
        settings.validate(overrides)
    return settings, overrides


def resumed_settings(kind: type, overrides: dict, record: dict, folder: Path):
    """The settings of a resumed run, from its record (`dataclasses.asdict`) in last.pth.

    Only paths and the device may be overridden. Raises InputError for others, and for the record of another script.
    """
    if not isinstance(record, dict) or record.keys() != {one.name for one in fields(kind)}:
        raise InputError(f"{folder / 'last.pth'} is a run of another training script or version: start a new run")
    settings = kind(**record)
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
