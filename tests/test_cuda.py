"""What needs a GPU: `make test ARGS="-m cuda"`. Elsewhere these tests are skipped, and a last one uses fake tensors."""

import copy
import os
import signal
import warnings

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from attributes import measure
from benchmarks.common import Training
from captions import Captions, Texts, Truth, captions_of
from clip import CLIP
from conftest import TINY, freeze_statistics, tensors, train_here
from data.fsdd import random_change
from data.not_digits import NoDigits
from data.pendigits import draw, random_strokes
from image_encoder import ImageEncoder
from losses import LOSSES
from my_dataset import Batch, MNISTPairs, random_warp
from speech_encoder import SpeechEncoder
from stroke_encoder import StrokeEncoder
from training.optimizers import make_optimizers
from training.settings import Settings
from training.step import TrainingStep

CPU = torch.device("cpu")
SMALL = ["--width", "4", "--embed-dim", "16", "--batch-size", "64", "--precision", "fp32"]
DIGIT = [*SMALL, "--captions", "digit", "--image-encoder", "fast", "--muon-lr", "0"]
# With another order of summing in float32 a ReLU may flip at zero, which moved one bias's gradient by 2% between two
# memory formats on a CPU; bf16 moves some by 20%.
ROUNDING = 0.05
KINDS = pytest.mark.parametrize("flags", [SMALL, DIGIT], ids=["described", "digit"])


@pytest.fixture
def device() -> torch.device:
    """The GPU. (Return CPU here to see these tests run, and fail, where there is none.)"""
    if not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU that torch can use: whether the program is right on one is not seen here")
    return torch.device("cuda")


def parts_of(batch: Batch) -> list[torch.Tensor]:
    return [x for x in (batch.images, batch.texts.index, *batch.truth) if x is not None]


def moved(batch: Batch, device: torch.device) -> Batch:
    images, index, *truth = (x.to(device) for x in parts_of(batch))
    return Batch(images, Texts(batch.texts.sentences, index), Truth(*truth), batch.size)


def gradients(model: CLIP) -> dict[str, torch.Tensor]:
    return {name: p.grad.cpu() for name, p in model.named_parameters()}


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    """How far b is from a, to the length of a."""
    return float((a - b).norm() / a.norm().clamp(min=1e-6))


# ---- on a GPU ----


