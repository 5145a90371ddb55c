import copy
import itertools
import json
import signal
import subprocess
import sys
import time
import warnings

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train
from clip import CLIP
from conftest import ROOT, run_train
from metrics import evaluate
from my_dataset import DATA_PATH, load_mnist
from my_utils import InputError, lock, warmup_cosine

# A step takes milliseconds, an epoch has 214 of them.
TINY = ["--width", 4, "--stem-pool", "--embed-dim", 8, "--batch-size", 256, "--epochs", 3, "--device", "cpu"]


# ---- the whole way on real MNIST ----


def test_a_short_run_learns_real_mnist(trained):
    assert trained.metrics["test_zero_shot_accuracy"] > 0.975
    assert trained.metrics["val_zero_shot_accuracy"] > 0.97
    assert trained.metrics["test_text_to_image_precision"] > 0.97
    assert f"{trained.metrics['test_zero_shot_accuracy']:.2%}" in trained.output


def test_metrics_json_tells_what_was_run(trained):
    assert trained.metrics["epochs"] == 2
    assert trained.metrics["seed"] == 0
    assert trained.metrics["device"] == "cpu"
    assert trained.metrics["torch_version"] == torch.__version__
    assert trained.metrics["train_seconds"] > 0
    history = trained.metrics["history"]
    assert [record["epoch"] for record in history] == [1, 2]
    assert history[1]["loss"] < history[0]["loss"]
    assert 0 < history[1]["excess_loss"] < history[1]["loss"]
    assert json.loads((trained.run / "config.json").read_text())["width"] == 8


def test_the_checkpoint_alone_reaches_the_accuracy_it_states(trained, data_path):
    model = CLIP.load(trained.checkpoint)
    test = evaluate(model, load_mnist("test", data_path))
    assert test["zero_shot_accuracy"] == pytest.approx(trained.metrics["test_zero_shot_accuracy"], abs=2e-4)
    assert model.metrics["test_zero_shot_accuracy"] == trained.metrics["test_zero_shot_accuracy"]
    assert trained.checkpoint.read_bytes() == (trained.run / "best_model.pth").read_bytes()


def test_tensorboard_has_every_curve_and_picture(trained):
    events = EventAccumulator(str(trained.run))
    events.Reload()
    tags = events.Tags()
    expected = {f"step/{name}" for name in ("loss", "excess_loss", "learning_rate", "temperature", "grad_norm")}
    expected |= {"epoch/images_per_second", "validation/zero_shot_accuracy", "validation/text_to_image_precision"}
    assert expected <= set(tags["scalars"])
    assert tags["images"] == ["similarity"]
    assert len(events.Scalars("validation/zero_shot_accuracy")) == 2
    assert "_hparams_/session_start_info" in events.summary_metadata
    assert "images and captions" in (trained.run / "projector_config.pbtxt").read_text()


@pytest.mark.parametrize("loss", ["infonce", "infonce_distinct", "sigmoid"])
def test_the_other_losses_train(loss, tmp_path, data_path):
    flags = [*TINY, "--loss", loss, "--epochs", 2, "--batch-size", 250, "--no-augment", "--data-path", data_path]
    assert train.main([*map(str, flags), "--runs-dir", str(tmp_path), "--run-name", "run"]) == 0
    history = json.loads((tmp_path / "run" / "metrics.json").read_text())["history"]
    assert history[-1]["val_zero_shot_accuracy"] > 0.5
    assert history[-1]["excess_loss"] < history[0]["excess_loss"]
    model = CLIP.load(tmp_path / "best_model.pth")
    assert (model.logit_bias is not None) == (loss == "sigmoid")


# ---- interruptions ----


def start(*arguments) -> subprocess.Popen:
    command = [sys.executable, "train.py", "--data-path", str(ROOT / DATA_PATH), *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(condition, job) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert job.poll() is None, job.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)


