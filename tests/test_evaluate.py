import contextlib
import gzip
import hashlib
import io
import json
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Generator

import evaluate
from captions import NO_DIGIT, NOT_DIGITS, PHRASINGS
from clip import CLIP
from conftest import ROOT, TINY, train_here
from evaluation import other_images, sections
from evaluation.corruptions import CORRUPTIONS
from evaluation.metrics import digit_classifier
from evaluation.other_images import LETTERS, drawn_letters, fashion, inverted_noise, mnist_form, uci_digits
from evaluation.pictures import show_digit
from evaluation.table import print_table
from my_utils import InputError

PICTURES = {"confusion", "digits", "reliability", "map", "robustness", "corruptions", "another_hand", "open_set"}


# Fewer images than evaluate.py takes, for time.
FEWER = {"PROBE_IMAGES": 3_000, "CORRUPTED_IMAGES": 1_000, "OTHER_IMAGES": 500, "MAP_IMAGES": 300}


@pytest.fixture(scope="module")
def evaluated(data_path, tmp_path_factory) -> SimpleNamespace:
    """evaluate.py on a model of described captions, trained for an epoch."""
    folder, runs = tmp_path_factory.mktemp("evaluated"), tmp_path_factory.mktemp("described")
    size = ["--captions", "described", "--width", 16, "--embed-dim", 32, "--epochs", 1]
    assert train_here(*TINY, *size, "--runs-dir", runs, "--run-name", "run").returncode == 0
    checkpoint = shutil.copy(runs / "best_model.pth", folder)
    flags = [checkpoint, "--data-path", str(data_path), "--device", "cpu", "--pictures", str(folder / "pictures")]
    printed, errors = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed), contextlib.redirect_stderr(errors):
        for name, images in FEWER.items():
            patch.setattr(evaluate, name, images)
        evaluate.main(evaluate.read_flags(flags))
    results = json.loads((folder / "evaluation.json").read_text())
    metrics = json.loads((runs / "run" / "metrics.json").read_text())
    output, errors = printed.getvalue(), errors.getvalue()
    return SimpleNamespace(folder=folder, output=output, errors=errors, results=results, metrics=metrics)


def test_it_writes_what_it_says_and_nothing_else(evaluated):
    assert {path.name for path in evaluated.folder.iterdir()} == {"best_model.pth", "evaluation.json", "pictures"}
    assert evaluated.errors == ""
    pictures = {path.name: path for path in (evaluated.folder / "pictures").iterdir()}
    assert pictures.keys() == {f"evaluation_{name}.png" for name in PICTURES | {"mistakes"}}
    for path in pictures.values():
        image = Image.open(path).convert("L")
        assert min(image.size) > 300
        assert image.getextrema() == (0, 255)


def test_it_says_what_was_measured_and_on_what(evaluated):
    about = evaluated.results["about"]
    assert about["command"].startswith("python evaluate.py ")
    assert about["command"].endswith("pictures")
    assert about["device"] == evaluated.metrics["cpu"].rsplit(",", 1)[0]  # the processor that trained it, too
    assert about["commit"]
    assert about["trained_at_commit"] == evaluated.metrics["commit"]
    assert about["images"] == {"test": 10_000, "corrupted": 1_000, "probes": 3_000}


def test_the_table_has_every_section_and_the_accuracies_that_training_told(evaluated):
    described = evaluated.results["described"]
    told = {"digit": evaluated.results["classification"], "seen": described["seen"], "unseen": described["unseen"]}
    for name, share in told.items():
        assert share["accuracy"] == pytest.approx(evaluated.metrics[f"test_{name}_accuracy"], abs=1e-3)
        assert f"{share['accuracy']:.2%} (95%: {share['interval'][0]:.2%} to " in evaluated.output
    assert f"{described['seen_clear']['accuracy']:.2%} (95%:" in evaluated.output
    assert f"{described['harmonic_mean']:.2%}" in evaluated.output
    for name in (
        "Classification",
        "Descriptions",
        "Retrieval",
        "Frozen",
        "Calibration",
        "Geometry",
        "Robustness",
        "Another",
        "Open set",
    ):
        assert re.search(rf"^{name}", evaluated.output, re.MULTILINE)
    assert all(len(line) <= 120 for line in evaluated.output.splitlines() if "written" not in line)


