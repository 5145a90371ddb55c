import copy
import math
import os
import re
import signal
from pathlib import Path

import children
import pytest
import torch

from attributes import ATTRIBUTES, combination_ids, unseen_combinations
from captions import Labels, Texts, digit_facts, image_facts, sample_descriptions, unknown_labels
from clip import CLIP
from conftest import ROOT, TINY, freeze_statistics, gradients, metrics_of, tensors
from losses import LOSSES, min_loss
from my_dataset import Batch
from my_utils import InputError
from training import distributed
from training.optim import make_optimizers
from training.settings import Settings
from training.step import TrainingStep

FLAGS = [*TINY, "--epochs", 4, "--ema-decay", 0.9, "--batch-size", 100]  # an epoch of 20 steps

# A program for torchrun: training on few images, which is interrupted as by Ctrl-C.
INTERRUPTED = """
import signal
import sys

import children
from my_utils import exit_on_error

with exit_on_error():
    children.train(sys.argv[1:], "step 30", signal.SIGINT, to_parent=True)
"""


def noise(size: int, loss: str, captions: str = "digit", **arch) -> tuple[CLIP, Batch]:
    """A model and a batch of noise, with texts and labels as if it were digits of any thickness and slant."""
    torch.manual_seed(0)
    model = CLIP(8, width=2, captions=captions, loss=loss, init_logit_bias=-1.0 if loss == "sigmoid" else None, **arch)
    digits = torch.randint(10, (size,))
    edges = torch.tensor([one.edges for one in ATTRIBUTES])  # [A, 4]
    values = edges.mean(dim=1) + torch.randn(size, len(ATTRIBUTES)) * edges.std(dim=1)  # [B, A]
    ids, facts = digits, digit_facts(digits)
    unknown = torch.zeros_like(facts)
    if captions == "attributes":
        ids, facts = sample_descriptions(digits, values), image_facts(digits, values)
        unknown = unknown_labels(unseen_combinations())[combination_ids(digits, values)]
    labels = Labels(facts, model.captions.claims[ids], unknown)
    return model.train(), Batch(torch.rand(size, 1, 28, 28) / 2, model.captions.sample(ids), labels)


def step_without_optimizer(model: CLIP, batch: Batch, **options) -> tuple[torch.Tensor, dict]:
    """A training step's loss and KL divergence [2], and the gradients that it leaves."""
    torch.manual_seed(0)  # of the parts' captions
    values = TrainingStep(model, [], part_weight=0.75, **options)(batch)
    return torch.stack([values["loss"], values["kl"]]), gradients(model)


def assert_equal_gradients(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], atol=5e-6, rtol=1e-4, msg=name)


def gradients_of_share(file: Path) -> None:
    """What each of two processes does: the loss and the gradients of its share of some batches."""
    distributed.start()
    rank, world_size = distributed.rank(), distributed.world_size()
    results = []
    for case in torch.load(file, weights_only=True):
        model = CLIP(**case["arch"]).train()
        model.load_state_dict(case["model"])
        freeze_statistics(model)
        images, texts, *labels = (x.chunk(world_size)[rank] for x in case["batch"])
        batch = Batch(images, Texts(model.captions.sentences, texts), Labels(*labels))
        results.append(step_without_optimizer(model, batch))
    torch.save(results, file.with_name(f"rank {rank}"))
    distributed.stop()


def torchrun(flags: list) -> None:
    """What the command torchrun does with these flags: it starts processes of their own."""
    from torch.distributed.run import main

    main([str(flag) for flag in flags])


def test_two_processes_have_the_loss_and_gradients_of_one(tmp_path, tiny_albert):
    plus = {"text_encoder": "plus", "text_options": {"text_model": str(tiny_albert)}}  # a language model that learns
    cases = [
        noise(24, "multi_positive"),
        noise(24, "multi_positive", "attributes"),
        noise(24, "sigmoid", "attributes"),
        noise(24, "infonce", "attributes", image_encoder="fast"),
        noise(24, "multi_positive", **plus),
    ]
    inputs = [
        {"arch": model.arch, "model": model.state_dict(), "batch": [batch.images, batch.texts.index, *batch.labels]}
        for model, batch in cases
    ]
    torch.save(inputs, tmp_path / "cases")
    processes = children.start_two(gradients_of_share, tmp_path / "cases", output=tmp_path / "out")
    assert children.exit_codes(processes) == [0, 0], (tmp_path / "out-0.stderr").read_text()
    results = [torch.load(tmp_path / f"rank {rank}", weights_only=True) for rank in range(2)]
    for (model, batch), *shares in zip(cases, *results, strict=True):
        freeze_statistics(model)
        expected, expected_gradients = step_without_optimizer(model, batch)
        for values, gradients_of_process in shares:
            torch.testing.assert_close(values, expected)
            assert_equal_gradients(gradients_of_process, expected_gradients)


