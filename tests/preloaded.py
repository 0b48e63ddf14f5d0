"""What the server of tests/programs.py imports before it forks: what most tools import."""

import detectron2.checkpoint  # noqa: F401
import detectron2.engine  # noqa: F401
import detectron2.evaluation  # noqa: F401
import detectron2.model_zoo  # noqa: F401
import matplotlib.pyplot  # noqa: F401
import open_clip  # noqa: F401

import ovd_d2.clip  # noqa: F401
import ovd_d2.engine.cache_builder  # noqa: F401
import ovd_d2.engine.lazy  # noqa: F401
import ovd_d2.engine.run  # noqa: F401
import ovd_d2.predictor  # noqa: F401
from ovd_d2.systems import systems

systems()
