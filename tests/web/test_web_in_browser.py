"""The page in a real browser, served by the real command: one browser, one story."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.modeling import build_model

from ovd_d2.engine.checkpoint import SafeCheckpointer
from tests.programs import serving_program
from tests.tiny import tiny_config
from tests.web.pages import image_file

tools = pytest.importorskip("install_browser")
playwright = pytest.importorskip("playwright.sync_api", reason="an extra of this package (dev)")
pytest.importorskip("gradio", reason="an extra of this package (web)")

# A browser that asks nothing of the network by itself.
QUIET = [
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-gpu",
    "--disable-quic",
    "--disable-sync",
    "--no-first-run",
]
PHONE = {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of the page of a small ViLD with random weights and the shipped teacher."""
    folder = tmp_path_factory.mktemp("model")
    cfg = tiny_config("vild_ensemble")
    cfg.MODEL.OVD.EMBEDDING_DIM = 64  # the teacher's
    torch.manual_seed(0)
    SafeCheckpointer(build_model(cfg), str(folder)).save("model")
    cfg.MODEL.WEIGHTS = str(folder / "model.pth")
    (folder / "config.yaml").write_text(cfg.dump())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ("--model", folder / "config.yaml", "--port", port, "--max-upload", 0.1)
    with serving_program(
        "tools/web_demo.py", *command, until="the page is at", GRADIO_TEMP_DIR=folder / "uploads"
    ) as printed:
        yield re.search(r"the page is at (http://127\.0\.0\.1:\d+)", printed)[1]
        left = [one for one in (folder / "uploads").rglob("*") if one.is_file()]
        assert left == []  # what was uploaded is read, and gone


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        try:
            found = driver.chromium.launch(executable_path=tools.chromium(), args=QUIET)
        except playwright.Error as error:
            pytest.skip(f"no browser: {str(error).splitlines()[0]} ({tools.HOW})")
        yield found
        found.close()


class User:
    """Somebody with the page open, whose browser asks this machine alone."""

    def __init__(self, browser: Any, address: str) -> None:
        self.page = browser.new_page(viewport={"width": 1280, "height": 800})
        self.errors: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.route(lambda url: not url.startswith((address, "data:", "blob:")), _refuse)
        self.page.goto(address)
        self.says("Drop an image to begin.")

    def says(self, text: str, wrong: bool = False) -> None:
        """Waits for what the page says."""
        kind = ".wrong" if wrong else ":not(.wrong)"
        self.page.locator(f"#status p{kind}", has_text=text).wait_for(timeout=20_000)

    def open(self, name: str, content: bytes) -> None:
        kind = {"name": name, "mimeType": "image/png", "buffer": content}
        self.page.set_input_files("#upload input[type=file]", kind)

    def find(self, names: str) -> None:
        self.page.fill("#names textarea, #names input", names)
        self.page.click("#find")

    def picture(self) -> str:
        return self.page.get_attribute("#picture img", "src")

    def download(self, label: str) -> Any:
        with self.page.expect_download() as caught:
            self.page.get_by_role("button", name=label).click()
        return json.loads(Path(caught.value.path()).read_text())


def _refuse(route: Any) -> None:
    route.abort()


def test_the_page(address: str, browser: Any) -> None:
    user = User(browser, address)
    user.page.fill("#names textarea, #names input", "kite, red anchor")
    user.open("scene.png", image_file(size=(128, 128)))
    user.says("scene.png: ")
    first = user.picture()
    assert first.startswith("data:image/jpeg;base64,")

    user.find("bell | gong, <b>{{moon}}</b>")
    user.says("<b>{{moon}}</b>")
    assert user.picture() != first

    user.open("broken.png", image_file()[:-100])
    user.says("broken.png cannot be read", wrong=True)
    user.open("notes.png", b"hello")
    user.says("notes.png cannot be read: it is no image", wrong=True)
    user.find("bell, Bell")
    user.says("names mean the same", wrong=True)
    assert user.picture() != first  # the last sound image is still there

    other = User(browser, address)  # nothing of the first user's
    assert other.page.locator("#picture img").count() == 0
    other.page.fill("#names textarea, #names input", "umbrella, sun")
    other.open("theirs.png", image_file(1))
    other.says("theirs.png: ")
    user.find("kite, red anchor")
    user.says("scene.png: ")
    found = user.download("Download JSON")["scene.png"]
    assert {one["name"] for one in found} <= {"kite", "red anchor"} and found
    coco = other.download("Download COCO")
    assert [one["name"] for one in coco["categories"]] == ["umbrella", "sun"]
    assert coco["images"][0]["file_name"] == "theirs.png"

    user.page.click("#examples button")
    user.page.fill("#example-name textarea, #example-name input", "blob")
    user.page.check("#marking input")
    user.page.locator("#picture .marking").wait_for()
    frame = user.page.locator("#picture img").bounding_box()
    mouse = user.page.mouse
    mouse.move(frame["x"] + 0.1 * frame["width"], frame["y"] + 0.1 * frame["height"])
    mouse.down()
    mouse.move(frame["x"] + 0.6 * frame["width"], frame["y"] + 0.7 * frame["height"], steps=3)
    mouse.up()
    user.page.locator("#thumbnails figcaption", has_text="blob").wait_for(timeout=20_000)
    user.page.fill("#threshold input[type=number]", "0.99")
    user.page.press("#threshold input[type=number]", "Enter")
    user.says("Nothing scores 0.99 or more.")

    for one in (user, other):
        one.page.set_viewport_size(PHONE)
        assert one.page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        assert one.errors == []


def test_a_file_that_is_too_large(address: str, browser: Any) -> None:
    user = User(browser, address)
    user.open("large.png", bytes(110_000))
    user.page.get_by_text(re.compile("maximum allowed size|too large")).first.wait_for()
    assert user.errors == []
