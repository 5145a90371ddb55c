import json
import re
import shutil
import sys
from pathlib import Path

import nbformat
import pytest
import torch
from nbclient import NotebookClient

from attributes import measure, unseen_cells
from captions import DIGIT_WORDS, facts_of
from clip import CLIP
from conftest import ROOT, TINY, first_tenth, train_here
from evaluation import pictures
from evaluation.pictures import (
    RIGHT,
    WRONG,
    closest_images,
    prediction_grid,
    ranked_images,
    save_figure,
    similarity_matrix,
    word_images,
)
from my_dataset import load_mnist

PICTURES = ("predictions", "similarity_matrix", "text_to_images", "nearest_images", "hardest_mistakes")
OF_DESCRIBED = ("described_matrix", "described_sheet", "described_search", "no_digit")


@pytest.fixture(scope="module")
def described(data_path, tmp_path_factory) -> Path:
    """A run of a moment with captions that describe."""
    runs = tmp_path_factory.mktemp("described")
    flags = [*TINY, "--captions", "described", "--epochs", 1, "--runs-dir", runs, "--run-name", "run"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("my_dataset.load_mnist", first_tenth)
        assert train_here(*flags).returncode == 0
    return runs / "run"


@pytest.fixture
def notebook_folder(data_path, tmp_path, monkeypatch) -> Path:
    """A folder to run the notebook in, with the data and without a model."""
    (tmp_path / "MINIST_CLIP").symlink_to(data_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    return tmp_path


def test_notebook_without_a_model_says_so_and_then_runs_with_one(trained, described, notebook_folder):
    notebook = nbformat.read(ROOT / "inference.ipynb", as_version=4)
    notebook.metadata.kernelspec.name = "python3"
    cells = [(i, cell) for i, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(notebook_folder)}})
    with client.setup_kernel():

        def run(some=cells) -> list:
            for i, cell in some:
                client.execute_cell(cell, i)
            return [output for _, cell in some for output in cell.outputs]

        told = run()  # of all cells one says a sentence, the others nothing
        assert [output.get("name") for output in told] == ["stdout"]
        assert re.fullmatch(r"there is no checkpoint .*make train.* run this notebook again\.\n", told[0]["text"])
        assert not (notebook_folder / "inference_test").exists()

        (notebook_folder / "runs").mkdir()
        shutil.copy(described / "best_model.pth", notebook_folder / "runs")
        text = "".join(output.get("text", "") for output in run())
        metrics = json.loads((described / "metrics.json").read_text())
        trained_with = "trained with captions described, loss multi_positive"
        assert text.startswith(f"text encoder table, image encoder fast\n{trained_with}")
        assert f"nearest caption on the test split: {metrics['test_digit_accuracy']:.2%}" in text
        assert f"unseen_accuracy val {metrics['val_unseen_accuracy']:.2%}, test" in text
        assert "does not know the word" in text
        assert "there is no generator runs/generator/best_model.pth" in text
        for modality in ("strokes", "speech"):
            assert f"needs a tower for {modality}: train one with `make {modality}`" in text
        for name in (*PICTURES, *OF_DESCRIBED):
            content = (notebook_folder / "inference_test" / f"{name}.png").read_bytes()
            assert content.startswith(b"\x89PNG")
            assert len(content) > 10_000

        # A model that knows digits alone: what needs more says so.
        shutil.copy(trained.checkpoint, notebook_folder / "runs")
        of_described = [(i, cell) for i, cell in cells if cell.source.startswith("if_described(")]
        assert len(of_described) == len(OF_DESCRIBED)
        told = run([cells[0], *of_described])
        assert f"digit_accuracy val {trained.metrics['val_digit_accuracy']:.2%}, test" in told[0]["text"]
        assert "unseen" not in told[0]["text"]
        assert len(told) == 1 + len(OF_DESCRIBED)
        assert all(
            output["text"].startswith("This picture needs a model of --captions described") for output in told[1:]
        )


