import importlib
import json
import math
import re
from argparse import Namespace
from pathlib import Path

import pytest
import torch

import train
from attributes import ATTRIBUTES, combination_ids, measure, unseen_combinations
from benchmarks import combinations, common, failures, figures, generation, losses, tables
from benchmarks.common import Training, cell
from benchmarks.recipes import OpenClip, plain_classifier, pytorch_example, toy_clip
from captions import DIGIT_WORDS, LABEL_ID, OUTLIERS, Labels, image_facts, multi_hot
from my_dataset import MNISTPairs, Split, load_mnist
from my_utils import InputError
from training.settings import PRESETS

CPU = torch.device("cpu")
SMALL = ["--embed-dim", "8", "--width", "4", "--muon-lr", "0", "--batch-size", "32"]
ORIGIN = {"device": "A CPU, 2 threads", "threads": 2, "torch_version": "2", "commit": "abc1234", "date": "2026-01-01"}


def test_cells_show_the_mean_and_the_standard_deviation():
    assert cell(0.9945) == "99.45%"
    assert cell([0.99, 0.97]) == "98.00% ± 1.41"
    assert cell([188.4, 200.4], " s") == "194 s ± 8"
    assert cell(0.20479, " s") == "0.205 s"
    assert cell(3475.2, "") == "3,475"
    assert cell(0, "") == "0.00"
    assert cell(None) == ""


def write(folder: Path, name: str, columns: list, rows: list, **more) -> None:
    args = Namespace(results=folder, command=f"python -m benchmarks.{name}")
    common.write_result(args, name, columns, rows, ORIGIN, **more)


def between(name: str) -> str:
    return f"before\n<!-- {name}: begin -->\nold\n<!-- {name}: end -->\nbehind\n"


def test_a_table_stands_between_its_markers_with_its_origin_in_the_details(tmp_path):
    write(tmp_path, "strokes", ["model", "accuracy"], [["ours", "80.00%"]], note="Two seeds.", zero_shot_accuracy=0.8)
    expected = "| model | accuracy |\n|---|---|\n| ours | 80.00% |\n"
    text = tables.render(between("strokes"), "README.md", tmp_path)
    assert text == between("strokes").replace("old\n", expected)
    assert tables.render(text, "README.md", tmp_path) == text
    origin = "\nTwo seeds. `python -m benchmarks.strokes`, A CPU, 2 threads, torch 2, commit abc1234, 2026-01-01\n"
    assert expected + origin in tables.render(text, tables.DETAILS, tmp_path)


def test_a_table_says_that_the_machine_was_busy(tmp_path):
    for cores in (0.05, 1.2):
        write(tmp_path, "strokes", ["model"], [["ours"]], machine={"other_cores": cores})
        shown = "other programs used 1.2 cores" in tables.render(between("strokes"), tables.DETAILS, tmp_path)
        assert shown == (cores > 1)


def test_what_was_not_measured_says_which_command_measures_it(tmp_path):
    write(tmp_path, "default", ["command", "seeds"], [["`train.py`", "0"]])
    text = tables.render(between("default + accuracy-preset + default-cuda"), "README.md", tmp_path)
    assert "| `train.py` | 0 |" in text
    assert "Not measured yet: `python -m benchmarks.seeds --name accuracy-preset -- --preset accuracy`" in text
    assert "Not measured yet: `make gpu`" in text
    text = tables.render(between("order-short"), "README.md", tmp_path)
    assert "Not measured yet: `python -m benchmarks.order --only order`" in text
    with pytest.raises(InputError, match=r"no benchmark writes strikes.json"):
        tables.render(between("strikes"), "README.md", tmp_path)


def test_the_chinese_table_has_chinese_names(tmp_path):
    write(tmp_path, "order", ["model", "swap"], [["bag of words: unseen pairs", "50.00%"]])
    text = tables.render(between("order"), tables.CHINESE, tmp_path)
    assert re.search(r"\| 模型[^|]* \| 交换 \|\n\|---\|---\|\n\| 词袋 \| 50\.00% \|", text)
    write(tmp_path, "order", ["model", "brand-new column"], [["bag of words: unseen pairs", "50.00%"]])
    with pytest.raises(InputError, match="no translation of 'brand-new column'"):
        tables.render(between("order"), tables.CHINESE, tmp_path)


def test_the_first_table_takes_its_figures_from_the_others(tmp_path):
    assert "| not measured yet |" in tables.render(between("reached"), "README.md", tmp_path)
    write(tmp_path, "speech", ["not trained on", "nearest caption"], [["mean of the six speakers", "91.60% ± 1.41"]])
    write(
        tmp_path,
        "combinations",
        ["model", "digit alone", "seen", "unseen", "unseen, unambiguous"],
        [["CLIP without masking", *[1] * 4], ["CLIP", *[99] * 4]],
    )
    write(tmp_path, "own", ["data", "image to text recall at 1"], [["fashion: `--epochs 1`", "93.00%"]])
    text = tables.render(between("reached"), "README.md", tmp_path)
    assert "| the digit, by the nearest of ten captions | 99 |" in text
    assert "by the names of its classes | 93.00% |" in text
    assert "| speech of an unseen speaker | 91.60% ± 1.41 |" in text


