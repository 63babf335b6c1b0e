"""Examples of a data set, decoded."""

import numpy as np

from atonet_jax.data.dataset import SegmentationDataset
from atonet_jax.data.image_files import read_image
from atonet_jax.data.label_files import read_labels


def read_example(dataset: SegmentationDataset, i: int) -> tuple[np.ndarray, np.ndarray]:
    """Example `i` as (image [H, W, 3] uint8 RGB, labels [H, W] uint8 train ids).

    Raises:
        DataError: a file is missing, unreadable or of a wrong kind, or the two do not fit each other.
    """
    image = read_image(dataset, i)
    return image, read_labels(dataset, i, image.shape[:2])