def tensors(x) -> list:
    """Every tensor of a nest of dicts and lists, in order."""
    if isinstance(x, torch.Tensor):
        return [x]
    values = x.values() if isinstance(x, dict) else x if isinstance(x, list | tuple) else []
    return [tensor for value in values for tensor in tensors(value)]


def test_ctrl_c_and_kill_do_not_change_a_bit_of_the_result(tmp_path, data_path):
    flags = (*TINY, "--muon-lr", 0.02, "--ema-decay", 0.9, "--elastic", 0.5)  # all that keeps a state
    whole = run_train(*flags, "--runs-dir", tmp_path / "a", "--run-name", "run")
    assert whole.returncode == 0, whole.stderr

    runs = tmp_path / "b"
    run = runs / "run"
    job = start(*flags, "--runs-dir", runs, "--run-name", "run")
    wait_for((run / "best_model.pth").exists, job)  # the end of the first epoch
    time.sleep(0.3)
    job.send_signal(signal.SIGINT)
    output, _ = job.communicate(timeout=60)
    assert job.returncode == 130
    assert f"train.py --resume {run}" in output
    state = torch.load(run / "last.pth", weights_only=True)
    assert 0 < state["step"] < 214, "stopped within an epoch"
    assert not (runs / "best_model.pth").exists(), "only a finished run is published"

    before = (run / "last.pth").stat().st_mtime_ns
    job = start("--resume", "--runs-dir", runs)
    wait_for(lambda: (run / "last.pth").stat().st_mtime_ns != before, job)
    job.kill()
    job.wait()

    done = run_train("--resume", run)
    assert done.returncode == 0, done.stderr
    expected, resumed = (
        tensors(torch.load(path, weights_only=True)["parts"])
        for path in (tmp_path / "a" / "run" / "last.pth", run / "last.pth")
    )
    assert len(expected) > 100, "weights, moments and averages"
    assert all(torch.equal(a, b) for a, b in zip(expected, resumed, strict=True))
    one, other = (json.loads((r / "run" / "metrics.json").read_text()) for r in (tmp_path / "a", runs))
    for record in (*one["history"], *other["history"]):
        del record["images_per_second"]
    assert one["history"] == other["history"]
    assert one["test_zero_shot_accuracy"] == other["test_zero_shot_accuracy"]

    again = run_train("--resume", run)
    assert again.returncode == 2
    assert "finished" in again.stderr


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, data_path):
    done = run_train(*TINY, "--lr", 1e30, "--grad-clip", 1e30, "--runs-dir", tmp_path, "--run-name", "run")
    assert done.returncode == 1
    assert "diverged at epoch 1, step" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "best_model.pth").exists()
    again = run_train("--resume", "--runs-dir", tmp_path)
    assert (again.returncode, again.stderr) == (2, f"error: there is no unfinished run in {tmp_path} to resume\n")


# ---- bad input ----


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--epochs", "0"], "whole number from 1"),
        (["--epochs", "-3"], "whole number from 1"),
        (["--epochs", "1.5"], "whole number from 1"),
        (["--epochs", "many"], "whole number from 1"),
        (["--batch-size", "1"], "whole number from 2"),
        (["--batch-size", "55001"], "larger than the 55000"),
        (["--lr", "0"], "number above 0"),
        (["--lr", "nan"], "number above 0"),
        (["--warmup", "1.5"], "from 0 to 1"),
        (["--loss", "infonce_distinct"], "groups of 10: make --batch-size a multiple"),
        (["--seed", "-1"], "whole number from 0"),
        (["--muon-lr", "-1"], "number from 0"),
        (["--ema-decay", "1"], "number from 0 to 0.99999"),
        (["--loss", "triplet"], "invalid choice"),
        (["--epoch", "3"], "unrecognized"),
        (["--device", "tpu"], "device"),
        (["--device", "cuda:99"], "not on this machine"),
        (["--device", "cpu:3"], "not supported"),
        (["--epochs", "9" * 400], "whole number from 1"),
        (["--compile", "--chunk-size", "64"], "leave out --chunk-size"),
        (["--batch-size", "257", "--chunk-size", "64"], "two images at a time"),
        (["--chunk-size", "1"], "two images at a time"),
        (["--freeze-text"], "add --text-encoder plus"),
        (["--text-model", "bert"], "add --text-encoder plus"),
        (["--resume", "nowhere"], "nothing to resume in nowhere"),
        (["--resume"], "no unfinished run"),
        (["--run-name", "../up"], "plain folder name"),
    ],
)
def test_bad_flags_are_one_sentence(flags, message, tmp_path, data_path):
    with pytest.raises(InputError, match=message):
        train.main([*flags, "--data-path", str(data_path), "--runs-dir", str(tmp_path / "runs")])
    assert not (tmp_path / "runs").exists(), "nothing is left behind"


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for CUDA where there is none")
def test_cuda_without_a_gpu_is_refused():
    done = run_train("--device", "cuda")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: device 'cuda' is not on this machine: use --device cpu, or auto\n"


