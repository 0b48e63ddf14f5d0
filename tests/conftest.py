"""What every test has: the same random numbers, and a cache folder of its own."""

import os
import random
from collections.abc import Iterator

import matplotlib
import numpy as np
import pytest
import torch

# Read when huggingface_hub is imported: no test waits for a network that may not be there.
os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(scope="session", autouse=True)
def _own_cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is remembered of images stays out of the user's cache; matplotlib keeps its fonts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MPLCONFIGDIR", matplotlib.get_cachedir())
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("caches")))
        yield


@pytest.fixture(autouse=True)
def _seeded() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
