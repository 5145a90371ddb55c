import json
import math
import re
from types import SimpleNamespace

import pytest
import torch

import train
from attributes import unseen_combinations
from clip import CLIP
from conftest import TINY, curves, first_tenth, metrics_of, read_events, tensors, train_here
from my_utils import exit_on_error
from training.settings import PRESETS, Settings, parse_flags
from training.step import TrainingStep

# ---- a whole run on MNIST ----


def test_a_short_run_learns_mnist(trained):
    assert trained.metrics["test_digit_accuracy"] > 0.975
    assert trained.metrics["val_digit_accuracy"] > 0.97
    assert trained.metrics["test_text_to_image_precision"] > 0.97
    assert f"{trained.metrics['test_digit_accuracy']:.2%}" in trained.output


def test_a_run_prints_the_loss_at_chance_and_its_minimum(trained):
    line = r"loss of a first batch: (\S+) at chance, (\S+) at its minimum\n"
    chance, minimum = map(float, re.search(line, trained.output).groups())
    assert chance == pytest.approx(math.log(256), abs=1e-3)
    assert minimum == pytest.approx(math.log(256 / 10), abs=0.05)


def test_the_printed_range_of_the_loss_leaves_the_random_numbers_of_a_run_alone(tmp_path, small_mnist, monkeypatch):
    flags = [*TINY, "--captions", "attributes", "--epochs", 1, "--augment", "none", "--runs-dir", tmp_path]
    monkeypatch.setattr("train.evaluate", lambda model, split: {"seen_accuracy": 0.5})
    assert train_here(*flags, "--run-name", "printed").returncode == 0
    monkeypatch.setattr(TrainingStep, "loss_range", lambda step, batch: (0.0, 0.0))
    monkeypatch.setattr("train.next", lambda batches: None, raising=False)
    assert train_here(*flags, "--run-name", "silent").returncode == 0
    printed, silent = (torch.load(tmp_path / name / "last.pth")["parts"] for name in ("printed", "silent"))
    assert all(map(torch.equal, tensors(printed), tensors(silent)))


def test_metrics_and_config_say_what_was_run(trained):
    expected = {"epochs": 2, "seed": 0, "run": "short", "world_size": 1, "torch_version": torch.__version__}
    assert {name: trained.metrics[name] for name in expected} == expected
    assert trained.metrics["device"].endswith("threads")
    assert trained.metrics["train_seconds"] > 0
    history = trained.metrics["history"]
    assert [record["epoch"] for record in history] == [1, 2]
    assert history[1]["loss"] < history[0]["loss"]
    assert 0 < history[1]["kl"] < history[1]["loss"]
    assert CLIP.load(trained.checkpoint).metrics["test_digit_accuracy"] == trained.metrics["test_digit_accuracy"]
    assert trained.checkpoint.read_bytes() == (trained.run / "best_model.pth").read_bytes()
    config = json.loads((trained.run / "config.json").read_text())
    assert (config["width"], config["loss"], config["threads"]) == (16, "multi_positive", torch.get_num_threads())


def test_tensorboard_has_every_curve_and_picture(trained):
    events = read_events(trained.run)
    steps = curves(trained.run)
    expected = {f"step/{name}" for name in ("loss", "kl", "temperature", "grad_norm")}
    expected |= {"epoch/loss", "epoch/seconds", "validation/digit_accuracy", "validation/text_to_image_precision"}
    assert expected | {"final/test_digit_accuracy"} <= steps.keys()
    assert events.Tags()["images"] == ["similarity"]
    assert steps["validation/digit_accuracy"] == [213, 427], "the epochs' last steps"
    assert steps["step/loss"][20:24] == [200, 210, 214, 224], "each tenth step"
    assert "_hparams_/session_start_info" in events.summary_metadata


@pytest.mark.parametrize(("loss", "chunk_size"), [("infonce", 100), ("sigmoid", 100), ("multi_positive", 30)])
def test_the_other_losses_and_a_batch_in_chunks_train(loss, chunk_size, tmp_path, small_mnist):
    flags = [*TINY, "--loss", loss, "--batch-size", 100, "--chunk-size", chunk_size, "--augment", "none"]
    assert train_here(*flags, "--runs-dir", tmp_path, "--run-name", "run").returncode == 0
    history = metrics_of(tmp_path / "run")["history"]
    assert history[-1]["val_digit_accuracy"] > 0.5
    assert 0 < history[-1]["kl"] <= history[-1]["loss"] < history[0]["loss"]
    model = CLIP.load(tmp_path / "best_model.pth")
    assert (model.logit_bias is not None) == (loss == "sigmoid")
    assert model.arch["loss"] == loss


# ---- captions of attributes ----


