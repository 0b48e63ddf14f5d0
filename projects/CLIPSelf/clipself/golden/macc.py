"""Accuracy of region classification: `d_macc` (section 5 of the README)."""

from __future__ import annotations

import torch

from ovd_d2.golden import Found, GoldenFolder, Part, difference
from ovd_d2.projects.clipself.region_classification.metrics import best_classes, macro_accuracy

TOLERANCE = 5e-4  # float16
KINDS = ("rois", "crops", "maskpool")


def _accuracies(folder: GoldenFolder, file: str) -> Found:
    """The five best categories of every region, and their accuracy, things and stuff apart."""
    golden = folder.tensors(file)
    labels, is_thing = golden["labels"], golden["is_thing"] > 0
    for kind in KINDS:
        best = best_classes(golden[f"features_{kind}"], golden["class_embeddings"], 5)
        yield f"top5_{kind}", difference(best, golden[f"top5_{kind}"]), 0.0
        for group, chosen in (("thing", is_thing), ("stuff", ~is_thing)):
            for k in (1, 5):
                hits = (best[chosen, :k] == labels[chosen, None]).any(dim=1)
                found = macro_accuracy(hits.tolist(), labels[chosen].tolist())
                ours = torch.tensor([float("nan") if found is None else found.rounded])
                name = f"{kind}.{group}.macc{k}"
                yield name, difference(ours, golden[name]), TOLERANCE


PARTS = (Part("accuracy", ("d_macc.safetensors",), _accuracies),)
