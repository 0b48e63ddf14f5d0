"""Sources made here in the layouts of DetPro and object-centric-ovd, sound and broken."""

import collections
import io
import json
import os
import pickle
import pickletools
import zipfile

import numpy as np
import pytest
import torch
from cache_import.convert import convert_cache, describe
from cache_import.layouts import DetProLayout, ObjectCentricLayout

from ovd_d2.cache import CacheError, EmbeddingCache

DIM = 8
TEACHER = "Toy-RN-0123"
# In the order of the annotation file, which is not that of the ids.
IDS = (7, 3, 5, 11)
WIDTH, HEIGHT = 100, 60


def unit_rows(count, seed, dim=DIM):
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(count, dim, generator=generator), dim=1)


def proposals_of(image_id, count):
    """(count, 5): x1, y1, x2, y2, score; scores ascend, so that sorting shows."""
    rng = np.random.default_rng(image_id)
    corner = rng.uniform(0, 30, (count, 2))
    size = rng.uniform(1, 30, (count, 2))
    scores = np.linspace(0.1, 0.9, count).reshape(-1, 1)
    return np.concatenate([corner, corner + size, scores], axis=1).astype(np.float32)


def write_zip(path, tensors, folder="data/lvis_clip_image_embedding/train2017"):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, value in tensors.items():
            stream = io.BytesIO()
            torch.save(value, stream)
            archive.writestr(f"{folder}/{name}.pth", stream.getvalue())


class Source:
    """A data set of four images and, in one folder, what DetPro would have stored for them."""

    def __init__(self, folder):
        self.folder = folder
        self.arrays = {image_id: proposals_of(image_id, k) for k, image_id in enumerate(IDS)}
        self.rows = {image_id: unit_rows(k, image_id) for k, image_id in enumerate(IDS)}
        self.dataset = [
            {
                "image_id": image_id,
                "file_name": f"/data/coco/train2017/{image_id:012d}.jpg",
                "width": WIDTH,
                "height": HEIGHT,
            }
            for image_id in sorted(IDS)
        ]
        self.annotations = folder / "lvis.json"
        self.annotations.write_text(json.dumps({"images": [{"id": one} for one in IDS]}))

    def write_detpro(self, protocol=2):
        # Where mmdet finds no proposals it takes one box of zeros: DetPro stores its embedding.
        rows = {one: rows if len(rows) else unit_rows(1, 0) for one, rows in self.rows.items()}
        write_zip(self.folder / "embeddings.zip", {f"{k:012d}": v for k, v in rows.items()})
        with (self.folder / "proposals.pkl").open("wb") as stream:
            pickle.dump([self.arrays[one] for one in IDS], stream, protocol=protocol)

    def detpro(self):
        return DetProLayout(
            self.folder / "embeddings.zip", self.folder / "proposals.pkl", self.annotations
        )

    def write_object_centric(self, factor=10.0, protocol=None):
        (self.folder / "pickles").mkdir(exist_ok=True)
        for one in IDS:
            pairs = [
                (box.tolist(), factor * row.reshape(1, -1))
                for box, row in zip(self.arrays[one][:, :4], self.rows[one], strict=True)
            ]
            path = self.folder / "pickles" / f"{one:012d}.pkl"
            path.write_bytes(pickle.dumps(pairs, protocol=protocol))

    def object_centric(self):
        return ObjectCentricLayout(self.folder / "pickles")

    def convert(self, layout, path=None, **options):
        options = {"dtype": "float32", "progress": False, **options}
        return convert_cache(
            self.dataset,
            layout,
            path or self.folder / "cache",
            dataset_name="toy_train",
            teacher=TEACHER,
            embedding_dim=DIM,
            **options,
        )


@pytest.fixture
def source(tmp_path):
    return Source(tmp_path)


@pytest.fixture
def victim(tmp_path):
    """A file that a malicious pickle would create."""
    return tmp_path / "owned"


class Malicious:
    def __init__(self, victim):
        self.victim = victim

    def __reduce__(self):
        return os.system, (f"touch {self.victim}",)


def test_what_no_store_can_be_made_of(source):
    source.write_detpro()
    with pytest.raises(CacheError, match="top_k is 0, expected at least 1"):
        source.convert(source.detpro(), top_k=0)
    source.dataset.append(source.dataset[0])
    with pytest.raises(CacheError, match="1 image ids occur more than once"):
        source.convert(source.detpro())
    assert not (source.folder / "cache").exists()


