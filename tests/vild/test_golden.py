"""The official network and its parts beside the public code's numbers (tests/vild/golden).

A part of `tools/check_golden.py vild FOLDER`'s: what fits into small files.
"""

from pathlib import Path

import pytest
import torch
from check_golden import build, main
from safetensors.torch import load_file, save_file

from ovd_d2.golden import Comparison, GoldenFolder, difference, unmatched_boxes
from ovd_d2.vild import golden

FOLDER = Path(__file__).parent / "golden"
FILES = sorted(path.name for path in FOLDER.glob("*.safetensors"))


@pytest.fixture(scope="module")
def folder():
    return GoldenFolder(FOLDER, build)


def test_every_file_has_its_comparison():
    assert len(FILES) == 9 and set(FILES) <= set(golden.COMPARED)


@pytest.mark.parametrize("file", FILES)
def test_parts_and_network_are_the_official_ones(folder, file):
    found = [(name, apart, least) for name, apart, least in golden.COMPARED[file](folder, file)]
    assert found
    assert [one for one in found if not one[1] <= one[2]] == []


def test_the_tool_fails_where_one_number_is_off(tmp_path, capsys):
    for name in ("instance.json", "boxes.safetensors"):
        (tmp_path / name).write_bytes((FOLDER / name).read_bytes())
    main(["vild", str(tmp_path)])
    assert "FAIL" not in capsys.readouterr().out
    tensors = load_file(tmp_path / "boxes.safetensors")
    tensors["roi_encode"][3, 1] += 0.01
    save_file(tensors, tmp_path / "boxes.safetensors")
    with pytest.raises(SystemExit, match="1 comparisons failed"):
        main(["vild", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines if line.endswith("FAIL")] == ["roi_encode"]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (None, None, "no such folder"),
        ("instance.json", b"{", "instance.json cannot be read as JSON"),
        ("boxes.safetensors", b"truncated", "boxes.safetensors cannot be read as safetensors"),
    ],
)
def test_damaged_folders_are_named(tmp_path, file, content, message):
    path = tmp_path / "folder"
    if file is not None:
        path.mkdir()
        (path / "instance.json").write_bytes((FOLDER / "instance.json").read_bytes())
        (path / file).write_bytes(content)
    with pytest.raises(SystemExit, match=message):
        main(["vild", str(path)])


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
