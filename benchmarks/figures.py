"""Measure every figure of the documents on the code as it is, and write their tables, pictures and notebook.

    make figures                               about four hours on two quiet CPU cores
    python -m benchmarks.figures --list        what is measured on this code, and how long the rest takes

What was measured on the same code is skipped: a result keeps a hash of the files that it depends on. After Ctrl-C, a
kill or a reboot the same command continues, with the interrupted training too. Each result also records how busy the
machine was with other programs; the tables mark a result if they used more than a tenth of a core.
"""

import hashlib
import json
import os
import resource
import subprocess
import sys
import time
from modulefinder import ModuleFinder
from pathlib import Path

import psutil

from benchmarks import common, pictures, tables
from benchmarks.tables import COMMANDS, RESULTS, ROOT
from demo import build
from deploy import export
from my_utils import ArgumentParser, InputError, atomic_write, exit_on_error, git_commit

# Results, the shortest first but for those that need a model of another one, and their minutes on two quiet cores.
MINUTES = {
    "default": 4,
    "languages": 1,
    "failures": 1,
    "speed-preset": 1,
    "speed": 4,
    "photos": 5,
    "own": 6,
    "negation": 6,
    "cost-inference": 1,
    "cost-steps": 3,
    "cost-sizes": 5,
    "strokes": 3,
    "speech": 10,
    "generation": 18,
    "page": 2,
    "combinations": 16,
    "sentences": 10,
    "order": 30,
    "order-share": 25,
    "accuracy-preset": 25,
    "speed-slow": 16,
    "gap": 5,
    "losses": 30,
}
NO_CODE_OF_FIGURES = ["benchmarks.tables", "deploy"]  # modules that only write what others measured
TEXTS = ("*.txt", "*.js", "*.css", "page.html")  # files beside a module that its figures depend on


def main(argv: list[str]) -> int:
    parser = ArgumentParser(prog="benchmarks.figures", description=__doc__.split("\n")[0])
    parser.add_argument("--list", action="store_true", help="measure nothing; say what is missing")
    args = parser.parse_args(argv)
    if git_commit().endswith(("+", "unknown")):
        raise InputError("the code differs from its commit, which each figure names: commit it first")
    failed = []
    for name, minutes in MINUTES.items():
        command = COMMANDS[name]
        names = [other for other in COMMANDS if COMMANDS[other] == command]
        code = code_hash(f"benchmarks.{command.split()[0]}")
        is_measured = all((tables.read_result(one, RESULTS) or {}).get("code") == code for one in names)
        print(f"{command}: {'measured' if is_measured else f'about {minutes} minutes'}", flush=True)
        if is_measured and not args.list:
            record(names, commit=git_commit())  # this code is part of it
        elif not args.list:
            busy = Busy()
            if subprocess.run([sys.executable, "-m", *f"benchmarks.{command}".split()], cwd=ROOT).returncode:
                failed.append(command)
            else:
                record(names, code=code, machine=busy.since())
    if args.list:
        return 0
    if not failed:
        make_files()
    tables.main([])
    print("\n".join(f"failed: python -m benchmarks.{command}" for command in failed))
    return int(bool(failed))


def code_hash(module: str) -> str:
    """Of the files of this repository that a module depends on: the modules that it imports, and texts beside them."""
    finder = ModuleFinder([str(ROOT)], excludes=NO_CODE_OF_FIGURES)
    finder.import_hook(module)
    paths = {Path(one.__file__) for one in finder.modules.values() if one.__file__}
    paths |= {text for folder in {path.parent for path in paths} for form in TEXTS for text in folder.glob(form)}
    content = hashlib.sha256()
    for path in sorted(paths):
        content.update(f"{path.relative_to(ROOT)}\n".encode() + path.read_bytes())
    return content.hexdigest()[:16]


def record(names: list[str], **values) -> None:
    """Add values to results."""
    for name in names:
        result = tables.read_result(name, RESULTS) | values
        atomic_write(RESULTS / f"{name}.json", (json.dumps(result, indent=2, ensure_ascii=False) + "\n").encode())


class Busy:
    """What else the machine does, from now on."""

    def __init__(self):
        self.started, self.load, self.cpu, self.own = time.time(), os.getloadavg()[0], psutil.cpu_times(), own_seconds()

    def since(self) -> dict[str, float]:
        """Cores that other programs used, the share of time that the machine was stolen, load before and after."""
        now, elapsed = psutil.cpu_times(), time.time() - self.started
        busy = sum(getattr(now, kind) - getattr(self.cpu, kind) for kind in ("user", "nice", "system"))
        return {
            "other_cores": round(max(0, busy - own_seconds() + self.own) / elapsed, 3),
            "stolen": round((now.steal - self.cpu.steal) / elapsed / psutil.cpu_count(), 4),
            "load_before": round(self.load, 2),
            "load_after": round(os.getloadavg()[0], 2),
        }


def own_seconds() -> float:
    """CPU seconds of this process and of those that it has started and that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def make_files() -> None:
    """The pictures, the notebook, pretrained/ and its page, of the models behind the figures."""
    runs = common.RUNS / git_commit()
    clip, generator, scenes = (
        str(runs / name / "best_model.pth") for name in ("default-seed0", "generator/default-seed0", "scenes0-seed0")
    )
    pictures.main(["--clip", clip, "--generator", generator, "--scenes", scenes])
    export.main(["--clip", clip, "--folder", "pretrained"])
    flags = ["--clip", "pretrained", "--generator", "none", "--scenes", "none", "--page", "docs/minist-clip.html"]
    build.main([*flags, "--no-open"])


if __name__ == "__main__":
    with exit_on_error():
        sys.exit(main(sys.argv[1:]))
