"""The benchmark of GLIP, tiny: its rows and its page."""

import torch
from benchmarks import glip, speed
from benchmarks.glip import SMALL, Case
from torchvision.ops import deform_conv2d

from tests.projects.glip.small_words import WORDS


def test_rows_and_their_page(tmp_path, monkeypatch):
    monkeypatch.setattr(glip, "FULL_SIZE", (320, 320))
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("\n".join(WORDS))
    less = (*SMALL, "MODEL.GLIP.BERT.VOCABULARY", 100, "MODEL.GLIP.BLOCKS", 1)
    cases = [Case("fused", "glip_t", (64, 64), less), Case("apart", "glip_t_a", (64, 64), less)]
    rows = glip.measure(str(vocabulary), cases, rounds=1)
    measured = {row["name"]: row for row in rows if "name" in row}
    assert list(measured) == ["fused", "apart"]
    for row in measured.values():
        assert row["whole_passes"] == 31 and 5 < row["captions"] < 20
    fewer = [measured[name]["times_fewer_operations"] for name in measured]
    assert 1 < fewer[0] < fewer[1]
    steps = {(row["network"], row["step"]): row["times_fewer"] for row in rows if "step" in row}
    fused = [value for (network, _), value in steps.items() if network == "fused"]
    assert len(fused) == 4 and fused == sorted(fused) and fused[0] > 1
    text = glip.page(
        {"command": "python x", "date": "2026-01-04", "commit": "c0ffee1", "rows": rows}
    )
    assert "| fused " in text and "| and captions filled with names " in text


def test_deformable_convolutions_are_counted():
    image, weight = torch.randn(2, 4, 6, 8), torch.randn(5, 4, 3, 3)
    found = speed.operations_of(
        lambda: deform_conv2d(image, torch.zeros(2, 18, 3, 4), weight, stride=2, padding=1)
    )
    assert found == 2 * 2 * 12 * 5 * 36
