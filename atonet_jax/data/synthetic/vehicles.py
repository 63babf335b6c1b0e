"""Cars, trucks, buses, trains and two-wheelers, one function each."""

import functools
import math

from atonet_jax.data.synthetic.geometry import Frame, bar, box, ellipse, rectangle, ring
from atonet_jax.data.synthetic.painter import RAW
from atonet_jax.data.synthetic.paints import (
    AMBER,
    DARK,
    RED,
    WHITE,
    random_color,
    random_contrast,
    random_glass,
    random_gray,
    shade_chevrons,
    shade_livery,
    shade_ribs,
)


def draw_car(painter, rng, frame):
    label, body, glass = RAW['car'], random_color(rng), random_glass(rng)
    half, length, height = rng.uniform(0.85, 0.95), rng.uniform(1.9, 2.3), rng.uniform(1.4, 1.85)
    belt, boot, hood = 0.6 * height, rng.choice([0.05, 0.15, 0.8]), rng.uniform(0.5, 1.25)
    rear, front = -length + boot, length - hood
    profile = [
        (-length, 0.25), (-length, belt - 0.05), (rear, belt), (rear + 0.35, height), (front - 0.75, height),
        (front, belt), (length - 0.05, 0.5 * height), (length, 0.25),
    ]  # fmt: skip
    painter.shadow(frame, length + 0.1, half + 0.15)
    painter.extrude(frame, profile, half, label, [body, body, glass, body, glass, body, body], body, taper=0.14)
    if b := frame.near_side(half):
        top, pillar = height - 0.12, (rear + front) / 2 - 0.1
        window = [(rear + 0.2, belt), (rear + 0.45, top), (front - 0.8, top), (front - 0.15, belt)]
        cabin = painter.brush(frame.side(b * 0.9), label)
        cabin(window, glass)
        cabin(rectangle(pillar, belt, pillar + 0.12, top), body)
        side = painter.brush(frame.side(b), label)
        side(rectangle(-length, 0.25, length, 0.4), body * 0.5)
        _draw_wheels(side, (-length + 0.8, length - 0.85), 0.34, random_gray(rng))
    if a := frame.near_end(length):
        end = painter.brush(frame.end(a), label)
        _draw_lamps(end, a, half, belt - 0.22, 0.19)
        end(rectangle(-half, 0.2, half, 0.38), body * 0.45)
        end(rectangle(-0.27, 0.42, 0.27, 0.54), WHITE)
        _draw_tyres(end, half - 0.02, 0.22, 0.25)


def draw_truck(painter, rng, frame):
    label, cab, load = RAW['truck'], random_color(rng), random_color(rng)
    trim, glass, hub = random_contrast(rng, load), random_glass(rng), random_gray(rng)
    half, length, top = 1.25, rng.uniform(3.6, 5.0), rng.uniform(3.1, 3.9)
    cab_top, split = rng.uniform(2.4, 3.0), length - 2.0
    ribs = functools.partial(shade_ribs, color=load, trim=trim, period=rng.uniform(0.5, 0.9), bottom=0.95, top=top)
    across = functools.partial(ribs, half=half, middle=0.0)
    middle = (split - 0.25 - length) / 2
    along = functools.partial(ribs, half=middle + length, middle=middle)
    nose = [(split, 0.45), (split, cab_top), (length - 0.35, cab_top), (length, 1.5), (length, 0.45)]
    chassis_body = (box(-length, 0.5, length - 0.1, 1.0), [DARK] * 3, DARK)
    load_body = (box(-length, 0.95, split - 0.25, top), [across, load, across], along)
    nose_body = (nose, [cab, cab, glass, cab], cab)
    far_to_near = [load_body, nose_body] if frame.camera_a > 0 else [nose_body, load_body]
    painter.shadow(frame, length, half + 0.2)
    for profile, paints, side in [chassis_body, *far_to_near]:
        painter.extrude(frame, profile, half, label, paints, side)
    if b := frame.near_side(half):
        side = painter.brush(frame.side(b), label)
        side([(split + 0.5, 1.5), (split + 0.5, cab_top - 0.3), (length - 0.5, cab_top - 0.3), (length - 0.2, 1.5)],
             glass)  # fmt: skip
        _draw_wheels(side, (-length + 0.9, -length + 2.1, length - 1.0), 0.52, hub)
    if a := frame.near_end(length):
        end = painter.brush(frame.end(a), label)
        _draw_lamps(end, a, half, 0.8, 0.22)
        end(rectangle(-half, 0.45, half, 0.68), trim)
        _draw_tyres(end, half, 0.4, 0.45)
        if a < 0:
            end(bar(0, 1.0, 0, top, 0.12), trim)


