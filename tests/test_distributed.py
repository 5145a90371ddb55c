import copy
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from attributes import SLANT_BOUNDS, THICKNESS_BOUNDS, unseen_cells
from captions import Truth, facts_of, things_of, unknown_claims
from clip import CLIP
from conftest import ROOT, TINY, freeze_statistics, train_here, wait_for
from losses import LOSSES
from my_dataset import Batch
from my_utils import InputError
from training import distributed
from training.optimizers import make_optimizers
from training.settings import Settings
from training.step import TrainingStep

# Two processes: the loss and the gradients of a batch for each case, then runs that end early in several ways.
WORKER = """
import sys
import my_utils
import torch
import train
from captions import Texts, Truth
from clip import CLIP
from my_dataset import Batch
from training import distributed, step
from training.run import Run
from training.settings import read_flags
from training.step import TrainingStep

step.GRAD_CLIP = 1e30


def gradients(case):
    model = CLIP(**case["arch"])
    model.load_state_dict(case["model"])
    for module in model.train().modules():
        if isinstance(module, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
            module.eval()  # a batch norm's own statistics are of one process's share
    rank, world_size = distributed.rank(), distributed.world_size()
    whole = (case["images"], case["texts"], *(part for part in case["truth"] if part is not None))
    images, texts, *truth = (x.tensor_split(world_size)[rank] for x in whole)
    texts = Texts(model.captions.sentences, texts)
    taken = TrainingStep(model, [])
    loss = taken(Batch(images, texts, Truth(*truth), len(whole[0])))[0]
    gradients = {name: p.grad for name, p in model.named_parameters()}
    return {"values": torch.stack([loss, taken.excess(loss)]), "gradients": gradients}


def ended(flags, save=None):
    if save:
        Run.save = save
    try:
        return f"code {train.main(*read_flags(flags))}"
    except (my_utils.InputError, SystemExit) as end:
        return f"{type(end).__name__}: {end}"


def full_disk(run):
    with distributed.share_errors():
        if distributed.is_main():
            raise OSError(28, "No space left on device", "last.pth")


def main():
    distributed.start()
    inputs = torch.load(sys.argv[1], weights_only=True)
    results = [gradients(case) for case in inputs["cases"]]
    ends = [ended(flags) for flags in inputs["runs"]]
    ends.append(ended(inputs["runs"][-1][:-1] + ["disk"], full_disk))
    torch.save({"results": results, "ends": ends}, f"{sys.argv[2]}-{distributed.rank()}")
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


def pairs(size: int, loss: str, captions: str = "digit", **text) -> tuple[CLIP, Batch]:
    """A model and a batch of noise, with texts and truth as if it were digits, thick and thin, left and right."""
    torch.manual_seed(0)
    bias = -1.0 if loss == "sigmoid" else None
    model = CLIP(8, width=2, captions=captions, loss=loss, init_logit_bias=bias, **text).train()
    images, digits = torch.rand(size, 1, 28, 28) / 2, torch.randint(10, (size,))
    look = THICKNESS_BOUNDS[1] + torch.randn(size), SLANT_BOUNDS[1] + torch.randn(size) / 4
    facts, cells = facts_of(digits, *look)
    unknown = unknown_claims(unseen_cells()).flatten()[cells] & ~facts
    if captions == "digit":
        facts, unknown = (1 << digits).int(), None
    texts, claims = model.captions.draw(things_of(digits, *look) if captions == "described" else digits)
    return model, Batch(images, texts, Truth(facts, claims, unknown), size)


def step_of(model: CLIP, batch: Batch, **options) -> tuple[torch.Tensor, dict]:
    """A training step without an optimizer: its loss, and that above the floor; and the gradients that it leaves."""
    step = TrainingStep(model, [], **options)
    loss = step(batch)[0]
    return torch.stack([loss, step.excess(loss)]), {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.fixture(autouse=True)
def no_clipping(monkeypatch):
    monkeypatch.setattr("training.step.GRAD_CLIP", 1e30)


def test_two_processes_have_the_loss_and_gradient_of_one_and_end_together(tmp_path, data_path, tiny_albert):
    cases = []
    plus = {"text_encoder": "plus", "text_model": str(tiny_albert)}  # a language model that learns
    made = [
        pairs(24, "multi_positive"),
        pairs(24, "sigmoid", "described"),
        pairs(25, "multi_positive", "described"),  # shares of 13 and 12
        pairs(25, "infonce", "described", image_encoder="fast"),
        pairs(25, "multi_positive", **plus),
    ]
    for model, batch in made:
        case = {"arch": model.arch, "model": model.state_dict(), "images": batch.images}
        cases.append(case | {"texts": batch.texts.index, "truth": tuple(batch.truth)})
    (tmp_path / "file").write_text("not a folder")
    flags = [str(flag) for flag in TINY]
    runs = [
        [*flags, "--runs-dir", str(tmp_path / "file" / "below"), "--run-name", "run"],
        [*flags, "--chunk-size", "64", "--runs-dir", str(tmp_path), "--run-name", "chunked"],
        [*flags, "--lr", "1e30", "--runs-dir", str(tmp_path), "--run-name", "wild"],
    ]
    torch.save({"cases": cases, "runs": runs}, tmp_path / "inputs")
    (tmp_path / "worker.py").write_text(WORKER)
    job = torchrun(tmp_path / "worker.py", tmp_path / "inputs", tmp_path / "out")
    _, errors = job.communicate(timeout=200)
    assert job.returncode == 0, errors

    results = [torch.load(tmp_path / f"out-{rank}", weights_only=True) for rank in range(2)]
    for i, (model, batch) in enumerate(made):
        freeze_statistics(model)
        values, gradients = step_of(model, batch)
        for result in results:
            torch.testing.assert_close(result["results"][i]["values"], values)
            for name, gradient in gradients.items():
                torch.testing.assert_close(result["results"][i]["gradients"][name], gradient, atol=5e-6, rtol=1e-4)
    for result in results:  # what one process finds wrong is everyone's sentence
        folder, chunks, diverged, disk = result["ends"]
        assert folder.startswith("InputError: cannot make the folder")
        assert chunks.startswith("InputError: several processes go without --chunk-size")
        assert diverged.startswith("SystemExit: error: training diverged at epoch 1")
        assert disk.startswith("InputError: cannot read or write last.pth: No space left on device")
    assert (tmp_path / "wild" / "diverged.txt").exists()


@pytest.mark.parametrize(
    ("loss", "captions"), [*((loss, "digit") for loss in LOSSES), *((loss, "described") for loss in LOSSES)]
)
@pytest.mark.parametrize("chunk_size", [5, 30])
def test_cached_gradients_equal_the_plain_step(loss, captions, chunk_size):
    model, batch = pairs(30, loss, captions)
    if chunk_size < 30:
        freeze_statistics(model)
    before = copy.deepcopy(model.state_dict())
    value, gradients = step_of(model, batch)
    after = model.state_dict()
    running = {name: after[name].clone() for name in before if "running" in name}
    model.load_state_dict(before)
    cached, cached_gradients = step_of(model, batch, chunk_size=chunk_size)
    torch.testing.assert_close(cached, value)
    for name, gradient in cached_gradients.items():
        torch.testing.assert_close(gradient, gradients[name], atol=5e-6, rtol=1e-4)
    for name, statistics in running.items():
        torch.testing.assert_close(model.state_dict()[name], statistics)


@pytest.mark.parametrize("loss", ["infonce", "multi_positive"])
def test_shared_captions_leave_the_gradients_of_the_plain_step(loss):
    model, batch = pairs(30, loss)
    gradients = []
    for form in ("_shared", "_plain"):
        step = TrainingStep(model, [])
        assert step._loss == step._shared
        step._loss = getattr(step, form)
        gradients.append([step(batch)[0], *(p.grad.clone() for p in model.parameters())])
    for shared, plain in zip(*gradients, strict=True):
        torch.testing.assert_close(shared, plain, atol=5e-6, rtol=1e-4)


def test_cached_gradients_in_bf16_equal_those_of_the_plain_step_in_bf16():
    model, batch = pairs(24, "multi_positive")
    freeze_statistics(model)
    value, gradients = step_of(model, batch, bf16=True)
    cached, cached_gradients = step_of(model, batch, bf16=True, chunk_size=5)
    torch.testing.assert_close(cached, value, atol=1e-3, rtol=1e-3)
    for name, gradient in cached_gradients.items():
        difference = (gradient - gradients[name]).norm() / gradients[name].norm()
        assert difference < 0.01, name


@pytest.mark.parametrize("image_encoder", ["residual", "fast"])
def test_chunks_move_the_running_statistics_once(image_encoder):
    model, batch = pairs(24, "multi_positive", image_encoder=image_encoder)
    before = copy.deepcopy(model.state_dict())
    for chunk in batch.images.split(8):
        model.encode_image(chunk)
    expected = {name: value.clone() for name, value in model.state_dict().items() if "running" in name}
    model.load_state_dict(before)
    step_of(model, batch, chunk_size=8)
    for name, statistics in expected.items():
        torch.testing.assert_close(model.state_dict()[name], statistics)


@pytest.mark.parametrize("chunk_size", [None, 8])
def test_the_step_learns_and_tells_its_columns(chunk_size):
    model, batch = pairs(16, "multi_positive")
    step = TrainingStep(model, make_optimizers(model, Settings()), chunk_size=chunk_size)
    values = torch.stack([step(batch) for _ in range(30)])
    assert values[-1, 0] < values[0, 0]
    assert values[-1, 2] == pytest.approx(1 / model.logit_scale.exp().item())
    above = values[-1, 0] - step.excess(values[-1, 0])
    torch.testing.assert_close(above, model.loss_function.floor(batch.truth))


def test_a_large_batch_trains_in_chunks(tmp_path, small_mnist):
    flags = [*TINY, "--batch-size", 2048, "--chunk-size", 256, "--epochs", 1]
    assert train_here(*flags, "--runs-dir", tmp_path, "--run-name", "run").returncode == 0
    history = json.loads((tmp_path / "run" / "metrics.json").read_text())["history"]
    assert 0 < history[0]["excess_loss"] < history[0]["loss"]


# `train.py` on a tenth of the training images.
SMALL = f"""
import runpy
import my_utils
import my_dataset

