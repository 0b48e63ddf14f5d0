"""What GLIP takes for LVIS's 1,203 names, on the CPU, beside a whole pass per chunk of 40 names.

The public code's evaluation runs the whole network for each of 31 chunks, its captions padded to
256 tokens. Both take turns in one run on the same model; ratios are medians over the rounds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from detectron2.modeling import build_model
from tabulate import tabulate
from torch import Tensor
from torchvision.ops import deform_conv2d

from benchmarks.documents import Document, origin, table
from benchmarks.speed import Row, operations_of, ratio_of, time_alternately
from ovd_d2.data.categories import get_categories
from ovd_d2.engine.run import load_config
from ovd_d2.pipeline.pipeline import repository_root
from ovd_d2.projects.glip import deformable
from ovd_d2.projects.glip.anchors import grid_anchors
from ovd_d2.projects.glip.clamping import clamped
from ovd_d2.projects.glip.fusion import Fusion
from ovd_d2.projects.glip.model import GLIP, LEVELS
from ovd_d2.projects.glip.postprocess import candidates, select
from ovd_d2.projects.glip.prompts import MAX_TOKENS, load_tokenizer, token_batch
from ovd_d2.projects.glip.prompts.chunks import chunks_by_count, chunks_by_length
from ovd_d2.projects.glip.questions import Question, question_of

NAMES = "lvis_v1_val"
ROUNDS = 2
WHOLE_PASSES = 2  # that are timed: they cost the same, whatever their names
FULL_SIZE = (800, 1333)
# A network of Pictograms' size.
SMALL = (
    *("MODEL.GLIP.SWIN.EMBED_DIM", 24, "MODEL.GLIP.SWIN.DEPTHS", (1, 1, 2, 1)),
    *("MODEL.GLIP.SWIN.NUM_HEADS", (1, 2, 4, 8), "MODEL.FPN.OUT_CHANNELS", 64),
    *("MODEL.GLIP.BLOCKS", 2, "MODEL.GLIP.FUSION_DIM", 256, "MODEL.GLIP.FUSION_HEADS", 4),
    *("MODEL.GLIP.BERT.WIDTH", 96, "MODEL.GLIP.BERT.HIDDEN", 192),
    *("MODEL.GLIP.BERT.LAYERS", 2, "MODEL.GLIP.BERT.HEADS", 4),
)


@dataclass(frozen=True)
class Case:
    """A network with random weights.

    Attributes:
        name: for the table.
        config: of projects/GLIP/configs.
        size: (height, width) of the image in pixels.
        options: of the config.
    """

    name: str
    config: str
    size: tuple[int, int]
    options: tuple[Any, ...] = ()


CASES = (
    Case("small, fusion", "glip_t", (160, 160), SMALL),
    Case("small, no fusion", "glip_t_a", (160, 160), SMALL),
    Case("GLIP-T", "glip_t", (320, 544)),
    Case("GLIP-T (A), no fusion", "glip_t_a", (320, 544)),
)


Questions = list[Question]


def questions(tokenizer: str) -> tuple[Questions, Questions]:
    """The names 40 by 40, as the public code asks for them, and as many as fit into a caption.

    Args:
        tokenizer: see :func:`ovd_d2.projects.glip.prompts.load_tokenizer`; BERT's for what the
            page says.
    """
    names, words = get_categories(NAMES).names, load_tokenizer(tokenizer)
    return (
        [question_of(one) for one in chunks_by_count(names, words)],
        [question_of(one) for one in chunks_by_length(names, words)],
    )


def measure(
    forties: Questions, packed: Questions, cases: Sequence[Case] = CASES, rounds: int = ROUNDS
) -> list[Row]:
    """A row per case, and of each a row of operations per step from the public way to ours.

    Args:
        forties, packed: of :func:`questions`.
        cases: networks and sizes.
        rounds: that are counted.
    """
    rows = []
    for case in cases:
        model = build(case)
        rows.append(_row(case, model, forties, packed, rounds))
        rows += _steps(case, model, forties, packed)
    return rows


def build(case: Case) -> GLIP:
    """Its network, in eval mode."""
    path = repository_root() / "projects" / "GLIP" / "configs" / f"{case.config}.yaml"
    own = ("MODEL.GLIP.BERT.PRETRAINED", "", "MODEL.DEVICE", "cpu")
    torch.manual_seed(0)
    model: Any = build_model(load_config(str(path), [*own, *case.options]))
    return model.eval()


def _row(case: Case, model: GLIP, forties: Questions, packed: Questions, rounds: int) -> Row:
    pixels = torch.randint(0, 256, (3, *case.size), dtype=torch.uint8)
    inputs = {"image": pixels, "height": case.size[0], "width": case.size[1]}
    things: dict[str, Callable[[], Any]] = {
        "public": partial(whole_passes, model, inputs, forties[:WHOLE_PASSES]),
        "here": torch.no_grad()(partial(model._detect, inputs, packed)),
    }
    model.captions([one.ids for one in packed])  # kept, as for every image but the first
    operations: dict[str, int] = {}

    def timed(name: str, number: int) -> None:
        """The first round, whose time is not taken, counts."""
        if number:
            things[name]()
        else:
            operations[name] = operations_of(things[name])

    seconds = time_alternately({name: partial(timed, name) for name in things}, rounds, case.name)
    passes = len(forties) / WHOLE_PASSES
    return {
        "name": case.name,
        "size": f"{case.size[0]} x {case.size[1]}",
        "whole_passes": len(forties),
        "captions": len(packed),
        "times_faster": round(passes * ratio_of(seconds, "public", "here"), 2),
        "times_fewer_operations": round(passes * operations["public"] / operations["here"], 2),
    }


@torch.no_grad()
def whole_passes(model: GLIP, inputs: dict[str, Any], questions: Sequence[Question]) -> None:
    """The public code's way: everything anew for each caption, of 256 tokens."""
    with as_published():
        for question in questions:
            images = model.preprocess([inputs])
            tokens = token_batch([question.ids], length=MAX_TOKENS)
            outputs = model.network(images.tensor, tokens)
            asked = (grid_anchors(outputs.sizes), question.positives, question.labels)
            found = candidates(outputs, 0, *asked, model.selection)
            select([found], images.image_sizes[0], model.selection)


