"""Parts of golden numbers: what is compared, what is skipped and named."""

from importlib import import_module

import pytest
import torch
from check_golden import main

from ovd_d2.golden import Comparison, GoldenFolder, difference, unmatched_boxes
from ovd_d2.systems import systems

SYSTEMS = {one.name.lower(): import_module(one.golden) for one in systems() if one.golden}
EVERY_SYSTEM = pytest.mark.parametrize("system", ["vild", "clipself", "glip"])


def test_every_system_is_tested():
    assert set(SYSTEMS) == {"vild", "clipself", "glip"}


@EVERY_SYSTEM
def test_a_part_is_skipped_where_any_of_its_files_is_not_there(system, tmp_path):
    parts = SYSTEMS[system].PARTS
    files = {file for part in parts for file in part.files}
    for file in files:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text("{}")
    folder = GoldenFolder(tmp_path, None)
    for file in files:
        (tmp_path / file).unlink()
        for part in parts:
            assert part.missing(folder) == (file if file in part.files else None)
        (tmp_path / file).write_text("{}")


@EVERY_SYSTEM
def test_a_folder_without_anything_to_compare_fails(system, tmp_path, capsys):
    with pytest.raises(SystemExit, match=f"nothing was compared: {tmp_path} lacks .* of {system}"):
        main([system, str(tmp_path)])
    _, *skipped = capsys.readouterr().out.splitlines()
    parts = SYSTEMS[system].PARTS
    assert skipped == [f"skipped {part.name}: no {part.files[0]}" for part in parts]
    assert len(set(skipped)) == len(parts)


def test_nan_is_no_agreement():
    assert not Comparison("file", "tensor", float("nan"), 1.0).ok
    assert difference(torch.zeros(2), torch.zeros(3)) == float("inf")
    assert difference(torch.zeros(0), torch.zeros(0)) == 0.0


def test_boxes_are_compared_as_sets_of_their_class():
    ours = torch.tensor([[0.0, 0, 10, 10], [5.0, 5, 9, 9]])
    theirs = ours.flip(0) + 0.005
    assert unmatched_boxes(ours, theirs, None, 0.01) == 0
    classes = torch.tensor([1, 2]), torch.tensor([2, 3])
    assert unmatched_boxes(ours, theirs, classes, 0.01) == 1
