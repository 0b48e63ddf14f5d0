"""Label Studio's JSON export."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from ovd_d2.data.importing.cvat import TURNED, turned
from ovd_d2.data.importing.found import (
    MALFORMED,
    Account,
    Choices,
    FoundImage,
    FoundObject,
    FoundSet,
    Unusable,
    around,
    said_by,
)
from ovd_d2.data.importing.source import NotFound, Source
from ovd_d2.errors import SetupError

NAME, TITLE = "label-studio", "Label Studio (JSON)"
_UPLOAD = re.compile(r"^[0-9a-f]{8}-")  # Label Studio puts it before an uploaded file's name


def recognises(source: Source) -> bool:
    return source.has_json(lambda content: _is_tasks(content) or _is_short(content))


def read(source: Source, choices: Choices, account: Account) -> FoundSet:
    """The first annotation of each task that was not cancelled.

    Raises:
        SetupError: a file cannot be read, or is Label Studio's short form.
    """
    found = FoundSet()
    for file in source.files(".json"):
        try:
            content = source.json(file)
        except ValueError as error:
            raise SetupError([str(error)]) from error
        if _is_short(content) and not _is_tasks(content):
            raise SetupError([f"{file}: JSON-MIN lacks what is needed: export it as JSON"])
        if not _is_tasks(content):
            account.left_out("file", "JSON, but not Label Studio's", source.short(file))
            continue
        for number, task in enumerate(content, 1):
            where = f"{source.short(file)}, task {task.get('id', f'number {number}')}"
            try:
                _add_task(task, file, where, source, choices, found, account)
            except MALFORMED as error:
                account.left_out("image", said_by(error), where)
    return found


def _is_tasks(content: Any) -> bool:
    return _is_list(content) and all(isinstance(one.get("data"), dict) for one in content)


def _is_short(content: Any) -> bool:
    """JSON-MIN, which lacks the kinds of regions and what was cancelled."""
    return _is_list(content) and all("image" in one and "id" in one for one in content)


def _is_list(content: Any) -> bool:
    return bool(content) and isinstance(content, list) and all(isinstance(x, dict) for x in content)


def _add_task(
    task: dict[str, Any],
    file: Path,
    where: str,
    source: Source,
    choices: Choices,
    found: FoundSet,
    account: Account,
) -> None:
    regions = _regions(task, choices, where, account)
    if regions is None:
        return
    image = _find(task["data"], regions, file, source)
    objects, size = [], None
    for number, region in enumerate(regions, 1):
        place = f"{where}, region {number}"
        try:
            size = (int(region["original_width"]), int(region["original_height"]))
            objects += list(_objects(region, size, place, account))
        except MALFORMED as error:
            account.left_out("box", said_by(error), place)
    found.add(source.split_of(image), FoundImage(image, tuple(objects), where, size))


def _regions(
    task: dict[str, Any], choices: Choices, where: str, account: Account
) -> list[dict[str, Any]] | None:
    """Of the annotation that counts; None: there is none."""
    done = [one for one in task.get("annotations") or () if not one.get("was_cancelled")]
    if len(done) > 1:
        account.left_out("annotation", "another one of the same task counts", where)
    if not done and choices.predictions:
        done = task.get("predictions") or []
    if done:
        regions = done[0].get("result") or []
        return [one for one in regions if not _is_choice(one)]
    predicted = bool(task.get("predictions"))
    why = "nobody has annotated the task" + (", only a model (--predictions)" if predicted else "")
    account.left_out("image", why, where)
    return None


def _is_choice(region: Any) -> bool:
    return isinstance(region, dict) and region.get("type") == "choices"


def _find(data: dict[str, Any], regions: list[dict[str, Any]], file: Path, source: Source) -> Path:
    texts = [value for value in data.values() if isinstance(value, str)]
    named = [data["image"]] if isinstance(data.get("image"), str) else texts
    for text in named:
        address = urlsplit(text)
        local = parse_qs(address.query).get("d", [])  # /data/local-files/?d=folder/image.jpg
        path = unquote(address.path)
        shorter = _UPLOAD.sub("", path.rsplit("/", 1)[-1])
        for name in (text, *(f"/{one}" for one in local), path, "../" + shorter):
            try:
                return source.find(name, file.parent)
            except NotFound as error:
                problem = error
    raise problem if named else NotFound("the task names no image")


def _objects(
    region: dict[str, Any], size: tuple[int, int], where: str, account: Account
) -> Iterator[FoundObject]:
    """One for each label of a region; Label Studio counts in per cent of the image."""
    kind = region.get("type")
    if kind not in ("rectanglelabels", "polygonlabels"):
        raise Unusable(f"of the kind {kind}, which has no box")
    if region.get("image_rotation"):
        raise Unusable("the image was turned in Label Studio")
    value = region["value"]
    width, height = (one / 100 for one in size)
    for label in value[kind]:
        name = str(label).strip()
        if kind == "polygonlabels":
            points = tuple(v for x, y in value["points"] for v in (x * width, y * height))
            yield FoundObject(name, around(points), where, (points,))
            continue
        x, y = value["x"] * width, value["y"] * height
        box = (x, y, x + value["width"] * width, y + value["height"] * height)
        if (value.get("rotation") or 0) % 360:
            account.changed("box", TURNED, where)
            box = turned(box, value["rotation"], (x, y))
        yield FoundObject(name, box, where)
