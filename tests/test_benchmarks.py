import json

import pytest
import torch

import train
from benchmarks.profile_step import Step
from benchmarks.recipes import our_step, plain_classifier, pytorch_example, toy_clip
from benchmarks.seeds import check_same
from clip import CLIP
from my_dataset import Split, load_mnist
from my_utils import InputError

FLAGS = ["--preset", "speed", "--seed", "3"]


def test_the_step_that_is_profiled_is_that_of_the_preset(tmp_path):
    step = Step(FLAGS, torch.device("cpu"))
    args, _, _ = train.settle_run([*FLAGS, "--runs-dir", str(tmp_path)])
    wanted = {name: value for name, value in vars(args).items() if name in step.model.arch}
    assert {"embed_dim", "blocks", "margin", "pool"} <= wanted.keys()
    assert {name: step.model.arch[name] for name in wanted} == wanted
    before = [parameter.clone() for parameter in step.model.parameters()]
    images, labels = torch.randint(256, (500, 28, 28), dtype=torch.uint8), torch.randint(10, (500,))
    step(images, labels)
    assert all((old != new).any() for old, new in zip(before, step.model.parameters(), strict=True))


@pytest.mark.parametrize("chunk_size", [None, 8])
def test_the_benchmarks_step_learns(chunk_size):
    torch.manual_seed(0)
    model = CLIP(8, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    images, labels = torch.randint(256, (16, 28, 28), dtype=torch.uint8), torch.arange(16) % 10
    losses = [float(our_step(model, optimizer, images, labels, chunk_size)) for _ in range(30)]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("recipe", [plain_classifier, pytorch_example, toy_clip])
def test_other_peoples_recipes_learn(recipe, data_path):
    train_split, test_split = (Split(*(x[:5000] for x in load_mnist(name, data_path))) for name in ("train", "test"))
    limits = {pytorch_example: {"limit": 1}, toy_clip: {"target": 0.6}}
    run = recipe(train_split, test_split, seed=0, **limits.get(recipe, {}))
    assert run.accuracy > 0.6
    assert run.seconds > 0


def test_a_run_counts_as_done_only_with_the_same_settings_and_version(tmp_path):
    run = tmp_path / "run"
    check_same(run, FLAGS)  # nothing is there yet
    args, _, _ = train.settle_run([*FLAGS, "--runs-dir", str(tmp_path), "--run-name", "run"])
    run.mkdir()
    (run / "config.json").write_text(json.dumps(vars(args)))
    check_same(run, FLAGS)
    with pytest.raises(InputError, match="seed 3, not 4: remove it"):
        check_same(run, ["--preset", "speed", "--seed", "4"])
    (run / "config.json").write_text(json.dumps({k: v for k, v in vars(args).items() if k != "margin"}))
    with pytest.raises(InputError, match="margin"):
        check_same(run, FLAGS)

    (run / "config.json").write_text(json.dumps(vars(args)))
    (run / "metrics.json").write_text("{}")
    torch.save({"format": "minist-clip-1"}, run / "best_model.pth")
    with pytest.raises(InputError, match="not a model of this project"):
        check_same(run, FLAGS)