def test_a_model_that_knows_digits_alone_has_no_rows_of_descriptions(evaluated, capsys):
    print_table({name: section for name, section in evaluated.results.items() if name != "described"})
    lines = capsys.readouterr().out.splitlines()
    gone = [line for line in evaluated.output.splitlines() if line not in lines and "written" not in line]
    assert any("unseen" in line for line in gone)
    assert not [line for line in lines if "unseen" in line or "Descriptions" in line or "no digit" in line]


def test_classification_agrees_with_itself(evaluated):
    classified = evaluated.results["classification"]
    confusion = torch.tensor(classified["confusion"])
    assert confusion.sum() == classified["images"] == 10_000
    assert confusion.trace() == classified["right"]
    assert confusion.sum(dim=1).tolist() == [digit["images"] for digit in classified["digits"]]
    for share in [classified, *classified["digits"]]:
        low, high = share["interval"]
        assert 0.85 < low < share["accuracy"] < high <= 1
    confidences = [mistake["confidence"] for mistake in classified["most_confident_mistakes"]]
    assert confidences == sorted(confidences, reverse=True)
    assert all(confusion[mistake["true"], mistake["predicted"]] for mistake in classified["most_confident_mistakes"])
    assert all(mistake["true"] != mistake["predicted"] for mistake in classified["most_confident_mistakes"])


def test_retrieval_probes_calibration_and_geometry(evaluated):
    to_image, to_text, to_same = (
        evaluated.results["retrieval"][name] for name in ("text_to_image", "image_to_text", "image_to_image")
    )
    assert all(0.9 < value <= 1 for name, value in to_image.items() if name != "precision_at_1")
    assert 0.8 <= to_image["precision_at_1"] <= 1  # ten images, one a caption
    assert to_text["texts"] == 10 * PHRASINGS
    assert abs(to_text["recall_at_1"] - evaluated.results["classification"]["accuracy"]) < 0.02
    assert to_text["recall_at_1"] < to_text["recall_at_2"] <= to_text["recall_at_5"] <= 1
    assert 0.5 < to_same["mean_average_precision"] < 1  # images of one digit differ in how they look
    for name in ("linear", "nearest_neighbours"):
        assert evaluated.results["probes"][name]["accuracy"] > 0.95
    learned, fitted = (evaluated.results["calibration"][name] for name in ("learned", "fitted"))
    for one in (learned, fitted):
        assert sum(one["bins"]["count"]) == 10_000
        assert 0 < one["ece"] < 0.1
    assert learned["temperature"] != fitted["temperature"]
    assert fitted["nll"] < learned["nll"] + 1e-3  # fitted on other images, so not exactly the lowest
    geometry = evaluated.results["geometry"]
    assert 0 < geometry["modality_gap"] < 2
    assert 0 < geometry["alignment"] < 2  # the distance of unrelated vectors
    assert geometry["uniformity_images"] < -1
    assert 5 < geometry["effective_rank_images"] < geometry["embed_dim"]
    assert 5 < geometry["effective_rank_captions"] <= 10


def test_robustness_other_digits_and_open_set(evaluated, data_path):
    robustness = evaluated.results["robustness"]
    assert robustness["corruptions"].keys() == CORRUPTIONS.keys()
    assert robustness["clean"] > 0.95
    assert robustness["images"] == 1_000
    for one in robustness["corruptions"].values():
        assert len(one["accuracies"]) == len(one["amounts"]) == 5
        assert robustness["clean"] > one["accuracies"][-1]
        assert one["error"] == pytest.approx(1 - sum(one["accuracies"]) / 5)
    errors = [one["error"] for one in robustness["corruptions"].values()]
    assert robustness["mean_corruption_error"] == pytest.approx(sum(errors) / 7)
    assert evaluated.results["another_hand"]["images"] == 1797
    assert evaluated.results["another_hand"]["accuracy"] > 0.5  # after one short epoch
    open_set = evaluated.results["open_set"]
    assert open_set["letters"]["auroc"] > 0.6
    assert open_set["inverted noise"]["images"] == 500
    assert open_set["inverted noise"]["auroc"] > 0.95, "inverted digits and noise are trained as no digits"
    assert open_set["letters"]["auroc"] != open_set["letters"]["auroc_of_best_similarity"] > 0.5
    if open_set["Fashion-MNIST"]:
        assert open_set["Fashion-MNIST"]["images"] == 10_000
        assert open_set["Fashion-MNIST"]["auroc"] > 0.5
    else:
        assert "not installed" in evaluated.output


