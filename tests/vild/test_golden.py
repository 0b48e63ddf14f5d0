"""The official network and its parts beside the public code's numbers (tests/vild/golden).

A part of `tools/check_golden.py vild FOLDER`'s: what fits into small files.
"""

from pathlib import Path

import pytest
from check_golden import build, main
from safetensors.torch import load_file, save_file

from ovd_d2.golden import GoldenFolder
from ovd_d2.vild.golden import PARTS
from tests.golden_folders import folder_of

FOLDER = Path(__file__).parent / "golden"
HERE = [part for part in PARTS if not part.missing(GoldenFolder(FOLDER, build))]


def test_every_file_has_its_part():
    files = [part.files[0] for part in HERE]
    assert len(files) == 9 and set(files) == {one.name for one in FOLDER.glob("*.safetensors")}


@pytest.mark.parametrize("part", HERE, ids=lambda part: part.name)
def test_parts_and_network_are_the_official_ones(part, tmp_path):
    found = list(part.comparisons(folder_of(part, FOLDER, tmp_path)))
    assert found and [one for one in found if not one.ok] == []


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
