"""Are the page's towers (demo/towers.js) those of PyTorch? And how fast are they? Needs node.

    python -m benchmarks.page
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from attributes import measure
from benchmarks.common import DATA, cell, load_clip, make_parser, origin, parse, trained_clip, write_result
from benchmarks.photos import photograph
from data.photo import photo_to_mnist
from demo.build import Page, build
from evaluation.metrics import caption_accuracy, embed_images
from generation.model import STEPS, Generator
from modalities import speech
from my_dataset import load_mnist
from my_utils import InputError, exit_on_error

SEVEN = [(80, 70), (200, 70), (130, 220)]  # the path of the pen on a canvas of 280 x 280
N_PICTURES = 50
MEDIAN = """const median = (work) => {
  const times = Array.from({ length: 30 }, () => { const start = performance.now(); work(); return performance.now() - start; });
  return times.sort((a, b) => a - b)[15];
};"""


def run_in_node(page: Page, job: str, **inputs) -> object:
    """What the page's scripts return for a job, JavaScript that has `model` and `inputs`: plain values."""
    scripts = page.html.split('id="worker">')[1].split("</script>")[0]
    plain = {name: x.tolist() if isinstance(x, Tensor) else x for name, x in inputs.items()}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "page.html").write_text(page.html, "utf-8")
        (place / "inputs.json").write_text(json.dumps(plain), "utf-8")
        read = "require('fs').readFileSync(__dirname + '/%s', 'utf8')"
        load = f"load_model({read % 'page.html'}.split('id=\"model\">')[1].split('<')[0])"
        work = f"((model, inputs) => {{ {job} }})(await {load}, JSON.parse({read % 'inputs.json'}))"
        plainly = "(key, value) => ArrayBuffer.isView(value) ? Array.from(value) : value"
        (place / "job.js").write_text(
            f"{scripts}\n(async () => process.stdout.write(JSON.stringify({work}, {plainly})))();", "utf-8"
        )
        try:
            done = subprocess.run(["node", str(place / "job.js")], capture_output=True, text=True, encoding="utf-8")
        except FileNotFoundError:
            raise InputError("node is needed to run the page's scripts: install Node.js 18 or later") from None
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout)


def towers(page: Page, images: Tensor, texts: list[str]) -> dict[str, float | Tensor]:
    """Images uint8 [N, 28, 28] and texts through both. The largest differences, and JavaScript's nearest captions."""
    job = """return { images: inputs.images.map((x) => encode_image(model, x)),
      values: inputs.images.map((x) => [thickness(model, x), slant(x)]),
      texts: inputs.texts.map((text) => encode_text(model, text)) };"""
    got = {k: torch.tensor(x) for k, x in run_in_node(page, job, images=images.flatten(1), texts=texts).items()}
    want = {"images": embed_images(page.clip, images), "texts": page.clip.encode_text(texts), "values": measure(images)}
    return {name: (got[name] - want[name]).abs().max().item() for name in want} | {
        "same_caption": ((got["images"] @ got["texts"][:200].T).argmax(1) == (want["images"] @ want["texts"][:200].T).argmax(1)).float().mean().item(),
        "embeds": got["images"],
    }


def drawings(page: Page, texts: list[str]) -> float:
    """The same noise through both -> the largest difference of a pixel, in levels of 255."""
    prior, decoder = page.generator.prior, page.generator.decoder
    noise = [torch.randn(len(texts), flow.dim) for flow in (prior, decoder)]
    embeds, scale = page.clip.encode_text(texts), page.generator.scale
    vectors = F.normalize(prior.sample(scale * embeds, noise[0], STEPS), dim=1)
    want = page.generator.autoencoder.decode(decoder.sample(scale * vectors, noise[1], STEPS))  # [N, 1, 28, 28]
    job = """return inputs.embeds.map((embed, i) =>
      sample(model, ...[embed, inputs.prior[i], inputs.decoder[i]].map((x) => Float32Array.from(x))));"""
    got = torch.tensor(run_in_node(page, job, embeds=embeds, prior=noise[0], decoder=noise[1]))
    return (got - (255 * want).flatten(1)).abs().max().item()


def draw(path: list, width: int = 18, ink: str = "black", paper: str = "white") -> Image.Image:
    """A path of the pen on the page's canvas."""
    canvas = Image.new("RGBA", (280, 280), paper)
    ImageDraw.Draw(canvas).line(path, fill=ink, width=width, joint="curve")
    return canvas


def pictures(page: Page, some: list[Image.Image]) -> dict[str, float]:
    """Pictures of any size through both -> mean difference of a pixel in levels, and the share of equal captions."""
    inputs = [[list(x.convert("RGBA").tobytes()), *x.size] for x in some]
    job = "return inputs.pictures.map(([rgba, ...size]) => photo_to_mnist(model, Uint8ClampedArray.from(rgba), ...size));"
    got = torch.tensor(run_in_node(page, job, pictures=inputs)).view(-1, 28, 28).byte()
    want = torch.stack([photo_to_mnist(x) for x in some])
    texts = page.clip.zero_shot_classifier().T  # [embed_dim, 10]
    same = (embed_images(page.clip, got) @ texts).argmax(1) == (embed_images(page.clip, want) @ texts).argmax(1)
    difference = (got.float() - want.float()).abs().mean().item()
    return {"pixels": difference, "same_caption": same.float().mean().item()}
