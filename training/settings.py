"""Every option once: its default, help and bounds. Flags, checkpoints and --resume all read them here.

Imports no torch, so that a wrong flag is refused at once.
"""

import argparse
import functools
import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from my_utils import ArgumentParser, InputError, is_whole, number, threads_sleep

TEXT_MODEL = "albert-base-v2"
# The least that training may make of the temperature: 0.01 as in the paper. Captions that describe keep a higher one,
# so that similarities stay graded: of thick digits, too, the thicker one is closer to "thick".
MIN_TEMPERATURE = {"digit": 0.01, "described": 0.1}
SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")  # of the spoken digits
TEXT_LR = 2e-5  # peak learning rate of a language model that trains
AUGMENTS = ("none", "affine", "elastic", "corrupted")
PLAIN_EPOCHS = 2  # at the end of a run: images as they are, not augmented


def option(default, help: str, **checks):
    """A field that becomes a flag. `checks`: `low`, `high` and `low_ok` of a number, `choices`, `type` where the
    default is None, `short` for a flag that may stand without a value."""
    return field(default=default, metadata={"help": help, **checks})


class Options:
    """What the settings of training scripts share: dataclasses of `option`s."""

    def record(self) -> dict:
        """Plain values, for config.json and checkpoints."""
        return asdict(self)

    @classmethod
    def from_record(cls, record: dict, source: str):
        """Undo `record`. Raises InputError when it is another version's, or holds what no flag would take."""
        known = {one.name: one for one in fields(cls)}
        if not isinstance(record, dict) or record.keys() != known.keys():
            raise InputError(f"{source} has the settings of another version of this program: start a new run")
        for name, value in record.items():
            if value == known[name].default and type(value) is type(known[name].default):
                continue
            kind = _kind(known[name])
            if type(value) is not kind and not (kind is float and type(value) is int):
                raise InputError(f"{source} holds {name} {value!r}: start a new run")
            if kind is not bool:
                try:
                    _check(known[name], str(value))
                except argparse.ArgumentTypeError:
                    raise InputError(f"{source} holds {name} {value!r}: start a new run") from None
        return cls(**record)