def attend_by_definition(
    fusion: Fusion, image: Tensor, text: Tensor, mask: Tensor
) -> tuple[Tensor, Tensor]:
    """`Fusion.attend` as the paper writes it (section 3.3): every location is projected."""

    def heads(values: Tensor) -> Tensor:  # (N, K, H x D) -> (N, H, K, D)
        return values.unflatten(2, (fusion.heads, -1)).transpose(1, 2)

    def read(weights: Tensor, values: Tensor) -> Tensor:
        return (fusion.dropout(weights) @ heads(values)).transpose(1, 2).flatten(2)

    query, key = heads(fusion.image_query(image) * fusion.scale), heads(fusion.text_key(text))
    scores = clamped(query @ key.transpose(2, 3))  # (N, H, P, L)
    smallest = torch.finfo(scores.dtype).min
    over_tokens = scores.masked_fill(~mask[:, None, None], smallest).softmax(dim=-1)
    scores = scores.transpose(2, 3)
    over_places = clamped(scores - scores.amax(dim=-1, keepdim=True)).softmax(dim=-1)
    found = read(over_tokens, fusion.text_values(text))
    seen = read(over_places, fusion.image_values(image))
    return fusion.image_output(found), fusion.text_output(seen)


@contextmanager
def as_published() -> Any:
    """Fusion by its definition, deformable convolutions by torchvision."""

    def convolve(*inputs: Any) -> Tensor:
        image, offsets, mask, weight, bias, stride = inputs
        return deform_conv2d(image, offsets, weight, bias, stride, padding=1, mask=mask)

    with (
        patch.object(Fusion, "attend", attend_by_definition),
        patch.object(deformable, "_by_rows", convolve),
    ):
        yield


