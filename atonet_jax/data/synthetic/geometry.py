"""Where polygons lie: planes, the frames of things, and outlines on a plane. Metres; x right, y up, z ahead."""

import math
from collections.abc import Sequence
from typing import NamedTuple

Point = tuple[float, float, float]
Outline = list[tuple[float, float]]  # (u, v) corners on a plane


class Plane(NamedTuple):
    """A plane in the world: the points `origin + u * u_axis + v * v_axis`."""

    origin: Point
    u_axis: Point
    v_axis: Point

    def points(self, outline: Sequence[tuple[float, float]]) -> list[Point]:
        (ox, oy, oz), (ux, uy, uz), (vx, vy, vz) = self
        return [(ox + u * ux + v * vx, oy + u * uy + v * vy, oz + u * uz + v * vz) for u, v in outline]


GROUND = Plane((0, 0, 0), (1, 0, 0), (0, 0, 1))


class Frame:
    """Local axes of a thing on the ground: `a` along its heading, `y` up, `b` to its right."""

    def __init__(self, x: float, z: float, heading: float):
        self.x, self.z = x, z
        self.sin, self.cos = math.sin(heading), math.cos(heading)
        self.camera_a = -x * self.sin - z * self.cos
        self.camera_b = -x * self.cos + z * self.sin

    @classmethod
    def facing(cls, x: float, z: float) -> 'Frame':
        """Heads away from the camera, so that `end()` faces it."""
        return cls(x, z, math.atan2(x, z))

    def at(self, a: float, y: float, b: float) -> Point:
        return self.x + a * self.sin + b * self.cos, y, self.z + a * self.cos - b * self.sin

    def ground(self) -> Plane:
        """The ground, u = a, v = b."""
        return Plane(self.at(0, 0, 0), (self.sin, 0, self.cos), (self.cos, 0, -self.sin))

    def side(self, b: float = 0.0) -> Plane:
        """The upright plane along the heading, u = a."""
        return Plane(self.at(0, 0, b), (self.sin, 0, self.cos), (0, 1, 0))

    def end(self, a: float = 0.0) -> Plane:
        """The upright plane across the heading, u = b."""
        return Plane(self.at(a, 0, 0), (self.cos, 0, -self.sin), (0, 1, 0))

    def near_side(self, half: float) -> float:
        """b of the side, of a thing 2 * `half` wide, that the camera sees; 0 if it sees none."""
        return math.copysign(half, self.camera_b) if abs(self.camera_b) > half else 0.0

    def near_end(self, half: float) -> float:
        """a of the end, of a thing 2 * `half` long, that the camera sees; 0 if it sees none."""
        return math.copysign(half, self.camera_a) if abs(self.camera_a) > half else 0.0


def rectangle(u0: float, v0: float, u1: float, v1: float) -> Outline:
    return [(u0, v0), (u1, v0), (u1, v1), (u0, v1)]


def box(u0: float, v0: float, u1: float, v1: float) -> Outline:
    """A rectangle in the order that `Painter.extrude` takes."""
    return [(u0, v0), (u0, v1), (u1, v1), (u1, v0)]


def bar(u0: float, v0: float, u1: float, v1: float, width: float) -> Outline:
    """A straight bar from one point to another."""
    length = math.hypot(u1 - u0, v1 - v0) or 1.0
    du, dv = (v0 - v1) / length * width / 2, (u1 - u0) / length * width / 2
    return [(u0 + du, v0 + dv), (u1 + du, v1 + dv), (u1 - du, v1 - dv), (u0 - du, v0 - dv)]


def ellipse(u: float, v: float, ru: float, rv: float, corners: int = 12) -> Outline:
    return _round(u, v, ru, rv, [1.0] * corners)


def ring(u: float, v: float, outer: float, inner: float) -> Outline:
    circle, hole = ellipse(u, v, outer, outer, 14), ellipse(u, v, inner, inner, 14)
    return [*circle, circle[0], hole[0], *hole[::-1]]


def blob(rng, u: float, v: float, ru: float, rv: float) -> Outline:
    """An ellipse with a ragged edge."""
    return _round(u, v, ru, rv, (1 + 0.16 * rng.uniform(-1, 1, 22)).tolist())


def _round(u: float, v: float, ru: float, rv: float, radii: list[float]) -> Outline:
    step = 2 * math.pi / len(radii)
    return [(u + ru * r * math.cos(k * step), v + rv * r * math.sin(k * step)) for k, r in enumerate(radii)]
