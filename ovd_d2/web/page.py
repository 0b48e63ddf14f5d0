"""The page: what is on it, and which step of a session each part takes."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ovd_d2.files import readable_bytes
from ovd_d2.modeling.open_vocabulary import reads_names
from ovd_d2.predictor import THRESHOLD
from ovd_d2.web.results import coco_json, detections_json, sentence_of, summary_of
from ovd_d2.web.session import LEAST_SCORE, Finder, Marked, Session, on_screen

DETECTOR = "detector"  # what waits for the detector waits in one line
WAITING = 32  # requests in that line; the next is told to come back
SESSIONS = 64  # that are remembered
SESSION_SECONDS = 3600  # an untouched session is forgotten
UPLOADS = (300, 900)  # seconds: how often files are deleted, and how old they may become
JPEG_QUALITY = 90
ASSETS = Path(__file__).parent

PICTURE = """
<div class="frame ${marking ? 'marking' : ''}">
  ${value.image ? `<img src="${value.image}" alt="${value.text}" draggable="false">` : ''}
  <div class="band" hidden></div>
</div>
"""
DOWNLOAD = """
(text) => {
  if (!text) return;
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([text], {type: 'application/json'}));
  link.download = '%s';
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
"""


def build_page(finder: Finder, title: str) -> gradio.Blocks:
    """The page of a detector, to be launched; see :func:`launch_options`.

    Args:
        finder: the detector, shared by all users; each has a session of their own.
        title: of the page.
    """
    with gradio.Blocks(
        title=title, analytics_enabled=False, delete_cache=UPLOADS, fill_width=True
    ) as page:
        _Page(finder, title)
    return page.queue(max_size=WAITING)


def launch_options(finder: Finder) -> dict[str, Any]:
    """What `launch` needs to know of the page, beside where it listens."""
    return {
        "share": False,
        "max_file_size": finder.limits.upload,
        "state_session_capacity": SESSIONS,
        "run_history": False,
        "enable_monitoring": False,
        "ssr_mode": False,
        "mcp_server": False,
        "footer_links": [],
        "theme": gradio.themes.Base(
            font=["system-ui", "sans-serif"],
            font_mono=["monospace"],  # of this machine
        ).set(block_info_text_color="*neutral_600", block_label_text_color="*neutral_700"),
        "css_paths": ASSETS / "page.css",
    }


class _Page:
    """The parts of the page and what they do; its methods run in any thread."""

    def __init__(self, finder: Finder, title: str) -> None:
        self.finder = finder
        self.session = gradio.State(Session(), time_to_live=SESSION_SECONDS)
        gradio.Markdown(f"# {html.escape(title)}")
        with gradio.Row():
            with gradio.Column(scale=3, min_width=320):
                self._add_question()
                self._add_answer()
            with gradio.Column(scale=1, min_width=320):
                self._add_threshold()
                self._add_downloads()
                self._add_examples()
        self._take_questions()

    def _add_question(self) -> None:
        allowed = readable_bytes(self.finder.limits.upload)
        self.upload = gradio.File(
            label=f"Image, at most {allowed}", height=150, elem_id="upload", type="filepath"
        )
        with gradio.Row(equal_height=False):
            self.names = gradio.Textbox(
                label="Names",
                info="Commas between things, | between words for one thing. "
                "Blank: what the model was trained with.",
                placeholder="red anchor, sofa | couch",
                max_length=10_000,
                elem_id="names",
                scale=5,
                min_width=240,
            )
            self.find = gradio.Button(
                "Find", variant="primary", elem_id="find", scale=1, min_width=100
            )

    def _add_answer(self) -> None:
        self.status = gradio.HTML(_status(summary_of(Session(), THRESHOLD)), elem_id="status")
        self.picture = gradio.HTML(
            {"image": "", "text": ""},
            marking=False,
            html_template=PICTURE,
            js_on_load=(ASSETS / "picture.js").read_text(encoding="utf-8"),
            apply_default_css=False,
            elem_id="picture",
        )

    def _add_threshold(self) -> None:
        self.threshold = gradio.Slider(
            LEAST_SCORE, 1, THRESHOLD, step=0.01, label="Least score", elem_id="threshold"
        )

    def _take_questions(self) -> None:
        outputs = [self.session, self.picture, self.status]
        asked = [self.session, self.names, self.threshold]
        self.upload.upload(
            self._open,
            [self.upload, *asked],
            [self.upload, *outputs],
            **self._of_the_detector("open"),
        )
        for event in (self.find.click, self.names.submit):
            event(self._find, asked, outputs, **self._of_the_detector("find"))
        self.threshold.release(
            self._show,
            [self.session, self.threshold],
            outputs,
            trigger_mode="always_last",
            api_name="threshold",
            api_visibility="undocumented",
        )

    def _add_downloads(self) -> None:
        with gradio.Row():
            for label, file, make in (
                ("Download JSON", "detections.json", detections_json),
                ("Download COCO", "coco.json", coco_json),
            ):
                button = gradio.Button(label, size="sm", min_width=120)
                text = gradio.Textbox(visible="hidden")
                made = button.click(
                    make,
                    [self.session, self.threshold],
                    text,
                    api_name=file.partition(".")[0],
                    api_visibility="undocumented",
                )
                made.then(None, text, None, js=DOWNLOAD % file)

    def _add_examples(self) -> None:
        if reads_names(self.finder.predictor.model):
            return  # it has no use for images of things
        with gradio.Accordion("Example images", open=False, elem_id="examples"):
            name = gradio.Textbox(
                label="What the example is called", max_length=200, elem_id="example-name"
            )
            marking = gradio.Checkbox(label="Draw a box around one in the image", elem_id="marking")
            marked = gradio.HTML(_thumbnails(()), elem_id="thumbnails")
            forget = gradio.Button("Forget the examples", size="sm")
        marking.change(
            _set_marking, marking, self.picture, show_progress="hidden", api_visibility="private"
        )
        outputs = [self.session, self.picture, self.status, marked]
        self.picture.box(
            self._mark,
            [self.session, name, self.threshold],
            outputs,
            **self._of_the_detector("example"),
        )
        forget.click(
            self._forget, [self.session, self.threshold], outputs, **self._of_the_detector("forget")
        )

    def _of_the_detector(self, name: str) -> dict[str, Any]:
        """Of an event that makes the detector work: one at a time, whoever asks."""
        return {
            "concurrency_id": DETECTOR,
            "concurrency_limit": 1,
            "api_name": name,
            "api_visibility": "undocumented",
            "show_progress": "minimal",
            "show_progress_on": self.status,
        }

    def _open(
        self, path: str | None, session: Session, names: str, threshold: float
    ) -> tuple[Any, ...]:
        if path is None:
            return None, *self._show(session, threshold)
        file, asked = Path(path), replace(session, names=names)
        return None, *self._answer(
            session,
            threshold,
            lambda: self.finder.with_photo(asked, file.name, file.read_bytes()),
        )

    def _find(self, session: Session, names: str, threshold: float) -> tuple[Any, ...]:
        return self._answer(session, threshold, lambda: self.finder.with_names(session, names))

    def _mark(
        self, session: Session, name: str, threshold: float, event: gradio.EventData
    ) -> tuple[Any, ...]:
        found = self._answer(
            session, threshold, lambda: self.finder.with_example(session, name, event.box)
        )
        return *found, _thumbnails(found[0].examples)

    def _forget(self, session: Session, threshold: float) -> tuple[Any, ...]:
        found = self._answer(session, threshold, lambda: self.finder.without_examples(session))
        return *found, _thumbnails(found[0].examples)

    def _show(self, session: Session, threshold: float) -> tuple[Any, ...]:
        return self._answer(session, threshold, lambda: session)

    def _answer(
        self, session: Session, threshold: float, step: Callable[[], Session]
    ) -> tuple[Any, ...]:
        """The session after a step, its picture, and what is said of it; a step that cannot be
        taken leaves the session and the picture as they were."""
        try:
            session = step()
        except ValueError as error:
            return session, gradio.skip(), _status(sentence_of(error), wrong=True)
        return session, _picture(session, threshold), _status(summary_of(session, threshold))


def _set_marking(marking: bool) -> dict[str, Any]:
    return gradio.update(marking=marking)


def _picture(session: Session, threshold: float) -> dict[str, str]:
    """What the picture's template takes."""
    drawn = on_screen(session, threshold)
    if drawn is None:
        return {"image": "", "text": ""}
    return {"image": _address(drawn), "text": html.escape(summary_of(session, threshold))}


def _status(text: str, *, wrong: bool = False) -> str:
    kind = ' class="wrong"' if wrong else ""
    return f'<p role="status"{kind}>{html.escape(text)}</p>'


def _thumbnails(marked: Iterable[Marked]) -> str:
    shown = "".join(
        f'<figure><img src="{_address(one.thumbnail)}" alt="">'
        f"<figcaption>{html.escape(one.name)}</figcaption></figure>"
        for one in marked
    )
    return shown or "<p>None yet. An example helps where the model does not know the word.</p>"


def _address(rgb: NDArray[np.uint8]) -> str:
    """Of an image that lies in its own address: nothing is left on the server's disk."""
    stream = io.BytesIO()
    Image.fromarray(rgb).save(stream, "JPEG", quality=JPEG_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"