@pytest.mark.cuda
@KINDS
def test_one_step_on_the_cpu_and_on_the_gpu_agree(flags, device, data_path):
    here, there = Training(flags, CPU), Training(flags, device)
    there.model.load_state_dict(here.model.state_dict())
    before = copy.deepcopy(here.model.state_dict())
    batch = next(here.batches)
    expected, values = here.step(batch), there.step(moved(batch, device))
    assert values.device.type == device.type
    torch.testing.assert_close(values[0].cpu(), expected[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(values[1:].cpu(), expected[1:], rtol=2e-3, atol=0)
    excess = there.step.excess(values[0]).cpu()
    torch.testing.assert_close(excess, here.step.excess(expected[0]), rtol=1e-5, atol=1e-5)
    found = gradients(there.model)
    for name, gradient in gradients(here.model).items():
        assert apart(gradient, found[name]) < ROUNDING, name
    weights = there.model.state_dict()
    for name, p in here.model.named_parameters():
        assert apart(p.detach() - before[name], weights[name].cpu() - before[name]) < 0.1, name


@pytest.mark.cuda
@pytest.mark.parametrize("loss", LOSSES)
def test_the_step_in_chunks_is_the_plain_one_on_the_gpu(loss, device, data_path, monkeypatch):
    monkeypatch.setattr("training.step.GRAD_CLIP", 1e30)
    captions = ["--captions", "digit"] * (loss == "infonce_distinct")
    training = Training([*SMALL, "--loss", loss, "--batch-size", "60", *captions], device)
    model, batch = training.model, next(training.batches)
    freeze_statistics(model)
    plain = TrainingStep(model, [])(batch)
    expected = gradients(model)
    torch.testing.assert_close(TrainingStep(model, [], chunk_size=25)(batch), plain, rtol=2e-3, atol=1e-4)
    for name, gradient in gradients(model).items():
        assert apart(expected[name], gradient) < ROUNDING, name


@pytest.mark.cuda
@KINDS
def test_bf16_on_the_gpu_is_close_to_float32_and_learns(flags, device, data_path):
    exact, coarse = Training(flags, device, bf16=False), Training(flags, device, bf16=True)
    coarse.model.load_state_dict(exact.model.state_dict())
    batch = next(exact.batches)
    expected, values = exact.step(batch), coarse.step(batch)
    assert values.dtype == torch.float32
    assert {p.dtype for p in coarse.model.parameters()} == {torch.float32}
    torch.testing.assert_close(values[0], expected[0], rtol=0.01, atol=0)
    assert values[0] != expected[0], "it did not compute in bf16"
    one, other = (torch.cat([g.flatten() for g in gradients(t.model).values()]) for t in (exact, coarse))
    assert torch.cosine_similarity(one, other, dim=0) > 0.98
    excess = coarse.step.excess(values[0])
    for _ in range(40):
        values = coarse.step(batch)
    assert coarse.step.excess(values[0]) < 0.7 * excess


@pytest.mark.cuda
@pytest.mark.parametrize("captions", ["digit", "described"])
def test_a_run_on_the_gpu_goes_on_where_it_was_cut_off(captions, device, tmp_path, small_mnist, monkeypatch):
    """Batches are drawn on the device: the same ones come, and the weights go on from those that were saved."""
    flags = [*TINY, "--captions", captions, "--device", device, "--ema-decay", 0.9, "--runs-dir", tmp_path]
    flags += ["--epochs", 4]  # two with warps, which are drawn at random, and two without
    call, seen, begun = TrainingStep.__call__, [], []
    stop_at = 0

    def watched(self, batch, lr_factor):
        if not begun:
            parts = [self.model, *self.optimizers, self.ema]
            begun.extend(x.cpu().clone() for x in tensors([part.state_dict() for part in parts]))
        seen.append([x.cpu() for x in parts_of(batch)])
        if len(seen) == stop_at:
            os.kill(os.getpid(), signal.SIGINT)
        return call(self, batch, lr_factor)

    monkeypatch.setattr(TrainingStep, "__call__", watched)
    assert train_here(*flags, "--run-name", "whole").returncode == 0
    whole, seen, stop_at = seen, [], 30  # of 84 steps: in the second epoch
    assert train_here(*flags, "--run-name", "cut").returncode == 130
    saved = tensors(torch.load(tmp_path / "cut" / "last.pth", weights_only=True, map_location="cpu")["parts"])
    begun, stop_at = [], 0
    assert train_here("--resume", "cut", "--runs-dir", tmp_path).returncode == 0
    assert len(seen) == len(whole) == 84
    for step, (one, other) in enumerate(zip(whole, seen, strict=True)):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True)), f"other pairs in step {step}"
    assert len(saved) == len(begun) > 50, "weights, moments and averages"
    assert all(torch.equal(a, b) for a, b in zip(saved, begun, strict=True))


@pytest.mark.cuda
def test_a_run_moves_between_cpu_and_gpu(device, tmp_path, small_mnist, monkeypatch):
    call, steps, placed = TrainingStep.__call__, [], []

    def interrupted(self, *arguments):
        steps.append(1)
        placed.append(arguments[0].images.device.type)
        if len(steps) in (10, 30):
            os.kill(os.getpid(), signal.SIGINT)
        return call(self, *arguments)

    monkeypatch.setattr(TrainingStep, "__call__", interrupted)
    assert train_here(*TINY, "--device", "cpu", "--runs-dir", tmp_path, "--run-name", "run").returncode == 130
    assert train_here("--resume", tmp_path / "run", "--device", device).returncode == 130
    assert train_here("--resume", tmp_path / "run", "--device", "cpu").returncode == 0
    assert placed == ["cpu"] * 10 + [device.type] * 20 + ["cpu"] * 33


@pytest.mark.cuda
@pytest.mark.parametrize("more", [[], ["--preset", "speed"], ["--preset", "accuracy"], ["--chunk-size", "64"]])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_no_step_waits_for_the_gpu(more, precision, device, data_path):
    """torch itself raises where the CPU would wait: in drawing, warping and measuring a batch as in the step."""
    training = Training([*more, "--ema-decay", "0.9", "--precision", precision], device)
    for _ in range(3):
        training()  # an epoch's beginning waits, and the first steps make what the later ones use again
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(5):
            training()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.cuda
def test_the_loop_around_the_steps_does_not_wait_either(device, tmp_path, data_path):
    def waits(batch_size: int) -> int:
        flags = [*TINY, "--epochs", 1, "--device", device, "--ema-decay", 0.9, "--batch-size", batch_size]
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter("always")
                train_here(*flags, "--runs-dir", tmp_path, "--run-name", f"run-{batch_size}")
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return sum("synchronizing" in str(warning.message) for warning in seen)

    assert 0 < waits(256) == waits(512), "as many in 214 steps as in 107"


