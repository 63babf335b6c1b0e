"""The layout of a street: its ground, what lines it, and where things stand on it."""

import functools
import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from atonet_jax.data.synthetic.geometry import GROUND, Frame, rectangle
from atonet_jax.data.synthetic.kinds import KINDS, Kind
from atonet_jax.data.synthetic.painter import RAW, Painter
from atonet_jax.data.synthetic.paints import DARK, random_gray, random_leaf, shade_grass, shade_road, shade_slabs
from atonet_jax.data.synthetic.surroundings import draw_house, random_boundary, random_wood

LOT_KINDS = {'facade': 0.36, 'garden': 0.32, 'park': 0.32}
BOUNDARY_KINDS = {'wall': 0.32, 'fence': 0.44, 'hedge': 0.12, 'none': 0.12}
CROSSING_CHANCE = 0.45  # a cross street
CLOSED_END_CHANCE = 0.35  # the street ends at a row of houses
VERGE_CHANCE = 0.28
PARKING_CHANCE = 0.5
ZEBRA_CHANCE = 0.4
CROSSER_CHANCE = 0.4  # of each thing that crosses to be on the cross street, where there is one
COMPANIONS = 3  # a person comes with fewer than this many others

BEHIND = -3  # z at which the ground begins
CROSSING_WIDTH = 7.5
CORNER = 2.5  # what a cross street keeps clear on either side


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


