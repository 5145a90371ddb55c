"""Makes the pictures of the documents and runs the notebook; with a generator, the drawings too; that of the demo.

    python -m benchmarks.pictures                                     both of runs/best_model.pth
    python -m benchmarks.pictures --notebook A.pth --evaluation B.pth

Runs evaluate.py and inference.ipynb in a folder of their own, copies the pictures that the documents show to
docs/pictures/, and writes the executed notebook to inference.ipynb.
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from playwright.sync_api import sync_playwright

import evaluate
import generate
from benchmarks.common import ROOT
from clip import CLIP
from demo.app import serve
from demo.look import Playground
from my_dataset import DATA_PATH, load_mnist
from my_utils import ArgumentParser, InputError, exit_on_input_error

CHROMIUM, PORT = "/usr/bin/chromium", 7870
SEVEN = ((0.28, 0.25), (0.72, 0.25), (0.46, 0.8))  # of the canvas
SHOWN = {
    "notebook": (
        "described_search.png",
        "described_sheet.png",
        "described_matrix.png",
        "similarity_matrix.png",
        "free_sentences.png",
        "hardest_mistakes.png",
        "strokes_read.png",
    ),
    "demo": ("demo.png",),
    "drawn": (
        "drawn_cells.png",
        "drawn_variations_0.png",
        "drawn_way_3_to_0.png",
        "drawn_direction_2.png",
    ),
    "evaluation": ("evaluation_robustness.png", "evaluation_open_set.png"),
}


def main() -> None:
    parser = ArgumentParser(prog="python -m benchmarks.pictures", description=__doc__.split("\n")[0])
    newest = ROOT / "runs" / "best_model.pth"
    for name in ("notebook", "evaluation"):
        parser.add_argument(f"--{name}", type=Path, default=newest, help=f"model of the {name}")
    parser.add_argument(
        "--generator", type=Path, default=ROOT / "runs" / "generator" / "best_model.pth", help="of the notebook's model"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "runs").mkdir()
        (place / DATA_PATH).symlink_to((ROOT / DATA_PATH).resolve())
        made = place / "inference_test"
        flags = [str(args.evaluation.resolve()), "--data-path", str(ROOT / DATA_PATH), "--pictures", str(made)]
        evaluate.main(evaluate.read_flags(flags))
        shutil.copy(args.notebook, place / "runs" / "best_model.pth")
        if args.generator.exists():
            (place / "runs" / "generator").mkdir()
            shutil.copy(args.generator, place / "runs" / "generator" / "best_model.pth")
            draw(args.notebook, args.generator, made)
        execute(place)
        page(args.notebook, args.generator, made)
        for pictures in SHOWN.values():
            for name in pictures:
                shown = ROOT / "docs" / "pictures" / name
                if (made / name).exists():
                    shutil.copy(made / name, shown)
                elif shown.exists():
                    print(f"{shown} stays as it is: this model does not draw it")
                else:
                    raise InputError(
                        f"{name} was not drawn: name a model of described captions, or with --text-encoder plus"
                    )
    print(f"written: inference.ipynb and {ROOT / 'docs' / 'pictures'}")


def draw(clip_path: Path, generator_path: Path, made: Path) -> None:
    """The pictures that generate.py draws."""
    files = ["--clip", str(clip_path), "--generator", str(generator_path), "--pictures", str(made)]
    files += ["--data-path", str(ROOT / DATA_PATH), "--count", "8"]
    for flags in (["--image", "0"], ["--from", "3", "--to", "0"], ["--image", "2", "--direction", "thin", "thick"]):
        generate.main(generate.read_flags([*flags, *files]))


def page(clip_path: Path, generator_path: Path, made: Path) -> None:
    """The demo in a browser, with a seven drawn on it; not where Chromium is not installed."""
    if not Path(CHROMIUM).is_file():
        return
    clip = CLIP.load(clip_path)
    playground = Playground.load(clip, load_mnist("test"), load_mnist("val"), generator_path)
    with tempfile.TemporaryDirectory() as sounds, sync_playwright() as playwright:
        site = serve(playground, "runs/best_model.pth", PORT, sounds)
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 1280, "height": 830})
        tab.goto(f"http://127.0.0.1:{PORT}")
        tab.locator("#seen .problem").wait_for()  # the page is there, and the canvas empty
        canvas = tab.locator("#pad canvas").bounding_box()
        for i, (x, y) in enumerate(SEVEN):
            tab.mouse.move(canvas["x"] + x * canvas["width"], canvas["y"] + y * canvas["height"], steps=8)
            if i == 0:
                tab.mouse.down()
        tab.mouse.up()
        tab.locator("#seen .bar").first.wait_for()
        tab.screenshot(path=made / "demo.png")
        browser.close()
        site.close(verbose=False)


def execute(place: Path) -> None:
    """The notebook, run in that folder; its outputs go into the file of this checkout."""
    notebook = nbformat.read(ROOT / "inference.ipynb", as_version=4)
    os.environ |= {"PYTHONPATH": str(ROOT), "JUPYTER_PLATFORM_DIRS": "1"}
    kernel = dict(notebook.metadata.get("kernelspec", {}))
    notebook.metadata.kernelspec.name = "python3"
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(place)}}).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # the times of this run
    notebook.metadata.kernelspec = kernel
    text = nbformat.writes(notebook)
    if str(place) in text or sys.prefix in text:
        raise InputError("the notebook's outputs name a folder of this machine: remove what prints it")
    nbformat.write(notebook, ROOT / "inference.ipynb")


if __name__ == "__main__":
    with exit_on_input_error():
        main()
