"""A tiny open_clip architecture with random weights, made in a moment."""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from ovd_d2.clip import CLIPTeacher

TINY = "tiny-test-clip"


def tiny_config(width: int = 16) -> dict[str, object]:
    return {
        "embed_dim": 8,
        "vision_cfg": {
            "image_size": 32,
            "patch_size": 16,
            "layers": 1,
            "width": width,
            "head_width": 8,
        },
        "text_cfg": {
            "context_length": 16,
            "vocab_size": 49408,
            "width": 8,
            "heads": 2,
            "layers": 1,
        },
    }


@pytest.fixture(scope="session")
def tiny_architecture(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name of a registered architecture: 32 px, D = 8."""
    folder = tmp_path_factory.mktemp("architectures")
    (folder / f"{TINY}.json").write_text(json.dumps(tiny_config()))
    (folder / f"{TINY}-wide.json").write_text(json.dumps(tiny_config(width=24)))
    open_clip.add_model_config(folder)
    return TINY


def random_state(architecture: str, seed: int = 0) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return open_clip.create_model(architecture, load_weights=False).state_dict()


@pytest.fixture(scope="session")
def tiny_weights(tiny_architecture: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_file(random_state(tiny_architecture), str(path))
    return path


@pytest.fixture(scope="session")
def tiny_teacher(tiny_architecture: str, tiny_weights: Path) -> CLIPTeacher:
    return CLIPTeacher.from_open_clip(tiny_architecture, str(tiny_weights))
