"""What a street runs between: houses, walls, fences and plants.

A `random_*` chooses a look for the street and returns a function that draws it. One look may serve many plots.
"""

import functools
import math
from collections.abc import Callable

import numpy as np

from atonet_jax.data.synthetic.geometry import blob, box, rectangle
from atonet_jax.data.synthetic.painter import RAW
from atonet_jax.data.synthetic.paints import (
    DARK,
    Color,
    Shader,
    random_color,
    random_contrast,
    random_glass,
    random_gray,
    random_leaf,
    shade_courses,
    shade_facade,
    shade_leaves,
)


def draw_house(painter, rng, frame, width, depth, height):
    """A block whose front, `width` long, lies along the heading; it reaches `depth` beyond it."""
    label, half, color = RAW['building'], width / 2, 0.5 * random_color(rng) + 0.5 * random_gray(rng, 0.3, 0.9)
    facade = functools.partial(
        shade_facade, color=color, trim=0.4 * color + 0.6 * random_contrast(rng, color), glass=random_glass(rng),
        shop=random_color(rng), bay=rng.uniform(1.8, 3.4), storey=rng.uniform(2.8, 3.6),
        window=(rng.uniform(0.35, 0.75), 0.28, rng.uniform(0.72, 0.85)), bricks=rng.choice([0.0, 0.0, 0.15]),
        shift=rng.uniform(0, 200), has_shop=rng.random() < 0.4, top=height,
    )  # fmt: skip
    outward = -math.copysign(depth, frame.camera_b)
    roof = rng.uniform(0.0, 3.0) if rng.random() < 0.5 else 0.0
    tiles = functools.partial(shade_courses, color=random_color(rng) * 0.7, mortar=DARK, length=0.6, height=0.5)
    if a := frame.near_end(half):
        gable = [(0, 0), (outward, 0), (outward, height), (outward / 2, height + roof), (0, height)]
        painter.fill(frame.end(a), gable, label, facade if rng.random() < 0.6 else color * 0.9)
    painter.fill(frame.side(), rectangle(-half, 0, half, height), label, facade)
    if roof:
        corners = [frame.at(-half, height, 0), frame.at(half, height, 0)]
        corners += [frame.at(half, height + roof, outward / 2), frame.at(-half, height + roof, outward / 2)]
        painter.polygon(corners, label, tiles, frame.side())


def random_boundary(rng, kind: str) -> Callable:
    """What draws one boundary at (painter, rng, frame, width); the kind 'none' gets a look too, which is not drawn."""
    color = random_color(rng)
    if kind == 'wall':
        course = rng.uniform(0.3, 0.45)
        return functools.partial(
            draw_wall, color=color, mortar=random_contrast(rng, color), height=rng.uniform(0.9, 2.2),
            length=course * rng.uniform(1.8, 2.4), course=course,
        )  # fmt: skip
    if kind == 'fence':
        period = rng.uniform(0.3, 0.5)
        return functools.partial(
            draw_fence, color=color, height=rng.uniform(1.1, 1.9), period=period, thick=period * rng.uniform(0.35, 0.55)
        )
    return functools.partial(draw_hedge, color=random_leaf(rng), height=rng.uniform(0.9, 2.0))


def draw_wall(painter, rng, frame, width, *, color, mortar, height, length, course):
    label, half, cap = RAW['wall'], width / 2, color * 0.75
    courses = functools.partial(shade_courses, color=color, mortar=mortar, length=length, height=course)
    painter.extrude(frame, box(-half, 0, half, height), 0.18, label, [courses, cap, courses], courses)
    painter.extrude(frame, box(-half, height, half, height + 0.15), 0.24, label, [cap, cap * 1.1, cap], cap)


def draw_fence(painter, rng, frame, width, *, color, height, period, thick):
    """Pickets, posts and rails; the gaps between show what is behind, the label covers all of it."""
    side, half = painter.brush(frame.side(), RAW['fence']), width / 2
    side(rectangle(-half, 0, half, height), None)
    side(rectangle(-half, 0.2, half, 0.34), color * 0.8)
    side(rectangle(-half, height - 0.4, half, height - 0.26), color * 0.8)
    for k in range(int(width / period) + 1):
        u = -half + k * period
        side(rectangle(u, 0.05, u + thick, height), color)
    side(rectangle(-half, 0, -half + 0.22, height + 0.12), color * 0.65)


def draw_hedge(painter, rng, frame, width, *, color, height):
    leaves, half = _foliage(rng, color, 0.5), width / 2
    painter.extrude(frame, box(-half, 0, half, height), 0.5, RAW['vegetation'], [leaves, color, leaves], leaves)


def draw_tree(painter, rng, frame):
    board = painter.brush(frame.end(), RAW['vegetation'])
    trunk, radius, height = rng.uniform(1.4, 2.6), rng.uniform(1.5, 3.4), rng.uniform(2.8, 6.5)
    bark = np.array([0.3, 0.24, 0.18]) * rng.uniform(0.6, 1.4)
    width = 0.16 * radius
    stem = [(-width, 0), (width, 0), (0.6 * width, trunk + 1), (-0.6 * width, trunk + 1)]
    board(stem, _foliage(rng, bark, 0.25))
    leaf = random_leaf(rng)
    for _ in range(rng.integers(3, 7)):
        u, v = rng.uniform(-0.45, 0.45) * radius, trunk + height * rng.uniform(0.3, 0.75)
        leaves = _foliage(rng, leaf * rng.uniform(0.85, 1.15), 0.8)
        board(blob(rng, u, v, radius * rng.uniform(0.6, 0.9), height * rng.uniform(0.28, 0.42)), leaves)


def draw_bush(painter, rng, frame):
    leaf = random_leaf(rng)
    for _ in range(rng.integers(1, 4)):
        leaves, size = _foliage(rng, leaf * rng.uniform(0.85, 1.15), 0.5), rng.uniform(0.5, 1.0)
        outline = blob(rng, rng.uniform(-1, 1), 0.7 * size, size, 0.8 * size)
        painter.fill(frame.end(), outline, RAW['vegetation'], leaves)


def random_wood(rng, width: float) -> Callable:
    """What draws a row of distant trees along the heading at (painter, rng, frame)."""
    tops = 4 + 5 * np.abs(rng.normal(0, 1, 60))
    ragged = zip(np.linspace(width / 2, -width / 2, 60).tolist(), tops.tolist(), strict=True)
    outline, leaves = [(-width / 2, 0), (width / 2, 0), *ragged], _foliage(rng, random_leaf(rng), 1.6)
    return lambda painter, rng, frame: painter.fill(frame.side(), outline, RAW['vegetation'], leaves)


def _foliage(rng, color: Color, size: float) -> Shader:
    return functools.partial(shade_leaves, color=color, shift=rng.uniform(0, 50), size=size)
