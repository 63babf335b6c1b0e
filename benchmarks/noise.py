"""Training batches of noise, for scripts that time a step."""

import numpy as np

from atonet_jax.data.augmentation import Augmentation
from atonet_jax.data.labels import IGNORE_LABEL
from atonet_jax.data.sampling import draw_geometry, window_size


def noise_batch(augmentation: Augmentation, batch_size: int, num_classes: int) -> dict[str, np.ndarray]:
    """As `data.pipeline.train_batches` gives it: windows of noise, their labels in patches, a tenth of them ignored."""
    rng = np.random.default_rng(0)
    height, width = augmentation.crop_size
    window = window_size(augmentation)
    patches = rng.integers(0, num_classes, (batch_size, -(-window[0] // 16), -(-window[1] // 16)), np.uint8)
    patches[rng.random(patches.shape) < 0.1] = IGNORE_LABEL
    labels = patches.repeat(16, 1).repeat(16, 2)[:, : window[0], : window[1]]
    geometry = [draw_geometry(0, g, (height, 2 * width), augmentation) for g in range(batch_size)]
    return {
        'image': rng.integers(0, 256, (batch_size, *window, 3), np.uint8),
        'label': labels,
        'geometry': np.array(geometry, np.int32),
    }
