"""Dense maps of both families beside straightforward computations and open_clip's own tokens."""

import open_clip
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ovd_d2.clip.dense import DenseViT
from ovd_d2.clip.dense.positions import resize_positions
from tests.tiny_vits import DEPTH, DIM, EVA, FAMILIES, NATIVE, PATCH, SIDE, random_images, tiny_clip

WITHIN = {"atol": 1e-5, "rtol": 0}


def linear(x, module):
    return x @ module.weight.T + (0 if module.bias is None else module.bias)


def softmax_attention(query, key, value):
    return (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(-1) @ value


def heads(x, count=2):
    return torch.stack(x.chunk(count, dim=-1))  # (heads, N, d)


def rotated(x, grid, reference=3):
    """Pairs of channels turn by row in the first half of a head, by column in the second."""
    rows, columns = torch.meshgrid(*(torch.arange(n) / n * reference for n in grid), indexing="ij")
    frequencies = 1 / 10000 ** (torch.arange(4) / 4)
    angles = torch.cat([p.reshape(-1, 1) * frequencies for p in (rows, columns)], dim=1)  # (N, 8)
    cos, sin = angles.cos(), angles.sin()
    first, second = x[..., 0::2], x[..., 1::2]
    turned = torch.stack([first * cos - second * sin, second * cos + first * sin], dim=-1)
    return turned.flatten(-2)


def native_tokens(model, image):
    """One image -> (1 + h * w, D) of the map, token by token, with CLS first."""
    visual = model.visual
    grid = image.shape[1] // PATCH, image.shape[2] // PATCH
    patches = F.conv2d(image[None], visual.conv1.weight, stride=PATCH)[0].flatten(1).T
    table = resize_positions(visual.positional_embedding[1:], (4, 4), grid)
    cls = visual.class_embedding + visual.positional_embedding[0]
    x = visual.ln_pre(torch.cat([cls[None], patches + table]))
    for k, block in enumerate(visual.transformer.resblocks):
        weight, bias = block.attn.in_proj_weight, block.attn.in_proj_bias
        query, key, value = (block.ln_1(x) @ weight.T + bias).chunk(3, dim=-1)
        attended = value
        if k < DEPTH - 1:
            attended = torch.cat([*softmax_attention(heads(query), heads(key), heads(value))], -1)
        x = x + linear(attended, block.attn.out_proj)
        hidden = F.gelu(linear(block.ln_2(x), block.mlp.c_fc))
        x = x + linear(hidden, block.mlp.c_proj)
    return visual.ln_post(x) @ visual.proj


def eva_tokens(model, image):
    trunk = model.visual.trunk
    grid = image.shape[1] // PATCH, image.shape[2] // PATCH
    weight, bias = trunk.patch_embed.proj.weight, trunk.patch_embed.proj.bias
    patches = F.conv2d(image[None], weight, bias, stride=PATCH)[0].flatten(1).T
    table = resize_positions(trunk.pos_embed[0, 1:], (4, 4), grid)
    x = torch.cat([trunk.cls_token[0] + trunk.pos_embed[0, :1], patches + table])
    for k, block in enumerate(trunk.blocks):
        normed, attention = block.norm1(x), block.attn
        attended = linear(normed, attention.v_proj)
        if k < DEPTH - 1:
            query, key = (heads(linear(normed, p)) for p in (attention.q_proj, attention.k_proj))
            query, key = (
                torch.cat([one[:, :1], rotated(one[:, 1:], grid)], dim=1) for one in (query, key)
            )
            attended = torch.cat([*softmax_attention(query, key, heads(attended))], dim=-1)
        x = x + linear(attention.norm(attended), attention.proj)
        normed, mlp = block.norm2(x), block.mlp
        x = x + linear(
            mlp.norm(F.silu(linear(normed, mlp.fc1_g)) * linear(normed, mlp.fc1_x)), mlp.fc2
        )
    return linear(trunk.norm(x), trunk.head)


STRAIGHTFORWARD = {NATIVE: native_tokens, EVA: eva_tokens}


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture
def model(family):
    return tiny_clip(family)


@pytest.fixture
def dense(model):
    return DenseViT(model.visual)


@torch.no_grad()
@pytest.mark.parametrize("size", [(32, 32), (48, 48), (40, 64), (8, 24)])
def test_a_straightforward_computation(family, model, dense, size):
    images = random_images(2, 3, *size)
    found = dense(images)
    assert found.shape == (2, DIM, size[0] // PATCH, size[1] // PATCH)
    for image, one in zip(images, found, strict=True):
        tokens = STRAIGHTFORWARD[family](model, image)[1:]
        expected = F.normalize(tokens, dim=1).T.reshape(one.shape)
        torch.testing.assert_close(one, expected, **WITHIN)


@torch.no_grad()
def test_with_the_last_attention_cls_is_open_clips_own(model, dense):
    images = random_images(2, 3, SIDE, SIDE)
    expected = F.normalize(model.encode_image(images), dim=1)
    torch.testing.assert_close(dense.image_features(images), expected, **WITHIN)
    both = dense.run(images, image=True)
    torch.testing.assert_close(both.image, expected, **WITHIN)
    torch.testing.assert_close(both.dense, dense(images), **WITHIN)


@torch.no_grad()
def test_with_attention_in_all_blocks_tokens_are_open_clips_own(family, model, dense):
    """The taps before the last block; the last block's is its own, without attention."""
    images = random_images(1, 3, SIDE, SIDE)
    own = model.visual.forward_intermediates(images, indices=[0, 1, 2], intermediates_only=True)
    run = dense.run(images, dense=False, image=True, taps=[0, 1, 2])
    for k, tokens in enumerate(own["image_intermediates"]):
        torch.testing.assert_close(run.taps[k], tokens, **WITHIN)
    without = dense.run(images, taps=[2]).taps[2]
    assert (without - run.taps[2]).abs().max() > 0.01


@torch.no_grad()
def test_an_image_does_not_depend_on_its_neighbours_in_the_batch(dense):
    images = random_images(3, 3, 40, 56)
    together = dense(images)
    alone = torch.cat([dense(one[None]) for one in images])
    torch.testing.assert_close(together, alone, **WITHIN)


@torch.no_grad()
def test_what_is_missing_to_whole_patches_is_zeros(dense):
    odd = random_images(1, 3, 33, 45)
    padded = F.pad(odd, (0, 3, 0, 7))
    found = dense(odd)
    assert found.shape[2:] == (5, 6)
    torch.testing.assert_close(found, dense(padded), atol=0, rtol=0)


def test_antialiased_positions_are_timms(model):
    images = random_images(1, 3, 16, 16)  # smaller than the table
    with torch.no_grad():
        plain, smooth = (DenseViT(model.visual, antialias=a)(images) for a in (False, True))
    assert (plain - smooth).abs().max() > 1e-3
    native = random_images(1, 3, SIDE, SIDE)
    with torch.no_grad():
        plain, smooth = (DenseViT(model.visual, antialias=a)(native) for a in (False, True))
    assert torch.equal(plain, smooth)


def test_only_what_a_map_needs_trains(family, dense):
    dense.train_blocks()
    weights = torch.randn(1, DIM, 4, 4, generator=torch.Generator().manual_seed(0))
    (dense(random_images(1, 3, SIDE, SIDE)) * weights).sum().backward()
    trained = {name for name, p in dense.named_parameters() if p.requires_grad}
    moved = {name for name, p in dense.named_parameters() if p.grad is not None}
    assert trained == moved
    blocks = "visual.trunk.blocks." if family == EVA else "visual.transformer.resblocks."
    assert trained and all(name.startswith(blocks) for name in trained)
    frozen = {n for n, p in dense.named_parameters() if n.startswith(blocks)} - trained
    expected = {"q_proj.weight", "q_proj.bias", "k_proj.weight"} if family == EVA else set()
    assert {n.removeprefix(f"{blocks}{DEPTH - 1}.attn.") for n in frozen} == expected


@pytest.mark.parametrize("window", [0, 2])
def test_gradient_checkpointing_gives_the_same_gradients(model, window):
    dense = DenseViT(model.visual, window=window)
    images = random_images(1, 3, SIDE, SIDE)
    weights = torch.randn(1, DIM, 4, 4, generator=torch.Generator().manual_seed(0))
    gradients = []
    for enabled in (False, True):
        model.visual.set_grad_checkpointing(enabled)
        dense.zero_grad()
        calls = []
        mlp = dense.tower.blocks[1].mlp
        hook = mlp.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        (dense(images) * weights).sum().backward()
        hook.remove()
        assert len(calls) == 1 + enabled  # again in the backward pass
        gradients.append([p.grad.clone() for p in dense.parameters() if p.grad is not None])
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, again)


@torch.no_grad()
def test_no_block_runs_twice(dense):
    counts = []
    for block in dense.tower.blocks:
        block.mlp.register_forward_hook(lambda *_: counts.append(1))
    dense.run(random_images(1, 3, SIDE, SIDE), image=True, taps=[0, 2])
    assert len(counts) == DEPTH


@torch.no_grad()
def test_masked_image_features_by_hand(dense):
    """A mask of everything is the image; one of a patch alone differs and sees only it."""
    images = random_images(1, 3, SIDE, SIDE)
    masks = torch.zeros(2, 4, 4, dtype=torch.bool)
    masks[0], masks[1, 1, 2] = True, True
    whole, single = dense.masked_image_features(images, masks)
    torch.testing.assert_close(whole, dense.image_features(images)[0], **WITHIN)
    assert (single - whole).abs().max() > 1e-3
    assert dense.masked_image_features(images, masks[:0]).shape == (0, DIM)


def test_a_compiled_tower_keeps_its_names(dense):
    names = list(dense.state_dict())
    dense.compile()
    assert list(dense.state_dict()) == names and names[0].startswith("visual.")


@pytest.mark.parametrize("architecture", ["RN50", "ViT-B-16-SigLIP", "coca_ViT-B-32"])
def test_no_dense_features_of_other_towers(architecture):
    with torch.device("meta"):
        config = open_clip.get_model_config(architecture)
        visual = open_clip.create_model(architecture, load_weights=False, device="meta").visual
    assert config is not None
    with pytest.raises(ValueError, match="no dense features|dense features are those of a ViT"):
        DenseViT(visual)


def test_a_global_block_that_there_is_not(model):
    with pytest.raises(ValueError, match=r"blocks \[3, 7\]: there are blocks 0 to 2 only"):
        DenseViT(model.visual, window=2, global_blocks=[1, 3, 7])


@torch.no_grad()
def test_half_precision_gives_unit_vectors_in_float32(dense):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = dense(random_images(1, 3, SIDE, SIDE))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.norm(dim=1), torch.ones(1, 4, 4))


def test_a_module_of_this_kind_is_part_of_state_dicts(dense):
    holder = nn.ModuleDict({"student": dense})
    assert all(name.startswith("student.visual.") for name in holder.state_dict())
