"""A model as a folder with a model card, as on the Hugging Face hub."""

import os
from pathlib import Path

from benchmarks.tables import HEADLINE, RESULTS, read_result
from clip import CLIP
from my_utils import InputError, atomic_write, quote, save_folder, short
from training.settings import LOCATION, NOT_RECORDED, Settings

MNIST = """Images and texts: MNIST (LeCun, Cortes and Burges), CC BY-SA 3.0 as Keras's documentation says. Rules write
  the captions, from the labels and from measurements of the images."""


def write(model: CLIP, folder: str | Path) -> None:
    """What `CLIP.save_pretrained` does. The config leaves out the folders of this machine."""
    place = Path(folder)
    if (place / "README.md").exists() and not (place / "model.safetensors").exists():
        raise InputError(f"{folder} has a README.md of something else: name a new folder")
    config = {name: value for name, value in model.config.items() if name not in (*NOT_RECORDED, *LOCATION, "init")}
    save_folder(folder, "CLIP", model.content() | {"config": config})
    atomic_write(place / "README.md", model_card(model).encode())


def model_card(model: CLIP, results: Path = RESULTS) -> str:
    """card.md with the model's own figures and, if its settings are the default's, those of the benchmarks."""
    figures, origin = ["Not measured."], "Seed {seed}, {device}, torch {torch_version}, commit {commit}, {date}."
    if "commit" in model.metrics:  # the run has finished
        figures = [f"- {key}: {value:.2%}" for key, value in model.metrics.items() if key.startswith(("val_", "test_"))]
        figures += ["", f"`train.py` with the settings in config.json. {origin.format(**model.metrics)}"]
    changed = {name for name, value in vars(Settings()).items() if model.config.get(name) != value}
    if changed <= {*LOCATION, *NOT_RECORDED, "seed"}:
        figures += ["", "| models of these settings, over seeds | test | command | device |", "|---|---|---|---|"]
        for title, name, row, column in HEADLINE:
            if name in ("combinations", *model.towers) and (result := read_result(name, results)):
                figure = next(values for values in result["rows"] if values[0] == row)[result["columns"].index(column)]
                figures.append(f"| {title} | {figure} | `{result['command']}` | {result['device']} |")
    data = MNIST if model.captions.kind != "own" else "Images and texts: of the person who trained it."
    template = (Path(__file__).parent / "card.md").read_text(encoding="utf-8")
    return template.format(model=model, data=data, towers=", ".join(model.towers), figures="\n".join(figures))


def find_folder(source: str | Path) -> Path:
    """The folder of this name, else a copy of the repository OWNER/NAME. Raises InputError if there is neither."""
    if os.path.isdir(source):
        return Path(source)
    if os.path.isfile(source):
        raise InputError(f"{source} is a file: load it with CLIP.load")
    reason = f"there is no folder {quote(source)}"
    if str(source).count("/") == 1:
        from huggingface_hub import snapshot_download

        try:
            return Path(snapshot_download(str(source), allow_patterns=["*.json", "*.safetensors"]))
        except Exception as error:  # no network, no such repository, a name that the hub refuses
            reason += f", and no such repository can be downloaded ({short(error)})"
    raise InputError(f"{reason}: name a folder of save_pretrained, or a repository OWNER/NAME on the Hugging Face hub")
