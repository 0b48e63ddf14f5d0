"""Three images of two categories, written in every format that can be imported."""

import json
from pathlib import Path

from PIL import Image

from ovd_d2.annotations_out import label_studio_tasks

WIDTH, HEIGHT = 64, 48
NAMES = ["cat", "dog"]
# file -> (name, XYXY in pixels counted from 0)
TRUTH = {
    "a b.png": [("cat", (10, 8, 30, 28)), ("dog", (40, 8, 60, 40))],
    "bäh.png": [("dog", (0, 0, 64, 48))],
    "c.png": [],
}


def draw(folder: Path, names=tuple(TRUTH)) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", (WIDTH, HEIGHT), "grey").save(folder / name)


def corners(box):
    x1, y1, x2, y2 = box
    return [x1, y1, x2, y1, x2, y2, x1, y2]


def voc_xml(file, objects, size=(WIDTH, HEIGHT), extra=""):
    """VOC counts from 1 and its last pixel belongs to the box."""
    text = f"<annotation><filename>{file}</filename>{extra}"
    text += f"<size><width>{size[0]}</width><height>{size[1]}</height></size>"
    for name, (x1, y1, x2, y2) in objects:
        text += f"<object><name>{name}</name><difficult>0</difficult><bndbox>"
        text += f"<xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax>"
        text += "</bndbox></object>"
    return text + "</annotation>"


def write_voc(root):
    draw(root / "JPEGImages")
    (root / "Annotations").mkdir()
    for file, objects in TRUTH.items():
        target = root / "Annotations" / file.replace(".png", ".xml")
        target.write_text(voc_xml(file, objects), encoding="utf-8")


def yolo_line(number, box):
    x1, y1, x2, y2 = box
    values = [(x1 + x2) / 2 / WIDTH, (y1 + y2) / 2 / HEIGHT]
    values += [(x2 - x1) / WIDTH, (y2 - y1) / HEIGHT]
    return f"{number} " + " ".join(f"{one:.6f}" for one in values)


def write_yolo(root):
    draw(root / "images")
    (root / "labels").mkdir()
    for file, objects in TRUTH.items():
        lines = [yolo_line(NAMES.index(name), box) for name, box in objects]
        (root / "labels" / file.replace(".png", ".txt")).write_text("\r\n".join(lines))
    (root / "data.yaml").write_text("path: ../elsewhere\ntrain: images\nnames: [cat, dog]\n")


def coco(truth=TRUTH):
    images, annotations = [], []
    for k, (file, objects) in enumerate(truth.items(), 7):
        images.append({"id": k, "file_name": file, "width": WIDTH, "height": HEIGHT})
        for name, (x1, y1, x2, y2) in objects:
            annotations.append(
                {
                    "id": len(annotations),
                    "image_id": k,
                    "category_id": NAMES.index(name),
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "segmentation": [],
                    "iscrowd": 0,
                }
            )
    categories = [{"id": k, "name": name} for k, name in enumerate(NAMES)]
    return {"images": images, "annotations": annotations, "categories": categories}


def write_coco(root):
    draw(root / "images")
    (root / "annotations").mkdir()
    (root / "annotations/instances_default.json").write_text(json.dumps(coco()))


def write_labelme(root):
    draw(root)
    for file, objects in TRUTH.items():
        shapes = [
            {"label": name, "shape_type": "rectangle", "points": [[x2, y2], [x1, y1]]}
            for name, (x1, y1, x2, y2) in objects
        ]
        content = {"version": "5.4.1", "shapes": shapes, "imagePath": f"..\\{root.name}\\{file}"}
        content |= {"imageData": None, "imageWidth": WIDTH, "imageHeight": HEIGHT}
        (root / file.replace(".png", ".json")).write_text(json.dumps(content))


def write_cvat(root):
    draw(root / "images")
    text = "<annotations><version>1.1</version><meta><task><labels>"
    text += "".join(f"<label><name>{name}</name></label>" for name in NAMES)
    text += "</labels></task></meta>"
    for k, (file, objects) in enumerate(TRUTH.items()):
        text += f'<image id="{k}" name="{file}" width="{WIDTH}" height="{HEIGHT}">'
        for name, (x1, y1, x2, y2) in objects:
            text += f'<box label="{name}" xtl="{x1}" ytl="{y1}" xbr="{x2}" ybr="{y2}"/>'
        text += "</image>"
    (root / "annotations.xml").write_text(text + "</annotations>", encoding="utf-8")


def label_studio(truth=TRUTH):
    """Tasks that a person has gone through, from those that this package writes."""
    found = [
        {
            "file": file,
            "height": HEIGHT,
            "width": WIDTH,
            "objects": [{"name": name, "score": 0.5, "box": box} for name, box in objects],
        }
        for file, objects in truth.items()
    ]
    return label_studio_tasks(found, "test")


def write_label_studio(root):
    draw(root / "images")
    tasks = [
        {
            "id": k,
            "data": {
                "image": f"/data/upload/1/0a1b2c3d-{one['data']['image'].replace(' ', '%20')}"
            },
            "annotations": one["predictions"],
        }
        for k, one in enumerate(label_studio())
    ]
    (root / "export.json").write_text(json.dumps(tasks))


def write_csv(root):
    draw(root / "images")
    rows = ["filename,width,height,class,xmin,ymin,xmax,ymax"]
    for file, objects in TRUTH.items():
        for name, box in objects:
            rows.append(",".join(map(str, (file, WIDTH, HEIGHT, name, *box))))
        if not objects:
            rows.append(f"{file},{WIDTH},{HEIGHT},,,,,")
    (root / "boxes.csv").write_text("\r\n".join(rows), encoding="utf-8-sig")


WRITERS = {
    "voc": write_voc,
    "yolo": write_yolo,
    "coco": write_coco,
    "labelme": write_labelme,
    "cvat": write_cvat,
    "label-studio": write_label_studio,
    "csv": write_csv,
}
