"""A run's folder: its lock and its files, and how it is interrupted, resumed, ended and published."""

import gc
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import children
import pytest
import torch
from filelock import FileLock

from clip import CLIP
from conftest import ROOT, TINY, curves, metrics_of, tensors, train_here
from my_utils import TEMPORARY, InputError, exit_on_error, save_checkpoint
from training import run as run_module
from training.run import Run, locked
from training.settings import Settings

FLAGS = [*TINY, "--batch-size", 100, "--augment", "affine", "--ema-decay", 0.9]  # an epoch of 20 steps


def train_child(runs_dir: Path, *flags, **signal_) -> int:
    """Train in a process of its own (children.py). Returns the exit code; it writes out.stdout and out.stderr."""
    flags = [*flags, "--runs-dir", runs_dir]
    return children.exit_codes([children.start(children.train, flags, *signal_.values(), output=runs_dir / "out")])[0]


def assert_same_result(run: Path, other: Path) -> None:
    """All weights, moments and averages are equal, and all metrics but the seconds."""
    for file, key in (("last.pth", "parts"), ("best_model.pth", "state_dict")):
        a, b = (tensors(torch.load(folder / file, weights_only=True)[key]) for folder in (run, other))
        assert len(a) > 10
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True)), file
    first, second = map(metrics_of, (run, other))
    for record in (first, second, *first["history"], *second["history"]):
        for name in ("seconds", "train_seconds", "date"):
            record.pop(name, None)
    assert first == second


@pytest.fixture(scope="module")
def whole(data_path, tmp_path_factory) -> Path:
    """The folder of a run that is never interrupted."""
    runs = tmp_path_factory.mktemp("whole")
    assert train_child(runs, *FLAGS, "--run-name", "run") == 0
    return runs / "run"


@pytest.fixture(scope="module")
def interrupted(data_path, tmp_path_factory) -> Path:
    """The folder of a run that got Ctrl-C in its second epoch."""
    runs = tmp_path_factory.mktemp("interrupted")
    assert train_child(runs, *FLAGS, "--run-name", "run", moment="step 30", number=signal.SIGINT) == 130
    return runs / "run"


@pytest.fixture
def unfinished(interrupted, tmp_path) -> Path:
    return Path(shutil.copytree(interrupted, tmp_path / "run"))


@pytest.mark.parametrize(
    ("moment", "number", "code"),
    [
        ("step 5", signal.SIGINT, 130),  # in the first epoch
        ("step 30", signal.SIGINT, 130),
        ("best_model.pth.tmp 2", signal.SIGINT, 130),
        ("last.pth.tmp 2", signal.SIGTERM, -15),
        ("last.pth 2", signal.SIGKILL, -9),  # the best model is saved, the state is not
        ("best_model.pth.tmp 4", signal.SIGKILL, -9),  # it gets the results on the test split
        ("metrics.json.tmp 1", signal.SIGKILL, -9),
    ],
)
def test_a_run_that_was_interrupted_ends_with_the_same_bits(moment, number, code, whole, tmp_path):
    run = tmp_path / "run"
    assert train_child(tmp_path, *FLAGS, "--run-name", "run", moment=moment, number=number) == code
    assert not (run / "metrics.json").exists()
    errors = (tmp_path / "out.stderr").read_text()
    resume = rf"\ninterrupted; resume with: \S+ train\.py --resume {run}\n" if number == signal.SIGINT else ""
    assert re.fullmatch(resume, errors)
    others = [tmp_path / ".notes.tmp", tmp_path / ".best_model.pth.lock", run / ".last.pth.1.tmp"]
    for file in others:
        file.write_text("mine")
        os.utime(file, (0, 0))
    assert train_child(tmp_path, "--resume") == 0
    assert [file.read_text() for file in others] == ["mine"] * 3, "the files of others stay"
    assert_same_result(run, whole)
    assert not list(run.glob(f"{TEMPORARY}*"))
    assert curves(run) == curves(whole), "each point once"


