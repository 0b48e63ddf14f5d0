"""Every stage of the networks, and their detections."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ovd_d2.golden import Found, GoldenFolder, Part, difference, unmatched_boxes
from ovd_d2.projects.glip.anchors import grid_anchors
from ovd_d2.projects.glip.golden.networks import network, tiny_network
from ovd_d2.projects.glip.golden.prompts import CHUNKED, VOCABULARY, tokenizer_of
from ovd_d2.projects.glip.golden.weights import key_file, random_image
from ovd_d2.projects.glip.model import LEVELS
from ovd_d2.projects.glip.postprocess import Candidates, select
from ovd_d2.projects.glip.prompts import TokenBatch
from ovd_d2.projects.glip.questions import Question

# Of features and logits: |a - b| <= PLACES + RELATIVE * |b|
PLACES, RELATIVE = 2e-4, 1e-4
SCORE, PIXELS, LOSS = 1e-5, 1e-2, 1e-5  # LOSS: relative
# Name of a case -> its config; of a small one: with fusion or without
WHOLE = {"glip_t": "glip_t", "glip_a": "glip_t_a"}
TINY = {"tiny": True, "tiny_a": False}
BACKBONE_CASE = "glip_t_forward.json"  # the same image
CHUNKED_SIZES = "tiny_train.json"  # the same network
TOKEN_ROWS = (*range(16), 64, 128, 255)  # of the whole networks
TINY_ROWS = range(24)
_INNER = {
    "same": "dyconv1_same",
    "finer": "dyconv2_from_finer",
    "coarser": "dyconv0_from_coarser_before_upsampling",
}


def apart(ours: Tensor, theirs: Tensor) -> tuple[float, float]:
    """Difference and tolerance of the element that comes nearest to its tolerance."""
    if ours.shape != theirs.shape:
        return float("inf"), PLACES
    differences = (ours.double() - theirs).abs().flatten()
    allowed = PLACES + RELATIVE * theirs.double().abs().flatten()
    worst = (differences - allowed).argmax()
    return differences[worst].item(), allowed[worst].item()


def relative(ours: Any, theirs: float) -> float:
    """The difference of two numbers over the second; the first where that is 0."""
    ours = float(torch.as_tensor(ours).detach())
    return abs(ours - theirs) / abs(theirs) if theirs else abs(ours)


class Recorder:
    """What the parts of a network put out, under the golden numbers' names."""

    def __init__(self, model: Any) -> None:
        self.found: dict[str, Any] = {}
        self._hooks = ExitStack()
        self._watch(model.text_encoder, "text.hidden")
        for stage, layer in enumerate(model.backbone.bottom_up.layers, start=2):
            if stage == 2:  # the others' norms are behind it
                self._watch(layer, f"swin.stage{stage}")
        for stage in (3, 4, 5):
            self._watch(model.backbone.bottom_up.get_submodule(f"norm{stage - 2}"), f"swin.{stage}")
        place = 0
        for block in model.head.tower:
            for part in (block.fusion, block.language, block.dyconv):
                if part is not None:
                    self._watch(part, f"tower.{place}")
                    place += 1
        self._watch_inside(model.head.tower[0].dyconv)

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: Any) -> None:
        self._hooks.close()

    def _watch(self, part: nn.Module, name: str) -> None:
        def keep(_: nn.Module, inputs: Any, output: Any) -> None:
            self.found[name] = output

        self._hooks.callback(part.register_forward_hook(keep).remove)

    def _watch_inside(self, dyconv: Any) -> None:
        """Each part runs once per level that has it, finest first."""

        def keep(name: str, value: Tensor) -> None:
            self.found.setdefault(name, []).append(value)

        for attribute, name in {**_INNER, "offsets_and_mask": "offset_mask"}.items():
            part = dyconv.get_submodule(attribute)
            hook = part.register_forward_hook(lambda _m, _i, out, name=name: keep(name, out))
            self._hooks.callback(hook.remove)
        hook = dyconv.dynamic_relu.register_forward_pre_hook(
            lambda _m, inputs: keep("before_dyrelu", inputs[0])
        )
        self._hooks.callback(hook.remove)

    def tensors(self, sizes: list[tuple[int, int]]) -> dict[str, Tensor]:
        """By name; `sizes` are (h, w) of stages 3, 4 and 5."""
        named: dict[str, Tensor] = {}
        for name, value in self.found.items():
            if name == "swin.stage2":
                out, height, width = value[:3]
                named[name] = out.transpose(1, 2).unflatten(2, (height, width))
            elif name.startswith("swin."):
                size = sizes[int(name[-1]) - 3]
                named[f"swin.stage{name[-1]}"] = value.transpose(1, 2).unflatten(2, size)
            elif name.startswith("tower."):
                named |= _of_part(name, value)
            elif isinstance(value, list):
                first = 4 if "finer" in name else 3
                named |= {f"inner.{name}.p{k}": one for k, one in enumerate(value, first)}
            else:
                named[name] = value
        return named