def train_two(folder: Path, *flags, **options) -> tuple[list[int], list[str]]:
    """Train with two processes. Returns their exit codes, and what they print to stderr."""
    flags = [*flags, "--runs-dir", folder]
    processes = children.start_two(children.train, flags, *options.values(), output=folder / "out")
    codes = children.exit_codes(processes)
    return codes, [(folder / f"out-{rank}.stderr").read_text() for rank in range(2)]


def test_a_batch_that_fits_neither_the_data_nor_the_processes_is_refused():
    for settings, processes, message in (
        (Settings(batch_size=55_001), 1, "--batch-size 55001 is larger than the 55,000 pairs of an epoch"),
        (Settings(chunk_size=64), 2, "several processes go without --chunk-size: leave it out"),
        (Settings(batch_size=257), 2, "--batch-size 257 does not give each of 2 processes the same"),
        (Settings(batch_size=2), 2, "--batch-size 2 does not give each of 2 processes the same two or more pairs"),
    ):
        with pytest.raises(InputError, match=message):
            settings.check_batch(55_000, processes)


def test_each_process_takes_a_gpu_of_its_own(monkeypatch):
    taken = []
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.set_device", taken.append)
    monkeypatch.setattr("torch.distributed.init_process_group", lambda backend: None)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    distributed.start("cpu")
    distributed.start("cuda:0")
    assert taken == []
    distributed.start("auto")
    assert taken == [1]
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(InputError, match="2 processes but 1 GPUs: lower --nproc-per-node, or use --device cpu"):
        distributed.start()


def test_two_processes_refuse_a_batch_that_they_cannot_share(tmp_path, data_path):
    codes, errors = train_two(tmp_path, *FLAGS, "--batch-size", 257)
    assert codes == [2, 2]
    assert all(re.match("error: --batch-size 257 does not give each of 2 .*\n$", error) for error in errors)
    assert not any(path.is_dir() for path in tmp_path.iterdir()), "nothing is left behind"


def test_two_processes_diverge_together_and_one_says_so(tmp_path, data_path):
    flags = ["--lr", 100, "--muon-lr", 100, "--ema-decay", 0, "--run-name", "run"]
    codes, errors = train_two(tmp_path, *FLAGS, *flags)
    assert codes == [1, 1]
    assert errors[0].startswith("error: training diverged at epoch 1, step")
    assert errors[1] == ""


def test_torchrun_is_interrupted_a_process_is_killed_and_the_run_ends_with_the_same_bits(tmp_path, data_path):
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert train_two(tmp_path, *FLAGS, "--run-name", "whole") == ([0, 0], ["", ""])
    (tmp_path / "best_model.pth").unlink()

    (tmp_path / "interrupted.py").write_text(INTERRUPTED)
    flags = ["--standalone", "--nproc-per-node", 2, tmp_path / "interrupted.py", *FLAGS, "--runs-dir", tmp_path]
    paths = {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
    launcher = children.start(torchrun, [*flags, "--run-name", "run"], output=tmp_path / "torchrun", **paths)
    assert children.exit_codes([launcher]) != [0]
    advice = f"-m torch.distributed.run --nproc-per-node 2 train.py --resume {run}\n"
    assert (tmp_path / "torchrun.stderr").read_text().count(advice) == 1
    assert torch.load(run / "last.pth", weights_only=True)["epoch"] == 1

    codes, _ = train_two(tmp_path, "--resume", moment="last.pth.tmp 2")
    assert codes == [-signal.SIGKILL, 1]
    assert not (tmp_path / "best_model.pth").exists(), "only a finished run is published"

    assert train_two(tmp_path, "--resume") == ([0, 0], ["", ""])
    assert (tmp_path / "out-0.stdout").read_text().count("digit_accuracy") == 1
    assert (tmp_path / "out-1.stdout").read_text() == "", "only one process prints"
    assert len(list(run.glob("events*"))) == 4, "one for each start and one for the settings, of the first process"
    metrics, expected = map(metrics_of, (run, whole))
    for record in (*metrics["history"], *expected["history"]):
        del record["seconds"]
    assert metrics["history"] == expected["history"]
    assert [record["epoch"] for record in metrics["history"]] == [1, 2, 3, 4]
    assert metrics["history"][-1]["kl"] < metrics["history"][0]["kl"]
    assert metrics["world_size"] == 2
    states = [tensors(torch.load(path / "last.pth", weights_only=True)["parts"]) for path in (run, whole)]
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))


