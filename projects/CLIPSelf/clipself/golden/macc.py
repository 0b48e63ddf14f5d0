"""Accuracy of region classification: `d_macc` (section 5 of the README)."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ovd_d2.golden import Comparison, GoldenFolder, difference
from ovd_d2.projects.clipself.region_classification.metrics import best_classes, macro_accuracy

FILE = "d_macc.safetensors"
TOLERANCE = 5e-4  # float16
KINDS = ("rois", "crops", "maskpool")


def comparisons(folder: GoldenFolder) -> Iterator[Comparison]:
    """The five best categories of every region, and their accuracy, things and stuff apart."""
    if not folder.has(FILE):
        return
    golden = folder.tensors(FILE)
    labels, is_thing = golden["labels"], golden["is_thing"] > 0
    for kind in KINDS:
        best = best_classes(golden[f"features_{kind}"], golden["class_embeddings"], 5)
        yield Comparison(FILE, f"top5_{kind}", difference(best, golden[f"top5_{kind}"]), 0.0)
        for group, chosen in (("thing", is_thing), ("stuff", ~is_thing)):
            for k in (1, 5):
                hits = (best[chosen, :k] == labels[chosen, None]).any(dim=1)
                found = macro_accuracy(hits.tolist(), labels[chosen].tolist())
                ours = torch.tensor([float("nan") if found is None else found.rounded])
                name = f"{kind}.{group}.macc{k}"
                yield Comparison(FILE, name, difference(ours, golden[name]), TOLERANCE)