def test_the_committed_notebook_is_executed_with_its_pictures():
    notebook = nbformat.read(ROOT / "inference.ipynb", as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    pictures = [o for cell in cells for o in cell.outputs if "image/png" in o.get("data", {})]
    assert len(pictures) >= len(PICTURES) + len(OF_DESCRIBED)
    assert not [o for cell in cells for o in cell.outputs if o.output_type == "error"]
    assert str(Path(sys.prefix)) not in nbformat.writes(notebook), "no path of the machine it was made on"


def test_pictures_mark_what_is_wrong(tmp_path):
    images = torch.randint(256, (3, 28, 28), dtype=torch.uint8)
    figure = prediction_grid(images, ["one", "two", "six"], ["one", "ten", "six"], "title", columns=2)
    titles = [axes.title for axes in figure.axes if axes.get_title()]
    assert [title.get_text() for title in titles] == [
        "true: one\npred: one",
        "true: two\npred: ten",
        "true: six\npred: six",
    ]
    colours = [title.get_color() for title in titles]
    assert colours[0] == colours[2] != colours[1]
    save_figure(figure, tmp_path / "deep" / "er" / "grid.png")
    assert (tmp_path / "deep" / "er" / "grid.png").exists()


def test_similarity_matrix_names_its_axes_and_shows_its_values():
    figure = similarity_matrix(torch.tensor([[0.25, -0.5]]), ["one", "two"], ["0 (1)"], "title")
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["one", "two"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["0 (1)"]
    assert [text.get_text() for text in axes.texts] == ["0.25", "-0.50"]
    assert "text" in axes.get_xlabel()
    assert "image" in axes.get_ylabel()


def test_similarity_matrix_is_in_large_type_with_one_strip_of_digits():
    images = torch.randint(256, (10, 28, 28), dtype=torch.uint8)
    figure = similarity_matrix(torch.eye(10), DIGIT_WORDS, DIGIT_WORDS, "title", images)
    (axes,) = figure.axes
    matrix, strip = axes.images
    assert (strip.get_array() == images.reshape(280, 28).numpy()).all()
    assert strip.get_cmap().name == "gray", "bright on black, as the model reads them"
    assert strip.get_extent()[1] == matrix.get_extent()[0], "the digits stand beside the matrix"
    labels = [axes.title, axes.xaxis.label, axes.yaxis.label, *axes.get_xticklabels(), *axes.get_yticklabels()]
    assert all(text.get_fontsize() >= 11 for text in [*axes.texts, *labels])
    assert 6 <= figure.get_figwidth() <= 8


def test_word_images_fit_their_frame():
    images = word_images(DIGIT_WORDS)
    assert images.shape == (10, 28, 28)
    assert images.dtype == torch.uint8
    assert len(images.unique(dim=0)) == 10
    assert (images.flatten(1).amax(dim=1) > 200).all()  # bright
    assert ((images > 127).float().mean(dim=(1, 2)) < 0.3).all()  # on black
    assert word_images(["a whole sentence"], size=56).shape == (1, 56, 56)


@pytest.mark.parametrize("query", [None, torch.zeros(28, 28, dtype=torch.uint8)])
def test_ranked_images_have_a_row_for_each_query(query):
    images = torch.zeros(4, 28, 28, dtype=torch.uint8)
    figure = ranked_images([("seven", query, images, list("abcd"), [True] * 4)] * 3, "title")
    assert len(figure.axes) == 15


def test_closest_images_come_first_and_are_marked():
    images = torch.zeros(4, 28, 28, dtype=torch.uint8)
    similarity = torch.tensor([[0.1, 0.9, 0.5, 0.2], [0.7, -0.1, 0.0, 0.6]])
    fits = torch.tensor([[True, True, False, False], [True, False, False, False]])
    figure = closest_images(similarity, ["a", "b"], images, fits, "title", count=2)
    titles = [axes.title for axes in figure.axes if axes.get_title()]
    assert [title.get_text() for title in titles] == ["0.900", "0.500", "0.700", "0.600"]
    assert [title.get_color() for title in titles] == [RIGHT, WRONG, RIGHT, WRONG]


def test_descriptions_in_the_fewest_words():
    said = ((7, 2, 0), (8, -1, 1), (1, 0, 1), (-1, 1, 2), (3, -1, -1))
    expected = ["a thick seven leaning left", "an upright eight", "a thin upright one", "a medium digit leaning right"]
    assert [pictures.in_short(*one) for one in said] == [*expected, "a three"]
    model = CLIP(8, width=2)
    model.config = {"unseen_seed": 0}
    assert len(pictures.read(model, [pictures.in_short(*one) for one in said])) == 5, "the table knows the words"
    for one in said:
        assert pictures.is_unseen(model, one) == (-1 not in one and bool(unseen_cells(0)[one]))


def test_pictures_of_descriptions_tell_how_images_measure_and_what_was_never_trained(data_path):
    model, split = CLIP(8, width=2, unseen_seed=3).eval(), load_mnist("test", data_path)
    features = torch.nn.functional.normalize(torch.randn(len(split.labels), 8), dim=1)
    best, notes, is_true = pictures.found(model, split, features, (4, 0, -1), 50)
    thickness, slant = measure(split.images[best])
    assert notes == [f"{t:.1f} px, {s:+.2f} rad" for t, s in zip(thickness.tolist(), slant.tolist(), strict=True)]
    cells = facts_of(split.labels[best], thickness, slant)[1]
    assert is_true == ((split.labels[best] == 4) & (cells // 3 % 3 == 0)).tolist()
    similarity = features[best] @ pictures.read(model, ["a thin four"])[0]
    assert similarity[0] == (features @ pictures.read(model, ["a thin four"])[0]).max()
    assert (similarity.diff() <= 0).all()

    sheet = pictures.described_sheet(model, split, features, digit=2)
    is_marked = [axes.get_title().startswith("never trained\n") for axes in sheet.axes]
    assert is_marked == unseen_cells(3)[2].flatten().tolist()
    search = pictures.described_search(model, split, features, count=3)
    names = [text.get_text().replace("\n", " ") for axes in search.axes for text in axes.texts]
    assert len(names) == 6
    for name in names[-2:]:
        assert name.endswith("(never trained)")
        assert "leaning" in name or "upright" in name
    matrix = pictures.described_matrix(model, split, features).axes[0]
    labels = [label.get_text() for label in matrix.get_xticklabels()]
    assert len(labels) == len(set(labels)) == 9
    for said, label, image in zip(pictures.COMPARED, labels, matrix.get_yticklabels(), strict=False):
        assert label == pictures.in_short(*said) + " *" * bool(unseen_cells(3)[said])
        digit, px, rad = re.match(r"(\w+), ([\d.]+) px, ([-+.\d]+) rad", image.get_text()).groups()
        measures = (torch.tensor([x]) for x in (DIGIT_WORDS.index(digit), float(px), float(rad)))
        cell = 9 * said[0] + 3 * said[1] + said[2]
        assert int(facts_of(*measures)[1]) == cell, "a clear image is in its cell even when rounded"
