"""What the pages of docs/ quote from files of this repository is what the files say."""

import ast
import difflib
import inspect
import json
import pydoc
import re
import shlex
from pathlib import Path

import detectron2.engine
import pytest

from ovd_d2.engine.config_keys import default_config

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "datasets" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "projects").rglob("*.md")),
]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
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
    for page in PAGES:
        targets = re.findall(r"\]\((?!http|#)([^)#]+)", page.read_text())
        assert [t for t in targets if not (page.parent / t).exists()] == [], page


def test_links_to_the_outside_are_well_formed():
    """Where they lead cannot be asked: tests have no network."""
    for page in [*PAGES, *NOTEBOOKS]:
        text = page.read_text()
        found = re.findall(r"\]\((http[^)]*)\)", text)
        assert all(re.fullmatch(r"https://[\w.-]+\.\w+(/[\w./#?=&%~-]*)?", one) for one in found), (
            page
        )
        arxiv = [one for one in found if "arxiv.org" in one]
        assert all(re.fullmatch(r"https://arxiv\.org/abs/\d{4}\.\d{5}", one) for one in arxiv), page


def test_every_command_is_in_the_list_in_its_own_words():
    page = ROOT / "docs/reference/tools.md"
    listed = dict(re.findall(r"^\| \[(.+?)\]\(.+?\) \| (.+) \|$", page.read_text(), re.MULTILINE))
    tools = [
        *ROOT.glob("tools/*.py"),
        *ROOT.glob("datasets/*.py"),
        *ROOT.glob("projects/*/tools/*.py"),
    ]
    said = {}
    for tool in tools:
        summary = (ast.get_docstring(ast.parse(tool.read_text())) or "").split("\n\n")[0]
        said[str(tool.relative_to(ROOT))] = summary.replace("\n", " ")
    assert listed == said


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda one: one.stem)
def test_notebooks_are_kept_without_outputs(notebook):
    """`make docs` runs them: what they show is always today's, and a change of one can be read."""
    cells = [one for one in json.loads(notebook.read_text())["cells"] if one["cell_type"] == "code"]
    assert cells and all(not one["outputs"] and one["execution_count"] is None for one in cells)


COMMAND = re.compile(r"python ((?:[\w-]+/)*\w+\.py)((?:.*\\\n)*.*)")


def commands(page):
    """(tool, arguments) of every command in the page's shell blocks."""
    for block in re.findall(r"^ *```sh\n(.*?)^ *```$", page.read_text(), re.DOTALL | re.MULTILINE):
        for tool, rest in COMMAND.findall(block):
            yield tool, shlex.split(rest.replace("\\\n", " "), comments=True)


def known_options(tool):
    """As written in the tool, in the launcher or in Detectron2's parser."""
    texts = [(ROOT / tool).read_text(), (ROOT / "ovd_d2/engine/launching.py").read_text()]
    texts.append(inspect.getsource(detectron2.engine.default_argument_parser))
    return set(re.findall(r'"(--[\w-]+)"', "".join(texts)))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_options_configs_and_keys_of_commands_exist(page):
    for tool, arguments in commands(page):
        options = {one for one in arguments if one.startswith("--")}
        assert options <= known_options(tool) | {"--no-amp"}, tool
        configs = [one for one in arguments if re.match("(projects/.*)?configs/", one)]
        assert [one for one in configs if not (ROOT / one).exists()] == [], tool
        keys = [one for one in arguments if re.fullmatch(r"(MODEL|SOLVER|TEST|DATASETS)\..+", one)]
        assert [key for key in keys if not has_key(default_config(), key)] == [], tool


def has_key(cfg, key):
    for part in key.split("."):
        if not isinstance(cfg, dict) or part not in cfg:
            return False
        cfg = cfg[part]
    return True


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_modules_and_objects_of_this_package_exist(page):
    names = set(re.findall(r"`(ovd_d2(?:\.\w+)+)`", page.read_text()))
    assert [name for name in names if pydoc.locate(name) is None] == []