def test_ctrl_c_prints_the_command_that_resumes_the_run(tmp_path, data_path):
    """In a shell, with a space in the path and a name that ASCII lacks; when it is resumed, stderr is closed."""
    runs = tmp_path / "my runs"
    runs.mkdir()
    flags = [*TINY, "--epochs", 2, "--batch-size", 1000, "--augment", "none", "--run-name", "数字"]
    assert train_child(runs, *flags, moment="step 3", number=signal.SIGINT) == 130
    command = (runs / "out.stderr").read_text().strip().removeprefix("interrupted; resume with: ")
    assert not (runs / "best_model.pth").exists(), "only a finished run is published"

    ascii_only = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(f"{command} 2>&-", shell=True, cwd=ROOT, env=ascii_only, capture_output=True, text=True)
    assert done.returncode == 0
    assert "my runs/\\u6570\\u5b57: CLIP of" in done.stdout
    assert CLIP.load(runs / "best_model.pth").metrics["run"] == "数字"
    make = re.search("make tensorboard .*", done.stdout)[0].replace("make", "make --dry-run", 1)
    shown = subprocess.run(make, shell=True, cwd=ROOT, capture_output=True, text=True).stdout
    assert any(shlex.split(line)[-1] == str(runs) for line in shown.splitlines() if "--logdir" in line)


def test_output_that_nobody_reads_is_no_error(monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)  # as `head -1` does
    with os.fdopen(writer, "w") as broken:
        monkeypatch.setattr(sys, "stdout", broken)
        with pytest.raises(SystemExit, match="1"), exit_on_error():
            print("a line")
    for name in ("stdout", "stderr"):  # closed
        monkeypatch.setattr(sys, name, None)
    with exit_on_error():
        print("a line")


# ---- the folder ----


def test_a_name_that_is_taken_is_refused_with_advice_that_fits(whole, unfinished, tmp_path):
    def advice(folder: Path) -> str:
        before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        with pytest.raises(InputError, match="is there already: choose another --run-name") as error:
            train_here("--runs-dir", folder.parent, "--run-name", folder.name)
        assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before
        return str(error.value)

    assert advice(unfinished).endswith(f" train.py --resume {unfinished}")
    own = tmp_path / "taken"
    own.mkdir()
    (own / "best_model.pth").write_bytes(b"the user's")
    assert not any("resume" in advice(folder) for folder in (whole, own))
    with pytest.raises(InputError, match="run is finished, nothing is left to resume: start a new run"):
        train_here("--resume", whole)


def test_no_two_processes_train_in_one_folder(unfinished, tmp_path):
    (tmp_path / "new").mkdir()
    busy = r"another process is training in .*: wait for it, or start a new run"
    with FileLock(unfinished / ".lock"), FileLock(tmp_path / "new" / ".lock"):
        for flags, message in (
            (["--resume"], "no unfinished run"),
            (["--resume", "run"], busy),
            (["--run-name", "new"], busy),
        ):
            with pytest.raises(InputError, match=message):
                train_here(*flags, "--runs-dir", tmp_path)


def test_what_a_run_leaves_that_is_killed_before_its_first_save_is_in_nobodys_way(tmp_path):
    settings = Settings(runs_dir=str(tmp_path), run_name="new")
    (tmp_path / "new").mkdir()
    for name in (".lock", ".minist-clip-last.pth.1"):
        (tmp_path / "new" / name).touch()
    assert Run.open(settings, {}, label="", program=[]).folder == tmp_path / "new"
    (tmp_path / "new" / "config.json").touch()
    with pytest.raises(InputError, match="new is there already"):
        Run.open(settings, {}, label="", program=[])


def test_resume_says_what_it_cannot_use(unfinished):
    def message(*flags) -> str:
        gc.collect()  # the lock of the run before
        with pytest.raises(InputError) as error:
            train_here("--resume", unfinished, *flags)
        return str(error.value)

    assert "takes the run's own settings (--lr 0.01): leave out --lr" in message("--lr", "0.003")
    last = unfinished / "last.pth"
    state = torch.load(last, weights_only=True)
    for changes, expected in (
        ({"parts": {}}, "fits another version of this program"),
        ({"kind": "CLIP"}, "is the checkpoint of a CLIP, not of a run"),
    ):
        torch.save(state | changes, last)
        assert message().startswith(f"{last} {expected}")
    last.write_bytes(b"no state")
    assert message().startswith(f"{last} is not a checkpoint, or is damaged")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--batch-size 55001", "larger than the 55,000 pairs"),
        ("--device tpu", "device 'tpu' is not supported"),
        ("--device " + "x" * 5000, r"device 'x{50,100}\.\.\. is not supported"),
        ("--device mps", "not supported"),
        ("--device cpu:3", "not supported"),
        ("--device cuda:99", "cuda:99 is not on this machine, or this PyTorch cannot use it: use --device cpu"),
        ("--resume nowhere", "nothing to resume in nowhere"),
        ("--resume", "no unfinished run"),
    ],
)
def test_flags_that_only_training_can_judge_are_one_sentence(flags, message, tmp_path, data_path):
    with pytest.raises(InputError, match=message) as error:
        train_here("--data-path", data_path, "--runs-dir", tmp_path, *flags.split())
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