class Lot(NamedTuple):
    """What lies beyond the pavement of one side."""

    side: int  # -1 left, 1 right
    kind: str
    start: float  # distance of its boundary from x = 0
    houses: float  # and of its houses


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
            self.crossing = (start, start + CROSSING_WIDTH)
        lane, shift = rng.uniform(2.9, 3.6), rng.uniform(-0.4, 0.4)
        right, left = int(rng.integers(0, 2)), int(rng.integers(0, 3))
        edges = [shift + lane * (k - 0.5) for k in range(-left, right + 2)]
        self.strips = [
            Strip(x0, x1, 'lane', math.pi if k < left else 0.0) for k, (x0, x1) in enumerate(itertools.pairwise(edges))
        ]
        self.lines = [(x, 0.08, 6.0 if rng.random() < 0.4 else 3.0) for x in edges[1:-1]]
        if rng.random() < 0.6:
            self.lines += [(edges[0] + 0.15, 0.07, 6.0), (edges[-1] - 0.15, 0.07, 6.0)]
        self.road = {-1: edges[0], 1: edges[-1]}
        self.lots = [self._lay_side(-1), self._lay_side(1)]

    def draw(self):
        self._draw_ground()
        for lot in self.lots:
            self._build(lot)
            self._enclose(lot)
        self._build_end()
        for name, kind in KINDS.items():
            chance = kind.first
            while self.rng.random() < chance:
                self._place(name, kind)
                chance = kind.more
        for _, _, _, draw in sorted(self.things, key=lambda thing: thing[:3]):
            draw()

    # ---------------------------------------------------------------- ground

    def _lay_side(self, side: int) -> Lot:
        """Adds the strips of one side."""
        rng, x = self.rng, self.road[side]

        def add(kind, width, heading=0.0):
            nonlocal x
            self.strips.append(Strip(*sorted((x, x + side * width)), kind, heading))
            x += side * width

        if rng.random() < PARKING_CHANCE:
            add('parking', 2.3, math.pi if side < 0 else 0.0)
            self.road[side] = x
        if rng.random() < VERGE_CHANCE:
            add('verge', rng.uniform(0.8, 2.5))
        add('pavement', rng.uniform(1.6, 4.5))
        start, kind = x, str(rng.choice(list(LOT_KINDS), p=list(LOT_KINDS.values())))
        if kind != 'facade':
            add('lot', rng.uniform(3, 8) if kind == 'garden' else rng.uniform(12, 25))
        return Lot(side, kind, abs(start), abs(x))

    def _draw_ground(self):
        rng = self.rng
        gray = random_gray(rng, 0.24, 0.62, 0.02)
        paving = random_gray(rng, 0.35, 0.8, 0.04)
        slabs = functools.partial(shade_slabs, color=paving, length=rng.uniform(0.7, 1.3), depth=rng.uniform(0.6, 1.1))
        soil = np.array([0.42, 0.34, 0.24]) * rng.uniform(0.7, 1.2)
        grass = random_leaf(rng) * 1.1 + rng.uniform(0, 0.12, 3) * [1, 1, 0.3]
        paved = (RAW['sidewalk'], slabs)
        green = (RAW['terrain'], functools.partial(shade_grass, color=grass, soil=soil))
        looks = {'verge': green, 'pavement': paved, 'lot': green}

        def lay(x0, z0, x1, z1, label, paint):
            self.painter.fill(GROUND, rectangle(x0, z0, x1, z1), label, paint)

        lay(-200, BEHIND, 200, 300, *(green if rng.random() < 0.5 else paved))
        for strip in self.strips:
            if strip.kind in looks:
                lay(strip.x0, BEHIND, strip.x1, self.end, *looks[strip.kind])
        mark = gray * 0.2 + rng.uniform(0.55, 0.75)
        asphalt = functools.partial(shade_road, color=gray, mark=mark)
        kerb = random_gray(rng, 0.45, 0.85, 0.02)
        left, right, far = self.road[-1], self.road[1], self.crossing[1] if self.closed else self.end
        lay(left - 0.22, BEHIND, right + 0.22, far, RAW['sidewalk'], kerb)
        if self.crossing:
            start, stop = self.crossing
            lay(-90, start - CORNER, 90, stop + CORNER, *paved)
            lay(-90, start - 0.2, 90, stop + 0.2, RAW['sidewalk'], kerb)
        lay(left, BEHIND, right, far, RAW['road'], functools.partial(asphalt, lines=self.lines))
        if self.crossing:
            lay(-90, start, 90, stop, RAW['road'], functools.partial(asphalt, lines=()))
        if rng.random() < ZEBRA_CHANCE:
            z = start - 3.2 if self.crossing else rng.uniform(7, 20)
            for x in np.arange(left + 0.3, right - 0.5, 1.0).tolist():
                lay(x, z, x + 0.55, z + 2.6, RAW['road'], mark)

    # ---------------------------------------------------------------- what lines the street

    def _build(self, lot: Lot):
        """Houses along one side, or the trees of a park."""
        if lot.kind == 'park' and self.rng.random() >= 0.4:
            self._add_wood(lot.houses + 1, Frame(lot.side * (lot.houses + 1), 60, 0), 130)
            return
        for start, width in self._plots(4, 6, 15):
            x = lot.side * (lot.houses + self.rng.uniform(0, 0.8))
            self._add_house(lot.houses, Frame(x, start + width / 2, 0), width)

    def _enclose(self, lot: Lot):
        """Boundaries between pavement and lot."""
        if lot.kind == 'facade':
            return
        rng, kind = self.rng, ''
        for start, width in self._plots(0, 5, 7):
            if not kind or rng.random() < 0.3:
                kind = str(rng.choice(list(BOUNDARY_KINDS), p=list(BOUNDARY_KINDS.values())))
                draw = random_boundary(rng, kind)
            if kind != 'none' and self.painter.visible(start, 1.5):
                frame = Frame(lot.side * lot.start, start + width / 2, 0)
                self._add(lot.start - 0.01, frame.z, draw, frame, width)

    def _build_end(self):
        """Houses across a closed end, and trees behind them."""
        across = -70.0
        while self.closed and across < 70:
            width = self.rng.uniform(7, 18)
            self._add_house(math.inf, Frame(across + width / 2, self.end, math.pi / 2), width)
            across += width + (self.rng.uniform(0, 4) if self.rng.random() < 0.3 else 0)
        self._add_wood(math.inf, Frame(0, self.end + 30, math.pi / 2), 400)

    def _plots(self, gap: float, least: float, most: float):
        """Start and width of plots along the street, clear of the cross street."""
        z, rng = -4.0, self.rng
        while z < self.end - 2:
            width = rng.uniform(least, most)
            if self.crossing and z < self.crossing[1] + CORNER and z + width > self.crossing[0] - CORNER:
                width = self.crossing[0] - CORNER - z
                if width > 2:
                    yield z, width
                z = self.crossing[1] + CORNER
                continue
            yield z, width
            z += width + (rng.uniform(0, gap) if rng.random() < 0.4 else 0)

    def _add_house(self, band: float, frame: Frame, width: float):
        self._add(band, frame.z, draw_house, frame, width, self.rng.uniform(6, 12), self.rng.uniform(4.5, 17))

    def _add_wood(self, band: float, frame: Frame, width: float):
        self._add(band, frame.z + 1, random_wood(self.rng, width), frame)

    def _add(self, band: float, z: float, draw: Callable, *arguments):
        """Queues a thing: sections of the street far to near, in each the outer bands first, in each far to near."""
        section = (z < self.crossing[1]) + (z < self.crossing[0]) if self.crossing else 0
        self.things.append((section, -band, -z, functools.partial(draw, self.painter, self.rng, *arguments)))

    # ---------------------------------------------------------------- what stands on the street

    def _place(self, name: str, kind: Kind):
        """Queues one more of a kind, unless there is no room for it or it would be too small."""
        rng = self.rng
        crosses = self.crossing and kind.crosses and rng.random() < CROSSER_CHANCE
        strip, x, z, heading = self._spot_across(name) if crosses else self._spot_along(kind)
        middle = x if crosses else z
        start, stop = middle - kind.half - 0.4, middle + kind.half + 0.4
        clash = any(other == strip and start < last and first < stop for other, first, last in self.taken)
        if clash or z > self.end - 1 + kind.half or not self.painter.visible(z, kind.height):
            return
        self.taken.append((strip, start, stop))
        band = 0.0 if crosses else strip.band
        if kind.pose == 'lengthwise':
            frame = Frame(x, z, heading + rng.normal(0, 0.03))
        elif kind.pose == 'askew':
            frame = Frame(x, z, math.atan2(x, z) + rng.choice([-1, 1]) * rng.uniform(0.7, 1.57))
        else:
            frame = Frame.facing(x, z)
        self._add(band, z, kind.draw, frame)
        if name == 'person':
            for k in range(rng.integers(0, COMPANIONS)):
                beside = Frame.facing(x + 0.6 * (k + 1), z + rng.uniform(-0.5, 0.5))
                self._add(band, beside.z, kind.draw, beside)
        if name == 'train':
            for rail in (-0.75, 0.75):
                self.painter.fill(frame.ground(), rectangle(-90, rail - 0.07, 90, rail + 0.07), None, DARK + 0.1)

    def _spot_across(self, name: str) -> tuple[None, float, float, float]:
        """A place (no strip, x, z, heading) on the cross street; people walk at its near side."""
        rng = self.rng
        z = self.crossing[0] + (rng.uniform(-2.5, 0.5) if name == 'person' else rng.uniform(1.2, 2.8))
        return None, rng.uniform(-0.6, 0.6) * z, z, rng.choice([-1, 1]) * math.pi / 2

    def _spot_along(self, kind: Kind) -> tuple[Strip, float, float, float]:
        """A place (strip, x, z, heading) along the street."""
        rng, choice = self.rng, self.rng.choice(kind.strips)
        strips = [strip for strip in self.strips if strip.kind == choice]
        strips = strips or [strip for strip in self.strips if strip.kind in ('pavement', kind.strips[0])]
        strip = strips[rng.integers(len(strips))]
        x = self._across(strip, kind)
        nearest = max(kind.nearest, abs(x) * 1.1)
        z = nearest * rng.uniform(1, kind.reach) ** rng.uniform(0.3, 1) + kind.half
        return strip, x, z, strip.heading

    def _across(self, strip: Strip, kind: Kind) -> float:
        """Where in a strip a thing of this kind stands."""
        if kind.kerbside:
            return strip.x0 + 0.4 if strip.x0 > 0 else strip.x1 - 0.4
        if strip.kind in ('lane', 'parking'):
            sway = 0.2 if kind.pose == 'lengthwise' else 0.8
            return (strip.x0 + strip.x1) / 2 + self.rng.uniform(-sway, sway)
        return self.rng.uniform(strip.x0 + 0.3, strip.x1 - 0.3)
