"""Class tables: the meaning of the values in label files, and the name and colour of each class.

A table lists every value that a data set's label files may hold. `train id` is the class index that
the network predicts (0 .. num_classes - 1); `IGNORE_LABEL` marks pixels that neither the loss nor the
metrics count.
"""

import dataclasses
import functools
from typing import NamedTuple

import numpy as np

IGNORE_LABEL = 255
UNKNOWN_LABEL = 254  # the value of `ClassTable.raw_to_train` for a raw id that the table lacks


class RawLabel(NamedTuple):
    """One value of a data set's label files. `color` is None where the class file gives none."""

    name: str
    raw_id: int
    color: tuple[int, int, int] | None
    train_id: int


@dataclasses.dataclass(frozen=True)
class ClassTable:
    """The classes of a data set.

    Attributes:
        name: the data set's name.
        class_names: name of each train id, in order.
        class_colors: RGB colour of each train id, in order, for pictures.
        raw_labels: every value that label files may hold.
        has_void_output: a network for these classes has one more output, the last: pixels of no class.
    """

    name: str
    class_names: tuple[str, ...]
    class_colors: tuple[tuple[int, int, int], ...]
    raw_labels: tuple[RawLabel, ...]
    has_void_output: bool = False

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def num_outputs(self) -> int:
        """Of a network for these classes."""
        return self.num_classes + self.has_void_output

    @functools.cached_property
    def raw_to_train(self) -> np.ndarray:
        """[256] uint8: raw id -> train id, `IGNORE_LABEL`, or `UNKNOWN_LABEL` if the table has no such id."""
        table = np.full(256, UNKNOWN_LABEL, np.uint8)
        table[IGNORE_LABEL] = IGNORE_LABEL
        for label in self.raw_labels:
            table[label.raw_id] = label.train_id
        return table

    @functools.cached_property
    def train_to_raw(self) -> np.ndarray:
        """[256] uint8: train id -> its first raw id; for values that are no class, that of the first ignored
        label, or `IGNORE_LABEL`."""
        ignored = (label.raw_id for label in self.raw_labels if label.train_id == IGNORE_LABEL)
        table = np.full(256, next(ignored, IGNORE_LABEL), np.uint8)
        for label in reversed(self.raw_labels):
            if label.train_id != IGNORE_LABEL:
                table[label.train_id] = label.raw_id
        return table

    def train_ids(self, outputs: np.ndarray) -> np.ndarray:
        """A label map of a network, uint8, with `IGNORE_LABEL` where it tells pixels of no class."""
        return np.where(outputs < self.num_classes, outputs, np.uint8(IGNORE_LABEL))

    @functools.cached_property
    def palette(self) -> np.ndarray:
        """[256, 3] uint8: train id -> RGB; black for values that are no class."""
        palette = np.zeros((256, 3), np.uint8)
        palette[: self.num_classes] = self.class_colors
        return palette

    def to_dict(self) -> dict:
        """A JSON-ready form, `from_dict` reads it back."""
        return dataclasses.asdict(self) | {'raw_labels': [list(label) for label in self.raw_labels]}

    @classmethod
    def from_dict(cls, values: dict) -> 'ClassTable':
        return cls(
            name=values['name'],
            class_names=tuple(values['class_names']),
            class_colors=tuple(tuple(color) for color in values['class_colors']),
            raw_labels=tuple(RawLabel(n, i, c and tuple(c), t) for n, i, c, t in values['raw_labels']),
            has_void_output=values.get('has_void_output', False),
        )


def class_difference(ours: ClassTable, other: ClassTable) -> str:
    """How the classes of a run differ from those of the data, in words; '' if they are the same."""
    if ours.num_classes != other.num_classes:
        return f'it has the {ours.num_classes} classes of {ours.name}, not the {other.num_classes} of {other.name}'
    pairs = enumerate(zip(ours.class_names, other.class_names, strict=True))
    differ = [f'class {i} was {mine!r}, is {theirs!r}' for i, (mine, theirs) in pairs if mine != theirs]
    more = f', and {len(differ) - 3} more classes' if len(differ) > 3 else ''
    return ', '.join(differ[:3]) + more


_IGNORED = IGNORE_LABEL

