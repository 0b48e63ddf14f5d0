"""The network of one image with convolutions and linear layers in int8."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from ovd_d2.export.runtime import Arrays

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def quantized(one: onnx.ModelProto, inputs: Iterable[Arrays]) -> onnx.ModelProto:
    """Static quantisation: weights int8 per channel, activations uint8.

    A layer is quantised where its weights are constants. Words are compared with regions in
    float32, and so are boxes, probabilities, norms and attention.

    Args:
        one: of one image, see :func:`ovd_d2.export.tracing.trace_one`.
        inputs: of the model, image by image; the smallest and the largest value of each activation
            are those that it has for these.
    """
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced, prepared, output = (Path(folder) / f"{name}.onnx" for name in ("a", "b", "c"))
        onnx.save_model(one, traced)
        # norms become part of convolutions; the shapes of a graph that selects are not known
        quant_pre_process(traced, prepared, skip_symbolic_shape=True)
        model, names = onnx.load(prepared), {value.name for value in one.graph.input}
        quantize_static(
            model,
            output,
            _Reader({name: each[name] for name in names} for each in inputs),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(LAYERS),
            nodes_to_quantize=_layers(model.graph),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        found = onnx.load(output)
    _drop_unused_domains(found)
    return found


def _layers(graph: onnx.GraphProto) -> list[str]:
    """Names of the nodes that multiply with weights."""
    weights = {one.name for one in graph.initializer if len(one.dims) > 1}
    return [one.name for one in graph.node if one.op_type in LAYERS and one.input[1] in weights]


def _drop_unused_domains(model: onnx.ModelProto) -> None:
    """onnxruntime writes all that it knows, of which other runtimes know nothing."""
    used = {node.domain for node in model.graph.node}
    kept = [one for one in model.opset_import if one.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)


class _Reader(CalibrationDataReader):
    def __init__(self, inputs: Iterable[Arrays]) -> None:
        self._inputs: Iterator[Arrays] = iter(inputs)

    def get_next(self) -> Arrays | None:
        return next(self._inputs, None)
