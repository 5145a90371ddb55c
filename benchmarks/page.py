"""The page's towers (demo/towers.js) beside PyTorch's: are they equal, and how fast? Needs node 18 or later.

    python -m benchmarks.page

"Differences" are from PyTorch with the page's weights, which are rounded; "accuracy lost" from those of training.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from attributes import measure
from benchmarks.common import DATA, make_parser, origin, parse, trained_clip, write_result
from clip import CLIP
from demo.build import Page, build
from evaluation.metrics import caption_accuracy, embed_images
from generation.model import Generator
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


@torch.no_grad()
def compare(page: Page, images: Tensor, texts: list[str]) -> tuple[Tensor, dict[str, float]]:
    """Images uint8 [N, 28, 28] and texts [T] -> JavaScript's embeddings of the images; largest differences from
    PyTorch's of images, texts and attributes; and the number of images with another nearest text."""
    got = {k: torch.tensor(x) for k, x in run_in_node(page, TOWERS, images=images.flatten(1), texts=texts).items()}
    want = {"images": embed_images(page.clip, images), "texts": page.clip.encode_text(texts), "values": measure(images)}
    result = {name: (got[name] - want[name]).abs().max().item() for name in want}
    other = 0  # texts of the same words are equally near, up to rounding
    for x, y in zip(got["images"].split(500), want["images"].split(500), strict=True):
        cosines, chosen = y @ want["texts"].T, (x @ got["texts"].T).argmax(dim=1, keepdim=True)
        other += int((cosines.gather(1, chosen) < cosines.amax(dim=1, keepdim=True) - 1e-5).sum())
    return got["images"], result | {"other_caption": other}


def main(argv: list[str]) -> None:
    args = parse(make_parser("page", __doc__), argv)
    clip, test, rows = CLIP.load(trained_clip(args)), load_mnist("test", DATA), []
    path, count = args.runs / "generator" / "default-seed0" / "best_model.pth", 200 if args.quick else 10_000
    generator = Generator.load(path, clip) if path.exists() else None
    pages = [build(clip, one, test) for one in dict.fromkeys((None, generator))]
    for page, title in zip(pages, ("the page", "the page with the generator"), strict=False):
        rows.append([f"size of {title}", f"{len(page.html) / 1e6:.2f} MB"])
    images, labels = test.images[:count], test.labels[:count]
    texts = list(dict.fromkeys(clip.captions.sentences))
    embeds, differences = compare(pages[0], images, texts)
    rows += [[f"{name}: largest difference", f"{value:.1e}"] for name, value in list(differences.items())[:3]]
    rows.append([f"images of {count:,} with another nearest caption of {len(texts):,}", differences["other_caption"]])
    digits = clip.zero_shot_classifier()
    accuracies = [caption_accuracy(x @ digits.T, labels) for x in (embed_images(clip, images), embeds)]
    rows += [["accuracy by the digits' captions", f"{accuracies[0]:.2%}"], ["the page's", f"{accuracies[1]:.2%}"]]
    for name, value in run_in_node(pages[-1], SPEED).items():
        rows.append([f"median time, {name}", f"{value:.1f} ms"])
    write_result(args, "page", ["figure", "value"], rows, origin(args.device), "JavaScript in node, one thread.")


if __name__ == "__main__":
    with exit_on_error():
        sys.exit(main(sys.argv[1:]))
