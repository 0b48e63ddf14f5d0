"""What one user of the page looks at, and what all of them share: the detector.

Nothing here knows the page. A session is never changed: each step gives another one, so that two
users, or two requests of one, cannot see each other's.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass, field, replace
from functools import lru_cache
from math import ceil, floor

import numpy as np
from detectron2.structures import Boxes, Instances
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional as F

from ovd_d2.data.image_faults import ImageError, printable
from ovd_d2.data.images import pixels_of
from ovd_d2.entries import Box, Entry, Example, entries_of_text, with_example
from ovd_d2.files import readable_bytes
from ovd_d2.modeling.masks import BoxMasks
from ovd_d2.prediction import Prediction
from ovd_d2.predictor import EncodedImage, OpenVocabularyPredictor
from ovd_d2.visualization import draw_instances

LEAST_SCORE = 0.02  # what scores less is never shown
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")  # Pillow's others can run programs
SCREEN_SIDE = 1280  # px of the longer side of what is sent to the screen
THUMBNAIL_SIDE = 96
LEAST_BOX_SIDE = 4  # px of the image: a smaller box is a click, not an example


@dataclass(frozen=True)
class Limits:
    """What one user may ask for.

    Attributes:
        upload: bytes of an image file.
        pixels: of an image.
        names: words, synonyms included.
        examples: example images.
    """

    upload: int = 20 * 1024**2
    pixels: int = 40_000_000
    names: int = 300
    examples: int = 20


@dataclass(frozen=True)
class Photo:
    """An image that was uploaded; two of one content are equal.

    Attributes:
        digest: SHA-256 of the file.
        name: of the file.
        content: of the file.
        size: (height, width) px, as its EXIF orientation turns it.
        screen: (h, w, 3) uint8 RGB, `SCREEN_SIDE` at most.
    """

    digest: str
    name: str = field(compare=False)
    content: bytes = field(compare=False, repr=False)
    size: tuple[int, int] = field(compare=False)
    screen: NDArray[np.uint8] = field(compare=False, repr=False)


def open_photo(name: str, content: bytes, limits: Limits) -> Photo:
    """
    Args:
        name: of the file, for messages.
        content: of the file.
        limits: `upload` and `pixels` count.

    Raises:
        ValueError: it is no image, or a larger one than is allowed; the message names it.
    """
    name = printable(name)
    if len(content) > limits.upload:
        allowed = readable_bytes(limits.upload)
        raise ValueError(f"{name} has {readable_bytes(len(content))}; at most {allowed} are taken")
    try:
        pixels = _decoded(content, name, limits.pixels)
    except ImageError as error:
        if error.fault.kind != "huge":
            raise
        allowed = f"{limits.pixels / 1e6:g} megapixels"
        raise ValueError(f"{name} is too large: at most {allowed} are taken; shrink it") from error
    height, width = pixels.shape[:2]
    digest = hashlib.sha256(content).hexdigest()
    return Photo(digest, name, content, (height, width), shrunk(pixels, SCREEN_SIDE))


def _decoded(content: bytes, name: str, largest: int | None = None) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 RGB."""
    bgr = pixels_of(io.BytesIO(content), name, formats=FORMATS, largest=largest)
    return np.ascontiguousarray(bgr[:, :, ::-1])


