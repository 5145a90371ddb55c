import re

import pytest

from conftest import ROOT

READMES = ("README.md", "README.zh-CN.md")
DOCUMENTS = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("*/README.md")) + sorted(
    str(path.relative_to(ROOT)) for path in ROOT.glob("docs/*.md")
)


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def without_code(text: str) -> str:
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


def test_both_readmes_have_the_same_headings_in_two_languages():
    levels = [
        [len(marks) for marks in re.findall(r"^(#+) ", without_code(text_of(name)), re.MULTILINE)] for name in READMES
    ]
    assert levels[0] == levels[1]
    assert len(levels[0]) > 3


def test_both_readmes_have_the_same_code_but_for_comments():
    english, chinese = (re.findall(r"```(?:python|bash|sh)\n(.*?)```", text_of(name), re.DOTALL) for name in READMES)
    assert len(english) == len(chinese) > 0
    for one, other in zip(english, chinese, strict=True):
        assert re.sub(r"\s*#.*", "", one) == re.sub(r"\s*#.*", "", other)


@pytest.mark.parametrize("document", [*READMES, *DOCUMENTS])
def test_links_lead_to_files_and_headings_that_exist(document):
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(text_of(document))):
        if not re.match(r"https?:|mailto:", target):
            file, _, anchor = target.partition("#")
            path = (ROOT / document).parent / file if file else ROOT / document
            assert path.exists(), target
            headings = re.findall(r"^#+ (.*)", path.read_text(encoding="utf-8"), re.MULTILINE) if anchor else []
            anchors = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
            assert not anchor or anchor in anchors, target
