"""Pickles from elsewhere, read without running anything they name.

An ordinary unpickler calls whatever the file asks for. This one knows a handful of names, those
that NumPy arrays and torch tensors are pickled with, and gives each a stand-in of its own: no
function of NumPy, torch or Python is ever called on the file's word. Everything else is refused.
"""

from __future__ import annotations

import io
import math
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray

# Kind and bytes of an item, as in "f4"; no objects, strings or records.
_NUMBER_TYPES = frozenset(["f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"])
_MAX_DIMENSIONS = 8


class PickleFileError(ValueError):
    """A pickle that is missing, damaged or refused; the message names the file."""


class UnsafePickleError(PickleFileError):
    """A pickle that asks for more than numbers, texts, lists, arrays and tensors."""


class PickledArray:
    """A NumPy array; a stand-in, because NumPy's own way from a pickle trusts the file."""

    __slots__ = ("_content", "_dtype", "_fortran", "_shape")

    def __init__(self) -> None:
        self._shape: tuple[int, ...] = (0,)
        self._dtype = np.dtype(np.float32)
        self._fortran = False
        self._content: bytes | bytearray = b""

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise UnsafePickleError("an array with an unknown state")
        _, shape, dtype, fortran, content = state
        if isinstance(content, str):  # bytes of Python 2
            content = content.encode("latin1")
        self._fill(shape, dtype, bool(fortran), content)

    def to_numpy(self) -> NDArray[Any]:
        """The array; read-only, since it shares the file's bytes."""
        order = "F" if self._fortran else "C"
        flat = np.frombuffer(self._content, dtype=self._dtype)
        return flat.reshape(self._shape, order=order)  # type: ignore[call-overload,no-any-return]

    def _fill(self, shape: Any, dtype: Any, fortran: bool, content: Any) -> None:
        if not isinstance(dtype, _PickledType) or not isinstance(content, (bytes, bytearray)):
            raise UnsafePickleError("an array of something else than numbers")
        # Before anything is allocated: what is claimed must be what is in the file.
        if math.prod(_checked_shape(shape)) * dtype.value.itemsize != len(content):
            raise UnsafePickleError(
                f"an array of shape {shape} and type {dtype.value} in {len(content)} bytes"
            )
        self._shape, self._dtype, self._fortran = shape, dtype.value, fortran
        self._content = content


def load_pickle(path: str | os.PathLike[str]) -> Any:
    """Read a pickle of numbers, texts, None, lists, tuples, dicts, arrays and torch tensors.

    Arrays come as `PickledArray`, tensors as `PickledTensor`: whoever knows where one is expected
    takes it out.

    Raises:
        PickleFileError: the file is missing, damaged, or names anything else; nothing has run.
    """
    try:
        with Path(path).open("rb") as stream:
            return _Unpickler(stream).load()
    except FileNotFoundError:
        raise PickleFileError(f"{path} is missing") from None
    except UnsafePickleError as error:
        raise UnsafePickleError(
            f"{path} is refused: it holds {error}. A pickle can run any command; only numbers, "
            "lists, NumPy arrays and torch tensors are read from one"
        ) from None
    # A damaged pickle makes the unpickler fail in as many ways as it has instructions.
    except Exception as error:
        raise PickleFileError(
            f"{path} is no pickle or damaged ({type(error).__name__}: {error}); fetch it again"
        ) from error


class _Unpickler(pickle.Unpickler):
    def __init__(self, stream: BinaryIO) -> None:
        # Python 2's bytes, NumPy's content among them, come as text of this encoding.
        super().__init__(stream, encoding="latin1")

    def find_class(self, module: str, name: str) -> Any:
        known = _KNOWN.get((module.replace("numpy._core", "numpy.core"), name))
        if known is None:
            raise UnsafePickleError(f"the name '{module}.{name}'")
        return known

    def persistent_load(self, pid: Any) -> NoReturn:
        raise UnsafePickleError("a reference to an object outside the file")


