"""What people have at MODEL.WEIGHTS that is no checkpoint, and checkpoints of every origin."""

import pickle
import re
import urllib.error
import zipfile

import numpy as np
import pytest
import torch
from detectron2.utils.file_io import PathManager
from safetensors.torch import save_file

from ovd_d2.engine.checkpoint_files import checkpoint_fault
from ovd_d2.engine.weights import local_weights, read_checkpoint, weights_problems
from ovd_d2.errors import SetupError

WEIGHTS = {"conv.weight": torch.arange(6.0).reshape(2, 3)}
NOT_WEIGHTS = {
    "page.pth": (
        b"<!DOCTYPE html>\n<html>sign in</html>",
        "begins with '<!DOCTYPE html>': a web page",
    ),
    "page.pkl": (
        b"  <html><body>404</body></html>\x00.",
        "begins with '<html><body>404': a web page",
    ),
    "pointer.pth": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n",
        "a Git LFS pointer.*git lfs pull",
    ),
    "empty.pth": (b"", "is empty \\(0 bytes\\)"),
    "annotations.pth": (b'\xef\xbb\xbf{"images": []}', "a JSON or yaml file"),
    "config.pth": (b"_BASE_: base.yaml\n", "a JSON or yaml file"),
    "notes.pth": (b"see the other folder", "not a checkpoint \\(begins with 'see the other f'\\)"),
    "cut.safetensors": (b"\x40\x00\x00\x00\x00\x00\x00\x00{}", "cut short"),
    "cut.pkl": (pickle.dumps(list(range(99)))[:-1], "cut short or not a pickle"),
}


@pytest.mark.parametrize("name", NOT_WEIGHTS)
def test_what_is_no_checkpoint_is_called_by_name(tmp_path, name):
    content, expected = NOT_WEIGHTS[name]
    path = tmp_path / name
    path.write_bytes(content)
    (problem,) = weights_problems(str(path), "train.init_checkpoint")
    assert problem.startswith(f"train.init_checkpoint: {path} ")
    assert re.search(expected, problem)
    assert "\n" not in problem


def test_missing_files_and_folders(tmp_path):
    assert "no file at" in weights_problems(str(tmp_path / "gone.pth"))[0]
    assert "is a folder" in weights_problems(str(tmp_path))[0]
    assert weights_problems("") == []
    assert weights_problems("detectron2://ImageNetPretrained/MSRA/R-50.pkl") == []


def test_a_checkpoint_cut_anywhere_is_cut_short(tmp_path):
    torch.save({"model": WEIGHTS}, tmp_path / "whole.pth")
    whole = (tmp_path / "whole.pth").read_bytes()
    path = tmp_path / "cut.pth"
    for size in (100, len(whole) // 2, len(whole) - 30):
        path.write_bytes(whole[:size])
        assert "cut short" in weights_problems(str(path))[0]


def test_archives_that_are_something_else(tmp_path):
    with zipfile.ZipFile(tmp_path / "images.pth", "w") as archive:
        archive.writestr("1.png", b"x")
    assert "zip archive, but not" in weights_problems(str(tmp_path / "images.pth"))[0]
    torch.save(WEIGHTS, tmp_path / "torch.pkl")
    assert "let its name end with .pth" in weights_problems(str(tmp_path / "torch.pkl"))[0]


def test_detectron2s_query_is_no_part_of_the_name(tmp_path):
    torch.save(WEIGHTS, tmp_path / "x.pth")
    assert weights_problems(f"{tmp_path}/x.pth?matching_heuristics=True") == []
    assert "?heuristics=1" in weights_problems(f"{tmp_path}/x.pth?heuristics=1")[0]


def saved_as(path, weights):
    """`weights` in the form that the name asks for."""
    arrays = {name: tensor.numpy() for name, tensor in weights.items()}
    if path.suffix == ".safetensors":
        save_file(weights, str(path))
    elif path.name == "zoo.pkl":
        content = {"model": arrays, "__author__": "torchvision", "matching_heuristics": True}
        path.write_bytes(pickle.dumps(content))
    elif path.name == "caffe2.pkl":
        content = {"blobs": {**arrays, "conv_momentum": np.ones(2)}}
        path.write_bytes(pickle.dumps(content, protocol=2))
    elif path.suffix == ".pyth":
        torch.save({"model_state": {**weights, "bn.num_batches_tracked": torch.ones(1)}}, path)
    elif path.name == "mmdet.pth":
        torch.save({"meta": {"epoch": 12}, "state_dict": weights}, path)
    elif path.name == "legacy.pth":
        torch.save(weights, path, _use_new_zipfile_serialization=False)
    else:
        torch.save(
            weights if path.name == "plain.pth" else {"model": weights, "iteration": 3}, path
        )


@pytest.mark.parametrize(
    "name",
    [
        *("x.safetensors", "zoo.pkl", "caffe2.pkl", "x.pyth", "mmdet.pth", "plain.pth"),
        *("detectron2.pth", "legacy.pth"),
    ],
)
def test_every_origin_is_read(tmp_path, name):
    saved_as(tmp_path / name, WEIGHTS)
    assert weights_problems(str(tmp_path / name)) == []
    content = read_checkpoint(str(tmp_path / name))
    assert list(content["model"]) == ["conv.weight"]
    found = torch.as_tensor(content["model"]["conv.weight"])
    assert torch.equal(found, WEIGHTS["conv.weight"])
    by_similarity = name in ("zoo.pkl", "caffe2.pkl", "x.pyth")
    assert content.get("matching_heuristics", False) is by_similarity


def test_arrays_of_python_2(tmp_path):
    # numpy.array([1, 2], "f4") as Python 2 pickled it: bytes are its str.
    state = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
        b"(I1\n(I2\ntcnumpy\ndtype\n(S'f4'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntb"
        b"I00\nS'\\x00\\x00\\x80?\\x00\\x00\\x00@'\ntb"
    )
    path = tmp_path / "R-50.pkl"
    path.write_bytes(b"(dS'conv1_w'\n" + state + b"s.")
    assert weights_problems(str(path)) == []
    assert read_checkpoint(str(path))["model"]["conv1_w"].tolist() == [1.0, 2.0]


