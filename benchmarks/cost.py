"""What training and inference cost: time of a step in its variants, memory, images per second.

    python -m benchmarks.cost                     all three tables
    python -m benchmarks.cost --only sizes        one of them

`steps`: a training step of each preset and in other forms. `sizes`: images/s and memory over batch size and embedding
width. `inference`: images/s of `encode_image`. Timings compared with each other are taken in turn, and medians are
reported. Writes results/cost-NAME.json (with a GPU: cost-NAME-cuda.json).
"""

import multiprocessing
import statistics
import sys
from argparse import Namespace
from pathlib import Path

import torch
from tqdm import tqdm

import train
from benchmarks import common
from benchmarks.common import Training, cell, timed, timed_in_turn
from benchmarks.recipes import plain_net, standardized
from evaluation.metrics import embed_images
from my_dataset import load_mnist
from my_utils import exit_on_error, use_bf16
from training.settings import PRESETS

STEPS = 40  # timed steps of each variant
# (batch size, embed_dim, chunk size or None: the whole batch at once)
SIZES = [
    *((batch, 64, None) for batch in (32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)),
    *((256, embed_dim, None) for embed_dim in (16, 256, 1024)),
    *((batch, 64, 1024) for batch in (8192, 32768)),
]
SIZE_IMAGES, SIZE_STEPS = 16_384, 3  # images for each row, in so many steps at least
BATCH, ROUNDS = 250, 7  # of inference: images that fit into a CPU's cache
TEXT, NEAREST = "a thick seven leaning left", 10


def main(argv: list[str]) -> None:
    args = common.parse(common.make_parser("cost", __doc__, tables=tuple(TABLES)), argv)
    for name in args.only:
        columns, rows, note = TABLES[name](args)
        common.write_result(args, f"cost-{name}{args.suffix}", columns, rows, common.origin(args.device), note)


def measure_steps(args: Namespace) -> tuple:
    """Training steps of several settings, all in turn."""
    device = args.device
    usual = use_bf16("auto", device)
    use_bf16("fp32", device)  # float32 below is whole float32 on a GPU too, without TF32
    adamw, wide, speed = ["--muon-lr", "0"], ["--width", "32"], ["--preset", "speed"]
    dtypes = ("float32", "bf16")
    variants = {
        f"default, {dtypes[usual]}": Training([], device),
        f"default, {dtypes[not usual]}": Training([], device, bf16=not usual),
        "AdamW alone (`--muon-lr 0`)": Training(adamw, device),
        "frozen language model (MiniLM)": Training(common.SENTENCES, device),
    }
    for name, flags in (("`--width 32`", wide), ("`--preset speed`", speed)):
        for bf16, dtype in enumerate(dtypes):
            variants[f"{name}, {dtype}"] = Training(flags, device, bf16=bool(bf16))
    first = {name: timed(device, training) for name, training in variants.items()}  # kernels are chosen
    seconds = timed_in_turn(device, variants, rounds=2 if args.quick else STEPS, warm_up=3)
    trained_language_model = Training([flag for flag in common.SENTENCES if flag != "--freeze-text"], device)
    name = "language model (MiniLM) trained too"
    variants[name], first[name] = trained_language_model, timed(device, trained_language_model)
    seconds[name] = [timed(device, trained_language_model) for _ in range(1 if args.quick else 3)]
    rows = [
        [
            name,
            f"{training.settings.batch_size}",
            cell(1000 * statistics.median(seconds[name]), " ms"),
            cell(first[name], " s"),
        ]
        for name, training in variants.items()
    ]
    return ["a training step", "batch size", "median", "the first step"], rows, ""


def measure_sizes(args: Namespace) -> tuple:
    """Speed and memory, each row in a fresh process: its peak of memory is its own."""
    spawn, rows = multiprocessing.get_context("spawn"), []
    for size in tqdm(SIZES[:1] if args.quick else SIZES, desc="rows"):
        with spawn.Pool(1) as pool:
            rate, mib = pool.apply(measure_size, (*size, str(args.device)))
        batch_size, embed_dim, chunk_size = size
        chunk = f"{chunk_size:,}" if chunk_size else "the batch"
        rows.append([f"{batch_size:,}", f"{embed_dim}", chunk, cell(rate, ""), cell(mib, " MiB")])
    note = "The memory of a step is what it needs beyond the model and the data."
    return ["batch size", "`embed_dim`", "chunk size", "images/s", "memory of a step"], rows, note


def measure_size(batch_size: int, embed_dim: int, chunk_size: int | None, device: str) -> tuple[float, float]:
    """Images/s in the median step after the first, and the peak of memory of all steps in MiB."""
    device = torch.device(device)
    flags = ["--batch-size", str(batch_size), "--embed-dim", str(embed_dim)]
    training = Training(flags + (["--chunk-size", str(chunk_size)] if chunk_size else []), device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)  # the peak so far was that of loading
        before = torch.cuda.memory_allocated(device) / 2**20
    else:
        Path("/proc/self/clear_refs").write_text("5")
        before = process_mib("VmRSS")
    seconds = [timed(device, training) for _ in range(1 + max(SIZE_STEPS, SIZE_IMAGES // batch_size))][1:]
    peak = torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else process_mib("VmHWM")
    return batch_size / statistics.median(seconds), peak - before


def process_mib(field: str) -> float:
    """MiB that this process holds now (VmRSS) or has held at most (VmHWM), as Linux counts them."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status[field].split()[0]) / 2**10


@torch.no_grad()
def measure_inference(args: Namespace) -> tuple:
    """`encode_image` of each preset, with random weights, beside a plain classifier."""
    device = args.device
    images = load_mnist("test", common.DATA, device).images[: 4 * BATCH if args.quick else None]
    models = {
        f"`--preset {name}`": train.build_model(common.settings_of(["--preset", name])).eval()
        for name, preset in PRESETS.items()
        if preset.get("captions") not in ("own", "scenes")  # these read other images
    }
    towers = {name: model.to(device, memory_format=torch.channels_last).encode_image for name, model in models.items()}
    plain, model = plain_net().to(device).eval(), models["`--preset default`"]
    towers["plain classifier"] = lambda x: plain(standardized(x))
    batches, vectors = images.split(BATCH), embed_images(model, images)

    def find() -> torch.Tensor:
        return (vectors @ model.encode_text(TEXT)[0]).topk(NEAREST).indices

    works = {name: lambda tower=tower: [tower(batch) for batch in batches] for name, tower in towers.items()}
    seconds = timed_in_turn(device, works | {"find": find}, rounds=1 if args.quick else ROUNDS, warm_up=1)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    rows = []
    for name, tower in towers.items():
        flops = common.count_flops(lambda tower=tower: tower(batches[0]))
        rows.append([name, cell(flops / BATCH / 1e6, ""), cell(len(images) / median[name], "")])
    note = (
        f"From the text {TEXT!r} to the {NEAREST} nearest of {len(images):,} images whose vectors are there:"
        f" {cell(1000 * median['find'], ' ms')}."
    )
    return ["`encode_image` of", "MFLOP per image", "images/s"], rows, note


TABLES = {"steps": measure_steps, "sizes": measure_sizes, "inference": measure_inference}


if __name__ == "__main__":
    with exit_on_error():
        sys.exit(main(sys.argv[1:]))
