import json
import subprocess
import sys
from dataclasses import fields

import pytest

from conftest import ROOT
from image_encoder import IMAGE_ENCODERS
from losses import LOSSES
from my_utils import InputError
from training.settings import PRESETS, Settings, read_flags, resumed

FIELDS = {one.name: one for one in fields(Settings)}


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


# ---- flags ----


def test_without_flags_every_setting_has_its_default():
    settings, given = read_flags([])
    assert settings == Settings()
    assert given == {}


def test_flags_become_settings_of_their_type():
    flags = "--epochs 3 --lr 1e-2 --chunk-size 64 --augment none --loss infonce --run-name my-run --seed 2147483648"
    settings, given = read_flags(flags.split())
    expected = {"epochs": 3, "lr": 0.01, "chunk_size": 64, "augment": "none", "loss": "infonce"}
    expected |= {"run_name": "my-run", "seed": 2**31}
    assert given == expected
    assert settings == Settings(**expected)


BOUNDS = [
    (["--epochs", "0"], "whole number from 1"),
    (["--epochs", "-3"], "whole number from 1"),
    (["--epochs", "1.5"], "whole number from 1"),
    (["--epochs", "many"], "whole number from 1"),
    (["--epochs", "9" * 400], "whole number from 1"),
    (["--batch-size", "1"], "whole number from 2"),
    (["--chunk-size", "1"], "whole number from 2"),
    (["--embed-dim", "0"], "whole number from 2"),
    (["--width", "0"], "whole number from 1 to 256"),
    (["--width", "1024"], "whole number from 1 to 256"),
    (["--lr", "0"], "number above 0"),
    (["--lr", "nan"], "number above 0"),
    (["--lr", "inf"], "number above 0"),
    (["--muon-lr", "-1"], "number from 0"),
    (["--muon-momentum", "1"], "number from 0 to 0.999"),
    (["--ema-decay", "1"], "number from 0 to 0.99999"),
    (["--init-temperature", "0"], "number from 0.01"),
    (["--init-temperature", "0.05"], "is below 0.1, the least with --captions described"),
    (["--seed", "-1"], "whole number from 0 to 2147483648"),
    (["--unseen-seed", "-1"], "whole number from 0 to 2147483648"),
    (["--captions", "long"], "invalid choice"),
    (["--loss", "triplet"], "invalid choice"),
    (["--image-encoder", "vit"], "invalid choice"),
    (["--text-encoder", "bert"], "invalid choice"),
    (["--precision", "fp8"], "invalid choice"),
    (["--preset", "fast"], "invalid choice"),
    (["--epoch", "3"], "unrecognized"),
    (["--epochs"], "expected one argument"),
    (["--elastic", "0.5"], "unrecognized"),
]


@pytest.mark.parametrize(("flags", "message"), BOUNDS)
def test_a_flag_out_of_bounds_is_one_sentence(flags, message):
    with pytest.raises(InputError, match=message) as error:
        read_flags(flags)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--captions", "digit", "--unseen-seed", "1"], "leave it out, or add --captions described"),
        (["--preset", "speed", "--unseen-seed", "0"], "leave it out, or add --captions described"),
        (["--captions", "described", "--loss", "infonce_distinct"], "add --captions digit"),
        (["--loss", "infonce_distinct"], "add --captions digit"),
        (["--freeze-text"], "add --text-encoder plus"),
        (["--text-model", "bert"], "add --text-encoder plus"),
        (["--muon-lr", "0", "--muon-momentum", "0.9"], "give --muon-lr too"),
        (["--preset", "speed", "--augment", "elastic"], "changes no image"),
        (["--augment", "corrupted"], "--augment corrupted is for --captions digit"),
        (["--epochs", "2", "--augment", "affine"], "changes no image"),
        (["--batch-size", "64", "--chunk-size", "65"], "larger than --batch-size 64"),
        (["--text-encoder", "plus", "--text-model", ""], "--text-model is empty"),
        (["--text-encoder", "plus", "--text-model", "  "], "--text-model is empty"),
        (["--resume", "--preset", "speed"], "leave out --preset"),
    ],
)
def test_flags_without_effect_together_are_refused(flags, message):
    with pytest.raises(InputError, match=message):
        read_flags(flags)


@pytest.mark.parametrize(
    "name", ["../up", "a/b", "a\\b", "", " ", ".", "..", "x" * 300, "\udcff", "a\nb", "a\0b", "ends ", "a:b", "é" * 150]
)
def test_a_run_name_that_is_no_plain_folder_name_is_refused(name):
    with pytest.raises(InputError, match=r"plain folder name|no UTF-8") as error:
        read_flags(["--run-name", name])
    str(error.value).encode()  # it can be printed
    assert len(str(error.value)) < 600