def test_auroc_by_hand():
    digits, others = torch.tensor([0.9, 0.5]), torch.tensor([0.7, 0.1])
    assert sections.auroc(digits, others) == {"images": 2, "auroc": 3 / 4}  # three of four pairs in the right order
    assert sections.auroc(digits, None) is None


def test_the_open_set_score_by_hand():
    """The best of ten captions, less the best of those of no digit where the model has them."""
    features = torch.nn.functional.normalize(torch.randn(6, 8, generator=Generator().manual_seed(0)), dim=1)
    of_digits, described = (CLIP(8, width=2, captions=kind).eval() for kind in ("digit", "described"))
    best = [(features @ digit_classifier(model).T).amax(dim=1) for model in (of_digits, described)]
    torch.testing.assert_close(sections.open_set_score(of_digits, features), best[0])
    no_digit = [text for phrases in (NO_DIGIT, *NOT_DIGITS.values()) for text in phrases]
    sentences = list(described.captions.sentences[-PHRASINGS * (1 + len(NOT_DIGITS)) :])
    assert set(sentences) == set(no_digit)
    with torch.no_grad():
        vectors = described.encode_text(sentences).view(-1, PHRASINGS, 8)
    nearest = (features @ torch.nn.functional.normalize(vectors.mean(dim=1), dim=1).T).amax(dim=1)
    torch.testing.assert_close(sections.open_set_score(described, features), best[1] - nearest)
    assert "no digit" in sections.open_set_label(described)
    assert "no digit" not in sections.open_set_label(of_digits)
    scores = {"digits": torch.tensor([0.9, 0.5]), "a": torch.tensor([0.7, 0.1])}
    best = {"digits": torch.tensor([0.9, 0.8]), "a": torch.tensor([0.7, 0.1])}
    assert sections.open_set(scores, best, ["a", "b"]) == {
        "a": {"images": 2, "auroc": 3 / 4, "auroc_of_best_similarity": 1.0},
        "b": None,
    }


# ---- bad input: one sentence, before the long work, and nothing written ----


def run(*arguments) -> None:
    """What `python evaluate.py ...` does, in this process."""
    evaluate.main(evaluate.read_flags([str(argument) for argument in arguments]))


def test_a_wrong_flag_ends_with_code_2_before_torch_is_imported():
    program = "import runpy, sys; sys.argv[1:] = ['--seed', '1']\n"
    program += "try: runpy.run_path('evaluate.py', run_name='__main__')\n"
    program += "finally: print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "False\n")
    assert re.fullmatch(r"error: .*--seed.*see --help.*\n", done.stderr)


@pytest.fixture
def no_long_work(monkeypatch):
    def fail(*arguments):
        raise AssertionError("the data was loaded before the model and the folders were looked at")

    monkeypatch.setattr(evaluate, "load_mnist", fail)


def test_a_missing_checkpoint_is_refused(tmp_path, monkeypatch, no_long_work):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"there is no checkpoint no\.pth"):
        run("no.pth")
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_checkpoint_is_refused(trained, tmp_path, no_long_work):
    (tmp_path / "bad.pth").write_bytes(trained.checkpoint.read_bytes()[:-1000])
    with pytest.raises(InputError, match="damaged"):
        run(tmp_path / "bad.pth", "--pictures", tmp_path / "pictures")
    assert [path.name for path in tmp_path.iterdir()] == ["bad.pth"]


