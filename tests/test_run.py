"""A run's folder: its lock, its files, how it is interrupted, resumed and published."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import children
import pytest
import torch
from filelock import FileLock
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from clip import CLIP
from conftest import ROOT, TINY, run_train, start_train, tensors, train_here, wait_for
from my_utils import TEMPORARY, InputError, exit_on_error
from training import run as run_module
from training.run import Run, locked
from training.settings import Settings
from training.step import TrainingStep

FLAGS = [*TINY, "--batch-size", 100, "--augment", "affine", "--ema-decay", 0.9]  # an epoch of 20 steps


def train_child(flags, output: Path, **options) -> int:
    """Train in a process of its own, on 2,000 images. Returns the exit code."""
    child = children.start(children.train, list(flags), *options.values(), output=output)
    return children.exit_codes([child])[0]


def assert_same_result(run: Path, other: Path) -> None:
    """All weights, moments and averages are equal, and all metrics but the seconds."""
    for file in ("last.pth", "best_model.pth"):
        a, b = (torch.load(folder / file, weights_only=True) for folder in (run, other))
        key = "parts" if file == "last.pth" else "state_dict"
        assert len(tensors(a[key])) > 10
        assert all(torch.equal(x, y) for x, y in zip(tensors(a[key]), tensors(b[key]), strict=True)), file
    first, second = (json.loads((folder / "metrics.json").read_text()) for folder in (run, other))
    for record in (first, second, *first["history"], *second["history"]):
        for name in ("seconds", "train_seconds", "run", "date"):
            record.pop(name, None)
    assert first == second


@pytest.fixture(scope="module")
def whole(data_path, tmp_path_factory) -> Path:
    """The folder of a run that is never interrupted."""
    runs = tmp_path_factory.mktemp("whole")
    assert train_child([*FLAGS, "--runs-dir", runs, "--run-name", "run"], runs / "out") == 0
    return runs / "run"


# ---- interrupted and resumed ----


@pytest.mark.parametrize(
    ("moment", "by", "code"),
    [
        ("step 30", signal.SIGINT, 130),
        ("best_model.pth.tmp 2", signal.SIGINT, 130),
        ("last.pth.tmp 2", signal.SIGTERM, -15),
        ("best_model.pth.tmp 2", signal.SIGKILL, -9),
        ("last.pth 2", signal.SIGKILL, -9),  # the best model is saved, the state is not
        ("last.pth.tmp 3", signal.SIGKILL, -9),
        ("best_model.pth.tmp 4", signal.SIGKILL, -9),  # the results of the test split are being added
        ("metrics.json.tmp 1", signal.SIGKILL, -9),
    ],
)
def test_a_run_that_was_interrupted_ends_with_the_same_bits(moment, by, code, whole, tmp_path):
    run = tmp_path / "run"
    flags = [*FLAGS, "--runs-dir", tmp_path, "--run-name", "run"]
    assert train_child(flags, tmp_path / "out", moment=moment, by=by) == code
    assert not (run / "metrics.json").exists()
    if code == 130:
        errors = (tmp_path / "out.stderr").read_text()
        assert re.search(rf"interrupted; resume with: \S+ train\.py --resume {run}\n$", errors)
    else:
        assert (tmp_path / "out.stderr").read_text() == ""
    assert train_child(["--resume", "--runs-dir", tmp_path], tmp_path / "again") == 0
    assert_same_result(run, whole)
    assert not list(run.glob(f"{TEMPORARY}*"))
    for name, steps in scalars(whole).items():
        assert scalars(run)[name] == steps, "TensorBoard has every point once"


def scalars(run: Path) -> dict[str, list[int]]:
    """The steps of each curve in TensorBoard."""
    events = EventAccumulator(str(run))
    events.Reload()
    return {name: [event.step for event in events.Scalars(name)] for name in events.Tags()["scalars"]}


@pytest.mark.parametrize(
    ("moment", "by", "message"),
    [
        ("step 5", signal.SIGINT, "no epoch was finished yet"),
        ("best_model.pth 1", signal.SIGKILL, ""),
        ("last.pth 1", signal.SIGINT, "no epoch was finished yet"),
        ("last.pth.tmp 1", signal.SIGKILL, ""),
    ],
)
def test_a_folder_without_a_saved_epoch_is_used_again(moment, by, message, whole, tmp_path):
    flags = [*FLAGS, "--runs-dir", tmp_path, "--run-name", "run"]
    assert train_child(flags, tmp_path / "out", moment=moment, by=by) in (130, -9)
    assert message in (tmp_path / "out.stderr").read_text()
    with pytest.raises(InputError, match="no unfinished run"):
        train_here("--resume", "--runs-dir", tmp_path)
    assert train_child(flags, tmp_path / "again") == 0
    assert_same_result(tmp_path / "run", whole)


def test_ctrl_c_prints_the_command_that_resumes_the_run(tmp_path, data_path):
    """As a user types it, with a space and letters that not every terminal can print; the second time without stderr."""
    runs = tmp_path / "my runs"
    run = runs / "数字"
    job = start_train(*TINY, "--batch-size", 512, "--runs-dir", runs, "--run-name", "数字")
    wait_for((run / "last.pth").exists, job)
    job.send_signal(signal.SIGINT)
    _, errors = job.communicate(timeout=60)
    assert job.returncode == 130
    assert errors.count("\n") == 2  # one empty
    command = errors.strip().removeprefix("interrupted; resume with: ")
    assert not (runs / "best_model.pth").exists(), "only a finished run is published"

    ascii_only = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(f"{command} 2>&-", shell=True, cwd=ROOT, env=ascii_only, capture_output=True, text=True)
    assert done.returncode == 0
    assert "my runs/\\u6570\\u5b57: CLIP of" in done.stdout
    assert CLIP.load(runs / "best_model.pth").metrics["run"] == "数字"
    curves = re.search("make tensorboard .*", done.stdout)[0].replace("make", "make --dry-run", 1)
    shown = subprocess.run(curves, shell=True, cwd=ROOT, capture_output=True, text=True).stdout
    assert shlex.split(shown.splitlines()[-1])[-1] == str(runs)


@pytest.mark.parametrize(("shell", "code"), [("{} | head -1; exit ${{PIPESTATUS[0]}}", 1), ("{} >&- 2>&-", 0)])
def test_output_that_nobody_reads_is_no_error(shell, code):
    script = "from my_utils import exit_on_error\nwith exit_on_error():\n    for i in range(100_000): print(i, '七')"
    command = shell.format(f"{shlex.quote(sys.executable)} -c {shlex.quote(script)}")
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (code, "")


# ---- the folder ----


def interrupted(tmp_path: Path, monkeypatch, flags=FLAGS) -> Path:
    """A run that was interrupted in its second epoch."""
    call, steps = TrainingStep.__call__, []

    def step(*arguments):
        steps.append(1)
        if len(steps) == 60:  # of 55 in an epoch
            os.kill(os.getpid(), signal.SIGINT)
        return call(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingStep, "__call__", step)
        assert train_here(*flags, "--runs-dir", tmp_path, "--run-name", "run").returncode == 130
    return tmp_path / "run"


def test_files_of_others_stay(tmp_path, small_mnist, monkeypatch):
    (tmp_path / "run").mkdir()
    others = [tmp_path / ".notes.tmp", tmp_path / ".best_model.pth.lock"]
    for file in others:
        file.write_text("mine")
        os.utime(file, (0, 0))
    run = interrupted(tmp_path, monkeypatch)
    others.append(run / ".last.pth.1.tmp")
    others[-1].write_text("mine")
    (run / f"{TEMPORARY}last.pth.1").write_bytes(b"what a killed process leaves")
    assert train_here("--resume", "--runs-dir", tmp_path).returncode == 0
    assert [file.read_text() for file in others] == ["mine"] * 3
    assert not list(run.glob(f"{TEMPORARY}*"))


def test_a_name_that_is_taken_is_refused_with_advice_that_fits(trained, tmp_path, small_mnist, monkeypatch):
    def advice(folder: Path) -> str:
        before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        with pytest.raises(InputError, match="is there already: choose another --run-name") as error:
            train_here("--runs-dir", folder.parent, "--run-name", folder.name)
        assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before
        return str(error.value)

    unfinished = interrupted(tmp_path, monkeypatch)
    assert advice(unfinished).endswith(
        f", or resume that run with {Run(unfinished, None, ['train.py']).resume_command()}"
    )
    (unfinished / "diverged.txt").touch()
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "best_model.pth").write_bytes(b"of somebody")
    for folder in (trained.run, unfinished, tmp_path / "own"):
        assert "resume" not in advice(folder)
    with pytest.raises(InputError, match="short is finished, nothing is left to resume: start a new run"):
        train_here("--resume", trained.run)
    with pytest.raises(InputError, match="run diverged, nothing is left to resume: start a new run"):
        train_here("--resume", unfinished)


def test_no_two_processes_train_in_one_folder(tmp_path, small_mnist, monkeypatch):
    run = interrupted(tmp_path, monkeypatch)
    with FileLock(run / ".lock"):
        with pytest.raises(InputError, match="no unfinished run"):
            train_here("--resume", "--runs-dir", tmp_path)
        with pytest.raises(InputError, match=r"another process is training in .*run: wait for it, or start a new run"):
            train_here("--resume", run)
    (tmp_path / "new").mkdir()
    with FileLock(tmp_path / "new" / ".lock"), pytest.raises(InputError, match="another process is training"):
        train_here(*FLAGS, "--runs-dir", tmp_path, "--run-name", "new")


def test_resume_names_what_it_cannot_use(tmp_path, small_mnist, monkeypatch):
    run = interrupted(tmp_path, monkeypatch)
    state = torch.load(run / "last.pth", weights_only=True)

    def refused(content, message):
        content = content if isinstance(content, bytes) else torch.save(content, run / "last.pth") or b""
        if content:
            (run / "last.pth").write_bytes(content)
        with pytest.raises(InputError, match=rf"last\.pth {message}") as error:
            train_here("--resume", run)
        assert "\n" not in str(error.value)

    with pytest.raises(InputError, match=r"--lr 0.01\): leave out --lr"):
        train_here("--resume", run, "--lr", "0.003")
    refused(state | {"parts": {}}, "fits another version of this program")
    refused(state | {"settings": {"epochs": 3}}, "is a run of another training script or version")
    refused(state | {"format": 1}, "was saved by another version")
    refused((run / "best_model.pth").read_bytes(), "is the checkpoint of a CLIP, not of a run")
    refused(b"no state", "is not a checkpoint, or is damaged")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--batch-size", "55001"], "larger than the 55,000 pairs"),
        (["--device", "tpu"], "device 'tpu' is not supported"),
        (["--device", "x" * 5000], r"device 'x{50,100}\.\.\. is not supported"),
        (["--device", "mps"], "not supported"),
        (["--device", "cpu:3"], "not supported"),
        (["--device", "cuda:99"], "device cuda:99 is not on this machine.*: use --device cpu, or auto"),
        (["--resume", "nowhere"], "nothing to resume in nowhere"),
        (["--resume"], "no unfinished run"),
    ],
)
def test_flags_that_only_training_can_judge_are_one_sentence(flags, message, tmp_path, data_path):
    with pytest.raises(InputError, match=message) as error:
        train_here("--data-path", data_path, "--runs-dir", tmp_path, *flags)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for CUDA where there is none")
def test_cuda_without_a_gpu_is_refused(tmp_path):
    done = run_train("--device", "cuda", "--runs-dir", tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: device cuda is not on this machine: use --device cpu, or auto\n"


def test_a_runs_folder_that_cannot_be_written(tmp_path, read_only):
    for folder in (read_only(tmp_path / "file"), tmp_path / "file", tmp_path / ("y" * 6000)):
        with pytest.raises(InputError, match=r"cannot make the folder .{10,170}; choose another --runs-dir"):
            train_here(*FLAGS, "--runs-dir", folder)


# ---- the end of a run ----


def test_a_full_disk_at_the_end_is_one_sentence_and_resume_finishes_the_run(tmp_path, small_mnist, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device", "events")

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as end, exit_on_error():
        patch.setattr("train.log_end", full)
        train_here(*FLAGS, "--epochs", 1, "--augment", "none", "--runs-dir", tmp_path)
    assert end.value.code == 2
    assert capsys.readouterr().err == "error: cannot read or write events: No space left on device\n"
    assert not (tmp_path / "best_model.pth").exists()
    assert train_here("--resume", "--runs-dir", tmp_path).returncode == 0
    assert (tmp_path / "best_model.pth").exists()


def test_a_published_file_that_another_process_holds_is_named_and_nothing_is_lost(tmp_path, small_mnist, monkeypatch):
    flags = [*FLAGS, "--epochs", 1, "--augment", "none", "--runs-dir", tmp_path, "--run-name", "run"]
    monkeypatch.setattr(run_module, "LOCK_NOTE", 0.1)
    monkeypatch.setattr(run_module, "LOCK_TIMEOUT", 0.2)
    lock = FileLock(tmp_path / f"{TEMPORARY}best_model.pth.lock")
    with lock, pytest.raises(InputError, match=r"another process keeps .*best_model\.pth locked .*then resume"):
        train_here(*flags)
    assert train_here("--resume", "run", "--runs-dir", tmp_path).returncode == 0
    assert (tmp_path / "best_model.pth").exists()


def test_waiting_for_a_file_is_told_after_seconds(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run_module, "LOCK_NOTE", 0.01)
    file = tmp_path / "best_model.pth"
    lock = FileLock(tmp_path / f"{TEMPORARY}best_model.pth.lock").acquire().lock

    def told() -> bool:
        return "waiting for another process that holds" in capsys.readouterr().err

    monkeypatch.setattr("builtins.print", lambda *a, p=print, **k: (p(*a, **k), lock.release()))
    with locked(file):
        assert told()
    with locked(file):
        assert not told()


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, small_mnist):
    flags = [*TINY, "--lr", 100, "--muon-lr", 100, "--runs-dir", tmp_path, "--run-name", "run"]
    done = train_here(*flags)
    assert done.returncode == 1
    assert re.search(r"error: training diverged at epoch 1, step .* with a lower learning rate\n$", done.stderr)
    assert (tmp_path / "run" / "diverged.txt").read_text() in done.stderr
    assert not (tmp_path / "best_model.pth").exists()
    with pytest.raises(InputError, match="no unfinished run"):
        train_here("--resume", "--runs-dir", tmp_path)


def publish(folder: Path, accuracy: float, **arch) -> str:
    """The note when a run in this folder publishes a model with this accuracy."""
    model = CLIP(embed_dim=4, width=2, **arch)
    model.metrics = {"val_digit_accuracy": accuracy, "run": folder.name}
    folder.mkdir()
    model.save(folder / "best_model.pth")
    return Run(folder, Settings(), ["train.py"]).publish("CLIP", "val_digit_accuracy")


def test_a_better_model_that_is_replaced_is_noted(tmp_path):
    runs = tmp_path / "my runs"
    runs.mkdir()
    assert publish(runs / "first", 0.9) == ""
    assert publish(runs / "better", 0.95) == ""
    note = publish(runs / "worse", 0.92)
    assert "better on validation (95.00%)" in note
    assert shlex.split(note.split("go back: ")[1]) == [
        "cp",
        str(runs / "better" / "best_model.pth"),
        str(runs / "best_model.pth"),
    ]
    assert CLIP.load(runs / "best_model.pth").metrics["run"] == "worse", "the newest finished run's"
    (runs / "best_model.pth").write_bytes(b"of another program")
    assert publish(runs / "last", 0.5) == ""


def test_towers_that_are_replaced_are_noted(tmp_path):
    publish(tmp_path / "first", 0.9, modalities=["speech"])
    assert "towers for speech" in publish(tmp_path / "second", 0.95)
