"""What needs a GPU: `make test ARGS="-m cuda"`. Without one these tests are skipped; the last ones use fake tensors."""

import os
import signal
import warnings

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import my_dataset
from benchmarks.common import Training
from captions import Labels, Texts
from clip import CLIP, captions_for
from conftest import TINY, freeze_statistics, gradients, train_here
from data.outliers import Outliers
from image_encoder import ImageEncoder
from losses import LOSSES
from modalities import speech, strokes
from my_dataset import Batch, MNISTPairs, ScenePairs
from training.optim import make_optimizers
from training.step import TrainingStep

CPU = torch.device("cpu")
FLAGS = ["--width", "4", "--embed-dim", "16", "--batch-size", "64", "--precision", "fp32"]
ATTRIBUTES = [*FLAGS, "--part-weight", "0"]  # the captions of the parts are drawn on each device
DIGIT = [*FLAGS, "--captions", "digit", "--image-encoder", "fast", "--muon-lr", "0"]
# Sums in another order in float32 can flip a ReLU at zero, which moved one bias's gradient by 2% between two memory
# formats on a CPU.
ROUNDING = 0.05
BOTH = pytest.mark.parametrize("flags", [ATTRIBUTES, DIGIT], ids=["attributes", "digit"])


@pytest.fixture
def device() -> torch.device:
    """The GPU. (Return CPU here to see these tests run where there is none.)"""
    if not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU that torch can use")
    return torch.device("cuda")


def to(batch: Batch, device: torch.device) -> Batch:
    texts = Texts(batch.texts.sentences, batch.texts.index.to(device))
    return Batch(batch.images.to(device), texts, Labels(*(part.to(device) for part in batch.labels)))


def relative_distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / a.norm().clamp(min=1e-6))


# ---- on a GPU ----


@pytest.mark.cuda
@BOTH
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("chunk_size", [None, 25])
def test_one_step_on_the_cpu_and_on_the_gpu_agree(chunk_size, loss, flags, device, data_path):
    here, there = (Training([*flags, "--loss", loss], where) for where in (CPU, device))
    there.model.load_state_dict(here.model.state_dict())
    if chunk_size:
        freeze_statistics(here.model)
        freeze_statistics(there.model)
    batch, optimizers = next(here.batches), list(there.optimizers.values())
    expected, values = here.step(batch), TrainingStep(there.model, optimizers, chunk_size=chunk_size)(to(batch, device))
    assert {value.device.type for value in values.values()} == {device.type}
    for name, value in values.items():
        torch.testing.assert_close(value.cpu(), expected[name], rtol=2e-3, atol=1e-4)
    found = gradients(there.model)
    for name, gradient in gradients(here.model).items():
        assert relative_distance(gradient, found[name]) < ROUNDING, name


@pytest.mark.cuda
@BOTH
def test_bf16_on_the_gpu_is_close_to_float32_and_learns(flags, device, data_path):
    exact, coarse = Training(flags, device, bf16=False), Training(flags, device, bf16=True)
    coarse.model.load_state_dict(exact.model.state_dict())
    batch = next(exact.batches)
    expected, loss = exact.step(batch)["loss"], coarse.step(batch)["loss"]
    torch.testing.assert_close(loss, expected, rtol=0.01, atol=0)
    assert loss != expected, "it did not compute in bf16"
    one, other = (torch.cat([g.flatten() for g in gradients(t.model).values()]) for t in (exact, coarse))
    assert torch.cosine_similarity(one, other, dim=0) > 0.98
    assert [coarse.step(batch)["loss"] for _ in range(40)][-1] < 0.8 * loss


@pytest.mark.cuda
@pytest.mark.parametrize("resumed_on", ["cuda", "cpu"])
def test_a_run_on_the_gpu_is_resumed_from_its_last_epoch(resumed_on, device, tmp_path, small_mnist, monkeypatch):
    """On the same device with the same batches: they are sampled there."""
    flags = [*TINY, "--captions", "attributes", "--device", device, "--ema-decay", 0.9, "--runs-dir", tmp_path]
    call, batches, stop_at = TrainingStep.__call__, [], 0

    def watched(self, batch, lr_factor):
        batches.append(batch)
        if len(batches) == stop_at:
            os.kill(os.getpid(), signal.SIGINT)
        return call(self, batch, lr_factor)

    monkeypatch.setattr(TrainingStep, "__call__", watched)
    assert train_here(*flags, "--run-name", "whole").returncode == 0
    whole, batches, stop_at = batches, [], 30  # of 63 steps: in the second epoch
    assert train_here(*flags, "--run-name", "cut").returncode == 130
    batches, stop_at = [], 0
    assert train_here("--resume", "cut", "--runs-dir", tmp_path, "--device", resumed_on).returncode == 0
    assert (len(whole), len(batches)) == (63, 42), "two whole epochs"
    assert {batch.images.device.type for batch in batches} == {resumed_on}
    for one, other in zip(whole[21:], batches, strict=True):
        is_same = torch.equal(one.texts.index.cpu(), other.texts.index.cpu())
        assert is_same == (resumed_on == device.type)