def test_a_checkpoint_with_weights_that_are_not_numbers_is_refused(tmp_path, no_long_work):
    model = CLIP(8, width=2)
    with torch.no_grad():
        model.towers["image"].projection.weight[0, 0] = torch.nan
    model.save(tmp_path / "bad.pth")
    with pytest.raises(InputError, match="not finite"):
        run(tmp_path / "bad.pth", "--pictures", tmp_path / "pictures")
    assert [path.name for path in tmp_path.iterdir()] == ["bad.pth"]


def test_a_language_model_for_a_table_of_captions_is_refused(trained, tmp_path, no_long_work):
    with pytest.raises(InputError, match="takes no language model"):
        run(trained.checkpoint, "--text-model", "albert-base-v2", "--pictures", tmp_path / "pictures")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_found_first(trained, tmp_path, read_only, no_long_work):
    checkpoint = shutil.copy(trained.checkpoint, tmp_path)
    with pytest.raises(InputError, match="choose another --pictures"):
        run(checkpoint, "--pictures", read_only(tmp_path / "file"))
    assert not (tmp_path / "evaluation.json").exists()
    with open(checkpoint, "rb") as file, pytest.raises(InputError, match="copy the checkpoint elsewhere"):
        run(f"/dev/fd/{file.fileno()}", "--pictures", tmp_path / "pictures")  # nobody writes there
    assert not (tmp_path / "pictures").exists()


def test_unknown_device_and_flag(trained, tmp_path, no_long_work):
    for flags, message in ((["--device", "abacus"], "unknown device"), (["--seed", "1"], "see --help")):
        with pytest.raises(InputError, match=message):
            run(trained.checkpoint, "--pictures", tmp_path / "pictures", *flags)
    assert not list(tmp_path.iterdir())


# ---- corruptions ----


@pytest.fixture(scope="module")
def digits() -> torch.Tensor:
    """Float [20, 28, 28] in [0, 1], some ink of each."""
    return uci_digits().images[:20].float() / 255


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_corruptions_stay_in_range_repeat_and_grow(name, digits):
    change, _, amounts = CORRUPTIONS[name]
    assert len(amounts) == 5
    results = [change(digits, amount, Generator().manual_seed(3)) for amount in amounts]
    for result in results:
        assert result.shape == digits.shape
        assert 0 <= result.min() <= result.max() <= 1
    torch.testing.assert_close(results[2], change(digits, amounts[2], Generator().manual_seed(3)), rtol=0, atol=0)
    distances = [(result - digits).abs().mean() for result in results]
    assert 0 < distances[0] < distances[-1]


def test_corruptions_by_hand(digits):
    def change(name: str, amount: float, images=digits) -> torch.Tensor:
        return CORRUPTIONS[name].change(images, amount, Generator().manual_seed(0))

    torch.testing.assert_close(change("inversion", 1), 1 - digits)
    torch.testing.assert_close(change("inversion", 0.5), torch.full_like(digits, 0.5))
    torch.testing.assert_close(change("contrast", 0.5).std(dim=(1, 2)), digits.std(dim=(1, 2)) / 2)
    torch.testing.assert_close(change("contrast", 0.5).mean(dim=(1, 2)), digits.mean(dim=(1, 2)))
    turned = change("rotation", 90)
    for image, result in zip(digits, turned, strict=True):  # to either side
        assert min((image.rot90(side) - result).abs().max() for side in (1, 3)) < 1e-4
    moved = change("translation", 2)
    for image, result in zip(digits, moved, strict=True):
        shifts = [(x, y) for x in (-2, 2) for y in (-2, 2)]
        assert min((image.roll(shift, (0, 1)) - result).abs().max() for shift in shifts) < 1e-4
    bright = torch.ones(50, 28, 28)
    hole = 1 - change("occlusion", 6, bright)
    assert (hole.sum(dim=(1, 2)) == 36).all()
    assert hole[:, 4:24, 4:24].sum() == hole.sum()
    assert (hole.sum(dim=0) > 0).sum() > 200, "the squares lie in different places"
    point = torch.zeros(1, 28, 28)
    point[0, 14, 14] = 1
    blurred = change("blur", 1.5, point)
    assert blurred.sum() == pytest.approx(1, abs=1e-4)
    rows = torch.arange(28.0) - 14
    assert (blurred[0].sum(dim=1) * rows**2).sum().sqrt() == pytest.approx(1.5, rel=0.05)


