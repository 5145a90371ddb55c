import contextlib
import io
import re
import shutil
import subprocess
import sys

import pytest

from conftest import ROOT
from training.settings import read_flags

READMES = ("README.md", "README.zh-CN.md")


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("readme", READMES)
def test_the_python_examples_print_what_the_readme_says(readme, trained, data_path, tmp_path, monkeypatch):
    examples = re.findall(r"```python\n(.*?)```\s+```text\n(.*?)```", text_of(readme), re.DOTALL)
    assert len(examples) == 2, "the model in use, and ten pairs of a batch"
    (tmp_path / "runs").mkdir()
    shutil.copy(trained.checkpoint, tmp_path / "runs")
    (tmp_path / "MINIST_CLIP").symlink_to(data_path)
    monkeypatch.chdir(tmp_path)
    for code, expected in examples:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(code, {})
        assert printed.getvalue() == expected


@pytest.mark.parametrize("readme", READMES)
def test_every_training_command_of_the_readmes_parses(readme):
    commands = re.findall(r"python train\.py ([^\n#`|]*)", text_of(readme))
    commands += re.findall(r'make train ARGS="([^"]*)"', text_of(readme))
    assert len(commands) >= 4
    assert sum("--preset" in command for command in commands) >= 2
    for command in commands:
        if "--help" not in command and "{" not in command:
            read_flags(command.replace("--seed S", "--seed 0").split())


@pytest.mark.parametrize(
    "readme", [*READMES, "runs/README.md", "inference_test/README.md", "benchmarks/README.md", "docs/training.md"]
)
def test_every_file_module_and_make_target_that_a_readme_names_exists(readme):
    text = text_of(readme)
    for target in re.findall(r"\]\((?!http|#)([^)#]+)", text):
        assert ((ROOT / readme).parent / target).exists(), target
    for name in re.findall(r"`(\w+\.(?:py|ipynb))`", text):
        folders = (ROOT, ROOT / "benchmarks") if readme.startswith("benchmarks") else (ROOT,)
        assert any((folder / name).exists() for folder in folders), name
    for module in re.findall(r"python -m (benchmarks\.\w+)", text):
        if module.split(".")[1].islower():
            assert (ROOT / f"{module.replace('.', '/')}.py").exists(), module
    targets = re.search(r"\.PHONY: (.*)", text_of("Makefile"))[1].split()
    for target in re.findall(r"^make (\w+)", text, re.MULTILINE):
        assert target in targets


def test_the_readme_is_short():
    assert len(text_of("README.md").splitlines()) <= 220


def test_tables_are_those_of_the_result_files():
    command = [sys.executable, "-m", "benchmarks.tables", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