@pytest.mark.cuda
@pytest.mark.parametrize(
    "more", [[], ["--preset", "speed"], ["--preset", "accuracy"], ["--chunk-size", "64"], ["--captions", "scenes"]]
)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_no_step_waits_for_the_gpu(more, precision, device, data_path):
    """torch itself raises where the CPU would wait, while a batch is made as in the step."""
    training = Training([*more, "--ema-decay", "0.9", "--precision", precision], device)
    for _ in range(3):
        training()  # an epoch's beginning waits, and the first steps make what the later ones reuse
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
    """Raises if an operation meets tensors of two devices: it would fail on a GPU, or copy and so wait for it.

    (Fake tensors alone let copies pass, and indices on another device. A scalar may take part in any operation.)
    """

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **kwargs or {})
        is_copy = func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
        found = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, torch.Tensor)]
        devices = sorted({x.device.type for x in found if x.ndim or is_copy})
        assert len(devices) < 2, f"{func} meets tensors on {' and '.join(devices)}"
        return result


def fake(x: torch.Tensor) -> torch.Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device="cuda")


@pytest.mark.parametrize(
    ("kind", "image_encoder", "text_encoder"),
    [("digit", "fast", "table"), ("attributes", "residual", "order"), ("scenes", "scene", "transformer")],
)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("chunk_size", [None, 30])
def test_a_training_step_keeps_to_one_device_and_reads_nothing(
    kind, image_encoder, text_encoder, loss, chunk_size, data_path, monkeypatch
):
    if kind == "scenes":
        pairs, outliers = ScenePairs("val", data_path), ()
        of_data = [(pairs.by_digit, name) for name in ("order", "counts", "first")]
    else:
        pairs = MNISTPairs("val", data_path, captions=captions_for(kind, "table"))
        outliers, of_data = pairs._outliers(torch.arange(len(pairs)), 0, 0), [(pairs, "unseen")]
    of_data += [(pairs, name) for name in ("images", "labels", "unknown", "claims")]
    of_data += [(pairs, "seen")] if kind == "scenes" else []
    pairs.augment = "elastic"
    CLIP(captions=kind, image_encoder=image_encoder)  # what is kept for the whole process gets its values here
    with FakeTensorMode(allow_non_fake_inputs=True):
        for owner, name in of_data:
            setattr(owner, name, fake(getattr(owner, name)))
        # Both are made once an epoch: they may wait. Their generators would need a card.
        if outliers:
            outliers = Outliers(*map(fake, outliers))
            monkeypatch.setattr(pairs, "_outliers", lambda *_: outliers)
        monkeypatch.setattr(my_dataset, "epoch_generator", lambda *_: None)
        with torch.device("cuda"):
            model = CLIP(16, image_encoder, 4, kind, text_encoder=text_encoder, loss=loss).train()
        sentences = pairs.captions.sentences  # tokenized once a run, on the CPU
        model._tokenized = (sentences, torch.empty(len(sentences), 10, dtype=torch.int64, device="cuda"))
        step = TrainingStep(
            model, list(make_optimizers(model, 0.1, 0.1).values()), chunk_size=chunk_size, part_weight=0.75
        )

        def backward(x, gradient=None):  # the real one needs a card
            for p in model.parameters():
                p.grad = torch.empty_like(p)
            for leaf in leaves:
                leaf.grad = torch.empty_like(leaf)

        leaves, requires_grad = [], torch.Tensor.requires_grad_
        monkeypatch.setattr(torch.Tensor, "requires_grad_", lambda x: leaves.append(x) or requires_grad(x))
        monkeypatch.setattr(torch.Tensor, "backward", backward)
        batches = pairs.epoch(60)
        next(batches)  # with what is done once an epoch
        with NoCopies():
            values = step(next(batches))
        assert {(value.device.type, value.shape) for value in values.values()} == {("cuda", ())}


def test_the_other_towers_keep_to_one_device_and_read_nothing():
    # (torch has no fake form of cuDNN's sampling of a grid, but of its own.)
    with FakeTensorMode(), torch.backends.cudnn.flags(enabled=False):
        with torch.device("cuda"):
            towers = ImageEncoder(16, width=4), strokes.StrokeEncoder(16), speech.SpeechEncoder(16)
            points, mels = torch.empty(60, 8, 2), torch.empty(60, 40, 64)
        with NoCopies():
            points = strokes.augment(points)
            inputs = strokes.draw(points), points, speech.augment(mels)
            for tower, x in zip(towers, inputs, strict=True):
                assert (tower(x).device.type, tower(x).shape) == ("cuda", (60, 16))


def test_fake_tensors_do_find_faults():
    with FakeTensorMode():
        x = torch.empty(4, 28, 28, device="cuda")
        with NoCopies():
            with pytest.raises(DataDependentOutputException, match="_local_scalar_dense"):
                x.sum().item()
            with pytest.raises(DynamicOutputShapeException, match="nonzero"):
                x[x[:, 0, 0] > 0]
            for fault in (lambda: x.cpu(), lambda: x[torch.arange(4)], lambda: torch.tensor([1.0], device="cuda")):
                with pytest.raises(AssertionError, match="meets tensors on cpu and cuda"):
                    fault()
