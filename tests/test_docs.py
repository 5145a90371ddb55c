import argparse
import contextlib
import io
import re
import shutil
import subprocess
import sys

import pytest

import train
from conftest import ROOT

READMES = ("README.md", "README.zh-CN.md")


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("readme", READMES)
def test_the_python_example_prints_what_the_readme_says(readme, trained, data_path, tmp_path, monkeypatch):
    code, expected = re.search(r"```python\n(.*?)```\n+```text\n(.*?)```", text_of(readme), re.DOTALL).groups()
    (tmp_path / "runs").mkdir()
    shutil.copy(trained.checkpoint, tmp_path / "runs")
    (tmp_path / "MINIST_CLIP").symlink_to(data_path)
    monkeypatch.chdir(tmp_path)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, {})
    assert printed.getvalue() == expected


@pytest.mark.parametrize("readme", READMES)
def test_every_training_command_of_the_readmes_parses(readme):
    commands = re.findall(r"python train\.py ([^\n#`|]*)", text_of(readme))
    commands += re.findall(r'make train ARGS="([^"]*)"', text_of(readme))
    assert len(commands) >= 4
    for command in commands:
        if "--help" not in command:
            train.build_parser().parse_args(command.replace("--seed S", "--seed 0").split())


@pytest.mark.parametrize("readme", READMES)
def test_every_file_and_make_target_that_a_readme_names_exists(readme):
    text = text_of(readme)
    for target in re.findall(r"\]\((?!http|#)([^)]+)\)", text):
        assert (ROOT / target).exists(), target
    for name in re.findall(r"`(\w+\.(?:py|ipynb))`", text):
        assert (ROOT / name).exists(), name
    targets = re.search(r"\.PHONY: (.*)", text_of("Makefile"))[1].split()
    for target in re.findall(r"^make (\w+)", text, re.MULTILINE):
        assert target in targets


def test_tables_are_those_of_the_result_files():
    done = subprocess.run([sys.executable, "benchmarks/tables.py", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_help_lists_every_flag_with_its_default():
    help_text = train.build_parser().format_help()
    for action in train.build_parser()._actions:
        assert action.option_strings[-1] in help_text
        assert action.help
        if action.default not in (None, False, argparse.SUPPRESS):
            assert f"(default: {action.default})" in " ".join(help_text.split())
