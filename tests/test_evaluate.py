"""evaluate.py on a briefly trained model; corruptions and OOD images; pictures that are written whole or not at all."""

import contextlib
import io
import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Generator

import evaluate
from captions import OUTLIER_IDS
from clip import CLIP
from conftest import TINY, first_tenth, train_here
from data.photo import to_mnist_form
from evaluation import ood, pictures
from evaluation.corruptions import CORRUPTIONS
from evaluation.table import TITLES
from my_dataset import load_mnist
from my_utils import TEMPORARY, InputError


@pytest.fixture(scope="module")
def evaluated(data_path, tmp_path_factory) -> SimpleNamespace:
    """evaluate.py on a model with captions of attributes, trained for one short epoch, and on fewer images."""
    folder, runs = tmp_path_factory.mktemp("evaluated"), tmp_path_factory.mktemp("attributes")
    flags = [*TINY, "--captions", "attributes", "--width", 16, "--embed-dim", 32, "--epochs", 1]
    output = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(output):
        patch.setattr("my_dataset.load_mnist", first_tenth)
        assert train_here(*flags, "--runs-dir", runs, "--run-name", "run").returncode == 0
        patch.setattr(evaluate, "EVERY", 20)
        patch.setattr(evaluate, "OOD_IMAGES", 300)
        checkpoint = shutil.copy(runs / "best_model.pth", folder)
        evaluate.main([checkpoint, "--data-path", str(data_path), "--pictures", str(folder / "pictures")])
    results = json.loads((folder / "evaluation.json").read_text())
    metrics = json.loads((runs / "run" / "metrics.json").read_text())
    return SimpleNamespace(folder=folder, output=output.getvalue(), results=results, metrics=metrics)


def test_it_writes_its_pictures_and_evaluation_json_and_nothing_else(evaluated):
    assert {path.name for path in evaluated.folder.iterdir()} == {"best_model.pth", "evaluation.json", "pictures"}
    files = {path.name: path for path in (evaluated.folder / "pictures").iterdir()}
    assert files.keys() == {f"evaluation_{name}.png" for name in ("combinations", "map", "ood", "robustness")}
    for path in files.values():
        image = Image.open(path).convert("L")
        assert min(image.size) > 300
        assert image.getextrema() == (0, 255)


def test_the_results_are_those_that_training_reported(evaluated):
    results = evaluated.results
    found = results["attributes"] | {"digit": results["classification"]}
    for name in ("digit", "seen", "unseen"):
        assert found[name]["accuracy"] == pytest.approx(evaluated.metrics[f"test_{name}_accuracy"], abs=1e-3)
        low, high = found[name]["interval"]
        assert f"{found[name]['accuracy']:.2%} (95%: {low:.2%} to {high:.2%})" in evaluated.output
    assert results["about"]["trained_at_commit"] == evaluated.metrics["commit"]
    assert results["about"]["command"].startswith("python evaluate.py ")
    assert results.keys() == {"about", "confusion", *TITLES} - {"scenes"}
    for name in TITLES.keys() - {"scenes"}:
        assert f"\n{TITLES[name]}\n" in evaluated.output
    assert all(len(line) <= 120 for line in evaluated.output.splitlines() if "written" not in line)


def test_the_sections_agree_with_each_other(evaluated):
    classification, robustness, calibration = (
        evaluated.results[name] for name in ("classification", "robustness", "calibration")
    )
    confusion = torch.tensor(evaluated.results["confusion"])
    assert confusion.trace() == classification["correct"]
    assert confusion.sum() == classification["images"] == 10_000
    assert evaluated.results["retrieval"]["r_precision"] == evaluated.metrics["test_text_to_image_precision"]
    assert 0 < calibration["expected_calibration_error"] < 1
    assert robustness["images"] == 500
    assert all(robustness["clean"] > one["accuracies"][-1] for one in robustness["corruptions"].values())
    errors = [1 - sum(one["accuracies"]) / 5 for one in robustness["corruptions"].values()]
    assert robustness["mean_corruption_error"] == pytest.approx(sum(errors) / 7)
    assert all(one["auroc"] > 0.5 for one in evaluated.results["ood"].values())


