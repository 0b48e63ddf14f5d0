"""Dense maps, region and image features, and text embeddings (sections 3 of the README)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import open_clip
import torch
from torch import Tensor
from torch.nn import functional as F

from ovd_d2.clip.dense import DenseViT, mask_features, roi_features
from ovd_d2.clip.dense.positions import resize_positions
from ovd_d2.golden import INSTANCE, Found, GoldenFolder, Part, difference, relative_difference
from ovd_d2.projects.clipself.golden.weights import golden_teacher, key_file

UNIT, RAW = 2e-6, 2e-5  # tolerances of unit vectors and of others
KEYS, ARCHITECTURE = "eva02_clip_b16", "EVA02-B-16"


class Case(NamedTuple):
    """A file's name, its weights' list of keys, their architecture, its random images' name."""

    name: str
    keys: str
    architecture: str
    image: str


CASES = (
    Case("a_eva_b16", KEYS, ARCHITECTURE, "image"),
    Case("a_ext_nonsquare", KEYS, ARCHITECTURE, "image"),
    Case("a_eva_l14_336", "eva02_clip_l14_336_visual", "EVA02-L-14-336", "image_l14"),
    Case("a_openai_vit_b16", "openai_vit_b16_visual", "ViT-B-16-quickgelu", "image_openai"),
)


def _tower(folder: GoldenFolder, file: str, *, case: Case) -> Found:
    model = DenseViT(golden_teacher(folder, case.keys, case.architecture).visual)
    golden = folder.tensors(file)
    for height, width in _sizes(golden):
        yield from _size(folder, case, model, golden, (height, width))
    if "pos_embed_20x20_c16" in golden:
        yield from _positions(model, golden)


def _sizes(golden: Mapping[str, Tensor]) -> list[tuple[int, int]]:
    """(H, W) of the images whose maps or embeddings are among the tensors."""
    found = set()
    for name in golden:
        if match := re.search(r"(?:dense|cls)_(\d+)(?:x(\d+))?(?:_|$)", name):
            height, width = match.groups()
            found.add((int(height), int(width or height)))
    return sorted(found)


@torch.no_grad()
def _size(
    folder: GoldenFolder,
    case: Case,
    model: DenseViT,
    golden: Mapping[str, Tensor],
    size: tuple[int, int],
) -> Found:
    height, width = size
    drawn = folder.random(f"{case.image}:{height}x{width}", (1, 3, height, width))
    images = torch.from_numpy(drawn.astype("float32"))
    suffix = str(height) if height == width else f"{height}x{width}"
    run = model.run(images, image=True)
    assert run.dense is not None and run.image is not None
    for name, expected in golden.items():
        plain = re.sub(r"_s\d+$", "", name)
        ours: Tensor | None = None
        if plain.endswith(f"dense_{suffix}"):
            step = _step(name, run.dense, expected)
            ours = run.dense[:, :, ::step, ::step]
        elif plain.endswith((f"cls_{suffix}", f"_image_{suffix}")):
            ours, expected = run.image, F.normalize(expected, dim=1)
        elif "roi" in plain and plain.endswith(f"_{suffix}"):
            ours = roi_features(run.dense, [golden["boxes_normalized"]], [(1, 1)])
            ours = F.normalize(ours, dim=1) if "image" in plain else ours
        elif plain == f"mask_pooled_{suffix}":
            ours = mask_features(run.dense[0], golden[f"masks_{suffix}"])
        elif plain == f"mask_attn_pooled_first3_{suffix}":
            masks = golden[f"masks_{suffix}"][:3] > 0
            ours, expected = model.masked_image_features(images, masks), F.normalize(expected)
        if ours is not None:
            yield name, difference(ours, expected), UNIT
    if size == (224, 224):
        yield from _steps(model, golden, images)


def _step(name: str, ours: Tensor, theirs: Tensor) -> int:
    """Of which cells the reference is; some names say it, from others it is left out."""
    if match := re.search(r"_s(\d+)$", name):
        return int(match[1])
    return ours.shape[-1] // theirs.shape[-1]


