"""GLIP beside the public code's numbers (:mod:`ovd_d2.golden`)."""

from __future__ import annotations

from ovd_d2.projects.glip.golden import (
    evaluation,
    forward,
    preprocess,
    prompts,
    training,
    units,
)

# In the order of the data flow.
PARTS = (
    *prompts.PARTS,
    *preprocess.PARTS,
    *units.PARTS,
    *forward.PARTS,
    *training.PARTS,
    *evaluation.PARTS,
)