def test_every_result_is_a_table_with_its_origin():
    for path in common.RESULTS.glob("*.json"):
        result = json.loads(path.read_text(encoding="utf-8"))
        assert {"columns", "rows", "note", "command", *ORIGIN} <= result.keys(), path
        assert all(len(row) == len(result["columns"]) for row in result["rows"]), path
        assert path.stem.removesuffix("-cuda") in tables.COMMANDS, path


def test_results_of_make_figures_are_of_one_commit():
    """Whether they are of today's code, `python -m benchmarks.figures --list` tells."""
    planned = {tables.COMMANDS[name] for name in figures.PLAN}
    names = [name for name, command in tables.COMMANDS.items() if command in planned]
    results = {name: tables.read_result(name, common.RESULTS) for name in names}
    assert [name for name, result in results.items() if not result or "code" not in result] == []
    assert len({result["commit"] for result in results.values()}) == 1


def test_a_figure_depends_on_what_its_module_imports_and_on_texts_beside_it(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "ROOT", tmp_path)
    files = {
        "benchmarks/__init__.py": "",
        "benchmarks/one.py": "import torch\ndef f():\n    '''x'''\n    from core import x\n",
    }
    files |= {"core.py": "x = 1", "other.py": "", "benchmarks/two.py": "", "benchmarks/words.txt": "seven", "a.md": ""}
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    before, changed = figures.code_hash("benchmarks.one"), {}
    for name, content in files.items():
        if name.endswith(".py"):
            commented = '"""What it does."""\n' + content.replace("'x'", "'y'") + "  # why"
            (tmp_path / name).write_text(commented)
        assert figures.code_hash("benchmarks.one") == before, "comments and docstrings do not count"
        (tmp_path / name).write_text(content + "\nx = 1")
        changed[name] = figures.code_hash("benchmarks.one") != before
        (tmp_path / name).write_text(content)
    assert [name for name in files if changed[name]] == [*list(files)[:3], "benchmarks/words.txt"]


def test_make_figures_measures_all_that_the_tables_show_each_behind_what_it_uses():
    planned = [tables.COMMANDS[name] for name in figures.PLAN]
    assert len(set(planned)) == len(planned)
    assert set(tables.COMMANDS.values()) - set(planned) == {tables.COMMANDS["accuracy-50"]}, "this one is for a GPU"
    places = {name: place for place, name in enumerate(figures.PLAN)}
    assert places["page"] > max(places["default"], places["generation"], places["order"])


def test_make_figures_continues_where_it_stopped(tmp_path, monkeypatch, capsys):
    calls = []

    def run(command, cwd):
        name = command[-1].removeprefix("benchmarks.")
        calls.append(name)
        if name == "page" and calls.count("page") == 1:
            raise KeyboardInterrupt
        write(tmp_path, name, ["a"], [[1]])
        return Namespace(returncode=int(name == "own"))

    monkeypatch.setattr(figures, "PLAN", {"failures": 1, "page": 2, "own": 3})
    monkeypatch.setattr(figures, "RESULTS", tmp_path)
    monkeypatch.setattr(figures, "git_commit", lambda: "def5678")
    monkeypatch.setattr(figures, "code_hash", lambda module: f"hash of {module}")
    monkeypatch.setattr(figures, "write_pictures_and_models", lambda: calls.append("pictures"))
    monkeypatch.setattr(figures.tables, "main", lambda argv: 0)
    monkeypatch.setattr(figures.subprocess, "run", run)
    with pytest.raises(KeyboardInterrupt):
        figures.main([])
    assert figures.main([]) == 1
    assert calls == ["failures", "page", "page", "own"], "where one fails the pictures stay"
    assert "\nfailed: python -m benchmarks.own\n" in capsys.readouterr().out
    assert figures.main(["--list"]) == 0
    lines = ["failures: measured", "page: measured", "own: about 3 minutes"]
    assert capsys.readouterr().out.split("\n")[:3] == [f"python -m benchmarks.{line}" for line in lines]
    measured = json.loads((tmp_path / "failures.json").read_text())
    assert measured["code"] == "hash of benchmarks.failures"
    assert measured["commit"] == "def5678"
    assert 0 <= measured["machine"]["stolen"] <= 1
    assert measured["machine"]["other_cores"] >= 0
    write(tmp_path, "page", ["a"], [[1]], code="hash of benchmarks.page", command="python -m benchmarks.page --quick")
    figures.main(["--list"])
    assert "benchmarks.page: about 2 minutes" in capsys.readouterr().out, "with other flags it is another figure"
    monkeypatch.setattr(figures, "git_commit", lambda: "def5678+")
    with pytest.raises(InputError, match="commit it first"):
        figures.main([])


