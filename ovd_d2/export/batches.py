"""The graph of one image, run for each image of a batch inside one graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx
from onnx import NodeProto, TensorProto, ValueInfoProto
from onnx.helper import (
    make_graph,
    make_model,
    make_node,
    make_tensor_sequence_value_info,
    make_tensor_value_info,
)

IMAGES, IMAGE, IMAGE_NUMBERS = "images", "image", "image_numbers"
OF_ONE = "one_"  # beginning of the names of the outputs of one image
_SCORES = OF_ONE + "scores"


def over_batch(one: onnx.ModelProto, words: Sequence[ValueInfoProto]) -> onnx.ModelProto:
    """A model of N images of one size from that of one.

    The images go through the network one by one, so that what is found in one does not depend on
    the others. The detections of all come out one after the other, with the number of their image.

    Args:
        one: takes `image`, (3, H, W) uint8, and as many of the words as it needs; the names of its
            outputs begin with "one_".
        words: inputs that are the same for all images.
    """
    types = {value.name.removeprefix(OF_ONE): _type_of(value) for value in one.graph.output}
    types[IMAGE_NUMBERS] = TensorProto.INT64
    empty = [make_node("SequenceEmpty", [], [f"{name}_begin"], dtype=types[name]) for name in types]
    begin, end = [f"{name}_begin" for name in types], [f"{name}_end" for name in types]
    nodes = [
        make_node("Shape", [IMAGES], ["images_shape"], end=1),
        make_node("Squeeze", ["images_shape"], ["images_count"]),
        *empty,
        make_node("Loop", ["images_count", "", *begin], end, body=_body(one.graph, types)),
        *(make_node("ConcatFromSequence", [f"{n}_end"], [n], axis=0) for n in types),
    ]
    images = make_tensor_value_info(IMAGES, TensorProto.UINT8, ["batch", 3, "height", "width"])
    graph = make_graph(
        nodes, "open_vocabulary_detector", [images, *words], _outputs(one.graph.output)
    )
    model = make_model(graph, opset_imports=one.opset_import, ir_version=one.ir_version)
    onnx.checker.check_model(model)
    return model


def _body(graph: onnx.GraphProto, types: Mapping[str, int]) -> onnx.GraphProto:
    """One round of the loop: an image is taken out, what is found in it put behind the rest."""
    before = [make_node("Gather", [IMAGES, "round"], [IMAGE], axis=0)]
    after: list[NodeProto] = [
        make_node("Shape", [_SCORES], ["one_count"]),
        make_node("Expand", ["round", "one_count"], [OF_ONE + IMAGE_NUMBERS]),
        make_node("Identity", ["goes_on"], ["goes_on_after"]),
        *(make_node("SequenceInsert", [f"{n}_in", OF_ONE + n], [f"{n}_out"]) for n in types),
    ]
    inputs = [
        make_tensor_value_info("round", TensorProto.INT64, []),
        make_tensor_value_info("goes_on", TensorProto.BOOL, []),
        *(make_tensor_sequence_value_info(f"{n}_in", kind, None) for n, kind in types.items()),
    ]
    outputs = [
        make_tensor_value_info("goes_on_after", TensorProto.BOOL, []),
        *(make_tensor_sequence_value_info(f"{n}_out", kind, None) for n, kind in types.items()),
    ]
    nodes = [*before, *graph.node, *after]
    return make_graph(nodes, "one_image", inputs, outputs, initializer=graph.initializer)


def _outputs(of_one: Sequence[ValueInfoProto]) -> list[ValueInfoProto]:
    found = []
    for value in of_one:
        sides = [one.dim_value or "" for one in value.type.tensor_type.shape.dim[1:]]
        shape = ["detections", *(side or "side" for side in sides)]
        name = value.name.removeprefix(OF_ONE)
        found.append(make_tensor_value_info(name, _type_of(value), shape))
    numbers = make_tensor_value_info(IMAGE_NUMBERS, TensorProto.INT64, ["detections"])
    return [*found, numbers]


def _type_of(value: ValueInfoProto) -> int:
    return value.type.tensor_type.elem_type
