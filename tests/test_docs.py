"""What the pages of docs/ quote from files of this repository is what the files say."""

import difflib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "plugging-in.md"
# A line that links to a file under its own path, then a block: the block quotes the file.
QUOTE = re.compile(r"^\[([^\]]+)\]\(\.\./\1\)\n\n```\w+\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def quotes():
    return QUOTE.findall(PAGE.read_text())


def test_the_page_quotes_every_example():
    assert {path for path, _ in quotes()} == {
        "configs/common/data/pictograms.py",
        "configs/common/models/vild_rcnn_fpn.py",
        "configs/pictograms/cascade.yaml",
        "configs/pictograms/lazy_vitdet.py",
        "configs/pictograms/pointrend.yaml",
        "configs/pictograms/vitdet.yaml",
        "docs/plugging_in/project_with_words.yaml",
    }


@pytest.mark.parametrize(("path", "block"), quotes(), ids=lambda value: value[:40])
def test_a_quoted_block_is_in_its_file(path, block):
    assert f"\n{block}" in f"\n{(ROOT / path).read_text()}"


def test_the_five_lines_are_the_difference_of_the_projects():
    folder = ROOT / "docs" / "plugging_in"
    before, after = (
        (folder / name).read_text().splitlines() for name in ("project.py", "project_with_words.py")
    )
    difference = list(difflib.unified_diff(before, after, n=1, lineterm=""))[3:]
    shown = re.search(r"^```diff\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)[1]
    assert shown.splitlines() == ["..." if x.startswith("@@") else x for x in difference]


def test_every_link_of_the_docs_leads_somewhere():
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        targets = re.findall(r"\]\((?!http|#)([^)#]+)", page.read_text())
        assert [t for t in targets if not (page.parent / t).exists()] == [], page
