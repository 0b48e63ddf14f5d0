"""Named ink colours of the pictograms."""

from __future__ import annotations

import colorsys

import numpy as np

# Centres are far enough apart that the jitter of `sample_ink` never makes one look like another.
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 32, 38),
    "orange": (244, 132, 20),
    "yellow": (246, 222, 40),
    "green": (40, 158, 58),
    "cyan": (38, 196, 214),
    "blue": (34, 74, 206),
    "purple": (132, 44, 178),
    "pink": (246, 130, 190),
    "brown": (118, 68, 28),
    "black": (22, 22, 26),
    "white": (244, 244, 240),
}

_HUE_JITTER = 0.012  # of a full turn
_TONE_JITTER = 0.05  # of full saturation and value


def sample_ink(rng: np.random.Generator, colour: str) -> tuple[int, int, int]:
    """A jittered RGB (0..255) of the named colour."""
    hue, saturation, value = colorsys.rgb_to_hsv(*(channel / 255 for channel in COLOURS[colour]))
    hue = (hue + rng.uniform(-_HUE_JITTER, _HUE_JITTER)) % 1.0
    saturation = float(np.clip(saturation + rng.uniform(-_TONE_JITTER, _TONE_JITTER), 0, 1))
    value = float(np.clip(value + rng.uniform(-_TONE_JITTER, _TONE_JITTER), 0, 1))
    if COLOURS[colour][0] == COLOURS[colour][1]:  # black and white keep next to no saturation
        saturation = min(saturation, 0.08)
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def luminance(rgb: tuple[int, int, int] | np.ndarray) -> np.ndarray:
    """Rec. 601 luma of RGB (..., 3): (...), in the unit of the input."""
    return np.asarray(rgb, np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)


def contrast(ink: tuple[int, int, int], pixels: np.ndarray) -> np.ndarray:
    """A visual distance of one RGB colour to `pixels` (N, 3): (N,), from 0 to 1.

    Luma weighs most, since shapes are read by lightness; the channel distance tells a red from a
    green of the same lightness.
    """
    light = np.abs(luminance(ink) - luminance(pixels))
    chroma = np.abs(pixels.astype(np.float32) - np.asarray(ink, np.float32)).mean(axis=-1)
    return (0.65 * light + 0.35 * chroma) / 255
