"""Where data sets live: `DETECTRON2_DATASETS`, and the `datasets://` prefix for configs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from detectron2.utils.file_io import PathManager
from iopath.common.file_io import PathHandler

PREFIX = "datasets://"


def datasets_root() -> Path:
    """The folder that Detectron2 itself uses: `DETECTRON2_DATASETS`, by default `./datasets`."""
    return Path(os.getenv("DETECTRON2_DATASETS", "datasets")).expanduser()


class DatasetsPathHandler(PathHandler):
    """Resolves `datasets://a/b` to `DETECTRON2_DATASETS/a/b`.

    A yaml file cannot read the environment; with this prefix a shipped config names a vocabulary
    or a cache once and finds it on every machine.
    """

    def _get_supported_prefixes(self) -> list[str]:
        return [PREFIX]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        return str(datasets_root() / path[len(PREFIX) :])

    def _isfile(self, path: str, **kwargs: Any) -> bool:
        return os.path.isfile(self._get_local_path(path))

    def _isdir(self, path: str, **kwargs: Any) -> bool:
        return os.path.isdir(self._get_local_path(path))

    def _exists(self, path: str, **kwargs: Any) -> bool:
        return os.path.exists(self._get_local_path(path))

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any) -> Any:
        return open(self._get_local_path(path), mode, buffering=buffering)

    def _mkdirs(self, path: str, **kwargs: Any) -> None:
        os.makedirs(self._get_local_path(path), exist_ok=True)

    def _ls(self, path: str, **kwargs: Any) -> list[str]:
        return os.listdir(self._get_local_path(path))


PathManager.register_handler(DatasetsPathHandler(), allow_override=True)