@pytest.fixture(scope="module")
def attributes(data_path, tmp_path_factory) -> SimpleNamespace:
    """A short run on a tenth of MNIST with captions of attributes."""
    runs = tmp_path_factory.mktemp("attributes")
    flags = [*TINY, "--captions", "attributes", "--unseen-seed", 5, "--width", 8, "--embed-dim", 16]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("my_dataset.load_mnist", first_tenth)
        done = train_here(*flags, "--ema-decay", 0.9, "--runs-dir", runs, "--run-name", "run")
    assert done.returncode == 0, done.stderr
    return SimpleNamespace(run=runs / "run", output=done.stdout, metrics=metrics_of(runs / "run"))


def test_a_run_on_attributes_tells_seen_and_unseen_combinations_apart(attributes):
    metrics, history = attributes.metrics, attributes.metrics["history"]
    assert history[-1]["kl"] < history[0]["kl"]
    for split in ("val", "test"):
        for name in ("seen", "unseen"):
            assert 0.05 < metrics[f"{split}_{name}_accuracy"] < metrics[f"{split}_digit_accuracy"]  # one of ninety
    model = CLIP.load(attributes.run / "best_model.pth")
    assert (model.arch["captions"], model.arch["unseen_seed"]) == ("attributes", 5)
    assert torch.equal(model.unseen, unseen_combinations(5))
    for name in ("seen", "unseen"):
        assert len(curves(attributes.run)[f"validation/{name}_accuracy"]) == 3
        assert metrics[f"val_{name}_accuracy"] != metrics[f"test_{name}_accuracy"]
        assert f"{metrics[f'test_{name}_accuracy']:.2%}" in attributes.output


def test_unseen_combinations_have_no_part_in_the_choice_of_the_best_epoch(attributes):
    history = attributes.metrics["history"]
    best = max(range(3), key=lambda epoch: (history[epoch]["val_seen_accuracy"], epoch))
    assert attributes.metrics["best_epoch"] == best + 1


def test_a_run_averages_all_its_steps_and_saves_the_average(attributes):
    parts = torch.load(attributes.run / "last.pth", weights_only=True)["parts"]
    assert parts["ema"]["steps"] == 3 * (5_500 // 256)
    best = torch.load(attributes.run / "best_model.pth", weights_only=True)
    assert best["metrics"]["best_epoch"] == 3
    assert all(map(torch.equal, tensors(best["state_dict"]), tensors(parts["ema"]["model"])))
    assert not torch.equal(parts["ema"]["model"]["logit_scale"], parts["model"]["logit_scale"])


def test_the_model_is_that_of_the_settings_and_its_bias_starts_at_one_in_eight():
    flags = ["--preset", "speed", "--captions", "attributes", "--loss", "sigmoid", "--width", "4"]
    settings, _ = parse_flags(Settings, flags, "train.py", "", PRESETS)
    model = train.build_model(settings)
    assert model.logit_bias.sigmoid().item() == pytest.approx(1 / 8, abs=0.01)
    for name in ("embed_dim", "image_encoder", "width", "captions", "loss", "init_temperature"):
        assert model.arch[name] == getattr(settings, name)
    assert model.config == vars(settings)


def test_the_fast_encoder_takes_two_threads_at_most_and_the_other_all(tmp_path, small_mnist, monkeypatch):
    threads, own = [], torch.get_num_threads()
    call = TrainingStep.__call__
    monkeypatch.setattr(TrainingStep, "__call__", lambda *a: threads.append(torch.get_num_threads()) or call(*a))
    flags = [*TINY, "--epochs", 1, "--batch-size", 2000, "--runs-dir", tmp_path, "--run-name"]
    try:
        torch.set_num_threads(3)
        assert train_here(*flags, "residual", "--image-encoder", "residual").returncode == 0
        assert train_here(*flags, "fast").returncode == 0
        torch.set_num_threads(1)
        assert train_here(*flags, "single").returncode == 0
    finally:
        torch.set_num_threads(own)
    assert threads == [3, 3, 2, 2, 1, 1]
    assert json.loads((tmp_path / "fast" / "config.json").read_text())["threads"] == 2


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
@pytest.mark.parametrize("where", ["training.step.TrainingStep.__call__", "train.build_model"])
def test_a_model_that_does_not_fit_into_memory_is_one_sentence(
    error, where, tmp_path, small_mnist, monkeypatch, capsys
):
    def no_room(*_):
        raise error

    monkeypatch.setattr(where, no_room)
    with pytest.raises(SystemExit) as end, exit_on_error(memory="lower --batch-size"):
        train_here(*TINY, "--runs-dir", tmp_path)
    assert end.value.code == 2
    assert capsys.readouterr().err == "error: out of memory: lower --batch-size\n"