def _of_part(name: str, value: Any) -> dict[str, Tensor]:
    if isinstance(value, Tensor):
        return {f"{name}.text": value}
    levels, text = value if isinstance(value, tuple) else (value, None)
    named = {f"{name}.visual.{level}": one for level, one in zip(LEVELS, levels, strict=True)}
    return named if text is None else {**named, f"{name}.text": text}


@torch.no_grad()
def run(model: Any, inputs: list[dict[str, Any]], tokens: TokenBatch) -> dict[str, Tensor]:
    """All stages of a batch by name."""
    images = model.preprocess(inputs).tensor
    height, width = images.shape[2:]
    with Recorder(model) as recorder:
        maps = model.backbone(images)
        text = model.text_encoder(tokens.ids, tokens.mask)
        outputs = model.head([maps[level] for level in LEVELS], text, tokens.mask)
    sizes = [(height // stride, width // stride) for stride in (8, 16, 32)]
    named = {"input": images, **recorder.tensors(sizes)}
    named |= {f"fpn.{level}": maps[level] for level in LEVELS}
    named["text.embedded"] = text * tokens.mask[:, :, None]
    anchors = grid_anchors(outputs.sizes)
    for place, level in enumerate(LEVELS):
        size = outputs.sizes[place]
        named[f"head.logits.{level}"] = outputs.logits[place]
        named[f"head.bbox.{level}"] = outputs.deltas[place].transpose(1, 2).unflatten(2, size)
        named[f"head.centerness.{level}"] = outputs.centerness[place].unflatten(1, size)[:, None]
        named[f"anchors.{level}"] = anchors[place]
    return named


def record(name: str, height: int, width: int, salt: str) -> dict[str, Any]:
    """An input of a random image."""
    rgb = torch.from_numpy(random_image(name, height, width, salt))
    return {"image": rgb.flip(2).permute(2, 0, 1).contiguous()}


def token_map(labels: Mapping[str, list[int]], length: int) -> Tensor:
    """(C, L) shares, of the JSON's label -> tokens."""
    positives = torch.zeros(len(labels), length)
    for row, places in zip(positives, labels.values(), strict=True):
        row[places] = 1 / len(places)
    return positives


def _batch(golden: Mapping[str, Tensor]) -> TokenBatch:
    return TokenBatch(golden["text.input_ids"].long(), golden["text.attention_mask"].bool())


def _whole(folder: GoldenFolder, file: str, *, name: str, config: str) -> Found:
    case, golden = folder.json(f"{name}_forward.json"), folder.tensors(file)
    model = network(folder, config, name, case["salt"])
    height, width = case["image_hw"]
    one = record("input.image", height, width, case["salt"])
    yield "input.rgb_uint8", difference(_rgb(one)[::8, ::8], golden["input.rgb_uint8"]), 0.0
    named = run(model, [one], _batch(golden))
    yield from _stages(named, golden, TOKEN_ROWS, _sampled)
    positives = token_map(case["label_to_tokens"], 256)
    yield "text.positive_map", difference(positives, golden["text.positive_map"]), 1e-5
    yield from _detections(model, one, golden, "det", positives)


def _backbone(folder: GoldenFolder, file: str) -> Found:
    case, golden = folder.json(BACKBONE_CASE), folder.tensors(file)
    model = network(folder, "glip_l", "glip_l", case["salt"])
    height, width = case["image_hw"]
    images = model.preprocess([record("input.image", height, width, case["salt"])]).tensor
    with Recorder(model) as recorder, torch.no_grad():
        maps = model.backbone(images)
    sizes = [(height // stride, width // stride) for stride in (8, 16, 32)]
    named = recorder.tensors(sizes) | {f"fpn.{level}": maps[level] for level in LEVELS}
    yield from _stages(named, golden, TOKEN_ROWS, _sampled)


def _tiny(folder: GoldenFolder, file: str, *, name: str, fused: bool) -> Found:
    case, golden = folder.json(f"{name}_train.json"), folder.tensors(file)
    model = tiny_network(folder, case, fused)
    inputs = tiny_inputs(case)
    for row, one in enumerate(inputs):
        if (key := f"input.rgb{row}") in golden:  # a small copy may lack large tensors
            yield key, difference(_rgb(one), golden[key]), 0.0
    named = run(model, inputs, _batch(golden))
    yield from _stages(named, golden, TINY_ROWS, lambda _, ours, __: ours)
    for key in [key for key in golden if key.endswith("_pad255")]:
        yield key, *apart(named[key.removesuffix("_pad255")][:, 255], golden[key])
    positives = token_map(case["inference_label_to_tokens"], 256)
    for row, one in enumerate(inputs):
        ids = golden["text.input_ids"][row : row + 1][golden["text.attention_mask"][row][None] > 0]
        yield from _detections(model, one, golden, f"det{row}", positives, ids.long())


def tiny_inputs(case: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The images of the small cases."""
    return [
        record(f"input.image{row}", height, width, case["salt"])
        for row, (height, width) in enumerate(case["image_hw"])
    ]


def _chunked(folder: GoldenFolder, file: str) -> Found:
    """The public result is the concatenation of the chunks'."""
    golden, case = folder.tensors(file), folder.json(CHUNKED)
    sizes = folder.json(CHUNKED_SIZES)
    model = tiny_network(folder, sizes, True)
    height, width = case["image_hw"]
    one = record(case["image_name"], height, width, sizes["salt"])
    tokenizer = tokenizer_of(folder)
    original = case["original_hw"]
    scale = torch.tensor([original[1] / width, original[0] / height]).repeat(2)
    selection = replace(model.selection, limit=case["detections_per_chunk_limit"])
    for number, (query, tokens) in enumerate(
        zip(case["queries"], case["label_to_tokens"], strict=True)
    ):
        ids = torch.tensor(tokenizer.encode(query).ids)
        labels = torch.tensor([int(label) for label in tokens])
        question = Question(ids, token_map(tokens, len(ids)), labels)
        with torch.no_grad():
            parts = model._candidates(model.encode(one), [question], selection)
        found = select(parts, (height, width), selection)
        found = replace(found, boxes=found.boxes * scale)
        yield from detections_apart(found, golden, f"chunk{number}")


def _stages(
    named: Mapping[str, Tensor], golden: Mapping[str, Tensor], rows: Any, sampled: Any
) -> Found:
    """All of the golden tensors that have a counterpart, in the file's order."""
    rows = list(rows)
    for key, theirs in golden.items():
        ours = named.get(_own_name(key))
        if ours is None:
            continue
        if "text" in key:
            ours = ours[:, rows, :: ours.shape[2] // theirs.shape[2]]
        elif "logits" in key:
            ours = ours[:, :, rows if len(rows) == theirs.shape[2] else [*rows, 255]]
        elif ours.ndim == 4:
            ours = sampled(key, ours, theirs)
        yield key, *apart(ours, theirs)


def _own_name(key: str) -> str:
    if key in ("input.normalized", "input.batch"):
        return "input"
    if key.startswith("first_dyconv."):
        return "inner." + key.removeprefix("first_dyconv.")
    return "inner." + key.partition(".inner.")[2] if ".inner." in key else key


def _sampled(key: str, ours: Tensor, theirs: Tensor) -> Tensor:
    """Every n-th channel, row and column, as the reference has them."""
    if key.startswith(("head.", "first_dyconv")):
        channels = 1
    else:
        channels = max(1, ours.shape[1] // theirs.shape[1])
    step = -(-ours.shape[2] // theirs.shape[2])
    return ours[:, ::channels, ::step, ::step]


def _rgb(one: Mapping[str, Any]) -> Tensor:
    return one["image"].permute(1, 2, 0).flip(2)


@torch.no_grad()
def _detections(
    model: Any,
    one: Mapping[str, Any],
    golden: Mapping[str, Tensor],
    name: str,
    positives: Tensor,
    ids: Tensor | None = None,
) -> Found:
    if ids is None:
        ids = golden["text.input_ids"][golden["text.attention_mask"] > 0].long()
    labels = torch.arange(len(positives)) + 1  # theirs begin with 1
    found = detected(model, one, Question(ids, positives[:, : len(ids)], labels))
    yield from detections_apart(found, golden, name)


def detected(model: Any, one: Mapping[str, Any], question: Question) -> Candidates:
    """Of one image and caption, in pixels of the network's input."""
    parts = model._candidates(model.encode(one), [question], model.selection)
    height, width = one["image"].shape[1:]
    return select(parts, (height, width), model.selection)


def detections_apart(found: Candidates, golden: Mapping[str, Tensor], name: str) -> Found:
    """Labels, boxes and scores, matched by label and box."""
    boxes, labels = golden[f"{name}.boxes"], golden[f"{name}.labels"].long()
    scores = golden[f"{name}.scores"]
    yield f"{name}, count", abs(len(found.labels) - len(labels)), 0
    classes = (found.labels, labels)
    yield f"{name}.boxes, not found", unmatched_boxes(found.boxes, boxes, classes, PIXELS), 0
    distances = torch.cdist(boxes.double(), found.boxes.double(), p=float("inf"))
    distances[labels[:, None] != found.labels[None]] = torch.inf
    partners = distances.argmin(dim=1)
    yield f"{name}.scores", difference(found.scores[partners], scores), SCORE


def _forward(name: str, sizes: str, compare: Callable[[GoldenFolder, str], Found]) -> Part:
    """Of a whole network; `sizes` is the file that describes its images and captions."""
    files = (f"{name}_forward.safetensors", sizes, key_file(name))
    return Part(f"forward of {name}", files, compare)


PARTS = (
    *(
        _forward(name, f"{name}_forward.json", partial(_whole, name=name, config=config))
        for name, config in WHOLE.items()
    ),
    Part(
        "backbone of glip_l",
        ("glip_l_backbone.safetensors", BACKBONE_CASE, key_file("glip_l")),
        _backbone,
    ),
    *(
        _forward(name, f"{name}_train.json", partial(_tiny, name=name, fused=fused))
        for name, fused in TINY.items()
    ),
    Part(
        "forward in chunks",
        ("tiny_chunked.safetensors", CHUNKED, CHUNKED_SIZES, VOCABULARY, key_file("tiny")),
        _chunked,
    ),
)
