import gc
import json
import os
import re
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import my_utils
import train
from attributes import unseen_cells
from clip import CLIP
from conftest import ROOT, TINY, first_tenth, run_train, start_train, tensors, train_here, wait_for
from evaluation.metrics import evaluate
from my_dataset import MNISTPairs, load_mnist
from my_utils import InputError, cpu_threads, exit_on_input_error, read_early
from training import run as run_module
from training.run import Run, open_run
from training.settings import Settings, read_flags
from training.step import TrainingStep

# ---- the whole way on real MNIST ----


def test_a_short_run_learns_real_mnist(trained):
    assert trained.metrics["test_digit_accuracy"] > 0.975
    assert trained.metrics["val_digit_accuracy"] > 0.97
    assert trained.metrics["test_text_to_image_precision"] > 0.97
    assert f"{trained.metrics['test_digit_accuracy']:.2%}" in trained.output


def test_metrics_json_tells_what_was_run(trained):
    assert trained.metrics["epochs"] == 2
    assert trained.metrics["seed"] == 0
    assert trained.metrics["run"] == "short"
    assert trained.metrics["device"] == "cpu"
    assert trained.metrics["torch_version"] == torch.__version__
    assert trained.metrics["train_seconds"] > 0
    history = trained.metrics["history"]
    assert [record["epoch"] for record in history] == [1, 2]
    assert history[1]["loss"] < history[0]["loss"]
    assert 0 < history[1]["excess_loss"] < history[1]["loss"]
    assert json.loads((trained.run / "config.json").read_text())["width"] == 16


def test_the_checkpoint_alone_reaches_the_accuracy_it_states(trained, data_path):
    model = CLIP.load(trained.checkpoint)
    test = evaluate(model, load_mnist("test", data_path))
    assert test["digit_accuracy"] == pytest.approx(trained.metrics["test_digit_accuracy"], abs=2e-4)
    assert model.metrics["test_digit_accuracy"] == trained.metrics["test_digit_accuracy"]
    assert trained.checkpoint.read_bytes() == (trained.run / "best_model.pth").read_bytes()


def test_tensorboard_has_every_curve_and_picture(trained):
    events = EventAccumulator(str(trained.run))
    events.Reload()
    tags = events.Tags()
    expected = {f"step/{name}" for name in ("loss", "excess_loss", "lr", "temperature", "grad_norm")}
    expected |= {"epoch/images_per_second", "validation/digit_accuracy", "validation/text_to_image_precision"}
    assert expected <= set(tags["scalars"])
    assert tags["images"] == ["similarity"]
    assert len(events.Scalars("validation/digit_accuracy")) == 2
    assert "_hparams_/session_start_info" in events.summary_metadata
    assert "images and captions" in (trained.run / "projector_config.pbtxt").read_text()


@pytest.mark.parametrize("loss", ["infonce", "infonce_distinct", "sigmoid"])
def test_the_other_losses_train(loss, tmp_path, small_mnist):
    flags = [*TINY, "--loss", loss, "--batch-size", 100, "--augment", "none"]
    assert train_here(*flags, "--runs-dir", tmp_path, "--run-name", "run").returncode == 0
    history = json.loads((tmp_path / "run" / "metrics.json").read_text())["history"]
    assert history[-1]["val_digit_accuracy"] > 0.5
    assert history[-1]["excess_loss"] < history[0]["excess_loss"]
    model = CLIP.load(tmp_path / "best_model.pth")
    assert (model.logit_bias is not None) == (loss == "sigmoid")
    assert model.arch["loss"] == loss


# ---- captions that describe ----

DESCRIBED = [*TINY, "--captions", "described", "--unseen-seed", 5, "--width", 8, "--embed-dim", 16]
DESCRIBED += ["--ema-decay", 0.9]


@pytest.fixture(scope="module")
def described(data_path, tmp_path_factory) -> SimpleNamespace:
    """A short run on a tenth of MNIST with captions that describe."""
    runs = tmp_path_factory.mktemp("described")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("my_dataset.load_mnist", first_tenth)
        done = train_here(*DESCRIBED, "--runs-dir", runs, "--run-name", "run")
    assert done.returncode == 0, done.stderr
    metrics = json.loads((runs / "run" / "metrics.json").read_text())
    return SimpleNamespace(run=runs / "run", output=done.stdout, metrics=metrics)


