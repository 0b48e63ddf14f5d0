#!/usr/bin/env python
"""Draw the packages of ovd_d2, the layers they are on and who imports whom.

The layers are those of pyproject.toml, which `make lint` holds the imports to; the arrows are the
imports of the code as it is, without those that a chain of others implies. What everything imports,
the layers below "systems", has none.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path

import grimp
import matplotlib
from importlinter.api import read_configuration
from matplotlib import pyplot as plt
from matplotlib.patches import FancyBboxPatch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "docs" / "architecture.png"
PACKAGE = "ovd_d2"
KEY = "imports"  # of the picture's text, by which a test sees whether it is up to date

EPILOG = """
example:
  python tools/draw_architecture.py --output docs/architecture.png
"""

GROUND = "systems"  # the layers below it are imported from everywhere
SHIFTS = (-0.16, 0.16)  # of rows of one box, in turn, so that arrows pass beside boxes

Imports = dict[str, list[str]]


def layers() -> list[list[str]]:
    """Names of packages without the leading "ovd_d2.", the highest layer first."""
    settings = read_configuration(str(ROOT / "pyproject.toml"))
    (contract,) = [one for one in settings["contracts_options"] if one["type"] == "layers"]
    rows = [[part.strip() for part in row.split("|")] for row in contract["layers"]]
    return [[name.removeprefix(f"{PACKAGE}.") for name in row] for row in rows]


def imports_between(names: list[str]) -> Imports:
    """Package -> packages that some module of it imports, both among `names`."""
    graph = grimp.build_graph(PACKAGE, exclude_type_checking_imports=True)
    found: defaultdict[str, set[str]] = defaultdict(set)
    for module in graph.modules:
        owner = _owner(module, names)
        for imported in graph.find_modules_directly_imported_by(module):
            other = _owner(imported, names)
            if owner and other and owner != other:
                found[owner].add(other)
    return {name: sorted(found[name]) for name in names}


def _owner(module: str, names: list[str]) -> str | None:
    """The longest of `names` that holds a module."""
    inner = module.removeprefix(f"{PACKAGE}.")
    holding = [one for one in names if inner == one or inner.startswith(f"{one}.")]
    return max(holding, key=len, default=None)


def without_implied(imports: Imports) -> Imports:
    """The imports that no chain of other imports makes superfluous in a picture."""

    def reaches(start: str, end: str) -> bool:
        return end in imports[start] or any(reaches(other, end) for other in imports[start])

    return {
        name: [
            other
            for other in others
            if not any(reaches(third, other) for third in others if third != other)
        ]
        for name, others in imports.items()
    }


def lines_of(name: str) -> int:
    """Lines of Python in a package or module."""
    path = ROOT / PACKAGE / name.replace(".", "/")
    files = path.rglob("*.py") if path.is_dir() else [path.with_suffix(".py")]
    return sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files)


def picture_imports(path: Path) -> Imports:
    """The imports that a picture was drawn from."""
    with Image.open(path) as picture:
        return json.loads(picture.text[KEY])  # type: ignore[attr-defined]


def draw(path: Path) -> None:
    """Writes the picture."""
    matplotlib.use("Agg")
    rows = layers()
    imports = imports_between([name for row in rows for name in row])
    figure, axes = plt.subplots(figsize=(11, 0.85 * len(rows) + 0.6))
    places = _places(rows)
    height = places[GROUND][1]
    for name, others in without_implied(imports).items():
        for other in others:
            if places[other][1] >= height:
                _draw_arrow(axes, places[name], places[other])
    for name, place in places.items():
        _draw_box(axes, name, place)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, len(rows))
    axes.axis("off")
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)
    _add_text(path, json.dumps(imports, sort_keys=True))


def _places(rows: list[list[str]]) -> dict[str, tuple[float, float]]:
    """Centre of each box."""
    places = {}
    for number, row in enumerate(rows):
        shift = SHIFTS[number % 2] if len(row) == 1 else 0.0
        for k, name in enumerate(row):
            places[name] = (k + 0.5) / len(row) + shift, len(rows) - number - 0.5
    return places


def _draw_arrow(axes: plt.Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    bend = 0.15 * (start[1] - end[1] > 2.5)
    axes.annotate(
        "",
        xy=(end[0], end[1] + 0.26),
        xytext=(start[0], start[1] - 0.26),
        arrowprops={
            "arrowstyle": "->",
            "color": "#557799",
            "linewidth": 1.0,
            "connectionstyle": f"arc3,rad={bend}",
        },
    )


def _draw_box(axes: plt.Axes, name: str, place: tuple[float, float]) -> None:
    half = 0.09
    box = FancyBboxPatch(
        (place[0] - half, place[1] - 0.22),
        2 * half,
        0.44,
        boxstyle="round,pad=0.006",
        facecolor="#eef3f8",
        edgecolor="#446688",
    )
    axes.add_patch(box)
    axes.text(*place, f"{name}\n{lines_of(name):,} lines", ha="center", va="center", fontsize=8)


def _add_text(path: Path, text: str) -> None:
    with Image.open(path) as picture:
        information = PngInfo()
        information.add_text(KEY, text)
        picture.save(path, pnginfo=information)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=PICTURE, help="PNG (docs/architecture.png)")
    arguments = parser.parse_args()
    draw(arguments.output)
    print(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()
