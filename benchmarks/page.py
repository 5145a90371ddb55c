"""The page's towers (demo/towers.js) beside PyTorch's: are they equal, and how fast? Needs node 18 or later.

    python -m benchmarks.page

"Differences" are from PyTorch with the page's weights, which are rounded; "accuracy lost" from those of training.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from attributes import measure
from benchmarks.common import DATA, make_parser, origin, parse, trained_clip, write_result
from benchmarks.generation import trained_generator
from benchmarks.order import trained
from benchmarks.pictures import CHROMIUM, opened_page
from clip import CLIP
from demo.build import Page, build
from evaluation.metrics import caption_accuracy, embed_images
from evaluation.scenes import candidate_captions, evaluation_scenes
from my_dataset import load_mnist
from my_utils import InputError, exit_on_error

IN_NODE = """;(async () => {
  const [data, inputs] = JSON.parse(require("fs").readFileSync("%s", "utf8"));
  const model = await load_model(data);
  const plain = (key, value) => ArrayBuffer.isView(value) ? Array.from(value) : value;
  process.stdout.write(JSON.stringify((() => { %s })(), plain));
})();"""
TOWERS = """return { images: inputs.images.map((x) => encode_image(model, x)),
  values: inputs.images.map((x) => [thickness(model, x), slant(x)]),
  texts: inputs.texts.map((text) => encode_text(model, text)) };"""
SCENES = """return { images: inputs.images.map((x) => encode_scene(model, x)),
  texts: inputs.texts.map((text) => encode_caption(model, text)) };"""
WATCH = """() => { window.times = []; let start = null;
  addEventListener("pointerup", () => { start = performance.now(); }, true);
  new MutationObserver(() => {
    if (start !== null && document.querySelector("#seen .bar")) { times.push(performance.now() - start); start = null; }
  }).observe(document.getElementById("seen"), { childList: true }); }"""
STROKES = 20
SPEED = """const median = (work) => Array.from({ length: 40 }, () => {
  const start = performance.now(); work(); return performance.now() - start; }).sort((a, b) => a - b)[20];
const [side, sentences, text] = [280, model.sentences.en, "a thick seven leaning left"];
const rgba = Uint8ClampedArray.from({ length: 4 * side * side }, (_, i) => // a bar at an angle, on a canvas
  i % 4 < 3 && Math.abs((i >> 2) % side - 180 + (i >> 2) / side / 4) < 9 ? 0 : 255);
return { see: median(() => see(model, { rgba, width: side, height: side, sentences })),
  find: median(() => find(model, { text })),
  draw: model.layers["prior.proj_in"] && median(() => draw(model, find(model, { text }).embed)) };"""


def run_in_node(page: Page, job: str, **inputs) -> object:
    """What the page's own scripts return for a job: JavaScript that has `model` and `inputs`. Plain values."""
    inputs = {name: x.tolist() if isinstance(x, Tensor) else x for name, x in inputs.items()}
    scripts, data = (page.html.split(f'id="{name}">')[1].split("</script>")[0] for name in ("worker", "model"))
    with tempfile.TemporaryDirectory() as folder:
        script, file = Path(folder) / "job.js", Path(folder) / "inputs.json"
        file.write_text(json.dumps([data, inputs]), "utf-8")
        script.write_text(scripts + IN_NODE % (file, job), "utf-8")
        try:
            done = subprocess.run(["node", script], capture_output=True, text=True, encoding="utf-8")
        except FileNotFoundError:
            raise InputError("node is not installed: install Node.js 18 or later") from None
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout)


