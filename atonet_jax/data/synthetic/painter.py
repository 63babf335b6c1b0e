"""From polygons in the world to surfaces and labels in the image: the camera, the light, the drawing."""

import math
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw

from atonet_jax.data.labels import CITYSCAPES
from atonet_jax.data.synthetic.geometry import Frame, Outline, Plane, Point, rectangle
from atonet_jax.data.synthetic.paints import DARK, Color, Paint, Shader, random_sky

RAW = {label.name: label.raw_id for label in CITYSCAPES.raw_labels}

FOCAL = (1.05, 1.55)  # in image heights
HORIZON = (0.36, 0.54)  # in image heights from the top
CAMERA_HEIGHT = (1.2, 2.3)  # metres
YAW = 0.14  # radians
ROLL = 0.025
SUN_ELEVATION = (0.35, 1.1)  # radians
AMBIENT = (0.45, 0.95)  # light in the shade
FULL_LIGHT = 1.15

NEAR = 0.4  # clipping distance, metres
SMALLEST = 0.03  # what is lower than this fraction of the image height is left out


class Painter:
    """Draws polygons, far to near, and colours what stays visible. The camera stands at x = z = 0."""

    def __init__(self, rng: np.random.Generator, height: int, width: int):
        self.height, self.width = height, width
        self.focal = rng.uniform(*FOCAL)
        horizon = rng.uniform(*HORIZON)
        self.camera_height = rng.uniform(*CAMERA_HEIGHT)
        yaw, roll = rng.uniform(-YAW, YAW), rng.normal(0, ROLL / 2)
        turn = np.array([[math.cos(yaw), 0, -math.sin(yaw)], [0, 1, 0], [math.sin(yaw), 0, math.cos(yaw)]])
        tilt = np.array([[math.cos(roll), -math.sin(roll), 0], [math.sin(roll), math.cos(roll), 0], [0, 0, 1]])
        self.rotation = (tilt @ turn).tolist()
        self.scale, self.cx, self.cy = self.focal * height, width / 2 - 0.5, horizon * height - 0.5  # pixels
        azimuth, elevation = rng.uniform(0, 2 * math.pi), rng.uniform(*SUN_ELEVATION)
        self.sun = (
            math.cos(elevation) * math.sin(azimuth),
            math.sin(elevation),
            math.cos(elevation) * math.cos(azimuth),
        )
        self.ambient = rng.uniform(*AMBIENT)
        self.surfaces = Image.new('I', (width, height))  # 0 is the sky
        self.labels = Image.new('L', (width, height), RAW['sky'])
        self.draw_surface = ImageDraw.Draw(self.surfaces).polygon
        self.draw_label = ImageDraw.Draw(self.labels).polygon
        self.colors: list[Color] = [np.zeros(3)]
        self.lights, self.depths = [1.0], [1.0]
        sky_plane = np.array([[1 / height, 0, -0.5 * width / height], [0, 1 / height, 0], [0, 0, 1.0]])
        self.shaders: list[tuple[int, Shader, np.ndarray]] = [(0, random_sky(rng), sky_plane)]

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
        scale, cx, cy = self.scale, self.cx, self.cy
        pixels = [(cx + scale * x / z, cy - scale * y / z) for x, y, z in camera]
        depth = sum(point[2] for point in camera) / len(camera)
        if callable(paint):
            axes = [self._to_camera(axis, 0.0) for axis in (plane.u_axis, plane.v_axis)]
            axes.append(self._to_camera(plane.origin, self.camera_height))
            intrinsics = np.array([[scale, 0, cx], [0, -scale, cy], [0, 0, 1]])
            self.shaders.append((len(self.colors), paint, np.linalg.inv(intrinsics @ np.array(axes).T)))
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

    def fill(self, plane: Plane, outline: Outline, label: int | None, paint: Paint | None):
        """Draws a polygon given by its corners on a plane."""
        self.polygon(plane.points(outline), label, paint, plane)

    def brush(self, plane: Plane, label: int | None) -> Callable[[Outline, Paint | None], None]:
        """What fills outlines on one plane under one label."""
        return lambda outline, paint: self.fill(plane, outline, label, paint)

    def extrude(self, frame: Frame, profile: Outline, half: float, label: int, paints: Sequence[Paint], side: Paint,
                taper: float = 0.0):  # fmt: skip
        """Draws a body of constant width over a side view.

        Args:
            frame: where the body stands.
            profile: (a, y) corners, clockwise seen from its right: rear bottom, up, over to the front bottom.
            half: half of the width.
            label: raw label id.
            paints: of the faces between successive corners; the last one, the underside, is not drawn.
            side: paint of the side.
            taper: how far the upper part leans in.
        """
        waist = max(y for _, y in profile) * 0.6

        def width(y):
            return half - (taper if y > waist else 0)

        faces = list(zip(profile, profile[1:], paints, strict=False))
        faces.sort(key=lambda face: -abs(face[0][0] + face[1][0] - 2 * frame.camera_a))
        for (a0, y0), (a1, y1), paint in faces:
            if (self.camera_height - y0) * (a1 - a0) - (frame.camera_a - a0) * (y1 - y0) <= 0:
                continue  # seen from within
            corners = [frame.at(a0, y0, -width(y0)), frame.at(a0, y0, width(y0)), frame.at(a1, y1, width(y1))]
            self.polygon([*corners, frame.at(a1, y1, -width(y1))], label, paint, frame.end(a0))
        if b := frame.near_side(half):
            corners = [frame.at(a, y, math.copysign(width(y), b)) for a, y in profile]
            self.polygon(corners, label, side, frame.side(b))

    def shadow(self, frame: Frame, half_length: float, half_width: float):
        self.fill(frame.ground(), rectangle(-half_length, -half_width, half_length, half_width), None, DARK + 0.07)

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
            colors[pixels] = shader(a * distance, b * distance, distance / self.scale)
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
        return self.ambient + (FULL_LIGHT - self.ambient) * max(0.0, cosine)


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
