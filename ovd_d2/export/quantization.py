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
        prepared, output = Path(folder) / "prepared.onnx", Path(folder) / "int8.onnx"
        # norms become part of convolutions; the shapes of a graph that selects are not known
        quant_pre_process(one, prepared, skip_symbolic_shape=True)
        names = {value.name for value in one.graph.input}
        quantize_static(
            prepared,
            output,
            _Reader({name: each[name] for name in names} for each in inputs),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "ConvTranspose", "Gemm", "MatMul"],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options={"MatMulConstBOnly": True},
        )
        return onnx.load(output)


class _Reader(CalibrationDataReader):
    def __init__(self, inputs: Iterable[Arrays]) -> None:
        self._inputs: Iterator[Arrays] = iter(inputs)

    def get_next(self) -> Arrays | None:
        return next(self._inputs, None)
