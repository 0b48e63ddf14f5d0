"""The mini Pictograms of the integration tests, and a tiny teacher that configs can name."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import save_file

from ovd_d2.engine.run import load_config
from tests.integration.conftest import TRAIN, _drawn_once, arguments, mini  # noqa: F401
from tests.tiny_vits import NATIVE, folder_of_architecture, tiny_clip

ROOT = Path(__file__).parents[3]
CONFIGS = ROOT / "projects" / "CLIPSelf" / "configs"


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory):
    """A file of a tiny ViT's weights; open_clip knows the architecture."""
    folder = tmp_path_factory.mktemp("tiny_vit")
    folder_of_architecture(folder, NATIVE)
    path = folder / "weights.safetensors"
    save_file(tiny_clip(NATIVE).state_dict(), path)
    return path


@pytest.fixture
def mini_config(mini, tiny_weights, tmp_path):  # noqa: F811
    """(config of Pictograms, options) -> a config of a few quick steps."""

    def build(name="clipself_patches", output=tmp_path, *options):
        quick = {
            "MODEL.OVD.TEACHER.ARCHITECTURE": NATIVE,
            "MODEL.OVD.TEACHER.PRETRAINED": str(tiny_weights),
            "MODEL.CLIPSELF.IMAGE_SIZE": 64,
            "MODEL.CLIPSELF.GLOBAL_ATTENTION_BLOCKS": (),
            "INPUT.LSJ.SIZE": 64,
            "DATASETS.TRAIN": (TRAIN,),
            "DATALOADER.NUM_WORKERS": 0,
            "SOLVER.IMS_PER_BATCH": 2,
            "SOLVER.MAX_ITER": 6,
            "SOLVER.WARMUP_ITERS": 0,
            "SOLVER.CHECKPOINT_PERIOD": 3,
            "OUTPUT_DIR": str(output),
        }
        pairs = [item for pair in quick.items() for item in pair]
        return load_config(str(CONFIGS / "pictograms" / f"{name}.yaml"), [*pairs, *options])

    return build
