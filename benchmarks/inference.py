"""How fast a model answers: images and texts encoded, and images found for a text among the 10,000 of the test split.

    python -m benchmarks.inference

`encode_image` of each preset's tower beside the plain classifier's forward pass (recipes.py), and each beside a square
matrix product of as many FLOPs. All take turns, in batches that fit into a CPU's cache, with random weights: they take
as long as trained ones. Prints the table and writes it to benchmarks/results/inference.json (CUDA:
inference-cuda.json).
"""

import statistics
from collections.abc import Callable

import torch
from torch import Tensor
from tqdm import tqdm

import train
from benchmarks.common import DATA, about, flops_of, parser_of, suffix, timed, write_result
from benchmarks.recipes import pixels, plain_net
from evaluation.metrics import embed_images
from my_dataset import load_mnist
from my_utils import exit_on_input_error, pick_device
from training.settings import PRESETS, read_flags

BATCH, ROUNDS, NEAREST = 250, 7, 10
REPEATS = 20  # texts at a time: one alone is too short for a clock
TEXTS = ("7", "a thick seven leaning left")


def main() -> None:
    device = pick_device(parser_of(__doc__).parse_args().device)
    images = load_mnist("test", DATA, device).images
    models = {preset: train.build_model(read_flags(["--preset", preset])[0]).eval() for preset in PRESETS}
    towers: dict[str, Callable] = {
        name: model.to(device, memory_format=torch.channels_last).encode_image for name, model in models.items()
    }
    plain = plain_net().to(device).eval()
    towers["plain classifier"] = lambda x: plain(pixels(x))
    model = models["default"]  # its captions describe: any text goes in

    flops = {name: flops_of(lambda tower=tower: tower(images[:BATCH])) for name, tower in towers.items()}
    products = {name: square(count, device) for name, count in flops.items()}
    vectors = embed_images(model, images)

    def find(text: str) -> Tensor:
        """The places of the images nearest to a text, [NEAREST]."""
        return (vectors @ model.encode_text(text)[0]).topk(NEAREST).indices

    work = {f"images, {name}": lambda tower=tower: all_of(tower, images) for name, tower in towers.items()}
    times = len(images) // BATCH
    work |= {f"product, {name}": lambda x=x: repeat(lambda: x @ x, times) for name, x in products.items()}
    work |= {f"find, {text}": lambda text=text: repeat(lambda: find(text), REPEATS) for text in TEXTS}
    seconds = {name: [] for name in work}
    with torch.inference_mode():
        for turn in tqdm(range(ROUNDS + 1), desc="in turn"):
            for name, one in work.items():
                elapsed = timed(device, one)
                if turn:  # the first one warms up
                    seconds[name].append(elapsed)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    rows = [
        {
            "encoder": name,
            "mflop_an_image": flops[name] / BATCH / 1e6,
            "images_per_second": len(images) / median[f"images, {name}"],
            "times_the_product": median[f"images, {name}"] / median[f"product, {name}"],
        }
        for name in towers
    ]
    finding = [{"text": text, "milliseconds": 1000 * median[f"find, {text}"] / REPEATS} for text in TEXTS]
    write_result(f"inference{suffix(device)}", about(device) | {"rows": rows, "find": finding})
    for row in rows:
        print(
            f"{row['encoder']:20}{row['mflop_an_image']:8.2f} MFLOP an image{row['images_per_second']:12,.0f} images/s"
            f"{row['times_the_product']:8.1f} times a matrix product of its FLOPs"
        )
    for row in finding:
        print(f"{row['text']!r}: the {NEAREST} nearest of {len(images):,} images in {row['milliseconds']:.2f} ms")


def all_of(tower: Callable, images: Tensor) -> None:
    for batch in images.split(BATCH):
        tower(batch)


def repeat(work: Callable[[], object], times: int) -> None:
    for _ in range(times):
        work()


def square(flops: int, device: torch.device) -> Tensor:
    """A square matrix whose product with itself takes so many FLOPs."""
    side = round((flops / 2) ** (1 / 3))
    return torch.randn(side, side, device=device)


if __name__ == "__main__":
    with exit_on_input_error():
        main()
