"""Make the pictures that the documents show, and run the notebook: all from one trained model.

    python -m benchmarks.pictures                    of runs/best_model.pth and its generator
    python -m benchmarks.pictures --clip A.pth --generator B.pth

Runs evaluate.py, generate.py, the notebook and the demo in a folder of their own, then copies the pictures that the
documents name to docs/pictures/, and the executed notebook to inference.ipynb.
"""

import contextlib
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from playwright.sync_api import Page, sync_playwright

import evaluate
import generate
from benchmarks.common import ROOT
from demo import build
from my_dataset import DATA_PATH
from my_utils import ArgumentParser, InputError, atomic_write, exit_on_error

CHROMIUM = "/usr/bin/chromium"
SEVEN = ((0.28, 0.25), (0.72, 0.25), (0.46, 0.8))  # the path of the pen, as shares of the canvas
GENERATED = (["--image", "0"], ["--image", "3", "--to", "0"], ["--image", "2", "--direction", "thin", "thick"])


def main(argv: list[str]) -> None:
    parser = ArgumentParser(prog="benchmarks.pictures", description=__doc__.split("\n")[0])
    runs = ROOT / "runs"
    parser.add_argument("--clip", type=Path, default=runs / "best_model.pth", help="the trained CLIP")
    parser.add_argument("--generator", type=Path, default=runs / "generator" / "best_model.pth", help="its generator")
    parser.add_argument("--scenes", type=Path, default=runs / "scenes" / "best_model.pth", help="the CLIP of scenes")
    args = parser.parse_args(argv)
    data = str((ROOT / DATA_PATH).resolve())
    with tempfile.TemporaryDirectory() as folder:
        place, made = Path(folder), Path(folder) / "inference_test"
        (place / "runs" / "generator").mkdir(parents=True)
        (place / DATA_PATH).symlink_to(data)
        clip = shutil.copy(args.clip, place / "runs" / "best_model.pth")
        files = ["--data-path", data, "--pictures", str(made)]
        evaluate.main([str(clip), *files])
        if args.generator.exists():
            generator = shutil.copy(args.generator, place / "runs" / "generator" / "best_model.pth")
            for flags in GENERATED:
                generate.main([*flags, "--count", "8", "--clip", str(clip), "--generator", str(generator), *files])
        if args.scenes.exists():
            (place / "runs" / "scenes").mkdir()
            shutil.copy(args.scenes, place / "runs" / "scenes" / "best_model.pth")
        execute_notebook(place)
        if Path(CHROMIUM).is_file():
            photograph_demo(place, made / "demo.png")
        documents = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "benchmarks" / "README.md"]
        names = {name for path in documents for name in re.findall(r"pictures/(\w+\.png)", path.read_text("utf-8"))}
        for name in sorted(names):
            if (made / name).exists():
                atomic_write(ROOT / "docs" / "pictures" / name, (made / name).read_bytes())
            else:
                print(f"docs/pictures/{name} stays as it is: this model gave no such picture")
    print(f"written: inference.ipynb and {ROOT / 'docs' / 'pictures'}")


def execute_notebook(place: Path) -> None:
    """Run the notebook in that folder and write it with its outputs. Raises InputError if they name the folder."""
    notebook = nbformat.read(ROOT / "inference.ipynb", as_version=4)
    os.environ |= {"PYTHONPATH": str(ROOT), "JUPYTER_PLATFORM_DIRS": "1"}  # of the notebook's process
    kernel = dict(notebook.metadata.get("kernelspec", {}))
    notebook.metadata.kernelspec.name = "python3"
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(place)}}).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # the times of this run
    notebook.metadata.kernelspec = kernel
    text = nbformat.writes(notebook).replace(f"{place}/", "")
    if str(place) in text or sys.prefix in text:
        raise InputError("the notebook's outputs name a folder of this machine: remove what prints it")
    atomic_write(ROOT / "inference.ipynb", (text.rstrip() + "\n").encode())


def photograph_demo(place: Path, picture: Path) -> None:
    """The demo's page in a browser, with a seven drawn on it."""
    runs, page = place / "runs", place / "page.html"
    files = ["--clip", str(runs / "best_model.pth"), "--generator", str(runs / "generator" / "best_model.pth")]
    build.main([*files, "--data-path", str(place / DATA_PATH), "--page", str(page), "--no-open"])
    with opened_page(page, viewport={"width": 1280, "height": 740}, locale="en-US") as (tab, canvas):
        for i, (x, y) in enumerate(SEVEN):
            tab.mouse.move(canvas["x"] + x * canvas["width"], canvas["y"] + y * canvas["height"], steps=8)
            if i == 0:
                tab.mouse.down()
        tab.mouse.up()
        tab.locator("#seen .bar").first.wait_for()
        tab.screenshot(path=picture)


@contextlib.contextmanager
def opened_page(path: Path, **options) -> Iterator[tuple[Page, dict]]:
    """The demo's page in Chromium, when its model is there, and the box of its empty canvas."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        tab = browser.new_page(**options)
        tab.goto(path.as_uri())
        tab.locator("#seen .problem").wait_for()
        yield tab, tab.locator("#pad canvas").bounding_box()
        browser.close()


if __name__ == "__main__":
    with exit_on_error():
        sys.exit(main(sys.argv[1:]))