def test_every_benchmark_and_command_that_the_tables_name_exists():
    on_gpu = re.findall(r"\$\(GPU\)\.(.*)", (common.ROOT / "Makefile").read_text())
    assert len(on_gpu) > 5
    for command in [*tables.COMMANDS.values(), *on_gpu]:
        module, _, flags = command.partition(" ")
        assert importlib.import_module(f"benchmarks.{module}").__doc__
        if " -- " in flags:
            common.settings_of(flags.split(" -- ")[1].split())
    names = {re.search(r"--name (\S+)", command)[1] for command in on_gpu if "--name" in command}
    assert names <= tables.COMMANDS.keys()


def test_figures_of_different_machines_or_commits_have_no_mean():
    assert common.shared_origin([ORIGIN, ORIGIN | {"commit": "abc1234+"}])["commit"] == "abc1234+"
    assert common.shared_origin([ORIGIN, ORIGIN | {"date": "2026-01-02"}])["date"] == "2026-01-02"
    for name in common.ORIGIN:
        with pytest.raises(InputError, match=f"differ in {name}"):
            common.shared_origin([ORIGIN, ORIGIN | {name: "another"}])


def test_the_measured_step_is_that_of_the_preset(data_path):
    training = Training(["--preset", "speed"], CPU)
    settings = common.settings_of(["--preset", "speed"])
    assert training.model.arch == train.build_model(settings).arch
    assert len(next(training.batches).images) == PRESETS["speed"]["batch_size"]
    before = {name: parameter.clone() for name, parameter in training.model.named_parameters()}
    assert training()["loss"].isfinite()
    same = [name for name, new in training.model.named_parameters() if torch.equal(before[name], new)]
    assert same == ["towers.text.negation"], "captions of digits negate nothing"


def test_a_run_is_trained_once_resumed_if_interrupted_and_then_read(tmp_path):
    calls, folder = [], tmp_path / "run"

    def main(argv):
        calls.append(argv[:2])
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps(vars(common.settings_of(SMALL)) | {"threads": 2}))
        (folder / "last.pth").touch()
        if argv[0] != "--resume":
            raise KeyboardInterrupt
        (folder / "metrics.json").write_text('{"epochs": 1}')

    with pytest.raises(KeyboardInterrupt):
        common.finished_run(folder, SMALL, main)
    for _ in range(2):
        assert common.finished_run(folder, SMALL, main, quiet=True) == {"epochs": 1, "threads": 2}
    assert calls == [["--runs-dir", str(tmp_path)], ["--resume", str(folder)]]
    with pytest.raises(InputError, match="seed 0, not 4: remove it"):
        common.finished_run(folder, [*SMALL, "--seed", "4"], main)


@pytest.mark.parametrize("kind", [*combinations.BASELINES, "masked"])
def test_a_baseline_trains_in_the_loop_of_train_py_and_is_then_read(kind, small_mnist, tmp_path, monkeypatch):
    monkeypatch.setattr(common, "QUICK", ["--epochs", "1", "--augment", "none", *SMALL, "--batch-size", "250"])
    args = Namespace(runs=tmp_path, suffix="", quick=True, device=CPU, command="python -m benchmarks.combinations")
    model = combinations.trained_baseline(args, kind, 0)
    record = common.read_metrics(tmp_path / f"{kind}-seed0")
    assert record["epochs"] == 1
    val = load_mnist("val")
    true = combination_ids(val.labels, measure(val.images))
    is_seen = ~unseen_combinations().flatten()[true]
    accuracy = (combinations.score_parts(model, val.images).argmax(dim=1) == true)[is_seen].float().mean().item()
    assert accuracy == pytest.approx(record["val_seen_accuracy"])
    monkeypatch.setattr(combinations, "build_baseline", lambda *_: pytest.fail("it is trained again"))
    combinations.trained_baseline(args, kind, 0)


def test_the_failures_run_and_their_table_has_a_row_for_each(small_mnist, tmp_path, monkeypatch):
    monkeypatch.setattr(failures, "QUICK_STEPS", 6)
    failures.main(["--quick", "--device", "cpu", "--results", str(tmp_path)])
    result = json.loads((tmp_path / "failures.json").read_text())
    assert [row[0] for row in result["rows"]] == [failure.title for failure in failures.FAILURES.values()]
    rows = {name: row[1:] for name, row in zip(failures.FAILURES, result["rows"], strict=True)}
    assert rows["diagonal"][:4] == rows["pixels"][:4], "equal captions have equal logits"


