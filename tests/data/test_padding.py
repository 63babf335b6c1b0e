"""The share of padding that is said is that of the crops which training makes."""

import jax
import numpy as np
import pytest

from atonet_jax.data.augmentation import Augmentation
from atonet_jax.data.labels import IGNORE_LABEL
from atonet_jax.data.padding import fitting_crop, mean_padding, padding_text
from atonet_jax.data.sampling import draw_geometry, window_size
from atonet_jax.training.augment import augment

CAMVID_REPACK = {(360, 480): 367}


def test_the_share_is_that_of_training_crops():
    """Of turned crops of images of two sizes, one in three of them small."""
    augmentation = Augmentation((48, 64), (0.5, 1.5), rotation=20.0)
    sizes = {(40, 60): 1, (96, 128): 2}
    drawn = [((40, 60), (96, 128), (96, 128))[g % 3] for g in range(384)]
    geometry = np.array([draw_geometry(5, g, size, augmentation) for g, size in enumerate(drawn)], np.int32)
    window = window_size(augmentation)
    batch = {
        'image': np.zeros((len(drawn), *window, 3), np.uint8),
        'label': np.zeros((len(drawn), *window), np.uint8),
        'geometry': geometry,
    }
    _, labels = jax.jit(augment, static_argnums=1)(batch, augmentation)
    assert mean_padding(sizes, augmentation) == pytest.approx(np.mean(np.asarray(labels) == IGNORE_LABEL), abs=0.03)


@pytest.mark.parametrize(('size', 'share'), [((360, 480), 0.299), ((720, 960), 0.0)])
def test_the_share_of_upright_crops_is_known(size, share):
    """The mean of 1 - min(1, s h / 720) min(1, s w / 720), s in 1 .. 2."""
    scales = np.linspace(1, 2, 1001)
    exact = 1 - np.mean(np.minimum(1, scales * size[0] / 720) * np.minimum(1, scales * size[1] / 720))
    assert exact == pytest.approx(share, abs=1e-3)
    assert mean_padding({size: 5}, Augmentation((720, 720), (1.0, 2.0))) == pytest.approx(share, abs=0.02)


def test_a_crop_that_fits_is_filled_by_nearly_all_images_at_the_lowest_scale():
    augmentation = Augmentation((512, 512), (0.5, 2.0))
    assert fitting_crop({(1000, 800): 95, (50, 50): 5}, augmentation) == (500, 400)
    assert fitting_crop({(2000, 800): 1}, augmentation) == (512, 400)
    assert fitting_crop({(20, 20): 1}, augmentation) == (33, 33), 'what config.data.crop_size takes'


def test_much_padding_is_told_with_a_way_out():
    line, is_much = padding_text(CAMVID_REPACK, Augmentation((720, 720), (1.0, 2.0)))
    assert is_much and '30% is padding' in line and 'crop_size="(360,480)" it would be 0%' in line
    line, is_much = padding_text({(1024, 2048): 5}, Augmentation((1024, 1024), (0.5, 2.0)))
    assert not is_much and line == 'crops of 1024x1024 (height x width): 8% is padding on average'
