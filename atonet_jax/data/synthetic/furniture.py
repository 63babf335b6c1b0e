"""What is put up along a street: lamps, traffic lights, signs, bins."""

import math

import numpy as np

from atonet_jax.data.synthetic.geometry import bar, box, ellipse, rectangle
from atonet_jax.data.synthetic.painter import RAW
from atonet_jax.data.synthetic.paints import DARK, WHITE, random_color, random_contrast, random_gray

LIGHT_COLORS = [0.1, 0.9, 0.5], [1.0, 0.7, 0.1], [1.0, 0.15, 0.1]  # from below

# Corners of signs within -1..1, and the polygons of the glyphs on them.
SIGN_SHAPES = {
    'disc': [(math.cos(k * 0.5236), math.sin(k * 0.5236)) for k in range(12)],
    'triangle': [(-1.0, -0.75), (1.0, -0.75), (0.0, 1.0)],
    'diamond': [(-1.0, 0.0), (0.0, -1.0), (1.0, 0.0), (0.0, 1.0)],
    'square': rectangle(-0.85, -0.85, 0.85, 0.85),
    'octagon': [(math.cos(0.3927 + k * 0.7854), math.sin(0.3927 + k * 0.7854)) for k in range(8)],
}
SIGN_GLYPHS = (
    [rectangle(-0.4, -0.14, 0.4, 0.14)],
    [bar(-0.25, -0.3, 0.25, 0.3, 0.25)],
    [ellipse(0, 0, 0.22, 0.22, 8)],
    [rectangle(-0.12, -0.4, 0.12, 0.05), [(-0.35, 0.0), (0.35, 0.0), (0, 0.42)]],
)


def draw_lamp(painter, rng, frame):
    height, paint = rng.uniform(4.5, 9.0), random_gray(rng, 0.15, 0.75, 0.03)
    _draw_pole(painter, frame, height, rng.uniform(0.2, 0.32), paint)
    reach = rng.choice([-1, 1]) * rng.uniform(0.8, 1.8)
    board = painter.brush(frame.end(), RAW['pole'])
    board(bar(0, height, reach, height + 0.3, 0.16), paint)
    board(rectangle(reach - 0.4, height + 0.18, reach + 0.4, height + 0.42), paint * 0.7)


def draw_light(painter, rng, frame):
    height, half = rng.uniform(2.2, 3.2), rng.uniform(0.28, 0.38)
    _draw_pole(painter, frame, height + 0.2, 0.2, random_gray(rng, 0.15, 0.7, 0.03))
    lit = rng.integers(3)
    board = painter.brush(frame.end(), RAW['traffic light'])
    if rng.random() < 0.4:
        board(rectangle(-half - 0.12, height - 0.12, half + 0.12, height + 6 * half + 0.12), WHITE)
    board(rectangle(-half, height, half, height + 6 * half), DARK)
    for lamp, color in enumerate(LIGHT_COLORS):
        v = height + (2 * lamp + 1) * half
        board(ellipse(0, v, 0.74 * half, 0.74 * half, 10), np.array(color) * (1.0 if lamp == lit else 0.42))


def draw_sign(painter, rng, frame):
    """One or two traffic signs on a pole."""
    height, size = rng.uniform(2.2, 2.9), rng.uniform(0.42, 0.6)
    _draw_pole(painter, frame, height + 1.2, 0.16, random_gray(rng, 0.3, 0.75, 0.03))
    board = painter.brush(frame.end(), RAW['traffic sign'])

    def part(outline, v, scale, paint):
        board([(scale * s, v + size + scale * t) for s, t in outline], paint)

    for v in (height, height + 2.05 * size)[: rng.integers(1, 3)]:
        shape = SIGN_SHAPES[rng.choice(list(SIGN_SHAPES))]
        face = random_color(rng)
        rim = random_contrast(rng, face)
        part(shape, v, size, rim)
        part(shape, v, 0.72 * size, face)
        for outline in SIGN_GLYPHS[rng.integers(len(SIGN_GLYPHS))]:
            part(outline, v, size, rim)


def draw_board(painter, rng, frame):
    """A direction board on two posts."""
    face = random_color(rng)
    text = random_contrast(rng, face)
    half, low, high = rng.uniform(1.0, 1.6), rng.uniform(2.2, 3.0), rng.uniform(3.6, 4.2)
    for u in (-0.7 * half, 0.7 * half):
        post = rectangle(u - 0.1, 0, u + 0.1, high)
        painter.fill(frame.end(), post, RAW['pole'], random_gray(rng, 0.3, 0.6, 0.02))
    board = painter.brush(frame.end(), RAW['traffic sign'])
    board(rectangle(-half, low, half, high), text)
    board(rectangle(-half + 0.1, low + 0.1, half - 0.1, high - 0.1), face)
    for v in np.arange(low + 0.25, high - 0.3, 0.4).tolist():
        board(rectangle(-0.8 * half, v, rng.uniform(0.0, 0.5) * half, v + 0.18), text)
        board([(0.6 * half, v), (0.85 * half, v + 0.09), (0.6 * half, v + 0.18)], text)


def draw_clutter(painter, rng, frame):
    """Bins and boxes, which no class covers."""
    paint, half, height = random_color(rng), rng.uniform(0.25, 0.5), rng.uniform(0.6, 1.2)
    painter.extrude(frame, box(-half, 0, half, height), half, RAW['static'], [paint, paint * 1.1, paint], paint)


def _draw_pole(painter, frame, height, width, paint):
    board = painter.brush(frame.end(), RAW['pole'])
    board(rectangle(-width / 2, 0, width / 2, height), paint)
    board(rectangle(width / 6, 0, width / 2, height), paint * 0.6)
    board(rectangle(-width * 0.8, 0, width * 0.8, 0.6), paint * 0.8)