def test_a_model_of_digit_captions_is_evaluated_without_attributes(trained, data_path, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(evaluate, "EVERY", 100)
    monkeypatch.setattr(evaluate, "OOD_IMAGES", 100)
    checkpoint = shutil.copy(trained.checkpoint, tmp_path)
    evaluate.main([checkpoint, "--data-path", str(data_path), "--pictures", str(tmp_path)])
    assert "unseen" not in capsys.readouterr().out
    results = json.loads((tmp_path / "evaluation.json").read_text())
    assert results.keys() == {"about", "confusion", *TITLES} - {"attributes", "scenes"}


# ---- bad input: one sentence, before the long work, and nothing written ----


def test_bad_input_is_refused_before_the_data_are_loaded(trained, tmp_path, monkeypatch, read_only):
    monkeypatch.setattr(evaluate, "load_mnist", lambda *_: pytest.fail("the data were loaded"))
    monkeypatch.chdir(tmp_path)
    model, damaged, folder = str(trained.checkpoint), tmp_path / "damaged.pth", tmp_path / "pictures"
    damaged.write_bytes(trained.checkpoint.read_bytes()[:-1000])
    for flags, message in (
        (["no.pth"], f"there is no file {tmp_path}/no.pth"),
        ([damaged], "damaged"),
        ([model, "--text-model", "albert-base-v2"], "no language model"),
        ([model, "--device", "abacus"], "not supported"),
        ([model, "--seed", "1"], "see --help"),
        ([model, "--pictures", read_only(tmp_path / "file")], "name another folder"),
    ):
        with pytest.raises(InputError, match=message):
            evaluate.main(["--pictures", str(folder), *map(str, flags)])
    assert {path.name for path in tmp_path.iterdir()} == {"damaged.pth", "file"}


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_picture_that_cannot_be_written_whole_leaves_the_old_one(error, tmp_path, monkeypatch):
    path = tmp_path / "new" / "picture.png"
    figure = pictures.prediction_grid(torch.zeros(2, 28, 28), torch.tensor([1, 2]), torch.tensor([1, 3]), "title")
    pictures.save_figure(figure, path)
    old = path.read_bytes()

    def fail(descriptor):
        assert [one.name.startswith(TEMPORARY) for one in sorted(path.parent.iterdir())] == [True, False]
        raise error

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(InputError if isinstance(error, OSError) else KeyboardInterrupt):
        pictures.save_figure(Figure(), path)
    assert path.read_bytes() == old
    assert list(path.parent.iterdir()) == [path]


# ---- corruptions ----


@pytest.fixture(scope="module")
def digits(data_path) -> torch.Tensor:
    """Float [20, 28, 28] in [0, 1]."""
    return load_mnist("val", data_path).images[:20].float() / 255


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_corruptions_stay_in_range_repeat_and_grow(name, digits):
    function, amounts = CORRUPTIONS[name]
    results = [function(digits, amount, Generator().manual_seed(3)) for amount in amounts]
    for result in results:
        assert result.shape == digits.shape
        assert 0 <= result.min() <= result.max() <= 1
    assert torch.equal(results[2], function(digits, amounts[2], Generator().manual_seed(3)))
    distances = [(result - digits).abs().mean() for result in results]
    assert 0 < distances[0] < distances[-1]


def test_corruptions_by_hand(digits):
    def change(name: str, amount: float, images=digits) -> torch.Tensor:
        return CORRUPTIONS[name][0](images, amount, Generator().manual_seed(0))

    torch.testing.assert_close(change("inversion", 1), 1 - digits)
    torch.testing.assert_close(change("contrast", 0.5).std(dim=(1, 2)), digits.std(dim=(1, 2)) / 2)
    torch.testing.assert_close(change("contrast", 0.5).mean(dim=(1, 2)), digits.mean(dim=(1, 2)))
    for image, rotated, shifted in zip(digits, change("rotation", 90), change("translation", 2), strict=True):
        assert min((image.rot90(side) - rotated).abs().max() for side in (1, 3)) < 1e-4
        shifts = [(x, y) for x in (-2, 2) for y in (-2, 2)]
        rolled = [image.roll(shift, (0, 1)) for shift in shifts]  # what leaves the frame comes back at its border
        assert min((one - shifted)[2:-2, 2:-2].abs().max() for one in rolled) < 1e-4
        assert shifted.sum() <= image.sum() + 1e-4
    hole = 1 - change("occlusion", 6, torch.ones(50, 28, 28))
    assert (hole.sum(dim=(1, 2)) == 36).all()
    assert hole[:, 4:24, 4:24].sum() == hole.sum()
    assert (hole.sum(dim=0) > 0).sum() > 200, "the squares lie in different places"
    point = torch.zeros(1, 28, 28)
    point[0, 14, 14] = 1
    rows = torch.arange(28.0) - 14
    assert (change("blur", 1.5, point)[0].sum(dim=1) * rows**2).sum().sqrt() == pytest.approx(1.5, rel=0.05)


# ---- images that MNIST does not have ----


def test_mnist_form_fits_the_box_and_centres_by_mass():
    ink = torch.zeros(90, 70)
    ink[10:70, 5:35] = 3.0  # 60 high, 30 wide, of any brightness
    ink[60:70, 5:65] = 3.0  # and a heavy foot to the right
    image = to_mnist_form(ink)
    assert image.dtype == torch.uint8
    assert image.max() == 255
    assert [int(image.any(dim=dim).sum()) for dim in (1, 0)] == [20, 20]
    for dim in (0, 1):
        mass = image.sum(dim=dim) / image.sum()
        assert abs((mass * torch.arange(28)).sum() - 13.5) <= 0.51
    assert [int(to_mnist_form(ink[:, :35], 16).any(dim=dim).sum()) for dim in (1, 0)] == [16, 8]
    with pytest.raises(InputError, match="without ink"):
        to_mnist_form(torch.zeros(9, 9))


def test_letters_and_noise_repeat_and_show_no_digit(digits):
    assert not set(ood.LETTERS) & set("OoQDIliLjJZzSsbGBgqTtYyAa") - {"A"}
    letters = ood.letters(40)
    assert torch.equal(letters, ood.letters(40))
    assert len(letters.unique(dim=0)) == 40
    images = (digits * 255).to(torch.uint8)
    noise = ood.inverted_noise(images)
    assert torch.equal(noise.flatten(1).sort().values, (255 - images).flatten(1).sort().values)
    assert (noise != 255 - images).flatten(1).any(dim=1).all()


def test_fashion_mnist_is_a_set_where_torchvision_has_it(digits, tmp_path):
    raw = tmp_path / "FashionMNIST" / "raw"
    images = (digits * 255).to(torch.uint8)
    assert ood.ood_sets(images, tmp_path, 2).keys() == {"letters", "inverted_noise"}
    raw.mkdir(parents=True)
    with pytest.raises(InputError, match=r"FashionMNIST/raw does not hold Fashion-MNIST .*: replace or remove it"):
        ood.ood_sets(images, tmp_path, 2)
    for name in ("train", "t10k"):
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01" + bytes([0, 0, 0, 20]) + bytes(20))
        header = b"".join(size.to_bytes(4, "big") for size in images.shape)
        (raw / f"{name}-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03" + header + images.numpy().tobytes())
    assert torch.equal(ood.ood_sets(images, tmp_path, 2)["fashion_mnist"], images)


def test_the_ood_score_is_the_best_digit_less_the_best_outlier():
    features = torch.nn.functional.normalize(torch.randn(6, 8, generator=Generator().manual_seed(0)), dim=1)
    for kind in ("digit", "attributes"):
        model = CLIP(8, width=2, captions=kind).eval()
        score = (features @ model.zero_shot_classifier().T).amax(dim=1)
        if kind == "attributes":
            score -= (features @ model.embed_descriptions(OUTLIER_IDS).T).amax(dim=1)
        torch.testing.assert_close(ood.ood_score(model, features), score)
    assert ood.auroc(torch.tensor([0.9, 0.5]), torch.tensor([0.7, 0.1])) == 3 / 4  # three of four pairs are in order
