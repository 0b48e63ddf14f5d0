"""docs/recipes.md, "value by value", against the configs."""

import re
from pathlib import Path

import pytest

from ovd_d2.engine.config_keys import default_config, flatten
from ovd_d2.engine.run import load_config

PAGE = Path(__file__).parents[1] / "docs" / "recipes.md"
VERDICTS = ("same", "option", "deliberately not", "the templates' words are this project's own")


def rows():
    section = PAGE.read_text().split("## Full recipe: value by value")[1].split("\n## ")[0]
    found = [line for line in section.splitlines() if line.startswith("| ")][1:]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in found]


ROWS = {row[0]: row for row in rows()}


def settings(path):
    """Every leaf of a config, and the names among its values."""
    values = dict(flatten(load_config(path)))
    return values, {value for value in values.values() if isinstance(value, str)}


def test_every_row_has_its_verdict():
    assert len(ROWS) == len(rows()) > 30
    assert [row[0] for row in rows() if not row[3].startswith(VERDICTS)] == []


@pytest.mark.parametrize("value", [name for name, row in ROWS.items() if row[3] == "option"])
def test_options_are_on_in_the_full_recipe_alone(value):
    names = re.findall(r"`([\w.]+)[^`]*`", ROWS[value][2])
    assert names or "same" in ROWS[value][2]
    full, full_names = settings("configs/vild_r50.yaml")
    short, short_names = settings("configs/vild_r50_short.yaml")
    default = dict(flatten(default_config()))
    for name in names:
        if name in full_names:
            assert name not in short_names, name
            continue
        keys = [key for key in full if f".{name}." in f".{key}."]
        assert keys, f"{name} is neither a key nor a name in the config"
        assert any(full[key] != short[key] for key in keys), name
        assert all(short[key] == default[key] for key in keys if "VILD" in key), name


@pytest.mark.parametrize(
    ("value", "key", "expected"),
    [
        ("batch, iterations", "SOLVER.IMS_PER_BATCH", 256),
        ("batch, iterations", "SOLVER.MAX_ITER", 180_000),
        ("norms", "MODEL.OVD.BATCH_NORM.MOMENTUM", 0.003),
        ("norms", "MODEL.OVD.BATCH_NORM.EPS", 1e-4),
        ("optimiser, weight decay", "SOLVER.MOMENTUM", 0.9),
        ("optimiser, weight decay", "SOLVER.WEIGHT_DECAY", 4e-5),
        ("ROI sampling", "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 512),
        ("test scores", "TEST.DETECTIONS_PER_IMAGE", 300),
        ("jitter", "INPUT.LSJ.SIZE", 1024),
    ],
)
def test_numbers(value, key, expected):
    assert dict(flatten(load_config("configs/vild_r50.yaml")))[key] == pytest.approx(expected)
    written = " ".join(ROWS[value]).replace(",", "").replace("4e-5", "4e-05")
    assert f"{expected:g}" in written.replace("1e-4", "0.0001")
