"""How the cost of a training step grows: images/s and memory over batch size and embedding width.

    python benchmarks/cost.py

Each row is a fresh process that takes the default training step some times, so that its peak of memory is its own:
on a CPU the process's, on CUDA what torch allocated, each less what was held before the first step (data, model).
Prints the table and writes it to benchmarks/results/cost.json (CUDA: cost-cuda.json).
"""

import json
import multiprocessing
import statistics
import sys
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from tqdm import tqdm  # noqa: E402

from benchmarks.recipes import Stopwatch, our_step  # noqa: E402
from clip import CLIP  # noqa: E402
from my_dataset import DATA_PATH, epoch_batches, load_mnist  # noqa: E402
from my_utils import ArgumentParser, atomic_write, cpu_name, exit_on_input_error, pick_device  # noqa: E402

# (batch size, embed_dim, chunk size or None: the whole batch at once)
ROWS = [
    *((batch, 64, None) for batch in (32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)),
    *((256, embed_dim, None) for embed_dim in (16, 256, 1024)),
    *((batch, 64, 1024) for batch in (8192, 32768)),
]
IMAGES = 16_384  # images a row at least, in at least
STEPS = 3  # steps, after one that warms up


def main() -> None:
    parser = ArgumentParser(prog="cost.py", description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    device = pick_device(parser.parse_args().device)
    spawn = multiprocessing.get_context("spawn")
    rows = []
    for batch_size, embed_dim, chunk_size in tqdm(ROWS, desc="rows"):
        with spawn.Pool(1) as pool:
            rate, mib = pool.apply(measure, (batch_size, embed_dim, chunk_size, str(device)))
        rows.append({"batch_size": batch_size, "embed_dim": embed_dim, "chunk_size": chunk_size})
        rows[-1] |= {"images_per_second": rate, "step_mib": mib}
    result = {
        "command": "python benchmarks/cost.py",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name(),
        "threads": torch.get_num_threads(),
        "torch_version": str(torch.__version__),
        "date": f"{date.today()}",
        "rows": rows,
    }
    name = "cost-cuda" if device.type == "cuda" else "cost"
    atomic_write(ROOT / "benchmarks" / "results" / f"{name}.json", (json.dumps(result, indent=2) + "\n").encode())
    print(f"\n{'batch':>8}{'embed_dim':>11}{'chunk':>8}{'images/s':>11}{'step MiB':>10}")
    for row in rows:
        print(
            f"{row['batch_size']:8}{row['embed_dim']:11}{row['chunk_size'] or '-':>8}"
            f"{row['images_per_second']:11,.0f}{row['step_mib']:10,.0f}"
        )


def measure(batch_size: int, embed_dim: int, chunk_size: int | None, device: str) -> tuple[float, float]:
    """Images/s in the median step, and the peak of memory in MiB."""
    device = torch.device(device)
    split = load_mnist("train", ROOT / DATA_PATH, device)
    torch.manual_seed(0)
    model = CLIP(embed_dim=embed_dim).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    # The peak so far was that of loading: begin anew.
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device) / 2**20
    else:
        Path("/proc/self/clear_refs").write_text("5")
        before = process_mib("VmRSS")
    seconds = []
    for epoch in range(1 + STEPS):
        for images, labels in epoch_batches(split, batch_size, seed=0, epoch=epoch):
            watch = Stopwatch(device)
            with watch:
                our_step(model, optimizer, images, labels, chunk_size)
            seconds.append(watch.seconds)
            if len(seconds) > max(STEPS, IMAGES // batch_size):
                if device.type == "cuda":
                    peak = torch.cuda.max_memory_allocated(device) / 2**20
                else:
                    peak = process_mib("VmHWM")
                return batch_size / statistics.median(seconds[1:]), peak - before


def process_mib(field: str) -> float:
    """What this process holds now (VmRSS) or has held at most (VmHWM), in MiB. Linux tells it."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status[field].split()[0]) / 2**10


if __name__ == "__main__":
    with exit_on_input_error():
        main()
