"""A small detector and images for the tests of the web page."""

from __future__ import annotations

import io

import numpy as np
import torch
from detectron2.modeling import build_model
from PIL import Image

from ovd_d2.predictor import OpenVocabularyPredictor
from tests.tiny import tiny_config
from tests.tiny_fvit import wide_vocabulary
from tests.tiny_vits import DIM, NATIVE, tiny_teacher

SIZE = (80, 60)  # width, height


def tiny_predictor() -> OpenVocabularyPredictor:
    """ViLD-ensemble with random weights that finds some boxes of any two names, and no names of its
    own."""
    cfg = tiny_config("vild_ensemble")
    cfg.MODEL.OVD.EMBEDDING_DIM = DIM
    cfg.MODEL.OVD.TEACHER.PROMPTS = "single"
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 64, 96
    torch.manual_seed(0)
    model = build_model(cfg)
    model.set_vocabulary(wide_vocabulary())
    return OpenVocabularyPredictor(cfg, model=model, teacher=tiny_teacher(NATIVE))


def image_file(seed: int = 0, kind: str = "PNG", size: tuple[int, int] = SIZE) -> bytes:
    """The content of a file of noise."""
    pixels = np.random.default_rng(seed).integers(0, 255, (*size[::-1], 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()
