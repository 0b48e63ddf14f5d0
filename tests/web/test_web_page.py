"""What is on the page, without a browser."""

from __future__ import annotations

import inspect
import json

import pytest

from ovd_d2.predictor import OpenVocabularyPredictor
from ovd_d2.web.session import Finder, Limits
from tests.test_prediction_systems import glip_config
from tests.tiny_glip import tiny_glip
from tests.web.pages import tiny_predictor

gradio = pytest.importorskip("gradio", reason="an extra of this package (web)")
web = pytest.importorskip("ovd_d2.web.page")


@pytest.fixture(scope="module")
def vild():
    return Finder(tiny_predictor(), Limits(upload=2 * 1024**2))


def labels(finder):
    config = web.build_page(finder, "<i>A page</i>").get_config_file()
    return json.dumps([one["props"] for one in config["components"]], default=str)


def test_what_is_on_the_page(vild):
    shown = labels(vild)
    for text in ("Image, at most 2 MiB", "Names", "Least score", "Find", "Example images"):
        assert text in shown
    assert "# &lt;i&gt;A page&lt;/i&gt;" in shown


def test_a_system_that_reads_words_takes_no_example_images():
    shown = labels(Finder(OpenVocabularyPredictor(glip_config(), model=tiny_glip())))
    assert "Names" in shown and "Example images" not in shown


def test_gradio_knows_every_option(vild):
    options = web.launch_options(vild)
    inspect.signature(gradio.Blocks.launch).bind(None, **options)
    assert options["share"] is False and options["max_file_size"] == 2 * 1024**2
