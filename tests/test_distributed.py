import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from clip import CLIP
from conftest import ROOT
from grad_cache import cached_backward
from losses import LOSSES
from my_dataset import DATA_PATH

WORKER = """
import sys, torch
import distributed
from clip import CLIP
from losses import LOSSES

distributed.start(torch.device("cpu"))
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


FLAGS = ["--width", 2, "--embed-dim", 8, "--batch-size", 512, "--device", "cpu", "--data-path", ROOT / DATA_PATH]


def test_torchrun_trains_survives_a_death_and_goes_on(tmp_path, data_path):
    runs = tmp_path / "runs"
    job = torchrun("train.py", *FLAGS, "--epochs", 3, "--runs-dir", runs, "--run-name", "run")
    deadline = time.monotonic() + 120
    while not (runs / "run" / "best_model.pth").exists():  # the end of the first epoch
        assert job.poll() is None, job.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    children = subprocess.run(["pgrep", "-P", str(job.pid)], capture_output=True, text=True).stdout.split()
    os.kill(int(children[-1]), signal.SIGKILL)
    _, errors = job.communicate(timeout=120)
    assert job.returncode != 0
    assert "error: another process of this run has ended" in errors
    assert not (runs / "best_model.pth").exists()

    job = torchrun("train.py", "--resume", runs / "run")
    output, errors = job.communicate(timeout=200)
    assert job.returncode == 0, errors
    assert output.count("zero_shot_accuracy") == 1, "only one process speaks"
    metrics = json.loads((runs / "run" / "metrics.json").read_text())
    assert [record["epoch"] for record in metrics["history"]] == [1, 2, 3]
    assert metrics["test_zero_shot_accuracy"] > 0.5
    assert len(list((runs / "run").glob("events*"))) == 2, "one for each start, from the first process"


def test_a_large_batch_trains_in_chunks(tmp_path, data_path):
    from conftest import run_train

    done = run_train("--width", 2, "--embed-dim", 8, "--batch-size", 8192, "--chunk-size", 1024, "--epochs", 1,
                     "--device", "cpu", "--runs-dir", tmp_path, "--run-name", "run")  # fmt: skip
    assert done.returncode == 0, done.stderr
    history = json.loads((tmp_path / "run" / "metrics.json").read_text())["history"]
    assert 0 < history[0]["excess_loss"] < history[0]["loss"]