# DetPro


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_detpro_is_taken_over_row_by_row_best_first(source, protocol):
    source.write_detpro(protocol)
    summary = source.convert(source.detpro())
    cache = EmbeddingCache(source.folder / "cache")
    assert list(cache) == sorted(IDS)
    for image_id in IDS:
        record, array = cache[image_id], torch.from_numpy(source.arrays[image_id])
        assert torch.equal(record.boxes, array[:, :4].flip(0))
        assert torch.equal(record.objectness, array[:, 4].flip(0))
        expected = source.rows[image_id].flip(0)
        assert torch.allclose(record.embeddings, expected, atol=1e-6)
    assert (summary.written.manifest.num_images, summary.written.manifest.num_rows) == (4, 6)
    assert summary.seen.rows_normalised == 0
    assert cache.verify() == []


def test_the_folder_behind_the_zip_will_do(source):
    source.write_detpro()
    with zipfile.ZipFile(source.folder / "embeddings.zip") as archive:
        archive.extractall(source.folder / "unpacked")
    layout = DetProLayout(
        source.folder / "unpacked", source.folder / "proposals.pkl", source.annotations
    )
    source.convert(source.detpro())
    source.convert(layout, source.folder / "other")
    fingerprints = {EmbeddingCache(source.folder / k).fingerprint for k in ("cache", "other")}
    assert len(fingerprints) == 1


def test_the_manifest_says_where_a_converted_cache_is_from(source):
    source.write_detpro()
    source.convert(source.detpro(), top_k=2)
    manifest = EmbeddingCache(source.folder / "cache").manifest
    assert manifest.teacher == TEACHER
    assert manifest.proposals.startswith("detpro-")
    assert manifest.recipe["converted_from"] == "detpro"
    assert manifest.recipe["top_k"] == 2


def test_top_k_keeps_the_best(source):
    source.write_detpro()
    source.convert(source.detpro(), top_k=2)
    record = EmbeddingCache(source.folder / "cache")[11]
    assert record.objectness.tolist() == pytest.approx([0.9, 0.5])
    assert torch.allclose(record.embeddings, source.rows[11][[2, 1]], atol=1e-6)


def test_a_stopped_conversion_goes_on(source, monkeypatch):
    source.write_detpro()
    layout, read = source.detpro(), DetProLayout.read
    calls = []

    def stopped(self, entry):
        calls.append(entry["image_id"])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return read(self, entry)

    monkeypatch.setattr(DetProLayout, "read", stopped)
    with pytest.raises(KeyboardInterrupt):
        source.convert(layout, images_per_shard=1)
    with pytest.raises(CacheError, match="unfinished"):
        EmbeddingCache(source.folder / "cache")
    monkeypatch.undo()
    summary = source.convert(layout)
    assert (summary.written.manifest.num_images, summary.written.images_written) == (4, 2)


def test_boxes_without_scores_get_objectness_one_and_keep_their_order(source):
    source.arrays = {one: array[:, :4] for one, array in source.arrays.items()}
    source.write_detpro()
    summary = source.convert(source.detpro())
    record = EmbeddingCache(source.folder / "cache")[11]
    assert record.objectness.tolist() == [1, 1, 1]
    assert torch.equal(record.boxes, torch.from_numpy(source.arrays[11]))
    assert summary.seen.without_scores == 4


def test_rows_that_are_not_unit_are_normalised_and_counted(source):
    source.rows[11] = source.rows[11] * torch.tensor([[2.0], [1.0], [0.5]])
    source.write_detpro()
    summary = source.convert(source.detpro())
    assert summary.seen.rows_normalised == 2
    assert summary.seen.norms == pytest.approx((0.5, 2.0))
    record = EmbeddingCache(source.folder / "cache")[11]
    assert torch.allclose(record.embeddings.norm(dim=1), torch.ones(3))
    assert ("rows normalised", "2 of 6 (norms 0.5 to 2)") in describe(summary)


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_an_embedding_without_direction_is_refused(source, value):
    source.rows[5] = source.rows[5] * value
    source.write_detpro()
    with pytest.raises(CacheError, match=r"image 5 .*2 of 2 embeddings are zero, NaN or infinite"):
        source.convert(source.detpro())


