"""CLIPSelf and F-ViT beside the public code's numbers (:mod:`ovd_d2.golden`)."""

from __future__ import annotations

from ovd_d2.projects.clipself.golden import data, dense, detector, macc, panoptic, step

# In the order of the data flow.
PARTS = (
    *dense.PARTS,
    *step.PARTS,
    *data.PARTS,
    *panoptic.PARTS,
    *macc.PARTS,
    *detector.PARTS,
)
