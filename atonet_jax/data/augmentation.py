"""Settings of the augmentation, and the geometry of one crop."""

import dataclasses
from typing import NamedTuple

SMALLEST_CROP = 33  # height and width


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Settings of the augmentation. Hashable, so that a jitted program can depend on them.

    The defaults are those of the published runs, except for the scale range. What is 0 is left out of the program.

    Attributes:
        crop_size: (height, width) of the crops in pixels.
        scale_range: (lowest, highest) factor by which images are scaled, drawn uniformly.
        flip: whether half of the crops are mirrored.
        rotation: largest angle in degrees; drawn uniformly, to either side.
        class_aware_crops: probability that a crop is placed to show a pixel of a class. The class is drawn uniformly
            among those in the image.
        brightness: the factor is drawn uniformly in [1 - brightness, 1 + brightness], and not below 0.
        contrast: as brightness.
        saturation: as brightness.
        hue: the shift is drawn uniformly in [-hue, hue], in turns; at most 0.5.
        blur: probability that a crop is blurred.
        blur_sigma: (lowest, highest) standard deviation of that in pixels, drawn uniformly; greater than 0.
        erasing: probability that a rectangle of the crop becomes the mean colour, and its labels `IGNORE_LABEL`.
        erasing_area: (smallest, largest) share of the crop that the rectangle takes, drawn uniformly.
    """

    crop_size: tuple[int, int]
    scale_range: tuple[float, float] = (1.0, 1.0)
    flip: bool = True
    rotation: float = 0.0
    class_aware_crops: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    blur: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    erasing: float = 0.0
    erasing_area: tuple[float, float] = (0.02, 0.2)

    @property
    def needs_key(self) -> bool:
        """Whether `augment` draws random numbers. Those of the geometry are drawn on the host."""
        return any((self.brightness, self.contrast, self.saturation, self.hue, self.blur, self.erasing))


class Geometry(NamedTuple):
    """How a crop is cut from its image. All are integers, so that host and device agree exactly.

    Attributes:
        image_height: of the image on disk.
        image_width: of the image on disk.
        scaled_height: of the image after scaling.
        scaled_width: of the image after scaling.
        crop_top: row of the scaled image at the crop's top; negative if the crop begins above the image.
        crop_left: column of the scaled image at the crop's left; negative if it begins left of the image.
        window_top: row of the image on disk at the window's top.
        window_left: column of the image on disk at the window's left.
        flip: 1 if the crop is mirrored left to right, else 0.
        rotation: angle in 1/1000 degree. The scaled image is turned about the crop's centre before it is cropped.
            Positive is counterclockwise. 0 if `Augmentation.rotation` is 0.
    """

    image_height: int
    image_width: int
    scaled_height: int
    scaled_width: int
    crop_top: int
    crop_left: int
    window_top: int
    window_left: int
    flip: int
    rotation: int = 0
