"""The benchmark of GLIP, tiny: its rows and its page."""

import pytest
import torch
from benchmarks import glip, glip_parts, speed
from benchmarks.glip import SMALL, Case
from torchvision.ops import deform_conv2d

from ovd_d2.projects.glip.fusion import Fusion
from tests.projects.glip.small_words import WORDS

LESS = (*SMALL, "MODEL.GLIP.BERT.VOCABULARY", 100, "MODEL.GLIP.BLOCKS", 1)
FUSED, PLAIN = (Case(name, name, (64, 64), LESS) for name in ("glip_t", "glip_t_a"))


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    vocabulary = tmp_path_factory.mktemp("words") / "vocab.txt"
    vocabulary.write_text("\n".join(WORDS))
    return glip.questions(str(vocabulary))


def test_rows_and_their_page(questions, monkeypatch):
    monkeypatch.setattr(glip, "FULL_SIZE", (320, 320))
    rows = glip.measure(*questions, [FUSED], rounds=1)
    measured = rows[0]
    assert measured["whole_passes"] == 31 and 5 < measured["captions"] < 20
    assert measured["times_fewer_operations"] > 1
    steps = [row["times_fewer"] for row in rows[1:]]
    assert len(steps) == 4 and steps == sorted(steps) and steps[0] > 1
    text = glip.page(
        {"command": "python x", "date": "2026-01-04", "commit": "c0ffee1", "rows": rows}
    )
    assert "| glip_t " in text and "| and captions filled with names " in text


def test_parts_and_their_section(questions):
    large = Case("large", "glip_t", (256, 256), LESS)
    rows = glip_parts.measure(questions[0][0], FUSED, PLAIN, large, rounds=1)
    ratios = [row for row in rows if "ratio" in row]
    assert [row["operations"] > 1 for row in ratios] == [True] * 3
    forms = {row["form"]: row["difference"] for row in rows if "form" in row}
    assert len(forms) == 3 and all(one < 1e-5 for one in forms.values())
    (share,) = [row["of_detection"] for row in rows if "share" in row]
    assert 0 < share < 1
    memory = {row["memory"]: row["gib"] for row in rows if "memory" in row}
    assert memory["gradient checkpointing"] <= min(memory["ours"], memory["definition"])
    assert "| projections folded (ours) " in glip_parts.section(rows)


def test_attention_of_pytorch_is_the_same_under_a_mask():
    torch.manual_seed(0)
    fusion = Fusion(8, 12, width=16, heads=2, gain=1.0).eval()
    mask = torch.tensor([[True] * 3 + [False] * 2])
    inputs = torch.randn(1, 20, 8), torch.randn(1, 5, 12), mask
    found, expected = glip_parts.attend_by_sdpa(fusion, *inputs), fusion.attend(*inputs)
    torch.testing.assert_close(found, expected)


def test_deformable_convolutions_are_counted():
    image, weight = torch.randn(2, 4, 6, 8), torch.randn(5, 4, 3, 3)
    found = speed.operations_of(
        lambda: deform_conv2d(image, torch.zeros(2, 18, 3, 4), weight, stride=2, padding=1)
    )
    assert found == 2 * 2 * 12 * 5 * 36
