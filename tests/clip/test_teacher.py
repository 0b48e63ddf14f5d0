"""Loading any open_clip model from a tag or a file, and what the encoders return."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from safetensors.torch import save_file

from ovd_d2.clip import CLIPTeacher
from ovd_d2.clip.teacher import _check_activation
from ovd_d2.pictograms.teacher import ARCHITECTURE, SHIPPED_TAG

from .conftest import random_state


def test_encoders_return_unit_rows(tiny_teacher: CLIPTeacher) -> None:
    torch.manual_seed(0)
    images = tiny_teacher.encode_images(torch.randn(3, 3, 32, 32))
    text = tiny_teacher.encode_text(["a star", "an anchor", "star " * 90])
    for rows in (images, text):
        assert rows.dtype == torch.float32
        assert rows.shape == (3, 8)
        torch.testing.assert_close(rows.norm(dim=1), torch.ones(3))
    assert not torch.allclose(text[0], text[1])


def test_attributes(tiny_teacher: CLIPTeacher) -> None:
    assert tiny_teacher.embedding_dim == 8
    assert tiny_teacher.image_size == (32, 32)
    assert tiny_teacher.mean == pytest.approx((0.48145466, 0.4578275, 0.40821073))
    assert tiny_teacher.std == pytest.approx((0.26862954, 0.26130258, 0.27577711))
    assert tiny_teacher.interpolation == "bicubic"


def test_nothing_in_nothing_out(tiny_teacher: CLIPTeacher) -> None:
    assert tiny_teacher.encode_images(torch.zeros(0, 3, 32, 32)).shape == (0, 8)
    assert tiny_teacher.encode_text([]).shape == (0, 8)


def test_outputs_can_take_part_in_training(tiny_teacher: CLIPTeacher) -> None:
    weight = torch.ones(8, requires_grad=True)
    (tiny_teacher.encode_text(["a star"]) * weight).sum().backward()
    assert weight.grad is not None


def test_refuses_images_of_another_size(tiny_teacher: CLIPTeacher) -> None:
    with pytest.raises(ValueError, match=r"expected shape \(N, 3, 32, 32\), got \(1, 3, 16, 32\)"):
        tiny_teacher.encode_images(torch.zeros(1, 3, 16, 32))


@pytest.mark.parametrize("shape", [(40, 57), (91, 20), (32, 32), (7, 64), (3, 2)])
def test_preprocess_equals_open_clips_transform(
    tiny_teacher: CLIPTeacher, shape: tuple[int, int]
) -> None:
    # no black or white: Pillow may swap its two passes, and what bicubic overshoots is cut between
    pixels = np.random.default_rng(1).integers(80, 176, (*shape, 3), dtype=np.uint8)
    expected = image_transform_v2(PreprocessCfg(size=32), is_train=False)(Image.fromarray(pixels))
    got = tiny_teacher.preprocess_image(pixels)
    level = 1 / 255 / 0.26  # of 8 bits, in normalised units; either pass may round the other way
    assert (got - expected).abs().max() < 2.01 * level
    torch.testing.assert_close(tiny_teacher.preprocess_image(Image.fromarray(pixels)), got)


def test_fingerprint_is_stable_and_follows_the_weights(
    tiny_teacher: CLIPTeacher, tiny_architecture: str, tmp_path: Path
) -> None:
    state = random_state(tiny_architecture)
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "same.pt")
    same = CLIPTeacher.from_open_clip(tiny_architecture, str(tmp_path / "same.pt"))
    assert re.fullmatch(r"tiny-test-clip-[0-9a-f]{16}", tiny_teacher.fingerprint)
    assert same.fingerprint == tiny_teacher.fingerprint

    state["visual.proj"][0, 0] += 1e-3
    save_file(state, str(tmp_path / "other.safetensors"))
    other = CLIPTeacher.from_open_clip(tiny_architecture, str(tmp_path / "other.safetensors"))
    assert other.fingerprint != tiny_teacher.fingerprint


def test_half_precision_file_is_used_in_float32(tiny_architecture: str, tmp_path: Path) -> None:
    state = {key: value.half() for key, value in random_state(tiny_architecture).items()}
    save_file(state, str(tmp_path / "half.safetensors"))
    teacher = CLIPTeacher.from_open_clip(tiny_architecture, str(tmp_path / "half.safetensors"))
    assert teacher.encode_text(["a star"]).dtype == torch.float32


def test_missing_file(tiny_architecture: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.pt \(for tiny-test-clip\)"):
        CLIPTeacher.from_open_clip(tiny_architecture, str(tmp_path / "none.pt"))


def test_wrong_architecture_lists_both_shapes(tiny_architecture: str, tiny_weights: Path) -> None:
    with pytest.raises(ValueError, match=r"does not fit the architecture tiny-test-clip-wide") as e:
        CLIPTeacher.from_open_clip(f"{tiny_architecture}-wide", str(tiny_weights))
    assert "visual.class_embedding: expected (24,), found (16,)" in str(e.value)


def test_file_that_lacks_a_weight(tiny_architecture: str, tmp_path: Path) -> None:
    state = random_state(tiny_architecture)
    del state["visual.proj"]
    save_file(state, str(tmp_path / "part.safetensors"))
    with pytest.raises(ValueError, match=r"visual\.proj: expected \(16, 8\), found nothing"):
        CLIPTeacher.from_open_clip(tiny_architecture, str(tmp_path / "part.safetensors"))


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_damaged_file(tiny_architecture: str, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"damaged{suffix}"
    path.write_bytes(b"not a checkpoint at all")
    with pytest.raises(ValueError, match=rf"damaged\{suffix}: cannot be read"):
        CLIPTeacher.from_open_clip(tiny_architecture, str(path))


def test_pickled_objects_are_refused(tiny_architecture: str, tmp_path: Path) -> None:
    torch.save({"state_dict": Path("x")}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match=r"evil\.pt: cannot be read"):
        CLIPTeacher.from_open_clip(tiny_architecture, str(tmp_path / "evil.pt"))


def test_unknown_architecture_and_tag() -> None:
    with pytest.raises(ValueError, match="unknown open_clip architecture 'ViT-X'"):
        CLIPTeacher.from_open_clip("ViT-X", "openai")
    with pytest.raises(ValueError, match="unknown open_clip architecture 'hub:ViT-X'"):
        CLIPTeacher.from_open_clip("hub:ViT-X", "")
    with pytest.raises(ValueError, match="'opnai' is neither .* its tags: .*openai"):
        CLIPTeacher.from_open_clip("ViT-B-32", "opnai")


@pytest.mark.parametrize(
    ("architecture", "tag"),
    [("ViT-B-32", "openai"), ("ViT-L/14", "openai"), ("RN50", "yfcc15m"), ("ViT-H-14", "dfn5b")],
)
def test_weights_of_another_activation_are_refused(architecture: str, tag: str) -> None:
    right = architecture.replace("/", "-") + "-quickgelu"
    with pytest.raises(ValueError, match=rf"'{tag}' was trained with QuickGELU.* {right}$"):
        CLIPTeacher.from_open_clip(architecture, tag)


def test_no_other_pair_is_refused_for_its_activation() -> None:
    refused = set()
    for architecture, tag in open_clip.list_pretrained():
        try:
            _check_activation(architecture, tag)
        except ValueError:
            refused.add((architecture, tag))
    assert ("ViT-B-32", "openai") in refused
    assert ("ViT-B-32", "laion2b_s34b_b79k") not in refused
    assert not [name for name, _ in refused if "quickgelu" in name or "SigLIP" in name]


def test_local_folder_with_its_own_configuration(
    tiny_teacher: CLIPTeacher, tiny_architecture: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="brings its own weights"):
        CLIPTeacher.from_open_clip(f"local-dir:{tmp_path}", "openai")
    assert tiny_architecture in open_clip.list_models()


def test_the_temperature_is_the_one_that_was_learnt() -> None:
    loaded = CLIPTeacher.from_open_clip(ARCHITECTURE, SHIPPED_TAG)
    scale = loaded.state_dict()["logit_scale"].exp().item()
    assert loaded.temperature == pytest.approx(1 / scale) and 30 < scale < 50
