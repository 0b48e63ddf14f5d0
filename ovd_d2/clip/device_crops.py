"""Crops of an image, cut and resized where the image lies: CPU or GPU, without Pillow.

The result is open_clip's inference transform of every crop (`ovd_d2.clip.preprocess`): antialiased
resize, centre crop, normalisation. Both ways follow Pillow's filter, support and rounding:

- CPU: PyTorch's vectorised kernel for 8-bit images, once per crop; three times as fast as Pillow.
  Crops far larger than the output come from halved copies of the image, much as `Image.resize` with
  a `reducing_gap` works, so the cost of a crop does not grow with its size.
- elsewhere: two batched matrix products for many crops at once.
  A resize along one axis is a product with a banded (output x source) matrix; on a GPU the zeros
  in it cost less than one kernel launch per crop would.

Memory: the matrices of a chunk of crops stay below `WORKSPACE_BYTES`, whatever their number and the
size of the image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch

from ovd_d2.clip.preprocess import Preprocessing

WORKSPACE_BYTES = 256 * 2**20
# Halving stops while the resize that remains is at least this much. Mean cosine of the shipped
# teacher's embeddings to open_clip's transform: 0.99985 at 1.5, 0.99997 at 2, 0.9991 at 1.
REDUCING_GAP = 1.5
_PICTURES_AT_ONCE = 16  # so many are converted to floats while they are in the CPU's cache
_SUPPORT = {"bicubic": 2.0, "bilinear": 1.0}


@dataclass(frozen=True)
class _Axis:
    """Rows or columns of K resizes.

    Output pixel i is pixel i + offset of the window low:high resized to `resized` pixels; it is
    black where there is no such pixel.
    """

    low: torch.Tensor  # (K,) int64, pixels of the image
    high: torch.Tensor  # (K,) int64
    resized: torch.Tensor  # (K,) int64
    offset: torch.Tensor  # (K,) int64, negative where the output is padded
    size: int  # output pixels
    support: float  # of the filter, in output pixels

    @property
    def scale(self) -> torch.Tensor:
        """(K,) float64 source pixels per resized pixel."""
        return (self.high - self.low).double() / self.resized

    def reach(self) -> torch.Tensor:
        """(K,) float64: how far from its centre a resized pixel sees, source pixels."""
        return self.support * self.scale.clamp(min=1)

    def band(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(K,) first and (K,) last + 1 source pixel that any output pixel sees."""
        before = (self.offset.clamp(min=0) + 0.5) * self.scale - self.reach()
        last = torch.minimum(self.offset + self.size, self.resized)
        after = (last - 0.5) * self.scale + self.reach()
        first = torch.maximum(self.low, self.low + before.floor().long())
        end = torch.minimum(self.high, self.low + after.ceil().long())
        return first, end

    def take(self, index: torch.Tensor) -> _Axis:
        """The axes of some of the crops."""
        rest = (self.resized[index], self.offset[index], self.size, self.support)
        return _Axis(self.low[index], self.high[index], *rest)


def resize_crops(
    sources: Sequence[tuple[torch.Tensor, torch.Tensor]],
    preprocessing: Preprocessing,
    *,
    squash: bool = False,
    fill_to: int = 0,
    workspace: int = WORKSPACE_BYTES,
) -> torch.Tensor:
    """Cuts windows out of images and makes them one batch for an image encoder.

    Args:
        sources: images (H, W, 3) uint8 RGB, all on one device, each with its windows: (k, 4) int64
            XYXY on the CPU, at least one pixel large and inside the image, as
            `ovd_d2.clip.crops.scaled_boxes` gives them.
        preprocessing: of the encoder.
        squash: ignore the aspect ratio, whatever `preprocessing` says.
        fill_to: black images follow until the batch has this many.
        workspace: bytes for intermediate results, beside the output.

    Returns:
        (max(K, fill_to), 3, h, w) float32, normalised, on the images' device, channels last in
        memory; K is the number of all windows.
    """
    device = sources[0][0].device
    count = sum(len(windows) for _, windows in sources)
    pixels = torch.zeros(
        max(count, fill_to), *preprocessing.image_size, 3, dtype=torch.uint8, device=device
    )
    start = 0
    for image, windows in sources:
        target = pixels[start : start + len(windows)]
        rows, columns = _axes(windows, preprocessing, squash)
        if device.type == "cpu":
            _resize_singly(image, rows, columns, preprocessing.interpolation, target)
        else:
            _resize_batched(image, rows, columns, preprocessing.interpolation, workspace, target)
        start += len(windows)
    return _normalise(pixels, preprocessing)


