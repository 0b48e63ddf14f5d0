"""Open-vocabulary detection for Detectron2.

Importing it registers models. Data sets are registered at their first use
(:mod:`ovd_d2.data.registration`).
"""

from ovd_d2 import modeling, vild
from ovd_d2.config import add_ovd_config
from ovd_d2.data import builtin
from ovd_d2.data.registration import register_data_sets
from ovd_d2.plugging import plug

__version__ = "0.2.0"

__all__ = ["add_ovd_config", "builtin", "modeling", "plug", "register_data_sets", "vild"]
