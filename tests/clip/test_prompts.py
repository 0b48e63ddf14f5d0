"""Prompt rules against hand-written sentences; the averaging against hand-computed vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import pytest
import torch
from torch.nn import functional as F

from ovd_d2.clip.prompts import (
    PROMPT_FAMILIES,
    article,
    clean_name,
    embed_names,
    embed_synonyms,
    render_prompts,
)
from ovd_d2.clip.teacher import CLIPTeacher


@pytest.mark.parametrize(
    ("name", "cleaned"),
    [
        ("alarm_clock", "alarm clock"),
        ("Chess Knight", "chess knight"),
        ("car/truck", "car or truck"),
        ("  bow_(weapon) ", "bow (weapon)"),
        ("fleur-de-lis", "fleur-de-lis"),
    ],
)
def test_clean_name(name: str, cleaned: str) -> None:
    assert clean_name(name) == cleaned


@pytest.mark.parametrize(
    ("name", "expected"),
    [("anchor", "an"), ("Umbrella", "an"), ("star", "a"), ("yin yang", "a"), ("", "a")],
)
def test_article(name: str, expected: str) -> None:
    assert article(name) == expected


@pytest.mark.parametrize(("family", "count"), [("vild63", 63), ("clip7", 7), ("single", 1)])
def test_family_sizes_and_templates(family: str, count: int) -> None:
    templates = PROMPT_FAMILIES[family]
    assert len(templates) == len(set(templates)) == count
    assert all("{name}" in template and template.endswith(".") for template in templates)
    assert len(set(render_prompts("anchor", family))) == count


def test_single_prompt() -> None:
    assert render_prompts("alarm_clock", "single") == ["This is a photo of an alarm clock."]


def test_this_is_goes_before_articles_only() -> None:
    prompts = render_prompts("umbrella")
    assert "There is an umbrella in this scene." in prompts
    assert "This scene contains an umbrella." in prompts
    assert "We can see an umbrella here." in prompts
    assert "This is an umbrella seen from above." in prompts
    assert "This is the outline of an umbrella." in prompts
    assert "This is an ordinary umbrella." in prompts


@pytest.mark.parametrize("family", sorted(PROMPT_FAMILIES))
def test_every_prompt_is_a_sentence(family: str) -> None:
    for prompt in render_prompts("car/truck", family):
        assert "{" not in prompt
        assert "car or truck" in prompt
        assert prompt[0].isupper()
        assert prompt.split()[0] not in ("A", "An", "The")


def test_refuses_unknown_family_and_empty_names() -> None:
    with pytest.raises(ValueError, match="'vild64'; known families: clip7, single, vild63"):
        render_prompts("star", "vild64")
    with pytest.raises(ValueError, match="'_' is empty after cleaning"):
        render_prompts("_", "single")


class WordTeacher:
    """Encodes a sentence to (1, 0) if it says "photo", else to (0, 1); counts the calls."""

    embedding_dim = 2

    def __init__(self) -> None:
        self.calls: list[int] = []

    def encode_text(self, sentences: Sequence[str]) -> torch.Tensor:
        self.calls.append(len(sentences))
        return torch.tensor([[1.0, 0.0] if "photo" in text else [0.0, 1.0] for text in sentences])


def test_embed_names_averages_then_normalises(monkeypatch: pytest.MonkeyPatch) -> None:
    templates = ("a photo of {article} {name}.", "{article} {name}.", "one {name}.", "two {name}s.")
    monkeypatch.setitem(PROMPT_FAMILIES, "four", templates)
    teacher = WordTeacher()
    result = embed_names(["star", "sun", "photo"], cast(CLIPTeacher, teacher), "four", batch_size=9)
    # mean (1/4, 3/4) -> (1, 3) / sqrt(10); every sentence about "photo" says photo
    expected = torch.tensor([[1.0, 3.0], [1.0, 3.0], [10**0.5, 0.0]]) / 10**0.5
    torch.testing.assert_close(result, expected)
    assert teacher.calls == [8, 4]  # two names of four templates fit into nine


def test_embed_synonyms_averages_over_all_prompts_of_all_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(PROMPT_FAMILIES, "two", ("a photo of {article} {name}.", "one {name}."))
    teacher = cast(CLIPTeacher, WordTeacher())
    result = embed_synonyms([["star", "photo", "sun"], ["sun"]], teacher, "two", batch_size=2)
    # (1, 0), (0, 1); (1, 0), (1, 0); (1, 0), (0, 1) -> mean (4/6, 2/6)
    expected = F.normalize(torch.tensor([[4.0, 2.0], [1.0, 1.0]]), dim=1)
    torch.testing.assert_close(result, expected)
    torch.testing.assert_close(result[1:], embed_names(["sun"], teacher, "two"))
    assert embed_synonyms([], teacher).shape == (0, 2)
    with pytest.raises(ValueError, match="category 1 has no name"):
        embed_synonyms([["sun"], []], teacher)


def test_embed_no_names() -> None:
    assert embed_names([], cast(CLIPTeacher, WordTeacher())).shape == (0, 2)