@torch.no_grad()
def _steps(case: Case, model: GLIP, forties: Questions, packed: Questions) -> list[Row]:
    """How many times fewer operations after each step from the public way to ours, at full size.

    Args:
        case: of the model.
        model: that network.
        forties, packed: the names.
    """
    tokens = torch.zeros(1, MAX_TOKENS, dtype=torch.int64)
    text_encoder = operations_of(partial(model.text_encoder, tokens, tokens == 0))
    stride = model.backbone.size_divisibility
    padded = [-(-side // stride) * stride for side in FULL_SIZE]
    count, length, most = len(forties), _mean_length(forties), _mean_length(packed)
    shapes = deepcopy(model).to("meta")  # no numbers
    with patch.object(torch, "autocast", lambda *_, **__: nullcontext()):  # "meta" has none
        image = torch.empty(1, 3, *padded, device="meta")
        maps = shapes.backbone(image)
        pyramid = operations_of(partial(shapes.backbone, image))
        tower = partial(_tower_operations, shapes, [maps[level] for level in LEVELS])
        with as_published():
            (first, more), cut_tower = tower(MAX_TOKENS), tower(length)
        folded_tower, filled_tower = tower(length), tower(most)
    public = count * (pyramid + text_encoder + first)

    def whole(tower: tuple[int, int], captions: int) -> int:
        return pyramid + tower[0] + (captions - 1) * tower[1]

    steps = {
        "pyramid once, embeddings of text kept": whole((first, more), count),
        "and captions as long as they are": whole(cut_tower, count),
        "and the fusion's projections folded": whole(folded_tower, count),
        "and captions filled with names": whole(filled_tower, len(packed)),
    }
    return [
        {"network": case.name, "step": name, "times_fewer": round(public / one, 2)}
        for name, one in steps.items()
    ]


def _tower_operations(model: GLIP, levels: Sequence[Tensor], length: int) -> tuple[int, int]:
    """Of an image's first caption of this length, and of each that follows; all on "meta"."""
    text = torch.empty(1, length, model.text_encoder.width, device="meta")
    caption = (text, torch.empty(1, length, dtype=torch.bool, device="meta"))

    def answer(number: int) -> None:
        for _ in model.head.answers(model.head.seen(levels), [caption] * number):
            pass

    first, both = (operations_of(partial(answer, number)) for number in (1, 2))
    return first, both - first


def _mean_length(questions: Questions) -> int:
    return round(sum(len(one.ids) for one in questions) / len(questions))


def page(document: Document) -> str:
    """The whole page, from what was measured."""
    rows = document["rows"]
    return f"""# GLIP in numbers

{origin(document)}; numbers:
[results/glip.json](results/glip.json). Random weights, one image, on the CPU. Operations are those
of convolutions and matrix products.

## LVIS's 1,203 names

The public code runs the whole network, text encoder included, for 40 names at a time, and pads
each of the captions to {MAX_TOKENS} tokens. Here the pyramid is made once per image, embeddings of
text are kept from image to image, captions are filled with names up to {MAX_TOKENS} tokens, fusion
multiplies no location with its projections, and deformable convolutions on the CPU gather all
channels of a location at once. Both take turns on the same model; a ratio is the median over the
rounds. Of the whole passes {WHOLE_PASSES} are timed, since all cost the same.

{measured_table(rows)}

Operations at {FULL_SIZE[0]} x {FULL_SIZE[1]} px, by step:

{steps_table(rows)}
"""


def measured_table(rows: Sequence[Row]) -> str:
    """Times of whole passes over ours, in Markdown."""
    heads = {
        "name": "network",
        "size": "image, px",
        "whole_passes": "whole passes",
        "captions": "captions here",
        "times_faster": "times faster",
        "times_fewer_operations": "times fewer operations",
    }
    return table(rows, **heads)


def steps_table(rows: Sequence[Row]) -> str:
    """A row per step, a column per network, in Markdown."""
    rows = [row for row in rows if "step" in row]
    networks = list(dict.fromkeys(row["network"] for row in rows))
    steps = list(dict.fromkeys(row["step"] for row in rows))
    found = {(row["network"], row["step"]): row["times_fewer"] for row in rows}
    body = [[step, *(found[network, step] for network in networks)] for step in steps]
    return tabulate(body, ["times fewer operations", *networks], tablefmt="pipe")
