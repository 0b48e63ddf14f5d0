"""How the families of open_clip's ViT image towers compute, step by step.

A dense map needs the steps that a tower's own `forward` hides: positions for another grid, a last
block without attention, attention within windows. Each family says where its parts are; what is
done with them is in :mod:`ovd_d2.clip.dense.vit`, once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from timm.layers import apply_rot_embed_cat, build_fourier_pos_embed
from timm.models.eva import Eva, EvaBlock
from torch import Tensor, nn
from torch.nn import functional as F

Layer = Callable[[Tensor], Tensor]


class Block(NamedTuple):
    """A pre-norm transformer block taken apart; tokens are (B, 1 + h * w, W).

    Attributes:
        norm1, norm2, mlp: modules.
        scale1, scale2: what attention and MLP go through before they are added.
        qkv: normed tokens -> query, key, value, each (B, heads, 1 + h * w, d).
        value: normed tokens -> value alone, before it is cut into heads (B, 1 + h * w, W).
        out: attended values (B, 1 + h * w, W) -> tokens.
    """

    norm1: Layer
    qkv: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]
    value: Layer
    out: Layer
    scale1: Layer
    norm2: Layer
    mlp: Layer
    scale2: Layer


class Tower(ABC):
    """One family's image tower, with a CLS token.

    Attributes:
        patch_size: pixels per side.
        native_grid: (h, w) of the size it was trained at.
        width: W of its tokens.
        embedding_dim: D.
    """

    patch_size: int
    native_grid: tuple[int, int]
    width: int
    embedding_dim: int
    blocks: Sequence[nn.Module]

    @abstractmethod
    def embed(self, images: Tensor, positions: Callable[[Tensor], Tensor]) -> Tensor:
        """(B, 3, H, W) -> tokens that enter the first block; `positions` resizes patches' ones."""

    @abstractmethod
    def rotation(self, grid: tuple[int, int]) -> Tensor | None:
        """What turns queries and keys on a grid; None for a family without."""

    @abstractmethod
    def whole(self, index: int, rotation: Tensor | None) -> Layer:
        """A block as the library runs it."""

    @abstractmethod
    def parts(self, index: int, rotation: Tensor | None) -> Block:
        """A block taken apart."""

    @abstractmethod
    def project(self, tokens: Tensor) -> Tensor:
        """Tokens after the last block -> (B, 1 + h * w, D)."""

    @property
    @abstractmethod
    def checkpoints_gradients(self) -> bool:
        """Whether `set_grad_checkpointing` was called."""

    @abstractmethod
    def trained(self) -> set[str]:
        """Names of the parameters, below the tower, that a dense map learns from: those of the
        blocks, but for query and key of the last one."""


