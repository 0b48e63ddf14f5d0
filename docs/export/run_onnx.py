"""Runs what tools/export_onnx.py wrote with NumPy, onnxruntime and Pillow alone.

python run_onnx.py vild.onnx scene.png [words.safetensors]  # of tools/build_vocabulary.py
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

TYPES = {"F32": np.float32, "BOOL": np.bool_, "I64": np.int64}


def read_words(path):
    """The names in a file of words, and its arrays."""
    data = Path(path).read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    names = json.loads(header.pop("__metadata__")["names"])
    arrays = {}
    for key, one in header.items():
        first, end = (start + place for place in one["data_offsets"])
        arrays[key] = np.frombuffer(data[first:end], TYPES[one["dtype"]]).reshape(one["shape"])
    return names, arrays


def paste(mask, box, width, height):
    """(M, M) probabilities, stretched over their XYXY box -> (height, width) bool."""
    sides = []
    for low, high, length in ((box[1], box[3], height), (box[0], box[2], width)):
        places = (np.arange(length) + 0.5 - low) * len(mask) / (high - low) - 0.5
        sides.append(np.clip(1 - np.abs(places[:, None] - np.arange(len(mask))), 0, None))
    return sides[0] @ mask @ sides[1].T >= 0.5


def detect(model, picture, words=None):
    """What is found in an image file, best first: scores, names, XYXY boxes and maybe masks."""
    about = json.loads(Path(model).with_suffix(".json").read_text(encoding="utf-8"))
    names, arrays = read_words(words or Path(model).with_suffix(".safetensors"))
    image = Image.open(picture).convert("RGB")
    scale = min(about["shortest_edge"] / min(image.size), about["longest_edge"] / max(image.size))
    size = [int(side * scale + 0.5) for side in image.size]
    pixels = np.asarray(image.resize(size, Image.Resampling.BILINEAR))  # "resize": "pillow"
    pixels = pixels if about["channels"] == "RGB" else pixels[:, :, ::-1]
    arrays["images"] = pixels.transpose(2, 0, 1)[None]
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    values = session.run(None, {one.name: arrays[one.name] for one in session.get_inputs()})
    found = dict(zip([one.name for one in session.get_outputs()], values, strict=True))
    boxes = found["boxes"] * np.divide([*image.size, *image.size], [*size, *size])
    masks = [paste(*one, *image.size) for one in zip(found.get("masks", []), boxes, strict=False)]
    return found["scores"], [names[k] for k in found["categories"]], boxes, masks


if __name__ == "__main__":
    for score, name, box, *_ in zip(*detect(*sys.argv[1:])[:3], strict=True):
        print(f"{score:.2f} {name} {box.round().tolist()}")