def _axes(windows: torch.Tensor, preprocessing: Preprocessing, squash: bool) -> tuple[_Axis, _Axis]:
    low, high = windows[:, :2].flip(1), windows[:, 2:].flip(1)  # (K, 2) as (y, x)
    resized, offset = preprocessing.placement(high - low, squash=squash)
    support = _SUPPORT[preprocessing.interpolation]
    rows, columns = (
        _Axis(low[:, k], high[:, k], resized[:, k], offset[:, k], size, support)
        for k, size in enumerate(preprocessing.image_size)
    )
    return rows, columns


def _normalise(pixels: torch.Tensor, preprocessing: Preprocessing) -> torch.Tensor:
    """(K, h, w, 3) uint8 -> (K, 3, h, w) float32 with mean 0 and deviation 1, channels last."""
    std = torch.tensor(preprocessing.std, device=pixels.device)
    mean = torch.tensor(preprocessing.mean, device=pixels.device)
    # Whole images, not three numbers: along long inner dimensions the product is vectorised.
    factor = (1 / (255 * std)).expand(pixels.shape[1:]).contiguous()
    shift = (-mean / std).expand(pixels.shape[1:]).contiguous()
    batch = torch.empty(pixels.shape, device=pixels.device)
    step = _PICTURES_AT_ONCE if pixels.device.type == "cpu" else max(1, len(pixels))
    for start in range(0, len(pixels), step):
        part = slice(start, start + step)
        torch.addcmul(shift, pixels[part].float(), factor, out=batch[part])
    return batch.permute(0, 3, 1, 2)


# One crop after the other ------------------------------------------------------------------------


@dataclass(frozen=True)
class _Stretch:
    """One axis of a call of PyTorch's kernel, which always begins at the source's first pixel.

    `count` source pixels from `start` on become `computed` outputs, of which those from `skipped`
    on are the encoder's input from `padded` on.
    """

    start: torch.Tensor  # (K,) int64, pixels of the image; all others likewise
    count: torch.Tensor
    computed: torch.Tensor
    skipped: torch.Tensor
    padded: torch.Tensor
    kept: torch.Tensor


def _stretch(axis: _Axis) -> _Stretch:
    """Leaves out what the centre crop of an elongated window drops."""
    shift = _whole_shift(axis)  # resized pixels
    start = axis.low + (shift * axis.scale).round().long()
    skipped = axis.offset.clamp(min=0) - shift
    padded = (-axis.offset).clamp(min=0)
    kept = torch.minimum(axis.resized - axis.offset.clamp(min=0), axis.size - padded)
    count, computed = axis.band()[1] - start, skipped + kept
    # The kernel copies when source and output are equally long, although the scale is not 1.
    computed = computed + ((count == computed) & (axis.scale != 1)).long()
    return _Stretch(start, count, computed, skipped, padded, kept)


def _whole_shift(axis: _Axis) -> torch.Tensor:
    """(K,) resized pixels before the first computed one, 0 for all but elongated windows.

    Among as many candidates as there are output pixels, the one whose source position is nearest
    to a whole pixel: off by a hundredth of a pixel as a rule, by half an output pixel at worst.
    """
    shift = torch.zeros_like(axis.offset)
    margin = (axis.support * (1 / axis.scale).clamp(min=1)).ceil().long() + 1
    long = (axis.offset - margin > axis.size).nonzero().flatten()
    if len(long):
        latest = (axis.offset - margin)[long, None]
        candidates = latest - torch.arange(axis.size)  # (n, size)
        position = candidates * axis.scale[long, None]
        best = (position - position.round()).abs().argmin(dim=1)
        shift[long] = candidates[torch.arange(len(long)), best]
    return shift