@pytest.mark.parametrize("name", ["run", "2026-01-01_12", "ärger", "a b", "x" * 200, "v1.2"])
def test_plain_run_names_are_taken(name):
    assert read_flags(["--run-name", name])[0].run_name == name


def test_resume_stands_with_and_without_a_name():
    assert read_flags(["--resume"])[0].resume == "newest"
    assert read_flags(["--resume", "my-run"])[0].resume == "my-run"
    assert read_flags([])[0].resume is None


def test_choices_are_what_there_is():
    assert FIELDS["loss"].metadata["choices"] == tuple(LOSSES)
    assert FIELDS["image_encoder"].metadata["choices"] == tuple(IMAGE_ENCODERS)


def test_there_are_few_flags():
    assert len(FIELDS) + 1 <= 26, "with --preset"


# ---- presets ----


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_change_defaults(preset):
    settings, given = read_flags(["--preset", preset])
    assert settings == Settings(**PRESETS[preset])
    assert given == {}, "only what a person gave"
    flags = [f"{flag(k)}={v}" if v is not True else flag(k) for k, v in PRESETS[preset].items()]
    assert read_flags(flags)[0] == settings, "a preset is flags, within their bounds"


def test_flags_win_over_presets():
    settings, given = read_flags(["--preset", "speed", "--epochs", "3"])
    assert (settings.epochs, settings.batch_size, settings.augment) == (3, 384, "none")
    assert given == {"epochs": 3}


def test_help_tells_every_flag_its_default_and_what_presets_set(capsys):
    with pytest.raises(SystemExit) as end:
        read_flags(["--help"])
    assert end.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for name, one in FIELDS.items():
        assert f"{flag(name)} " in text
        if one.type != "bool" and one.default is not False:
            assert f"(default: {one.default})" in text, name
        assert one.metadata["help"] in text, name
    for preset, changes in PRESETS.items():
        told = text.split(f" {preset} ")[-1]
        for name, value in changes.items():
            assert flag(name) + ("" if value is True else f" {value}") in told, (preset, name)


# ---- records ----


def test_a_record_gives_the_settings_back():
    settings, _ = read_flags(["--preset", "speed", "--chunk-size", "64", "--run-name", "run", "--lr", "1"])
    record = json.loads(json.dumps(settings.record()))
    assert Settings.from_record(record, "last.pth") == settings


@pytest.mark.parametrize(
    "changes",
    [
        {"loss": "triplet"},
        {"loss": None},
        {"loss": ["infonce"]},
        {"epochs": 0},
        {"epochs": "3"},
        {"epochs": 3.0},
        {"epochs": True},
        {"epochs": None},
        {"lr": 0.0},
        {"lr": float("nan")},
        {"lr": float("inf")},
        {"width": 1024},
        {"seed": -1},
        {"augment": "wild"},
        {"freeze_text": None},
        {"chunk_size": 1},
        {"chunk_size": 64.0},
        {"image_encoder": "vit"},
        {"captions": "long"},
        {"unseen_seed": None},
        {"run_name": 3},
    ],
)
def test_a_record_with_what_no_flag_would_take_is_refused(changes):
    with pytest.raises(InputError, match=r"last\.pth holds"):
        Settings.from_record(Settings().record() | changes, "last.pth")


@pytest.mark.parametrize("record", [None, [], {}, {"epochs": 3}, Settings().record() | {"elastic": 0.5}])
def test_a_record_of_another_version_is_refused(record):
    with pytest.raises(InputError, match="another version"):
        Settings.from_record(record, "last.pth")


def test_a_resumed_run_keeps_its_own_settings(tmp_path):
    run = tmp_path / "runs" / "run"
    own = Settings(lr=0.5, epochs=9, runs_dir="elsewhere", run_name="other").record()
    _, given = read_flags(["--resume", "run", "--device", "cpu", "--data-path", "here", "--lr", "0.5"])
    again = resumed(Settings, given, own, run)
    assert (again.lr, again.epochs, again.device, again.data_path) == (0.5, 9, "cpu", "here")
    assert (again.runs_dir, again.run_name, again.resume) == (str(run.parent), "run", None)
    with pytest.raises(InputError, match=r"--lr 0.5\): leave out --lr"):
        resumed(Settings, read_flags(["--resume", "run", "--lr", "0.003"])[1], own, run)  # the default, but given


# ---- imports ----


def test_a_flag_is_refused_without_waiting_for_torch():
    code = "import training.settings, my_utils, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
