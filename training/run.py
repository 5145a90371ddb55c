"""A run: its folder, lock, saved state, TensorBoard, and the loop over its epochs. Every training script uses it so:

    with Run.open(settings, overrides, label="infonce", program=["train.py"]) as run:  # folder, lock, seed
        run.restore(model=model, adamw=adamw)                # to where a resumed run was
        for epoch in run.epochs():                           # those that are not done yet
            for batch in run.progress(batches, total=steps):
                run.log(train_step(batch))
            run.end_epoch(evaluate(model), model, best="val_accuracy")  # keeps the best, saves the state
        run.finish(metrics)

A run is resumed from its last whole epoch. Each epoch seeds the random numbers anew, so that a resumed run ends with
the same bits as one that was not interrupted.
"""

import contextlib
import json
import os
import random
import shlex
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from my_utils import (
    TEMPORARY,
    InputError,
    WrongKindError,
    atomic_write,
    clear_temporary,
    device_name,
    git_commit,
    load_checkpoint,
    save_checkpoint,
    short,
)
from training import distributed
from training.settings import resumed_settings

LOG_EVERY = 10  # steps between two points of a curve
LOCK_TIMEOUT = 60  # seconds
# What last.pth holds of a run.
STATE = ("epoch", "step", "seconds", "best", "history", "commit", "belongs_to", "world_size")


