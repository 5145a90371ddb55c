from dataclasses import asdict, fields
from pathlib import Path

import pytest

from my_utils import InputError
from training.settings import PRESETS, Settings, flag, parse_flags, resumed_settings

FIELDS = {one.name: one for one in fields(Settings)}


def parse(flags: str | list[str]) -> tuple[Settings, dict]:
    argv = flags.split() if isinstance(flags, str) else flags
    return parse_flags(Settings, argv, "train.py", "Train.", PRESETS)


def test_flags_become_settings_of_their_type_and_the_others_have_their_defaults():
    assert parse("") == (Settings(), {})
    flags = "--epochs 3 --lr 1e-2 --chunk-size 64 --augment none --loss infonce --run-name my-run --seed 2147483648"
    settings, overrides = parse(flags)
    expected = {"epochs": 3, "lr": 0.01, "chunk_size": 64, "augment": "none", "loss": "infonce"}
    expected |= {"run_name": "my-run", "seed": 2**31}
    assert overrides == expected
    assert settings == Settings(**expected)
    assert parse("--resume")[0].resume == "latest"
    assert parse("--resume my-run")[0].resume == "my-run"


WRONG = {
    "whole number from 1 to 100000": ("--epochs 0", "--epochs -3", "--epochs 1.5", "--epochs many"),
    "'9+... is not a whole number": ("--epochs " + "9" * 400,),
    "whole number from 2": ("--batch-size 1", "--chunk-size 1", "--embed-dim 0"),
    "whole number from 1 to 256": ("--width 0", "--width 1024"),
    "whole number from 0 to 2147483648": ("--seed -1", "--unseen-seed -1"),
    "is not a number from 1e-09 to 100": ("--lr 0", "--lr nan", "--lr inf", "--lr 1e300"),
    "number from 0 to 100": ("--muon-lr -1",),
    "number from 0 to 0.99999": ("--ema-decay 1",),
    "number from 0.01": ("--init-temperature 0",),
    "is below 0.1, the least with --captions attributes": ("--init-temperature 0.05",),
    "invalid choice": ("--captions long", "--loss triplet", "--image-encoder vit", "--text-encoder bert"),
    "invalid choice.*speed": ("--preset fast",),
    "invalid choice.*bf16": ("--precision fp8",),
    "unrecognized": ("--epoch 3", "--elastic 0.5"),
    "expected one argument": ("--epochs",),
    "x/x/x/.*": [f"{name} {'x/' * 2500}" for name in ("--epochs", "--loss", "--run-name", "--unknown")],
    # without effect together
    "is for --captions attributes": (
        "--captions digit --unseen-seed 1",
        "--captions digit --part-weight 0.5",
        "--captions scenes --part-weight 0.5",
        "--preset speed --unseen-seed 0",
    ),
    "does not read the images of": ("--captions scenes --image-encoder fast", "--image-encoder scene"),
    "add --data FOLDER": ("--captions own", "--preset own", "--image-size 32"),
    "leave out --captions": ("--data x --captions digit", "--data x --data-path y"),
    "invalid choice: 2": ("--data x --channels 2",),
    "--data has settings of its own": ("--data x --preset speed",),
    "add --text-encoder plus": ("--freeze-text", "--text-model bert"),
    "changes no image": ("--preset speed --augment elastic", "--epochs 2 --augment affine"),
    "larger than --batch-size 64": ("--batch-size 64 --chunk-size 65",),
    "two images at a time": ("--batch-size 257 --chunk-size 64",),
    "leave out --preset and --run-name": ("--resume --preset speed", "--resume --run-name x"),
}


@pytest.mark.parametrize(("flags", "message"), [(one, message) for message, flags in WRONG.items() for one in flags])
def test_a_wrong_flag_is_one_short_sentence(flags, message):
    with pytest.raises(InputError, match=message) as error:
        parse(flags)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("name", ["--runs-dir", "--data-path", "--text-model", "--resume", "--device"])
