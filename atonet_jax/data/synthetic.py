"""Synthetic street scenes with the 19 Cityscapes classes, rendered from a seed.

A scene is a street in metres: strips of ground beside each other (lanes, parking, verge, pavement, lot), and
things that stand on them. Everything is a planar polygon in the world. `Painter` draws the polygons from far
to near as numbers into one map of surfaces and one map of labels, so image and labels agree to the pixel;
then it colours each visible surface once, in the surface's own coordinates. Colours are random and shared
between classes on purpose: what tells a class from another is its structure, shape and surroundings.

Every `draw_*` takes the painter, the scene's generator and the frame in which the thing stands.
"""

import concurrent.futures
import functools
import io
import itertools
import json
import math
import multiprocessing
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import tqdm
from PIL import Image, ImageDraw, ImageFilter

from atonet_jax.data.labels import CITYSCAPES
from atonet_jax.errors import InputError

RAW = {label.name: label.raw_id for label in CITYSCAPES.raw_labels}


class Kind(NamedTuple):
    """How often, how far and where a kind of thing stands."""

    first: float  # chance of at least one in a scene
    more: float  # chance of one more after each
    nearest: float  # metres ahead at which it may begin
    reach: float  # the farthest, as a multiple of the nearest
    strips: tuple[str, ...]  # drawn from; the first serves where the street lacks the drawn one
    half: float = 0.5  # half of its length, metres
    height: float = 1.6  # metres


KINDS = {  # the long ones first: they need the most room
    'train': Kind(0.23, 0.0, 10.0, 2.6, ('lane',), 14.0, 3.5),
    'bus': Kind(0.24, 0.10, 10.0, 2.6, ('lane',), 5.6, 3.0),
    'truck': Kind(0.28, 0.12, 8.5, 2.6, ('lane', 'parking'), 4.6, 3.3),
    'car': Kind(0.97, 0.88, 7.0, 5.5, ('lane', 'parking', 'parking'), 2.2),
    'person': Kind(0.85, 0.60, 6.0, 4.0, ('pavement', 'pavement', 'pavement', 'lane')),
    'cyclist': Kind(0.42, 0.35, 5.0, 2.6, ('lane', 'lane', 'pavement'), 1.0),
    'motorcyclist': Kind(0.24, 0.15, 5.0, 2.6, ('lane',), 1.0),
    'bicycle': Kind(0.42, 0.45, 5.0, 2.6, ('pavement', 'verge'), 1.0),
    'motorcycle': Kind(0.24, 0.20, 5.0, 2.6, ('pavement', 'parking'), 1.0),
    'lamp': Kind(0.90, 0.65, 6.0, 5.0, ('pavement', 'verge'), height=6.0),
    'sign': Kind(0.80, 0.60, 6.0, 2.6, ('pavement', 'verge'), height=1.0),
    'light': Kind(0.75, 0.55, 6.0, 2.6, ('pavement',)),
    'board': Kind(0.20, 0.10, 9.0, 2.6, ('pavement', 'verge'), height=1.2),
    'tree': Kind(0.93, 0.87, 7.0, 5.0, ('lot', 'verge', 'pavement'), height=5.0),
    'bush': Kind(0.55, 0.60, 7.0, 2.6, ('lot', 'verge')),
    'clutter': Kind(0.20, 0.30, 6.0, 2.6, ('pavement',)),
}
CROSSERS = ('car', 'truck', 'bus', 'train', 'person', 'cyclist', 'motorcyclist')
CROSSER_CHANCE = 0.4  # of each crosser to be on the cross street, where there is one
COMPANIONS = 3  # a person comes with fewer than this many others
SMALLEST = 0.03  # what is lower than this fraction of the image height is left out

SIDE_KINDS = {'facade': 0.36, 'garden': 0.32, 'park': 0.32}
CROSSING_CHANCE = 0.45  # a cross street
CLOSED_END_CHANCE = 0.35  # the street ends at a row of houses
VERGE_CHANCE = 0.28
PARKING_CHANCE = 0.5
BOUNDARY_KINDS = {'wall': 0.32, 'fence': 0.44, 'hedge': 0.12, 'none': 0.12}
BONNET_CHANCE = 0.15
ZEBRA_CHANCE = 0.4

FOCAL = (1.05, 1.55)  # in image heights
HORIZON = (0.36, 0.54)  # in image heights from the top
CAMERA_HEIGHT = (1.2, 2.3)  # metres
YAW = 0.14  # radians
ROLL = 0.025
NEAR = 0.4  # clipping distance, metres

BLUR = (0.0, 0.0035)  # in image heights
NOISE = (0.006, 0.03)
VISIBILITY = (60.0, 500.0)  # metres to 1 / e

Color = np.ndarray  # [3] float64, RGB in 0..1
Shader = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]  # u, v, metres per pixel, each [N] -> [N, 3]
Paint = Color | Shader
Point = tuple[float, float, float]


# ---------------------------------------------------------------- camera, surfaces


class Plane(NamedTuple):
    """A plane in the world: the points `origin + u * u_axis + v * v_axis`."""

    origin: Point
    u_axis: Point
    v_axis: Point

    def points(self, uv: Sequence[tuple[float, float]]) -> list[Point]:
        (ox, oy, oz), (ux, uy, uz), (vx, vy, vz) = self
        return [(ox + u * ux + v * vx, oy + u * uy + v * vy, oz + u * uz + v * vz) for u, v in uv]


class Frame:
    """Local axes of a thing on the ground: `a` along its heading, `y` up, `b` to its right."""

    def __init__(self, x: float, z: float, heading: float):
        self.x, self.z = x, z
        self.sin, self.cos = math.sin(heading), math.cos(heading)
        self.camera_a = -x * self.sin - z * self.cos
        self.camera_b = -x * self.cos + z * self.sin

    @classmethod
    def facing(cls, x: float, z: float) -> 'Frame':
        return cls(x, z, math.atan2(x, z))

    def at(self, a: float, y: float, b: float) -> Point:
        return self.x + a * self.sin + b * self.cos, y, self.z + a * self.cos - b * self.sin

    def side(self, b: float = 0.0) -> Plane:
        """The upright plane along the heading, u = a."""
        return Plane(self.at(0, 0, b), (self.sin, 0, self.cos), (0, 1, 0))

    def end(self, a: float = 0.0) -> Plane:
        """The upright plane across the heading, u = b."""
        return Plane(self.at(a, 0, 0), (self.cos, 0, -self.sin), (0, 1, 0))


GROUND = Plane((0, 0, 0), (1, 0, 0), (0, 0, 1))