def test_a_described_run_tells_seen_and_unseen_cells_apart(described, data_path):
    metrics, history = described.metrics, described.metrics["history"]
    assert history[-1]["excess_loss"] < history[0]["excess_loss"]
    for split in ("val", "test"):
        assert 0.05 < metrics[f"{split}_seen_accuracy"] < metrics[f"{split}_digit_accuracy"]  # one of ninety
        assert 0 < metrics[f"{split}_unseen_accuracy"] < metrics[f"{split}_seen_accuracy"]
    for name in ("seen", "unseen"):
        assert metrics[f"val_{name}_accuracy"] != metrics[f"test_{name}_accuracy"]
        assert f"{metrics[f'test_{name}_accuracy']:.2%}" in described.output
    best = max(range(3), key=lambda epoch: (history[epoch]["val_seen_accuracy"], epoch))
    assert metrics["best_epoch"] == best + 1, "unseen cells have no part in the choice"
    model = CLIP.load(described.run / "best_model.pth")
    assert (model.arch["captions"], model.arch["unseen_seed"]) == ("described", 5)
    assert torch.equal(model.unseen, unseen_cells(5))
    test = load_mnist("test", data_path)
    expected = evaluate(model, test)
    assert expected["unseen_accuracy"] == pytest.approx(metrics["test_unseen_accuracy"], abs=2e-4)
    model.unseen = unseen_cells(6)
    assert evaluate(model, test)["unseen_accuracy"] != expected["unseen_accuracy"], "other cells"
    events = EventAccumulator(str(described.run))
    events.Reload()
    for name in ("seen", "unseen"):
        assert len(events.Scalars(f"validation/{name}_accuracy")) == 3


def test_the_sigmoid_losss_bias_starts_at_the_rate_of_true_pairs(data_path):
    settings, _ = read_flags(["--loss", "sigmoid", "--width", "2"])
    pairs = MNISTPairs("val", data_path)
    torch.manual_seed(0)
    bias = train.build_model(settings, pairs).logit_bias.item()
    torch.manual_seed(0)
    true, undecided = next(pairs.epoch(settings.batch_size)).truth.decide()
    assert torch.tensor(bias).sigmoid() == pytest.approx((true.sum() / (~undecided).sum()).item())


# ---- interruptions ----


@pytest.mark.parametrize(("number", "captions"), [(signal.SIGINT, "digit"), (signal.SIGTERM, "described")])
def test_an_interrupted_step_is_kept(number, captions, tmp_path, small_mnist, described, monkeypatch):
    """In this process: a signal in the middle of an epoch, and the run goes on to the same bits."""
    flags = [*TINY, "--ema-decay", 0.9]
    if captions == "described":
        flags, whole = DESCRIBED, described.run
    else:
        whole = tmp_path / "whole"
        assert train_here(*flags, "--runs-dir", tmp_path, "--run-name", "whole").returncode == 0
    call, steps = TrainingStep.__call__, []

    def interrupted(self, *arguments):
        steps.append(1)
        if len(steps) == 30:  # an epoch has 21
            os.kill(os.getpid(), number)
        return call(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingStep, "__call__", interrupted)
        done = train_here(*flags, "--runs-dir", tmp_path, "--run-name", "cut")
    assert done.returncode == 130
    assert f"train.py --resume {tmp_path / 'cut'}" in done.stdout
    state = torch.load(tmp_path / "cut" / "last.pth", weights_only=True)
    assert (state["epoch"], state["step"]) == (1, 9)
    assert train_here("--resume", "cut", "--runs-dir", tmp_path).returncode == 0
    same_result(whole, tmp_path / "cut")