class _Sealed:
    """What a file has made cannot be changed by a later instruction of the file."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> NoReturn:
        raise UnsafePickleError("an attempt to change a function or a tensor")


class PickledTensor(_Sealed):
    """A torch tensor; a stand-in, because a pickle may go on to set a tensor's attributes."""

    __slots__ = ("_tensor",)

    def __init__(self, tensor: torch.Tensor) -> None:
        self._tensor = tensor

    def to_torch(self) -> torch.Tensor:
        """The tensor, on the CPU."""
        return self._tensor


class _PickledStorage(_Sealed):
    """The numbers of one or more tensors, in a row."""

    __slots__ = ("numbers",)

    def __init__(self, numbers: torch.Tensor) -> None:
        self.numbers = numbers


class _StandIn(_Sealed):
    """What a known name of the file becomes."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)


class _PickledType:
    """A type of array items."""

    __slots__ = ("value",)

    def __init__(self, code: Any) -> None:
        if not isinstance(code, str) or code not in _NUMBER_TYPES:
            raise UnsafePickleError(f"an array of type {str(code)[:40]!r}, which is no number")
        self.value = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        order = state[1] if isinstance(state, tuple) and len(state) > 1 else None
        if order not in ("<", ">", "|", "="):
            raise UnsafePickleError("an array type with an unknown state")
        self.value = self.value.newbyteorder(order)


def _checked_shape(shape: Any) -> tuple[int, ...]:
    is_shape = isinstance(shape, tuple) and len(shape) <= _MAX_DIMENSIONS
    if not is_shape or not all(type(side) is int and side >= 0 for side in shape):
        raise UnsafePickleError("an array with an impossible shape")
    return shape  # type: ignore[no-any-return]


def _reconstruct(*_: Any) -> PickledArray:
    return PickledArray()


def _from_buffer(content: Any, dtype: Any, shape: Any, order: Any) -> PickledArray:
    array = PickledArray()
    array._fill(shape, dtype, order == "F", content)
    return array


def _scalar(dtype: Any, content: Any) -> float:
    array = PickledArray()
    array._fill((), dtype, False, content)
    return float(array.to_numpy())


def _encode(text: Any, encoding: Any = "") -> bytes:
    """Bytes in a pickle of protocol 2, which is mmcv's default."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise UnsafePickleError("bytes in an unknown encoding")
    return text.encode("latin1")


def _load_storage(content: Any) -> _PickledStorage:
    """torch's own function for this unpickles freely; this one does not."""
    if not isinstance(content, bytes):
        raise UnsafePickleError("a tensor without content")
    try:
        storage = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UnsafePickleError("a tensor that torch refuses to load as weights only") from error
    if not isinstance(storage, torch.storage.TypedStorage):
        raise UnsafePickleError("a tensor of something else than numbers")
    return _PickledStorage(torch.empty(0, dtype=storage.dtype).set_(storage))


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> PickledTensor:
    if not isinstance(storage, _PickledStorage) or type(offset) is not int:
        raise UnsafePickleError("a tensor without content")
    numbers = storage.numbers
    if math.prod(_checked_shape(size)) > len(
        numbers
    ):  # a stride of 0 would show more than there is
        raise UnsafePickleError(f"a tensor of shape {size} in a storage of {len(numbers)} numbers")
    return PickledTensor(
        numbers.as_strided(size, stride, offset)
    )  # it refuses to leave the storage


_KNOWN: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _StandIn(_reconstruct),
    ("numpy.core.multiarray", "scalar"): _StandIn(_scalar),
    ("numpy.core.numeric", "_frombuffer"): _StandIn(_from_buffer),
    ("numpy", "ndarray"): _StandIn(_reconstruct),  # only ever an argument of _reconstruct
    ("numpy", "dtype"): _StandIn(lambda code, *_: _PickledType(code)),
    ("_codecs", "encode"): _StandIn(_encode),
    ("__builtin__", "bytes"): _StandIn(lambda: b""),  # protocol 2's word for no bytes
    ("collections", "OrderedDict"): _StandIn(lambda *_: {}),  # a tensor's hooks: always empty
    ("torch._utils", "_rebuild_tensor_v2"): _StandIn(_tensor),
    ("torch.storage", "_load_from_bytes"): _StandIn(_load_storage),
}