@pytest.mark.parametrize("recipe", [plain_classifier, pytorch_example, toy_clip])
def test_other_peoples_recipes_learn(recipe, data_path):
    sizes = {"train": 2500 if recipe is pytorch_example else 5000, "test": 1000}
    train_split, test_split = (Split(*(x[:n] for x in load_mnist(name, data_path))) for name, n in sizes.items())
    limits = {pytorch_example: {"limit": 1}, toy_clip: {"target": 0.6, "test_every": 200}}
    trained = recipe(train_split, test_split, seed=0, **limits.get(recipe, {}))
    assert trained.accuracy > 0.6
    assert trained.seconds > 0


def test_open_clips_model_around_our_towers_learns_and_leaves_ours_alone(data_path):
    training = Training(SMALL, CPU)
    before = [parameter.clone() for parameter in training.model.parameters()]
    batch, step = next(training.batches), OpenClip(training.model, lr=1e-2)
    embeds = torch.nn.functional.normalize(step.model.encode_text(step.tokenize(batch.texts)), dim=-1)
    torch.testing.assert_close(embeds, training.model.encode_text(batch.texts.strings()))
    steps = [float(step(batch)) for _ in range(30)]
    assert steps[-1] < steps[0]
    assert all(torch.equal(old, new) for old, new in zip(before, training.model.parameters(), strict=True))


# ---- baselines and measures by hand ----


def test_a_classifiers_loss_by_hand():
    facts = image_facts(torch.tensor([3, 0]), torch.tensor([[9.0, -0.5], [2.5, 0.1]]))
    labels = Labels(facts, facts, torch.zeros_like(facts))
    arch = {"image_encoder": "fast", "embed_dim": 8, "width": 2}
    for is_joint in (True, False):  # the softmaxes multiply
        model = combinations.Classifier(**arch, is_joint=is_joint, is_masked=False)
        logits = torch.zeros(2, sum(model.sizes)).split(model.sizes, dim=1)
        assert model.loss(logits, labels).item() == pytest.approx(math.log(math.prod(model.sizes)))
    # An outlier does not count; an unknown label takes no part in its softmax.
    outlier, unknown = multi_hot(next(iter(OUTLIERS)), "no digit"), multi_hot(ATTRIBUTES[0].bins[0])
    facts = torch.cat([facts, outlier[None]])
    labels = Labels(facts, facts, torch.stack([unknown, multi_hot(), multi_hot()]))
    masked = combinations.Classifier(**arch, is_joint=False, is_masked=True)
    loss = masked.loss(torch.zeros(3, sum(masked.sizes)).split(masked.sizes, dim=1), labels).item()
    assert loss == pytest.approx((math.log(10 * 2 * 3) + math.log(10 * 3 * 3)) / 2)


@pytest.mark.parametrize("named", range(len(ATTRIBUTES) + 1))
def test_captions_name_so_many_attributes_and_are_true(named, data_path):
    pairs = MNISTPairs("val", data_path)
    batch = next(pairs.epoch(240))
    changed = losses.change_captions(batch, pairs.captions, pairs.claims, named)
    facts, claims = changed.labels.facts, changed.labels.claims
    is_digit = facts[:, LABEL_ID["a digit"]]
    assert (facts | ~claims).all()
    assert claims[is_digit, : len(DIGIT_WORDS)].sum(dim=1).eq(1).all()
    names = [claims[:, labels].any(dim=1) for labels in common.PART_LABELS[1:]]
    assert torch.stack(names).sum(dim=0)[is_digit].eq(named).all()
    assert torch.equal(claims[~is_digit], batch.labels.claims[~is_digit])


def test_a_paired_difference_by_hand():
    """Differences of 1, 2 and 3 points: mean 2, standard error 1 / sqrt(3), t of two degrees of freedom 4.303."""
    half = 4.3027 / math.sqrt(3)
    found = losses.paired([0.91, 0.92, 0.93], [0.90, 0.90, 0.90])
    assert [100 * x for x in found] == pytest.approx([2, 2 - half, 2 + half], abs=1e-3)


def test_distances_of_generated_images_by_hand():
    real = torch.randn(2000, 2, generator=torch.Generator().manual_seed(0))
    assert generation.frechet_distance(real, real) == pytest.approx(0, abs=1e-5)
    assert generation.frechet_distance(real, real + torch.tensor([3.0, 4.0])) == pytest.approx(25, abs=1e-4)
    assert generation.precision_recall(real, real) == (1, 1)
    assert generation.precision_recall(real, real + 100) == (0, 0)
    black, white = torch.zeros(1, 28, 28, dtype=torch.uint8), torch.ones(3, 1, 28, 28)
    assert generation.nearest_distance(black, white) == pytest.approx(1)