def _resize_singly(
    image: torch.Tensor, rows: _Axis, columns: _Axis, interpolation: str, pixels: torch.Tensor
) -> None:
    """Fills `pixels` (K, h, w, 3)."""
    kernel, levels, filled = _KERNELS[interpolation], _Halved(image.numpy()), pixels.numpy()
    outputs = pixels.permute(0, 3, 1, 2).unsqueeze(1).unbind(0)  # K x (1, 3, h, w)
    halvings = _halvings(torch.minimum(rows.scale, columns.scale))
    factors = (2**halvings / torch.stack([rows.scale, columns.scale])).T.tolist()
    plan = torch.stack([halvings, *_numbers(rows), *_numbers(columns)], dim=1).tolist()
    whole = (rows.size, columns.size)
    for k, (factor, numbers) in enumerate(zip(factors, plan, strict=True)):
        level, top, tall, to_y, skip_y, pad_y, keep_y, left, wide, to_x, skip_x, pad_x, keep_x = (
            numbers
        )
        crop = levels.crop(level, top, left, tall, wide)
        source = torch.from_numpy(crop).permute(2, 0, 1).unsqueeze(0)
        if (to_y, to_x) == whole:
            kernel(source, whole, False, *factor, out=outputs[k])
        else:
            resized = kernel(source, (to_y, to_x), False, *factor)
            kept = resized.numpy()[0].transpose(1, 2, 0)
            kept = kept[skip_y : skip_y + keep_y, skip_x : skip_x + keep_x]
            filled[k, pad_y : pad_y + keep_y, pad_x : pad_x + keep_x] = kept  # faster than torch's


def _numbers(axis: _Axis) -> tuple[torch.Tensor, ...]:
    plan = _stretch(axis)
    return plan.start, plan.count, plan.computed, plan.skipped, plan.padded, plan.kept


def _halvings(scale: torch.Tensor) -> torch.Tensor:
    """(K,) float64 -> (K,) int64: as many as leave a resize of at least REDUCING_GAP."""
    return (scale / REDUCING_GAP).log2().floor().clamp(min=0).long()


