import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

import distributed
from clip import CLIP
from conftest import ROOT, run_train
from grad_cache import cached_backward
from losses import LOSSES
from my_dataset import DATA_PATH
from my_utils import InputError

WORKER = """
import sys, torch
import distributed
from clip import CLIP
from losses import LOSSES


def main():
    distributed.start()
    inputs = torch.load(sys.argv[1], weights_only=True)
    model = CLIP(**inputs["arch"])
    model.load_state_dict(inputs["model"])
    for module in model.train().modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()  # a batch norm's own statistics are of one process's share
    net = distributed.wrap(model)
    logits, _ = net(distributed.share(inputs["images"]), distributed.share(inputs["labels"]))
    loss = LOSSES[inputs["loss"]](logits, inputs["labels"])
    loss.backward()
    torch.save(
        {"loss": loss.detach(), "gradients": {name: p.grad for name, p in model.named_parameters()}},
        f"{sys.argv[2]}-{distributed.rank()}",
    )
    distributed.stop()


with distributed.clean_exit():
    sys.exit(main())
"""


def torchrun(*arguments, **options) -> subprocess.Popen:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [str(part) for part in command], cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, **options,
    )  # fmt: skip


def batch(size: int, loss: str) -> tuple[CLIP, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    model = CLIP(8, 2, init_logit_bias=-1.0 if loss == "sigmoid" else None).train()
    return model, torch.rand(size, 1, 28, 28), torch.randint(10, (size,))


def freeze_statistics(model: CLIP) -> None:
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()


def plain_step(model, images, labels, loss) -> tuple[torch.Tensor, dict]:
    model.zero_grad()
    value = LOSSES[loss](model(images, labels)[0], labels)
    value.backward()
    return value.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("loss", ["multi_positive", "sigmoid"])
def test_two_processes_have_the_loss_and_gradient_of_one(loss, tmp_path):
    model, images, labels = batch(24, loss)
    inputs = {"arch": model.arch, "model": model.state_dict(), "images": images, "labels": labels, "loss": loss}
    torch.save(inputs, tmp_path / "inputs")
    (tmp_path / "worker.py").write_text(WORKER)
    job = torchrun(tmp_path / "worker.py", tmp_path / "inputs", tmp_path / "out")
    _, errors = job.communicate(timeout=120)
    assert job.returncode == 0, errors
    freeze_statistics(model)
    value, gradients = plain_step(model, images, labels, loss)
    for rank in range(2):
        result = torch.load(tmp_path / f"out-{rank}", weights_only=True)
        torch.testing.assert_close(result["loss"], value)
        for name, gradient in gradients.items():
            torch.testing.assert_close(result["gradients"][name], gradient, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("chunk_size", [5, 24])
def test_cached_gradients_equal_the_plain_step(loss, chunk_size):
    model, images, labels = batch(24, loss)
    if chunk_size < 24:
        freeze_statistics(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    value, gradients = plain_step(model, images, labels, loss)
    after = model.state_dict()
    running = {name: after[name].clone() for name in before if "running" in name}
    model.load_state_dict(before)
    model.zero_grad()
    torch.testing.assert_close(cached_backward(model, images, labels, loss, chunk_size), value)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], atol=1e-6, rtol=1e-4)
    for name, statistics in running.items():
        torch.testing.assert_close(model.state_dict()[name], statistics)


def test_cached_gradients_in_bf16_equal_those_of_the_plain_step_in_bf16():
    model, images, labels = batch(24, "multi_positive")
    freeze_statistics(model)
    with torch.autocast("cpu", torch.bfloat16):
        logits, _ = model(images, labels)
    value = LOSSES["multi_positive"](logits, labels)
    value.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        cached = cached_backward(model, images, labels, "multi_positive", 5)
    torch.testing.assert_close(cached, value.detach(), atol=1e-3, rtol=1e-3)
    for name, parameter in model.named_parameters():
        difference = (parameter.grad - gradients[name]).norm() / gradients[name].norm()
        assert difference < 0.01, name


def test_chunks_move_the_running_statistics_once():
    model, images, labels = batch(24, "multi_positive")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for chunk in images.split(8):
        model.encode_image(chunk)
    expected = {name: value.clone() for name, value in model.state_dict().items() if "running" in name}
    model.load_state_dict(before)
    cached_backward(model, images, labels, "multi_positive", 8)
    for name, statistics in expected.items():
        torch.testing.assert_close(model.state_dict()[name], statistics)


FLAGS = ["--width", 4, "--stem-pool", "--embed-dim", 8, "--batch-size", 512, "--device", "cpu"]
FLAGS += ["--data-path", ROOT / DATA_PATH]


def finished(job: subprocess.Popen, runs) -> dict:
    output, errors = job.communicate(timeout=200)
    assert job.returncode == 0, errors
    assert output.count("zero_shot_accuracy") == 1, "only one process speaks"
    return json.loads((runs / "run" / "metrics.json").read_text())


def test_torchrun_survives_a_death_and_goes_on(tmp_path, data_path):
    runs = tmp_path / "runs"
    job = torchrun("train.py", *FLAGS, "--epochs", 2, "--runs-dir", runs, "--run-name", "run")
    deadline = time.monotonic() + 120
    while not (runs / "run" / "best_model.pth").exists():  # the end of the first epoch
        assert job.poll() is None, job.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    children = subprocess.run(["pgrep", "-P", str(job.pid)], capture_output=True, text=True).stdout.split()
    os.kill(int(children[0]), signal.SIGKILL)
    _, errors = job.communicate(timeout=120)
    assert job.returncode != 0
    assert "error: another process of this run has ended" in errors
    assert not (runs / "best_model.pth").exists()

    metrics = finished(torchrun("train.py", "--resume", "--runs-dir", runs), runs)
    assert [record["epoch"] for record in metrics["history"]] == [1, 2]
    assert metrics["test_zero_shot_accuracy"] > 0.5
    assert metrics["processes"] == 2
    assert len(list((runs / "run").glob("events*"))) == 2, "one for each start, from the first process"


STUCK = """
import ctypes
import distributed

with distributed.clean_exit():
    mutex, libc = ctypes.create_string_buffer(64), ctypes.CDLL(None)
    libc.pthread_mutex_lock(mutex)
    print("stuck", flush=True)
    libc.pthread_mutex_lock(mutex)  # for ever, and Python's signal handlers do not run
"""


def test_a_process_that_waits_for_a_lost_one_still_heeds_torchrun():
    torchruns = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    environment = os.environ | torchruns | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", STUCK]
    job = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert job.stdout.readline() == "stuck\n"
        job.terminate()
        _, errors = job.communicate(timeout=60)
    finally:
        job.kill()
    assert job.returncode == 1
    assert errors.startswith("error: another process of this run has ended")
    assert errors.count("\n") == 1


def test_several_processes_that_cannot_find_each_other_are_one_sentence(monkeypatch):
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "1")
    distributed.start()  # one process needs nobody
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="no RANK, MASTER_ADDR, MASTER_PORT: start them with torchrun"):
        distributed.start()