@pytest.mark.parametrize(("value", "message"), [("", "it is empty"), ("  ", "it is empty"), ("a\udcff", "no UTF-8")])
def test_an_empty_text_or_one_with_a_broken_byte_is_refused(name, value, message):
    with pytest.raises(InputError, match=f"{name}: .*{message}") as error:
        parse([name, value])
    str(error.value).encode()  # it can be printed


BAD_NAMES = ["../up", "a/b", "a\\b", "", " ", ".", "..", "x" * 82, "\udcff", "a\nb", "a\0b", "ends ", "a:b"]
RESERVED_NAMES = ["best_model.pth", "generator", "strokes", "speech", "readme.md", "Generator", "README.md"]


@pytest.mark.parametrize("name", BAD_NAMES + RESERVED_NAMES)
def test_a_run_name_that_is_no_plain_folder_name_or_reserved_is_refused(name):
    with pytest.raises(InputError, match=r"is no name of a new folder|no UTF-8|it is empty") as error:
        parse(["--run-name", name])
    str(error.value).encode()
    assert len(str(error.value)) < 200


@pytest.mark.parametrize("name", ["run", "2026-01-01_12", "ärger", "数字", "x" * 81, "v1.2"])
def test_plain_run_names_are_taken(name):
    assert parse(["--run-name", name])[0].run_name == name


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_change_defaults(preset):
    data = {"data": "folder"} if preset == "own" else {}
    given = "".join(f" --{name} {value}" for name, value in data.items())
    settings, overrides = parse(f"--preset {preset}{given}")
    assert settings == Settings(**PRESETS[preset] | data)
    assert overrides == data, "only what the user gave"
    flags = " ".join(f"{flag(name)} {value}" for name, value in PRESETS[preset].items())
    assert parse(flags + given)[0] == settings, "a preset is flags, within their bounds"


def test_flags_win_over_presets():
    settings, overrides = parse("--preset speed --epochs 3")
    assert (settings.epochs, settings.batch_size, settings.augment) == (3, 384, "none")
    assert overrides == {"epochs": 3}


def test_help_shows_every_flag_with_its_default_and_what_presets_set(capsys):
    with pytest.raises(SystemExit) as end:
        parse("--help")
    assert end.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for name, one in FIELDS.items():
        assert f"{flag(name)} " in text
        assert one.default is False or f"(default: {one.default})" in text, name
        assert one.metadata["help"] in text, name
    for preset, changes in PRESETS.items():
        shown = text.split("what each preset sets:")[1].split(f" {preset} ", 1)[1]
        for name, value in changes.items():
            assert f"{flag(name)} {value}" in shown, (preset, name)


@pytest.mark.parametrize("record", [None, [], {}, {"epochs": 3}, asdict(Settings()) | {"elastic": 0.5}])
def test_a_record_of_another_script_or_version_is_refused(record):
    with pytest.raises(InputError, match=r"last\.pth is a run of another training script or version"):
        resumed_settings(Settings, {}, record, Path("run"))


def test_a_resumed_run_keeps_its_own_settings():
    run = Path("runs") / "run"
    own = asdict(Settings(lr=0.5, epochs=9, runs_dir="elsewhere", run_name="other"))
    _, overrides = parse("--resume run --device cpu --data-path here --lr 0.5")
    again = resumed_settings(Settings, overrides, own, run)
    assert (again.lr, again.epochs, again.device, again.data_path) == (0.5, 9, "cpu", "here")
    assert (again.runs_dir, again.run_name, again.resume) == ("runs", "run", None)
    with pytest.raises(InputError, match=r"--lr 0.5\): leave out --lr"):
        resumed_settings(Settings, parse("--resume run --lr 0.003")[1], own, run)  # the default, but given


def test_only_a_run_with_a_language_model_is_resumed_with_another_path_of_it():
    _, overrides = parse("--resume run --text-model moved")
    with pytest.raises(InputError, match="has no language model: leave out --text-model"):
        resumed_settings(Settings, overrides, asdict(Settings()), Path("run"))
    again = resumed_settings(Settings, overrides, asdict(Settings(text_encoder="plus")), Path("run"))
    assert again.text_model == "moved"