def _steps(model: DenseViT, golden: Mapping[str, Tensor], images: Tensor) -> Found:
    """Tokens on their way through the blocks of an EVA tower."""
    trunk: Any = model.visual.trunk if hasattr(model.visual, "trunk") else None
    taps = {name: int(match[1]) for name in golden if (match := re.match(r"block(\d+)_", name))}
    run = model.run(images, taps=sorted(set(taps.values())))
    for name, index in taps.items():  # patches alone
        tokens = run.taps[index].flatten(2).transpose(1, 2)[:, ::4, ::16]
        yield name, relative_difference(tokens, golden[name]), RAW
    if "trace_tokens_in_s4c8" not in golden:
        return
    seen: dict[str, Tensor] = {}

    def keep(name: str, tokens: Tensor) -> None:
        seen.setdefault(name, tokens)

    hooks = [
        trunk.blocks[0].register_forward_pre_hook(lambda _, x: keep("tokens_in", x[0])),
        *(
            block.register_forward_hook(lambda *x, k=k: keep(f"block{k}", x[2]))
            for k, block in enumerate(trunk.blocks)
        ),
        trunk.norm.register_forward_pre_hook(lambda _, x: keep("block11_attnfree", x[0])),
        trunk.norm.register_forward_hook(lambda *x: keep("prehead_norm", x[2])),
        trunk.head.register_forward_hook(lambda *x: keep("head", x[2])),
    ]
    model.run(images)
    model.run(images, dense=False, image=True)
    for hook in hooks:
        hook.remove()
    seen["block11_full"] = seen.pop("block11")
    for name, tokens in seen.items():
        if f"trace_{name}_s4c8" in golden:
            apart = relative_difference(tokens[:, ::4, ::8], golden[f"trace_{name}_s4c8"])
            yield f"trace_{name}_s4c8", apart, RAW
    raw = seen["head"][:, 1:].transpose(1, 2).unflatten(2, (14, 14))[:, :, ::2, ::2]
    name = "dense_224_unnormalised_s2"
    yield name, relative_difference(raw, golden[name]), RAW


def _positions(model: DenseViT, golden: Mapping[str, Tensor]) -> Found:
    tower: Any = model.tower
    visual: Any = model.visual
    table = visual.trunk.pos_embed[0]
    resized = torch.cat([table[:1], resize_positions(table[1:], tower.native_grid, (20, 20))])
    name = "pos_embed_20x20_c16"
    yield name, difference(resized[None, :, ::16], golden[name]), UNIT
    for side in (14, 20):
        rotation = tower.rotation((side, side))
        sin, cos = rotation.chunk(2, dim=-1)
        for kind, ours in (("cos", cos), ("sin", sin)):
            name = f"rope_{kind}_{side}x{side}"
            yield name, difference(ours, golden[name]), UNIT


def _text(folder: GoldenFolder, file: str) -> Found:
    teacher, golden = golden_teacher(folder, KEYS, ARCHITECTURE), folder.tensors(file)
    instance = folder.instance["a_text_b16"]
    tokenizer = open_clip.get_tokenizer(ARCHITECTURE)
    yield "tokens", difference(tokenizer(instance["prompts"]), golden["tokens"]), 0.0
    expected = F.normalize(golden["text_embeddings_raw"], dim=1)
    yield (
        "text_embeddings_raw",
        difference(teacher.encode_text(instance["prompts"]), expected),
        UNIT,
    )
    for name, row in zip(instance["class_names"], golden["class_embeddings"], strict=True):
        ids = golden[f"tokens_class.{name}"]
        sentences = [_sentence(one.tolist()) for one in ids]
        apart = difference(tokenizer(sentences)[:, : ids.shape[1]], ids)
        yield f"tokens_class.{name}", apart, 0.0
        mean = F.normalize(teacher.encode_text(sentences).mean(dim=0), dim=0)
        yield f"class_embeddings {name}", difference(mean, row), UNIT


def _sentence(ids: list[int]) -> str:
    """The words of a prompt; its wording is the public code's, not this package's."""
    decoded = open_clip.decode(torch.tensor([one for one in ids if one]))
    return decoded.removeprefix("<start_of_text>").removesuffix("<end_of_text>").strip()


PARTS = (
    *(
        Part(
            f"tower {case.name}",
            (f"{case.name}.safetensors", key_file(case.keys), INSTANCE),
            partial(_tower, case=case),
        )
        for case in CASES
    ),
    Part("text tower", ("a_text_b16.safetensors", key_file(KEYS), INSTANCE), _text),
)
