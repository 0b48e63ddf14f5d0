"""Imports point downward, and docs/architecture.md shows them as they are."""

import re
import subprocess
import sys
from pathlib import Path

import draw_architecture

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "architecture.md"


def test_imports_point_downward():
    command = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    done = subprocess.run([sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "0 broken" in done.stdout


def test_every_package_has_its_layer():
    named = {name for row in draw_architecture.layers() for name in row}
    parts = {p.stem for p in (ROOT / "ovd_d2").iterdir() if p.suffix == ".py" or p.is_dir()}
    parts -= {"__init__", "__pycache__", "pictograms", "projects"}  # a room, a namespace
    assert parts <= named
    inside = {f"pictograms.{p.stem}" for p in (ROOT / "ovd_d2/pictograms").iterdir()}
    assert {name for name in named if name.startswith("pictograms.")} <= inside


def test_the_picture_is_of_these_imports():
    names = [name for row in draw_architecture.layers() for name in row]
    found = draw_architecture.picture_imports(draw_architecture.PICTURE)
    assert found == draw_architecture.imports_between(names), "run tools/draw_architecture.py"


def test_implied_imports_are_left_out():
    imports = {"a": ["b", "c"], "b": ["c"], "c": []}
    assert draw_architecture.without_implied(imports) == {"a": ["b"], "b": ["c"], "c": []}


def test_the_page_names_files_that_are_there():
    for name in re.findall(r"`((?:\.\./)?[\w/]+(?:\.py|/))`", PAGE.read_text()):
        assert (ROOT / "ovd_d2" / name).exists() or (ROOT / "tools" / name).exists(), name