def test_counts_that_do_not_match_name_both_files(source):
    source.rows[11] = unit_rows(2, 11)
    source.write_detpro()
    with pytest.raises(CacheError, match=r"0011\.pth holds 2 embeddings, .*\.pkl has 3 proposals"):
        source.convert(source.detpro())


def test_another_annotation_file_is_refused(source):
    source.write_detpro()
    source.annotations.write_text(json.dumps({"images": [{"id": 3}]}))
    with pytest.raises(CacheError, match="proposals of 4 images, .* has 1"):
        source.detpro()


def test_every_missing_image_is_reported_at_once_before_anything_is_written(source):
    for one in (3, 11):
        del source.rows[one]
    source.rows[99] = unit_rows(1, 99)
    source.write_detpro()
    with pytest.raises(CacheError, match=r"nothing for 2 of 4 images .*0003\.jpg.*0011\.jpg"):
        source.convert(source.detpro())
    assert not (source.folder / "cache").exists()


def test_images_outside_of_the_data_set_are_left_out_and_counted(source):
    source.write_detpro()
    del source.dataset[0]
    summary = source.convert(source.detpro())
    assert (summary.written.manifest.num_images, summary.unused) == (3, 1)


def test_two_files_of_one_name_are_told_apart_by_their_folder(source):
    source.write_detpro()
    rows = unit_rows(3, 123)
    stream = io.BytesIO()
    torch.save(rows, stream)
    with zipfile.ZipFile(source.folder / "embeddings.zip", "a") as archive:
        archive.writestr("data/x/val2017/000000000011.pth", stream.getvalue())
    source.convert(source.detpro())
    record = EmbeddingCache(source.folder / "cache")[11]
    assert torch.allclose(record.embeddings, source.rows[11].flip(0), atol=1e-6)
    source.dataset[-1]["file_name"] = "/elsewhere/000000000011.jpg"
    with pytest.raises(CacheError, match="several files for each of 1 images"):
        source.convert(source.detpro(), source.folder / "other")


def test_boxes_in_xywh_are_refused_with_the_option_that_reads_them(source):
    for one, array in source.arrays.items():
        array[:, 2:4] -= array[:, :2]
        source.arrays[one] = array
    source.arrays[7] = np.zeros((0, 5), np.float32)
    source.write_detpro()
    with pytest.raises(CacheError, match="x2 < x1 or y2 < y1.*--box-format xywh"):
        source.convert(source.detpro())
    source.convert(source.detpro(), box_format="xywh")
    record = EmbeddingCache(source.folder / "cache")[11]
    expected = torch.from_numpy(proposals_of(11, 3))[:, :4].flip(0)
    assert torch.allclose(record.boxes, expected, atol=1e-5)


def test_boxes_of_resized_images_are_refused(source):
    source.arrays = {one: array * [3, 3, 3, 3, 1] for one, array in source.arrays.items()}
    source.write_detpro()
    with pytest.raises(CacheError, match=r"outside the 100 x 60 image .*resized images"):
        source.convert(source.detpro())


def test_the_summary_shows_how_far_boxes_reach(source):
    source.arrays[11][0, :4] = [10, 10, 50, 45]
    for one in (3, 5):
        source.arrays[one][:, :4] = [1, 1, 20, 20]
    source.arrays[11][1:, :4] = [1, 1, 20, 20]
    source.write_detpro()
    summary = source.convert(source.detpro())
    assert summary.seen.reach == pytest.approx((0.5, 0.75))


def test_scores_outside_of_0_to_1_are_refused(source):
    source.arrays[11][1, 4] = 1.5
    source.write_detpro()
    with pytest.raises(CacheError, match=r"image 11 .*a score is not in \[0, 1\]"):
        source.convert(source.detpro())


def test_an_embedding_of_another_teacher_is_refused(source):
    source.rows[11] = unit_rows(3, 11, dim=DIM + 1)
    source.write_detpro()
    with pytest.raises(CacheError, match=r"image 11: embeddings \(3, 9\), expected \(3, 8\)"):
        source.convert(source.detpro())


def test_a_file_too_large_for_its_proposals_is_not_unpacked(source):
    source.write_detpro()
    name = "data/lvis_clip_image_embedding/train2017/000000000011.pth"
    with zipfile.ZipFile(source.folder / "embeddings.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, b"0" * 10_000_000)
    source.dataset = [one for one in source.dataset if one["image_id"] == 11]
    with pytest.raises(CacheError, match="is 10,000,000 bytes, 3 embeddings are at most"):
        source.convert(source.detpro())


@pytest.mark.parametrize("cut", [0.2, 0.9])
def test_a_truncated_zip_is_named(source, cut):
    source.write_detpro()
    path = source.folder / "embeddings.zip"
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * cut)])
    with pytest.raises(CacheError, match=r"embeddings\.zip is no zip file or damaged"):
        source.detpro()


