"""The page in a real browser, served by the real command: one browser, one story."""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import install_browser
import pytest
import torch
from detectron2.modeling import build_model

from ovd_d2.engine.checkpoint import SafeCheckpointer
from tests.programs import serving_program
from tests.tiny import tiny_config
from tests.web.pages import image_file

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
SECONDS = 90  # that anything may take on a busy machine


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """The system's Chromium, or the one that Playwright has installed for this user."""
    # Tests have a cache folder of their own, where Playwright would look for it.
    os.environ.setdefault("PLAYWRIGHT_BROWSERS_PATH", str(Path.home() / ".cache/ms-playwright"))
    with playwright.sync_playwright() as driver:
        try:
            found = driver.chromium.launch(executable_path=install_browser.chromium(), args=QUIET)
        except playwright.Error as error:
            pytest.skip(f"no browser: {str(error).splitlines()[0]} ({install_browser.HOW})")
        yield found
        found.close()


@pytest.fixture(scope="module")
def address(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
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
    (folder / "tmp").mkdir()
    with serving_program(
        "tools/web_demo.py", *command, until="the page is at", TMPDIR=folder / "tmp"
    ) as printed:
        yield re.search(r"the page is at (http://127\.0\.0\.1:\d+)", printed)[1]
    assert list((folder / "tmp").glob("ovd_d2-web-*")) == []  # nothing of what was uploaded


class User:
    """Somebody with the page open, whose browser asks this machine alone."""

    def __init__(self, browser: Any, address: str) -> None:
        self.page = browser.new_page(viewport={"width": 1280, "height": 800})
        self.page.set_default_timeout(SECONDS * 1000)
        self.errors: list[str] = []
        self.asked_elsewhere: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        here = (address, "data:", "blob:")
        self.page.route(lambda url: not url.startswith(here), self._refuse)
        self.page.goto(address)
        self.reads("Drop an image to begin.")

    def _refuse(self, route: Any) -> None:
        self.asked_elsewhere.append(route.request.url)
        route.abort()

    def reads(self, text: str, *, wrong: bool = False) -> None:
        """Waits for what the page says."""
        kind = ".wrong" if wrong else ":not(.wrong)"
        self.page.locator(f"#status p{kind}", has_text=text).wait_for()

    def types(self, where: str, text: str) -> None:
        self.page.fill(f"{where} textarea, {where} input[type=text]", text)

    def drops(self, name: str, content: bytes) -> None:
        file = {"name": name, "mimeType": "image/png", "buffer": content}
        self.page.set_input_files("#upload input[type=file]", file)

    def finds(self, names: str) -> None:
        self.types("#names", names)
        self.page.click("#find")

    def sees(self) -> str:
        """The address of the picture, which is the picture."""
        return self.page.get_attribute("#picture img", "src")

    def downloads(self, label: str) -> Any:
        with self.page.expect_download() as caught:
            self.page.get_by_role("button", name=label).click()
        return json.loads(Path(caught.value.path()).read_text())

    def draws(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """A box in the picture, in shares of its sides."""
        self.page.locator("#picture img").scroll_into_view_if_needed()
        frame, mouse = self.page.locator("#picture img").bounding_box(), self.page.mouse
        for (x, y), act in ((start, mouse.down), (end, mouse.up)):
            mouse.move(frame["x"] + x * frame["width"], frame["y"] + y * frame["height"], steps=2)
            act()


def test_the_page(address: str, browser: Any) -> None:
    one, other = User(browser, address), User(browser, address)
    one.types("#names", "kite, red anchor")
    one.drops("scene.png", image_file(size=(128, 128)))
    one.reads("scene.png: ")
    asks_for_other_names(one)
    is_told_what_is_wrong(one)
    sees_nothing_of_the_others(one, other)
    downloads_what_it_found(one, other)
    marks_an_example(one)
    raises_the_threshold(one)
    for user in (one, other):
        user.page.set_viewport_size(PHONE)
        assert user.page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        assert (user.errors, user.asked_elsewhere) == ([], [])


def asks_for_other_names(user: User) -> None:
    before = user.sees()
    assert before.startswith("data:image/jpeg;base64,")
    user.finds("bell | gong, <b>{{moon}}</b>")
    user.reads("<b>{{moon}}</b>")
    assert user.sees() != before


def is_told_what_is_wrong(user: User) -> None:
    before = user.sees()
    user.drops("broken.png", image_file()[:-100])
    user.reads("broken.png cannot be read", wrong=True)
    user.drops("notes.png", b"hello")
    user.reads("notes.png cannot be read: it is no image", wrong=True)
    user.finds("bell, Bell")
    user.reads("names mean the same", wrong=True)
    assert user.sees() == before  # the last sound image is still there
    user.drops("large.png", bytes(110_000))
    user.page.get_by_text(re.compile("maximum allowed size")).first.wait_for()


def sees_nothing_of_the_others(user: User, other: User) -> None:
    assert other.page.locator("#picture img").count() == 0
    other.types("#names", "umbrella, sun")
    other.drops("theirs.png", image_file(1))
    other.reads("theirs.png: ")
    user.finds("kite, red anchor")
    user.reads("scene.png: ")


def downloads_what_it_found(user: User, other: User) -> None:
    found = user.downloads("Download JSON")["scene.png"]
    assert {one["name"] for one in found} <= {"kite", "red anchor"} and found
    coco = other.downloads("Download COCO")
    assert [one["name"] for one in coco["categories"]] == ["umbrella", "sun"]
    assert coco["images"][0]["file_name"] == "theirs.png"


def marks_an_example(user: User) -> None:
    user.page.click("#examples button")
    user.types("#example-name", "blob")
    user.page.check("#marking input")
    user.page.locator("#picture .marking").wait_for()
    user.draws((0.1, 0.1), (0.6, 0.7))
    user.page.locator("#thumbnails figcaption", has_text="blob").wait_for()


def raises_the_threshold(user: User) -> None:
    user.page.fill("#threshold input[type=number]", "1")
    user.page.press("#threshold input[type=number]", "Tab")
    user.reads("Nothing scores 1 or more. The best scores: ")
