"""What surfaces look like: random colours, and textures computed from the coordinates of a surface.

A texture, `shade_*(u, v, foot, ...)`, gets the places of the pixels on its plane in metres, [N] each, and the
metres that one pixel covers there; it returns RGB [N, 3]. `functools.partial` binds the rest to make a `Shader`.
"""

import functools
import math
from collections.abc import Callable

import numpy as np

Color = np.ndarray  # [3] float64, RGB in 0..1
Shader = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]  # u, v, foot -> RGB
Paint = Color | Shader

DARK = np.array([0.07, 0.07, 0.08])
WHITE = np.array([0.92, 0.92, 0.9])
RED = np.array([0.75, 0.08, 0.08])
AMBER = np.array([1.0, 0.65, 0.1])


# ---------------------------------------------------------------- colours


def random_gray(rng, low=0.25, high=0.8, tint=0.05) -> Color:
    return np.clip(rng.uniform(low, high) + rng.normal(0, tint, 3), 0.02, 1)


def random_color(rng) -> Color:
    """Any lacquer, cloth or plaster: half of them greyish, half of them saturated."""
    if rng.random() < 0.5:
        return random_gray(rng, 0.08, 0.92)
    hue = rng.uniform(0, 2 * math.pi) + np.array([0, 2, 4]) * math.pi / 3
    return np.clip(rng.uniform(0.25, 0.85) * (1 + rng.uniform(0.2, 0.8) * np.cos(hue)), 0.02, 1)


def random_contrast(rng, color: Color) -> Color:
    """A colour that stands out from `color`."""
    other = random_color(rng)
    if abs(other.mean() - color.mean()) > 0.22:
        return other
    return np.clip(other + (0.4 if color.mean() < 0.5 else -0.4), 0, 1)


def random_leaf(rng) -> Color:
    return np.array([rng.uniform(0.16, 0.42), rng.uniform(0.27, 0.46), rng.uniform(0.08, 0.24)])


def random_glass(rng) -> Color:
    return np.array([0.12, 0.15, 0.19]) + rng.uniform(0, 0.22)


def random_skin(rng) -> Color:
    return np.array([0.85, 0.65, 0.52]) * rng.uniform(0.35, 1.1)


def random_sky(rng) -> Shader:
    kind = rng.random()
    if kind < 0.4:  # clear
        top, low = np.array([0.3, 0.5, 0.85]) * rng.uniform(0.7, 1.1), np.array([0.75, 0.85, 0.95])
    elif kind < 0.8:  # overcast
        low = random_gray(rng, 0.6, 0.97, 0.02)
        top = low * rng.uniform(0.7, 1.0)
    else:  # dusk
        top, low = np.array([0.35, 0.35, 0.5]) * rng.uniform(0.6, 1.3), np.array([0.95, 0.75, 0.55])
    clouds, scale, shift = rng.uniform(0, 0.35), rng.uniform(1, 5), rng.uniform(0, 30)
    return functools.partial(shade_sky, top=top, low=low, clouds=clouds, scale=scale, shift=shift)


# ---------------------------------------------------------------- noise and lines

TILE, WAVE = 512, 32  # cells of the periodic noise, and cells to one wave of the smooth one