def same_result(one, other) -> None:
    expected, resumed = (tensors(torch.load(run / "last.pth", weights_only=True)["parts"]) for run in (one, other))
    assert len(expected) > 50, "weights, moments and averages"
    assert all(torch.equal(a, b) for a, b in zip(expected, resumed, strict=True))
    first, second = (json.loads((run / "metrics.json").read_text()) for run in (one, other))
    for record in (*first["history"], *second["history"]):
        del record["images_per_second"]
    assert first["history"] == second["history"]
    assert first["test_digit_accuracy"] == second["test_digit_accuracy"]


def test_ctrl_c_and_kill_do_not_change_a_bit_of_the_result(tmp_path, data_path):
    """As a person and a crash do it: `python train.py`, Ctrl-C, --resume, kill -9, --resume."""
    flags = (*TINY, "--batch-size", 512, "--ema-decay", 0.9)
    assert train_here(*flags, "--runs-dir", tmp_path / "a", "--run-name", "run").returncode == 0

    runs = tmp_path / "b"
    run = runs / "run"
    job = start_train(*flags, "--runs-dir", runs, "--run-name", "run")
    wait_for((run / "best_model.pth").exists, job)  # the end of the first epoch
    time.sleep(0.1)
    job.send_signal(signal.SIGINT)
    output, _ = job.communicate(timeout=60)
    assert job.returncode == 130
    assert f"train.py --resume {run}" in output
    assert not (runs / "best_model.pth").exists(), "only a finished run is published"
    (run / ".last.pth.1.tmp").write_bytes(b"what a killed process leaves")

    before = (run / "last.pth").stat().st_mtime_ns
    job = start_train("--resume", "--runs-dir", runs)
    wait_for(lambda: (run / "last.pth").stat().st_mtime_ns != before, job)
    job.kill()
    job.wait()

    # The last start goes on to the end, and tells all that it imports. Each of these takes up to seconds, for nothing.
    done = run_train("--resume", run, env=os.environ | {"PYTHONPROFILEIMPORTTIME": "1"})
    assert done.returncode == 0, done.stderr
    imported = set(re.findall(r"^import time: .* ([\w.]+)$", done.stderr, re.MULTILINE))
    assert {"torch", "tensorboard", "matplotlib.figure"} <= imported
    heavy = {"torch._dynamo", "torch._inductor", "sympy", "triton", "torchvision", "transformers", "sklearn", "scipy"}
    assert not heavy & imported
    same_result(tmp_path / "a" / "run", run)
    assert not list(run.glob(".*.tmp"))
    with pytest.raises(InputError, match="finished"):
        train_here("--resume", run)


def test_ctrl_c_in_the_first_moments_is_one_line(tmp_path):
    job = start_train("--runs-dir", tmp_path / "runs", start_new_session=True)
    time.sleep(0.6)  # Python has started; torch is being imported
    job.send_signal(signal.SIGINT)
    _, errors = job.communicate(timeout=60)
    assert job.returncode == 130
    assert errors.strip() == "interrupted: nothing was started yet"
    assert not (tmp_path / "runs").exists()


def test_a_full_disk_at_the_end_of_a_run_is_one_sentence_and_resume_finishes_it(tmp_path, small_mnist, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device", "events")

    flags = [*TINY, "--epochs", 1, "--runs-dir", tmp_path, "--run-name", "run"]
    with monkeypatch.context() as patch:
        patch.setattr("training.log.Log.end", full)
        with pytest.raises(OSError, match="No space left"):  # which the program's end turns into a sentence
            train_here(*flags)
    assert not (tmp_path / "best_model.pth").exists()
    assert train_here("--resume", "--runs-dir", tmp_path).returncode == 0
    assert (tmp_path / "best_model.pth").exists()


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, small_mnist):
    with pytest.raises(SystemExit, match=r"diverged at epoch 1, step .* with a lower learning rate"):
        train_here(*TINY, "--lr", 1e30, "--runs-dir", tmp_path, "--run-name", "run")
    assert not (tmp_path / "best_model.pth").exists()
    with pytest.raises(InputError, match="no unfinished run"):
        train_here("--resume", "--runs-dir", tmp_path)