class _Halved:
    """Copies of an image at half its size, a quarter and so on, made when first asked for.

    A level has four, shifted by a pixel of the level below it in either direction, so that a crop
    may begin at any pixel of the image at level 1, and within a quarter of a pixel of its own
    everywhere. Together they take 4/3 of the image's memory.
    """

    def __init__(self, image: np.ndarray) -> None:
        self._image = image
        self._levels: dict[tuple[int, int, int], np.ndarray] = {}

    def crop(self, level: int, top: int, left: int, tall: int, wide: int) -> np.ndarray:
        """(about tall / 2^level, about wide / 2^level, 3) uint8, from a place in the image."""
        if not level:
            return self._image[top : top + tall, left : left + wide]
        below = 1 << (level - 1)  # a pixel of the level below, in pixels of the image
        y, x = (top + below // 2) // below, (left + below // 2) // below
        halved = self._level(level, y % 2, x % 2)
        y, x = y // 2, x // 2
        return halved[y : y + (tall >> level), x : x + (wide >> level)]

    def _level(self, level: int, down: int, right: int) -> np.ndarray:
        """Means of 2 x 2 pixels of the level below."""
        if (level, down, right) not in self._levels:
            below = self._image if level == 1 else self._level(level - 1, 0, 0)
            height, width = (below.shape[0] - down) // 2, (below.shape[1] - right) // 2
            even = below[down : down + 2 * height, right : right + 2 * width]
            halved = cv2.resize(even, (width, height), interpolation=cv2.INTER_AREA)
            self._levels[level, down, right] = halved
        return self._levels[level, down, right]


# Private in PyTorch, behind `F.interpolate(antialias=True)`, which takes either an output size or
# scales; a trimmed or halved crop needs both.
_KERNELS: dict[str, Any] = {
    "bicubic": torch._C._nn._upsample_bicubic2d_aa,
    "bilinear": torch._C._nn._upsample_bilinear2d_aa,
}


# Many crops at once ------------------------------------------------------------------------------


def _resize_batched(
    image: torch.Tensor,
    rows: _Axis,
    columns: _Axis,
    interpolation: str,
    workspace: int,
    pixels: torch.Tensor,
) -> None:
    """Fills `pixels` (K, h, w, 3)."""
    planes = image.permute(2, 0, 1).contiguous()  # (3, H, W)
    for chunk in _chunks(rows, columns, workspace):
        pixels[chunk.to(pixels.device)] = _resize_chunk(
            planes, rows.take(chunk), columns.take(chunk), interpolation, workspace
        )


def _chunks(rows: _Axis, columns: _Axis, workspace: int) -> Iterator[torch.Tensor]:
    """Indices of crops of similar size whose workspace fits; at least one crop each."""
    tall, wide = (_band_length(axis) for axis in (rows, columns))
    index = (tall * wide).argsort()
    tall, wide = tall[index], wide[index]
    start = 0
    while start < len(index):
        # what n crops take, padded to the largest, for every n
        heights = tall[start:].cummax(0).values
        widths = wide[start:].cummax(0).values
        counts = torch.arange(1, len(heights) + 1)
        fits = (counts * _crop_bytes(heights, widths, rows.size, columns.size)) <= workspace
        taken = max(1, int(fits.sum()))  # the product grows, so what fits comes first
        yield index[start : start + taken]
        start += taken


def _band_length(axis: _Axis) -> torch.Tensor:
    first, end = axis.band()
    return end - first


def _crop_bytes(tall: torch.Tensor, wide: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Pixels as bytes and as floats, both matrices, and the image between the two products."""
    return 15 * tall * wide + 8 * (tall * height + wide * width) + 24 * tall * width


def _resize_chunk(
    planes: torch.Tensor, rows: _Axis, columns: _Axis, interpolation: str, workspace: int
) -> torch.Tensor:
    """(n, h, w, 3) uint8; columns first, rounded between, as Pillow does."""
    device, n = planes.device, len(rows.low)
    (top, bottom), (left, right) = rows.band(), columns.band()
    tall, wide = int((bottom - top).max()), int((right - left).max())
    to_rows = _resize_matrix(rows, top, tall, interpolation, device)  # (n, h, tall)
    to_columns = _resize_matrix(columns, left, wide, interpolation, device)  # (n, w, wide)
    y = (top[:, None] + torch.arange(tall)).clamp(max=planes.shape[1] - 1).to(device)
    x = (left[:, None] + torch.arange(wide)).clamp(max=planes.shape[2] - 1).to(device)
    channel = torch.arange(3, device=device)[:, None]
    resized = torch.zeros(n, rows.size, 3 * columns.size, device=device)
    strip = max(1, workspace // (15 * n * wide))  # rows at a time: one crop may be too large
    for start in range(0, tall, strip):
        part = slice(start, start + strip)
        patches = planes[channel, y[:, part, None, None], x[:, None, None, :]]
        narrow = patches.float().flatten(1, 2) @ to_columns.mT  # (n, strip * 3, w)
        narrow = narrow.round_().clamp_(0, 255).view(n, -1, 3 * columns.size)
        resized += to_rows[:, :, part] @ narrow  # (n, h, 3 * w)
    pixels = resized.round_().clamp_(0, 255).byte()
    return pixels.view(n, rows.size, 3, columns.size).transpose(2, 3)


def _resize_matrix(
    axis: _Axis, first: torch.Tensor, length: int, interpolation: str, device: torch.device
) -> torch.Tensor:
    """(n, size, length) float32: what source pixel first + m gives to output pixel i."""
    resized = axis.offset[:, None] + torch.arange(axis.size)  # (n, size)
    centre = (axis.low - first)[:, None] + (resized + 0.5) * axis.scale[:, None]
    outside = (resized < 0) | (resized >= axis.resized[:, None])
    stretch = axis.scale.clamp(min=1)[:, None, None].to(device, torch.float32)
    source = torch.arange(length, device=device)
    distance = (source + 0.5 - centre[:, :, None].to(device, torch.float32)).abs() / stretch
    weights = _FILTERS[interpolation](distance)
    weights *= (source < (axis.high - first)[:, None].to(device))[:, None, :]
    weights /= weights.sum(dim=2, keepdim=True)
    return weights.masked_fill_(outside[:, :, None].to(device), 0.0)


def _bicubic(distance: torch.Tensor) -> torch.Tensor:
    """Keys' kernel with a = -0.5, as in Pillow; `distance` >= 0."""
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    return torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))


def _bilinear(distance: torch.Tensor) -> torch.Tensor:
    return (1 - distance).clamp(min=0)


_FILTERS = {"bicubic": _bicubic, "bilinear": _bilinear}
