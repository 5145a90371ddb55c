"""inference.ipynb, run cell by cell; and its figures."""

import shutil
from pathlib import Path

import nbformat
import pytest
import torch
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from attributes import combination_ids, measure, unseen_combinations
from captions import DIGIT_WORDS, combination_claims
from clip import CLIP
from conftest import ROOT, TINY, first_tenth, train_here
from evaluation import pictures
from evaluation.claims import combination_caption, format_values
from evaluation.pictures import RIGHT, WRONG
from evaluation.similarity import similarity_matrix
from my_dataset import DATA_PATH, load_mnist

ALWAYS = ("predictions", "similarity_matrix", "text_to_images", "nearest_images", "hardest_mistakes")
WITH_ATTRIBUTES = ("attribute_matrix", "described_images", "attribute_search", "outliers")


@pytest.fixture
def folder(data_path, tmp_path, monkeypatch) -> Path:
    """Another folder than the checkout, with the data: Jupyter starts the notebook in it."""
    (tmp_path / DATA_PATH).symlink_to(data_path)
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    return tmp_path


def execute(folder: Path, model: str | Path, **options) -> str:
    """All that the notebook prints when it runs in this folder with this MODEL."""
    notebook = nbformat.read(ROOT / "inference.ipynb", as_version=4)
    notebook.metadata.kernelspec.name = "python3"
    first = next(cell for cell in notebook.cells if 'MODEL = "runs/best_model.pth"' in cell.source)
    first.source = first.source.replace("runs/best_model.pth", str(model))
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}}, **options).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return "".join(output.get("text", "") + "\n".join(output.get("traceback", "")) for output in outputs)


def test_the_notebook_draws_a_model_with_attributes(data_path, folder, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr("my_dataset.load_mnist", first_tenth)
    train_here(*TINY, "--captions", "attributes", "--epochs", 1, "--runs-dir", folder / "runs", "--run-name", "run")
    printed = execute(folder, folder / "runs" / "run" / "best_model.pth")
    accuracy = CLIP.load(folder / "runs" / "best_model.pth").metrics["test_digit_accuracy"]
    assert f"nearest caption on the test split: {accuracy:.2%}" in printed
    assert "unseen_accuracy val" in printed
    assert "is not in the vocabulary" in printed
    assert f"there is no file {folder}/runs/generator/best_model.pth" in printed
    for modality in ("strokes", "speech"):
        assert f"needs a tower for {modality}: train one with `make {modality}`" in printed
    for name in (*ALWAYS, *WITH_ATTRIBUTES):
        assert (folder / "inference_test" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_the_notebook_draws_a_model_of_digit_captions(trained, folder, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    shutil.copytree(trained.runs, folder / "runs")
    printed = execute(folder, "runs/best_model.pth")
    assert printed.count("this picture needs a model of --captions attributes") == len(WITH_ATTRIBUTES) + 1
    assert {path.stem for path in (folder / "inference_test").iterdir()} == set(ALWAYS)


def test_a_missing_model_or_checkout_is_one_sentence_that_says_where_it_looked(folder, monkeypatch):
    with pytest.raises(CellExecutionError, match="start this notebook with `make notebook`, or set CHECKOUT above"):
        execute(folder, "no.pth")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    with pytest.raises(CellExecutionError) as error:
        execute(folder, "no.pth")
    assert f"there is no file {folder}/no.pth: name the checkpoint of a CLIP" in error.value.traceback
    assert "Traceback" not in error.value.traceback
    assert {path.name for path in folder.iterdir()} == {DATA_PATH}


# ---- figures ----


def titles(figure) -> list:
    return [axes.title for axes in figure.axes if axes.get_title()]


def test_a_grid_of_predictions_marks_what_is_wrong():
    images, true, predicted = torch.zeros(3, 28, 28), torch.tensor([1, 2, 6]), torch.tensor([1, 4, 6])
    found = titles(pictures.prediction_grid(images, true, predicted, "title", ["a", "b", "c"]))
    texts = ["true: one\npred: one\na", "true: two\npred: four\nb", "true: six\npred: six\nc"]
    assert [title.get_text() for title in found] == texts
    assert [title.get_color() for title in found] == [RIGHT, WRONG, RIGHT]


def test_closest_images_come_first_and_are_marked():
    similarity = torch.tensor([[0.1, 0.9, 0.5, 0.2], [0.7, -0.1, 0.0, 0.6]])
    is_right = torch.tensor([[True, True, False, False], [True, False, False, False]])
    found = titles(pictures.closest_images(similarity, ["a", "b"], torch.zeros(4, 28, 28), is_right, "title", count=2))
    assert [title.get_text() for title in found] == ["0.900", "0.500", "0.700", "0.600"]
    assert [title.get_color() for title in found] == [RIGHT, WRONG, RIGHT, WRONG]


def test_the_similarity_matrix_shows_its_values_in_large_type_beside_the_digits():
    images = torch.randint(256, (10, 28, 28), dtype=torch.uint8)
    (axes,) = similarity_matrix(torch.eye(10) / 4, DIGIT_WORDS, DIGIT_WORDS, "title", images).axes
    assert [text.get_text() for text in axes.texts[:2]] == ["0.25", "0.00"]
    assert [label.get_text() for label in axes.get_xticklabels()] == list(DIGIT_WORDS)
    matrix, strip = axes.images
    assert (strip.get_array() == images.reshape(280, 28).numpy()).all()
    assert strip.get_extent()[1] == matrix.get_extent()[0]
    labels = [axes.title, axes.xaxis.label, axes.yaxis.label, *axes.get_xticklabels(), *axes.get_yticklabels()]
    assert all(text.get_text() and text.get_fontsize() >= 11 for text in [*axes.texts, *labels])


def test_figures_of_attributes_show_what_images_measure_and_what_was_never_trained(data_path):
    model, split = CLIP(8, width=2, unseen_seed=3).eval(), load_mnist("val", data_path)
    features = torch.nn.functional.normalize(torch.randn(len(split.labels), 8), dim=1)
    unseen = unseen_combinations(3)
    (axes,) = pictures.attribute_matrix(model, split, features, digit=2).axes
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert [label.endswith("*") for label in labels] == [*unseen[2].flatten().tolist(), False]
    rows = [label.get_text() for label in axes.get_yticklabels()][:-1]
    index = [i for i, one in enumerate(measure(split.images)) if format_values(one) in rows and split.labels[i] == 2]
    assert len(combination_ids(split.labels, measure(split.images))[index].unique()) == 9
    search = pictures.attribute_search(model, split, features)
    names = [text.get_text().replace("\n", " ") for axes in search.axes for text in axes.texts]
    assert names[:2] == ["a very thin digit", "a very thick digit"]
    assert all(name.endswith("(never trained)") for name in names[-3:-1])
    assert names[-2:] == ["not a seven (never trained)", "向左倾斜的粗体七"]
    described = titles(pictures.described_images(model, split, features))
    best = model.log_probs(features[:16], combination_claims()).argmax(dim=1)
    is_right = best == combination_ids(split.labels, measure(split.images))[:16]
    assert [title.get_color() == RIGHT for title in described] == is_right.tolist()
    assert described[0].get_text().replace("\n", " ") == combination_caption(int(best[0]))
    generated = pictures.generated_combinations(split.images[:90], unseen)
    assert [title.get_color() == WRONG for title in titles(generated)] == unseen.flatten().tolist()