CITYSCAPES = ClassTable(
    name='cityscapes',
    class_names=(
        'road', 'sidewalk', 'building', 'wall', 'fence', 'pole', 'traffic light', 'traffic sign', 'vegetation',
        'terrain', 'sky', 'person', 'rider', 'car', 'truck', 'bus', 'train', 'motorcycle', 'bicycle',
    ),
    class_colors=(
        (128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153), (153, 153, 153),
        (250, 170, 30), (220, 220, 0), (107, 142, 35), (152, 251, 152), (70, 130, 180), (220, 20, 60),
        (255, 0, 0), (0, 0, 142), (0, 0, 70), (0, 60, 100), (0, 80, 100), (0, 0, 230), (119, 11, 32),
    ),
    raw_labels=(
        RawLabel('unlabeled', 0, (0, 0, 0), _IGNORED),
        RawLabel('ego vehicle', 1, (0, 0, 0), _IGNORED),
        RawLabel('rectification border', 2, (0, 0, 0), _IGNORED),
        RawLabel('out of roi', 3, (0, 0, 0), _IGNORED),
        RawLabel('static', 4, (0, 0, 0), _IGNORED),
        RawLabel('dynamic', 5, (111, 74, 0), _IGNORED),
        RawLabel('ground', 6, (81, 0, 81), _IGNORED),
        RawLabel('road', 7, (128, 64, 128), 0),
        RawLabel('sidewalk', 8, (244, 35, 232), 1),
        RawLabel('parking', 9, (250, 170, 160), _IGNORED),
        RawLabel('rail track', 10, (230, 150, 140), _IGNORED),
        RawLabel('building', 11, (70, 70, 70), 2),
        RawLabel('wall', 12, (102, 102, 156), 3),
        RawLabel('fence', 13, (190, 153, 153), 4),
        RawLabel('guard rail', 14, (180, 165, 180), _IGNORED),
        RawLabel('bridge', 15, (150, 100, 100), _IGNORED),
        RawLabel('tunnel', 16, (150, 120, 90), _IGNORED),
        RawLabel('pole', 17, (153, 153, 153), 5),
        RawLabel('polegroup', 18, (153, 153, 153), _IGNORED),
        RawLabel('traffic light', 19, (250, 170, 30), 6),
        RawLabel('traffic sign', 20, (220, 220, 0), 7),
        RawLabel('vegetation', 21, (107, 142, 35), 8),
        RawLabel('terrain', 22, (152, 251, 152), 9),
        RawLabel('sky', 23, (70, 130, 180), 10),
        RawLabel('person', 24, (220, 20, 60), 11),
        RawLabel('rider', 25, (255, 0, 0), 12),
        RawLabel('car', 26, (0, 0, 142), 13),
        RawLabel('truck', 27, (0, 0, 70), 14),
        RawLabel('bus', 28, (0, 60, 100), 15),
        RawLabel('caravan', 29, (0, 0, 90), _IGNORED),
        RawLabel('trailer', 30, (0, 0, 110), _IGNORED),
        RawLabel('train', 31, (0, 80, 100), 16),
        RawLabel('motorcycle', 32, (0, 0, 230), 17),
        RawLabel('bicycle', 33, (119, 11, 32), 18),
    ),
)  # fmt: skip

# Train ids 0..10 in the order of the 11-class repack, whose index 11 is void.
CAMVID = ClassTable(
    name='camvid',
    class_names=(
        'sky', 'building', 'pole', 'road', 'pavement', 'tree', 'sign', 'fence', 'car', 'pedestrian', 'bicyclist',
    ),
    class_colors=(
        (128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (0, 0, 192), (128, 128, 0), (192, 128, 128),
        (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192),
    ),
    # Raw id: the index in the list of 32 names, alphabetical without regard to case, as in the published index masks.
    raw_labels=(
        RawLabel('Animal', 0, (64, 128, 64), 9),
        RawLabel('Archway', 1, (192, 0, 128), 1),
        RawLabel('Bicyclist', 2, (0, 128, 192), 10),
        RawLabel('Bridge', 3, (0, 128, 64), 1),
        RawLabel('Building', 4, (128, 0, 0), 1),
        RawLabel('Car', 5, (64, 0, 128), 8),
        RawLabel('CartLuggagePram', 6, (64, 0, 192), 9),
        RawLabel('Child', 7, (192, 128, 64), 9),
        RawLabel('Column_Pole', 8, (192, 192, 128), 2),
        RawLabel('Fence', 9, (64, 64, 128), 7),
        RawLabel('LaneMkgsDriv', 10, (128, 0, 192), 3),
        RawLabel('LaneMkgsNonDriv', 11, (192, 0, 64), 3),
        RawLabel('Misc_Text', 12, (128, 128, 64), 6),
        RawLabel('MotorcycleScooter', 13, (192, 0, 192), 10),
        RawLabel('OtherMoving', 14, (128, 64, 64), 8),
        RawLabel('ParkingBlock', 15, (64, 192, 128), 4),
        RawLabel('Pedestrian', 16, (64, 64, 0), 9),
        RawLabel('Road', 17, (128, 64, 128), 3),
        RawLabel('RoadShoulder', 18, (128, 128, 192), 4),
        RawLabel('Sidewalk', 19, (0, 0, 192), 4),
        RawLabel('SignSymbol', 20, (192, 128, 128), 6),
        RawLabel('Sky', 21, (128, 128, 128), 0),
        RawLabel('SUVPickupTruck', 22, (64, 128, 192), 8),
        RawLabel('TrafficCone', 23, (0, 0, 64), 2),
        RawLabel('TrafficLight', 24, (0, 64, 64), 6),
        RawLabel('Train', 25, (192, 64, 128), 8),
        RawLabel('Tree', 26, (128, 128, 0), 5),
        RawLabel('Truck_Bus', 27, (192, 128, 192), 8),
        RawLabel('Tunnel', 28, (64, 0, 64), 1),
        RawLabel('VegetationMisc', 29, (192, 192, 0), 5),
        RawLabel('Void', 30, (0, 0, 0), _IGNORED),
        RawLabel('Wall', 31, (64, 192, 0), 1),
    ),
)  # fmt: skip

CLASS_TABLES = {'cityscapes': CITYSCAPES, 'camvid': CAMVID, 'synthetic': CITYSCAPES}  # by data set
DATA_NAMES = (*CLASS_TABLES, 'folder')  # whose classes are in a file of its own
