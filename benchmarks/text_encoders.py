"""What a text encoder costs: a training step of the table against a frozen `plus`, and a step of full-size ALBERT.

    python benchmarks/text_encoders.py

Steps of the first two are taken in turn in one process, so that the machine's moods hit both; the figure is the
ratio of the medians. Full-size ALBERT has random weights here (made by make_albert.py): time and memory do not
depend on their values. Writes benchmarks/results/text-encoders.json.
"""

import json
import resource
import statistics
import sys
import tempfile
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from augment import random_warp  # noqa: E402
from benchmarks.make_albert import BASE, make_albert  # noqa: E402
from benchmarks.recipes import Stopwatch  # noqa: E402
from clip import CLIP  # noqa: E402
from losses import multi_positive  # noqa: E402
from my_dataset import DATA_PATH, epoch_batches, load_mnist  # noqa: E402
from my_utils import ArgumentParser, atomic_write, cpu_name, exit_on_input_error, number, pick_device  # noqa: E402


def main() -> None:
    parser = ArgumentParser(prog="text_encoders.py", description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=number(int, 5), default=60, help="timed steps of each of the two")
    parser.add_argument("--batch-size", type=number(int, 2), default=256, help="image-text pairs a step")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    args = parser.parse_args()
    device = pick_device(args.device)
    split = load_mnist("train", ROOT / DATA_PATH, device)
    seconds = {"table": [], "frozen plus": []}
    with tempfile.TemporaryDirectory() as folder:
        albert = str(make_albert(folder, **BASE))
        table = stepper(CLIP(), device)
        frozen = stepper(CLIP(text_encoder="plus", text_model=albert, freeze_text=True), device)
        batches = epoch_batches(split, args.batch_size, seed=0, epoch=0)
        for number_, batch in zip(range(args.steps + 5), batches, strict=False):
            for name, step in (("table", table), ("frozen plus", frozen)):
                elapsed = step(*batch)
                if number_ >= 5:  # the first ones warm up, and encode the training sentences
                    seconds[name].append(elapsed)
        medians = {name: statistics.median(values) for name, values in seconds.items()}

        step = stepper(CLIP(text_encoder="plus", text_model=albert), device)
        times = [step(*next(batches)) for _ in range(2)]
    albert_seconds = times[-1]
    memory = (
        torch.cuda.max_memory_allocated(device)
        if device.type == "cuda"
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    )
    result = {
        "command": "python benchmarks/text_encoders.py",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name(),
        "threads": torch.get_num_threads(),
        "torch_version": str(torch.__version__),
        "batch_size": args.batch_size,
        "steps": args.steps,
        "table_ms": 1e3 * medians["table"],
        "frozen_plus_ms": 1e3 * medians["frozen plus"],
        "frozen_plus_to_table": medians["frozen plus"] / medians["table"],
        "albert_base_step_seconds": albert_seconds,
        "albert_base_peak_gib": memory / 2**30,
        "date": f"{date.today()}",
    }
    print(json.dumps(result, indent=2))
    path = ROOT / "benchmarks" / "results" / "text-encoders.json"
    atomic_write(path, (json.dumps(result, indent=2) + "\n").encode())


def stepper(model: CLIP, device: torch.device):
    """A function that takes one training step and returns its seconds."""
    torch.manual_seed(0)
    model.to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)

    def step(images, labels) -> float:
        watch = Stopwatch(device)
        with watch:
            logits, _ = model(random_warp(images), labels)
            optimizer.zero_grad()
            multi_positive(logits, labels).backward()
            optimizer.step()
        return watch.seconds

    return step


if __name__ == "__main__":
    with exit_on_input_error():
        main()
