"""Training, evaluation and the checks before them."""

from ovd_d2.engine.build import build_open_vocabulary_model
from ovd_d2.engine.checks import check_setup
from ovd_d2.engine.trainer import OpenVocabularyTrainer

__all__ = [
    "OpenVocabularyTrainer",
    "build_open_vocabulary_model",
    "check_setup",
]
