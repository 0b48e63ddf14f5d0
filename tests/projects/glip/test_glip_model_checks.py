"""Weights that would be missed when the model is built are missed before."""

import pytest
import torch

from ovd_d2.engine.run import load_config
from ovd_d2.projects.glip.model_checks import text_encoder_problems

GONE = "MODEL.GLIP.BERT.PRETRAINED 'gone/bert': "


@pytest.fixture
def cfg():
    cfg = load_config("projects/GLIP/configs/base_glip.yaml", ["MODEL.DEVICE", "cpu"])
    cfg.MODEL.GLIP.BERT.PRETRAINED = "gone/bert"
    return cfg


def test_a_text_encoder_that_cannot_be_had(cfg):
    for training in (True, False):
        (problem,) = text_encoder_problems(cfg, training=training)
        assert problem.startswith(GONE)
    cfg.MODEL.GLIP.BERT.PRETRAINED = "pictograms"
    (problem,) = text_encoder_problems(cfg, training=True)
    assert "name a folder with a BERT of the sizes in MODEL.GLIP.BERT" in problem
    cfg.MODEL.GLIP.BERT.PRETRAINED = ""
    assert text_encoder_problems(cfg, training=True) == []


def test_it_is_read_where_weights_bring_none(cfg, tmp_path):
    cfg.MODEL.WEIGHTS = str(tmp_path / "weights.pth")
    assert text_encoder_problems(cfg, training=True) == []  # no such file is another problem
    torch.save({"model": {"backbone.bottom_up.stem": torch.zeros(1)}}, cfg.MODEL.WEIGHTS)
    (problem,) = text_encoder_problems(cfg, training=True)
    assert problem.startswith(GONE)
    assert text_encoder_problems(cfg, training=False) == []  # those of a whole detector are meant
    whole = {"text_encoder.bert.embeddings.LayerNorm.weight": torch.zeros(1)}
    torch.save({"model": whole}, cfg.MODEL.WEIGHTS)
    assert text_encoder_problems(cfg, training=True) == []