class EvaTower(Tower):
    """EVA02-CLIP: timm's `Eva` inside open_clip's `TimmModel`."""

    def __init__(self, visual: Any) -> None:
        trunk: Any = visual.trunk
        problems = _eva_problems(visual, trunk)
        if problems:
            raise ValueError("no dense features of this timm network: " + ", ".join(problems))
        self._trunk = trunk
        self.blocks = list(trunk.blocks)
        self.patch_size = trunk.patch_embed.patch_size[0]
        self.native_grid = tuple(trunk.patch_embed.grid_size)
        self.width = trunk.embed_dim
        self.embedding_dim = trunk.head.out_features

    def embed(self, images: Tensor, positions: Callable[[Tensor], Tensor]) -> Tensor:
        trunk = self._trunk
        # not `patch_embed` itself, which wants images of the native size
        patches = trunk.patch_embed.norm(trunk.patch_embed.proj(images).flatten(2).transpose(1, 2))
        cls = (trunk.cls_token + trunk.pos_embed[:, :1]).expand(len(images), -1, -1)
        patches = patches + positions(trunk.pos_embed[0, 1:])
        return trunk.norm_pre(torch.cat([cls.to(patches.dtype), patches], dim=1))

    def rotation(self, grid: tuple[int, int]) -> Tensor | None:
        rope = self._trunk.rope
        if rope is None:
            return None
        # The trunk's own has a table of the native grid alone.
        parts = build_fourier_pos_embed(
            list(grid),
            num_bands=rope.dim // 4,
            temperature=rope.temperature,
            in_pixels=False,
            ref_feat_shape=rope.ref_feat_shape,
            device=self._trunk.pos_embed.device,
        )
        # Each value twice. Not by `repeat_interleave`, as timm: PyTorch 2.11's exporter adds to its
        # negative dimension in place, and with it to every other -1 of the graph.
        twice = [torch.stack([one, one], dim=-1).flatten(2).flatten(0, 1) for one in parts]
        return torch.cat(twice, dim=-1)

    def whole(self, index: int, rotation: Tensor | None) -> Layer:
        block = self.blocks[index]
        return lambda tokens: block(tokens, rope=rotation)

    def parts(self, index: int, rotation: Tensor | None) -> Block:
        block: Any = self.blocks[index]
        attention = block.attn

        def qkv(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            heads = attention.num_heads
            query = _rotated(attention.q_norm(_by_head(attention.q_proj(x), heads)), rotation)
            key = _rotated(attention.k_norm(_by_head(attention.k_proj(x), heads)), rotation)
            value = _by_head(attention.v_proj(x), heads)
            return query.type_as(value), key.type_as(value), value

        return Block(
            norm1=block.norm1,
            qkv=qkv,
            value=attention.v_proj,
            out=lambda x: attention.proj(attention.norm(x)),
            scale1=_scaled(block.gamma_1),
            norm2=block.norm2,
            mlp=block.mlp,
            scale2=_scaled(block.gamma_2),
        )

    def project(self, tokens: Tensor) -> Tensor:
        return self._trunk.head(self._trunk.fc_norm(self._trunk.norm(tokens)))

    @property
    def checkpoints_gradients(self) -> bool:
        return bool(self._trunk.grad_checkpointing)

    def trained(self) -> set[str]:
        last = f"trunk.blocks.{len(self.blocks) - 1}.attn."
        names = {f"trunk.{name}" for name, _ in self._trunk.named_parameters()}
        idle = (f"{last}q_proj.", f"{last}k_proj.")
        return {n for n in names if n.startswith("trunk.blocks.") and not n.startswith(idle)}


class NativeTower(Tower):
    """OpenAI's and OpenCLIP's ViTs: open_clip's own `VisionTransformer`."""

    def __init__(self, visual: Any) -> None:
        problems = _native_problems(visual)
        if problems:
            raise ValueError("no dense features of this ViT: " + ", ".join(problems))
        self._visual = visual
        self.blocks = list(visual.transformer.resblocks)
        self.patch_size = visual.patch_size[0]
        self.native_grid = tuple(visual.grid_size)
        self.width = visual.conv1.out_channels
        self.embedding_dim = visual.proj.shape[1]

    def embed(self, images: Tensor, positions: Callable[[Tensor], Tensor]) -> Tensor:
        visual = self._visual
        patches = visual.conv1(images).flatten(2).transpose(1, 2)
        table = visual.positional_embedding.to(patches.dtype)
        cls = (visual.class_embedding.to(patches.dtype) + table[0]).expand(len(images), 1, -1)
        return visual.ln_pre(torch.cat([cls, patches + positions(table[1:])], dim=1))

    def rotation(self, grid: tuple[int, int]) -> Tensor | None:
        return None

    def whole(self, index: int, rotation: Tensor | None) -> Layer:
        return self.blocks[index]

    def parts(self, index: int, rotation: Tensor | None) -> Block:
        block: Any = self.blocks[index]
        attention = block.attn
        weight, bias = attention.in_proj_weight, attention.in_proj_bias
        width, heads = self.width, attention.num_heads

        def qkv(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            query, key, value = F.linear(x, weight, bias).chunk(3, dim=-1)
            return _by_head(query, heads), _by_head(key, heads), _by_head(value, heads)

        return Block(
            norm1=block.ln_1,
            qkv=qkv,
            value=lambda x: F.linear(x, weight[2 * width :], bias[2 * width :]),
            out=attention.out_proj,
            scale1=block.ls_1,
            norm2=block.ln_2,
            mlp=block.mlp,
            scale2=block.ls_2,
        )

    def project(self, tokens: Tensor) -> Tensor:
        return self._visual.ln_post(tokens) @ self._visual.proj

    @property
    def checkpoints_gradients(self) -> bool:
        return bool(self._visual.transformer.grad_checkpointing)

    def trained(self) -> set[str]:
        # query and key of the last block share a parameter with its value
        names = {name for name, _ in self._visual.named_parameters()}
        return {name for name in names if name.startswith("transformer.resblocks.")}


def tower_of(visual: nn.Module) -> Tower:
    """The family of an open_clip model's `visual`.

    Raises:
        ValueError: it is no ViT with a CLS token of a known family.
    """
    if isinstance(getattr(visual, "trunk", None), Eva):
        return EvaTower(visual)
    if hasattr(visual, "transformer") and hasattr(visual, "class_embedding"):
        return NativeTower(visual)
    inner = type(getattr(visual, "trunk", visual)).__name__
    raise ValueError(
        f"dense features are those of a ViT with a CLS token (open_clip's own, e.g. ViT-B-16, or "
        f"EVA02), not of a {inner}: name another architecture"
    )


def _eva_problems(visual: Any, trunk: Any) -> list[str]:
    first = trunk.blocks[0]
    checks = {
        "it has no CLS token of its own": trunk.num_prefix_tokens == 1 and not trunk.no_embed_class,
        "it has no position embedding": trunk.pos_embed is not None,
        "it pools by attention or mean": trunk.attn_pool is None and trunk.global_pool == "token",
        "it projects outside of its trunk": len(visual.head) == 0,
        "its blocks are not pre-norm with separate q, k, v": isinstance(first, EvaBlock)
        and getattr(first.attn, "q_proj", None) is not None
        and getattr(first.attn, "gate", None) is None,
        "its rotations are not timm's 'cat'": trunk.rope is None
        or (hasattr(trunk.rope, "ref_feat_shape") and not trunk.rope_mixed),
    }
    return [problem for problem, fine in checks.items() if not fine]


def _native_problems(visual: Any) -> list[str]:
    attention = getattr(visual.transformer.resblocks[0], "attn", None)
    checks = {
        "it pools by attention or mean": visual.attn_pool is None and visual.pool_type == "tok",
        "it has no projection": visual.proj is not None,
        "its attention is not a plain one": hasattr(attention, "in_proj_weight")
        and hasattr(attention, "out_proj")
        and not getattr(attention, "scaled_cosine", False),
    }
    return [problem for problem, fine in checks.items() if not fine]


def _by_head(x: Tensor, heads: int) -> Tensor:
    """(B, N, W) -> (B, heads, N, W / heads)."""
    return x.unflatten(2, (heads, -1)).transpose(1, 2)


def _rotated(x: Tensor, rotation: Tensor | None) -> Tensor:
    """(B, heads, N, d), CLS first and then the patches: these turn."""
    if rotation is None:
        return x
    end = 1 + rotation.shape[0]  # len() would be a constant of a trace
    patches = apply_rot_embed_cat(x[:, :, 1:end], rotation)
    return torch.cat([x[:, :, :1], patches, x[:, :, end:]], dim=2)


def _scaled(factor: Tensor | None) -> Layer:
    return (lambda x: x) if factor is None else (lambda x: factor * x)
