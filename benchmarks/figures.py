"""Measure every number of the documents on the code as it is, then write their tables, pictures and the notebook.

    make figures                               on the CPU; about three hours on two quiet cores
    python -m benchmarks.figures --list        which results are missing, and how long each takes

A result keeps a hash of the modules and texts that its benchmark imports, without comments and docstrings, and is not
measured again while it stays the same. After Ctrl-C, a kill or a reboot the same command continues: benchmarks keep
their trained models in runs/benchmarks/COMMIT/ and resume an interrupted training. Each result also records how much
other programs used the machine meanwhile (after a resumed training: since then); the tables mark it above a tenth of a
core.
"""

import ast
import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from modulefinder import ModuleFinder
from pathlib import Path

import psutil

from benchmarks import common, generation, order, pictures, tables
from benchmarks.tables import COMMANDS, RESULTS, ROOT
from clip import CLIP
from demo import build
from my_utils import ArgumentParser, InputError, atomic_write, exit_on_error, git_commit

# In this order, a result of each command and its minutes on two quiet cores: quick ones first, each behind those whose
# models it uses.
PLAN = {
    "default": 4,
    "languages": 1,
    "failures": 1,
    "speed-preset": 1,
    "speed": 2,
    "cost-inference": 1,
    "strokes": 2,
    "gap": 2,
    "losses": 3,
    "sentences": 3,
    "cost-steps": 3,
    "cost-sizes": 5,
    "photos": 5,
    "own": 5,
    "negation": 6,
    "speech": 8,
    "speed-slow": 8,
    "combinations": 15,
    "generation": 17,
    "order": 42,
    "page": 3,
    "order-share": 21,
    "accuracy-preset": 20,
}
NOT_HASHED = ["benchmarks.tables", "deploy"]  # modules that benchmarks import and that change no result
TEXTS = ("*.txt", "*.js", "*.css", "page.html")  # files in the folder of a module that it may read


def main(argv: list[str]) -> int:
    parser = ArgumentParser(prog="benchmarks.figures", description=__doc__.split("\n")[0])
    parser.add_argument("--list", action="store_true", help="measure nothing; say which results are missing")
    args = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the benchmark that runs then ends too
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # `make gpu` measures a GPU
    if git_commit().endswith(("+", "unknown")):
        raise InputError("each figure names the commit of its code: commit it first, in a git checkout")
    failed = []
    for result, minutes in PLAN.items():
        command = f"python -m benchmarks.{COMMANDS[result]}"
        results = [name for name in COMMANDS if COMMANDS[name] == COMMANDS[result]]
        code = code_hash(command.split()[2])
        wanted = {"command": command, "code": code}
        is_measured = all(wanted.items() <= (tables.read_result(name, RESULTS) or {}).items() for name in results)
        print(f"{command}: {'measured' if is_measured else f'about {minutes} minutes'}", flush=True)
        if args.list:
            continue
        if is_measured:
            update(results, commit=git_commit())  # its code is the same in this commit
            continue
        load = MachineLoad()
        if subprocess.run([sys.executable, *command.split()[1:]], cwd=ROOT).returncode:
            failed.append(command)
        else:
            update(results, code=code, machine=load.measure())
    if args.list:
        return 0
    tables.main([])
    if not failed:
        write_pictures_and_models()
    for command in failed:
        print(f"failed: {command}")
    return int(bool(failed))


def code_hash(module: str) -> str:
    """A hash of a module, of the modules of this repository that it imports, directly or not, and of texts beside them.

    Import statements are followed without being run. Comments and docstrings of Python code do not count.
    """
    finder = ModuleFinder([str(ROOT)], excludes=NOT_HASHED)
    finder.import_hook(module)
    paths = {Path(one.__file__) for one in finder.modules.values() if one.__file__}
    folders = {path.parent for path in paths} - {ROOT}
    paths |= {text for folder in folders for form in TEXTS for text in folder.glob(form)}
    content = hashlib.sha256()
    for path in sorted(paths):
        text = path.read_text("utf-8")
        text = statements(text) if path.suffix == ".py" else text
        content.update(f"{path.relative_to(ROOT)}\n{text}\n".encode())
    return content.hexdigest()[:16]


def statements(code: str) -> str:
    """A module's code without comments and docstrings, in one form."""
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return ast.unparse(tree)


def update(results: list[str], **values) -> None:
    """Put values into result files."""
    for name in results:
        result = tables.read_result(name, RESULTS) | values
        atomic_write(RESULTS / f"{name}.json", (json.dumps(result, indent=2, ensure_ascii=False) + "\n").encode())


class MachineLoad:
    """How much the machine does beside a benchmark: `measure` covers the time since this object was made."""

    def __init__(self):
        self.start, self.load = time.time(), os.getloadavg()[0]
        self.all_before, self.own_before = psutil.cpu_times(), own_seconds()

    def measure(self) -> dict[str, float]:
        """Cores that other programs used on average, the share of CPU time that the host of a virtual machine gave to
        others, and the load averages of one minute before and after."""
        now, seconds = psutil.cpu_times(), time.time() - self.start
        busy = sum(getattr(now, kind) - getattr(self.all_before, kind) for kind in ("user", "nice", "system"))
        stolen = getattr(now, "steal", 0) - getattr(self.all_before, "steal", 0)  # (Linux alone knows it)
        return {
            "other_cores": round(max(0, busy - (own_seconds() - self.own_before)) / seconds, 3),
            "stolen": round(stolen / seconds / psutil.cpu_count(), 4),
            "load_before": round(self.load, 2),
            "load_after": round(os.getloadavg()[0], 2),
        }


def own_seconds() -> float:
    """CPU seconds of this process and of its descendants that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def write_pictures_and_models() -> None:
    """Pictures, notebook, pretrained/ and docs/minist-clip.html, of the models of seed 0."""
    args = common.parse(common.make_parser("figures", __doc__), [])
    clip = common.trained_clip(args)
    generation.trained_generator(args, common.load_clip(clip.parent))
    order.trained(args, 0, "scenes0", 0)
    generator, scenes = (args.runs / name / "best_model.pth" for name in ("generator/default-seed0", "scenes0-seed0"))
    pictures.main(["--clip", str(clip), "--generator", str(generator), "--scenes", str(scenes)])
    model = CLIP.load(clip)
    for modality in model.arch.pop("modalities", ()):  # added by benchmarks.modalities; pretrained/ is to be small
        del model.towers[modality], model.metrics[modality]
    model.save_pretrained("pretrained")
    flags = ["--clip", "pretrained", "--generator", "none", "--scenes", "none", "--page", "docs/minist-clip.html"]
    build.main([*flags, "--no-open"])


if __name__ == "__main__":
    with exit_on_error():
        sys.exit(main(sys.argv[1:]))