def test_a_runs_folder_that_cannot_be_written(tmp_path, read_only, data_path):
    done = run_train(*TINY, "--runs-dir", read_only(tmp_path / "file"))
    assert done.returncode == 2
    assert done.stderr.startswith("error: cannot make the folder")
    assert done.stderr.count("\n") == 1


def test_a_second_run_under_the_same_name_is_refused_and_changes_nothing(trained):
    before = {p.name: p.read_bytes() for p in trained.run.iterdir() if p.is_file()}
    with pytest.raises(InputError, match="there already"):
        train.main(["--runs-dir", str(trained.runs), "--run-name", "short"])
    assert {p.name: p.read_bytes() for p in trained.run.iterdir() if p.is_file()} == before


def test_resume_refuses_other_settings_damaged_states_and_running_runs(tmp_path, data_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "last.pth").write_bytes(b"not a state")
    with pytest.raises(InputError, match="not a checkpoint"):
        train.main(["--resume", str(run)])
    torch.save({"weights": torch.ones(2)}, run / "last.pth")
    with pytest.raises(InputError, match="not the state of a training run"):
        train.main(["--resume", str(run)])
    config = vars(train.build_parser().parse_args(["--lr", "0.5"]))
    state = {"parts": [], "rng": []} | {"config": config, "epoch": 0, "step": 0}
    torch.save(state | {"seconds": 0.0, "best": 0.0, "epochs": [], "history": torch.zeros(214, 4)}, run / "last.pth")
    with pytest.raises(InputError, match=r"--lr 0.5\): leave out --lr"):
        train.main(["--resume", str(run), "--lr", "0.003"])  # the default, but given
    with pytest.raises(InputError, match="fits another version"):
        train.main(["--resume", str(run), "--data-path", str(data_path)])
    held = lock(run)
    with pytest.raises(InputError, match="no unfinished run"):
        train.main(["--resume", "--runs-dir", str(tmp_path)])
    with pytest.raises(InputError, match="another process is training"):
        train.main(["--resume", str(run), "--data-path", str(data_path)])
    held.close()


@pytest.mark.parametrize("measured", ["the compiled model itself", "its average"])
def test_a_compiled_run_learns(measured, tmp_path, data_path):
    try:
        train.require_compiler()
    except InputError as error:
        pytest.skip(str(error))
    flags = [*TINY, "--blocks", 0, 0, "--pool", "flatten", "--epochs", 1, "--compile"]
    flags += ["--runs-dir", tmp_path, "--run-name", "run"]
    if measured == "its average":
        flags += ["--ema-decay", 0.9]
    done = run_train(*flags)
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["test_zero_shot_accuracy"] > 0.7
    assert CLIP.load(tmp_path / "run" / "best_model.pth").metrics.keys() <= metrics.keys(), "it loads without compiling"


