"""People on foot and on two-wheelers."""

from atonet_jax.data.synthetic.geometry import bar, ellipse, rectangle
from atonet_jax.data.synthetic.painter import RAW
from atonet_jax.data.synthetic.paints import DARK, random_color, random_skin
from atonet_jax.data.synthetic.vehicles import draw_bicycle, draw_motorcycle


def draw_person(painter, rng, frame):
    board = painter.brush(frame.end(), RAW['person'])
    size = rng.uniform(0.92, 1.08) * (0.7 if rng.random() < 0.12 else 1.0)
    coat, trousers, skin, hair = random_color(rng), random_color(rng) * 0.75, random_skin(rng), random_skin(rng) * 0.4
    step, hem = rng.uniform(0.02, 0.3), rng.choice([0.85, 0.85, 0.6])

    def part(outline, paint):
        board([(u * size, v * size) for u, v in outline], paint)

    painter.shadow(frame, 0.2, 0.35)
    for sign in (-1, 1):
        foot = sign * (0.07 + step / 2)
        part(bar(sign * 0.09, 0.92, foot, 0.06, 0.18), trousers * (1 + 0.1 * sign))
        part(rectangle(foot - 0.1, 0, foot + 0.14, 0.09), DARK)
    for sign in (-1, 1):
        hand = sign * (0.27 + step * 0.4)
        part(bar(sign * 0.2, 1.4, hand, 0.88, 0.13), coat * 0.8)
        part(ellipse(hand, 0.84, 0.06, 0.07, 6), skin)
    part([(-0.2, hem), (-0.25, 1.42), (-0.12, 1.52), (0.12, 1.52), (0.25, 1.42), (0.2, hem)], coat)
    if rng.random() < 0.35:  # a rucksack
        part(rectangle(-0.16, 1.0, 0.16, 1.4), random_color(rng))
    part(rectangle(-0.06, 1.48, 0.06, 1.58), skin)
    part(ellipse(0, 1.66, 0.12, 0.15, 10), hair)
    if rng.random() < 0.7:  # seen from the front
        part(ellipse(0.02, 1.63, 0.09, 0.11, 8), skin)


def draw_cyclist(painter, rng, frame):
    painter.shadow(frame, 0.9, 0.25)
    draw_bicycle(painter, rng, frame)
    _draw_rider(painter, rng, frame, (-0.22, 0.98), (0.0, 0.28), (0.4, 1.1))


def draw_motorcyclist(painter, rng, frame):
    draw_motorcycle(painter, rng, frame)
    _draw_rider(painter, rng, frame, (-0.35, 0.9), (0.05, 0.35), (0.38, 1.12))


def _draw_rider(painter, rng, frame, seat, pedal, grip):
    """Someone who sits on a two-wheeler, bent to its handlebar, seen from the side."""
    side = painter.brush(frame.side(), RAW['rider'])
    coat, trousers, helmet, skin = random_color(rng), random_color(rng) * 0.75, random_color(rng), random_skin(rng)
    su, sv = seat
    knee, shoulder = (su + 0.42, sv - 0.1), (su + 0.32, sv + 0.56)
    elbow = ((shoulder[0] + grip[0]) / 2, grip[1] + 0.1)
    side(bar(su, sv + 0.05, *knee, 0.2), trousers)
    side(bar(*knee, *pedal, 0.16), trousers * 0.9)
    side(rectangle(pedal[0] - 0.08, pedal[1] - 0.08, pedal[0] + 0.2, pedal[1] + 0.03), DARK)
    side([(su - 0.18, sv), (su + 0.08, sv + 0.55), (shoulder[0], sv + 0.68), (su + 0.38, sv + 0.42), (su + 0.18, sv)],
         coat)  # fmt: skip
    side(bar(*shoulder, *elbow, 0.14), coat * 0.8)
    side(bar(*elbow, *grip, 0.12), coat * 0.8)
    side(ellipse(su + 0.42, sv + 0.8, 0.13, 0.15, 10), skin)
    side([(su + 0.27, sv + 0.8), (su + 0.3, sv + 0.98), (su + 0.45, sv + 1.02), (su + 0.57, sv + 0.88)], helmet)
