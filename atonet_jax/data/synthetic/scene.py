"""One scene: a street as a camera sees it."""

import math

import numpy as np
from PIL import Image, ImageFilter

from atonet_jax.data.synthetic.painter import Painter
from atonet_jax.data.synthetic.paints import random_gray
from atonet_jax.data.synthetic.street import Street
from atonet_jax.data.synthetic.vehicles import draw_bonnet
from atonet_jax.errors import InputError

BONNET_CHANCE = 0.15
VISIBILITY = (60.0, 500.0)  # metres to 1 / e
EXPOSURE = (0.65, 1.12)
BLUR = (0.0, 0.0035)  # in image heights
NOISE = (0.006, 0.03)


def render_scene(seed: int, index: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Renders one scene. The same `seed` and `index` give the same scene at every size.

    Args:
        seed: of the data set, >= 0.
        index: of the scene, >= 0.
        height, width: in pixels, each at least 16; made for width = 2 * height.

    Returns:
        image: [H, W, 3] uint8, RGB.
        labels: [H, W] uint8, raw Cityscapes label ids.

    Raises:
        InputError: (a ValueError) a size below 16, or a negative seed or index.
    """
    check_scene(seed, index, height, width)
    rng = np.random.default_rng([seed, index])
    painter = Painter(rng, height, width)
    Street(rng, painter).draw()
    if rng.random() < BONNET_CHANCE:
        draw_bonnet(painter, rng)
    rgb, depth = painter.resolve()
    return _develop(np.random.default_rng([seed, index, 1]), rgb, depth), np.asarray(painter.labels).copy()


def check_scene(seed: int, index: int, height: int, width: int):
    if min(height, width) < 16:
        raise InputError(f'height={height}, width={width}: a scene needs at least 16 pixels each way')
    if min(seed, index) < 0:
        raise InputError(f'seed={seed}, index={index}: neither may be negative')


def _develop(rng, rgb: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """Fog, exposure, colour cast, vignette, blur and sensor noise: [H, W, 3] uint8."""
    height, width = depth.shape
    haze = random_gray(rng, 0.6, 0.9, 0.03).astype(np.float32)
    # A pixel whose centre lies past its surface's horizon has a negative depth; it is as far away.
    clear = np.exp(-np.abs(depth) / np.float32(math.exp(rng.uniform(*np.log(VISIBILITY)))))
    rgb = haze + (rgb - haze) * clear[..., None]
    cast = (rng.uniform(*EXPOSURE) * rng.uniform(0.92, 1.08, 3)).astype(np.float32)
    y, x = np.ogrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    rgb *= (1 - rng.uniform(0, 0.2) * (x * x + y * y) / 2).astype(np.float32)[..., None] * cast
    image = Image.fromarray((np.clip(rgb, 0, 1) * 255).astype(np.uint8))
    image = image.filter(ImageFilter.GaussianBlur(rng.uniform(*BLUR) * height))
    noise = rng.standard_normal((height, width, 3), np.float32) * np.float32(255 * rng.uniform(*NOISE))
    return np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8)
