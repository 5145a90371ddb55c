import contextlib
import io
import re
import shutil

import pytest

from benchmarks import tables
from conftest import ROOT
from training.settings import PRESETS, Settings, parse_flags

READMES = ("README.md", "README.zh-CN.md")
DOCUMENTS = (*READMES, "benchmarks/README.md", "runs/README.md", "inference_test/README.md")
DOCUMENTS += tuple(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    """The code blocks of a language."""
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


@pytest.mark.parametrize("readme", READMES)
def test_the_python_examples_print_what_the_readme_says(readme, trained, data_path, tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    shutil.copy(trained.checkpoint, tmp_path / "runs")
    (tmp_path / "MINIST_CLIP").symlink_to(data_path)
    monkeypatch.chdir(tmp_path)
    _, *outputs = blocks(read(readme), "text")  # the first is that of a whole run
    for code, output in zip(blocks(read(readme), "python"), outputs, strict=True):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(code, {})
        assert printed.getvalue() == output


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_training_command_of_the_documents_parses(document):
    text = read(document)
    flags = re.findall(r"train\.py (--[^\n#`|]*)", text) + re.findall(r'make train ARGS="([^"]*)"', text)
    for command in flags:
        if "--help" not in command:
            parse_flags(Settings, command.replace("--seed S", "--seed 0").split(), "train.py", "", PRESETS)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_file_module_and_make_target_that_a_document_names_exists(document):
    text = read(document)
    for target in re.findall(r"\]\((?!http|#)([^)#]+)", text):
        assert ((ROOT / document).parent / target).exists(), target
    for name in re.findall(r"`(\w+\.(?:py|ipynb))`", text):
        assert any((folder / name).exists() for folder in (ROOT, (ROOT / document).parent)), name
    for module in re.findall(r"python -m ((?:benchmarks|demo|deploy|generation|modalities)\.\w+)", text):
        assert (ROOT / f"{module.replace('.', '/')}.py").exists(), module
    targets = re.search(r"\.PHONY: (.*)", read("Makefile"))[1].split()
    for target in re.findall(r"^make (\w+)|`make (\w+)`", text, re.MULTILINE):
        assert "".join(target) in targets


# Figures in prose that no script measures: quoted ones, goals, and settings of an example.
STATED = {
    "benchmarks/README.md": "2.5% 10 s 99.0% 0.4 s 0.76 s 99.80% 60 s",
    "docs/negation.md": "50%",  # chance
    "docs/when-training-fails.md": "40%",
    "docs/word-order.md": "15% 17%",
}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_prose_states_no_figure_that_a_table_should_hold(document):
    text = tables.MARKER.sub("", read(document))
    text = re.sub(r"```.*?```|`[^`]*`", "", text, flags=re.DOTALL)
    units = r"(?:s|ms|seconds|minutes|hours|points|MB|kB|GB|TFLOP|images/s)\b|秒|毫秒|分钟|小时"
    figures = re.findall(rf"\d[\d.,]* ?%|\d[\d.,]* (?:{units})", text)
    assert sorted(figures) == sorted(re.findall(r"\S+%|\S+ \w+", STATED.get(document, "")))


def test_both_readmes_have_the_same_headings_and_outputs():
    english, chinese = map(read, READMES)
    for language in ("python", "text"):
        assert blocks(english, language) == blocks(chinese, language)
    levels = [
        re.findall(r"^(#+) ", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.M) for text in (english, chinese)
    ]
    assert levels[0] == levels[1]


def test_tables_are_those_of_the_result_files():
    assert tables.main(["--check"]) == 0