class Run:
    """A folder in runs/: TensorBoard's events, config.json, last.pth, best_model.pth, and metrics.json at the end."""

    def __init__(self, folder: Path, settings, program: list[str]):
        self.folder, self.settings, self.program = folder, settings, program
        self.published = folder.parent / "best_model.pth"
        self.is_main = distributed.rank() == 0  # only this process writes and prints
        self.epoch, self.step, self.seconds = 0, 0, 0.0  # whole epochs, steps, seconds of training
        self.best, self.history = -1.0, []  # the best score; each epoch's record
        self.commit = git_commit()
        self.lock = self.writer = self.saved = None

    # ---- opening: a new folder, or one to resume ----

    @classmethod
    def open(cls, settings, overrides: dict, label: str, program: list[str]) -> "Run":
        """A new run of these settings, or the unfinished run that they name. `label` becomes part of a new run's name.

        Use the settings of the returned run. Raises InputError if the name is taken or if there is nothing to resume.
        """
        runs_dir, is_main = Path(settings.runs_dir), distributed.rank() == 0
        if settings.resume is None:
            name = settings.run_name or f"{datetime.now():%Y-%m-%d_%H-%M-%S}_{label}_seed{settings.seed}"
            run = cls(runs_dir / distributed.broadcast(name), settings, program)  # the name may hold the time
            if is_main and _is_taken(run.folder):
                resume = f", or resume that run with {run.resume_command()}" if can_resume(run.folder) else ""
                raise InputError(f"{run.folder} is there already: choose another --run-name{resume}")
        else:
            folder = _find_unfinished(settings.resume, runs_dir) if is_main else None
            run = cls(distributed.broadcast(folder), settings, program)
            if is_main:
                run._take_lock()
            run.saved = load_checkpoint(run.folder / "last.pth", "run")
            run.settings = resumed_settings(type(settings), overrides, run.saved["settings"], run.folder)
        torch.manual_seed(run.settings.seed)
        return run

    def _take_lock(self) -> None:
        self.lock = FileLock(self.folder / ".lock", timeout=0)
        try:
            self.lock.acquire()
        except Timeout:
            raise InputError(f"another process is training in {self.folder}: wait for it, or start a new run") from None

    def resume_command(self) -> str:
        """What to type to resume the run."""
        python, world_size = [os.path.relpath(sys.executable)], distributed.world_size()
        if world_size > 1:
            python += ["-m", "torch.distributed.run", "--nproc-per-node", str(world_size)]
        return shlex.join([*python, *self.program, "--resume", str(self.folder)])

    def restore(self, belongs_to: str = "", **parts) -> None:
        """Make the folder of a new run, or bring what is trained, by name, to where a resumed run was.

        `belongs_to`: the fingerprint of the frozen model that the run builds on. Raises InputError if the saved state
        does not fit.
        """
        self.parts, self.belongs_to, self.world_size = parts, belongs_to, distributed.world_size()
        if self.saved is not None:
            self._load(self.saved)
        elif self.is_main:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._take_lock()
            self._save()
        if self.is_main:
            clear_temporary(self.folder)
            self.write_json("config.json", asdict(self.settings) | {"threads": torch.get_num_threads()})
            self.writer = SummaryWriter(self.folder, purge_step=self.step)  # drops what comes after

    def _load(self, saved: dict) -> None:
        path = self.folder / "last.pth"
        if saved.get("belongs_to") != self.belongs_to:
            raise InputError(f"{path} belongs to another CLIP or language model: name that one")
        if saved.get("world_size") != self.world_size:
            raise InputError(f"{path} was trained by {saved.get('world_size')} processes: resume it with as many")
        try:
            for name in STATE:
                setattr(self, name, saved[name])
            for name, part in self.parts.items():
                part.load_state_dict(saved["parts"][name])
        except (KeyError, RuntimeError, ValueError, TypeError, AttributeError) as error:
            raise InputError(f"{path} fits another version of this program: {short(error)}") from None
        if not self.commit.endswith(commit := git_commit()):  # resumed onto other code
            self.commit += f" then {commit}"

    # ---- the loop ----

    def epochs(self) -> Iterator[int]:
        """The epochs that are left, counted from 0."""
        for epoch in range(self.epoch, self.settings.epochs):
            # A seed of its own for each process, unlike that of the order, which is the same in all.
            torch.manual_seed(random.Random(f"{self.settings.seed} {epoch} {distributed.rank()}").getrandbits(32))
            yield epoch

    def progress(self, batches: Iterable, total: int) -> Iterator:
        """The batches of an epoch, timed, under a progress bar. Exits if a logged value is not finite."""
        self.values: list[dict] = []
        started = time.perf_counter()
        hidden = None if self.is_main else True
        with tqdm(total=total, desc=f"epoch {self.epoch + 1}", unit="step", leave=False, disable=hidden) as bar:
            for batch in batches:
                yield batch
                bar.update()
                loss = next(iter(self.values[-1].values()))
                if loss.device.type == "cpu" and bar.n % LOG_EVERY == 0:  # reading a value would wait for a GPU
                    bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
        # [steps] for each column; reading it waits for the device.
        self.columns = {name: torch.stack([row[name] for row in self.values]).cpu() for name in self.values[0]}
        self._stop_if_not_finite()
        self.epoch_seconds = time.perf_counter() - started
        self.seconds += self.epoch_seconds

    def log(self, values: dict[str, Tensor]) -> None:
        """The values of a training step, scalars on its device; the loss first. They are not read yet."""
        self.values.append(values)
        self.step += 1

    def end_epoch(self, metrics: dict[str, float], model: nn.Module | None = None, best: str | None = None) -> dict:
        """Record the epoch with its validation metrics, keep the best model, save the state. Returns the record.

        `model` is saved if its metric `best` is not below the best so far; without `best`, always.
        """
        means = {name: column.mean().item() for name, column in self.columns.items()}
        record = {"epoch": self.epoch + 1, **means, "seconds": round(self.epoch_seconds, 4), **metrics}
        self.history.append(record)
        self.epoch += 1
        if self.is_main:
            if model is not None and (best is None or record[best] >= self.best):  # of two equal epochs the later one
                self.best = record[best] if best else self.best
                model.metrics = {"best_epoch": self.epoch} | metrics
                model.save(self.folder / "best_model.pth")
            self._write_curves(record)
            self._save()
            shown = {"loss": next(iter(means.values())), **({best: record[best]} if best else metrics)}
            values = "  ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in shown.items())
            print(f"epoch {self.epoch} of {self.settings.epochs}  {values}  {self.epoch_seconds:.0f} s", flush=True)
        return record

    def _write_curves(self, record: dict) -> None:
        first = self.step - len(self.values)
        for name, column in self.columns.items():
            for i in range(0, len(column), LOG_EVERY):
                self.writer.add_scalar(f"step/{name}", column[i].item(), first + i)
        for name, value in record.items():
            if name != "epoch":
                tag = f"validation/{name[4:]}" if name.startswith("val_") else f"epoch/{name}"
                self.writer.add_scalar(tag, value, self.step - 1)
        self.writer.flush()

    def _save(self) -> None:
        parts = {name: part.state_dict() for name, part in self.parts.items()}
        state = {name: getattr(self, name) for name in STATE}
        save_checkpoint(self.folder / "last.pth", "run", state | {"settings": asdict(self.settings), "parts": parts})

    def _stop_if_not_finite(self) -> None:
        """No state with bad weights is ever saved."""
        bad = torch.stack([~column.isfinite() for column in self.columns.values()]).any(dim=0).nonzero()
        if not len(bad):
            return
        step = int(bad[0])
        shown = ", ".join(f"{name} {column[step]:.3g}" for name, column in self.columns.items())
        message = (
            f"training diverged at epoch {self.epoch + 1}, step {step + 1} ({shown}): start a new run with a lower"
            " learning rate"
        )
        sys.exit(f"error: {message}" if self.is_main else 1)

    # ---- the end ----

    def write_json(self, name: str, values: dict) -> None:
        atomic_write(self.folder / name, (json.dumps(values, indent=2) + "\n").encode())

    def origin(self, device: torch.device) -> dict:
        """What the figures of the run depend on."""
        return {
            "train_seconds": round(self.seconds, 4),
            "epochs": self.settings.epochs,
            "seed": self.settings.seed,
            "run": self.folder.name,
            "world_size": distributed.world_size(),
            "device": device_name(device),
            "torch_version": str(torch.__version__),
            "commit": self.commit,
            "date": f"{datetime.now():%Y-%m-%d}",
        }

    def finish(self, metrics: dict) -> None:
        """Write metrics.json; the run then counts as finished."""
        self.write_json("metrics.json", metrics | {"history": self.history})

    def publish(self, kind: str, score: str) -> str:
        """Copy best_model.pth, a checkpoint of this kind, to the folder of all runs.

        Returns a note about the model that it replaces, or that another kind of checkpoint is there and stays. Raises
        InputError if another process keeps the file locked.
        """
        best, target, notes = self.folder / "best_model.pth", self.published, []
        with locked(target):
            try:
                new, old = (load_checkpoint(path, kind) for path in (best, target))
                if towers := old["arch"].get("modalities"):
                    notes.append(f"had towers for {' and '.join(towers)}, train them anew")
                earlier = target.parent / old["metrics"]["run"] / "best_model.pth"
                reached = old["metrics"][score]
                tasks = [(one["arch"].get("captions"), one.get("config", {}).get("data")) for one in (old, new)]
                has_same_clip = old["arch"].get("fingerprint") == new["arch"].get("fingerprint")  # (of generators)
                if reached > new["metrics"][score] and has_same_clip and tasks[0] == tasks[1] and earlier.is_file():
                    back = shlex.join(["cp", str(earlier), str(target)])
                    notes.append(f"was better on validation ({reached:.2%}), to go back: {back}")
            except WrongKindError as error:
                return f"{error}. It stays as it is, and the run's own model is {best}"
            except (InputError, KeyError, TypeError):  # another version's, or none
                pass
            atomic_write(target, best.read_bytes())
        return f"the replaced model {' and '.join(notes)}" if notes else ""

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, kind, error, traceback) -> None:
        """Close and unlock the folder; after Ctrl-C, say how to resume, and exit."""
        if self.writer is not None:
            self.writer.close()
        if self.lock is not None:
            self.lock.release()
        if kind is KeyboardInterrupt:
            if self.is_main:
                advice = f"resume with: {self.resume_command()}" if can_resume(self.folder) else "nothing to resume"
                print(f"\ninterrupted; {advice}", file=sys.stderr)
            sys.exit(130)
        distributed.stop(after_error=kind is not None)