def draw_bus(painter, rng, frame):
    label, body, glass = RAW['bus'], random_color(rng), random_glass(rng) * 0.7
    trim = random_contrast(rng, body)
    half, length, top = 1.28, rng.uniform(4.5, 6.0), rng.uniform(2.9, 3.3)
    livery = functools.partial(
        shade_livery, color=body, trim=trim, glass=glass, window=(1.25, 2.4), bay=rng.uniform(1.3, 1.7), pillar=0.16,
        stripes=((0.7, 1.0),), doors=4.6,
    )  # fmt: skip
    profile = [
        (-length, 0.35), (-length, top - 0.2), (-length + 0.2, top),
        (length - 0.2, top), (length, top - 0.2), (length, 0.35),
    ]  # fmt: skip
    painter.shadow(frame, length, half + 0.2)
    painter.extrude(frame, profile, half, label, [body, body, body * 0.8, body, body], livery)
    if b := frame.near_side(half):
        side = painter.brush(frame.side(b), label)
        _draw_wheels(side, (-length + 2.2, length - 2.4), 0.48, random_gray(rng))
    if a := frame.near_end(length):
        end = painter.brush(frame.end(a), label)
        sill = 1.1 if a > 0 else 1.6
        end(rectangle(-half + 0.12, sill, half - 0.12, 2.4), glass)
        end(rectangle(-half + 0.2, 2.5, half - 0.2, 2.82), DARK)
        end(rectangle(-0.7, 2.58, 0.6, 2.74), AMBER)
        end(rectangle(-half, 0.7, half, 0.95), trim)
        if a > 0:
            end(bar(0, sill, 0, 2.4, 0.07), DARK)
        else:
            for y in (1.05, 1.2, 1.35):
                end(rectangle(-0.8, y, 0.8, y + 0.07), DARK)
        _draw_lamps(end, a, half, 0.55, 0.2)
        _draw_tyres(end, half - 0.05, 0.3, 0.35)


def draw_train(painter, rng, frame):
    label, body, glass = RAW['train'], random_color(rng), random_glass(rng) * 0.8
    trim = random_contrast(rng, body)
    half, car, top = 1.35, rng.uniform(4.2, 5.2), rng.uniform(3.5, 3.9)
    livery = functools.partial(
        shade_livery, color=body, trim=trim, glass=glass, window=(1.9, 2.75), bay=1.1, pillar=0.4,
        stripes=((0.15, 0.4), (0.95, 1.2), (1.4, 1.65), (3.0, 3.2)), doors=car,
    )  # fmt: skip
    nose = functools.partial(shade_chevrons, color=trim, other=body, period=0.8)
    joint = car - 0.15
    profile = [
        (-joint, 0.12), (-joint - 0.12, 1.6), (-joint + 0.3, top - 0.3), (-joint + 0.9, top), (joint - 0.9, top),
        (joint - 0.3, top - 0.3), (joint + 0.12, 1.6), (joint, 0.12),
    ]  # fmt: skip
    paints = [nose, glass, body, body * 0.7, body, glass, nose]
    heading = math.atan2(frame.sin, frame.cos)
    cars = [Frame(*frame.at(offset, 0, 0)[::2], heading) for offset in (-2 * car, 0, 2 * car)]
    cars.sort(key=lambda one: -abs(one.camera_a))
    for one in cars:
        painter.extrude(one, profile, half, label, paints, livery, taper=0.1)
    if a := cars[-1].near_end(car):
        for b, y in ((-0.8, 1.0), (0.8, 1.0), (0, top - 0.15)):
            painter.fill(cars[-1].end(a), ellipse(b, y, 0.2, 0.2), label, WHITE)


