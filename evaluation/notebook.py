"""Helpers of inference.ipynb."""

from collections.abc import Callable
from pathlib import Path

from IPython.display import display
from matplotlib.figure import Figure

from clip import CLIP
from data.own import read_folder
from evaluation.pictures import own_search, save_figure
from my_utils import InputError, pick_device


class StopNotebook(Exception):
    """Ends "Run All" with one sentence instead of a traceback."""

    def _render_traceback_(self) -> list[str]:  # Jupyter's hook
        return [str(self)]


def load_model(path: str) -> CLIP:
    """The model of a checkpoint, whose results are printed. Stops the notebook if there is none of digits.

    Of a model of own data it shows the search before that.
    """
    try:
        model = CLIP.load(path, pick_device("auto"))
        if model.captions.kind == "own":
            test = read_folder(model.config["data"], model.side, model.channels)["test"]
            display(show("search", lambda: own_search(model, test)))
        model.require_digits()
    except InputError as error:
        raise StopNotebook(f"{error}. Then run this notebook again.") from None
    print(f"text encoder {model.arch['text_encoder']}, image encoder {model.arch['image_encoder']}")
    print("trained with", ", ".join(f"{name} {model.config[name]}" for name in ("captions", "loss", "epochs", "seed")))
    for name in ("digit_accuracy", "seen_accuracy", "unseen_accuracy"):
        if f"test_{name}" in model.metrics:
            print(name, ", ".join(f"{split} {model.metrics[f'{split}_{name}']:.2%}" for split in ("val", "test")))
    return model


def require_tower(model: CLIP, modality: str) -> None:
    """Raises InputError for a model without a tower for this modality."""
    if modality not in model.towers:
        raise InputError(f"this picture needs a tower for {modality}: train one with `make {modality}`")


def show(name: str, draw: Callable[[], Figure]) -> Figure | None:
    """Draw a figure and save it in inference_test/; or print what is missing for it."""
    try:
        return save_figure(draw(), Path("inference_test") / f"{name}.png")
    except InputError as error:
        print(error)
