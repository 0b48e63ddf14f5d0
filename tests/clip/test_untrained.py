"""open_clip models without weights."""

import logging

import pytest
import torch

from ovd_d2.clip.untrained import untrained_model


def test_nothing_is_stored_on_the_meta_device():
    model = untrained_model("ViT-L-14-336", "meta")
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert model.encode_image(torch.empty(2, 3, 336, 336, device="meta")).shape == (2, 768)


def test_the_warning_of_random_weights_alone_is_kept_back(caplog: pytest.LogCaptureFixture):
    model = untrained_model("Pictogram-RN")
    assert model.training
    assert caplog.messages == []
    logging.warning("No room on the disk")
    assert caplog.messages == ["No room on the disk"]
