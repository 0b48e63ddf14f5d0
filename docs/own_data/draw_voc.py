"""Draws a small data set in VOC's form: python docs/own_data/draw_voc.py FOLDER [COUNT].

Scenes of Pictograms, 96 px, with glyphs of six kinds that the teacher in the package knows.
"""

import json
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

from ovd_d2.pictograms.dataset import prepare

SIDE = 96


def draw_voc(folder: Path, count: int) -> None:
    """Writes `count` images and their labels: JPEGImages and Annotations."""
    (folder / "Annotations").mkdir(parents=True)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        (drawn,) = prepare(place, (40, count), SIDE, 6, mini=False, progress=False)
        (drawn / "val").rename(folder / "JPEGImages")
        labels = json.loads((drawn / "pictograms_v1_val.json").read_text())
    names = {one["id"]: one["name"] for one in labels["categories"]}
    objects: dict[int, str] = defaultdict(str)
    for one in labels["annotations"]:
        objects[one["image_id"]] += _object(names[one["category_id"]], *one["bbox"])
    size = f"<size><width>{SIDE}</width><height>{SIDE}</height></size>"
    for one in labels["images"]:
        name = Path(one["file_name"]).name
        text = f"<filename>{name}</filename>{size}{objects[one['id']]}"
        file = (folder / "Annotations" / name).with_suffix(".xml")
        file.write_text(f"<annotation>{text}</annotation>")


def _object(name: str, x: float, y: float, width: float, height: float) -> str:
    """VOC counts pixels from 1 and names the last one."""
    values = {"xmin": x + 1, "ymin": y + 1, "xmax": x + width, "ymax": y + height}
    box = "".join(f"<{key}>{value:.0f}</{key}>" for key, value in values.items())
    return f"<object><name>{name}</name><bndbox>{box}</bndbox></object>"


if __name__ == "__main__":
    draw_voc(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 60)
