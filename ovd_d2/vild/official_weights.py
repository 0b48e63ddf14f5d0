"""The variables of the official ViLD checkpoints in the names and layouts of this package.

tensorflow/tpu, models/official/detection: maps are NHWC there, boxes [y, x, h, w], the background
is the first class. A convolution or linear layer that a batch norm follows has a bias there and
none here: it is taken off the norm's running mean, which is equal at test time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

BLOCKS = {50: (3, 4, 6, 3), 152: (3, 8, 36, 3)}
BATCH_NORM = {
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
HEAD = "frcnn_layer_0/fast_rcnn_head"
TEXT_EMBEDDINGS = f"{HEAD}/class-predict/kernel"
# Variables that belong to training alone, by the end of their names.
NOT_WEIGHTS = {
    "global_step": "the step counter",
    "/Momentum": "a slot of the optimiser",
    "/ExponentialMovingAverage": "a slot of the weight average",
}
POOLED = 7  # side of the pooled features that fc6 reads
XYWH = [1, 0, 3, 2]  # of [y, x, h, w]

Layout = Callable[[np.ndarray], np.ndarray]


@dataclass
class Converted:
    """What became of an official checkpoint.

    Attributes:
        weights: the detector's state dict, float32, without vocabulary.
        text_embeddings: (C, D) float32 unit rows, the categories in the order of the data set.
        left_out: variable -> why.
    """

    weights: dict[str, np.ndarray]
    text_embeddings: np.ndarray
    left_out: dict[str, str] = field(default_factory=dict)


def convert_variables(variables: Mapping[str, np.ndarray]) -> Converted:
    """Converts all variables of a ViLD or ViLD-ensemble, ResNet-50 or -152.

    Args:
        variables: TensorFlow's name, without ":0" -> values.

    Raises:
        ValueError: variables are missing, are none of the network's, or have another shape.
    """
    depth = _depth_of(variables)
    ensemble = any("/distill_conv_0/" in name for name in variables)
    named = places(depth, ensemble)
    left_out = {name: why for name in variables if (why := _why_left_out(name)) is not None}
    _check_names(set(variables) - set(left_out), set(named) | {TEXT_EMBEDDINGS})
    weights: dict[str, np.ndarray] = {}
    biases: list[tuple[str, np.ndarray]] = []
    for name, place in named.items():
        value = place.layout(np.asarray(variables[name], dtype=np.float32))
        if place.is_bias_before_norm:
            biases.append((place.key, value))
        else:
            weights[place.key] = np.ascontiguousarray(value)
    for key, bias in biases:
        weights[key] = weights[key] - bias
    embeddings = np.asarray(variables[TEXT_EMBEDDINGS], dtype=np.float32).T
    embeddings = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    return Converted(weights, embeddings, left_out)


@dataclass(frozen=True)
class Place:
    """Where a variable goes.

    Attributes:
        key: of the state dict.
        layout: makes this package's layout of its values.
        is_bias_before_norm: it is subtracted from what is at `key`.
    """

    key: str
    layout: Layout = lambda x: x
    is_bias_before_norm: bool = False


def _conv(x: np.ndarray) -> np.ndarray:
    return x.transpose(3, 2, 0, 1)  # (h, w, in, out) -> (out, in, h, w); a deconvolution's, too


def _dense(x: np.ndarray) -> np.ndarray:
    return x.T


def _pooled_dense(x: np.ndarray) -> np.ndarray:
    """Rows are height, width, channel there, channel, height, width here."""
    channels = x.shape[0] // POOLED**2
    return x.reshape(POOLED, POOLED, channels, -1).transpose(3, 2, 0, 1).reshape(x.shape[1], -1)


def _boxes(x: np.ndarray) -> np.ndarray:
    """The first dimension, of 4 per anchor, from [y, x, h, w] to [x, y, w, h]."""
    return x.reshape(-1, 4, *x.shape[1:])[:, XYWH].reshape(x.shape)


def places(depth: int, ensemble: bool) -> dict[str, Place]:
    """Where each variable of a network goes; the text embeddings have no place in the detector."""
    return dict(_places(depth, ensemble))


def variable_shape(name: str, shape: Sequence[int]) -> tuple[int, ...]:
    """The official shape of a variable whose values have `shape` in the state dict here."""
    if not name.endswith("/kernel"):
        return tuple(shape)
    if len(shape) == 1:
        return (*shape, 1)  # the background
    return (*shape[2:], shape[1], shape[0])


def _places(depth: int, ensemble: bool) -> Iterator[tuple[str, Place]]:
    yield from _backbone(depth)
    yield from _pyramid()
    yield from _rpn()
    yield from _box_head(ensemble)
    yield from _mask_head()


def _backbone(depth: int) -> Iterator[tuple[str, Place]]:
    scope = f"resnet{depth}"
    for number, key in enumerate(_backbone_convs(depth)):
        suffix = f"_{number}" if number else ""
        yield f"{scope}/conv2d{suffix}/kernel", Place(f"backbone.bottom_up.{key}.weight", _conv)
        norm = f"{scope}/batch_normalization{suffix}"
        yield from _batch_norm(norm, f"backbone.bottom_up.{key}.norm")


def _backbone_convs(depth: int) -> Iterator[str]:
    yield "stem.conv1"
    for stage, blocks in enumerate(BLOCKS[depth], start=2):
        for block in range(blocks):
            names = ("shortcut", "conv1", "conv2", "conv3")
            yield from (f"res{stage}.{block}.{name}" for name in names[0 if block == 0 else 1 :])


def _pyramid() -> Iterator[tuple[str, Place]]:
    for level in range(2, 6):
        yield from _with_bias(f"fpn/l{level}", f"backbone.fpn_lateral{level}", _conv)
        yield from _with_bias(f"fpn/post_hoc_d{level}", f"backbone.fpn_output{level}", _conv)
    yield from _with_bias("fpn/p6", "backbone.top_block.conv", _conv)
    for level in range(2, 7):
        yield from _batch_norm(f"fpn/p{level}-bn", f"backbone.norms.p{level}")


def _rpn() -> Iterator[tuple[str, Place]]:
    head = "proposal_generator.rpn_head"
    for number, suffix in enumerate(("", "-1")):
        yield from _with_bias(f"rpn_head/rpn{suffix}", f"{head}.conv.conv{number}", _conv)
        for level in range(2, 7):
            norm = f"rpn_head/rpn-l{level}-bn{suffix}"
            yield from _batch_norm(norm, f"{head}.norms.{level - 2}.{number}")
    yield from _with_bias("rpn_head/rpn-class", f"{head}.objectness_logits", _conv)
    deltas = f"{head}.anchor_deltas"
    yield "rpn_head/rpn-box/kernel", Place(f"{deltas}.weight", lambda x: _boxes(_conv(x)))
    yield "rpn_head/rpn-box/bias", Place(f"{deltas}.bias", _boxes)


def _box_head(ensemble: bool) -> Iterator[tuple[str, Place]]:
    scope = HEAD
    yield from _trunk(scope, "", 0, "roi_heads.box_head")
    yield from _with_bias(f"{scope}/project-to-clip", "roi_heads.box_predictor.projection", _dense)
    background = Place("roi_heads.box_predictor.classifier.background", lambda x: x[:, 0])
    yield f"{scope}/background-class-predict/kernel", background
    deltas = "roi_heads.box_predictor.bbox_pred"
    yield f"{scope}/box-predict/kernel", Place(f"{deltas}.weight", lambda x: _boxes(_dense(x)))
    yield f"{scope}/box-predict/bias", Place(f"{deltas}.bias", _boxes)
    if ensemble:
        image_head = "roi_heads.image_head"
        yield from _trunk(scope, "distill_", 6, f"{image_head}.trunk")
        name = f"{scope}/distill-project-to-clip"
        yield from _with_bias(name, f"{image_head}.projection", _dense)


def _trunk(scope: str, prefix: str, first: int, key: str) -> Iterator[tuple[str, Place]]:
    """Four convolutions and two linear layers, each before a norm; norms count from `first`."""
    layers = [(f"{prefix}conv_{k}", f"conv{k + 1}", _conv) for k in range(4)]
    layers += [(f"{prefix}fc6", "fc1", _pooled_dense), (f"{prefix}fc7", "fc2", _dense)]
    for number, (name, layer, layout) in enumerate(layers, start=first):
        norm = f"{scope}/batch_normalization" + (f"_{number}" if number else "")
        yield from _before_norm(f"{scope}/{name}", norm, f"{key}.{layer}", layout)


def _mask_head() -> Iterator[tuple[str, Place]]:
    key = "roi_heads.mask_head"
    for k in range(4):
        norm = "mask_head/batch_normalization" + (f"_{k}" if k else "")
        yield from _before_norm(f"mask_head/mask-conv-l{k}", norm, f"{key}.mask_fcn{k + 1}", _conv)
    yield from _with_bias("mask_head/conv5-mask", f"{key}.deconv", _conv)
    yield from _batch_norm("mask_head/batch_normalization_4", f"{key}.deconv.norm")
    yield from _with_bias("mask_head/mask_fcn_logits", f"{key}.predictor", _conv)


def _before_norm(name: str, norm: str, key: str, layout: Layout) -> Iterator[tuple[str, Place]]:
    yield f"{name}/kernel", Place(f"{key}.weight", layout)
    yield from _batch_norm(norm, f"{key}.norm")
    yield f"{name}/bias", Place(f"{key}.norm.running_mean", is_bias_before_norm=True)


def _with_bias(name: str, key: str, layout: Layout) -> Iterator[tuple[str, Place]]:
    yield f"{name}/kernel", Place(f"{key}.weight", layout)
    yield f"{name}/bias", Place(f"{key}.bias")


def _batch_norm(name: str, key: str) -> Iterator[tuple[str, Place]]:
    for theirs, ours in BATCH_NORM.items():
        yield f"{name}/{theirs}", Place(f"{key}.{ours}")


def _depth_of(variables: Mapping[str, np.ndarray]) -> int:
    scopes = sorted({m[1] for name in variables if (m := re.match(r"resnet(\d+)/", name))})
    if len(scopes) != 1 or int(scopes[0]) not in BLOCKS:
        raise ValueError(
            f"expected variables of one of {', '.join(f'resnet{k}/' for k in BLOCKS)}, found "
            f"{', '.join(f'resnet{k}/' for k in scopes) or 'none'}: is it an official ViLD "
            "checkpoint?"
        )
    return int(scopes[0])


def _why_left_out(name: str) -> str | None:
    return next((why for end, why in NOT_WEIGHTS.items() if name.endswith(end)), None)


def _check_names(found: set[str], expected: set[str]) -> None:
    problems = [
        f"{len(names)} variables {what}, first {sorted(names)[0]}"
        for what, names in (
            ("are missing", expected - found),
            ("are none of the network's", found - expected),
        )
        if names
    ]
    if problems:
        raise ValueError("; ".join(problems))