def can_resume(folder: Path) -> bool:
    """Whether it holds a run that is not finished."""
    return (folder / "last.pth").is_file() and not (folder / "metrics.json").exists()


def _is_taken(folder: Path) -> bool:
    """Whether something is there. (A run that was killed before its first save leaves its lock.)"""
    if not folder.is_dir():
        return os.path.lexists(folder)
    return any(path.name != ".lock" and not path.name.startswith(TEMPORARY) for path in folder.iterdir())


def _find_unfinished(resume: str, runs_dir: Path) -> Path:
    """The folder that --resume means."""
    if resume != "latest":
        folder = next((f for f in (runs_dir / resume, Path(resume).resolve()) if (f / "last.pth").is_file()), None)
        if folder is None:
            raise InputError(
                f"there is nothing to resume in {resume}: name a folder in {runs_dir.absolute()} that holds last.pth"
            )
        if not can_resume(folder):
            raise InputError(f"{folder} is finished, nothing is left to resume: start a new run")
        return folder
    for path in sorted(runs_dir.glob("*/last.pth"), key=lambda path: path.stat().st_mtime, reverse=True):
        lock = FileLock(path.parent / ".lock", timeout=0)
        with contextlib.suppress(Timeout), lock:  # a locked one is being trained
            if can_resume(path.parent):
                return path.parent
    raise InputError(f"there is no unfinished run in {runs_dir.absolute()} to resume")


@contextlib.contextmanager
def locked(file: Path):
    """Within its `with` block no other run changes this file.

    Raises InputError if another process has kept it locked for a minute.
    """
    lock = FileLock(file.with_name(f"{TEMPORARY}{file.name}.lock"), timeout=LOCK_TIMEOUT)
    try:
        held = lock.acquire()
    except Timeout:
        raise InputError(
            f"another process keeps {file} locked ({lock.lock_file}): end it, then resume; nothing is lost"
        ) from None
    with held:
        yield