def test_a_flipped_byte_in_the_zip_is_found(source):
    source.write_detpro()
    path = source.folder / "embeddings.zip"
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(CacheError, match="damaged"):
        source.convert(source.detpro())


def test_what_detpro_saves_for_its_prompts_is_not_mistaken_for_embeddings(source):
    source.rows = {one: (rows, torch.ones(1)) for one, rows in source.rows.items()}
    write_zip(source.folder / "embeddings.zip", {f"{k:012d}": v for k, v in source.rows.items()})
    (source.folder / "proposals.pkl").write_bytes(pickle.dumps([source.arrays[k] for k in IDS]))
    with pytest.raises(CacheError, match="holds tuple, expected one tensor"):
        source.convert(source.detpro())


def test_a_pth_that_would_run_code_is_refused(source, victim):
    source.write_detpro()
    name = "data/lvis_clip_image_embedding/train2017"
    write_zip(source.folder / "embeddings.zip", {"000000000003": Malicious(victim)}, name)
    source.dataset = source.dataset[:1]
    with pytest.raises(CacheError, match=r"0003\.pth is refused: it holds more than tensors"):
        source.convert(source.detpro())
    assert not victim.exists()


@pytest.mark.parametrize("content", [b"", b"nothing", pickle.dumps({"boxes": []})])
def test_a_proposal_file_of_another_kind_is_refused(source, content):
    source.write_detpro()
    (source.folder / "proposals.pkl").write_bytes(content)
    with pytest.raises(CacheError, match=r"proposals\.pkl (is no pickle|holds a dict)"):
        source.detpro()


# object-centric-ovd


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_object_centric_pickles_are_taken_over(source, protocol):
    source.write_object_centric(factor=10.0, protocol=protocol)
    summary = source.convert(source.object_centric())
    cache = EmbeddingCache(source.folder / "cache")
    for image_id in IDS:
        record = cache[image_id]
        assert torch.allclose(record.boxes, torch.from_numpy(source.arrays[image_id][:, :4]))
        assert torch.allclose(record.embeddings, source.rows[image_id], atol=1e-6)
        assert record.objectness.tolist() == [1] * len(record)
    assert summary.seen.rows_normalised == 6
    assert summary.seen.norms == pytest.approx((10, 10), abs=1e-4)


def test_pickles_may_lie_in_folders_of_their_class(source):
    source.write_object_centric()
    folder = source.folder / "pickles"
    (folder / "n01").mkdir()
    (folder / "000000000003.pkl").rename(folder / "n01" / "000000000003.pkl")
    assert source.convert(source.object_centric()).written.manifest.num_images == 4


def test_a_box_that_reaches_out_of_its_image_is_clipped(source):
    source.arrays[3] = np.array([[-20, 10, 50, 70, 1]], np.float32)
    source.write_object_centric()
    source.convert(source.object_centric())
    record = EmbeddingCache(source.folder / "cache")[3]
    assert record.boxes.tolist() == [[0, 10, 50, 60]]


def test_a_box_beside_its_image_is_refused(source):
    source.arrays[3] = np.array([[110, 10, 150, 30, 1]], np.float32)
    source.write_object_centric()
    with pytest.raises(CacheError, match="image 3 .*outside the 100 x 60 image"):
        source.convert(source.object_centric())


