"""Checkpoints and model files are shared; nothing in them runs, and none fills the memory."""

from __future__ import annotations

import io
import os
import pickle
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from ovd_d2.engine.checkpoint import SafeCheckpointer
from tests.attacks.hostile import DEEP_JSON, Payload, refused, running_pickle, safetensors


def load(path: Path) -> None:
    SafeCheckpointer(torch.nn.Linear(2, 2)).load(str(path))


def archive(folder: Path, pickled: bytes, data: bytes = b"") -> Path:
    """What torch.save writes, with this pickle in it."""
    path = folder / "hostile.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as writer:
        writer.writestr("archive/data.pkl", pickled)
        writer.writestr("archive/version", "3\n")
        writer.writestr("archive/data/0", data)
    return path


def test_a_pth_that_runs_code(tmp_path: Path, marker: Path) -> None:
    path = tmp_path / "hostile.pth"
    torch.save({"model": {"weight": torch.zeros(2, 2), "bias": Payload(marker)}}, path)
    refused(lambda: load(path), path)


def test_an_old_pth_that_runs_code(tmp_path: Path, marker: Path) -> None:
    path = tmp_path / "hostile.pth"
    torch.save({"model": Payload(marker)}, path, _use_new_zipfile_serialization=False)
    refused(lambda: load(path), path)


def test_a_tar_of_the_oldest_format_that_runs_code(tmp_path: Path, marker: Path) -> None:
    path = tmp_path / "hostile.pth"
    with tarfile.open(path, "w") as writer:
        for name in ("sys_info", "pickle", "tensors", "storages"):
            content = running_pickle(marker)
            member = tarfile.TarInfo(name)
            member.size = len(content)
            writer.addfile(member, io.BytesIO(content))
    refused(lambda: load(path), path)


@pytest.mark.parametrize("suffix", [".pkl", ".pyth", ".pth", ".pt", ".bin", ".safetensors", ""])
def test_a_plain_pickle_that_runs_code(tmp_path: Path, marker: Path, suffix: str) -> None:
    path = tmp_path / f"hostile{suffix}"
    path.write_bytes(running_pickle(marker))
    refused(lambda: load(path), path)


@pytest.mark.parametrize("suffix", [".pkl", ".pth"])
def test_a_pickle_of_the_old_protocol_that_runs_code(
    tmp_path: Path, marker: Path, suffix: str
) -> None:
    path = tmp_path / f"hostile{suffix}"
    path.write_bytes(b"cos\nsystem\n(S'touch " + os.fsencode(marker) + b"'\ntR.")
    refused(lambda: load(path), path)


def test_code_that_hides_behind_a_builtin(tmp_path: Path, marker: Path) -> None:
    path = tmp_path / "hostile.pkl"
    code = f"open({str(marker)!r}, 'w')"
    path.write_bytes(b"c__builtin__\neval\n(V" + code.encode() + b"\ntR.")
    refused(lambda: load(path), path)


def test_an_archive_of_gigabytes_of_nothing(tmp_path: Path) -> None:
    zeros = bytes(1 << 26)
    path = tmp_path / "hostile.pth"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as writer,
        writer.open("archive/data.pkl", "w", force_zip64=True) as stream,
    ):
        for _ in range(24):  # 1.6 GB in some MB
            stream.write(zeros)
    refused(lambda: load(path), path)


def test_an_archive_with_a_pickle_of_endless_memos(tmp_path: Path) -> None:
    path = archive(tmp_path, b"\x80\x02" + b"(" * 1_000_000 + b"l" * 1_000_000 + b".")
    refused(lambda: load(path), path)


@pytest.mark.parametrize("suffix", [".pkl", ".pth"])
def test_a_pickle_that_claims_terabytes(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"hostile{suffix}"
    path.write_bytes(b"\x80\x04\x8e" + (2**42).to_bytes(8, "little") + b"\0.")  # BINBYTES8
    refused(lambda: load(path), path)


def test_a_storage_that_claims_terabytes(tmp_path: Path) -> None:
    sound = tmp_path / "sound.pth"
    torch.save({"model": {"weight": torch.zeros(2, 2)}}, sound)
    with zipfile.ZipFile(sound) as reader:
        (name,) = (one for one in reader.namelist() if one.endswith("data.pkl"))
        pickled = reader.read(name)
    count = pickled.index(b"cpu")
    at = pickled.index(b"K\x04", count)  # BININT1 4, the storage's items
    claimed = pickled[:at] + b"\x8a\x06" + (2**40).to_bytes(6, "little") + pickled[at + 2 :]
    path = archive(tmp_path, claimed, bytes(16))
    refused(lambda: load(path), path)


WRONG: dict[str, Any] = {
    "a number": 7,
    "a list": [1, 2],
    "nothing": None,
    "a tensor": torch.zeros(3),
    "no weights": {"model": {}},
    "a text for the model": {"model": "weights"},
    "a list for the model": {"model": [torch.zeros(2)]},
    "numbers for names": {"model": {1: torch.zeros(2), 2: torch.zeros(2)}},
    "texts for tensors": {"model": {"weight": "x", "bias": "y"}},
    "other shapes": {"model": {"weight": torch.zeros(9, 9), "bias": torch.zeros(0)}},
}


@pytest.mark.parametrize("content", WRONG.values(), ids=WRONG)
def test_content_that_is_no_model(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "hostile.pth"
    torch.save(content, path)
    refused(lambda: load(path), path)


@pytest.mark.parametrize(
    "content", [7, [1], None, {"model": 3}, {"model": {"weight": "x"}}], ids=str
)
def test_a_model_file_that_is_none(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "hostile.pkl"
    path.write_bytes(pickle.dumps(content))
    refused(lambda: load(path), path)


@pytest.mark.parametrize(
    "content",
    [
        safetensors({"weight": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}),
        safetensors(DEEP_JSON.encode()),
        (2**60).to_bytes(8, "little") + b"{}",
    ],
    ids=["terabytes", "brackets", "a header of exabytes"],
)
def test_a_hostile_safetensors_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "hostile.safetensors"
    path.write_bytes(content)
    refused(lambda: load(path), path)


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_files_that_never_end(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "hostile.pth"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    refused(lambda: load(path), path)