# ---- bad input ----


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--batch-size", "55001"], "larger than the 55,000 pairs"),
        (["--captions", "digit", "--loss", "infonce_distinct"], "groups of 10: make --batch-size a multiple"),
        (["--device", "tpu"], "device"),
        (["--device", "mps"], "not supported"),
        (["--device", "cuda:99"], "not on this machine"),
        (["--device", "cpu:3"], "not supported"),
        (["--batch-size", "257", "--chunk-size", "64"], "two images at a time"),
        (["--resume", "nowhere"], "nothing to resume in nowhere"),
        (["--resume"], "no unfinished run"),
        (["--resume", "--preset", "speed"], "leave out --preset"),
        (["--resume", "--run-name", "x"], "leave out --preset and --run-name"),
        (["--data-path", "bad\udcffbyte"], "no UTF-8"),
    ],
)
def test_flags_that_only_training_can_judge_are_one_sentence(flags, message, tmp_path, data_path):
    with pytest.raises(InputError, match=message) as error:
        train_here("--data-path", data_path, "--runs-dir", tmp_path / "runs", *flags)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "runs").exists(), "nothing is left behind"


def test_a_wrong_flag_is_refused_before_torch_is_imported():
    code = "import sys; sys.argv = ['train.py', '--epochs', '0']; import runpy\n"
    code += "try: runpy.run_path('train.py', run_name='__main__')\n"
    code += "except SystemExit as end: print(end.code, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "2 False\n"
    assert done.stderr == "error: argument --epochs: '0' is not a whole number from 1 to 100000 (see --help)\n"


@pytest.mark.parametrize(("policy", "fast"), [("passive", 1), ("active", 2)])
def test_the_fast_encoder_trains_on_few_threads_and_the_other_on_all(tmp_path, small_mnist, monkeypatch, policy, fast):
    monkeypatch.setenv("OMP_WAIT_POLICY", policy)
    seen = []
    call = TrainingStep.__call__
    monkeypatch.setattr(TrainingStep, "__call__", lambda *a: seen.append(torch.get_num_threads()) or call(*a))
    for encoder in ("residual", "fast"):
        with cpu_threads():
            torch.set_num_threads(3)
            flags = [*TINY, "--epochs", 1, "--image-encoder", encoder, "--runs-dir", tmp_path, "--run-name", encoder]
            assert train_here(*flags).returncode == 0
            assert torch.get_num_threads() == 3, "what comes behind it in this process has its own threads"
    assert seen == [3] * 21 + [fast] * 21


def test_no_more_threads_than_there_are():
    with cpu_threads():
        torch.set_num_threads(1)
        with cpu_threads(2):
            assert torch.get_num_threads() == 1


WAITS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


@pytest.mark.parametrize(
    ("percent", "own", "then", "sleep"),
    [
        ([0, 0, 50, 0], {}, {"GOMP_SPINCOUNT": "300000"}, False),
        ([30, 0, 30, 0], {}, {"OMP_WAIT_POLICY": "passive"}, True),
        ([0, 0, 0, 100], {}, {"GOMP_SPINCOUNT": "300000"}, False),  # a core that this process may not use
        (PermissionError(), {}, {"OMP_WAIT_POLICY": "passive"}, True),
        ([0, 0, 0, 0], {"OMP_WAIT_POLICY": "PASSIVE"}, {"OMP_WAIT_POLICY": "PASSIVE"}, True),
        ([99, 0, 0, 0], {"OMP_WAIT_POLICY": "active"}, {"OMP_WAIT_POLICY": "active"}, False),
        ([99, 0, 0, 0], {"GOMP_SPINCOUNT": "5"}, {"GOMP_SPINCOUNT": "5"}, False),
        ([99, 0, 0, 0], {"KMP_BLOCKTIME": "5"}, {"KMP_BLOCKTIME": "5"}, False),
    ],
)
def test_threads_sleep_beside_busy_programs_unless_a_person_says_how_they_wait(monkeypatch, percent, own, then, sleep):
    def look(interval, percpu):
        if isinstance(percent, Exception):
            raise percent
        return percent

    monkeypatch.delitem(sys.modules, "torch")  # as before it loads
    for name in WAITS:
        monkeypatch.setenv(name, "")  # is put back, whatever happens
        monkeypatch.delenv(name)
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0, 1, 2}, raising=False)
    monkeypatch.setattr("psutil.cpu_percent", look)
    my_utils.choose_how_threads_wait()
    assert {name: os.environ[name] for name in WAITS if name in os.environ} == then
    assert my_utils.threads_sleep() == sleep


