"""Whatever stands in the place of a value: it is left out with its reason, or refused, no crash."""

import copy
import json

import pytest

from ovd_d2.data.image_faults import Header
from ovd_d2.data.importing.assembly import coco_of
from ovd_d2.data.importing.formats import READERS
from ovd_d2.data.importing.found import Account, Choices
from ovd_d2.data.importing.source import Source
from ovd_d2.errors import SetupError
from tests.own_formats import HEIGHT, WIDTH, WRITERS

JUNK = (None, [], {}, "", "x", -1, True, 1e308, float("nan"), [[]], [{}])


def places(content, path=()):
    """The path of every value; of a list, that of the first one."""
    yield path
    if not isinstance(content, (dict, list)):
        return
    for key, value in content.items() if isinstance(content, dict) else enumerate(content[:1]):
        yield from places(value, (*path, key))


def replaced(content, path, junk):
    if not path:
        return junk
    changed = copy.deepcopy(content)
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = junk
    return changed


def whole(source, found, account):
    """As import_dataset does, with headers that need no look at the files."""
    headers = {str(one): Header(HEIGHT, WIDTH, False) for one in source.images}
    for images in found.splits.values():
        names = {o.name for image in images for o in image.objects}
        coco_of(images, sorted(names), headers, source.root, account)


@pytest.mark.parametrize("name", ["coco", "labelme", "label-studio"])
def test_json_with_anything_anywhere(tmp_path, name):
    WRITERS[name](tmp_path)
    source = Source(tmp_path)
    file = source.files(".json")[0]
    content = json.loads(file.read_text())
    tried = 0
    for path in places(content):
        for junk in JUNK:
            account = Account()
            broken = replaced(content, path, junk)
            source.json = lambda _, broken=broken: broken
            try:
                whole(source, READERS[name].read(source, Choices(), account), account)
            except SetupError:
                pass
            except Exception as error:
                raise AssertionError(f"{junk!r} at {path}") from error
            json.dumps([case.why for case in account.cases])
            tried += 1
    assert tried > 100


@pytest.mark.parametrize("words", ["0 inf .5 .1 .1", "nan .5 .5 .1 .1", "inf .5 .5 .1 .1", "\x00"])
def test_yolo_numbers_that_are_none(tmp_path, words):
    WRITERS["yolo"](tmp_path)
    (tmp_path / "labels/c.txt").write_text(words)
    source, account = Source(tmp_path), Account()
    whole(source, READERS["yolo"].read(source, Choices(), account), account)
    assert len(account.cases) == 1


MASK = '<mask label="a" rle="{}" left="{}" top="0" width="{}" height="{}"/>'


@pytest.mark.parametrize(
    "shape",
    [
        MASK.format("1,3", 0, 3, 3),
        MASK.format("0,9", 0, "1e400", 3),
        MASK.format("0,4", 63, 2, 2),
        MASK.format("0,x", 0, 2, 2),
        MASK.format("0,10000000000", 0, 100000, 100000),
        '<polygon label="a" points="1,2;3"/>',
        '<polygon label="a"/>',
        '<box label="a" xtl="1" ytl="2" xbr="x" ybr="4"/>',
        '<box label="a" xtl="nan" ytl="2" xbr="3" ybr="4"/>',
    ],
)
@pytest.mark.parametrize("size", [WIDTH, 10**6])
def test_cvat_shapes_that_are_none(tmp_path, shape, size):
    WRITERS["cvat"](tmp_path)
    text = f'<annotations><image name="c.png" width="{size}" height="{size}">{shape}'
    (tmp_path / "annotations.xml").write_text(text + "</image></annotations>")
    source, account = Source(tmp_path), Account()
    whole(source, READERS["cvat"].read(source, Choices(), account), account)
    assert account.cases


@pytest.mark.parametrize("content", ["[]", "3", '{"images": []}'])
def test_a_file_that_is_given_as_coco_and_is_not(tmp_path, content):
    file = tmp_path / "list.json"
    file.write_text(content)
    with pytest.raises(SetupError, match="list.json: not COCO format: no list .*categories"):
        READERS["coco"].read(Source(file), Choices(), Account())
