"""What is written, what is left out and why, and that nothing is half-written."""

import json
import os

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from ovd_d2.data.importing.folder import (
    Wish,
    import_dataset,
    read_base,
    write_imported,
)
from ovd_d2.data.importing.source import NotFound, Source
from ovd_d2.data.own import register_own
from ovd_d2.errors import SetupError
from ovd_d2.files import read_text
from tests.own_formats import HEIGHT, TRUTH, WIDTH, WRITERS, draw, voc_xml
from tests.programs import run_program


@pytest.fixture(autouse=True)
def memory(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))


def add_voc(root, file, objects, draws=True, **options):
    if draws:
        draw(root, [file])
    (root / file).with_suffix(".xml").write_text(voc_xml(file, objects, **options))


def add_exif_image(file):
    """Stored 64 x 48, shown 48 x 64."""
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (WIDTH, HEIGHT)).save(file, exif=exif)


GOOD = [("cat", (5, 5, 20, 20))]


def test_every_way_to_be_left_out_is_counted_with_its_reason(tmp_path):
    root = tmp_path / "data"
    outside = [("cat", (70, 5, 90, 20)), ("", (5, 5, 9, 9)), *GOOD, *GOOD]
    add_voc(root, "boxes.png", [*outside, ("dog", (20, 5, 9, 9)), ("dog", (50, 5, 90, 20))])
    add_voc(root, "nan.png", [("cat", (5, 5, float("nan"), 9)), ("cat", (5, 5, float("inf"), 9))])
    add_voc(root, "gone.png", GOOD, draws=False)
    add_voc(root, "size.png", GOOD, size=(640, 480))
    add_voc(root, "cut.png", GOOD)
    (root / "cut.png").write_bytes((root / "cut.png").read_bytes()[:60])
    add_voc(root, "deep.png", GOOD)
    Image.new("I;16", (WIDTH, HEIGHT)).save(root / "deep.png")
    add_voc(root, "turned.jpg", GOOD)
    add_exif_image(root / "turned.jpg")
    add_voc(root, "right.jpg", [("cat", (5, 5, 40, 60))], size=(HEIGHT, WIDTH))
    add_exif_image(root / "right.jpg")
    (root / "broken.xml").write_text("<annotation>")
    draw(root, ["alone.png"])
    imported = import_dataset(Source(root), Wish(share=0))
    dataset = imported.splits["train"]
    assert [one["file_name"] for one in dataset["images"]] == ["boxes.png", "nan.png", "right.jpg"]
    kept = [one["bbox"] for one in dataset["annotations"]]
    assert kept == [[5, 5, 15, 15], [8, 5, 13, 4], [50, 5, 14, 15], [5, 5, 35, 55]]
    why = {row[3].split(";")[0]: (row[0], row[1], row[2]) for row in imported.account.rows()}
    assert {key: value for key, value in why.items() if not key.startswith("its image ")} == {
        "its box is outside of the image": ("left out", "box", 1),
        "it has no name": ("left out", "box", 1),
        "the same object is there before": ("left out", "box", 1),
        "its box is not finite": ("left out", "box", 2),
        "it cannot be read": ("left out", "file", 1),
        "it has no annotation (--background takes it as one with nothing)": (
            "left out",
            "image",
            1,
        ),
        "its corners were exchanged": ("changed", "box", 1),
        "it reached out of the image and is cut at the edge": ("changed", "box", 1),
    }
    assert {key for key in why if key.startswith("its image ")} == {
        "its image is not in the folder",
        "its image is of another size than its annotation file says, its boxes would not fit",
        "its image cannot be read",
        "its image is grey with more than 8 bits, which Detectron2 would clip to white",
        "its image is turned by its EXIF orientation, which Detectron2 applies, and annotated "
        "unturned",
    }


def test_no_name_reaches_out_of_the_folder(tmp_path):
    draw(tmp_path, ["secret.png"])
    draw(tmp_path / "data/a", ["x.png"])
    draw(tmp_path / "data/b", ["x.png", "y.png"])
    source = Source(tmp_path / "data")
    for name in ("../secret.png", str(tmp_path / "secret.png"), "file:///" + str(tmp_path)):
        with pytest.raises(NotFound, match="not in the folder"):
            source.find(name, source.root)
    with pytest.raises(NotFound, match="several images"):
        source.find("x.png", source.root)
    assert source.find("b\\x.png", source.root).parent.name == "b"
    assert source.find("C:\\Users\\me\\b\\x.png", source.root).parent.name == "b"
    assert source.find("../elsewhere/y.png", source.root).name == "y.png"
    with pytest.raises(NotFound, match="not in the folder"):
        source.find("a/y.png", source.root)  # another image of that name is not it


def test_umlauts_of_macos_are_those_of_others(tmp_path):
    draw(tmp_path, ["a\u0308.png"])
    assert Source(tmp_path).find("\u00e4.png", tmp_path).name == "a\u0308.png"


