"""Pictures of one size go through the network together; reading, computing and writing overlap."""

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from atonet_jax.errors import InputError
from atonet_jax.predict.batches import Background, errors_apart, in_order_ahead, predicted


def images_of(sizes):
    return [(i, np.full((size, size, 3), i, np.uint8)) for i, size in enumerate(sizes)]


def test_each_image_gets_its_labels_whatever_batch_it_was_in():
    shapes = []

    def label(images):
        shapes.append(images.shape)
        return images[..., 0]

    results = list(predicted(images_of([4, 4, 6, 4, 6, 8]), label, batch_size=2))
    assert shapes == [(2, 4, 4, 3), (2, 6, 6, 3), (2, 4, 4, 3), (2, 8, 8, 3)], 'one program a size'
    assert sorted(key for key, _, _ in results) == list(range(6))
    for key, image, labels in results:
        assert labels.shape == image.shape[:2]
        assert (labels == key).all() and (image == key).all()


def test_few_images_wait_where_every_one_has_a_size_of_its_own():
    taken = []

    def endless():
        for image in images_of(range(1, 100)):
            taken.append(image[0])
            yield image

    results = predicted(endless(), lambda images: images[..., 0], batch_size=2)
    next(results)
    assert len(taken) < 15


def test_what_cannot_be_read_is_told_and_the_rest_goes_on():
    def read(thing):
        if thing == 2:
            raise InputError('2: bad')
        return thing

    failures = []
    with ThreadPoolExecutor(2) as pool:
        ahead = in_order_ahead(read, range(5), pool)
        read_ones = list(errors_apart(ahead, lambda thing, error: failures.append((thing, str(error)))))
    assert read_ones == [(0, 0), (1, 1), (3, 3), (4, 4)]
    assert failures == [(2, '2: bad')]


def test_an_error_of_a_writer_is_raised():
    def write():
        raise InputError('disk: full')

    with pytest.raises(InputError, match='disk: full'), Background() as background:
        background.submit(write)


def test_reading_computing_and_writing_overlap():
    """24 images, 20 ms of each in a reader, on the device and in a writer: 1.4 s one after the other."""

    class Labels:
        """What a device computes in the background, from the call on."""

        def __init__(self, images, device):
            self._done = device.submit(lambda: (time.sleep(0.02), images[..., 0])[1])

        def __array__(self, *_, **__):
            return self._done.result()

    def slowly(thing):
        time.sleep(0.02)
        return thing

    pixels = np.zeros((4, 4, 3), np.uint8)
    start = time.perf_counter()
    with ThreadPoolExecutor(1) as device, ThreadPoolExecutor(2) as readers, Background() as writers:
        ahead = in_order_ahead(lambda _: slowly(pixels), range(24), readers)
        images = errors_apart(ahead, None)
        for key, _, _ in predicted(images, lambda images: Labels(images, device), batch_size=1):
            writers.submit(slowly, key)
    assert time.perf_counter() - start < 1.0