def draw_bicycle(painter, rng, frame):
    side = painter.brush(frame.side(), RAW['bicycle'])
    paint, tyre = random_color(rng), random_gray(rng, 0.05, 0.3, 0.01)
    radius, base = 0.36, 0.56
    for u in (-base, base):
        side(ellipse(u, radius, radius, radius), None)
        side(ring(u, radius, radius, radius - 0.085), tyre)
        for angle in (0.3, 1.35, 2.4):
            du, dv = 0.9 * radius * math.cos(angle), 0.9 * radius * math.sin(angle)
            side(bar(u - du, radius - dv, u + du, radius + dv, 0.025), random_gray(rng, 0.5, 0.8))
    seat, stay, crank, head = (-0.25, 0.9), (-0.2, 0.8), (-0.05, 0.36), (0.38, 0.95)
    rear, front = (-base, radius), (base, radius)
    side([seat, crank, head], None)
    for start, stop in ((seat, crank), (crank, head), (stay, head), (rear, crank), (rear, stay), (head, front)):
        side(bar(*start, *stop, 0.085), paint)
    side(rectangle(-0.4, 0.9, -0.12, 0.99), DARK)
    side(bar(0.36, 0.95, 0.32, 1.08, 0.08), DARK)
    side(bar(0.24, 1.06, 0.5, 1.1, 0.08), DARK)


def draw_motorcycle(painter, rng, frame):
    side = painter.brush(frame.side(), RAW['motorcycle'])
    paint, metal = random_color(rng), random_gray(rng, 0.45, 0.85)
    painter.shadow(frame, 1.0, 0.3)
    for u in (-0.72, 0.74):
        side(ellipse(u, 0.34, 0.37, 0.34, 14), DARK)
        side(ellipse(u, 0.34, 0.17, 0.15), metal)
    side(bar(0.74, 0.34, 0.42, 1.05, 0.13), metal)
    side([(-0.6, 0.45), (-0.45, 0.25), (0.35, 0.25), (0.5, 0.6), (0.3, 0.75), (-0.5, 0.7)], DARK + 0.12)
    side(ellipse(0.0, 0.42, 0.2, 0.16, 8), metal)
    side([(-0.08, 0.7), (0.0, 0.98), (0.36, 1.02), (0.52, 0.72)], paint)
    side([(-1.0, 0.82), (-0.95, 0.95), (-0.1, 0.86), (-0.05, 0.7), (-0.5, 0.62)], paint * 0.55)
    side([(-1.05, 0.72), (-1.0, 0.85), (-0.6, 0.75)], paint)
    side(bar(-0.95, 0.32, 0.1, 0.28, 0.12), metal)
    side([(0.42, 0.95), (0.5, 1.32), (0.62, 1.05), (0.66, 0.85)], paint)
    side(ellipse(0.63, 0.92, 0.09, 0.11, 8), WHITE)
    side(bar(0.25, 1.12, 0.5, 1.08, 0.08), DARK)


def draw_bonnet(painter, rng):
    """The camera's own car, at the lower edge of the image."""
    height, width = painter.height, painter.width
    rise, reach = rng.uniform(0.06, 0.14), rng.uniform(0.5, 0.9)
    pixels = [(width / 2 + u * height, height * (1 - v)) for u, v in ellipse(0, -0.02, reach, rise, 24)]
    painter.stamp(pixels, RAW['ego vehicle'], random_color(rng) * 0.6)


def _draw_wheels(side, positions, radius, hub):
    for a in positions:
        side(ellipse(a, radius, radius, radius), DARK)
        side(ellipse(a, radius, 0.55 * radius, 0.55 * radius), hub)


def _draw_tyres(end, half, width, top):
    """What shows of the wheels below an end."""
    for b in (-half, half - width):
        end(rectangle(b, 0, b + width, top), DARK)


def _draw_lamps(end, a, half, y, size):
    """White lamps at the front, red ones at the rear."""
    for b in (-half + size, half - size):
        end(rectangle(b - size, y - size / 2, b + size, y + size / 2), WHITE if a > 0 else RED)