@functools.cache
def _noise_tiles() -> tuple[np.ndarray, np.ndarray]:
    """White and smooth periodic noise, each [TILE, TILE] float32 in -1..1."""
    white, smooth = np.random.default_rng(0).uniform(-1, 1, (2, TILE, TILE)).astype(np.float32)
    for axis in (0, 1, 0, 1):
        smooth = sum(np.roll(smooth, shift, axis) for shift in range(WAVE // 2))
    return white, smooth / np.abs(smooth).max()


def _cells(u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.floor(v).astype(np.int32) % TILE, np.floor(u).astype(np.int32) % TILE


def _grain(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """A random value for each unit cell."""
    return _noise_tiles()[0][_cells(u, v)]


def _smooth(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Random waves about one unit long."""
    return _noise_tiles()[1][_cells(u * WAVE, v * WAVE)]


def _fade(foot: np.ndarray, period: float) -> np.ndarray:
    """1 where a pattern of this period is resolved, 0 where a pixel covers it."""
    return np.clip(1.6 - 2 * foot / period, 0, 1)


def _lines(u: np.ndarray, period: float, width: float) -> np.ndarray:
    return (u % period) < width


def _bond(u: np.ndarray, v: np.ndarray, length: float, height: float) -> tuple[np.ndarray, np.ndarray]:
    """Rows of bricks, each shifted by half a brick against the next: u within its row, number of the row."""
    row = np.floor(v / height)
    return u + (row % 2) * length / 2, row


# ---------------------------------------------------------------- textures


def shade_sky(u, v, foot, *, top, low, clouds, scale, shift):
    rgb = top + (low - top) * np.clip(v * 2, 0, 1)[:, None]
    cloud = _smooth(u * scale + shift, v * scale * 2.5) + 0.5 * _smooth(u * scale * 2 + shift, v * scale * 5)
    return rgb + (clouds * np.clip(cloud, -0.2, 1))[:, None]


def shade_road(u, v, foot, *, color, lines, mark):
    """`lines`: (x, half of the width, length of a dash in a period of 6 m) each."""
    fine = _grain(u * 11, v * 11) * _fade(foot, 0.2)
    rgb = color * (1 + 0.07 * fine + 0.12 * _smooth(u / 2, v / 8) + 0.05 * _grain(u / 3, v / 7))[:, None]
    for x, half, dash in lines:
        rgb[(np.abs(u - x) < half) & _lines(v, 6, dash)] = mark
    return rgb


def shade_slabs(u, v, foot, *, color, length, depth):
    u_row, row = _bond(u, v, length, depth)
    value = 1 + 0.13 * _grain(u_row / length, row) + 0.05 * _grain(u * 9, v * 9)
    joint = _lines(u_row, length, 0.09 * length) | _lines(v, depth, 0.09 * depth)
    return color * (value - 0.38 * joint * _fade(foot, length))[:, None]


def shade_grass(u, v, foot, *, color, soil):
    tuft = _grain(u * 7, v * 2.2) * _fade(foot, 0.25) + 0.8 * _grain(u * 2.5, v * 0.9)
    rgb = color * (1 + 0.24 * tuft + 0.2 * _smooth(u, v / 2))[:, None]
    bare = _smooth(u / 3 + 7, v / 6) > 0.45
    rgb[bare] = soil * (1 + 0.2 * tuft[bare])[:, None]
    return rgb


def shade_leaves(u, v, foot, *, color, shift, size):
    u, v = u / size + shift, v / size
    clump = _smooth(u * 2, v * 2) + 0.7 * _grain(u * 5 + _smooth(v, u), v * 5) + 0.5 * _grain(u * 11, v * 11)
    return color * np.clip(1.0 + 0.42 * clump, 0.25, 1.8)[:, None]


def shade_courses(u, v, foot, *, color, mortar, length, height):
    """Brick or stone."""
    u_row, row = _bond(u, v, length, height)
    rgb = color * (1 + 0.2 * _grain(u_row / length, row) + 0.05 * _grain(u * 12, v * 12))[:, None]
    joint = (_lines(u_row, length, 0.16 * height) | _lines(v, height, 0.16 * height)) * _fade(foot, height)
    return rgb + (mortar - rgb) * joint[:, None]


def shade_facade(u, v, foot, *, color, trim, glass, shop, bay, storey, window, bricks, shift, has_shop, top):
    """The front of a house. `window`: width, sill, head, as fractions of bay and storey."""
    column, level = np.floor(u / bay), np.floor(v / storey)
    fu, fv = np.abs(u / bay - column - 0.5) * 2, v / storey - level
    width, sill, head = window
    chance = _grain(column + shift, level)
    value = 1 + 0.06 * _smooth(u / 4 + shift, v / 4)
    value -= bricks * _lines(v, 0.3, 0.07) * _fade(foot, 0.3)
    rgb = color * value[:, None]
    upper = (v > storey) & (v < top - 0.4)
    frame = upper & (fu < width + 0.16) & (fv > sill - 0.07) & (fv < head + 0.06)
    rgb[frame] = trim
    opening = (fu < width) & (fv > sill) & (fv < head)
    pane = upper & opening & (fu > 0.07)
    rgb[pane] = glass * (1 + 0.5 * chance[pane] + 0.25 * (fv[pane] - sill))[:, None]
    lower = v < storey
    if has_shop:
        rgb[lower & (fv > 0.76)] = shop
        pane = lower & (fu < 0.86) & (fv > 0.16) & (fv < 0.72)
    else:
        has_door = chance > 0.55
        rgb[lower & has_door & (fu < 0.5) & (fv < 0.75)] = shop
        pane = lower & ~has_door & opening
    rgb[pane] = glass * (1 + 0.6 * chance[pane])[:, None]
    rgb[v > top - 0.35] = trim
    return rgb


def shade_livery(u, v, foot, *, color, trim, glass, window, bay, pillar, stripes, doors):
    """The side of a bus or a train: stripes and a row of windows, each from and to a height, a door each `doors` m."""
    rgb = color * (1 + 0.04 * _smooth(u / 2, v))[:, None]
    for low, high in stripes:
        rgb[(v > low) & (v < high)] = trim
    pane = (v > window[0]) & (v < window[1]) & ((u % bay) > pillar)
    rgb[pane] = glass * (1 + 0.3 * _grain(u / bay, v * 0)[pane])[:, None]
    along = u % doors
    door = (along < 1.3) & (v < window[1] + 0.1)
    rgb[door] = trim
    rgb[door & (np.abs(along - 0.65) > 0.1) & (along > 0.12) & (along < 1.18) & (v > 0.55)] = glass
    return rgb


def shade_ribs(u, v, foot, *, color, trim, period, bottom, top, half, middle):
    """The plain, ribbed box of a truck, framed by its edges; `middle` centres it."""
    rib = _lines(u, period, period / 2) * _fade(foot, period)
    rgb = color * (1 - 0.16 * rib + 0.03 * _smooth(u, v))[:, None]
    rgb[(v < bottom + 0.16) | (v > top - 0.14) | (np.abs(u - middle) > half - 0.13)] = trim
    return rgb


def shade_chevrons(u, v, foot, *, color, other, period):
    return np.where(_lines(u + v, period, period / 2)[:, None], color, other)