def shrunk(rgb: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """(H, W, 3) whose longer side is `side` at most."""
    image = Image.fromarray(rgb)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return np.asarray(image)


@dataclass(frozen=True, eq=False)
class Marked:
    """An example that was marked in an image.

    Attributes:
        name: of the entry.
        example: the image and the box.
        thumbnail: (h, w, 3) uint8 RGB, what is in the box.
    """

    name: str
    example: Example
    thumbnail: NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Session:
    """What one user looks at.

    Attributes:
        photo: None before the first upload.
        names: as they were typed: "red anchor, sofa | couch"; blank: the model's own.
        examples: in the order they were marked.
        found: in the photo, from `LEAST_SCORE` on; None while there is no photo.
    """

    photo: Photo | None = None
    names: str = ""
    examples: tuple[Marked, ...] = ()
    found: Prediction | None = None


class Finder:
    """A detector for many sessions.

    What it makes of an image before it knows the names is kept for the last images, whoever sent
    them: another list of names costs the rest alone, another threshold nothing.

    Attributes:
        predictor: the detector.
        limits: of each user.
    """

    def __init__(
        self,
        predictor: OpenVocabularyPredictor,
        limits: Limits | None = None,
        *,
        kept_images: int = 4,
    ) -> None:
        """
        Args:
            predictor, limits: see the attributes.
            kept_images: whose features lie on the model's device, see
                :meth:`OpenVocabularyPredictor.encode`.
        """
        self.predictor = predictor
        self.limits = limits or Limits()
        self._encoded = lru_cache(kept_images)(self._encode)

    def with_photo(self, session: Session, name: str, content: bytes) -> Session:
        """Another image, asked for the same names; ValueError says what is wrong with it."""
        return self._searched(replace(session, photo=open_photo(name, content, self.limits)))

    def with_names(self, session: Session, names: str) -> Session:
        """Other names, looked for in the same image; ValueError says what is wrong with them."""
        return self._searched(replace(session, names=names))

    def with_example(self, session: Session, name: str, shares: Box) -> Session:
        """One more example of a name, which need not be among the names.

        Args:
            session: whose photo shows it.
            name: of what it shows.
            shares: XYXY, of the photo's width and height.

        Raises:
            ValueError: there is no photo, no name or next to no area, or there are too many.
        """
        photo, name = session.photo, name.strip()
        if photo is None:
            raise ValueError("open an image first, then draw a box around an example in it")
        if not name:
            raise ValueError("say what the example is called, then draw its box again")
        if len(session.examples) >= self.limits.examples:
            raise ValueError(
                f"at most {self.limits.examples} examples are taken: forget some first"
            )
        example = example_in(photo, shares)
        marked = Marked(name, example, _thumbnail(example))
        return self._searched(replace(session, examples=(*session.examples, marked)))

    def without_examples(self, session: Session) -> Session:
        """No examples any more."""
        return self._searched(replace(session, examples=()))

    def _searched(self, session: Session) -> Session:
        if session.photo is None:
            return session
        entries = entries_of(session)
        if not entries and self.predictor.vocabulary is None:
            raise ValueError("type what to look for: the model brings no names of its own")
        words = sum(len(one.words) for one in entries)
        if words > self.limits.names:
            raise ValueError(f"{words} names were given, at most {self.limits.names} are taken")
        names = self.predictor.vocabulary_of(entries) if entries else None
        found = self.predictor(self._encoded(session.photo), names, LEAST_SCORE, full_masks=False)
        return replace(session, found=found)

    def _encode(self, photo: Photo) -> EncodedImage:
        return self.predictor.encode(_decoded(photo.content, photo.name), "RGB")


def entries_of(session: Session) -> list[Entry]:
    """What the names and examples of a session describe; blank names are left out."""
    parts = [one for one in session.names.replace("\n", ",").split(",") if one.strip(" |")]
    entries = entries_of_text(",".join(parts)) if parts else []
    for one in session.examples:
        entries = with_example(entries, one.name, one.example)
    return entries


def on_screen(session: Session, threshold: float) -> NDArray[np.uint8] | None:
    """(h, w, 3) uint8 RGB, the photo with what scores `threshold` or more; None without one."""
    if session.photo is None or session.found is None:
        return None
    found = session.found.from_score(threshold)
    height, width = session.photo.screen.shape[:2]
    shown = resized(found.instances, (height, width))
    return draw_instances(
        session.photo.screen, shown, found.categories.names, found.categories.novel
    )


def resized(found: Instances, size: tuple[int, int]) -> Instances:
    """Boxes and masks of detections for another size of their image, (height, width)."""
    boxes = Boxes(found.pred_boxes.tensor.clone())
    boxes.scale(size[1] / found.image_size[1], size[0] / found.image_size[0])
    fields = {**found.get_fields(), "pred_boxes": boxes}
    if found.has("pred_masks"):
        masks = found.pred_masks
        if isinstance(masks, BoxMasks):
            small = BoxMasks(masks.probabilities, boxes.tensor, size, masks.threshold)
            fields["pred_masks"] = small.to_bitmasks().tensor
        else:
            fields["pred_masks"] = F.interpolate(masks[None].float(), size)[0] > 0.5
    return Instances(size, **fields)


def example_in(photo: Photo, shares: Box) -> Example:
    """What is in a box of the photo, with as much around it as the teacher looks at.

    Args:
        photo: the image.
        shares: XYXY, of its width and height.

    Raises:
        ValueError: next to nothing is in the box.
    """
    left, top, right, bottom = _box_in(photo.size, shares)
    across, down = (right - left) / 2, (bottom - top) / 2  # crops are 1.5 times the box
    height, width = photo.size
    x0, y0 = max(0, floor(left - across)), max(0, floor(top - down))
    x1, y1 = min(width, ceil(right + across)), min(height, ceil(bottom + down))
    stream = io.BytesIO()
    Image.fromarray(_decoded(photo.content, photo.name)[y0:y1, x0:x1]).save(stream, "PNG")
    return Example(stream.getvalue(), (left - x0, top - y0, right - x0, bottom - y0))


def _box_in(size: tuple[int, int], shares: Box) -> Box:
    left, right = sorted(min(max(share, 0.0), 1.0) * size[1] for share in shares[::2])
    top, bottom = sorted(min(max(share, 0.0), 1.0) * size[0] for share in shares[1::2])
    if right - left < LEAST_BOX_SIDE or bottom - top < LEAST_BOX_SIDE:
        raise ValueError(
            f"the box is smaller than {LEAST_BOX_SIDE} px: draw it around all of the example"
        )
    return left, top, right, bottom


def _thumbnail(example: Example) -> NDArray[np.uint8]:
    assert example.box is not None and isinstance(example.image, bytes)
    left, top, right, bottom = map(round, example.box)
    pixels = _decoded(example.image, example.label)[top:bottom, left:right]
    return shrunk(np.ascontiguousarray(pixels), THUMBNAIL_SIDE)
