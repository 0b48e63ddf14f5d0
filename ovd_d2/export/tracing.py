"""From a network of PyTorch to a graph of ONNX."""

from __future__ import annotations

import warnings
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx
import torch
from detectron2.export.torchscript_patch import patch_builtin_len
from onnx import TensorProto, ValueInfoProto
from onnx.helper import make_tensor_value_info

from ovd_d2.export.batches import IMAGE, OF_ONE
from ovd_d2.export.network import Network

OPSET = 17
_TYPES = {torch.float32: TensorProto.FLOAT, torch.bool: TensorProto.BOOL}
_TYPES[torch.int64] = TensorProto.INT64


def trace_one(network: Network, image: torch.Tensor) -> onnx.ModelProto:
    """A model of one image whose words have any length.

    :func:`ovd_d2.export.batches.over_batch` makes it one of N images.

    By `torch.jit.trace`, as Detectron2's own export: PyTorch's newer exporter (`dynamo=True`)
    cannot follow what depends on the data, beginning with the padding of an image
    (`GuardOnDataDependentSymNode` in `ImageList.from_tensors`).

    Args:
        network: of one image.
        image: (3, H, W) uint8 that it is traced with; something must be found in it.
    """
    axes = {IMAGE: {1: "height", 2: "width"}}
    for name, sides in network.words.items():
        axes[name] = {place: side for place, side in enumerate(sides) if side}
    for name in network.outputs:
        axes[OF_ONE + name] = {0: "detections"}
    with ExitStack() as stack:
        file = Path(stack.enter_context(TemporaryDirectory())) / "one.onnx"
        stack.enter_context(torch.no_grad())
        stack.enter_context(patch_builtin_len())
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # every check of a shape is one
        torch.onnx.export(
            network.module,
            (image, *network.example.values()),
            file,
            dynamo=False,
            opset_version=OPSET,
            input_names=[IMAGE, *network.words],
            output_names=[OF_ONE + name for name in network.outputs],
            dynamic_axes=axes,
        )
        return onnx.load(file)


def word_infos(network: Network) -> list[ValueInfoProto]:
    """The inputs beside the images."""
    return [
        make_tensor_value_info(name, _TYPES[network.example[name].dtype], shape)
        for name, shape in network.shapes.items()
    ]