@pytest.mark.parametrize(("module", "percent", "then"), [("clip", 100, "passive None"), ("my_utils", 0, "None 300000")])
def test_how_threads_wait_is_chosen_before_torch_loads(tmp_path, module, percent, then):
    (tmp_path / "psutil.py").write_text(f"Error = OSError\ndef cpu_percent(**_): return [{percent}] * 4096\n")
    code = f"import os, {module}; print(*(os.environ.get(name) for name in {WAITS[:2]}))"
    clean = {name: value for name, value in os.environ.items() if name not in WAITS}
    clean["PYTHONPATH"] = str(tmp_path)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=clean, capture_output=True, text=True, check=True)
    assert done.stdout == then + "\n"


def test_imports_stay_out_of_the_search_for_garbage(monkeypatch):
    monkeypatch.setattr("sys.argv", ["train.py", "--epochs", "3"])
    handler = signal.getsignal(signal.SIGINT)
    gc.unfreeze()
    try:
        assert read_early(len) == 2
        assert not gc.isenabled()
        with exit_on_input_error():
            assert gc.isenabled()
            assert gc.get_freeze_count() > 10_000
    finally:
        signal.signal(signal.SIGINT, handler)
        gc.unfreeze()
        gc.enable()


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for CUDA where there is none")
def test_cuda_without_a_gpu_is_refused():
    done = run_train("--device", "cuda")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: device 'cuda' is not on this machine: use --device cpu, or auto\n"


def test_a_runs_folder_that_cannot_be_written(tmp_path, read_only, data_path):
    with pytest.raises(InputError, match="cannot make the folder"):
        train_here(*TINY, "--runs-dir", read_only(tmp_path / "file"))
    with pytest.raises(InputError, match=r"cannot make the folder .*file: File exists"):
        train_here(*TINY, "--runs-dir", tmp_path / "file")
    with pytest.raises(InputError, match=r"cannot make the folder .{50,170}: File name too long"):
        train_here(*TINY, "--runs-dir", tmp_path / ("y" * 6000))


def test_a_second_run_under_the_same_name_is_refused_and_changes_nothing(trained):
    before = {p.name: p.read_bytes() for p in trained.run.iterdir() if p.is_file()}
    with pytest.raises(InputError, match="there already"):
        train_here("--runs-dir", trained.runs, "--run-name", "short")
    assert {p.name: p.read_bytes() for p in trained.run.iterdir() if p.is_file()} == before


def test_two_runs_that_take_one_name_at_once(tmp_path):
    settings, given = read_flags(["--runs-dir", str(tmp_path), "--run-name", "run"])
    (_, first), (_, second) = open_run(settings, given, "run"), open_run(settings, given, "run")
    first.begin([], settings, torch.device("cpu"), 5, 4)
    with pytest.raises(InputError, match=r"another process has just made .*run: choose another --run-name"):
        second.begin([], settings, torch.device("cpu"), 5, 4)


def saved_run(folder, **changes):
    """A run that was saved at its start, with some of its state changed."""
    settings, given = read_flags(["--runs-dir", str(folder.parent), "--run-name", folder.name, "--lr", "0.5"])
    _, run = open_run(settings, given, "run")
    run.begin([], settings, torch.device("cpu"), 214, 4)
    run.lock.release()
    state = torch.load(folder / "last.pth", weights_only=True)
    state["config"] |= changes.pop("config", {})
    torch.save(state | changes, folder / "last.pth")


def test_resume_refuses_other_settings_and_running_runs(tmp_path, data_path):
    run = tmp_path / "run"
    saved_run(run)
    with pytest.raises(InputError, match=r"--lr 0.5\): leave out --lr"):
        train_here("--resume", run, "--lr", "0.003")  # the default, but given
    with pytest.raises(InputError, match="fits another version"):
        train_here("--resume", "run", "--runs-dir", tmp_path, "--data-path", data_path)
    held = Run(run)
    assert held.take_lock()
    with pytest.raises(InputError, match="no unfinished run"):
        train_here("--resume", "--runs-dir", tmp_path)
    with pytest.raises(InputError, match="another process is training"):
        train_here("--resume", run)


