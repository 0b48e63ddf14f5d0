"""Every way in which a teacher cannot be had is one message."""

from __future__ import annotations

import logging
from pathlib import Path

import open_clip
import pytest
import torch

from ovd_d2.clip.loading import load_teacher
from ovd_d2.errors import SetupError


def problem_of(architecture: str, pretrained: str, **options: str) -> str:
    with pytest.raises(SetupError) as caught:
        load_teacher(architecture, pretrained, **options)
    (problem,) = caught.value.problems
    return problem


def test_the_state_of_random_numbers_stays(tiny_architecture: str, tiny_weights: Path) -> None:
    before = torch.random.get_rng_state()
    teacher = load_teacher(tiny_architecture, str(tiny_weights))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert teacher.embedding_dim == 8


def test_wrong_names_and_files(tiny_architecture: str, tiny_weights: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(tiny_weights.read_bytes()[:-100])
    cases = {
        ("ViT-X", "openai"): "unknown open_clip architecture 'ViT-X'",
        ("ViT-B-32", "opnai"): "'opnai' is neither a local file nor a pretrained tag",
        ("ViT-B-32", "openai"): "name the architecture ViT-B-32-quickgelu",
        (tiny_architecture, "gone.pt"): "gone.pt",
        (tiny_architecture, str(tmp_path)): f"not found: {tmp_path}",
        (tiny_architecture, str(damaged)): f"{damaged}: cannot be read",
        (f"{tiny_architecture}-wide", str(tiny_weights)): "does not fit the architecture",
        (f"local-dir:{tmp_path / 'none'}", ""): str(tmp_path / "none"),
    }
    for (architecture, pretrained), expected in cases.items():
        problem = problem_of(architecture, pretrained)
        assert problem.startswith("teacher: ") and expected in problem
    assert problem_of("ViT-X", "openai", key="--architecture").startswith("--architecture: unknown")


def test_without_a_network_the_local_way_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unreachable(*_: object, **__: object) -> str:
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr(open_clip.factory, "download_pretrained", unreachable)
    with caplog.at_level(logging.WARNING):
        problem = problem_of("ViT-B-32-quickgelu", "openai")
    assert problem.startswith("teacher: ViT-B-32-quickgelu openai: these weights are not")
    assert "Name or service not known" in problem
    assert "copy ~/.cache/huggingface" in problem and "--pretrained FILE" in problem
    assert "\n" not in problem
    assert not caplog.records  # open_clip logs the same as an error before it raises it


def test_a_hub_repository_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    problem = problem_of("hf-hub:nobody/no-such-model", "")
    assert "hf-hub:nobody/no-such-model: these weights are not on this machine" in problem
    assert "--pretrained FILE" in problem