def test_compile_without_what_it_needs_is_one_sentence(tmp_path, data_path, monkeypatch):
    flags = ["--compile", "--data-path", str(data_path), "--runs-dir", str(tmp_path / "runs")]
    with monkeypatch.context() as patch:
        patch.setenv("PATH", str(tmp_path))
        patch.delenv("CXX", raising=False)
        with pytest.raises(InputError, match="needs a C\\+\\+ compiler"):
            train.main(flags)
    monkeypatch.setenv("CXX", "no-such-compiler -m64")
    with pytest.raises(InputError, match="no-such-compiler -m64 is not here"):
        train.main(flags)
    monkeypatch.setenv("CXX", sys.executable)
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    with pytest.raises(InputError, match="needs Python's headers"):
        train.main(flags)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_a_batch_that_does_not_fit_is_one_sentence(error, tmp_path, data_path, monkeypatch):
    def no_room(*_):
        raise error

    monkeypatch.setitem(train.LOSSES, "infonce", no_room)
    monkeypatch.setattr(train, "cached_backward", no_room)
    flags = [*map(str, TINY), "--loss", "infonce", "--data-path", str(data_path), "--runs-dir", str(tmp_path)]
    with pytest.raises(InputError, match=r"out of memory: .* lower --batch-size, or .* --chunk-size"):
        train.main(flags)
    with pytest.raises(InputError, match=r"out of memory: .* lower --chunk-size$"):
        train.main([*flags, "--chunk-size", "64", "--run-name", "in-chunks"])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="is about waiting for a GPU")
def test_no_step_waits_for_the_gpu(tmp_path, data_path):
    def waits(batch_size: int) -> int:
        flags = [*map(str, TINY), "--epochs", "1", "--device", "cuda", "--muon-lr", "0.05", "--ema-decay", "0.9"]
        flags += ["--batch-size", str(batch_size), "--data-path", str(data_path), "--runs-dir", str(tmp_path)]
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter("always")
                train.main([*flags, "--run-name", f"run-{batch_size}"])
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return sum("synchronizing" in str(warning.message) for warning in seen)

    assert 0 < waits(256) == waits(512), "as many in 214 steps as in 107"


def test_presets_change_defaults_and_flags_win(tmp_path):
    args, _, _ = train.settle_run(["--preset", "speed", "--epochs", "3", "--runs-dir", str(tmp_path)])
    assert (args.epochs, args.batch_size, args.no_augment) == (3, 448, True)
    known = vars(train.build_parser().parse_args([]))
    for preset in train.PRESETS.values():
        assert preset.keys() <= known.keys()


def test_average_of_weights_and_statistics_begins_as_a_mean_and_forgets_at_its_decay():
    average, first, second = (CLIP(width=2) for _ in range(3))
    train.update_average(average, first, decay=0.9, step=0)
    train.update_average(average, second, decay=0.9, step=1)
    a, b = first.state_dict(), second.state_dict()
    for name, value in average.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, (a[name] + b[name]) / 2)

    model = CLIP(width=2)
    start, state = copy.deepcopy(average.state_dict()), model.state_dict()
    state["image_encoder.stages.1.running_var"] += 1
    for step in range(20, 23):
        train.update_average(average, model, decay=0.9, step=step)
    for name, value in average.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, 0.9**3 * start[name] + (1 - 0.9**3) * state[name])


def test_the_average_counts_the_steps_of_all_epochs(tmp_path, data_path, monkeypatch):
    steps = []
    monkeypatch.setattr(train, "update_average", lambda average, model, decay, step: steps.append(step))
    flags = [*map(str, TINY), "--batch-size", "500", "--epochs", "2", "--ema-decay", "0.9", "--no-augment"]
    train.main([*flags, "--data-path", str(data_path), "--runs-dir", str(tmp_path)])
    assert steps == list(range(2 * (55_000 // 500)))


def test_schedule_warms_up_and_ends_near_zero():
    factors = [warmup_cosine(step, 100, 10) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert max(factors) == factors[9] == 1.0
    assert factors[-1] < 1e-3
    assert all(a >= b for a, b in itertools.pairwise(factors[9:]))
    assert warmup_cosine(0, 1, 0) == 1.0
