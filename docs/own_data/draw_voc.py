"""Draws a small data set in VOC's form: python docs/own_data/draw_voc.py FOLDER [COUNT]."""

import sys
from pathlib import Path

from PIL import Image, ImageDraw

SIDE = 96
COLOURS = {"heavy large circle": "firebrick", "black square": "navy", "black diamond": "green"}
PLACES = ((8, 8), (56, 12), (28, 54))


def draw_voc(folder: Path, count: int) -> None:
    """Writes JPEGImages and Annotations: in each image one shape of every category."""
    (folder / "JPEGImages").mkdir(parents=True)
    (folder / "Annotations").mkdir()
    names = list(COLOURS)
    for number in range(count):
        image = Image.new("RGB", (SIDE, SIDE), (200 + number % 40, 220, 210))
        pencil, objects = ImageDraw.Draw(image), ""
        for k, (x, y) in enumerate(PLACES):
            name = names[(number + k) % len(names)]
            side = 30 + (number + k) % 7
            _draw(pencil, name, x, y, side)
            values = {"xmin": x + 1, "ymin": y + 1, "xmax": x + side, "ymax": y + side}
            box = "".join(f"<{key}>{value}</{key}>" for key, value in values.items())
            objects += f"<object><name>{name}</name><bndbox>{box}</bndbox></object>"
        image.save(folder / f"JPEGImages/{number:03d}.jpg", quality=95)
        size = f"<size><width>{SIDE}</width><height>{SIDE}</height></size>"
        text = f"<annotation>{size}{objects}</annotation>"
        (folder / f"Annotations/{number:03d}.xml").write_text(text)


def _draw(pencil: ImageDraw.ImageDraw, name: str, x: int, y: int, side: int) -> None:
    right, bottom, middle = x + side - 1, y + side - 1, side // 2
    colour = COLOURS[name]
    if name.endswith("circle"):
        pencil.ellipse((x, y, right, bottom), fill=colour)
    elif name.endswith("square"):
        pencil.rectangle((x, y, right, bottom), fill=colour)
    else:
        corners = [(x + middle, y), (right, y + middle), (x + middle, bottom), (x, y + middle)]
        pencil.polygon(corners, fill=colour)


if __name__ == "__main__":
    draw_voc(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 24)