@dataclass
class Settings(Options):
    # model
    image_encoder: str = option("residual", "the CNN: residual, or fast and small", choices=("residual", "fast"))
    embed_dim: int = option(64, "dimensions of the shared space", low=2, high=4096)
    width: int = option(16, "channels of the CNN's first stage", low=1, high=256)
    init_temperature: float = option(0.1, "temperature of the logits at the start", low=0.01, high=10)
    captions: str = option(
        "described",
        "what a text says: digit: which digit; described: any part of digit, thickness and slant, or no digit",
        choices=("digit", "described"),
    )
    unseen_seed: int = option(
        0, "described: which 18 of the 90 cells (digit, thickness, slant) are never trained", low=0, high=2**31
    )
    text_encoder: str = option(
        "table", "table: the sum of a text's word vectors; plus: a language model", choices=("table", "plus")
    )
    text_model: str = option(TEXT_MODEL, "plus: the language model, a Hugging Face name or a folder")
    freeze_text: bool = option(False, "plus: keep the language model as it is")
    # loss and optimisation
    loss: str = option(
        "multi_positive",
        "contrastive loss",
        choices=("multi_positive", "infonce", "infonce_distinct", "sigmoid"),
    )
    epochs: int = option(8, "passes over the 55,000 training images", low=1, high=100_000)
    batch_size: int = option(256, "image-text pairs per step", low=2, high=60_000)
    chunk_size: int | None = option(
        None,
        "images per pass through the CNN, for a batch that does not fit (GradCache); None: the whole batch",
        type=int,
        low=2,
        high=60_000,
    )
    lr: float = option(3e-3, f"peak learning rate of AdamW; a language model has {TEXT_LR}", low=0, low_ok=False)
    muon_lr: float = option(0.05, "peak learning rate of Muon, for the CNN's kernels and matrices; 0: no Muon", low=0)
    muon_momentum: float = option(0.7, "Nesterov momentum of Muon", low=0, high=0.999)
    ema_decay: float = option(
        0.0, "measure and keep a moving average of the weights, with this decay per step; 0: none", low=0, high=0.99999
    )
    augment: str = option(
        "affine",
        f"how images are changed at random before the last {PLAIN_EPOCHS} epochs: none; affine: rotated, sheared,"
        " scaled, shifted; elastic: bent too; corrupted: strokes of another thickness too, and some images noisy,"
        " blurred, pale, inverted or partly hidden",
        choices=AUGMENTS,
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
    data_path: str = option("MINIST_CLIP", "folder of MNIST; fetched when it is not there")
    runs_dir: str = option("runs", "folder that gets a folder for this run")
    run_name: str | None = option(None, "name of the run's folder; None: time, loss and seed", type=str)
    resume: str | None = option(
        None,
        "go on with an unfinished run, by its name or folder, with its own settings; without a name: the newest",
        type=str,
        short="newest",
    )

    @property
    def threads(self) -> int | None:
        """The most that a training on a CPU takes; None: as many as torch does. The fast encoder's work is too small
        for more than two, or for two where one has to be woken. (A language model that trains has enough.)"""
        if self.image_encoder != "fast" or (self.text_encoder == "plus" and not self.freeze_text):
            return None
        return 1 if threads_sleep() else 2

    def augment_of(self, epoch: int) -> str:
        """How the images of this epoch, counted from 0, are changed."""
        return self.augment if epoch + PLAIN_EPOCHS < self.epochs else "none"


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
WHERE = ("device", "data_path", "runs_dir", "run_name", "resume")  # where a run happens, not what it is


def same(name: str, kind: type[Options] = Settings):
    """An option of `Settings`, or of another kind, for another script's."""
    one = kind.__dataclass_fields__[name]
    return field(default=one.default, metadata=one.metadata)


@dataclass
class GeneratorSettings(Options):
    """What training/generator.py reads."""

    clip: str = option("runs/best_model.pth", "the trained CLIP, which stays as it is")
    text_model: str | None = option(None, "the folder of its language model, where that has moved", type=str)
    epochs: int = option(
        16, "passes over the training images; the first third trains the autoencoder", low=3, high=10_000
    )
    batch_size: int = option(256, "images per step", low=2, high=60_000)
    lr: float = option(2e-3, "peak learning rate of AdamW", low=0, low_ok=False)
    ema_decay: float = option(0.999, "moving average of the flows' weights, per step", low=0, high=0.99999)
    seed: int = option(0, "seed of weights, order and noise", low=0, high=2**31)
    device: str = same("device")
    data_path: str = same("data_path")
    runs_dir: str = option("runs/generator", "folder that gets a folder for this run")
    run_name: str | None = same("run_name")
    resume: str | None = same("resume")


@dataclass
class AlignSettings(Options):
    """What training/align.py reads, for strokes as for speech."""

    clip: str = option(
        "runs/best_model.pth", "the trained CLIP: its own two towers stay as they are, the new one is added to its file"
    )
    text_model: str | None = same("text_model", GeneratorSettings)
    epochs: int = option(12, "passes over the recordings", low=1, high=10_000)
    batch_size: int = option(256, "recordings per step", low=2, high=3_000)
    lr: float = option(3e-3, "peak learning rate of AdamW", low=0, low_ok=False)
    seed: int = option(0, "seed of weights, order and augmentation", low=0, high=2**31)
    device: str = same("device")
    data_path: str = option("MINIST_CLIP", "folder of the recordings and of MNIST; fetched when they are not there")
    runs_dir: str = option("runs/strokes", "folder that gets a folder for this run")
    run_name: str | None = same("run_name")
    resume: str | None = same("resume")


@dataclass
class StrokesSettings(AlignSettings):
    shuffled: bool = option(False, "the control: each recording is paired with the drawing of another one")


@dataclass
class SpeechSettings(AlignSettings):
    epochs: int = option(25, "passes over the recordings", low=1, high=10_000)
    batch_size: int = option(64, "recordings per step", low=2, high=3_000)
    runs_dir: str = option("runs/speech", "folder that gets a folder for this run")
    held_out: str = option(
        "official",
        "what is not trained on: the official test split, or all that one speaker said",
        choices=("official", *SPEAKERS),
    )


ALIGNED = {"strokes": StrokesSettings, "speech": SpeechSettings}


def read_flags(argv: list[str]) -> tuple[Settings, dict]:
    """Flags -> the settings, and those that were given, by name. Raises InputError for what cannot be."""
    given = _given(argv, Settings, "train.py", "Train a small CLIP on MNIST.", PRESETS)
    preset = given.pop("preset", "default")
    settings = Settings(**PRESETS[preset] | given)
    if settings.resume is None:
        _check_together(settings, given)
    elif preset != "default" or "run_name" in given:
        raise InputError("--resume goes on with the run's own settings and name: leave out --preset and --run-name")
    return settings, given


def read_generator_flags(argv: list[str]) -> tuple[GeneratorSettings, dict]:
    """The same for training/generator.py."""
    given = _given(argv, GeneratorSettings, "python -m training.generator", "Train a generator on a trained CLIP.")
    return _on_a_clip(GeneratorSettings(**given)), given


def read_align_flags(argv: list[str]) -> tuple[AlignSettings, dict]:
    """The same for training/align.py, whose first word says which modality."""
    if not argv or argv[0] not in (*ALIGNED, "-h", "--help"):
        raise InputError(f"say first what to align, {' or '.join(ALIGNED)}: python -m training.align strokes")
    modality = argv[0] if argv[0] in ALIGNED else "strokes"
    rest = argv[argv[0] in ALIGNED :]
    about = f"Train a tower for {modality} on a trained CLIP ({' or '.join(ALIGNED)}, the first word, says for which)."
    given = _given(rest, ALIGNED[modality], f"python -m training.align {modality}", about)
    return _on_a_clip(ALIGNED[modality](**given)), given


def _on_a_clip(settings):
    """Raises InputError for flags that cannot be together, where a trained CLIP is built on."""
    if settings.run_name is not None:
        check_run_name(settings.run_name)
        if settings.resume is not None:
            raise InputError("--resume goes on with the run's own name: leave out --run-name")
    return settings


def _check_together(s: Settings, given: dict) -> None:
    """Flags that have no effect beside each other."""
    if s.text_encoder == "table" and given.keys() & {"freeze_text", "text_model"}:
        raise InputError("--text-model and --freeze-text are for sentences: add --text-encoder plus")
    if "muon_momentum" in given and not s.muon_lr:
        raise InputError("--muon-momentum is Muon's: give --muon-lr too, above 0, or leave it out")
    if given.get("augment", "none") != "none" and s.epochs <= PLAIN_EPOCHS:
        raise InputError(
            f"--augment {s.augment} changes no image in a run of {PLAIN_EPOCHS} epochs or less: add --epochs"
            f" {PLAIN_EPOCHS + 1} or more"
        )
    if s.captions == "described" and s.augment == "corrupted":
        raise InputError(
            "--augment corrupted is for --captions digit, for a description of a corrupted image would be false: add"
            " --captions digit, or choose --augment elastic"
        )
    if s.captions == "digit" and "unseen_seed" in given:
        raise InputError("--unseen-seed is for captions that describe: leave it out, or add --captions described")
    if s.init_temperature < MIN_TEMPERATURE[s.captions]:
        raise InputError(
            f"--init-temperature {s.init_temperature} is below {MIN_TEMPERATURE[s.captions]}, the least with --captions"
            f" {s.captions}: make it larger"
        )
    if s.captions == "described" and s.loss == "infonce_distinct":
        raise InputError("--loss infonce_distinct needs ten distinct captions: add --captions digit")
    if s.chunk_size and s.chunk_size > s.batch_size:
        raise InputError(f"--chunk-size {s.chunk_size} is larger than --batch-size {s.batch_size}: make it smaller")
    if not s.text_model.strip():
        raise InputError("--text-model is empty: name a language model or its folder")
    if s.run_name is not None:
        check_run_name(s.run_name)


def check_run_name(name: str) -> None:
    """Raises InputError unless it is the name of one folder, on any file system."""
    printable = name.isprintable() and not set(name) & set('/\\:*?"<>|')
    if not printable or name != name.strip() or name in ("", ".", "..") or len(name.encode("utf-8", "replace")) > 200:
        shown = name if len(name) < 60 else name[:57] + "..."
        raise InputError(f"--run-name {shown!a} is not a plain folder name: use letters, digits, - and _, 200 at most")


def _kind(one) -> type:
    return one.metadata.get("type") or type(one.default)


def _check(one, text: str):
    """A flag's text -> its value. Raises argparse.ArgumentTypeError."""
    checks, kind = one.metadata, _kind(one)
    if kind in (int, float):
        return number(kind, checks["low"], checks.get("high", math.inf), checks.get("low_ok", True))(text)
    if not is_whole(text):
        raise argparse.ArgumentTypeError(f"{text!a} holds a byte that is no UTF-8: use plain letters")
    if "choices" in checks and text not in checks["choices"]:
        raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(checks['choices'])}")
    return text


