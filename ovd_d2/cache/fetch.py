"""Where a store lies for reading: in a local folder, or elsewhere, from where it is fetched."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from detectron2.utils.file_io import PathManager
from tqdm import tqdm

from ovd_d2.cache.identity import IMAGES_FILE
from ovd_d2.cache.index import INDEX_FILE
from ovd_d2.cache.manifest import MANIFEST_FILE, CacheError, Manifest, local_folder


def fetch_store(path: str | os.PathLike[str]) -> Path:
    """The local folder with the files of the store at `path`, to be read only.

    Handlers of Detectron2's PathManager for remote places (`https://`, ...) fetch single files, not
    folders: the manifest is fetched first, then every file that it names. What a handler has
    fetched before it does not fetch again.

    Raises:
        CacheError: a file cannot be fetched, or the manifest is damaged.
    """
    name = os.fspath(path).rstrip("/")
    if "://" not in name:
        return local_folder(path)
    folder = _fetch(name, MANIFEST_FILE).parent
    manifest = Manifest.load(folder)
    files = [shard.file for shard in manifest.shards]
    if manifest.complete:
        files.insert(0, INDEX_FILE)
    for file in tqdm(files, f"fetch {name}", unit="file", leave=False, delay=1):
        local = _fetch(name, file)
        if local.parent != folder:
            raise CacheError(
                f"the handler of {name} puts {file} into {local.parent} and {MANIFEST_FILE} into "
                f"{folder}; copy the store into one local folder and name that"
            )
    with contextlib.suppress(CacheError):  # an older store has none; a training says so
        _fetch(name, IMAGES_FILE)
    return folder


def _fetch(name: str, file: str) -> Path:
    try:
        return Path(PathManager.get_local_path(f"{name}/{file}"))
    except OSError as error:
        raise CacheError(
            f"{name}/{file} cannot be fetched ({error}); check the address, or copy the store into "
            "a local folder and name that"
        ) from error
