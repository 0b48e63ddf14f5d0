"""CLIPSelf and F-ViT beside the public code's numbers (tests/projects/clipself/golden).

A part of `tools/check_golden.py clipself FOLDER`'s: what fits into small files.
"""

from pathlib import Path

import pytest
from check_golden import build

from ovd_d2.golden import GoldenFolder
from ovd_d2.projects.clipself.golden import PARTS

FOLDER = Path(__file__).parent / "golden"
FILES = {path.name for path in FOLDER.glob("*.safetensors")}


def name_of(part):
    return part.__module__.rpartition(".")[2]


@pytest.mark.parametrize(
    "part",
    [
        pytest.param(one, marks=[pytest.mark.slow] * (name_of(one) == "step"))
        for one in PARTS
        if name_of(one) != "detector"  # tests/projects/clipself/fvit/test_fvit_golden.py
    ],
    ids=name_of,
)
def test_every_number_is_the_public_codes(part):
    found = list(part(GoldenFolder(FOLDER, build)))
    assert found and {one.file for one in found} <= FILES
    assert [one for one in found if not one.ok] == []
