"""GLIP's network, training and parts beside the public code's numbers (tests/projects/glip/golden).

A part of `tools/check_golden.py glip FOLDER`'s: what fits into small files.
"""

from pathlib import Path

import pytest
import torch
from check_golden import build

from ovd_d2.golden import GoldenFolder
from ovd_d2.projects.glip.golden import PARTS, forward
from ovd_d2.projects.glip.golden.networks import tiny_network
from ovd_d2.projects.glip.golden.weights import drawn, mean_and_std
from tests.golden_folders import folder_of

FOLDER = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def folder():
    return GoldenFolder(FOLDER, build)


@pytest.mark.parametrize(
    ("name", "count"), [("units", 63), ("forward of tiny", 46), ("training of tiny", 343)]
)
def test_every_number_is_the_public_codes(name, count, tmp_path):
    (part,) = (one for one in PARTS if one.name == name)
    found = list(part.comparisons(folder_of(part, FOLDER, tmp_path)))
    assert [one for one in found if not one.ok] == []
    assert len(found) == count


def test_official_weights_need_the_offsets_as_they_lie_in_memory(folder):
    case, golden = folder.json("tiny_train.json"), folder.tensors("tiny_forward.safetensors")
    model = tiny_network(folder, case, fused=True)
    for block in model.head.tower:
        block.dyconv.across_levels = "resized"
    named = forward.run(model, forward.tiny_inputs(case), forward._batch(golden))
    difference, allowed = forward.apart(named["head.bbox.p6"], golden["head.bbox.p6"])
    assert difference > 0.05 > 100 * allowed  # the README: 1.6 at most, of the finer levels


def test_weights_are_drawn_from_their_names():
    name = "backbone.body.layers.0.blocks.0.norm1.weight"
    first = torch.from_numpy(drawn(name, (96,), ""))
    assert first[:2].tolist() == pytest.approx([0.8974888920783997, 0.9751787781715393], abs=1e-7)
    assert not torch.equal(first, torch.from_numpy(drawn(name, (96,), "salt")))
    name = "rpn.head.dyhead_tower.2.relu.fc.2.weight"
    assert mean_and_std(name, (1024, 64)) == (0.0, 0.5)
