"""Exported detectors in onnxruntime, float32 and int8, over PyTorch's eager mode, on the CPU.

A stage is what a network that ends with it takes longer than one that ends before it. All take
turns in one run on the same image; times are medians over the rounds, of the process on the
processor. Weights are random, under a fixed seed, so that every image gives as many detections as
may be given.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import onnx
import onnxruntime
import torch
from detectron2.modeling import build_model
from detectron2.utils.env import seed_all_rng
from torch import Tensor, nn

from benchmarks import fvit, glip
from benchmarks.documents import Document, origin, table
from benchmarks.end_to_end import PICTOGRAMS, RESNET_50
from benchmarks.probe import on_cpu, set_meaningless_vocabulary
from benchmarks.speed import Row, Timed, operations_of, time_alternately
from ovd_d2.engine.run import load_config
from ovd_d2.export.batches import IMAGE, IMAGES, over_batch
from ovd_d2.export.detector import arrays_of, vocabulary_of
from ovd_d2.export.network import Network, rcnn_network
from ovd_d2.export.quantization import quantized
from ovd_d2.export.tracing import trace_one, word_infos
from ovd_d2.projects.glip.export import glip_network
from ovd_d2.projects.glip.postprocess import Selection

FORMS = EAGER, FLOAT, INT8 = "eager", "float32", "int8"
WHOLE = "whole"
TOKENS, NAMES = 128, 40  # of GLIP's one caption


@dataclass(frozen=True)
class Stages:
    """A detector with random weights.

    Attributes:
        networks: what ends with each stage; the last one is whole.
        words: what it is asked for.
        eager: the same as the last network, in PyTorch's way.
    """

    networks: Mapping[str, Network]
    words: Mapping[str, Tensor]
    eager: Callable[[Tensor], Any]


@dataclass(frozen=True)
class Case:
    """What is measured.

    Attributes:
        title: of the rows.
        build: makes the detector.
        size: (height, width) of the image, pixels.
        rounds: that are counted.
    """

    title: str
    build: Callable[[], Stages]
    size: tuple[int, int]
    rounds: int


def rcnn_stages(config: str, options: Sequence[str] = ()) -> Stages:
    """Of a two-stage detector with masks, by its config."""
    fixed = ["MODEL.OVD.VOCABULARY", "", "MODEL.WEIGHTS", "", "MODEL.ROI_HEADS.SCORE_THRESH_TEST"]
    cfg = on_cpu(load_config(config, [*fixed, "0.0", *options]))
    seed_all_rng(0)
    model: Any = build_model(cfg).eval()
    set_meaningless_vocabulary(model, cfg)
    whole, without_masks = rcnn_network(model), deepcopy(model)
    without_masks.roi_heads.mask_on = False
    networks = {
        "backbone": _of_image(_Backbone(model), model.backbone.output_shape()),
        "proposals": _of_image(_Proposals(model), ("proposals", "objectness")),
        "boxes": rcnn_network(without_masks),
        "masks": whole,
    }
    words = whole.words_of(vocabulary_of(model))
    return Stages(networks, words, lambda image: whole.module(image, *words.values()))


@torch.no_grad()
def glip_stages(case: glip.Case) -> Stages:
    """Of a GLIP that is asked one caption."""
    model = glip.build(case)
    model.selection = Selection(score_threshold=0.0)
    whole = glip_network(model)
    captions, _, _ = whole.words
    ids = torch.randint(1, 100, (TOKENS,))
    embedded, _ = model.captions([ids])  # kept from now on
    shares = nn.functional.one_hot(torch.arange(TOKENS) % NAMES, NAMES).t().float()
    shares = shares / shares.sum(dim=1, keepdim=True)
    texts = ids[None] if model.head.fused else embedded
    words = {captions: texts, "positives": shares[None], "labels": torch.arange(NAMES)[None]}
    asked = {"tokens": ids, "positive_map": shares}
    levels = _of_image(_Pyramid(whole.module), model.in_features)
    return Stages(
        {"backbone": levels, "tower, selection": whole},
        words,
        lambda image: model([{"image": image, **asked}]),
    )


# Smaller images and fewer proposals than the recipes', so that it takes minutes.
FEWER = ("MODEL.RPN.POST_NMS_TOPK_TEST", "50", "TEST.DETECTIONS_PER_IMAGE", "30")
CASES = {
    "pictograms": Case(
        "ViLD-ensemble, Pictograms", partial(rcnn_stages, PICTOGRAMS[0]), (160, 160), 10
    ),
    "glip": Case("GLIP, small, fusion", partial(glip_stages, glip.CASES[0]), (160, 160), 5),
    "glip-a": Case("GLIP, small, no fusion", partial(glip_stages, glip.CASES[1]), (160, 160), 5),
    "resnet": Case(
        "ViLD-ensemble, ResNet-50", partial(rcnn_stages, RESNET_50[0], FEWER), (320, 480), 3
    ),
    "fvit": Case(
        "F-ViT, EVA02-B-16",
        partial(rcnn_stages, fvit.CONFIG, (*fvit._options(fvit.CASE), *FEWER)),
        (224, 320),
        3,
    ),
}


def measure(cases: Iterable[Case]) -> list[Row]:
    """Of each case a row per stage and one of all."""
    return [row for case in cases for row in _rows(case)]


def _of_image(module: nn.Module, outputs: Sequence[str] | Mapping[str, Any]) -> Network:
    return Network(module.eval(), {}, {}, tuple(outputs), lambda _: {})


class _Backbone(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        images = self.model.preprocess_image([{"image": image}])
        return tuple(self.model.backbone(images.tensor).values())


class _Proposals(_Backbone):
    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        (found,) = self.model.predict_proposals([{"image": image}])
        return found.proposal_boxes.tensor, found.objectness_logits


class _Pyramid(nn.Module):
    def __init__(self, whole: Any) -> None:
        super().__init__()
        self.whole = whole

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        images = self.whole.model.preprocess([{"image": image}])
        maps = self.whole.backbone(images.tensor)
        return tuple(maps[level] for level in self.whole.model.in_features)


@torch.no_grad()
def _rows(case: Case) -> list[Row]:
    built = case.build()
    stages = list(built.networks)
    pixels = torch.randint(0, 256, (3, *case.size), dtype=torch.uint8)
    things, operations = _things(built, pixels)
    seconds = time_alternately(things, case.rounds, case.title, time.process_time)
    spent = {name: statistics.median(rounds) for name, rounds in seconds.items()}
    rows = []
    for before, stage in pairwise(["", *stages, WHOLE]):
        times = {form: spent[f"{stage} {form}"] for form in FORMS}
        own = operations[stage]
        if before and stage != WHOLE:
            times = {form: times[form] - spent[f"{before} {form}"] for form in FORMS}
            own -= operations[before]
        rows.append(
            {
                "name": f"{case.title}, {case.size[0]} x {case.size[1]} px",
                "stage": stage,
                **{form: round(times[form] / times[EAGER], 3) for form in FORMS[1:]},
                "share_of_time": round(times[EAGER] / spent[f"{WHOLE} {EAGER}"], 3),
                "share_of_operations": round(own / operations[WHOLE], 3),
            }
        )
    return rows


def _things(built: Stages, pixels: Tensor) -> tuple[dict[str, Timed], dict[str, int]]:
    """What takes turns, and the operations up to the end of each stage."""
    arrays = {IMAGE: pixels.numpy(), IMAGES: pixels[None].numpy(), **arrays_of(built.words)}
    things: dict[str, Timed] = {}
    operations = {}
    for stage, network in built.networks.items():
        whole = stage == list(built.networks)[-1]
        words = [built.words[name] for name in network.words]
        eager = partial(built.eager, pixels) if whole else partial(network.module, pixels, *words)
        graph = trace_one(network, pixels)
        graphs = {FLOAT: graph, INT8: quantized(graph, [arrays])}
        for end in (stage, WHOLE)[: 1 + whole]:
            operations[end] = operations_of(eager)
            things[f"{end} {EAGER}"] = _ignoring_round(eager)
            for form, one in graphs.items():
                if end == WHOLE:  # as it is written to a file
                    one = over_batch(one, word_infos(network))
                things[f"{end} {form}"] = _in_onnxruntime(one, arrays)
    return things, operations


def _ignoring_round(thing: Callable[[], Any]) -> Timed:
    return lambda _: thing()


def _in_onnxruntime(graph: onnx.ModelProto, arrays: Mapping[str, Any]) -> Timed:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # its threads would wait for their next work while PyTorch has its turn
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3  # errors alone
    session = onnxruntime.InferenceSession(
        graph.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    inputs = {one.name: arrays[one.name] for one in session.get_inputs()}
    return lambda _: session.run(None, inputs)


def table_of(rows: Sequence[Row]) -> str:
    """Markdown."""
    return table(
        rows, name="one image", stage="stage", float32="float32, time over time",
        int8="int8, time over time", share_of_time="share of PyTorch's time",
        share_of_operations="share of operations",
    )  # fmt: skip


def page(document: Document) -> str:
    """docs/results-onnx.md."""
    return f"""# ONNX in numbers

[Exported detectors](export.md) in onnxruntime over the same in PyTorch's eager mode: below 1
onnxruntime is faster. {origin(document)}; numbers:
[results/onnx.json](results/onnx.json). Random weights, one image, on the CPU, as many threads for
either.

A stage is what a network that ends with it takes longer than one that ends before it. All take
turns in one run; times are medians over the rounds, of the process on the processor, so that other
programs do not count. The operations are those of convolutions and matrix products; onnxruntime
has as many, int8 multiplies most of them in a quarter of the bits. Where a stage's share of the
time is above its share of the operations, it is spent on what has none: suppression, pooling,
sorting. "whole" is the network as it is written to a file, for any number of images. What int8
costs in AP: [export.md](export.md#int8).

{table_of(document["rows"])}
{_about_glip(document["rows"])}"""


def _about_glip(rows: Sequence[Row]) -> str:
    if not any(row["name"].startswith("GLIP") for row in rows):
        return ""
    return f"""
GLIP is asked one caption of {TOKENS} tokens and {NAMES} names. With fusion its text encoder is in
the graph, while PyTorch keeps a caption's embeddings from image to image. Its deformable
convolutions are sampled by ONNX's GridSample, in PyTorch by rows of a table.
"""