def test_processes_that_cannot_find_each_other_or_are_too_many_are_one_sentence(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    distributed.start()  # one process needs no other
    assert (distributed.rank(), distributed.world_size()) == (0, 1)
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(InputError, match=r"cannot find each other .*: start them with torchrun"):
        distributed.start()
    distributed.refuse("a script")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="a script trains with one process: start it with python"):
        distributed.refuse("a script")


# ---- one process: the step, whole and in chunks ----


@pytest.mark.parametrize("captions", ["digit", "attributes"])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("chunk_size", [25, 60])
def test_gradients_in_chunks_equal_those_of_the_whole_batch(loss, captions, chunk_size):
    """Equal up to rounding, if batch norm takes its running statistics, which are not those of a chunk."""
    model, batch = noise(60, loss, captions)
    freeze_statistics(model)
    before = copy.deepcopy(model.state_dict())
    expected, whole = step_without_optimizer(model, batch)
    model.load_state_dict(before)
    values, in_chunks = step_without_optimizer(model, batch, chunk_size=chunk_size)
    torch.testing.assert_close(values, expected)
    assert_equal_gradients(in_chunks, whole)
    if captions == "digit":
        torch.testing.assert_close(model.loss(batch), expected[0])


def test_bf16_gradients_in_chunks_equal_those_of_the_whole_batch():
    model, batch = noise(24, "multi_positive")
    freeze_statistics(model)
    expected, whole = step_without_optimizer(model, batch, bf16=True)
    values, in_chunks = step_without_optimizer(model, batch, bf16=True, chunk_size=5)
    torch.testing.assert_close(values, expected, atol=1e-3, rtol=1e-3)
    for name, gradient in in_chunks.items():  # (captions of digits negate nothing: that gradient is 0)
        assert (gradient - whole[name]).norm() <= 0.01 * whole[name].norm(), name


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("chunk_size", [None, 8])
def test_the_step_learns_and_returns_its_metrics(chunk_size, loss):
    model, batch = noise(16, loss)
    settings = Settings()
    optimizers = make_optimizers(model, settings.lr, settings.muon_lr).values()
    step = TrainingStep(model, list(optimizers), chunk_size=chunk_size)
    first, *_, last = (step(batch) for _ in range(30))
    assert last.keys() == {"loss", "kl", "grad_norm", "temperature"}
    assert last["loss"] < first["loss"]
    assert last["temperature"] == pytest.approx(1 / model.logit_scale.exp().item())
    positive, _ = batch.labels.match()
    least = (min_loss(model.loss_function, positive) + min_loss(model.loss_function, positive.T)).mean() / 2
    torch.testing.assert_close(last["loss"] - last["kl"], least)
    assert (least > 0) == (loss == "multi_positive")
    assert 0 < last["grad_norm"] < float("inf")


@pytest.mark.parametrize("captions", ["digit", "attributes"])
@pytest.mark.parametrize("loss", LOSSES)
def test_the_range_of_the_loss_is_that_of_a_step_whose_cosines_are_all_zero(loss, captions):
    model, batch = noise(60, loss, captions)
    step = TrainingStep(model, [], part_weight=0.75)
    chance, minimum = step.loss_range(batch)
    for parameter in model.towers.parameters():
        parameter.data.zero_()
    value, kl = step.forward_backward(batch)
    assert chance == pytest.approx(value.item(), rel=1e-5)
    assert 0 <= minimum < chance
    if loss != "infonce":
        assert minimum == pytest.approx((value - kl).item(), abs=1e-5)
    elif captions == "digit":
        assert chance == pytest.approx(math.log(60))
        counts = batch.labels.facts.sum(dim=0).tolist()  # images of each digit, whose captions are one text
        assert minimum == pytest.approx(sum(n * math.log(n) for n in counts if n) / 60)