def test_a_wrong_flag_is_one_line_and_exit_code_2(tmp_path):
    assert train_child(tmp_path, "--epochs", 0) == 2
    message = "argument --epochs: '0' is not a whole number from 1 to 100000 (see --help)"
    assert (tmp_path / "out.stderr").read_text() == f"error: {message}\n"
    assert (tmp_path / "out.stdout").read_text() == ""


def test_a_runs_folder_that_cannot_be_written(tmp_path, read_only):
    for folder in (read_only(tmp_path / "file"), tmp_path / "file", tmp_path / ("y" * 6000)):
        with pytest.raises(OSError, match=r"denied|Not a directory|File exists|too long"):
            train_here(*FLAGS, "--runs-dir", folder)


def test_a_run_does_not_publish_over_a_checkpoint_of_another_kind(tmp_path, small_mnist, capsys):
    save_checkpoint(tmp_path / "best_model.pth", "generator", {})
    before = (tmp_path / "best_model.pth").read_bytes()
    assert train_here(*TINY, "--epochs", 1, "--runs-dir", tmp_path, "--run-name", "run").returncode == 0
    assert (tmp_path / "best_model.pth").read_bytes() == before
    run = Run(tmp_path / "run", Settings(), ["train.py"])
    note = run.publish("CLIP", "val_digit_accuracy")
    assert re.search(r"is the checkpoint of a generator, not of a CLIP.* own model is .*run/best_model\.pth", note)


# ---- the end of a run ----


def test_a_full_disk_at_the_end_is_one_sentence_and_resume_finishes_the_run(tmp_path, small_mnist, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device", "events")

    flags = [*TINY, "--epochs", 1, "--runs-dir", tmp_path]
    with monkeypatch.context() as patch:
        patch.setattr("train.log_end", full)
        with pytest.raises(SystemExit) as end, exit_on_error():
            train_here(*flags)
    assert end.value.code == 2
    assert capsys.readouterr().err == "error: cannot read or write events: No space left on device\n"
    assert not (tmp_path / "best_model.pth").exists()
    assert train_here("--resume", "--runs-dir", tmp_path).returncode == 0
    assert (tmp_path / "best_model.pth").exists()


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, small_mnist):
    done = train_here(*TINY, "--lr", 100, "--muon-lr", 100, "--runs-dir", tmp_path, "--run-name", "run")
    assert done.returncode == 1
    assert re.search(r"error: training diverged at epoch 1, step .* with a lower learning rate\n$", done.stderr)
    assert not (tmp_path / "best_model.pth").exists()


def test_a_file_that_another_process_keeps_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "LOCK_TIMEOUT", 0.02)
    file = tmp_path / "best_model.pth"
    busy = pytest.raises(InputError, match=r"another process keeps .*best_model\.pth locked .*then resume")
    with FileLock(tmp_path / f"{TEMPORARY}best_model.pth.lock"), busy:
        locked(file).__enter__()
    with locked(file):
        pass


def test_what_is_lost_with_the_replaced_model_is_noted(tmp_path):
    runs = tmp_path / "my runs"

    def publish(name: str, accuracy: float, **arch) -> str:
        model = CLIP(embed_dim=4, width=2, **arch)
        model.metrics = {"val_digit_accuracy": accuracy, "run": name}
        (runs / name).mkdir(parents=True)
        model.save(runs / name / "best_model.pth")
        run = Run(runs / name, Settings(), ["train.py"])
        return run.publish("CLIP", "val_digit_accuracy")

    assert publish("first", 0.9) == ""
    assert publish("better", 0.95) == ""
    note = publish("worse", 0.92)
    assert "better on validation (95.00%)" in note
    back = ["cp", str(runs / "better" / "best_model.pth"), str(runs / "best_model.pth")]
    assert shlex.split(note.split("go back: ")[1]) == back
    assert CLIP.load(runs / "best_model.pth").metrics["run"] == "worse", "the latest finished run's"
    (runs / "best_model.pth").write_bytes(b"of another program")
    assert publish("with a tower", 0.5, modalities=["speech"]) == ""
    assert "towers for speech" in publish("last", 0.95)
