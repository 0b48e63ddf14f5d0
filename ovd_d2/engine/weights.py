"""What is at MODEL.WEIGHTS: looked at before anything is built, and read without running it."""

from __future__ import annotations

import pickle
import re
import zipfile
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import parse_qs, urlparse

import numpy as np
import torch
from detectron2.utils.file_io import PathManager
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from ovd_d2.data.paths import PREFIX as DATASETS_PREFIX
from ovd_d2.errors import SetupError
from ovd_d2.safe_pickle import PickledArray, PickledTensor, PickleFileError, load_pickle

KEY = "MODEL.WEIGHTS"
# Detectron2's own addition to a file name: match parameters by similar names.
HEURISTICS = "matching_heuristics"
AGAIN = "copy or download it again"

_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"
_DETECTRON2_PREFIX = "detectron2://"
_DETECTRON2_HOST = "https://dl.fbaipublicfiles.com/detectron2/"
_LFS = b"version https://git-lfs"
_UTF8_MARK = b"\xef\xbb\xbf"


def weights_problems(weights: str, key: str = KEY, *, needed: bool = False) -> list[str]:
    """What is wrong with a file of weights, from its size, its first bytes and its last ones.

    Args:
        weights: a path, `x.pth?matching_heuristics=True` (Detectron2's form) included. Empty and
            remote ones (`detectron2://`, `https://`) are not looked at.
        key: of the config, for the messages.
        needed: empty is a problem, too: nothing will train the model.
    """
    if not weights:
        return [f"{key} is empty: name the checkpoint of a trained model"] if needed else []
    parsed = urlparse(weights)
    if parsed.query and parse_qs(parsed.query) not in (
        {HEURISTICS: ["True"]},
        {HEURISTICS: ["False"]},
    ):
        return [f"{key}: '?{parsed.query}' is unknown; '?{HEURISTICS}=True' is what can follow"]
    if is_remote(weights):
        return []
    path = Path(PathManager.get_local_path(without_query(weights)))
    if fault := file_fault(path):
        return [f"{key}: {fault}"]
    return []


def is_remote(weights: str) -> bool:
    """Whether the weights are to be fetched."""
    return "://" in weights and not weights.startswith(DATASETS_PREFIX)


def without_query(weights: str) -> str:
    """`x.pth` of `x.pth?matching_heuristics=True`."""
    return urlparse(weights)._replace(query="").geturl()


def file_fault(path: Path) -> str:
    """One sentence on why this cannot be a file of weights; "" where it may be one."""
    if path.is_dir():
        return f"{path} is a folder; name the file in it (model_final.pth?)"
    if not path.is_file():
        return f"no file at {path}; name a checkpoint, or '' to start from noise"
    size = path.stat().st_size
    if size == 0:
        return f"{path} is empty (0 bytes): not a checkpoint; {AGAIN}"
    with path.open("rb") as stream:
        head = stream.read(64)
        if fault := _text_fault(head):
            return f"{path} is not a checkpoint ({fault}"
        fault = _format_fault(path, stream, head)
    return f"{path} {fault}" if fault else ""


def _text_fault(head: bytes) -> str:
    """Of what people have after a failed download, or name by mistake."""
    start = head.removeprefix(_UTF8_MARK).lstrip()
    shown = start[:15].decode("latin1").splitlines()[0] if start else ""
    if start.startswith(b"<"):
        return f"begins with '{shown}': a web page?); download it again"
    if start.startswith(_LFS):
        return f"begins with '{shown}': a Git LFS pointer); fetch its content with 'git lfs pull'"
    if start.startswith((b"{", b"[", b"---", b"_BASE_", b"MODEL:")):
        return f"begins with '{shown}': a JSON or yaml file?); name a file of weights"
    return ""


def _format_fault(path: Path, stream: BinaryIO, head: bytes) -> str:
    if path.suffix == ".safetensors":
        return _safetensors_fault(path)
    if path.suffix == ".pkl":
        return _pickle_fault(stream, head)
    if head.startswith(_ZIP):
        return _archive_fault(path)
    # What torch wrote before version 1.6: a pickle, or a tar archive.
    if head.startswith(_PICKLE) or b"\0" in head:
        return ""
    shown = head[:15].decode("latin1")
    return f"is not a checkpoint (begins with {shown!r}); {AGAIN}"


def _safetensors_fault(path: Path) -> str:
    try:
        with safe_open(str(path), framework="pt"):
            return ""
    except SafetensorError as error:
        return f"is damaged, cut short or not a safetensors file ({error}); {AGAIN}"


def _pickle_fault(stream: BinaryIO, head: bytes) -> str:
    if head.startswith(_ZIP):
        return "is a checkpoint of torch, not a pickle; let its name end with .pth"
    stream.seek(-1, 2)
    if stream.read(1) != pickle.STOP:
        return f"is cut short or not a pickle (the end of one is missing); {AGAIN}"
    return ""


