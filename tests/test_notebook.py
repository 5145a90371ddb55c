import re
import shutil
import sys
import time
from pathlib import Path

import nbformat
import pytest
import torch
from nbclient import NotebookClient

from captions import DIGIT_WORDS
from conftest import ROOT
from evaluation.pictures import prediction_grid, ranked_images, save_figure, similarity_matrix, word_images

PICTURES = ("predictions", "similarity_matrix", "text_to_images", "nearest_images", "hardest_mistakes")


@pytest.fixture
def notebook_folder(data_path, tmp_path, monkeypatch) -> Path:
    """A folder to run the notebook in, with the data and without a model."""
    (tmp_path / "MINIST_CLIP").symlink_to(data_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    return tmp_path


def test_notebook_without_a_model_says_so_and_then_runs_with_one(trained, notebook_folder):
    notebook = nbformat.read(ROOT / "inference.ipynb", as_version=4)
    notebook.metadata.kernelspec.name = "python3"
    cells = [(i, cell) for i, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(notebook_folder)}})
    with client.setup_kernel():

        def run_all() -> list:
            for i, cell in cells:
                client.execute_cell(cell, i)
            return [output for _, cell in cells for output in cell.outputs]

        told = run_all()  # of seven cells one says a sentence, the others nothing
        assert [output.get("name") for output in told] == ["stdout"]
        assert re.fullmatch(r"there is no checkpoint .*make train.* run this notebook again\.\n", told[0]["text"])
        assert not (notebook_folder / "inference_test").exists()

        (notebook_folder / "runs").mkdir()
        shutil.copy(trained.checkpoint, notebook_folder / "runs")
        text = "".join(output.get("text", "") for output in run_all())
    assert text.startswith("text encoder table, image encoder fast\ntrained with loss multi_positive, epochs ")
    assert f"zero-shot accuracy on the test split: {trained.metrics['test_zero_shot_accuracy']:.2%}" in text
    for name in PICTURES:
        content = (notebook_folder / "inference_test" / f"{name}.png").read_bytes()
        assert content.startswith(b"\x89PNG")
        assert len(content) > 10_000


def test_the_committed_notebook_is_executed_with_its_pictures():
    notebook = nbformat.read(ROOT / "inference.ipynb", as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    pictures = [o for cell in cells for o in cell.outputs if "image/png" in o.get("data", {})]
    assert len(pictures) >= len(PICTURES)
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


def test_similarity_matrix_is_drawn_fast_in_large_type_with_one_strip_of_digits(tmp_path):
    images = torch.randint(256, (10, 28, 28), dtype=torch.uint8)

    def draw():
        return save_figure(
            similarity_matrix(torch.eye(10), DIGIT_WORDS, DIGIT_WORDS, "title", images), tmp_path / "s.png"
        )

    figure = draw()  # fonts are read
    started = time.process_time()
    draw()
    assert time.process_time() - started < 1  # about 0.3 s
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