class Painter:
    """Draws polygons, far to near, and colours what stays visible."""

    def __init__(self, rng: np.random.Generator, height: int, width: int):
        self.height, self.width = height, width
        self.focal = rng.uniform(*FOCAL)
        self.horizon = rng.uniform(*HORIZON)
        self.camera_height = rng.uniform(*CAMERA_HEIGHT)
        yaw, roll = rng.uniform(-YAW, YAW), rng.normal(0, ROLL / 2)
        turn = np.array([[math.cos(yaw), 0, -math.sin(yaw)], [0, 1, 0], [math.sin(yaw), 0, math.cos(yaw)]])
        tilt = np.array([[math.cos(roll), -math.sin(roll), 0], [math.sin(roll), math.cos(roll), 0], [0, 0, 1]])
        self.rotation = (tilt @ turn).tolist()
        scale = self.focal * height
        self.intrinsics = np.array(
            [[scale, 0, width / 2 - 0.5], [0, -scale, self.horizon * height - 0.5], [0, 0, 1]]
        )
        azimuth, elevation = rng.uniform(0, 2 * math.pi), rng.uniform(0.35, 1.1)
        self.sun = (
            math.cos(elevation) * math.sin(azimuth), math.sin(elevation), math.cos(elevation) * math.cos(azimuth)
        )
        self.ambient = rng.uniform(0.45, 0.95)
        self.surfaces = Image.new('I', (width, height))
        self.labels = Image.new('L', (width, height), RAW['sky'])
        self.draw_surface = ImageDraw.Draw(self.surfaces).polygon
        self.draw_label = ImageDraw.Draw(self.labels).polygon
        sky = np.array([[1 / height, 0, -0.5 * width / height], [0, 1 / height, 0], [0, 0, 1.0]])
        self.colors: list[Color] = [np.zeros(3)]
        self.lights, self.depths = [1.0], [1.0]
        self.shaders: list[tuple[int, Shader, np.ndarray]] = [(0, functools.partial(shade_sky, *_sky(rng)), sky)]

    def polygon(self, points: Sequence[Point], label: int | None, paint: Paint | None, plane: Plane | None = None):
        """Draws one polygon.

        Args:
            points: its corners in the world, metres.
            label: raw label id; None leaves the labels as they are (shadows, markings).
            paint: RGB, or a shader on `plane`; None leaves the image as it is (see-through parts).
            plane: the coordinates of a shader.
        """
        camera = [self._to_camera(point, self.camera_height) for point in points]
        if min(point[2] for point in camera) < NEAR:
            camera = _clip(camera)
            if len(camera) < 3:
                return
        (scale, _, cx), (_, _, cy) = self.intrinsics[0].tolist(), self.intrinsics[1].tolist()
        pixels = [(cx + scale * x / z, cy - scale * y / z) for x, y, z in camera]
        depth = sum(point[2] for point in camera) / len(camera)
        if callable(paint):
            axes = [self._to_camera(axis, 0.0) for axis in (plane.u_axis, plane.v_axis)]
            axes.append(self._to_camera(plane.origin, self.camera_height))
            inverse = np.linalg.inv(self.intrinsics @ np.array(axes).T)
            self.shaders.append((len(self.colors), paint, inverse))
            paint = self.colors[0]
        self.stamp(pixels, label, paint, self._light(points), depth)

    def stamp(self, pixels: list[tuple[float, float]], label: int | None, color: Color | None, light=1.0, depth=1.0):
        """Draws a polygon given by its corners in the image."""
        if label is not None:
            self.draw_label(pixels, fill=label)
        if color is not None:
            self.draw_surface(pixels, fill=len(self.colors))
            self.colors.append(color)
            self.lights.append(light)
            self.depths.append(depth)

    def fill(self, plane: Plane, uv: Sequence[tuple[float, float]], label: int | None, paint: Paint | None):
        """Draws a polygon given by its corners on a plane."""
        self.polygon(plane.points(uv), label, paint, plane)

    def visible(self, z: float, size: float) -> bool:
        """Whether something `size` metres high at distance `z` is large enough to draw."""
        return size * self.focal > SMALLEST * z

    def resolve(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the lit colours [H, W, 3] float32 and the depth [H, W] float32 in metres."""
        numbers = np.asarray(self.surfaces).ravel().astype(np.uint16)
        colors = np.array(self.colors, np.float32)[numbers]
        depth = np.array(self.depths, np.float32)[numbers]
        order = np.argsort(numbers, kind='stable')
        bounds = np.searchsorted(numbers[order], np.arange(len(self.colors) + 1))
        for number, shader, inverse in self.shaders:
            pixels = order[bounds[number] : bounds[number + 1]]
            if not len(pixels):
                continue
            y, x = np.divmod(pixels.astype(np.int32), self.width)
            a, b, c = (row[0] * x + row[1] * y + row[2] for row in inverse.astype(np.float32))
            depth[pixels] = distance = 1 / c
            colors[pixels] = shader(a * distance, b * distance, distance / (self.focal * self.height))
        colors *= np.array(self.lights, np.float32)[numbers][:, None]
        return colors.reshape(self.height, self.width, 3), depth.reshape(self.height, self.width)

    def _to_camera(self, point: Point, eye: float) -> Point:
        """A point seen from a height of `eye`; a direction with `eye` 0."""
        x, y, z = point
        return tuple(row[0] * x + row[1] * (y - eye) + row[2] * z for row in self.rotation)

    def _light(self, points: Sequence[Point]) -> float:
        (ax, ay, az), (bx, by, bz), (cx, cy, cz) = points[0], points[1], points[-1]
        ux, uy, uz, vx, vy, vz = bx - ax, by - ay, bz - az, cx - ax, cy - ay, cz - az
        nx, ny, nz = uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx
        length = math.sqrt(nx * nx + ny * ny + nz * nz) or 1.0
        facing = nx * -ax + ny * (self.camera_height - ay) + nz * -az
        cosine = (nx * self.sun[0] + ny * self.sun[1] + nz * self.sun[2]) / math.copysign(length, facing)
        return self.ambient + (1.15 - self.ambient) * max(0.0, cosine)


def _clip(camera: list[Point]) -> list[Point]:
    """The part of a polygon beyond the near plane."""
    result = []
    for (x0, y0, z0), (x1, y1, z1) in zip(camera, camera[1:] + camera[:1], strict=True):
        if z0 >= NEAR:
            result.append((x0, y0, z0))
        if (z0 >= NEAR) != (z1 >= NEAR):
            t = (NEAR - z0) / (z1 - z0)
            result.append((x0 + t * (x1 - x0), y0 + t * (y1 - y0), NEAR))
    return result


# ---------------------------------------------------------------- colours, textures


def _gray(rng, low=0.25, high=0.8, tint=0.05) -> Color:
    return np.clip(rng.uniform(low, high) + rng.normal(0, tint, 3), 0.02, 1)


def _paint(rng) -> Color:
    """Any lacquer, cloth or plaster: half of them greyish, half of them saturated."""
    if rng.random() < 0.5:
        return _gray(rng, 0.08, 0.92)
    hue = rng.uniform(0, 2 * math.pi) + np.array([0, 2, 4]) * math.pi / 3
    return np.clip(rng.uniform(0.25, 0.85) * (1 + rng.uniform(0.2, 0.8) * np.cos(hue)), 0.02, 1)


def _leaf(rng) -> Color:
    return np.array([rng.uniform(0.16, 0.42), rng.uniform(0.27, 0.46), rng.uniform(0.08, 0.24)])


def _contrast(rng, color: Color) -> Color:
    """A paint that stands out from `color`."""
    other = _paint(rng)
    if abs(other.mean() - color.mean()) > 0.22:
        return other
    return np.clip(other + (0.4 if color.mean() < 0.5 else -0.4), 0, 1)


def _glass(rng) -> Color:
    return np.array([0.12, 0.15, 0.19]) + rng.uniform(0, 0.22)


DARK = np.array([0.07, 0.07, 0.08])
WHITE = np.array([0.92, 0.92, 0.9])
RED = np.array([0.75, 0.08, 0.08])


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


def _joints(u: np.ndarray, period: float, width: float) -> np.ndarray:
    return (u % period) < width


def _sky(rng) -> tuple[Color, Color, float, float, float]:
    kind = rng.random()
    if kind < 0.4:
        top, low = np.array([0.3, 0.5, 0.85]) * rng.uniform(0.7, 1.1), np.array([0.75, 0.85, 0.95])
    elif kind < 0.8:
        low = _gray(rng, 0.6, 0.97, 0.02)
        top = low * rng.uniform(0.7, 1.0)
    else:
        top, low = np.array([0.35, 0.35, 0.5]) * rng.uniform(0.6, 1.3), np.array([0.95, 0.75, 0.55])
    return top, low, rng.uniform(0, 0.35), rng.uniform(1, 5), rng.uniform(0, 30)


def shade_sky(top, low, clouds, scale, shift, u, v, foot):
    rgb = top + (low - top) * np.clip(v * 2, 0, 1)[:, None]
    cloud = _smooth(u * scale + shift, v * scale * 2.5) + 0.5 * _smooth(u * scale * 2 + shift, v * scale * 5)
    return rgb + (clouds * np.clip(cloud, -0.2, 1))[:, None]


def shade_road(color, lines, mark, u, v, foot):
    """`lines`: (x, width, length of a dash in a period of 6 m) each."""
    fine = _grain(u * 11, v * 11) * _fade(foot, 0.2)
    rgb = color * (1 + 0.07 * fine + 0.12 * _smooth(u / 2, v / 8) + 0.05 * _grain(u / 3, v / 7))[:, None]
    for x, width, dash in lines:
        rgb[(np.abs(u - x) < width) & ((v % 6) < dash)] = mark
    return rgb


def shade_slabs(color, length, depth, u, v, foot):
    row = np.floor(v / depth)
    shifted = u + (row % 2) * length / 2
    fade = _fade(foot, length)
    value = 1 + 0.13 * _grain(shifted / length, row) + 0.05 * _grain(u * 9, v * 9)
    joint = _joints(shifted, length, 0.09 * length) | _joints(v, depth, 0.09 * depth)
    return color * (value - 0.38 * joint * fade)[:, None]


def shade_grass(color, soil, u, v, foot):
    tuft = _grain(u * 7, v * 2.2) * _fade(foot, 0.25) + 0.8 * _grain(u * 2.5, v * 0.9)
    rgb = color * (1 + 0.24 * tuft + 0.2 * _smooth(u, v / 2))[:, None]
    bare = _smooth(u / 3 + 7, v / 6) > 0.45
    rgb[bare] = (soil * (1 + 0.2 * tuft)[:, None])[bare]
    return rgb


def shade_leaves(color, shift, size, u, v, foot):
    u, v = u / size + shift, v / size
    clump = _smooth(u * 2, v * 2) + 0.7 * _grain(u * 5 + _smooth(v, u), v * 5) + 0.5 * _grain(u * 11, v * 11)
    return color * np.clip(1.0 + 0.42 * clump, 0.25, 1.8)[:, None]


def shade_courses(color, mortar, length, height, u, v, foot):
    """Brick or stone."""
    row = np.floor(v / height)
    shifted = u + (row % 2) * length / 2
    rgb = color * (1 + 0.2 * _grain(shifted / length, row) + 0.05 * _grain(u * 12, v * 12))[:, None]
    joint = (_joints(shifted, length, 0.16 * height) | _joints(v, height, 0.16 * height)) * _fade(foot, height)
    return rgb + (mortar - rgb) * joint[:, None]


class Facade(NamedTuple):
    """How the front of a house looks, metres."""

    color: Color
    trim: Color
    glass: Color
    shop: Color
    bay: float
    storey: float
    window: tuple[float, float, float]  # width, sill, head, as fractions of bay and storey
    bricks: float
    shift: float
    has_shop: bool
    top: float

    def __call__(self, u, v, foot):
        bay, level = np.floor(u / self.bay), np.floor(v / self.storey)
        fu, fv = np.abs(u / self.bay - bay - 0.5) * 2, v / self.storey - level
        width, sill, head = self.window
        chance = _grain(bay + self.shift, level)
        value = 1 + 0.06 * _smooth(u / 4 + self.shift, v / 4)
        value -= self.bricks * _joints(v, 0.3, 0.07) * _fade(foot, 0.3)
        rgb = self.color * value[:, None]
        inside = (v > self.storey) & (v < self.top - 0.4)
        frame = inside & (fu < width + 0.16) & (fv > sill - 0.07) & (fv < head + 0.06)
        rgb[frame] = self.trim
        pane = inside & (fu < width) & (fv > sill) & (fv < head) & (fu > 0.07)
        rgb[pane] = self.glass * (1 + 0.5 * chance[pane] + 0.25 * (fv[pane] - sill))[:, None]
        low = v < self.storey
        if self.has_shop:
            pane = low & (fu < 0.86) & (fv > 0.16) & (fv < 0.72)
            rgb[low & (fv > 0.76)] = self.shop
        else:
            door = low & (chance > 0.55) & (fu < 0.5) & (fv < 0.75)
            rgb[door] = self.shop
            pane = low & (chance <= 0.55) & (fu < width) & (fv > sill) & (fv < head)
        rgb[pane] = self.glass * (1 + 0.6 * chance[pane])[:, None]
        rgb[v > self.top - 0.35] = self.trim
        return rgb


class Livery(NamedTuple):
    """The side of a bus or a train: a row of windows, stripes, doors; metres above the ground."""

    color: Color
    stripe: Color
    glass: Color
    window: tuple[float, float]  # from, to
    bay: float
    pillar: float
    stripes: tuple[tuple[float, float], ...]
    doors: float  # period

    def __call__(self, u, v, foot):
        rgb = self.color * (1 + 0.04 * _smooth(u / 2, v))[:, None]
        for low, high in self.stripes:
            rgb[(v > low) & (v < high)] = self.stripe
        pane = (v > self.window[0]) & (v < self.window[1]) & ((u % self.bay) > self.pillar)
        rgb[pane] = self.glass * (1 + 0.3 * _grain(u / self.bay, v * 0)[pane])[:, None]
        along = u % self.doors
        door = (along < 1.3) & (v < self.window[1] + 0.1)
        rgb[door] = self.stripe
        leaf = door & (np.abs(along - 0.65) > 0.1) & (along > 0.12) & (along < 1.18) & (v > 0.55)
        rgb[leaf] = self.glass
        return rgb


def shade_ribs(color, trim, period, bottom, top, half, middle, u, v, foot):
    """The plain, ribbed box of a truck, framed by its edges; `middle` centres it."""
    rib = ((u % period) < period / 2) * _fade(foot, period)
    rgb = color * (1 - 0.16 * rib + 0.03 * _smooth(u, v))[:, None]
    rgb[(v < bottom + 0.16) | (v > top - 0.14) | (np.abs(u - middle) > half - 0.13)] = trim
    return rgb


def shade_chevrons(color, other, period, u, v, foot):
    return np.where((((u + v) % period) < period / 2)[:, None], color, other)


# ---------------------------------------------------------------- shapes


def rectangle(u0: float, v0: float, u1: float, v1: float) -> list[tuple[float, float]]:
    return [(u0, v0), (u1, v0), (u1, v1), (u0, v1)]


def ellipse(u: float, v: float, ru: float, rv: float, corners: int = 12) -> list[tuple[float, float]]:
    step = 2 * math.pi / corners
    return [(u + ru * math.cos(k * step), v + rv * math.sin(k * step)) for k in range(corners)]


def ring(u: float, v: float, outer: float, inner: float) -> list[tuple[float, float]]:
    circle, hole = ellipse(u, v, outer, outer, 14), ellipse(u, v, inner, inner, 14)
    return [*circle, circle[0], hole[0], *hole[::-1]]


def bar(u0: float, v0: float, u1: float, v1: float, width: float) -> list[tuple[float, float]]:
    """A straight bar from one point to another."""
    length = math.hypot(u1 - u0, v1 - v0) or 1.0
    du, dv = (v0 - v1) / length * width / 2, (u1 - u0) / length * width / 2
    return [(u0 + du, v0 + dv), (u1 + du, v1 + dv), (u1 - du, v1 - dv), (u0 - du, v0 - dv)]


def blob(rng, u: float, v: float, ru: float, rv: float, rough: float = 0.16) -> list[tuple[float, float]]:
    corners = 22
    radius = 1 + rough * rng.uniform(-1, 1, corners)
    step = 2 * math.pi / corners
    return [
        (u + ru * r * math.cos(k * step), v + rv * r * math.sin(k * step)) for k, r in enumerate(radius.tolist())
    ]


def extrude(painter, frame, profile, half, label, paints, side, taper=0.0):
    """A body of constant width over a side view.

    Args:
        profile: (a, y) corners, clockwise seen from its right: rear bottom, up, over to the front bottom.
        half: half of the width.
        paints: of the faces between successive corners (the last one, the underside, is not drawn).
        side: paint of the side.
        taper: how far the upper half leans in.
    """
    middle = max(y for _, y in profile) * 0.6

    def width(y):
        return half - (taper if y > middle else 0)

    faces = list(zip(profile, profile[1:], paints, strict=False))
    faces.sort(key=lambda face: -abs(face[0][0] + face[1][0] - 2 * frame.camera_a))
    for (a0, y0), (a1, y1), paint in faces:
        if (painter.camera_height - y0) * (a1 - a0) - (frame.camera_a - a0) * (y1 - y0) <= 0:
            continue
        corners = [frame.at(a0, y0, -width(y0)), frame.at(a0, y0, width(y0)), frame.at(a1, y1, width(y1))]
        painter.polygon([*corners, frame.at(a1, y1, -width(y1))], label, paint, frame.end(a0))
    if abs(frame.camera_b) > half:
        sign = math.copysign(1, frame.camera_b)
        painter.polygon([frame.at(a, y, sign * width(y)) for a, y in profile], label, side, frame.side(sign * half))


def _near_side(frame, half) -> float:
    """b of the side that the camera sees, 0 where it sees none."""
    return math.copysign(half, frame.camera_b) if abs(frame.camera_b) > half else 0.0


def _near_end(frame, half) -> float:
    """a of the end that the camera sees, 0 where it sees none."""
    return math.copysign(half, frame.camera_a) if abs(frame.camera_a) > half else 0.0


def _shadow(painter, frame, half_length, half_width):
    corners = [(-1, -1), (1, -1), (1, 1), (-1, 1)]
    points = [frame.at(a * half_length, 0, b * half_width) for a, b in corners]
    painter.polygon(points, None, DARK + 0.07)


def _wheels(painter, frame, b, positions, radius, label, hub):
    for a in positions:
        painter.fill(frame.side(b), ellipse(a, radius, radius, radius), label, DARK)
        painter.fill(frame.side(b), ellipse(a, radius, 0.55 * radius, 0.55 * radius), label, hub)


def _tyres(painter, end, half, width, top, label):
    """What shows of the wheels below an end."""
    for b in (-half, half - width):
        painter.fill(end, rectangle(b, 0, b + width, top), label, DARK)


def _lamps(painter, frame, a, half, y, size, label):
    """White lamps at the front, red ones at the rear."""
    color = WHITE if a > 0 else RED
    for b in (-half + size, half - size):
        painter.fill(frame.end(a), rectangle(b - size, y - size / 2, b + size, y + size / 2), label, color)


# ---------------------------------------------------------------- vehicles


def draw_car(painter, rng, frame):
    label, body, glass = RAW['car'], _paint(rng), _glass(rng)
    half, length, height = rng.uniform(0.85, 0.95), rng.uniform(1.9, 2.3), rng.uniform(1.4, 1.85)
    belt, boot, hood = 0.6 * height, rng.choice([0.05, 0.15, 0.8]), rng.uniform(0.5, 1.25)
    rear, front = -length + boot, length - hood
    profile = [
        (-length, 0.25), (-length, belt - 0.05), (rear, belt), (rear + 0.35, height), (front - 0.75, height),
        (front, belt), (length - 0.05, 0.5 * height), (length, 0.25),
    ]
    _shadow(painter, frame, length + 0.1, half + 0.15)
    extrude(painter, frame, profile, half, label, [body, body, glass, body, glass, body, body], body, taper=0.14)
    b = _near_side(frame, half)
    if b:
        side = frame.side(b)
        top, pillar = height - 0.12, (rear + front) / 2 - 0.1
        window = [(rear + 0.2, belt), (rear + 0.45, top), (front - 0.8, top), (front - 0.15, belt)]
        painter.fill(frame.side(b * 0.9), window, label, glass)
        painter.fill(frame.side(b * 0.9), rectangle(pillar, belt, pillar + 0.12, top), label, body)
        painter.fill(side, rectangle(-length, 0.25, length, 0.4), label, body * 0.5)
        _wheels(painter, frame, b, (-length + 0.8, length - 0.85), 0.34, label, _gray(rng))
    a = _near_end(frame, length)
    if a:
        end = frame.end(a)
        _lamps(painter, frame, a, half, belt - 0.22, 0.19, label)
        painter.fill(end, rectangle(-half, 0.2, half, 0.38), label, body * 0.45)
        painter.fill(end, rectangle(-0.27, 0.42, 0.27, 0.54), label, WHITE)
        _tyres(painter, end, half - 0.02, 0.22, 0.25, label)


def draw_truck(painter, rng, frame):
    label, cab, box = RAW['truck'], _paint(rng), _paint(rng)
    trim, glass, hub = _contrast(rng, box), _glass(rng), _gray(rng)
    half, length, top = 1.25, rng.uniform(3.6, 5.0), rng.uniform(3.1, 3.9)
    cab_top, split = rng.uniform(2.4, 3.0), length - 2.0
    _shadow(painter, frame, length, half + 0.2)
    chassis = [(-length, 0.5), (-length, 1.0), (length - 0.1, 1.0), (length - 0.1, 0.5)]
    ribs = functools.partial(shade_ribs, box, trim, rng.uniform(0.5, 0.9), 0.95, top)
    load = [(-length, 0.95), (-length, top), (split - 0.25, top), (split - 0.25, 0.95)]
    nose = [(split, 0.45), (split, cab_top), (length - 0.35, cab_top), (length, 1.5), (length, 0.45)]
    middle = (split - 0.25 - length) / 2
    bodies = [
        (chassis, [DARK] * 3, DARK),
        (load, [functools.partial(ribs, half, 0.0), box, functools.partial(ribs, half, 0.0)],
         functools.partial(ribs, middle + length, middle)),
        (nose, [cab, cab, glass, cab], cab),
    ]
    nearest_last = bodies if frame.camera_a > 0 else [bodies[0], bodies[2], bodies[1]]
    for profile, paints, side in nearest_last:
        extrude(painter, frame, profile, half, label, paints, side)
    b = _near_side(frame, half)
    if b:
        window = [(split + 0.5, 1.5), (split + 0.5, cab_top - 0.3), (length - 0.5, cab_top - 0.3), (length - 0.2, 1.5)]
        painter.fill(frame.side(b), window, label, glass)
        _wheels(painter, frame, b, (-length + 0.9, -length + 2.1, length - 1.0), 0.52, label, hub)
    a = _near_end(frame, length)
    if a:
        end = frame.end(a)
        _lamps(painter, frame, a, half, 0.8, 0.22, label)
        painter.fill(end, rectangle(-half, 0.45, half, 0.68), label, trim)
        _tyres(painter, end, half, 0.4, 0.45, label)
        if a < 0:
            painter.fill(end, bar(0, 1.0, 0, top, 0.12), label, trim)


def draw_bus(painter, rng, frame):
    label, body, glass = RAW['bus'], _paint(rng), _glass(rng) * 0.7
    stripe = _contrast(rng, body)
    half, length, top = 1.28, rng.uniform(4.5, 6.0), rng.uniform(2.9, 3.3)
    side = Livery(body, stripe, glass, (1.25, 2.4), rng.uniform(1.3, 1.7), 0.16, ((0.7, 1.0),), 4.6)
    profile = [
        (-length, 0.35), (-length, top - 0.2), (-length + 0.2, top),
        (length - 0.2, top), (length, top - 0.2), (length, 0.35),
    ]
    _shadow(painter, frame, length, half + 0.2)
    extrude(painter, frame, profile, half, label, [body, body, body * 0.8, body, body], side)
    b = _near_side(frame, half)
    if b:
        _wheels(painter, frame, b, (-length + 2.2, length - 2.4), 0.48, label, _gray(rng))
    a = _near_end(frame, length)
    if a:
        end = frame.end(a)
        low, high = (1.1, 2.4) if a > 0 else (1.6, 2.4)
        painter.fill(end, rectangle(-half + 0.12, low, half - 0.12, high), label, glass)
        painter.fill(end, rectangle(-half + 0.2, 2.5, half - 0.2, 2.82), label, DARK)
        painter.fill(end, rectangle(-0.7, 2.58, 0.6, 2.74), label, np.array([1.0, 0.65, 0.1]))
        painter.fill(end, rectangle(-half, 0.7, half, 0.95), label, stripe)
        if a > 0:
            painter.fill(end, bar(0, low, 0, high, 0.07), label, DARK)
        for y in (1.05, 1.2, 1.35) if a < 0 else ():
            painter.fill(end, rectangle(-0.8, y, 0.8, y + 0.07), label, DARK)
        _lamps(painter, frame, a, half, 0.55, 0.2, label)
        _tyres(painter, end, half - 0.05, 0.3, 0.35, label)


def draw_train(painter, rng, frame):
    label, body, glass = RAW['train'], _paint(rng), _glass(rng) * 0.8
    stripe = _contrast(rng, body)
    half, car, top = 1.35, rng.uniform(4.2, 5.2), rng.uniform(3.5, 3.9)
    side = Livery(body, stripe, glass, (1.9, 2.75), 1.1, 0.4, ((0.15, 0.4), (0.95, 1.2), (1.4, 1.65), (3.0, 3.2)), car)
    nose = functools.partial(shade_chevrons, stripe, body, 0.8)
    cars = [Frame(*frame.at(offset, 0, 0)[::2], math.atan2(frame.sin, frame.cos)) for offset in (-2 * car, 0, 2 * car)]
    cars.sort(key=lambda one: -abs(one.camera_a))
    for one in cars:
        joint = car - 0.15
        profile = [
            (-joint, 0.12), (-joint - 0.12, 1.6), (-joint + 0.3, top - 0.3), (-joint + 0.9, top), (joint - 0.9, top),
            (joint - 0.3, top - 0.3), (joint + 0.12, 1.6), (joint, 0.12),
        ]
        extrude(painter, one, profile, half, label, [nose, glass, body, body * 0.7, body, glass, nose], side, taper=0.1)
    a = _near_end(cars[-1], car)
    if a:
        end = cars[-1].end(a)
        for b, y in ((-0.8, 1.0), (0.8, 1.0), (0, top - 0.15)):
            painter.fill(end, ellipse(b, y, 0.2, 0.2), label, WHITE)


def draw_bicycle(painter, rng, frame):
    label, side = RAW['bicycle'], frame.side()
    paint, tyre = _paint(rng), _gray(rng, 0.05, 0.3, 0.01)
    radius, base = 0.36, 0.56
    for u in (-base, base):
        painter.fill(side, ellipse(u, radius, radius, radius), label, None)
        painter.fill(side, ring(u, radius, radius, radius - 0.085), label, tyre)
        for angle in (0.3, 1.35, 2.4):
            du, dv = 0.9 * radius * math.cos(angle), 0.9 * radius * math.sin(angle)
            painter.fill(side, bar(u - du, radius - dv, u + du, radius + dv, 0.025), label, _gray(rng, 0.5, 0.8))
    seat, crank, head = (-0.25, 0.9), (-0.05, 0.36), (0.38, 0.95)
    painter.fill(side, [seat, crank, head], label, None)
    for start, stop in ((seat, crank), (crank, head), ((-0.2, 0.8), head), ((-base, radius), crank),
                        ((-base, radius), (-0.2, 0.8)), (head, (base, radius))):
        painter.fill(side, bar(*start, *stop, 0.085), label, paint)
    painter.fill(side, rectangle(-0.4, 0.9, -0.12, 0.99), label, DARK)
    painter.fill(side, bar(0.36, 0.95, 0.32, 1.08, 0.08), label, DARK)
    painter.fill(side, bar(0.24, 1.06, 0.5, 1.1, 0.08), label, DARK)


def draw_motorcycle(painter, rng, frame):
    label, side = RAW['motorcycle'], frame.side()
    paint, metal = _paint(rng), _gray(rng, 0.45, 0.85)
    _shadow(painter, frame, 1.0, 0.3)
    for u in (-0.72, 0.74):
        painter.fill(side, ellipse(u, 0.34, 0.37, 0.34, 14), label, DARK)
        painter.fill(side, ellipse(u, 0.34, 0.17, 0.15), label, metal)
    painter.fill(side, bar(0.74, 0.34, 0.42, 1.05, 0.13), label, metal)
    engine = [(-0.6, 0.45), (-0.45, 0.25), (0.35, 0.25), (0.5, 0.6), (0.3, 0.75), (-0.5, 0.7)]
    painter.fill(side, engine, label, DARK + 0.12)
    painter.fill(side, ellipse(0.0, 0.42, 0.2, 0.16, 8), label, metal)
    painter.fill(side, [(-0.08, 0.7), (0.0, 0.98), (0.36, 1.02), (0.52, 0.72)], label, paint)
    painter.fill(side, [(-1.0, 0.82), (-0.95, 0.95), (-0.1, 0.86), (-0.05, 0.7), (-0.5, 0.62)], label, paint * 0.55)
    painter.fill(side, [(-1.05, 0.72), (-1.0, 0.85), (-0.6, 0.75)], label, paint)
    painter.fill(side, bar(-0.95, 0.32, 0.1, 0.28, 0.12), label, metal)
    painter.fill(side, [(0.42, 0.95), (0.5, 1.32), (0.62, 1.05), (0.66, 0.85)], label, paint)
    painter.fill(side, ellipse(0.63, 0.92, 0.09, 0.11, 8), label, WHITE)
    painter.fill(side, bar(0.25, 1.12, 0.5, 1.08, 0.08), label, DARK)


# ---------------------------------------------------------------- people


def draw_person(painter, rng, frame):
    label, board = RAW['person'], frame.end()
    size = rng.uniform(0.92, 1.08) * (0.7 if rng.random() < 0.12 else 1.0)
    coat, trousers, skin, hair = _paint(rng), _paint(rng) * 0.75, _skin(rng), _skin(rng) * 0.4
    step, hem = rng.uniform(0.02, 0.3), rng.choice([0.85, 0.85, 0.6])

    def part(uv, paint):
        painter.fill(board, [(u * size, v * size) for u, v in uv], label, paint)

    _shadow(painter, frame, 0.2, 0.35)
    for sign in (-1, 1):
        foot = sign * (0.07 + step / 2)
        part(bar(sign * 0.09, 0.92, foot, 0.06, 0.18), trousers * (1 + 0.1 * sign))
        part(rectangle(foot - 0.1, 0, foot + 0.14, 0.09), DARK)
    for sign in (-1, 1):
        hand = sign * (0.27 + step * 0.4)
        part(bar(sign * 0.2, 1.4, hand, 0.88, 0.13), coat * 0.8)
        part(ellipse(hand, 0.84, 0.06, 0.07, 6), skin)
    part([(-0.2, hem), (-0.25, 1.42), (-0.12, 1.52), (0.12, 1.52), (0.25, 1.42), (0.2, hem)], coat)
    if rng.random() < 0.35:
        part(rectangle(-0.16, 1.0, 0.16, 1.4), _paint(rng))
    part(rectangle(-0.06, 1.48, 0.06, 1.58), skin)
    part(ellipse(0, 1.66, 0.12, 0.15, 10), hair)
    if rng.random() < 0.7:
        part(ellipse(0.02, 1.63, 0.09, 0.11, 8), skin)


def _skin(rng) -> Color:
    return np.array([0.85, 0.65, 0.52]) * rng.uniform(0.35, 1.1)


def _draw_rider(painter, rng, frame, seat, pedal, grip):
    """Someone who sits on a two-wheeler, bent to its handlebar, seen from the side."""
    label, side = RAW['rider'], frame.side()
    coat, trousers, helmet, skin = _paint(rng), _paint(rng) * 0.75, _paint(rng), _skin(rng)
    (su, sv), (gu, gv) = seat, grip
    shoulder = (su + 0.32, sv + 0.56)
    knee = (su + 0.42, sv - 0.1)
    painter.fill(side, bar(su, sv + 0.05, *knee, 0.2), label, trousers)
    painter.fill(side, bar(*knee, *pedal, 0.16), label, trousers * 0.9)
    painter.fill(side, rectangle(pedal[0] - 0.08, pedal[1] - 0.08, pedal[0] + 0.2, pedal[1] + 0.03), label, DARK)
    back = [(su - 0.18, sv), (su + 0.08, sv + 0.55), (shoulder[0], sv + 0.68), (su + 0.38, sv + 0.42), (su + 0.18, sv)]
    painter.fill(side, back, label, coat)
    painter.fill(side, bar(*shoulder, (shoulder[0] + gu) / 2, gv + 0.1, 0.14), label, coat * 0.8)
    painter.fill(side, bar((shoulder[0] + gu) / 2, gv + 0.1, gu, gv, 0.12), label, coat * 0.8)
    painter.fill(side, ellipse(su + 0.42, sv + 0.8, 0.13, 0.15, 10), label, skin)
    shell = [(su + 0.27, sv + 0.8), (su + 0.3, sv + 0.98), (su + 0.45, sv + 1.02), (su + 0.57, sv + 0.88)]
    painter.fill(side, shell, label, helmet)


def draw_cyclist(painter, rng, frame):
    _shadow(painter, frame, 0.9, 0.25)
    draw_bicycle(painter, rng, frame)
    _draw_rider(painter, rng, frame, (-0.22, 0.98), (0.0, 0.28), (0.4, 1.1))


def draw_motorcyclist(painter, rng, frame):
    draw_motorcycle(painter, rng, frame)
    _draw_rider(painter, rng, frame, (-0.35, 0.9), (0.05, 0.35), (0.38, 1.12))


# ---------------------------------------------------------------- street furniture, plants


def _pole(painter, frame, height, width, paint):
    board = frame.end()
    painter.fill(board, rectangle(-width / 2, 0, width / 2, height), RAW['pole'], paint)
    painter.fill(board, rectangle(width / 6, 0, width / 2, height), RAW['pole'], paint * 0.6)
    painter.fill(board, rectangle(-width * 0.8, 0, width * 0.8, 0.6), RAW['pole'], paint * 0.8)


def draw_lamp(painter, rng, frame):
    height, paint = rng.uniform(4.5, 9.0), _gray(rng, 0.15, 0.75, 0.03)
    _pole(painter, frame, height, rng.uniform(0.2, 0.32), paint)
    reach = rng.choice([-1, 1]) * rng.uniform(0.8, 1.8)
    board = frame.end()
    painter.fill(board, bar(0, height, reach, height + 0.3, 0.16), RAW['pole'], paint)
    painter.fill(board, rectangle(reach - 0.4, height + 0.18, reach + 0.4, height + 0.42), RAW['pole'], paint * 0.7)


def draw_light(painter, rng, frame):
    label, height, half = RAW['traffic light'], rng.uniform(2.2, 3.2), rng.uniform(0.28, 0.38)
    _pole(painter, frame, height + 0.2, 0.2, _gray(rng, 0.15, 0.7, 0.03))
    lit = rng.integers(3)
    board = frame.end()
    if rng.random() < 0.4:
        painter.fill(board, rectangle(-half - 0.12, height - 0.12, half + 0.12, height + 6 * half + 0.12), label, WHITE)
    painter.fill(board, rectangle(-half, height, half, height + 6 * half), label, DARK)
    for lamp, color in enumerate(([0.1, 0.9, 0.5], [1.0, 0.7, 0.1], [1.0, 0.15, 0.1])):
        v = height + (2 * lamp + 1) * half
        shine = np.array(color) * (1.0 if lamp == lit else 0.42)
        painter.fill(board, ellipse(0, v, 0.74 * half, 0.74 * half, 10), label, shine)


SIGN_SHAPES = {
    'disc': [(math.cos(k * 0.5236), math.sin(k * 0.5236)) for k in range(12)],
    'triangle': [(-1.0, -0.75), (1.0, -0.75), (0.0, 1.0)],
    'diamond': [(-1.0, 0.0), (0.0, -1.0), (1.0, 0.0), (0.0, 1.0)],
    'square': [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)],
    'octagon': [(math.cos(0.3927 + k * 0.7854), math.sin(0.3927 + k * 0.7854)) for k in range(8)],
}


def draw_sign(painter, rng, frame):
    label, height, size = RAW['traffic sign'], rng.uniform(2.2, 2.9), rng.uniform(0.42, 0.6)
    _pole(painter, frame, height + 1.2, 0.16, _gray(rng, 0.3, 0.75, 0.03))
    board = frame.end()
    for v in (height, height + 2.05 * size)[: rng.integers(1, 3)]:
        shape = SIGN_SHAPES[rng.choice(list(SIGN_SHAPES))]
        face = _paint(rng)
        rim = _contrast(rng, face)
        for scale, paint in ((1.0, rim), (0.72, face)):
            painter.fill(board, [(scale * size * s, v + size + scale * size * t) for s, t in shape], label, paint)
        arrow = [rectangle(-0.12, -0.4, 0.12, 0.05), [(-0.35, 0.0), (0.35, 0.0), (0, 0.42)]]
        glyphs = (
            [rectangle(-0.4, -0.14, 0.4, 0.14)], [bar(-0.25, -0.3, 0.25, 0.3, 0.25)],
            [ellipse(0, 0, 0.22, 0.22, 8)], arrow,
        )
        for glyph in glyphs[rng.integers(len(glyphs))]:
            painter.fill(board, [(size * s, v + size + size * t) for s, t in glyph], label, rim)


def draw_board(painter, rng, frame):
    """A direction board on two posts."""
    label, face = RAW['traffic sign'], _paint(rng)
    text = _contrast(rng, face)
    half, low, high = rng.uniform(1.0, 1.6), rng.uniform(2.2, 3.0), rng.uniform(3.6, 4.2)
    board = frame.end()
    for u in (-0.7 * half, 0.7 * half):
        painter.fill(board, rectangle(u - 0.1, 0, u + 0.1, high), RAW['pole'], _gray(rng, 0.3, 0.6, 0.02))
    painter.fill(board, rectangle(-half, low, half, high), label, text)
    painter.fill(board, rectangle(-half + 0.1, low + 0.1, half - 0.1, high - 0.1), label, face)
    for v in np.arange(low + 0.25, high - 0.3, 0.4).tolist():
        painter.fill(board, rectangle(-0.8 * half, v, rng.uniform(0.0, 0.5) * half, v + 0.18), label, text)
        painter.fill(board, [(0.6 * half, v), (0.85 * half, v + 0.09), (0.6 * half, v + 0.18)], label, text)


def draw_tree(painter, rng, frame):
    label, board = RAW['vegetation'], frame.end()
    trunk, radius, height = rng.uniform(1.4, 2.6), rng.uniform(1.5, 3.4), rng.uniform(2.8, 6.5)
    bark = np.array([0.3, 0.24, 0.18]) * rng.uniform(0.6, 1.4)
    width = 0.16 * radius
    painter.fill(board, [(-width, 0), (width, 0), (0.6 * width, trunk + 1), (-0.6 * width, trunk + 1)], label,
                 functools.partial(shade_leaves, bark, rng.uniform(0, 50), 0.25))
    leaf = _leaf(rng)
    for _ in range(rng.integers(3, 7)):
        u, v = rng.uniform(-0.45, 0.45) * radius, trunk + height * rng.uniform(0.3, 0.75)
        shader = functools.partial(shade_leaves, leaf * rng.uniform(0.85, 1.15), rng.uniform(0, 50), 0.8)
        outline = blob(rng, u, v, radius * rng.uniform(0.6, 0.9), height * rng.uniform(0.28, 0.42))
        painter.fill(board, outline, label, shader)


def draw_bush(painter, rng, frame):
    leaf = _leaf(rng)
    for _ in range(rng.integers(1, 4)):
        shader = functools.partial(shade_leaves, leaf * rng.uniform(0.85, 1.15), rng.uniform(0, 50), 0.5)
        size = rng.uniform(0.5, 1.0)
        outline = blob(rng, rng.uniform(-1, 1), 0.7 * size, size, 0.8 * size)
        painter.fill(frame.end(), outline, RAW['vegetation'], shader)


def draw_clutter(painter, rng, frame):
    """Bins and boxes, which no class covers."""
    paint, half, height = _paint(rng), rng.uniform(0.25, 0.5), rng.uniform(0.6, 1.2)
    profile = [(-half, 0), (-half, height), (half, height), (half, 0)]
    extrude(painter, frame, profile, half, RAW['static'], [paint, paint * 1.1, paint], paint)


# ---------------------------------------------------------------- houses, walls, fences


def draw_house(painter, rng, frame, width, depth, height):
    """A block whose front, `width` long, lies along the heading; it reaches `depth` beyond it."""
    label, color = RAW['building'], 0.5 * _paint(rng) + 0.5 * _gray(rng, 0.3, 0.9)
    facade = Facade(
        color=color, trim=0.4 * color + 0.6 * _contrast(rng, color), glass=_glass(rng), shop=_paint(rng),
        bay=rng.uniform(1.8, 3.4), storey=rng.uniform(2.8, 3.6),
        window=(rng.uniform(0.35, 0.75), 0.28, rng.uniform(0.72, 0.85)),
        bricks=rng.choice([0.0, 0.0, 0.15]), shift=rng.uniform(0, 200), has_shop=bool(rng.random() < 0.4), top=height,
    )
    half = width / 2
    outward = -math.copysign(depth, frame.camera_b)
    a = _near_end(frame, half)
    roof = rng.uniform(0.0, 3.0) if rng.random() < 0.5 else 0.0
    tiles = functools.partial(shade_courses, _paint(rng) * 0.7, DARK, 0.6, 0.5)
    if a:
        corners = [frame.at(a, 0, 0), frame.at(a, 0, outward), frame.at(a, height, outward)]
        corners += [frame.at(a, height + roof, outward / 2), frame.at(a, height, 0)]
        painter.polygon(corners, label, facade if rng.random() < 0.6 else color * 0.9, frame.end(a))
    painter.fill(frame.side(), rectangle(-half, 0, half, height), label, facade)
    if roof:
        corners = [frame.at(-half, height, 0), frame.at(half, height, 0)]
        corners += [frame.at(half, height + roof, outward / 2), frame.at(-half, height + roof, outward / 2)]
        painter.polygon(corners, label, tiles, frame.side())


def draw_wall(painter, rng, frame, width, style):
    color, mortar, height, length, course = style
    courses = functools.partial(shade_courses, color, mortar, length, course)
    cap, half = color * 0.75, width / 2
    extrude(painter, frame, [(-half, 0), (-half, height), (half, height), (half, 0)], 0.18, RAW['wall'],
            [courses, cap, courses], courses)
    extrude(painter, frame, [(-half, height), (-half, height + 0.15), (half, height + 0.15), (half, height)], 0.24,
            RAW['wall'], [cap, cap * 1.1, cap], cap)


def draw_fence(painter, rng, frame, width, style):
    """Pickets, posts and rails; the gaps between show what is behind, the label covers all of it."""
    color, height, period, thick = style
    label, side, half = RAW['fence'], frame.side(), width / 2
    painter.fill(side, rectangle(-half, 0, half, height), label, None)
    painter.fill(side, rectangle(-half, 0.2, half, 0.34), label, color * 0.8)
    painter.fill(side, rectangle(-half, height - 0.4, half, height - 0.26), label, color * 0.8)
    for k in range(int(width / period) + 1):
        u = -half + k * period
        painter.fill(side, rectangle(u, 0.05, u + thick, height), label, color)
    painter.fill(side, rectangle(-half, 0, -half + 0.22, height + 0.12), label, color * 0.65)


def draw_hedge(painter, rng, frame, width, style):
    color, height = style
    leaves = functools.partial(shade_leaves, color, rng.uniform(0, 50), 0.5)
    half = width / 2
    extrude(painter, frame, [(-half, 0), (-half, height), (half, height), (half, 0)], 0.5, RAW['vegetation'],
            [leaves, color, leaves], leaves)


def _boundary_style(rng, kind):
    color = _paint(rng)
    if kind == 'wall':
        height = rng.uniform(0.3, 0.45)
        return color, _contrast(rng, color), rng.uniform(0.9, 2.2), height * rng.uniform(1.8, 2.4), height
    if kind == 'fence':
        period = rng.uniform(0.3, 0.5)
        return color, rng.uniform(1.1, 1.9), period, period * rng.uniform(0.35, 0.55)
    return _leaf(rng), rng.uniform(0.9, 2.0)


BOUNDARIES = {'wall': draw_wall, 'fence': draw_fence, 'hedge': draw_hedge}


# ---------------------------------------------------------------- street


class Strip(NamedTuple):
    """Ground between two x, from behind the camera to the end of the street."""

    x0: float
    x1: float
    kind: str  # lane, parking, verge, pavement, lot
    heading: float = 0.0

    @property
    def band(self) -> float:
        """Distance from the camera's own lane: what is drawn first is farther out."""
        return 0.0 if self.x0 < 0 < self.x1 else min(abs(self.x0), abs(self.x1))


DRAW = {
    'car': draw_car, 'truck': draw_truck, 'bus': draw_bus, 'train': draw_train, 'person': draw_person,
    'cyclist': draw_cyclist, 'motorcyclist': draw_motorcyclist, 'bicycle': draw_bicycle,
    'motorcycle': draw_motorcycle, 'lamp': draw_lamp, 'sign': draw_sign, 'light': draw_light,
    'board': draw_board, 'tree': draw_tree, 'bush': draw_bush, 'clutter': draw_clutter,
}
LENGTHWISE = ('car', 'truck', 'bus', 'train')  # along their lane
ASKEW = ('cyclist', 'motorcyclist', 'bicycle', 'motorcycle')  # never seen end on, where a two-wheeler is a line


class Street:
    """The layout of one scene, and what stands where."""

    def __init__(self, rng: np.random.Generator, painter: Painter):
        self.rng, self.painter = rng, painter
        self.things: list[tuple[float, float, float, Callable]] = []
        self.taken: list[tuple[Strip | None, float, float]] = []
        self.closed = rng.random() < CLOSED_END_CHANCE
        self.end = rng.uniform(24, 55) if self.closed else rng.uniform(60, 120)
        self.crossing = None
        if self.closed or rng.random() < CROSSING_CHANCE:
            start = self.end - 11 if self.closed else rng.uniform(9, 26)
            self.crossing = (start, start + 7.5)
        lane, shift = rng.uniform(2.9, 3.6), rng.uniform(-0.4, 0.4)
        right, left = int(rng.integers(0, 2)), int(rng.integers(0, 3))
        edges = [shift + lane * (k - 0.5) for k in range(-left, right + 2)]
        self.strips = [
            Strip(x0, x1, 'lane', math.pi if k < left else 0.0)
            for k, (x0, x1) in enumerate(itertools.pairwise(edges))
        ]
        self.lines = [(x, 0.08, 6.0 if rng.random() < 0.4 else 3.0) for x in edges[1:-1]]
        if rng.random() < 0.6:
            self.lines += [(edges[0] + 0.15, 0.07, 6.0), (edges[-1] - 0.15, 0.07, 6.0)]
        self.road = [edges[0], edges[-1]]
        self.lots = [self._lay_side(-1), self._lay_side(1)]

    def draw(self):
        self._draw_ground()
        for side, (kind, x) in zip((-1, 1), self.lots, strict=True):
            self._line_side(side, kind, x)
        for name, kind in KINDS.items():
            chance = kind.first
            while self.rng.random() < chance:
                self._place(name, kind)
                chance = kind.more
        for _, _, _, draw in sorted(self.things, key=lambda thing: thing[:3]):
            draw()

    def _lay_side(self, side: int) -> tuple[str, float]:
        """Adds the strips of one side; returns the kind of its lot and where the lot begins."""
        rng, x = self.rng, self.road[(side + 1) // 2]

        def add(kind, width, heading=0.0):
            nonlocal x
            self.strips.append(Strip(*sorted((x, x + side * width)), kind, heading))
            x += side * width

        if rng.random() < PARKING_CHANCE:
            add('parking', 2.3, math.pi if side < 0 else 0.0)
            self.road[(side + 1) // 2] = x
        if rng.random() < VERGE_CHANCE:
            add('verge', rng.uniform(0.8, 2.5))
        add('pavement', rng.uniform(1.6, 4.5))
        lot, kind = x, str(rng.choice(list(SIDE_KINDS), p=list(SIDE_KINDS.values())))
        if kind != 'facade':
            add('lot', rng.uniform(3, 8) if kind == 'garden' else rng.uniform(12, 25))
        return kind, lot

    def _draw_ground(self):
        rng, painter = self.rng, self.painter
        gray = _gray(rng, 0.24, 0.62, 0.02)
        paving = _gray(rng, 0.35, 0.8, 0.04)
        slabs = functools.partial(shade_slabs, paving, rng.uniform(0.7, 1.3), rng.uniform(0.6, 1.1))
        soil = np.array([0.42, 0.34, 0.24]) * rng.uniform(0.7, 1.2)
        grass = functools.partial(shade_grass, _leaf(rng) * 1.1 + rng.uniform(0, 0.12, 3) * [1, 1, 0.3], soil)
        open_ground = (RAW['terrain'], grass) if rng.random() < 0.5 else (RAW['sidewalk'], slabs)
        painter.fill(GROUND, rectangle(-200, -3, 200, 300), *open_ground)
        looks = {'verge': (RAW['terrain'], grass), 'pavement': (RAW['sidewalk'], slabs), 'lot': (RAW['terrain'], grass)}
        for strip in self.strips:
            if strip.kind in looks:
                painter.fill(GROUND, rectangle(strip.x0, -3, strip.x1, self.end), *looks[strip.kind])
        mark = gray * 0.2 + rng.uniform(0.55, 0.75)
        road = functools.partial(shade_road, gray, tuple(self.lines), mark)
        kerb = _gray(rng, 0.45, 0.85, 0.02)
        (left, right), far = self.road, self.crossing[1] if self.closed else self.end
        painter.fill(GROUND, rectangle(left - 0.22, -3, right + 0.22, far), RAW['sidewalk'], kerb)
        plain = functools.partial(shade_road, gray, (), mark)
        if self.crossing:
            start, stop = self.crossing
            painter.fill(GROUND, rectangle(-90, start - 2.5, 90, stop + 2.5), RAW['sidewalk'], slabs)
            painter.fill(GROUND, rectangle(-90, start - 0.2, 90, stop + 0.2), RAW['sidewalk'], kerb)
        painter.fill(GROUND, rectangle(left, -3, right, far), RAW['road'], road)
        if self.crossing:
            painter.fill(GROUND, rectangle(-90, start, 90, stop), RAW['road'], plain)
        if rng.random() < ZEBRA_CHANCE:
            z = start - 3.2 if self.crossing else rng.uniform(7, 20)
            for x in np.arange(left + 0.3, right - 0.5, 1.0).tolist():
                painter.fill(GROUND, rectangle(x, z, x + 0.55, z + 2.6), RAW['road'], mark)

    def _line_side(self, side: int, kind: str, x: float):
        """Boundaries and houses along one side, and across the end of the street."""
        rng, painter = self.rng, self.painter
        edge = max(abs(strip.x0 if side < 0 else strip.x1) for strip in self.strips if strip.x0 * side >= 0)
        if kind != 'park' or rng.random() < 0.4:
            for start, width in self._plots(4, 6, 15):
                frame = Frame(side * (edge + rng.uniform(0, 0.8)), start + width / 2, 0)
                self._house(edge, frame, width)
        else:
            self._backdrop_trees(edge + 1, Frame(side * (edge + 1), 60, 0), 130)
        if kind != 'facade':
            boundary = ''
            for start, width in self._plots(0, 5, 7):
                if not boundary or rng.random() < 0.3:
                    boundary = str(rng.choice(list(BOUNDARY_KINDS), p=list(BOUNDARY_KINDS.values())))
                    style = _boundary_style(rng, boundary)
                if boundary != 'none' and painter.visible(start, 1.5):
                    frame = Frame(x, start + width / 2, 0)
                    self._add(abs(x) - 0.01, frame.z, BOUNDARIES[boundary], frame, width, style)
        if side > 0:
            across = -70.0
            while across < 70 and self.closed:
                width = rng.uniform(7, 18)
                self._house(math.inf, Frame(across + width / 2, self.end, math.pi / 2), width)
                across += width + (rng.uniform(0, 4) if rng.random() < 0.3 else 0)
            self._backdrop_trees(math.inf, Frame(0, self.end + 30, math.pi / 2), 400)

    def _plots(self, gap: float, least: float, most: float):
        """Start and width of plots along the street, clear of the cross street."""
        z, rng = -4.0, self.rng
        while z < self.end - 2:
            width = rng.uniform(least, most)
            if self.crossing and z < self.crossing[1] + 2.5 and z + width > self.crossing[0] - 2.5:
                width = self.crossing[0] - 2.5 - z
                if width > 2:
                    yield z, width
                z = self.crossing[1] + 2.5
                continue
            yield z, width
            z += width + (rng.uniform(0, gap) if rng.random() < 0.4 else 0)

    def _house(self, band, frame, width):
        self._add(band, frame.z, draw_house, frame, width, self.rng.uniform(6, 12), self.rng.uniform(4.5, 17))

    def _backdrop_trees(self, band, frame, width):
        rng = self.rng
        top = 4 + 5 * np.abs(rng.normal(0, 1, 60))
        ragged = [(u, v) for u, v in zip(np.linspace(width / 2, -width / 2, 60).tolist(), top.tolist(), strict=True)]
        leaves = functools.partial(shade_leaves, _leaf(rng), rng.uniform(0, 50), 1.6)
        outline = [(-width / 2, 0), (width / 2, 0), *ragged]
        self._add(band, frame.z + 1, lambda painter, _: painter.fill(frame.side(), outline, RAW['vegetation'], leaves))

    def _add(self, band: float, z: float, draw: Callable, *arguments):
        """Queues a thing: sections of the street far to near, in each the outer bands first, in each far to near."""
        section = (z < self.crossing[1]) + (z < self.crossing[0]) if self.crossing else 0
        self.things.append((section, -band, -z, functools.partial(draw, self.painter, self.rng, *arguments)))

    def _place(self, name: str, kind: Kind):
        """Queues one more of a kind, unless there is no room for it or it would be too small."""
        rng = self.rng
        crosses = self.crossing and name in CROSSERS and rng.random() < CROSSER_CHANCE
        strip, x, z, heading = self._spot_across(name) if crosses else self._spot_along(name, kind)
        middle = x if crosses else z
        start, stop = middle - kind.half - 0.4, middle + kind.half + 0.4
        clash = any(other == strip and start < last and first < stop for other, first, last in self.taken)
        if clash or z > self.end - 1 + kind.half or not self.painter.visible(z, kind.height):
            return
        self.taken.append((strip, start, stop))
        band = 0.0 if crosses else strip.band
        if name in LENGTHWISE:
            frame = Frame(x, z, heading + rng.normal(0, 0.03))
        elif name in ASKEW:
            frame = Frame(x, z, math.atan2(x, z) + rng.choice([-1, 1]) * rng.uniform(0.7, 1.57))
        else:
            frame = Frame.facing(x, z)
        self._add(band, z, DRAW[name], frame)
        if name == 'person':
            for k in range(rng.integers(0, COMPANIONS)):
                beside = Frame.facing(x + 0.6 * (k + 1), z + rng.uniform(-0.5, 0.5))
                self._add(band, beside.z, draw_person, beside)
        if name == 'train':
            for rail in (-0.75, 0.75):
                corners = [frame.at(a, 0, rail + b) for a, b in rectangle(-90, -0.07, 90, 0.07)]
                self.painter.polygon(corners, None, DARK + 0.1)

    def _spot_across(self, name: str) -> tuple[None, float, float, float]:
        """A place (no strip, x, z, heading) on the cross street; people walk at its near side."""
        rng = self.rng
        z = self.crossing[0] + (rng.uniform(-2.5, 0.5) if name == 'person' else rng.uniform(1.2, 2.8))
        return None, rng.uniform(-0.6, 0.6) * z, z, rng.choice([-1, 1]) * math.pi / 2

    def _spot_along(self, name: str, kind: Kind) -> tuple[Strip, float, float, float]:
        """A place (strip, x, z, heading) along the street."""
        rng, choice = self.rng, self.rng.choice(kind.strips)
        strips = [strip for strip in self.strips if strip.kind == choice]
        strips = strips or [strip for strip in self.strips if strip.kind in ('pavement', kind.strips[0])]
        strip = strips[rng.integers(len(strips))]
        x = self._across(strip, name)
        nearest = max(kind.nearest, abs(x) * 1.1)
        z = nearest * rng.uniform(1, kind.reach) ** rng.uniform(0.3, 1) + kind.half
        return strip, x, z, strip.heading

    def _across(self, strip: Strip, name: str) -> float:
        """Where in a strip a thing of this kind stands."""
        if name in ('lamp', 'sign', 'light', 'board'):
            return strip.x0 + 0.4 if strip.x0 > 0 else strip.x1 - 0.4
        if strip.kind in ('lane', 'parking'):
            sway = 0.2 if name in LENGTHWISE else 0.8
            return (strip.x0 + strip.x1) / 2 + self.rng.uniform(-sway, sway)
        return self.rng.uniform(strip.x0 + 0.3, strip.x1 - 0.3)


def _draw_bonnet(painter, rng):
    height, width = painter.height, painter.width
    rise, reach = rng.uniform(0.06, 0.14), rng.uniform(0.5, 0.9)
    pixels = [(width / 2 + u * height, height * (1 - v)) for u, v in ellipse(0, -0.02, reach, rise, 24)]
    painter.stamp(pixels, RAW['ego vehicle'], _paint(rng) * 0.6)


# ---------------------------------------------------------------- camera's picture


def _develop(rng, rgb: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """Fog, exposure, colour cast, vignette, blur and sensor noise: [H, W, 3] uint8."""
    height, width = depth.shape
    haze = _gray(rng, 0.6, 0.9, 0.03).astype(np.float32)
    clear = np.exp(-depth / np.float32(math.exp(rng.uniform(*np.log(VISIBILITY)))))
    rgb = haze + (rgb - haze) * clear[..., None]
    cast = (rng.uniform(0.65, 1.12) * rng.uniform(0.92, 1.08, 3)).astype(np.float32)
    y, x = np.ogrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    rgb *= (1 - rng.uniform(0, 0.2) * (x * x + y * y) / 2).astype(np.float32)[..., None] * cast
    image = Image.fromarray((np.clip(rgb, 0, 1) * 255).astype(np.uint8))
    image = image.filter(ImageFilter.GaussianBlur(rng.uniform(*BLUR) * height))
    noise = rng.standard_normal((height, width, 3), np.float32) * np.float32(255 * rng.uniform(*NOISE))
    return np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8)


def render_scene(seed: int, index: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Renders one scene. The same `seed` and `index` give the same scene at every size.

    Args:
        seed: of the data set, >= 0.
        index: of the scene, >= 0.
        height, width: in pixels, each at least 16; made for width = 2 * height.

    Returns:
        image: [H, W, 3] uint8, RGB.
        labels: [H, W] uint8, raw Cityscapes label ids.

    Raises:
        InputError: (a ValueError) a size below 16, or a negative seed or index.
    """
    _check_scene(seed, index, height, width)
    rng = np.random.default_rng([seed, index])
    painter = Painter(rng, height, width)
    Street(rng, painter).draw()
    if rng.random() < BONNET_CHANCE:
        _draw_bonnet(painter, rng)
    rgb, depth = painter.resolve()
    return _develop(np.random.default_rng([seed, index, 1]), rgb, depth), np.asarray(painter.labels).copy()


def _check_scene(seed: int, index: int, height: int, width: int):
    if min(height, width) < 16:
        raise InputError(f'height={height}, width={width}: a scene needs at least 16 pixels each way')
    if min(seed, index) < 0:
        raise InputError(f'seed={seed}, index={index}: neither may be negative')


# ---------------------------------------------------------------- data set on disk

PARAMETERS_FILE = 'synthetic.json'
CITY = 'synthetown'
VERSION = 1


def write_dataset(root, *, splits: Mapping[str, int], height: int, width: int, seed: int, workers: int | None = None):
    """Writes scenes in the layout of Cityscapes.

    `leftImg8bit/{split}/synthetown/synthetown_{split number}_{scene}_leftImg8bit.png` and the same under
    `gtFine` with `_gtFine_labelIds.png`. A complete data set is left alone, an interrupted one completed.

    Args:
        root: folder of the data set, made where missing.
        splits: number of scenes of each split; no scene is in two.
        height, width: in pixels.
        seed: of the scenes.
        workers: processes; None takes one for each core.

    Raises:
        InputError: (a ValueError) the folder holds another data set or other files, or as in `render_scene`.
    """
    root = pathlib.Path(root)
    _check_scene(seed, 0, height, width)
    wanted = {'version': VERSION, 'splits': dict(splits), 'height': height, 'width': width, 'seed': seed}
    parameters = json.dumps(wanted, indent=2) + '\n'
    complete, started = root / PARAMETERS_FILE, root / f'{PARAMETERS_FILE}.part'
    for path in (complete, started):
        if path.exists() and path.read_text() != parameters:
            found = ' '.join(path.read_text().split())
            raise InputError(f'{path}: holds scenes of {found}, not of {wanted}; choose another folder or delete it')
    if complete.exists():
        return
    if not started.exists():
        if root.exists() and any(root.iterdir()):
            raise InputError(f'{root}: holds files that are no synthetic data set; choose an empty or new folder')
        root.mkdir(parents=True, exist_ok=True)
        _write_atomically(started, parameters.encode())
    jobs, first = [], 0
    for number, (split, count) in enumerate(splits.items()):
        for frame in range(count):
            stem = f'{split}/{CITY}/{CITY}_{number:06d}_{frame:06d}'
            image, labels = root / f'leftImg8bit/{stem}_leftImg8bit.png', root / f'gtFine/{stem}_gtFine_labelIds.png'
            image.parent.mkdir(parents=True, exist_ok=True)
            labels.parent.mkdir(parents=True, exist_ok=True)
            if not (image.exists() and labels.exists()):
                jobs.append((seed, first + frame, height, width, image, labels))
        first += count
    spawn = multiprocessing.get_context('spawn')
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=spawn) as pool:
        for _ in tqdm.tqdm(pool.map(_write_scene, jobs, chunksize=8), desc=f'scenes to {root}', total=len(jobs)):
            pass
    os.replace(started, complete)


def _write_scene(job):
    seed, index, height, width, image_path, labels_path = job
    for path, array in zip((image_path, labels_path), render_scene(seed, index, height, width), strict=True):
        buffer = io.BytesIO()
        Image.fromarray(array).save(buffer, 'png')
        _write_atomically(path, buffer.getvalue())


def _write_atomically(path: pathlib.Path, content: bytes):
    part = path.with_name(f'{path.name}.tmp')
    part.write_bytes(content)
    os.replace(part, path)