def _archive_fault(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile:
        return (
            f"is cut short ({path.stat().st_size:,} bytes; the list of contents at its end is "
            f"missing); {AGAIN}"
        )
    if not any(name.endswith("/data.pkl") for name in names):
        first = f"first file: {names[0]}" if names else "no file in it"
        return f"is a zip archive, but not a checkpoint ({first}); name a file of weights"
    return ""


def local_weights(weights: str, key: str = KEY) -> str:
    """The file on this machine, downloaded where it is remote; a query stays at its end.

    Raises:
        SetupError: it cannot be downloaded, or what came is no checkpoint.
    """
    try:
        local = PathManager.get_local_path(without_query(weights))
    # URLError and its kin, and what Detectron2's catalog says of unknown names.
    except (OSError, RuntimeError, AssertionError) as error:
        address = weights.replace(_DETECTRON2_PREFIX, _DETECTRON2_HOST)
        raise SetupError(
            [
                f"{key}: {weights} cannot be fetched ({error}): download {without_query(address)} "
                f"on a machine with network, and set {key} to the file"
            ]
        ) from error
    if fault := _fetched_fault(weights, local):
        raise SetupError([f"{key}: {fault}"])
    query = urlparse(weights).query
    return f"{local}?{query}" if query else local


def _fetched_fault(weights: str, local: str) -> str:
    # PathManager hands on, as a path, what begins with a word that it does not know.
    if is_remote(weights) and local == without_query(weights):
        scheme = weights.partition("://")[0]
        return f"{weights} cannot be fetched: '{scheme}://' is not known here; name a local file"
    return file_fault(Path(local))


def read_checkpoint(path: str, key: str = KEY) -> dict[str, Any]:
    """The content of a file of weights; nothing that it names is run.

    Args:
        path: `.safetensors`; `.pkl` (Detectron2's and Caffe2's model zoos, converted torchvision
            models); `.pyth` (pycls); all others are torch's, of parameters alone or under "model"
            or "state_dict".
        key: of the config, for the messages.

    Returns:
        "model": name -> tensor or array, and whatever else the file holds. "matching_heuristics"
        where names are to be matched by similarity.

    Raises:
        SetupError: damaged, refused, or without weights.
    """
    try:
        return _with_names(_READERS.get(Path(path).suffix, _read_torch)(path))
    except PickleFileError as error:  # it names the file
        raise SetupError([f"{key}: {error}"]) from error
    # A damaged file makes its reader fail in as many ways as there are instructions.
    except Exception as error:
        raise SetupError([f"{key}: {path} {_reading_fault(error)}"]) from error


def _with_names(content: dict[str, Any]) -> dict[str, Any]:
    model = content["model"]
    if not isinstance(model, dict) or not all(isinstance(name, str) for name in model):
        raise ValueError(f"it holds a {type(model).__name__}, expected names and their tensors")
    return content


def _reading_fault(error: Exception) -> str:
    asked = re.search(r"GLOBAL ([\w.]+)", str(error))
    if isinstance(error, pickle.UnpicklingError) and asked:
        return (
            f"is refused: it asks for '{asked[1]}'. A pickle can run any command; only tensors, "
            "numbers, texts and containers of them are loaded from a checkpoint"
        )
    first = (str(error).splitlines() or [""])[0]
    return f"is no checkpoint or damaged ({type(error).__name__}: {first[:150]}); {AGAIN}"


def _read_safetensors(path: str) -> dict[str, Any]:
    return {"model": load_file(path)}


def _read_pickle(path: str) -> dict[str, Any]:
    content = _unwrapped(load_pickle(path))
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__}, not a dict of weights")
    if "model" in content:
        return content
    blobs = content.get("blobs", content)  # detectors have "blobs", ImageNet models do not
    weights = {name: array for name, array in blobs.items() if not name.endswith("_momentum")}
    return {"model": weights, "__author__": "Caffe2", HEURISTICS: True}


def _unwrapped(value: Any) -> Any:
    """Arrays and tensors out of the stand-ins in which the safe unpickler gives them."""
    if isinstance(value, dict):
        return {name: _unwrapped(inner) for name, inner in value.items()}
    if isinstance(value, PickledArray):
        return np.array(value.to_numpy())  # a copy: the original is read-only
    return value.to_torch() if isinstance(value, PickledTensor) else value


def _read_pycls(path: str) -> dict[str, Any]:
    state = torch.load(path, map_location="cpu", weights_only=True)["model_state"]
    weights = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    return {"model": weights, "__author__": "pycls", HEURISTICS: True}


def _read_torch(path: str) -> dict[str, Any]:
    if zipfile.is_zipfile(path) and (damaged := damaged_part(path)):  # torch does not look
        raise ValueError(f"the checksum of {damaged} in it is wrong")
    content = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__}, not a dict of weights")
    if isinstance(content.get("model"), dict):
        return content
    if isinstance(content.get("state_dict"), dict):  # mmdetection, Lightning
        return {"model": content["state_dict"]}
    if not content or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise ValueError(f"no weights in it, its keys are {list(content)[:5]}")
    return {"model": content}


def damaged_part(path: str | Path) -> str | None:
    """The first file in an archive whose checksum is wrong; torch can leave them out, as 0."""
    with zipfile.ZipFile(path) as archive:
        for part in archive.infolist():
            if part.CRC == 0:
                continue
            try:
                with archive.open(part) as stream:
                    while stream.read(1 << 20):
                        pass
            except zipfile.BadZipFile:
                return part.filename
    return None


_READERS = {".safetensors": _read_safetensors, ".pkl": _read_pickle, ".pyth": _read_pycls}
