"""Procedural backgrounds. Feature sizes are fractions of the shorter side, so they scale."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

Texture = Callable[[np.random.Generator, int, int, int], np.ndarray]


def textured_background(
    rng: np.random.Generator, height: int, width: int, unit: int | None = None
) -> np.ndarray:
    """A random texture, (height, width, 3) uint8 RGB.

    `unit` is the length in px that feature sizes are fractions of: the shorter side, or that of
    the scene when only a part of it is wanted.
    """
    unit = unit or min(height, width)
    base = TEXTURES[int(rng.integers(len(TEXTURES)))](rng, height, width, unit)
    if rng.random() < 0.5:
        base = base * _shading(rng, height, width, unit)
    grain = rng.standard_normal((height, width, 1), np.float32) * np.float32(rng.uniform(1, 7))
    return np.clip(base + grain, 0, 255).astype(np.uint8)


def _tones(rng: np.random.Generator, count: int, spread: float = 60.0) -> np.ndarray:
    """`count` related muted RGB tones, (count, 3) float32: one anchor and its neighbours."""
    level = rng.uniform(50, 225)
    anchor = level + rng.normal(0, 22, 3)
    tones = np.clip(anchor + rng.normal(0, spread / 2, (count, 3)), 10, 248)
    return tones.astype(np.float32)


def _grid(height: int, width: int, unit: int, angle: float) -> tuple[np.ndarray, np.ndarray]:
    """Rotated coordinates in units of the shorter side, two (height, width) arrays."""
    y = (np.arange(height, dtype=np.float32) / np.float32(unit))[:, None]
    x = (np.arange(width, dtype=np.float32) / np.float32(unit))[None]
    cosine, sine = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return x * cosine + y * sine, y * cosine - x * sine


def _blend(first: np.ndarray, second: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """(3,), (3,), (H, W) in [0, 1] -> (H, W, 3)."""
    return first + (second - first) * weight[..., None].astype(np.float32)


def _smooth_noise(
    rng: np.random.Generator, height: int, width: int, unit: int, cells: int
) -> np.ndarray:
    """Value noise of about `cells` cells over the shorter side, (height, width) in [0, 1]."""
    cell = unit / cells
    shape = (max(2, round(height / cell)) + 1, max(2, round(width / cell)) + 1)
    coarse = rng.random(shape, np.float32)
    noise = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(noise, 0, 1)


def _shading(rng: np.random.Generator, height: int, width: int, unit: int) -> np.ndarray:
    """A soft light fall-off, (height, width, 1) about 1."""
    along, _ = _grid(height, width, unit, rng.uniform(0, 2 * np.pi))
    along = along - along.mean()
    return (1 + rng.uniform(0.1, 0.35) * along)[..., None]


def _gradient(rng: np.random.Generator, height: int, width: int, unit: int) -> np.ndarray:
    first, second = _tones(rng, 2, spread=110)
    along, _ = _grid(height, width, unit, rng.uniform(0, 2 * np.pi))
    return _blend(first, second, (along - along.min()) / max(np.ptp(along), 1e-6))


def _stripes(rng: np.random.Generator, height: int, width: int, unit: int) -> np.ndarray:
    first, second = _tones(rng, 2)
    along, _ = _grid(height, width, unit, rng.uniform(0, np.pi))
    period = np.exp(rng.uniform(np.log(0.05), np.log(0.3)))
    wave = 0.5 + 0.5 * np.sin(2 * np.pi * along / period)
    sharpness = rng.uniform(1, 8)
    return _blend(first, second, np.clip((wave - 0.5) * sharpness + 0.5, 0, 1))


def _checks(rng: np.random.Generator, height: int, width: int, unit: int) -> np.ndarray:
    first, second = _tones(rng, 2)
    along, across = _grid(height, width, unit, rng.uniform(0, np.pi / 2))
    period = np.exp(rng.uniform(np.log(0.06), np.log(0.25)))
    cells = np.floor(along / period) + np.floor(across / period)
    return _blend(first, second, np.mod(cells, 2))


def _dots(rng: np.random.Generator, height: int, width: int, unit: int) -> np.ndarray:
    first, second = _tones(rng, 2)
    along, across = _grid(height, width, unit, rng.uniform(0, np.pi / 2))
    period = np.exp(rng.uniform(np.log(0.07), np.log(0.2)))
    distance = np.hypot(np.mod(along, period) - period / 2, np.mod(across, period) - period / 2)
    edge = (rng.uniform(0.2, 0.4) * period - distance) * unit
    return _blend(first, second, np.clip(edge + 0.5, 0, 1))


def _clouds(rng: np.random.Generator, height: int, width: int, unit: int) -> np.ndarray:
    first, second = _tones(rng, 2, spread=100)
    weight = np.zeros((height, width), np.float32)
    for octave, amplitude in enumerate((0.55, 0.3, 0.15)):
        weight += amplitude * _smooth_noise(rng, height, width, unit, 3 * 2**octave)
    return _blend(first, second, weight)


def _blobs(rng: np.random.Generator, height: int, width: int, unit: int) -> np.ndarray:
    tones = _tones(rng, 4, spread=70)
    canvas = np.tile(tones[0], (height, width, 1))
    for _ in range(int(rng.integers(6, 16))):
        centre = (int(rng.integers(width)), int(rng.integers(height)))
        axes = tuple(int(max(1, unit * rng.uniform(0.04, 0.3))) for _ in range(2))
        tone = tuple(float(channel) for channel in tones[int(rng.integers(1, 4))])
        cv2.ellipse(canvas, centre, axes, float(rng.uniform(0, 180)), 0, 360, tone, -1)
    return canvas


def _paper(rng: np.random.Generator, height: int, width: int, unit: int) -> np.ndarray:
    """Pale paper with fibres and, at times, ruled lines."""
    tone = (np.array([235.0, 228.0, 210.0]) + rng.normal(0, 10, 3)).astype(np.float32)
    canvas = np.tile(tone, (height, width, 1))
    canvas += 26 * (_smooth_noise(rng, height, width, unit, 24)[..., None] - 0.5)
    if rng.random() < 0.6:
        along, _ = _grid(height, width, unit, rng.uniform(-0.1, 0.1) + np.pi / 2)
        period = rng.uniform(0.07, 0.16)
        thickness = max(1.0 / unit, 0.008)
        lines = np.mod(along, period) < thickness
        canvas[lines] -= np.array([80.0, 50.0, 20.0], np.float32)
    return canvas


def _planks(rng: np.random.Generator, height: int, width: int, unit: int) -> np.ndarray:
    """Boards with a grain that runs along them."""
    tones = _tones(rng, 8, spread=28)
    along, across = _grid(height, width, unit, rng.choice([0.0, np.pi / 2]) + rng.normal(0, 0.05))
    board = np.floor(across / rng.uniform(0.12, 0.3)).astype(int)
    canvas = tones[np.mod(board, 8)]
    wobble = 0.02 * np.sin(2 * np.pi * along * rng.uniform(0.5, 2))
    grain = np.sin(2 * np.pi * (across + wobble) / rng.uniform(0.02, 0.05))
    return canvas + rng.uniform(4, 14) * grain[..., None]


TEXTURES: tuple[Texture, ...] = (
    _gradient,
    _stripes,
    _checks,
    _dots,
    _clouds,
    _blobs,
    _paper,
    _planks,
)
