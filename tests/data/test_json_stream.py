"""Large JSON files part by part: the same values as json.load, and errors that name the file."""

import json
import random

import pytest

from ovd_d2.data import json_stream
from ovd_d2.data.json_stream import AnnotationFileError, read_parts


def read(path, **options):
    """What json.load gives, put together from the batches."""
    lists = {"images": [], "annotations": []}
    handlers = {key: entries.extend for key, entries in lists.items()}
    content = read_parts(path, handlers, progress=False, **options)
    return {key: lists.get(key, value) for key, value in content.items()}


def random_value(rng, depth=0):
    kinds = ["int", "float", "text", "null", "true"] + ["list", "object"] * (depth < 3)
    match rng.choice(kinds):
        case "int":
            return rng.randrange(-(10**6), 10**6)
        case "float":
            return rng.choice([rng.uniform(-100, 100), 1e-7, 12345678.125])
        case "text":
            return rng.choice(["", "}, {", 'a "quoted" \\ one', "grüße 蟻 🐜", "]}", "\n\t"])
        case "null":
            return None
        case "true":
            return rng.random() < 0.5
        case "list":
            return [random_value(rng, depth + 1) for _ in range(rng.randrange(4))]
    keys = [f"k{k}" for k in range(rng.randrange(4))]
    return {key: random_value(rng, depth + 1) for key in keys}


@pytest.mark.parametrize("seed", range(30))
def test_same_values_as_json_whatever_the_size_of_the_window(tmp_path, monkeypatch, seed):
    rng = random.Random(seed)
    monkeypatch.setattr(json_stream, "CHUNK", rng.choice([3, 17, 100, 1 << 22]))
    monkeypatch.setattr(json_stream, "PIECE", rng.choice([20, 200, 1 << 16]))
    monkeypatch.setattr(json_stream, "BATCH", rng.choice([1, 5, 4096]))
    entries = [
        {"id": k, "a": random_value(rng), "objects": [{"x": k}, {"y": random_value(rng)}]}
        for k in range(rng.randrange(12))
    ]
    dataset = {"info": random_value(rng), "annotations": entries, "images": [], "n": 12345678}
    text = json.dumps(dataset, indent=rng.choice([None, 1]), ensure_ascii=rng.random() < 0.5)
    path = tmp_path / "a.json"
    path.write_text(text, encoding=rng.choice(["utf-8", "utf-8-sig"]))
    assert read(path) == json.loads(text)
    assert list(read(path)) == list(dataset)


def test_nan_and_numbers_of_any_size(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"images": [{"id": 1}, {"id": NaN}, {"id": -Infinity}, {"id": 3}, 7]}')
    values = [one["id"] if isinstance(one, dict) else one for one in read(path)["images"]]
    assert str(values) == "[1, nan, -inf, 3, 7]"
    path.write_text('{"images": [{"id": 18446744073709551617}, {"id": 2}]}')
    assert read(path, exact=True)["images"][0]["id"] == 2**64 + 1


def refusal(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(AnnotationFileError) as error:
        read(path)
    assert str(path) in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
def test_other_encodings_are_named(tmp_path, encoding):
    message = refusal(tmp_path / "a.json", '{"images": []}'.encode(encoding))
    assert encoding.upper() in message and "save it as UTF-8" in message
    assert "not UTF-8" in refusal(tmp_path / "b.json", b'{"images": ["\xe4"]}')


@pytest.mark.parametrize(
    "content",
    [
        "",
        "   ",
        "<!DOCTYPE html>",
        '{"images": [',
        '{"images": [{"id": 1}, {"id',
        '{"images": [{"id": 1} {"id": 2}]}',
        '{"images": [], }',
        "{1: 2}",
        '{"images": []} {}',
        '{"images": [{"id": ' + "9" * 5000 + "}]}",
    ],
)
def test_what_is_not_json_or_cut_short(tmp_path, content):
    message = refusal(tmp_path / "a.json", content)
    assert "is not JSON, or cut short" in message and "at character" in message


def test_a_bomb_of_nested_lists_is_a_message(tmp_path):
    for content in ('{"images": ' + "[" * 200_000, '{"info": ' + '{"a":' * 100_000, "[" * 10**5):
        assert "nested too deep" in refusal(tmp_path / "a.json", content)


def test_another_top_level_and_a_key_twice(tmp_path):
    assert "not a JSON object" in refusal(tmp_path / "a.json", "[1, 2]")
    assert "has the key 'images' twice" in refusal(
        tmp_path / "a.json", '{"images": [], "images": []}'
    )


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.json"):
        read(tmp_path / "none.json")
