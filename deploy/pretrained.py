"""A model as a folder with a model card, as on the Hugging Face hub."""

from pathlib import Path

from benchmarks.tables import HEADLINE, RESULTS, read_result
from clip import CLIP
from my_utils import InputError, atomic_write, save_folder
from training.settings import LOCATION, NOT_RECORDED, Settings

MNIST = """Images and texts: MNIST (LeCun, Cortes and Burges), CC BY-SA 3.0 as Keras's documentation says. Rules write
  the captions, from the labels and from measurements of the images."""


def write(model: CLIP, folder: Path) -> None:
    """What `CLIP.save_pretrained` writes. The config leaves out the folders of this machine."""
    if (folder / "README.md").exists() and not (folder / "model.safetensors").exists():
        raise InputError(f"{folder} has a README.md of something else: name a new folder")
    config = {name: value for name, value in model.config.items() if name not in (*NOT_RECORDED, *LOCATION, "init")}
    save_folder(folder, "CLIP", model.content() | {"config": config})
    atomic_write(folder / "README.md", model_card(model).encode())


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
