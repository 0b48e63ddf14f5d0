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
    rows = glip.measure(str(vocabulary), [Case("fused", "glip_t", (64, 64), less)], rounds=1)
    measured = rows[0]
    assert measured["whole_passes"] == 31 and 5 < measured["captions"] < 20
    assert measured["times_fewer_operations"] > 1
    steps = [row["times_fewer"] for row in rows[1:]]
    assert len(steps) == 4 and steps == sorted(steps) and steps[0] > 1
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