def test_what_the_first_process_finds_wrong_is_everyones_sentence(tmp_path, data_path):
    (tmp_path / "run").write_text("not a folder")
    job = torchrun("train.py", *FLAGS, "--runs-dir", tmp_path / "run" / "below", "--run-name", "run")
    _, errors = job.communicate(timeout=120)
    assert job.returncode != 0
    assert errors.count("error: cannot make the folder") == 2
    assert "another process" not in errors


def test_torchrun_trains_a_language_model(tmp_path, data_path, tiny_albert):
    flags = ["--text-encoder", "plus", "--text-model", tiny_albert, "--text-lr", 1e-3, "--epochs", 1]
    metrics = finished(torchrun("train.py", *FLAGS, *flags, "--runs-dir", tmp_path, "--run-name", "run"), tmp_path)
    assert metrics["history"][0]["excess_loss"] < 2.2, "chance is ln 10, 2.3"


def test_torchrun_that_diverges_ends(tmp_path, data_path):
    flags = ["--lr", 1e30, "--grad-clip", 1e30, "--epochs", 1]
    job = torchrun("train.py", *FLAGS, *flags, "--runs-dir", tmp_path, "--run-name", "run")
    _, errors = job.communicate(timeout=120)
    assert job.returncode != 0
    assert "training diverged at epoch 1" in errors
    assert (tmp_path / "run" / "diverged.txt").exists()


def test_a_large_batch_trains_in_chunks(tmp_path, data_path):
    flags = [*FLAGS, "--batch-size", 4096, "--chunk-size", 512, "--epochs", 1]
    done = run_train(*flags, "--runs-dir", tmp_path, "--run-name", "run")
    assert done.returncode == 0, done.stderr
    history = json.loads((tmp_path / "run" / "metrics.json").read_text())["history"]
    assert 0 < history[0]["excess_loss"] < history[0]["loss"]
