"""What `import ovd_d2` brings along: models in the registries, no heavy libraries."""

import subprocess
import sys

# Each takes a tenth of a second or more to import, or changes something (lvis: the root logger).
HEAVY = ("hotcoco", "huggingface_hub", "lvis", "matplotlib", "open_clip", "timm", "transformers")

CODE = f"""
import sys
import detectron2.data, detectron2.evaluation, detectron2.modeling
before = set(sys.modules)
import ovd_d2
print(*sorted({set(HEAVY)} & (set(sys.modules) - before)))

from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, ROI_HEADS_REGISTRY
assert "OpenVocabularyRCNN" in META_ARCH_REGISTRY
assert "ViLDROIHeads" in ROI_HEADS_REGISTRY and "ViLDCascadeROIHeads" in ROI_HEADS_REGISTRY
assert "build_ovd_timm_fpn_backbone" in BACKBONE_REGISTRY
"""


def test_models_are_registered_without_heavy_libraries():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