class Runs:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("suffix", [".pkl", ".pth", ".pyth"])
def test_no_code_is_run(tmp_path, suffix):
    path, trace = tmp_path / f"evil{suffix}", tmp_path / "trace"
    content = {"model": WEIGHTS, "model_state": WEIGHTS, "hook": Runs(trace)}
    if suffix == ".pkl":
        path.write_bytes(pickle.dumps({"model": {}, "hook": Runs(trace)}))
    else:
        torch.save(content, path)
    with pytest.raises(SetupError, match=r"(?s)evil.* is refused.*io\.open.*any command"):
        read_checkpoint(str(path))
    assert not trace.exists()


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, {}, torch.ones(2)])
def test_a_file_without_weights(tmp_path, content):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(SetupError, match=r"x\.pth .*(not a dict of weights|no weights in it)"):
        read_checkpoint(str(tmp_path / "x.pth"))


@pytest.mark.parametrize(
    ("weights", "address"),
    [
        ("detectron2://MSRA/R-50.pkl", "https://dl.fbaipublicfiles.com/detectron2/MSRA/R-50.pkl"),
        ("https://example.com/x.pth?matching_heuristics=True", "https://example.com/x.pth"),
    ],
)
def test_without_network_the_local_way_is_said(monkeypatch, weights, address):
    def no_network(*_, **__):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(PathManager, "get_local_path", no_network)
    with pytest.raises(SetupError) as caught:
        local_weights(weights)
    (problem,) = caught.value.problems
    assert f"download {address} on a machine with network, and set MODEL.WEIGHTS" in problem
    assert "Name or service not known" in problem


def test_a_web_page_in_place_of_the_download_is_refused(monkeypatch, tmp_path):
    page = tmp_path / "R-50.pkl"
    page.write_text("<html>proxy</html>")
    monkeypatch.setattr(PathManager, "get_local_path", lambda *_, **__: str(page))
    with pytest.raises(SetupError, match="a web page"):
        local_weights("detectron2://MSRA/R-50.pkl")


@pytest.mark.parametrize("weights", ["s3://bucket/x.pth", "file:///x.pth"])
def test_a_kind_of_address_that_nothing_fetches(weights):
    scheme = weights.partition("/")[0]
    with pytest.raises(SetupError, match=f"cannot be fetched: '{scheme}//' is not known here"):
        local_weights(weights)


def test_one_wrong_bit_is_found(tmp_path):
    path = tmp_path / "x.pth"
    torch.save({"model": WEIGHTS}, path)
    content = bytearray(path.read_bytes())
    content[content.index(WEIGHTS["conv.weight"].numpy().tobytes())] ^= 1
    path.write_bytes(content)
    with pytest.raises(SetupError, match=r"x\.pth .*damaged.*checksum of x/data/0 in it is wrong"):
        read_checkpoint(str(path))


def test_an_archive_without_checksums_is_read(tmp_path):
    path = tmp_path / "x.pth"
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"model": WEIGHTS}, path)
    finally:
        torch.serialization.set_crc32_options(True)
    assert torch.equal(read_checkpoint(str(path))["model"]["conv.weight"], WEIGHTS["conv.weight"])
    assert checkpoint_fault(path) == ""