@pytest.mark.parametrize(
    "changes",
    [
        {"config": {"loss": "triplet"}},
        {"config": {"epochs": "many"}},
        {"config": {"lr": float("nan")}},
        {"config": {"width": 10**6}},
        {"config": {"blocks": [1, 1]}},
        {"epoch": "one"},
        {"epoch": 99},
        {"step": 5000},
        {"history": torch.zeros(10, 4)},
        {"history": None},
        {"epochs": [{}]},
        {"rng": 7},
    ],
)
def test_a_state_that_cannot_be_is_one_sentence(changes, tmp_path, data_path):
    saved_run(tmp_path / "run", **changes)
    with pytest.raises(InputError, match="start a new run") as error:
        train_here("--resume", tmp_path / "run", "--data-path", data_path)
    assert "\n" not in str(error.value)


def test_a_damaged_newest_run_is_named_and_passed_over(tmp_path, small_mnist):
    call = TrainingStep.__call__
    patch = pytest.MonkeyPatch()
    patch.setattr(TrainingStep, "__call__", lambda self, *a: os.kill(os.getpid(), signal.SIGINT) or call(self, *a))
    assert train_here(*TINY, "--runs-dir", tmp_path, "--run-name", "good").returncode == 130
    patch.undo()
    for name, content in (("junk", b"not a state"), ("poisoned\udcff", b"")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "last.pth").write_bytes(content)
    done = train_here("--resume", "--runs-dir", tmp_path)
    assert done.returncode == 0
    assert "passed over" in done.stderr
    assert "junk" in done.stderr
    assert (tmp_path / "good" / "metrics.json").exists()


def test_a_folder_without_locks_is_a_warning(tmp_path, monkeypatch):
    def no_locks(self, *_, **__):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(run_module.FileLock, "acquire", no_locks)
    with pytest.warns(UserWarning, match="cannot be locked"):
        assert Run(tmp_path).take_lock()


def test_a_better_model_that_is_replaced_is_told(tmp_path):
    def publish(name: str, accuracy: float) -> str:
        model = CLIP(embed_dim=4, width=2)
        model.metrics = {"val_digit_accuracy": accuracy, "run": name}
        (tmp_path / name).mkdir()
        model.save(tmp_path / name / "best_model.pth")
        return Run(tmp_path / name).publish("val_digit_accuracy")

    assert publish("first", 0.9) == ""
    assert publish("better", 0.95) == ""
    told = publish("worse", 0.92)
    assert "better on validation: 95.00%, run better" in told
    assert f"cp {tmp_path / 'better' / 'best_model.pth'} {tmp_path / 'best_model.pth'}" in told
    assert CLIP.load(tmp_path / "best_model.pth").metrics["run"] == "worse", "the newest finished run's"


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
@pytest.mark.parametrize("where", ["training.step.TrainingStep.__call__", "train.build_model"])
def test_what_does_not_fit_is_one_sentence(error, where, tmp_path, small_mnist, monkeypatch):
    def no_room(*_):
        raise error

    monkeypatch.setattr(where, no_room)
    with pytest.raises(InputError, match=r"out of memory: .* lower --batch-size, or .* --chunk-size"):
        train_here(*TINY, "--runs-dir", tmp_path)
    with pytest.raises(InputError, match=r"out of memory: .* lower --chunk-size$"):
        train_here(*TINY, "--chunk-size", "64", "--runs-dir", tmp_path, "--run-name", "in-chunks")


def test_the_model_is_that_of_the_settings():
    settings, _ = read_flags(["--preset", "speed", "--loss", "sigmoid", "--width", "4"])
    model = train.build_model(settings)
    assert model.arch == {name: getattr(settings, name, None) for name in model.arch} | {"modalities": []}
    assert train.build_model(Settings()).arch["image_encoder"] == "residual"
