"""Open-vocabulary detection for Detectron2. Importing it registers models and data sets."""

from ovd_d2 import (  # evaluation first: it mends lvis before data sets load it
    evaluation,
    modeling,
    vild,
)
from ovd_d2.config import add_ovd_config
from ovd_d2.data import builtin
from ovd_d2.plugging import plug

__version__ = "0.2.0"

__all__ = ["add_ovd_config", "builtin", "evaluation", "modeling", "plug", "vild"]