def _given(argv: list[str], kind: type[Options], prog: str, description: str, presets: dict | None = None) -> dict:
    """The flags of a dataclass of options that were given, by name."""
    parser = ArgumentParser(prog=prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if presets:
        changes = "\n".join(
            f"  {name:10}" + (" ".join(f"{_flag(k)} {v}" for k, v in preset.items()) or "the defaults")
            for name, preset in presets.items()
        )
        parser.epilog = f"what each preset sets:\n{changes}\n"
        parser.add_argument("--preset", choices=tuple(presets), help="settings that go together (see below)")
    for one in fields(kind):
        checks, its = one.metadata, _kind(one)
        text = checks["help"].replace("%", "%%") + ("" if one.default is False else f" (default: {one.default})")
        if its is bool:
            parser.add_argument(_flag(one.name), action="store_true", default=None, help=text)
        elif "choices" in checks:
            parser.add_argument(_flag(one.name), choices=checks["choices"], help=text)
        else:
            more = {"nargs": "?", "const": checks["short"]} if "short" in checks else {}
            more |= {"type": functools.partial(_check, one), "metavar": its.__name__.upper()}
            parser.add_argument(_flag(one.name), help=text, **more)
    return {name: value for name, value in vars(parser.parse_args(argv)).items() if value is not None}


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def resumed(kind: type[Options], given: dict, record: dict, run: Path):
    """The settings, of this kind, of a run that goes on: its own; only where it runs may change."""
    own = kind.from_record(record, str(run / "last.pth"))
    for name, value in given.items():
        if name in ("device", "data_path", "clip", "text_model"):
            setattr(own, name, value)
        elif name not in WHERE and value != getattr(own, name):
            raise InputError(
                f"--resume goes on with the run's own settings ({_flag(name)} {getattr(own, name)}): leave out"
                f" {_flag(name)}"
            )
    own.runs_dir, own.run_name, own.resume = str(run.parent), run.name, None
    return own


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of scripts that use trained models: which ones, and where."""
    parser.add_argument("--clip", default="runs/best_model.pth", metavar="FILE", help="the trained CLIP")
    parser.add_argument(
        "--generator", default="runs/generator/best_model.pth", metavar="FILE", help="the generator trained with it"
    )
    parser.add_argument("--text-model", default=None, help="the language model's folder, where it has moved")
    parser.add_argument("--data-path", default=Settings.data_path, help="folder of MNIST; fetched when it is not there")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