# ---- without one: tensors that have a shape and a device, but no values ----


class NoCopies(TorchDispatchMode):
    """Raises where an operation meets tensors of two devices: it would fail on a GPU, or copy and so wait for it.

    (Fake tensors alone let copies pass, and indices of another device. A number may stand in any operation.)
    """

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **kwargs or {})
        is_copy = func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
        found = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, torch.Tensor)]
        devices = sorted({x.device.type for x in found if x.ndim or is_copy})
        assert len(devices) < 2, f"{func} meets tensors on {' and '.join(devices)}"
        return result


def fake_pairs(kind: str, data_path, monkeypatch) -> MNISTPairs:
    """Pairs whose tensors lie on a fake GPU, within a FakeTensorMode."""
    known = captions_of(kind, "table")
    pairs = MNISTPairs("val", data_path, captions=Captions(known.sentences, known.claims.tolist(), known.described))
    none = pairs._no_digits(torch.arange(len(pairs)), 0, 0)
    with FakeTensorMode():

        def fake(x):
            return torch.empty(x.shape, dtype=x.dtype, device="cuda")

        for name in ("images", "labels", "unseen", "unknown"):
            setattr(pairs, name, fake(getattr(pairs, name)))
        # Both are made once an epoch: they may wait, and their generators would need a card.
        monkeypatch.setattr(pairs, "_no_digits", lambda *_: NoDigits(*map(fake, none)))
        monkeypatch.setattr(pairs, "epoch_order", lambda *_: fake(torch.empty(5000, dtype=torch.int64)))
    return pairs


@pytest.mark.parametrize(("kind", "image_encoder"), [("digit", "fast"), ("described", "residual")])
def test_a_training_step_on_fake_tensors_keeps_to_one_device_and_reads_nothing(
    kind, image_encoder, data_path, monkeypatch
):
    pairs = fake_pairs(kind, data_path, monkeypatch)
    pairs.augment = "corrupted" if kind == "digit" else "elastic"
    with FakeTensorMode(allow_non_fake_inputs=True):
        with torch.device("cuda"):
            model = CLIP(16, image_encoder, 4, kind).train()
        sentences = pairs.captions.sentences  # which are read once a run, on the CPU
        model._tokenized = (sentences, torch.empty(len(sentences), 12, dtype=torch.int64, device="cuda"))
        step = TrainingStep(model, make_optimizers(model, Settings()))

        def backward(loss):  # the real one needs a card
            for p in model.parameters():
                p.grad = torch.empty_like(p)

        monkeypatch.setattr(torch.Tensor, "backward", backward)
        batches = pairs.epoch(60)
        next(batches)  # what is copied once a run
        with NoCopies():
            batch = next(batches)
            values = step(batch)
            excess = step.excess(values[0])
            output = model(batch.images, batch.texts)
            for loss in LOSSES.values():
                for value in (loss(output, batch.truth), loss.floor(batch.truth)):
                    assert (value.device.type, value.shape) == ("cuda", ())
        assert (values.device.type, len(values), excess.device.type) == ("cuda", 3, "cuda")


def test_the_other_towers_on_fake_tensors_keep_to_one_device_and_read_nothing():
    # (torch has no fake form of cuDNN's sampling of a grid, but of its own.)
    with FakeTensorMode(), torch.backends.cudnn.flags(enabled=False):
        with torch.device("cuda"):
            image, strokes, speech = ImageEncoder(16, width=4), StrokeEncoder(16), SpeechEncoder(16)
            points, mels = torch.empty(60, 8, 2), torch.empty(60, 40, 64)
        with NoCopies():
            points = random_strokes(points)
            for x in (image(draw(points)), strokes(points), speech(random_change(mels))):
                assert (x.device.type, x.shape) == ("cuda", (60, 16))


def test_fake_tensors_do_find_faults():
    with FakeTensorMode():
        x = torch.empty(4, 28, 28, device="cuda")
        with NoCopies():
            random_warp(x.to(torch.uint8))
            measure(x)
            with pytest.raises(DataDependentOutputException, match="_local_scalar_dense"):
                x.sum().item()
            with pytest.raises(DynamicOutputShapeException, match="nonzero"):
                x[x[:, 0, 0] > 0]
            for fault in (lambda: x.cpu(), lambda: x[torch.arange(4)], lambda: torch.tensor([1.0], device="cuda")):
                with pytest.raises(AssertionError, match="meets tensors on cpu and cuda"):
                    fault()
            with pytest.raises(RuntimeError, match="same device"):
                x * torch.ones(28)