def test_a_folder_without_pickles_is_named(source):
    with pytest.raises(CacheError, match=r"pickles holds no \.pkl file"):
        source.object_centric()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"salient": 1}, "holds a dict, expected a list"),
        ([([1, 2, 3, 4], [0.1] * 8)], "an item that is not"),
        ([([1, 2, 3], torch.ones(1, 8))], "an item that is not"),
        ([(["a", 2, 3, 4], torch.ones(1, 8))], "a box that is not four numbers"),
        ([([1, 2, 3, 4], torch.ones(2, 8))], r"an embedding \(2, 8\)"),
        ([([1, 2, 3, 4], torch.ones(1, 8)), ([1, 2, 3, 4], torch.ones(1, 9))], "two widths"),
    ],
)
def test_pickles_of_another_kind_are_refused(source, content, message):
    source.write_object_centric()
    (source.folder / "pickles" / "000000000003.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(CacheError, match=message):
        source.convert(source.object_centric())
    assert not (source.folder / "cache").exists()


class Calls:
    """Pickles as a call of any function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def malicious_pickles(victim):
    inner = pickle.dumps(Malicious(victim), protocol=2)
    build = collections.OrderedDict
    return {
        "os.system": pickle.dumps([Malicious(victim)]),
        "eval": pickle.dumps(Calls(eval, f"open({str(victim)!r}, 'w')")),
        "in a tensor": pickle.dumps(Calls(torch.storage._load_from_bytes, inner)),
        "in an array of objects": pickle.dumps(np.array([Malicious(victim)], dtype=object)),
        "torch.load": pickle.dumps(Calls(torch.load, io.BytesIO(inner))),
        "a class by its path": b"cposixpath\nos.system\n(Vtouch\ntR.",
        "an attribute of a known class": pickle.dumps(Calls(build.fromkeys, "a")),
    }


@pytest.mark.parametrize(
    "kind",
    [
        "os.system",
        "eval",
        "in a tensor",
        "in an array of objects",
        "torch.load",
        "a class by its path",
        "an attribute of a known class",
    ],
)
def test_a_pickle_that_would_run_code_is_refused(source, victim, kind):
    source.write_object_centric()
    path = source.folder / "pickles" / "000000000003.pkl"
    path.write_bytes(malicious_pickles(victim)[kind])
    with pytest.raises(CacheError, match=r"0003\.pkl is refused: it holds .*can run any command"):
        source.convert(source.object_centric())
    assert not victim.exists()


def test_a_malicious_proposal_pickle_is_refused(source, victim):
    source.write_detpro()
    (source.folder / "proposals.pkl").write_bytes(pickle.dumps([Malicious(victim)]))
    with pytest.raises(CacheError, match=r"proposals\.pkl is refused: it holds the name '\w+\.sys"):
        source.detpro()
    assert not victim.exists()


def test_the_malicious_pickles_work_where_they_are_not_refused(victim):
    pickle.loads(malicious_pickles(victim)["os.system"])  # noqa: S301 (the point of the test)
    assert victim.exists()


def patched(value, old, new):
    """A pickle of `value` in which the only place of `old` is `new`."""
    content = pickletools.optimize(pickle.dumps(value, protocol=4))
    assert content.count(old) == 1
    return content.replace(old, new)


@pytest.mark.parametrize(
    "content",
    [
        # An array (2, 5) that says it is (200, 5): nothing may be allocated on its word.
        patched(np.zeros((2, 5), np.float32), b"K\x02K\x05", b"K\xc8K\x05"),
        patched(np.zeros(3, np.float32), b"\x8c\x02f4", b"\x8c\x02O8"),
        # A tensor of 8 numbers that says it has 250 x 8, by a stride of 0 or none.
        patched(torch.zeros(1, 8), b"K\x01K\x08\x86K\x08K\x01", b"K\xfaK\x08\x86K\x00K\x01"),
        patched(torch.zeros(1, 8), b"K\x00K\x01K\x08\x86", b"K\x07K\x01K\x08\x86"),
        # Instructions that would change a known function, or a tensor, after the fact.
        b"c_codecs\nencode\n}b.",
        pickle.dumps(torch.zeros(1, 8), protocol=2)[:-1] + b"}b.",
    ],
    ids=["shape", "objects", "stride", "offset", "function", "tensor"],
)
def test_a_pickle_that_lies_is_refused(source, content):
    source.write_object_centric()
    (source.folder / "pickles" / "000000000003.pkl").write_bytes(content)
    with pytest.raises(CacheError, match=r"0003\.pkl (is refused|is no pickle or damaged)"):
        source.convert(source.object_centric())


def test_a_truncated_pickle_is_named(source):
    source.write_object_centric()
    path = source.folder / "pickles" / "000000000011.pkl"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(CacheError, match=r"0011\.pkl is no pickle or damaged"):
        source.convert(source.object_centric())


def test_another_content_of_the_pickles_is_another_cache(source):
    source.write_object_centric()
    source.convert(source.object_centric())
    source.arrays[11][0, :4] += 1
    source.write_object_centric()
    with pytest.raises(CacheError, match="proposals: 'object-centric-ovd-"):
        source.convert(source.object_centric())
