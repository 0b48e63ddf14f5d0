"""CLIPSelf and F-ViT beside the public code's numbers (tests/projects/clipself/golden).

A part of `tools/check_golden.py clipself FOLDER`'s: what fits into small files.
"""

from pathlib import Path

import pytest
from check_golden import build

from ovd_d2.golden import GoldenFolder
from ovd_d2.projects.clipself.golden import PARTS, step
from tests.golden_folders import folder_of

FOLDER = Path(__file__).parent / "golden"
# Those of the detector: tests/projects/clipself/fvit/test_fvit_golden.py
HERE = [part for part in PARTS if not part.missing(GoldenFolder(FOLDER, build))]


def test_every_file_has_its_part():
    assert {one.files[0] for one in HERE} == {one.name for one in FOLDER.glob("*.safetensors")}


@pytest.mark.parametrize(
    "part",
    [pytest.param(one, marks=[pytest.mark.slow] * (one in step.PARTS)) for one in HERE],
    ids=lambda part: part.name,
)
def test_every_number_is_the_public_codes(part, tmp_path):
    found = list(part.comparisons(folder_of(part, FOLDER, tmp_path)))
    assert found and [one for one in found if not one.ok] == []
