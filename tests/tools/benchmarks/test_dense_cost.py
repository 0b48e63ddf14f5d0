"""The benchmark of dense features, tiny: its rows and its page."""

from benchmarks import dense
from benchmarks.dense import Case

from tests.tiny_vits import EVA, NATIVE, folder_of_architecture


def test_rows_and_their_page(tmp_path):
    for family in (EVA, NATIVE):
        folder_of_architecture(tmp_path, family)
    rows = dense.measure([Case(EVA, 48), Case(NATIVE, 64)], rounds=1)
    assert [row["name"] for row in rows] == ["tiny-eva, 48 px", "tiny-vit, 64 px"]
    # the last attention's two products are left out; projecting all patches is less here
    assert all(0.5 < row["dense_operations"] < 1.02 for row in rows)
    assert all(row["windows_operations"] == row["dense_operations"] for row in rows)  # one window
    text = dense.page(
        {"command": "python x", "date": "2026-01-04", "commit": "c0ffee1", "rows": rows}
    )
    assert all(f"| {row['name']}" in text for row in rows)
