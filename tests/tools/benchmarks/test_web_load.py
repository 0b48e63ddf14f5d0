"""What a load test asks the web page."""

import os
from collections import Counter
from pathlib import Path

from benchmarks.web_load import USERS, memory_of, question

IMAGES = [Path("a.png"), Path("b.png")]
BROKEN = Path("broken.png")


def test_every_user_opens_an_image_first_and_then_asks_about_it():
    asked = [question(k, IMAGES, BROKEN) for k in range(1000)]
    assert {where for _, where in asked[:USERS]} == {"/open"}
    assert Counter(where for _, where in asked) == {"/open": 200, "/find": 400, "/threshold": 400}
    files = Counter(what[0].name for what, where in asked if where == "/open")
    assert files["broken.png"] == 48 and files["a.png"] == files["b.png"] == 76
    assert BROKEN not in [what[0] for what, _ in asked[:USERS]]


def test_memory_of_a_process():
    assert 50 < memory_of(os.getpid()) < 100_000