def stroke_to_captions(page: Page) -> list[float]:
    """Milliseconds in Chromium from the end of each stroke until its captions are on the page."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "page.html"
        path.write_text(page.html, "utf-8")
        with opened_page(path) as (tab, canvas):
            tab.evaluate(WATCH)
            for stroke in range(STROKES):  # from the top to the bottom, each a little further right
                x = canvas["x"] + (0.4 + 0.01 * stroke) * canvas["width"]
                tab.mouse.move(x, canvas["y"] + 0.2 * canvas["height"])
                tab.mouse.down()
                tab.mouse.move(x, canvas["y"] + 0.8 * canvas["height"])
                tab.mouse.up()
                tab.wait_for_function("count => window.times.length > count", arg=stroke)
            return tab.evaluate("window.times")


@torch.no_grad()
def compare(page: Page, images: Tensor, texts: list[str]) -> tuple[Tensor, dict[str, float]]:
    """Images uint8 [N, 28, 28], or [N, 48, 48] of scenes, and texts [T] -> JavaScript's embeddings of the images;
    largest differences from PyTorch's of images, texts and attributes; the number of images with another nearest
    text."""
    is_digit = images.shape[-1] == page.clip.side
    clip, job = (page.clip, TOWERS) if is_digit else (page.scenes, SCENES)
    got = {k: torch.tensor(x) for k, x in run_in_node(page, job, images=images.flatten(1), texts=texts).items()}
    want = {"images": embed_images(clip, images), "texts": clip.encode_text(texts)}
    want |= {"values": measure(images)} if is_digit else {}
    result = {name: (got[name] - want[name]).abs().max().item() for name in want}
    other = 0  # texts of the same words are equally near, up to rounding
    for x, y in zip(got["images"].split(500), want["images"].split(500), strict=True):
        cosines, chosen = y @ want["texts"].T, (x @ got["texts"].T).argmax(dim=1, keepdim=True)
        other += int((cosines.gather(1, chosen) < cosines.amax(dim=1, keepdim=True) - 1e-5).sum())
    return got["images"], result | {"other_caption": other}


def main(argv: list[str]) -> None:
    args = parse(make_parser("page", __doc__), argv)
    name = "page" if args.quick else "default"  # (the page cannot run the small encoder of --quick)
    clip = CLIP.load(trained_clip(args, name=name, quick=("--epochs", "1", "--width", "4")))
    test = load_mnist("test", DATA)
    count, texts = 200 if args.quick else 10_000, list(dict.fromkeys(clip.captions.sentences))
    images, labels, page = test.images[:count], test.labels[:count], build(clip, None, test)
    embeds, found = compare(page, images, texts)
    rows = [[f"{count:,} images with another nearest caption of {len(texts):,}", found["other_caption"]]]
    rows += [[f"largest difference, {name}", f"{found[name]:.0e}"] for name in ("images", "texts", "values")]
    for name, model, x in (("PyTorch", clip, embed_images(clip, images)), ("the page", page.clip, embeds)):
        accuracy = caption_accuracy(x @ model.zero_shot_classifier().T, labels)
        rows.append([f"accuracy, {name}", f"{accuracy:.2%}"])
    rows.append(["size", f"{len(page.html) / 1e6:.2f} MB"])
    if not args.quick:
        page = build(clip, trained_generator(args, clip), test)
        rows.append(["size with the generator", f"{len(page.html) / 1e6:.2f} MB"])
        with_scenes = build(clip, None, test, trained(args, 0, "scenes0", 0))
        scenes = evaluation_scenes(test)[0]
        found = compare(with_scenes, (255 * scenes.images[:, 0]).round().byte(), candidate_captions())[1]
        rows.append([f"{len(scenes.images):,} scenes with another nearest caption of 180", found["other_caption"]])
        rows += [[f"largest difference, {name} of scenes", f"{found[name]:.0e}"] for name in ("images", "texts")]
        rows.append(["size with scenes", f"{len(with_scenes.html) / 1e6:.2f} MB"])
    rows += [[f"median time in node, {name}", f"{time:.1f} ms"] for name, time in run_in_node(page, SPEED).items()]
    if Path(CHROMIUM).is_file():
        time = statistics.median(stroke_to_captions(page))
        rows.append(["median time in Chromium, from the end of a stroke to the captions", f"{time:.1f} ms"])
    note = "Values: thickness and slant. Times: a drawing seen, a text's images found, an image drawn."
    write_result(args, "page", ["figure", "value"], rows, origin(args.device), note)


if __name__ == "__main__":
    with exit_on_error():
        sys.exit(main(sys.argv[1:]))
