"""How the cost of a training step grows: images/s and memory over batch size and embedding width.

    python -m benchmarks.cost

Each row is a fresh process that takes the default training step some times, so that its peak of memory is its own:
on a CPU the process's, on CUDA what torch allocated, each less what was held before the first step (data, model).
Prints the table and writes it to benchmarks/results/cost.json (CUDA: cost-cuda.json).
"""

import multiprocessing
import statistics
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks.common import Training, about, parser_of, suffix, timed, write_result
from my_utils import exit_on_input_error, pick_device

# (batch size, embed_dim, chunk size or None: the whole batch at once)
ROWS = [
    *((batch, 64, None) for batch in (32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)),
    *((256, embed_dim, None) for embed_dim in (16, 256, 1024)),
    *((batch, 64, 1024) for batch in (8192, 32768)),
]
IMAGES = 16_384  # images a row at least, in at least
STEPS = 3  # steps, after one that warms up


def main() -> None:
    device = pick_device(parser_of(__doc__).parse_args().device)
    spawn = multiprocessing.get_context("spawn")
    rows = []
    for batch_size, embed_dim, chunk_size in tqdm(ROWS, desc="rows"):
        with spawn.Pool(1) as pool:
            rate, mib = pool.apply(measure, (batch_size, embed_dim, chunk_size, str(device)))
        rows.append({"batch_size": batch_size, "embed_dim": embed_dim, "chunk_size": chunk_size})
        rows[-1] |= {"images_per_second": rate, "step_mib": mib}
    write_result(f"cost{suffix(device)}", about(device) | {"rows": rows})
    print(f"\n{'batch':>8}{'embed_dim':>11}{'chunk':>8}{'images/s':>11}{'step MiB':>10}")
    for row in rows:
        print(
            f"{row['batch_size']:8}{row['embed_dim']:11}{row['chunk_size'] or '-':>8}"
            f"{row['images_per_second']:11,.0f}{row['step_mib']:10,.0f}"
        )


def measure(batch_size: int, embed_dim: int, chunk_size: int | None, device: str) -> tuple[float, float]:
    """Images/s in the median step, and the peak of memory in MiB."""
    device = torch.device(device)
    flags = ["--batch-size", str(batch_size), "--embed-dim", str(embed_dim)]
    training = Training(flags + (["--chunk-size", str(chunk_size)] if chunk_size else []), device)
    # The peak so far was that of loading: begin anew.
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device) / 2**20
    else:
        Path("/proc/self/clear_refs").write_text("5")
        before = process_mib("VmRSS")
    seconds = [timed(device, training) for _ in range(1 + max(STEPS, IMAGES // batch_size))][1:]
    peak = torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else process_mib("VmHWM")
    return batch_size / statistics.median(seconds), peak - before


def process_mib(field: str) -> float:
    """What this process holds now (VmRSS) or has held at most (VmHWM), in MiB. Linux tells it."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status[field].split()[0]) / 2**10


if __name__ == "__main__":
    with exit_on_input_error():
        main()
