"""How OpenMP's threads wait for work: a training step where they spin and where they sleep.

    python -m benchmarks.waiting        4 minutes on 2 CPU cores that nothing else uses

Each in processes of their own, in turn, on the quiet machine and beside a program that keeps one core busy. Writes
benchmarks/results/waiting.json. `my_utils.choose_how_threads_wait` chooses by this.
"""

import contextlib
import json
import statistics
import subprocess
import sys
from collections import defaultdict

import psutil
import torch

from benchmarks.common import ROOT, Training, about, environment, parser_of, timed, write_result
from my_utils import exit_on_input_error
from training.settings import PRESETS

# Set, so that `my_utils.choose_how_threads_wait` leaves it as it is; the number is GNU OpenMP's own.
WAITS = {"spinning": {"GOMP_SPINCOUNT": "300000"}, "asleep": {"OMP_WAIT_POLICY": "passive"}}
ROUNDS, WARM_UP, STEPS = 3, 5, 20


def main() -> None:
    parser = parser_of(__doc__, device=False)
    parser.add_argument("--steps", action="store_true", help="print a step's seconds of each preset, in this process")
    if parser.parse_args().steps:
        print(json.dumps({preset: step_seconds(preset) for preset in PRESETS}))
        return

    seconds = defaultdict(list)
    for turn in range(ROUNDS):
        for beside in ("quiet", "busy"):
            for wait in list(WAITS)[:: (-1) ** turn]:
                with one_core_busy() if beside == "busy" else contextlib.nullcontext():
                    of_presets = in_own_process(WAITS[wait])
                for preset, value in of_presets.items():
                    seconds[preset, beside, wait].append(value)
                    print(f"{preset}, {beside}, {wait}: {1000 * value:.0f} ms", flush=True)
    rows = [
        {"preset": preset, "machine": beside, "wait": wait, "seconds": statistics.median(values), "of_runs": values}
        for (preset, beside, wait), values in seconds.items()
    ]
    own = about(torch.device("cpu"))
    del own["threads"], own["threads_sleep"]  # of this process, which waits
    write_result("waiting", own | {"cores": psutil.cpu_count(), "rows": rows})


def step_seconds(preset: str) -> float:
    training = Training(["--preset", preset], torch.device("cpu"))
    times = [timed(torch.device("cpu"), training) for _ in range(WARM_UP + STEPS)]
    return statistics.median(times[WARM_UP:])


def in_own_process(wait: dict[str, str]) -> dict:
    """`--steps` in a process whose OpenMP waits so."""
    command = [sys.executable, "-m", "benchmarks.waiting", "--steps"]
    done = subprocess.run(command, cwd=ROOT, env=environment() | wait, check=True, stdout=subprocess.PIPE)
    return json.loads(done.stdout)


@contextlib.contextmanager
def one_core_busy():
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
        try:
            yield
        finally:
            other.kill()


if __name__ == "__main__":
    with exit_on_input_error():
        main()