def test_a_loop_of_links_ends(tmp_path):
    draw(tmp_path / "data", ["a.png"])
    os.symlink(tmp_path / "data", tmp_path / "data/again")
    assert len(Source(tmp_path / "data").images) == 1


class TestSplits:
    def images(self, imported):
        return {k: {i["file_name"] for i in one["images"]} for k, one in imported.splits.items()}

    def test_a_share_is_held_out_the_same_each_time(self, tmp_path):
        for k in range(10):
            add_voc(tmp_path, f"{k}.png", GOOD)
        first, again = (self.images(import_dataset(Source(tmp_path), Wish())) for _ in range(2))
        assert first == again and len(first["val"]) == 2 and not first["val"] & first["train"]

    def test_one_image_of_two_is_held_out_and_never_the_only_one(self, tmp_path):
        add_voc(tmp_path, "0.png", GOOD)
        assert list(import_dataset(Source(tmp_path), Wish()).splits) == ["train"]
        add_voc(tmp_path, "1.png", GOOD)
        assert list(import_dataset(Source(tmp_path), Wish()).splits) == ["train", "val"]

    def test_an_image_of_two_entries_is_taken_once(self, tmp_path):
        WRITERS["coco"](tmp_path)
        file = tmp_path / "annotations/instances_default.json"
        content = json.loads(file.read_text())
        content["images"].append({**content["images"][0], "id": 99})
        file.write_text(json.dumps(content))
        imported = import_dataset(Source(tmp_path), Wish(share=0))
        assert len(imported.splits["train"]["images"]) == len(TRUTH)
        assert "another entry" in imported.account.cases[0].why


class TestBase:
    def test_of_a_list_or_a_file_with_windows_lines(self, tmp_path):
        (tmp_path / "base.txt").write_bytes("\ufeffcar, automobile\r\n\r\nbee\r\n".encode())
        assert read_base(str(tmp_path / "base.txt")) == ["car, automobile", "bee"]
        assert read_base("car, bee,") == ["car", "bee"]
        with pytest.raises(SetupError, match="--base"):
            read_base(" , ")

    def test_a_name_that_is_none_is_refused_with_the_one_that_was_meant(self, tmp_path):
        WRITERS["voc"](tmp_path)
        with pytest.raises(SetupError, match="called 'cats'; did you mean 'cat'"):
            import_dataset(Source(tmp_path), Wish(base=["cats", "dog"]))


class TestWritten:
    def test_the_yaml_registers_what_training_reads(self, tmp_path):
        WRITERS["csv"](tmp_path / "data")
        (tmp_path / "data/boxes.csv").write_text("file,name,x1,y1,x2,y2\nc.png,yes,1,2,9,9\n")
        source, wish = Source(tmp_path / "data"), Wish("imported_yes", ["yes"], share=0)
        write_imported(import_dataset(source, wish), source, wish, tmp_path / "own")
        (name,) = register_own(tmp_path / "own/my_data.yaml")
        try:
            assert name == "imported_yes_train"
            assert MetadataCatalog.get(name).base_classes == ["yes"]
            (record,) = DatasetCatalog.get(name)
            assert record["annotations"][0]["bbox"] == [1, 2, 8, 7]
        finally:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)

    def test_nothing_stays_of_a_set_that_does_not_pass(self, tmp_path, monkeypatch):
        WRITERS["voc"](tmp_path / "data")
        source, wish = Source(tmp_path / "data"), Wish(share=0)
        imported = import_dataset(source, wish)
        imported.splits["train"]["annotations"][0]["bbox"] = [0, 0, -1, 5]
        with pytest.raises(SetupError, match="width or height"):
            write_imported(imported, source, wish, tmp_path / "own")
        assert sorted(os.listdir(tmp_path)) == ["caches", "data"]

    def test_what_is_there_is_not_overwritten(self, tmp_path):
        WRITERS["voc"](tmp_path / "data")
        source, wish = Source(tmp_path / "data"), Wish(share=0)
        before = sorted(os.listdir(tmp_path / "data"))
        with pytest.raises(FileExistsError):
            write_imported(import_dataset(source, wish), source, wish, tmp_path / "data")
        assert sorted(os.listdir(tmp_path / "data")) == before

    def test_the_command_says_what_it_did(self, tmp_path):
        WRITERS["voc"](tmp_path / "data")
        draw(tmp_path / "data/JPEGImages", ["more.png"])
        words = [tmp_path / "data", "--base", "cat", "--val", 0, "--output", tmp_path / "own"]
        done = run_program("tools/import_dataset.py", *words)
        assert done.status == 0, done.stderr
        for expected in ("PASCAL VOC", "novel", "it has no annotation", "more.png", "my_data.yaml"):
            assert expected in done.stdout
        assert "left out\timage\t" in read_text(tmp_path / "own/report.txt")
        again = run_program("tools/import_dataset.py", *words)
        assert again.status == 1 and "is there already" in again.stderr
        assert "Traceback" not in again.stderr


def test_a_source_that_is_not_there(tmp_path):
    with pytest.raises(SetupError, match="no such folder or file"):
        Source(tmp_path / "nowhere")
