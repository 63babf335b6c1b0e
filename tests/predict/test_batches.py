"""Pictures of one size go through the network together; reading, computing and writing overlap."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from atonet_jax.errors import InputError
from atonet_jax.predict.batches import Background, errors_apart, in_order_ahead, predicted


class OneProgramForEachSize:
    """In the place of `Labeler`."""

    def __init__(self, label):
        self._label = label

    def program_of(self, size):
        return size

    def __call__(self, images):
        return self._label(np.stack(images))


def images_of(sizes):
    return [(i, np.full((size, size, 3), i, np.uint8)) for i, size in enumerate(sizes)]


def test_each_image_gets_its_labels_whatever_batch_it_was_in():
    shapes = []

    def first_channels(images):
        shapes.append(images.shape)
        return images[..., 0]

    results = list(predicted(images_of([4, 4, 6, 4, 6, 8]), OneProgramForEachSize(first_channels), batch_size=2))
    assert shapes == [(2, 4, 4, 3), (2, 6, 6, 3), (2, 4, 4, 3), (2, 8, 8, 3)], 'one program a size'
    assert sorted(key for key, _, _ in results) == list(range(6))
    for key, image, labels in results:
        assert labels.shape == image.shape[:2]
        assert (labels == key).all() and (image == key).all()


def test_images_of_one_program_go_together_and_get_labels_of_their_own_size():
    class OneProgram:
        def program_of(self, size):
            return 'all'

        def __call__(self, images):
            return np.stack([np.pad(image[..., 0], (0, 8 - len(image)), constant_values=99) for image in images])

    results = list(predicted(images_of([4, 8, 6, 4]), OneProgram(), batch_size=2))
    assert [key for key, _, _ in results] == [0, 1, 2, 3]
    for key, image, labels in results:
        assert labels.shape == image.shape[:2] and (labels == key).all()


def test_few_images_wait_where_every_one_has_a_size_of_its_own():
    taken = []

    def endless():
        for image in images_of(range(1, 100)):
            taken.append(image[0])
            yield image

    results = predicted(endless(), OneProgramForEachSize(lambda images: images[..., 0]), batch_size=2)
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
    """While image k is yielded, k - 1 is written, k + 1 computed and k + 3 read: each waits for the three others."""
    together = threading.Barrier(4, timeout=10)

    def meet(key, first):
        if first <= key < first + 4:
            together.wait()

    class Labels:
        """What a device computes in the background, from the call on."""

        def __init__(self, images, device):
            self._labels = images[..., 0]
            self._done = device.submit(meet, images[0, 0, 0, 0], 2)

        def __array__(self, *_, **__):
            self._done.result()
            return self._labels

    def read(key):
        meet(key, 4)
        return np.full((4, 4, 3), key, np.uint8)

    with ThreadPoolExecutor(1) as device, ThreadPoolExecutor(1) as reader, Background(workers=1) as writer:
        images = errors_apart(in_order_ahead(read, range(8), reader), None)
        label = OneProgramForEachSize(lambda images: Labels(images, device))
        for key, _, _ in predicted(images, label, batch_size=1):
            meet(key, 1)
            writer.submit(meet, key, 0)