load = my_dataset.load_mnist


def first_tenth(split, *where):
    whole = load(split, *where)
    return type(whole)(*(x[:5500] for x in whole)) if split == "train" else whole


my_dataset.load_mnist = first_tenth
runpy.run_path({str(ROOT / "train.py")!r}, run_name="__main__")
"""


def test_torchrun_stops_at_ctrl_c_survives_a_death_and_goes_on(tmp_path, data_path):
    """With a batch that two processes cannot share evenly."""
    runs, run = tmp_path / "runs", tmp_path / "runs" / "run"
    flags = [*TINY, "--epochs", 3, "--batch-size", 51]
    (tmp_path / "small.py").write_text(SMALL)
    job = torchrun(tmp_path / "small.py", *flags, "--runs-dir", runs, "--run-name", "run")
    wait_for((run / "best_model.pth").exists, job)  # the end of the first epoch
    time.sleep(0.2)
    job.send_signal(signal.SIGINT)  # in the middle of the second: they stop together, at its end
    output, errors = job.communicate(timeout=120)
    assert "everything is saved" in output, errors
    state = torch.load(run / "last.pth", weights_only=True)
    assert 1 <= state["epoch"] < 3
    assert state["step"] == 0

    before = len(list(run.glob("events*")))
    job = torchrun(tmp_path / "small.py", "--resume", "--runs-dir", runs)
    wait_for(lambda: len(list(run.glob("events*"))) > before, job)  # it has begun
    children = subprocess.run(["pgrep", "-P", str(job.pid)], capture_output=True, text=True).stdout.split()
    os.kill(int(children[0]), signal.SIGKILL)
    _, errors = job.communicate(timeout=120)
    assert job.returncode != 0
    assert "error: another process of this run has ended" in errors
    assert not (runs / "best_model.pth").exists()

    job = torchrun(tmp_path / "small.py", "--resume", "--runs-dir", runs)
    output, errors = job.communicate(timeout=200)
    assert job.returncode == 0, errors
    assert output.count("digit_accuracy") == 1, "only one process speaks"
    metrics = json.loads((run / "metrics.json").read_text())
    assert [record["epoch"] for record in metrics["history"]] == [1, 2, 3]
    assert metrics["test_digit_accuracy"] > 0.3
    assert metrics["history"][-1]["excess_loss"] < metrics["history"][0]["excess_loss"]
    assert metrics["world_size"] == 2
    assert len(list(run.glob("events*"))) == 3, "one for each start, from the first process"


STUCK = """
import ctypes
from training import distributed

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


def test_one_process_of_torchrun_keeps_its_state_at_sigterm(monkeypatch):
    """clean_exit leaves the signal to the training loop, which saves first."""
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "29500")):
        monkeypatch.setenv(name, value)
    before = signal.getsignal(signal.SIGTERM)
    with distributed.clean_exit():
        assert signal.getsignal(signal.SIGTERM) is before


def test_several_processes_that_cannot_find_each_other_are_one_sentence(monkeypatch):
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "1")
    distributed.start()  # one process needs nobody
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="no RANK, MASTER_ADDR, MASTER_PORT: start them with torchrun"):
        distributed.start()
