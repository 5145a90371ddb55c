"""What a text encoder costs: a training step of the table against a frozen `plus`, and a step of full-size ALBERT.

    python -m benchmarks.text_encoders

Steps of the first two are taken in turn in one process, so that the machine's moods hit both; the figure is the
ratio of the medians. Full-size ALBERT has random weights here (made by make_albert.py): time and memory do not
depend on their values. Writes benchmarks/results/text-encoders.json.
"""

import json
import resource
import statistics
import sys
import tempfile

import torch

from benchmarks.common import Training, about, parser_of, suffix, timed, write_result
from benchmarks.make_albert import BASE, make_albert
from my_utils import exit_on_input_error, number, pick_device


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--steps", type=number(int, 5), default=60, help="timed steps of each of the two")
    parser.add_argument("--batch-size", type=number(int, 2), default=256, help="image-text pairs a step")
    args = parser.parse_args()
    device = pick_device(args.device)
    size = ["--batch-size", str(args.batch_size)]
    with tempfile.TemporaryDirectory() as folder:
        plus = [*size, "--text-encoder", "plus", "--text-model", str(make_albert(folder, **BASE))]
        trainings = {"table": Training(size, device), "frozen plus": Training([*plus, "--freeze-text"], device)}
        seconds = {name: [] for name in trainings}
        for step in range(args.steps + 5):
            for name, training in trainings.items():
                elapsed = timed(device, training)
                if step >= 5:  # the first ones warm up, and encode the training sentences
                    seconds[name].append(elapsed)
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        albert = Training(plus, device)
        albert_seconds = [timed(device, albert) for _ in range(2)][-1]
    memory = (
        torch.cuda.max_memory_allocated(device)
        if device.type == "cuda"
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    )
    result = about(device) | {
        "batch_size": args.batch_size,
        "steps": args.steps,
        "table_ms": 1e3 * medians["table"],
        "frozen_plus_ms": 1e3 * medians["frozen plus"],
        "frozen_plus_to_table": medians["frozen plus"] / medians["table"],
        "albert_base_step_seconds": albert_seconds,
        "albert_base_peak_gib": memory / 2**30,
    }
    print(json.dumps(result, indent=2))
    write_result(f"text-encoders{suffix(device)}", result)


if __name__ == "__main__":
    with exit_on_input_error():
        main()
