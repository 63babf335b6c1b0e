"""The kinds of things that a street holds besides its houses and boundaries."""

from collections.abc import Callable
from typing import NamedTuple

from atonet_jax.data.synthetic import furniture, people, surroundings, vehicles


class Kind(NamedTuple):
    """How often, how far and where a kind of thing stands."""

    draw: Callable  # (painter, rng, frame)
    first: float  # chance of at least one in a scene
    more: float  # chance of one more after each
    nearest: float  # metres ahead at which it may begin
    reach: float  # the farthest, as a multiple of the nearest
    strips: tuple[str, ...]  # drawn from; the first one if the street lacks the drawn one
    half: float = 0.5  # half of its length, metres
    height: float = 1.6  # metres
    pose: str = 'facing'  # the camera; or 'lengthwise' on its strip; or 'askew', as end on a two-wheeler is a line
    crosses: bool = False  # may be on the cross street
    kerbside: bool = False  # at that edge of its strip which is nearer to the road


KINDS = {  # the long ones first: they need the most room
    'train': Kind(vehicles.draw_train, 0.23, 0.0, 10.0, 2.6, ('lane',), 14.0, 3.5, 'lengthwise', crosses=True),
    'bus': Kind(vehicles.draw_bus, 0.24, 0.10, 10.0, 2.6, ('lane',), 5.6, 3.0, 'lengthwise', crosses=True),
    'truck': Kind(vehicles.draw_truck, 0.28, 0.12, 8.5, 2.6, ('lane', 'parking'), 4.6, 3.3, 'lengthwise', crosses=True),
    'car': Kind(
        vehicles.draw_car, 0.97, 0.88, 7.0, 5.5, ('lane', 'parking', 'parking'), 2.2, pose='lengthwise', crosses=True
    ),
    'person': Kind(
        people.draw_person, 0.85, 0.60, 6.0, 4.0, ('pavement', 'pavement', 'pavement', 'lane'), crosses=True
    ),
    'cyclist': Kind(
        people.draw_cyclist, 0.42, 0.35, 5.0, 2.6, ('lane', 'lane', 'pavement'), 1.0, pose='askew', crosses=True
    ),
    'motorcyclist': Kind(people.draw_motorcyclist, 0.24, 0.15, 5.0, 2.6, ('lane',), 1.0, pose='askew', crosses=True),
    'bicycle': Kind(vehicles.draw_bicycle, 0.42, 0.45, 5.0, 2.6, ('pavement', 'verge'), 1.0, pose='askew'),
    'motorcycle': Kind(vehicles.draw_motorcycle, 0.24, 0.20, 5.0, 2.6, ('pavement', 'parking'), 1.0, pose='askew'),
    'lamp': Kind(furniture.draw_lamp, 0.90, 0.65, 6.0, 5.0, ('pavement', 'verge'), height=6.0, kerbside=True),
    'sign': Kind(furniture.draw_sign, 0.80, 0.60, 6.0, 2.6, ('pavement', 'verge'), height=1.0, kerbside=True),
    'light': Kind(furniture.draw_light, 0.75, 0.55, 6.0, 2.6, ('pavement',), kerbside=True),
    'board': Kind(furniture.draw_board, 0.20, 0.10, 9.0, 2.6, ('pavement', 'verge'), height=1.2, kerbside=True),
    'tree': Kind(surroundings.draw_tree, 0.93, 0.87, 7.0, 5.0, ('lot', 'verge', 'pavement'), height=5.0),
    'bush': Kind(surroundings.draw_bush, 0.55, 0.60, 7.0, 2.6, ('lot', 'verge')),
    'clutter': Kind(furniture.draw_clutter, 0.20, 0.30, 6.0, 2.6, ('pavement',)),
}