# ---- images that MNIST does not have ----


def test_mnist_form_fits_the_box_and_centres_by_mass():
    ink = torch.zeros(90, 70)
    ink[10:70, 5:35] = 3.0  # 60 high, 30 wide, of any brightness
    ink[60:70, 5:65] = 3.0  # and a heavy foot to the right
    image = mnist_form(ink)
    assert image.dtype == torch.uint8
    assert image.max() == 255
    rows, columns = (image.any(dim=dim).nonzero().flatten() for dim in (1, 0))
    assert len(rows) == 20
    assert len(columns) == 20
    mass = image.double() / image.sum()
    for dim in (0, 1):
        assert abs((mass.sum(dim=dim) * torch.arange(28)).sum() - 13.5) <= 0.51
    tall = mnist_form(ink[:, :35], 16)
    assert [int(tall.any(dim=dim).sum()) for dim in (1, 0)] == [16, 8]
    with pytest.raises(InputError, match="without ink"):
        mnist_form(torch.zeros(9, 9))


def test_uci_digits_look_like_mnist():
    images, labels = uci_digits()
    assert images.shape == (1797, 28, 28)
    assert labels.bincount().min() > 170
    sides = torch.stack([(images.amax(dim=dim) > 0).sum(dim=1) for dim in (1, 2)])
    assert sides.amax(dim=0).unique().tolist() == [20]
    assert (images.flatten(1).amax(dim=1) == 255).all()


def test_letters_repeat_and_leave_out_what_looks_like_a_digit():
    assert not set(LETTERS) & set("OoQDIliLjJZzSsbGBgqTtYyAa") - {"A"}
    letters = drawn_letters(40)
    assert (letters == drawn_letters(40)).all()
    assert len(letters.unique(dim=0)) == 40
    assert (letters.flatten(1).amax(dim=1) == 255).all()


def test_inverted_noise_keeps_the_grey_levels_and_no_shape(digits):
    images = (digits * 255).to(torch.uint8)
    noise = inverted_noise(images)
    assert (noise.flatten(1).sort().values == (255 - images).flatten(1).sort().values).all()
    assert (noise != 255 - images).flatten(1).any(dim=1).all()


def test_fashion_is_read_where_it_is_and_refused_where_it_is_damaged(tmp_path, monkeypatch):
    content = bytes(16) + bytes(range(28)) * 280_000  # 10,000 images of 28 columns
    monkeypatch.setattr(other_images, "FASHION_FILES", (tmp_path / "system" / "images", "own/images"))
    monkeypatch.setattr(other_images, "FASHION_SHA256", hashlib.sha256(content).hexdigest())
    assert fashion(tmp_path) is None
    for path, packed in (("own/images", content), ("system/images.gz", gzip.compress(content, 1))):
        (tmp_path / path).parent.mkdir()
        for damaged in (b"", packed[:1000]):
            (tmp_path / path).write_bytes(damaged)
            with pytest.raises(InputError, match="place Fashion-MNIST's file again"):
                fashion(tmp_path)
        (tmp_path / path).write_bytes(packed)
        images = fashion(tmp_path)
        assert images.shape == (10_000, 28, 28)
        assert images[-1, -1].tolist() == list(range(28))


def test_pictures_do_not_stretch_grey_levels():
    for image, top in ((torch.full((28, 28), 0.5), 1), (torch.full((28, 28), 9, dtype=torch.uint8), 255)):
        axes = Figure().subplots()
        show_digit(axes, image)
        assert axes.images[0].get_clim() == (0, top)
        assert axes.images[0].get_cmap().name == "gray", "bright on black, as the model reads them"


def test_images_inverted_on_purpose_are_embedded_without_a_warning(digits, recwarn):
    model = CLIP(8, width=2)
    sections.embed(model, 1 - digits)
    assert not recwarn.list
    with pytest.warns(UserWarning, match="bright"):
        model.eval().encode_image(1 - digits)
