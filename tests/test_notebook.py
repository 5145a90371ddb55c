import shutil
import sys
from pathlib import Path

import nbformat
import pytest
import torch
from nbclient import NotebookClient

from conftest import ROOT
from pictures import prediction_grid, ranked_images, save_figure, similarity_matrix

PICTURES = ("predictions", "similarity_matrix", "text_to_images", "nearest_images", "hardest_mistakes")


def test_notebook_runs_from_start_to_end_on_a_fresh_model(trained, data_path, tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    shutil.copy(trained.checkpoint, tmp_path / "runs")
    (tmp_path / "MINIST_CLIP").symlink_to(data_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    notebook = nbformat.read(ROOT / "inference.ipynb", as_version=4)
    notebook.metadata.kernelspec.name = "python3"
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    text = "".join(o.get("text", "") for cell in notebook.cells for o in cell.get("outputs", []))
    assert f"zero-shot accuracy on the test split: {trained.metrics['test_zero_shot_accuracy']:.2%}" in text
    for name in PICTURES:
        content = (tmp_path / "inference_test" / f"{name}.png").read_bytes()
        assert content.startswith(b"\x89PNG")
        assert len(content) > 10_000


def test_the_committed_notebook_is_executed_with_its_pictures():
    notebook = nbformat.read(ROOT / "inference.ipynb", as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    pictures = [o for cell in cells for o in cell.outputs if "image/png" in o.get("data", {})]
    saved = [path for path in (ROOT / "inference_test").glob("*.png") if not path.name.startswith("evaluation_")]
    assert len(pictures) == len(saved) >= len(PICTURES)
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


@pytest.mark.parametrize("query", [None, torch.zeros(28, 28, dtype=torch.uint8)])
def test_ranked_images_have_a_row_for_each_query(query):
    images = torch.zeros(4, 28, 28, dtype=torch.uint8)
    figure = ranked_images([("seven", query, images, list("abcd"), [True] * 4)] * 3, "title")
    assert len(figure.axes) == 15
