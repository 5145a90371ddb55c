import contextlib
import importlib
import json
import math
import subprocess
from pathlib import Path

import psutil
import pytest
import torch

import my_dataset
import train
from benchmarks import gpu, inference, tables, tries, waiting, whole
from benchmarks.common import Training, check_same, finished_run, flops_of, same_origin, spread
from benchmarks.described import HEADLINES, row_of
from benchmarks.losses import paired
from benchmarks.recipes import OpenClip, plain_classifier, pytorch_example, toy_clip
from benchmarks.tables import BLOCKS, NOT_MEASURED, PRESETS_CUDA, RESULTS
from benchmarks.versions import compare
from clip import CLIP
from conftest import first_tenth
from evaluation.metrics import caption_accuracy, digit_classifier, embed_images
from image_encoder import IMAGE_ENCODERS, ImageEncoder
from my_dataset import DATA_PATH, Split, load_mnist
from my_utils import InputError
from training import settings
from training.settings import PRESETS, read_flags

ROOT = Path(__file__).resolve().parent.parent
FLAGS = ["--preset", "speed", "--seed", "3"]
CPU = torch.device("cpu")


@pytest.fixture
def one_thread():
    """Steps this small gain nothing from two threads, and lose much where the machine is busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_the_step_that_is_measured_is_that_of_the_preset(data_path):
    training = Training(FLAGS, CPU)
    settings, _ = read_flags(FLAGS)
    wanted = {name: value for name, value in settings.record().items() if name in training.model.arch}
    assert {"embed_dim", "image_encoder", "width"} <= wanted.keys()
    assert {name: training.model.arch[name] for name in wanted} == wanted
    assert training.model.arch == train.build_model(settings).arch
    assert len(training.step.optimizers) == 2
    assert len(next(training.batches).images) == PRESETS["speed"]["batch_size"]
    before = [parameter.clone() for parameter in training.model.parameters()]
    training()
    assert all((old != new).any() for old, new in zip(before, training.model.parameters(), strict=True))


@pytest.mark.parametrize("chunk_size", [None, 8])
def test_the_benchmarks_step_learns(data_path, one_thread, chunk_size):
    flags = ["--embed-dim", "8", "--width", "2", "--batch-size", "16", "--lr", "1e-2"]
    training = Training(flags + ([] if chunk_size is None else ["--chunk-size", str(chunk_size)]), CPU)
    assert training.step.chunk_size == chunk_size
    batch = next(training.batches)
    losses = [float(training.step(batch)[0]) for _ in range(30)]
    assert losses[-1] < losses[0]


def test_a_try_has_its_own_encoder_constants_and_images_and_puts_them_back(small_mnist, one_thread, monkeypatch):
    seen = set()

    class Own(ImageEncoder):
        def forward(self, images):
            seen.add((my_dataset.BEND, settings.PLAIN_EPOCHS, self.training, bool((images == 0.5).all())))
            return super().forward(images)

    one = tries.Try(
        "", "--width 2 --batch-size 500", lambda x: torch.full_like(x, 0.5), Own, {"BEND": 0.1, "PLAIN_EPOCHS": 1}
    )
    monkeypatch.setattr(tries, "BUDGET", ["--preset", "accuracy", "--epochs", "2"])
    monkeypatch.setattr(tries, "HELD_OUT", 500)
    monkeypatch.setattr(tries, "load_mnist", first_tenth)
    monkeypatch.setattr(
        tries, "robustness", lambda model, captions, split: {"mean_corruption_error": len(split.labels)}
    )
    row = tries.measured(one, 0, "own")
    assert seen == {(0.1, 1, True, True), (0.1, 1, True, False), (0.7, 2, False, False)}, "a changed and a plain epoch"
    assert row["mean_corruption_error"] == 550
    assert 0 < row["error"] < 1
    assert IMAGE_ENCODERS["residual"] is ImageEncoder


def test_a_whole_run_takes_all_images_and_is_measured_on_test(small_mnist, one_thread, monkeypatch, tmp_path):
    monkeypatch.setattr(whole, "FLAGS", ["--preset", "accuracy", "--epochs", "1", "--width", "2"])
    monkeypatch.setattr(whole, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(tries, "RESULTS", tmp_path)
    monkeypatch.setattr("benchmarks.common.RESULTS", tmp_path)
    monkeypatch.setattr("sys.argv", ["whole", "everything", "--seeds", "1"])
    errors = {name: {"error": i / 10} for i, name in enumerate(("rotation", "translation", "noise", "blur"))}
    corrupted = {"mean_corruption_error": 0.15, "corruptions": errors}
    monkeypatch.setattr(
        whole, "robustness", lambda model, captions, split: corrupted if len(split.labels) == 2000 else 0
    )
    monkeypatch.setattr(whole, "load_mnist", first_tenth)
    sizes, train_on = [], whole.trained
    monkeypatch.setattr(whole, "trained", lambda *a: sizes.append(len(a[-1].labels)) or train_on(*a))
    whole.main()
    model = CLIP.load(tmp_path / "runs" / "everything-seed1" / "best_model.pth")
    test = load_mnist("test", DATA_PATH)
    right = caption_accuracy(embed_images(model, test.images) @ digit_classifier(model).T, test.labels)
    row = json.loads((tmp_path / "whole.json").read_text())["tries"]["everything"]["1"]
    assert row["error"] == 1 - right
    assert (row["mean_corruption_error"], row["without_turns_and_shifts"]) == (0.15, 0.25)
    assert row["commit"] == model.metrics["commit"]
    whole.main()
    assert sizes == [10_500], "what is finished is not trained again"


def test_a_busy_core_is_busy_and_then_free():
    with waiting.one_core_busy():
        (child,) = psutil.Process().children()
        while child.cpu_times().user < 0.1:
            assert child.is_running()
    assert not child.is_running()


def test_waiting_is_measured_in_turn_on_a_quiet_and_a_busy_machine(monkeypatch):
    asked, written = [], {}

    @contextlib.contextmanager
    def busy():
        busy.now = True
        yield
        busy.now = False

    def child(wait):
        asked.append(*wait)
        assert busy.now == ((len(asked) - 1) % 4 > 1)
        return {"default": float(len(asked))}

    busy.now = False
    monkeypatch.setattr(waiting, "one_core_busy", busy)
    monkeypatch.setattr("sys.argv", ["waiting"])
    monkeypatch.setattr(waiting, "in_own_process", child)
    monkeypatch.setattr(waiting, "write_result", lambda name, result: written.update(result))
    waiting.main()
    assert asked == ["GOMP_SPINCOUNT", "OMP_WAIT_POLICY"] * 2 + ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT"] * 2 + asked[:4]
    found = {(row["machine"], row["wait"]): row["of_runs"] for row in written["rows"]}
    assert found["quiet", "asleep"] == [2.0, 5.0, 10.0]
    assert found["busy", "spinning"] == [3.0, 8.0, 11.0]
    assert written["rows"][0]["seconds"] == 6.0


@pytest.mark.parametrize("name", tries.TRIES)
def test_what_can_be_tried_keeps_to_images_and_features(name):
    one, images = tries.TRIES[name], torch.rand(400, 1, 28, 28)
    read_flags([*tries.BUDGET, *one.flags.split()])
    if one.change:
        changed = one.change(images)
        assert changed.shape == images.shape
        assert not torch.equal(changed, images)
        assert -1e-6 < changed.min() < changed.max() < 1 + 1e-6
    if one.encoder:
        assert one.encoder(16, 4)(images).shape == (400, 16)


def test_a_step_takes_the_form_that_is_asked_for(data_path):
    flags = ["--embed-dim", "8", "--width", "4", "--muon-lr", "0", "--ema-decay", "0.9", "--batch-size", "16"]
    usual = Training(flags, CPU)
    other = Training(flags, CPU, channels_last=False, fused=False, bf16=True)
    for training, fused, bf16 in ((usual, True, False), (other, False, True)):
        (optimizer,) = training.step.optimizers
        kernel = next(p for p in training.model.towers["image"].parameters() if p.ndim == 4 and p.shape[1] > 1)
        assert kernel.is_contiguous(memory_format=torch.channels_last) == fused
        assert {group["fused"] for group in optimizer.param_groups} == {fused}
        assert training.step.bf16 == bf16
        assert training.step.ema is not None
    # A loop over parameters and the fused kernel are one algorithm.
    batch, model = next(usual.batches), usual.model
    other.step.bf16 = False
    other.model.load_state_dict(model.state_dict())
    for training in (usual, other):
        training.step(batch)
    for a, b in zip(model.parameters(), other.model.parameters(), strict=True):
        has_sign = a.grad.abs() > 1e-3  # Adam's first step goes by the gradient's sign, which near zero is rounding's
        torch.testing.assert_close(a[has_sign], b[has_sign], rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("recipe", [plain_classifier, pytorch_example, toy_clip])
def test_other_peoples_recipes_learn(recipe, data_path, one_thread):
    images = {"train": 2500 if recipe is pytorch_example else 5000, "test": 1000}
    train_split, test_split = (Split(*(x[:n] for x in load_mnist(name, data_path))) for name, n in images.items())
    limits = {pytorch_example: {"limit": 1}, toy_clip: {"target": 0.6, "look_every": 200}}
    run = recipe(train_split, test_split, seed=0, **limits.get(recipe, {}))
    assert run.accuracy > 0.6
    assert run.seconds > 0


def test_open_clips_model_around_our_towers_learns_and_leaves_ours_alone(data_path, one_thread):
    training = Training(["--embed-dim", "8", "--width", "2", "--batch-size", "16"], CPU)
    before = [parameter.clone() for parameter in training.model.parameters()]
    batch, step = next(training.batches), OpenClip(training.model, lr=1e-2)
    embeds = torch.nn.functional.normalize(step.model.encode_text(step.tokenize(batch.texts)), dim=-1)
    torch.testing.assert_close(embeds, training.model.encode_text(batch.texts.strings()))
    losses = [float(step(batch)) for _ in range(30)]
    assert losses[-1] < losses[0]
    assert all(torch.equal(old, new) for old, new in zip(before, training.model.parameters(), strict=True))


def test_a_run_counts_as_done_only_with_the_same_settings_and_version(tmp_path):
    run = tmp_path / "run"
    check_same(run, read_flags(FLAGS)[0])  # nothing is there yet
    settings, _ = read_flags([*FLAGS, "--runs-dir", str(tmp_path), "--run-name", "run"])
    record = settings.record()
    run.mkdir()
    (run / "config.json").write_text(json.dumps(record))
    check_same(run, read_flags(FLAGS)[0])
    with pytest.raises(InputError, match="seed 3, not 4: remove it"):
        check_same(run, read_flags(["--preset", "speed", "--seed", "4"])[0])
    (run / "config.json").write_text(json.dumps({k: v for k, v in record.items() if k != "width"}))
    with pytest.raises(InputError, match="width"):
        check_same(run, read_flags(FLAGS)[0])
    (run / "config.json").write_text(json.dumps(record | {"margin": 4}))  # of an older version
    with pytest.raises(InputError, match="margin"):
        check_same(run, read_flags(FLAGS)[0])

    (run / "config.json").write_text(json.dumps(record))
    (run / "metrics.json").write_text("{}")
    torch.save({"format": "minist-clip-1"}, run / "best_model.pth")
    with pytest.raises(InputError, match="not a model of this"):
        check_same(run, read_flags(FLAGS)[0])


def test_a_run_is_trained_once_and_then_read(tmp_path, monkeypatch):
    calls = []

    def trained(settings, given):
        calls.append((settings.run_name, settings.resume))
        run = tmp_path / "run"
        run.mkdir(exist_ok=True)
        (run / "config.json").write_text(json.dumps(read_flags(FLAGS)[0].record()))
        (run / "last.pth").touch()
        if settings.resume:  # the first call is cut off
            (run / "metrics.json").write_text('{"epochs": 1}')
            CLIP(8, width=2).save(run / "best_model.pth")
            return 0
        return 130

    monkeypatch.setattr(train, "main", trained)
    with pytest.raises(KeyboardInterrupt):
        finished_run(tmp_path / "run", FLAGS, quiet=True)
    assert finished_run(tmp_path / "run", FLAGS, quiet=True) == {"epochs": 1}
    assert finished_run(tmp_path / "run", FLAGS, quiet=True) == {"epochs": 1}
    assert calls == [("run", None), (None, str(tmp_path / "run"))]


def test_a_mean_is_over_runs_of_one_machine_and_commit():
    run = {"commit": "abc1234", "device": "cpu", "cpu": "A CPU, 2 threads", "torch_version": "2"}
    assert same_origin([run, run | {"commit": "abc1234+"}])["commit"] == "abc1234+"
    for name in run:
        with pytest.raises(InputError, match=f"differ in {name}"):
            same_origin([run, run | {name: "another"}])
    assert spread([1.0, 3.0]) == {"mean": 2.0, "std": 2**0.5, "values": [1.0, 3.0]}
    assert spread([1.0])["std"] is None


def test_old_and_new_are_compared_by_their_medians():
    def run(commit, seconds):
        accuracy = {"val_digit_accuracy": 0.9, "test_digit_accuracy": 0.8}
        machine = {"device": "cpu", "cpu": "A CPU, 2 threads", "torch_version": "2", "date": "2026-01-01"}
        return {"commit": commit, "train_seconds": seconds} | accuracy | machine

    metrics = {"old": [run("a", s) for s in (10, 30, 20)], "new": [run("b", s) for s in (5, 4, 90)]}
    result = compare([0, 1, 2], {"old": (Path(), "--epochs 20"), "new": (Path(), "")}, metrics)
    assert result["new_to_old"] == 0.25
    assert (result["old"]["commit"], result["new"]["commit"]) == ("a", "b")
    assert (result["old"]["command"], result["new"]["command"]) == ("python train.py --epochs 20", "python train.py")
    assert result["device"] == "A CPU, 2 threads"


def test_every_table_can_be_made_and_tells_the_commit():
    for path in RESULTS.glob("*.json"):
        if not path.name.startswith("speed-quick"):
            result = json.loads(path.read_text())
            of_rows = [row for seeds in result.get("tries", {}).values() for row in seeds.values()]  # each has its own
            assert all(one["commit"] for one in of_rows or [result.get("about", result)]), path
    for name, table in BLOCKS.items():
        text = table() or NOT_MEASURED
        assert text.startswith(("|", "not measured")), name
        assert "commit" in text or "not measured" in text, name


def test_the_table_of_descriptions_has_a_row_for_each_kind_of_model(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    assert tables.render("<!-- described: begin -->\nold\n<!-- described: end -->\n").count("\n") == 2, "left out"

    def measured(share: float) -> dict:
        shares = {name: {"accuracy": share, "interval": (0.8, 0.9)} for name in HEADLINES if name != "harmonic_mean"}
        ranks = {
            name: {"digits": [share] * 10, "minimum": share, "interval": (0.8, 0.9)} for name in ("thickness", "slant")
        }
        apart = {"letters": {"images": 10, "auroc": 0.9, "auroc_of_best_similarity": 0.8}}
        ranks = {"rank_correlation": ranks, "rank_correlation_outer": ranks}
        return shares | ranks | {"harmonic_mean": share, "unseen_map": share, "open_set": apart}

    one = row_of("ours", [measured(0.91), measured(0.93)], {"seeds": [0, 1], "unseen_seeds": [0]})
    other = row_of("drawn anew", [measured(0.5)], {"seeds": [0], "unseen_seeds": [0, 1]})
    result = {"rows": [one, other], "intervals": {"seen": [0.8, 0.9]}, "sentences": None}
    result |= {"trained_by": "python train.py --seed S"}
    result |= {name: one[name] for name in ("rank_correlation", "rank_correlation_outer", "unseen_map", "open_set")}
    result |= {"device": "cpu", "cpu": "A CPU, 2 threads", "torch_version": "2", "commit": "abc", "date": "2026-01-01"}
    (tmp_path / "described.json").write_text(json.dumps(result))
    lines = tables.described_table().splitlines()
    assert len({line.count("|") for line in lines[:4]}) == 1
    assert lines[2] == "| ours |" + " **92.00% ± 1.41** |" * 6 + " 0, 1 |"
    assert lines[3] == "| drawn anew |" + " 50.00% |" * 6 + " 0; unseen cells 0, 1 |"
    assert "seen 80.00% to 90.00%" in lines[-1]
    assert "letters 0.900" in lines[-1]
    assert "A CPU, 2 threads, torch 2, commit abc, 2026-01-01" in lines[-1]


class Asked:
    """A folder of results that remembers which files were looked for."""

    def __init__(self, folder: Path):
        self.folder, self.names = folder, set()

    def __truediv__(self, name: str) -> Path:
        self.names.add(name)
        return self.folder / name

    def glob(self, pattern: str):
        return self.folder.glob(pattern)


def test_make_gpu_measures_what_the_tables_lack_and_they_show_it(tmp_path, monkeypatch):
    results = Asked(tmp_path)
    monkeypatch.setattr(tables, "RESULTS", results)
    for path in RESULTS.glob("*.json"):
        if not path.stem.endswith("-cuda"):
            (tmp_path / path.name).write_text(path.read_text())
    on_gpu = {"speed": "speed", "speed-slow": "speed-slow", "cost": "cost", "profile": "profile"}
    on_gpu |= {"inference": "inference", "text-encoders": "text-encoders"}
    on_gpu |= {name.removesuffix("-cuda"): "default" for name in PRESETS_CUDA}
    blocks = ("speed", "speed-slow", "cost", "profile", "inference", "text-encoders", "presets-cuda")
    for block in blocks:
        assert "not measured" in BLOCKS[block]()
    asked = {name.removesuffix(".json") for name in results.names if "-cuda" in name}
    assert asked == set(gpu.STEPS) - {"tests"} == {f"{name}-cuda" for name in on_gpu}

    def quick(x):
        """The same result, a hundred times faster and made on a GPU."""
        if isinstance(x, list):
            return [quick(one) for one in x]
        if not isinstance(x, dict):
            return x
        fast = {key: quick(value) for key, value in x.items()}
        fast |= {k: x[k] / 100 for k in ("ms", "seconds", "seconds_min", "seconds_max", "table_ms") if k in x}
        return fast | ({"device": "A GPU"} if "device" in x else {})

    for name, like in on_gpu.items():
        result = quick(json.loads((RESULTS / f"{like}.json").read_text()))
        (tmp_path / f"{name}-cuda.json").write_text(json.dumps(result))
    for block in blocks:
        text = BLOCKS[block]()
        assert "not measured" not in text, block
        assert "A GPU" in text, block
    ours = json.loads((RESULTS / "speed.json").read_text())["recipes"][0]
    seconds, least, most = (f"{ours[key] / 100:.3f}" for key in ("seconds", "seconds_min", "seconds_max"))
    assert f"| ours, --preset speed | {seconds} ({least} to {most}) |" in BLOCKS["speed"]()
    step = json.loads((RESULTS / "profile.json").read_text())["variants"][-2]
    assert step["ms"] < 100, "or a hundredth of it would need no more places"
    assert f"| {step['variant']} | {step['batch_size']} | {step['ms'] / 100:.3f} ms |" in BLOCKS["profile"]()
    table = json.loads((RESULTS / "text-encoders.json").read_text())["table_ms"]
    assert f"| table | {table / 100:.2f} ms |" in BLOCKS["text-encoders"]()
    assert (tables.fixed(0.20479, 1), tables.fixed(20.479, 1)) == ("0.205", "20.5")
    assert tables.seconds({"mean": 0.376, "std": 0.0213}) == "0.38 s ± 0.02"
    assert tables.seconds({"mean": 188.4, "std": 12.2}) == "188 s ± 12"


def test_the_commands_of_make_gpu_can_be_read():
    for command in gpu.STEPS.values():
        module, *flags = command.split()
        assert "tests/test_cuda.py" in flags or (ROOT / f"{module.replace('.', '/')}.py").exists()
        if "--" in flags:
            read_flags(flags[flags.index("--") + 1 :])
        name = flags[flags.index("--name") + 1] if "--name" in flags else None
        assert name is None or gpu.STEPS[name] == command


@pytest.mark.parametrize(
    ("minutes", "steps", "told"),
    [
        (
            "25",
            {"tests": "no_such_module", "first": "no_such_module", "second": "json.tool --help"},
            [
                "tests: failed, see its message above; trust no figure before that is clear",
                "first: failed, see its message above",
            ],
        ),
        (
            "0.005",
            {"long": "timeit -n 1 -s 'import time' 'time.sleep(600)'", "next": "json.tool --help"},
            ["long: not measured, for the time was over", "next: not measured, for the time was over"],
        ),
        ("25", {"first": "json.tool --help"}, ["everything was measured, and the tables are written"]),
    ],
)
def test_make_gpu_tells_in_the_end_what_lacks(minutes, steps, told, monkeypatch, capfd):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("sys.argv", ["gpu", "--minutes", minutes])
    monkeypatch.setattr(gpu, "STEPS", steps)
    monkeypatch.setattr(gpu, "TABLES", "json.tool --help")
    assert gpu.main() == (len(steps) > 1)
    assert capfd.readouterr().out.split("\n\n")[-1].splitlines() == told


def test_make_gpu_without_a_gpu_is_one_sentence(monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["gpu"])
    with pytest.raises(InputError, match=r"^no GPU that torch can use is on this machine.*nothing was measured.*$"):
        gpu.main()
    monkeypatch.setattr("sys.argv", ["gpu", "--dry-run"])
    assert gpu.main() == 0
    assert capsys.readouterr().out.count("python -m ") == len(gpu.STEPS) + 1


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("[!_]*.py")), ids=lambda path: path.stem)
def test_every_benchmark_imports(path):
    module = importlib.import_module(f"benchmarks.{path.stem}")
    assert module.__doc__
    assert "sys.path" not in path.read_text()


def test_there_is_one_training_step():
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"]
    files = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    files = [file for file in files if (ROOT / file).exists() and not file.startswith("tests/")]
    assert "train.py" in files
    backward = {file for file in files if ".backward(" in (ROOT / file).read_text(encoding="utf-8")}
    assert backward == {"training/step.py", "benchmarks/recipes.py"}


def test_a_paired_difference_by_hand():
    """Differences of 1, 2 and 3 points: mean 2, standard error 1 / sqrt(3), t of two degrees of freedom 4.303."""
    found = paired([0.91, 0.92, 0.93], [0.90, 0.90, 0.90])
    half = 4.3027 / math.sqrt(3)
    assert [100 * x for x in (found["mean"], *found["interval"])] == pytest.approx([2, 2 - half, 2 + half], abs=1e-3)


def test_a_square_matrix_product_has_the_flops_that_were_asked_for():
    x = inference.square(2 * 64**3, CPU)
    assert flops_of(lambda: x @ x) == 2 * 64**3
