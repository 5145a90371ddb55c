"""A run's folder: its lock, its saved state, how it is found again, and Ctrl-C.

Any training script uses it so: `open_run` says which folder and settings; `run.begin(parts, ...)` makes the folder, or
restores the parts; `run.save()` keeps all that a resumed run needs; `run.publish()` hands on the best model at the end.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import warnings
from datetime import datetime
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from clip import load_checkpoint, save_checkpoint
from my_utils import InputError, atomic_write, clear_temporary, short
from training import distributed
from training.settings import Options, resumed

STALE_SECONDS = 3600  # older temporary files in the folder of all runs are those of killed runs, and are removed
STATE = {"epoch": int, "step": int, "seconds": float, "best": float, "epochs": list, "commit": str, "history": Tensor}


def open_run(settings: Options, given: dict, label: str) -> tuple[Options, "Run"]:
    """The run's settings and folder: a new one, which is not made yet, or one to resume, locked and read.

    `label` stands in a new folder's name beside the time and the seed.
    Raises InputError when the name is taken, or when there is nothing that could be resumed.
    """
    if settings.resume is None:
        name = settings.run_name or f"{datetime.now():%Y-%m-%d_%H-%M-%S}_{label}_seed{settings.seed}"
        run = Run(Path(settings.runs_dir) / distributed.gather_objects(name)[0])  # the name may hold the time
        with distributed.share_errors():
            if distributed.is_main() and os.path.lexists(run.folder):
                raise InputError(
                    f"{run.folder} is there already: choose another --run-name, or go on with --resume {run.folder}"
                )
        return settings, run
    run = None
    with distributed.share_errors():  # the first process chooses for all
        if distributed.is_main():
            run = _find(settings.resume, Path(settings.runs_dir))
    run = run or Run(None)
    run.folder = distributed.gather_objects(run.folder)[0]
    with distributed.share_errors():
        if run.saved is None:
            run.read()
    return resumed(type(settings), given, run.saved.pop("config"), run.folder), run


def _find(resume: str, runs: Path) -> "Run":
    """The run that --resume means, locked, its state read."""
    if resume != "newest":
        folder = next((f for f in (runs / resume, Path(resume)) if (f / "last.pth").is_file()), None)
        if folder is None:
            raise InputError(f"there is nothing to resume in {resume}: name a folder in {runs} that holds last.pth")
        run = Run(folder)
        if not run.take_lock():
            raise InputError(f"another process is training in {folder}: wait for it, or start a run of your own")
        if run.why_ended():
            raise InputError(f"{folder} {run.why_ended()}, nothing is left to resume: start a new run")
        run.read()
        return run
    for state in sorted(runs.glob("*/last.pth"), key=lambda path: path.stat().st_mtime, reverse=True):
        run = Run(state.parent)
        if not run.take_lock() or run.why_ended():
            continue
        try:
            run.read()
            return run
        except InputError as error:
            print(f"passed over: {error}", file=sys.stderr)
    raise InputError(f"there is no unfinished run in {runs} to resume")


class Run:
    """A folder in runs/: TensorBoard's events, config.json, last.pth, best_model.pth, and metrics.json at the end."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.saved: dict | None = None  # what last.pth held, of a run that is resumed
        self.lock: FileLock | None = None  # held until the process ends or dies
        self.state: dict = {}  # progress: epochs and steps done, seconds, the best score, each epoch's record

    def take_lock(self) -> bool:
        """False when another process has the folder."""
        lock = FileLock(self.folder / ".lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            return False
        except (OSError, NotImplementedError) as error:
            warnings.warn(f"{self.folder} cannot be locked ({short(error)}): start no second run in it", stacklevel=2)
        self.lock = lock
        return True

    def read(self) -> None:
        """Read last.pth. Raises InputError when it is not the state of a run."""
        path = self.folder / "last.pth"
        saved = load_checkpoint(path)
        wrong = [name for name, kind in STATE.items() if not isinstance(saved.get(name), kind)]
        if wrong or not isinstance(saved.get("config"), dict) or not isinstance(saved.get("rng"), list):
            raise InputError(f"{path} is not the state of a training run of this version: start a new run")
        self.saved = saved

    def why_ended(self) -> str:
        """Why the run cannot go on: it is finished, or its loss was not finite; empty when it can."""
        if (self.folder / "metrics.json").exists():
            return "is finished"
        return "diverged" if (self.folder / "diverged.txt").exists() else ""

    def begin(self, parts: list, settings: Options, device: torch.device, steps: int, columns: int) -> dict:
        """Make the folder of a new run, or bring `parts` (model, optimizers ...) to where a resumed one was.

        Returns the progress. Its `history` has the shape [steps per epoch, columns].
        """
        self.parts, self.record, self.device = parts, settings.record(), device
        with distributed.share_errors():
            if self.saved is None and distributed.is_main():
                self._make()
            if self.saved is not None:
                self._restore(settings, steps, columns)
            if distributed.is_main():
                clear_temporary(self.folder)
                clear_temporary(self.folder.parent, STALE_SECONDS)
                self.write_json("config.json", self.record)
        if self.saved is None:
            self.state = {"epoch": 0, "step": 0, "seconds": 0.0, "best": -1.0, "epochs": [], "commit": git_commit()}
            self.state["history"] = torch.zeros(steps, columns, device=device)
            self.save()
        self.saved = None
        return self.state

    def _make(self) -> None:
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            try:
                self.folder.mkdir()
            except FileExistsError:
                raise InputError(f"another process has just made {self.folder}: choose another --run-name") from None
        except OSError as error:
            shown = short(self.folder.parent)
            raise InputError(
                f"cannot make the folder {shown}: {error.strerror or error}; choose another --runs-dir"
            ) from None
        self.take_lock()

    def _restore(self, settings: Options, steps: int, columns: int) -> None:
        saved, path = self.saved, self.folder / "last.pth"
        self.state = {name: saved[name] for name in STATE}
        epoch, step = self.state["epoch"], self.state["step"]
        fits = len(self.state["epochs"]) == epoch <= settings.epochs and 0 <= step < steps
        if not fits or tuple(self.state["history"].shape) != (steps, columns):
            raise InputError(f"the progress that {path} holds does not fit its settings: start a new run")
        if len(saved["rng"]) != distributed.world_size():
            raise InputError(f"{self.folder} was trained by {len(saved['rng'])} processes: resume it with as many")
        if not saved["commit"].endswith(commit := git_commit()):  # resumed onto other code
            self.state["commit"] += f" then {commit}"
        try:
            for part, state in zip(self.parts, saved["parts"], strict=True):
                part.load_state_dict(state)
            restore_rng_state(saved["rng"][distributed.rank()], self.device)
        except (KeyError, RuntimeError, ValueError, TypeError, AttributeError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{path} fits another version of this program: {short(error)}") from None
        self.state["history"] = self.state["history"].to(self.device)

    def save(self) -> None:
        """Write last.pth. All processes call this, for each has random numbers of its own; the first one writes."""
        rng = distributed.gather_objects(rng_state(self.device))
        with distributed.share_errors():
            if distributed.is_main():
                parts = [part.state_dict() for part in self.parts]
                save_checkpoint(
                    self.folder / "last.pth", self.state | {"config": self.record, "parts": parts, "rng": rng}
                )

    def write_json(self, name: str, values: dict) -> None:
        atomic_write(self.folder / name, (json.dumps(values, indent=2) + "\n").encode())

    def stop_if_not_finite(self, values: Tensor, names: tuple[str, ...], first: int) -> None:
        """Ends the program when the steps' values [steps, columns], from step `first` of this epoch on, are not finite.

        A gradient counts too, for after it the next loss is not finite. No state with bad weights is ever saved.
        """
        bad = (~values.isfinite()).any(dim=1).nonzero()
        if not len(bad):
            return
        step = int(bad[0])
        shown = ", ".join(f"{name} {value:.3g}" for name, value in zip(names, values[step].tolist(), strict=True))
        message = (
            f"training diverged at epoch {self.state['epoch'] + 1}, step {first + step + 1} ({shown}): start a new run"
            " with a lower learning rate"
        )
        if distributed.is_main():
            atomic_write(self.folder / "diverged.txt", (message + "\n").encode())
        sys.exit(f"error: {message}")

    def publish(self, score: str) -> str:
        """Copy best_model.pth to the folder of all runs. Returns a note when `score` was better in what it replaces."""
        best, target = self.folder / "best_model.pth", self.folder.parent / "best_model.pth"
        with locked(target):
            told = self._compare(target, best, score) if target.is_file() else ""
            atomic_write(target, best.read_bytes())
        return told.removesuffix("; ")

    def _compare(self, target: Path, best: Path, score: str) -> str:
        told = ""
        try:
            files = [load_checkpoint(path) for path in (target, best)]
            old, new = (file.get("metrics", {}) for file in files)
            clips = {file.get("arch", {}).get("fingerprint") for file in files}  # of a generator, or None
            if towers := files[0].get("arch", {}).get("modalities"):
                told = f"the towers for {' and '.join(towers)} were those of the replaced model: train them anew; "
            if old[score] > new[score] and len(clips) == 1:
                earlier = self.folder.parent / str(old["run"]) / "best_model.pth"
                back = f"; to go back: cp {earlier} {target}" if earlier.is_file() else ""
                told += f"the replaced {target} was better on validation: {old[score]:.2%}, run {old['run']}{back}"
        except (InputError, KeyError, TypeError):  # another version's: nothing to compare with
            pass
        return told


@contextlib.contextmanager
def locked(file: Path):
    """Within its `with` block no other run changes this file, which several may do at their end."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError, NotImplementedError):  # a file system may have no locks
            stack.enter_context(FileLock(file.with_name(f".{file.name}.lock")))
        yield


class Interrupt:
    """Within its `with` block the first Ctrl-C only sets `requested`; a second one acts at once.

    SIGTERM does the same for a process that is alone; among several it is torchrun's way to end them all.
    """

    requested = False

    def __enter__(self) -> "Interrupt":
        alone = distributed.world_size() == 1
        self.signals = (signal.SIGINT, signal.SIGTERM) if alone else (signal.SIGINT,)
        self.previous = {number: signal.signal(number, self._handle) for number in self.signals}
        return self

    def __exit__(self, *exception) -> None:
        for signum, handler in self.previous.items():
            signal.signal(signum, handler)

    def _handle(self, signum, frame) -> None:
        self.requested = True
        self.__exit__()  # the old handlers are back, so that a second Ctrl-C acts at once


def rng_state(device: torch.device) -> dict:
    """The state of the generators that training draws from, as plain tensors."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_rng_state(state: dict, device: torch.device) -> None:
    torch.set_rng_state(state["cpu"].cpu())
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)


def git_commit() -> str:
    """The commit of the code, with a + where Python files differ from it; "unknown" outside of a git checkout."""
    root = Path(__file__).resolve().parent.parent
    if not shutil.which("git") or not (root / ".git").exists():
        return "unknown"

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True).stdout.strip()

    changed = "+" if git("status", "--porcelain", "--untracked-files=no", "--", "*.py") else ""
    return git("rev-parse", "--short", "HEAD") + changed or "unknown"
