"""Batches cut out of the devices' memory are those of the host pipeline, bit for bit."""

import json
import logging
import os
import subprocess
import sys
import tracemalloc
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from atonet_jax.data import device_cache, pipeline
from atonet_jax.data.augmentation import Augmentation
from atonet_jax.data.cityscapes import load_cityscapes
from atonet_jax.data.dataset import DataError
from atonet_jax.data.device_cache import DeviceCache
from atonet_jax.data.examples import Examples
from atonet_jax.data.labels import IGNORE_LABEL
from atonet_jax.data.sources import load_dataset, load_examples
from atonet_jax.data.verify import verify
from atonet_jax.errors import InputError
from atonet_jax.process.devices import create_mesh
from atonet_jax.runs.workdir import holds_run
from atonet_jax.training.augment import augment
from atonet_jax.training.train import train
from tests.data.test_pipeline import write_dataset

SIZE = (12, 20)
AUGMENTATIONS = {
    'enlarged': Augmentation((8, 8), scale_range=(1.0, 2.0)),
    'reduced and turned': Augmentation((10, 14), scale_range=(0.5, 1.5), rotation=20.0),
    'larger than the image': Augmentation((17, 33), scale_range=(0.7, 1.1), rotation=5.0, class_aware_crops=0.5),
}


@pytest.fixture(scope='module')
def dataset(tmp_path_factory):
    return verify(write_dataset(tmp_path_factory.mktemp('data'), [SIZE] * 7))


def assert_batches_equal(actual, expected):
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected):
        jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize('augmentation', AUGMENTATIONS.values(), ids=AUGMENTATIONS)
def test_training_batches_are_those_of_the_host_pipeline(dataset, augmentation):
    options = dict(batch_size=4, augmentation=augmentation, seed=3, start_sample=9, num_steps=6)
    expected = list(pipeline.train_batches(Examples(dataset), **options))
    assert_batches_equal(list(DeviceCache(Examples(dataset), create_mesh()).train_batches(**options)), expected)


def test_the_host_holds_a_piece_of_the_split_at_a_time(tmp_path, monkeypatch):
    size, count = (100, 200), 60
    dataset = verify(write_dataset(tmp_path, [size] * count))
    bytes_of_one = 4 * size[0] * size[1]
    monkeypatch.setattr(device_cache, '_PIECE_BYTES', 7 * bytes_of_one, raising=False)
    monkeypatch.setattr(os, 'cpu_count', lambda: 2)
    tracemalloc.start()  # counts the arrays of NumPy and not those of JAX
    try:
        cache = DeviceCache(Examples(dataset), create_mesh())
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 7 * bytes_of_one < most < count / 2 * bytes_of_one
    expected = list(pipeline.eval_batches(Examples(dataset), batch_size=4))
    assert_batches_equal(list(cache.eval_batches(4)), expected)


def test_evaluation_batches_are_those_of_the_host_pipeline(dataset):
    expected = list(pipeline.eval_batches(Examples(dataset), batch_size=4))
    assert_batches_equal(list(DeviceCache(Examples(dataset), create_mesh()).eval_batches(4)), expected)


def test_any_step_can_be_started_from(dataset):
    options = dict(batch_size=4, augmentation=AUGMENTATIONS['enlarged'], seed=0)
    cache = DeviceCache(Examples(dataset), create_mesh())
    whole = list(cache.train_batches(start_sample=0, num_steps=20, **options))
    assert_batches_equal(list(cache.train_batches(start_sample=17 * 4, num_steps=3, **options)), whole[17:])
    assert list(cache.train_batches(start_sample=20, num_steps=0, **options)) == []


def test_a_damaged_file_is_left_out_or_named(tmp_path):
    dataset = write_dataset(tmp_path, [SIZE] * 7)
    with open(dataset.image_paths[2], 'rb+') as file:
        file.truncate(len(file.read()) - 40)
    with pytest.raises(DataError, match='image2.png'):
        DeviceCache(Examples(dataset), create_mesh())

    examples = Examples(dataset, on_corrupt='skip')
    cache = DeviceCache(examples, create_mesh())
    assert list(examples.skipped) == [2]
    host = Examples(dataset, on_corrupt='skip')
    assert_batches_equal(list(cache.eval_batches(4)), list(pipeline.eval_batches(host, batch_size=4)))
    augmentation = AUGMENTATIONS['enlarged']
    options = dict(batch_size=4, augmentation=augmentation, seed=0, start_sample=0, num_steps=4)
    make_crops = jax.jit(augment, static_argnums=1)
    for batch, other in zip(cache.train_batches(**options), pipeline.train_batches(host, **options)):
        crops = make_crops(batch, augmentation)
        assert_batches_equal([crops], [make_crops(other, augmentation)])
    assert (np.asarray(crops[1]) == IGNORE_LABEL).any()


def test_images_of_several_sizes_are_refused_with_their_sizes(tmp_path):
    dataset = write_dataset(tmp_path, [(12, 20), (10, 20), (12, 20)])
    with pytest.raises(InputError, match=r'have 2 sizes \(10x20, 12x20\).*choose memory, disk or none') as raised:
        DeviceCache(Examples(dataset), create_mesh())
    assert '\n' not in str(raised.value)


def test_what_cannot_be_cached_is_refused_before_a_workdir_is_claimed(tiny_config, tmp_path, monkeypatch):
    monkeypatch.setattr(device_cache, '_free_bytes', lambda mesh: 6000)
    config = tiny_config.copy_and_resolve_references()
    config.data.cache = 'device'
    with pytest.raises(InputError, match='are free; choose memory'):
        train(config, str(tmp_path / 'run'))
    assert not holds_run(str(tmp_path / 'run'))
    sizes = [len(load_dataset(config.data, split)) * 4 * 64 * 128 for split in ('train', 'val')]
    monkeypatch.setattr(device_cache, '_free_bytes', lambda mesh: max(sizes))  # for each, but not for both
    with pytest.raises(InputError, match='train and .* val take .* are free'):
        train(config, str(tmp_path / 'run'))
    assert not holds_run(str(tmp_path / 'run'))


def test_its_size_is_said_before_anything_is_read(dataset, caplog):
    examples = Examples(dataset)
    examples.read = lambda i: pytest.fail('reads')
    with caplog.at_level(logging.INFO, 'atonet_jax'), pytest.raises(pytest.fail.Exception):
        DeviceCache(examples, create_mesh())
    assert 'tiny train: decoded 0.00 GB in the memory of each of 1 device(s)' in caplog.text


def test_chosen_by_itself_where_an_accelerator_has_room(tiny_config, tmp_path, monkeypatch):
    def is_on_device(data):
        return load_examples(data, 'val', str(tmp_path)).on_device

    data = tiny_config.data.copy_and_resolve_references()
    assert data.cache == 'auto' and not is_on_device(data)  # on a CPU
    monkeypatch.setattr(device_cache, 'suits', lambda dataset, mesh: True)
    assert is_on_device(data)
    data.cache = 'none'
    assert not is_on_device(data)


@pytest.mark.parametrize(('statistics', 'chosen'), [(None, False), ({'bytes_limit': 10**6, 'bytes_in_use': 0}, True)])
def test_an_accelerator_that_does_not_tell_its_memory_is_not_chosen(dataset, statistics, chosen):
    """As with XLA_PYTHON_CLIENT_ALLOCATOR=platform. Whoever asks for it may use it."""
    device = SimpleNamespace(platform='gpu', memory_stats=lambda: statistics)
    mesh = SimpleNamespace(devices=np.array([device]), local_devices=[device], size=1)
    assert device_cache.suits(dataset, mesh) is chosen
    device_cache.check([dataset], mesh)


_WORKER = """
import json, sys, jax, numpy as np
from atonet_jax.data.augmentation import Augmentation
from atonet_jax.data.cityscapes import load_cityscapes
from atonet_jax.data.device_cache import DeviceCache
from atonet_jax.data.examples import Examples
from atonet_jax.process.devices import create_mesh

cache = DeviceCache(Examples(load_cityscapes(sys.argv[1], 'val')), create_mesh())
augmentation = Augmentation((40, 48), (0.75, 1.5), rotation=5.0)
batches = [*cache.train_batches(batch_size=4, augmentation=augmentation, seed=0, start_sample=4, num_steps=3),
           *cache.eval_batches(4)]
np.savez(sys.argv[2], **{f'{i}{name}': array for i, batch in enumerate(batches) for name, array in batch.items()})
print(json.dumps([jax.device_count(), len(batches[0]['image'].sharding.device_set), 'tensorflow' in sys.modules]))
"""


def test_split_over_devices_it_gives_the_same_without_tensorflow(tiny_config, tmp_path):
    load_dataset(tiny_config.data, 'val')  # generates it
    root, out = tiny_config.data.root, str(tmp_path / 'out.npz')
    env = os.environ | {'XLA_FLAGS': f'{os.environ["XLA_FLAGS"]} --xla_force_host_platform_device_count=4'}
    command = [sys.executable, '-c', _WORKER, root, out]
    run = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == [4, 4, False]

    examples = Examples(load_cityscapes(root, 'val'))
    options = dict(batch_size=4, augmentation=Augmentation((40, 48), (0.75, 1.5), rotation=5.0), seed=0)
    expected = [*pipeline.train_batches(examples, start_sample=4, num_steps=3, **options),
                *pipeline.eval_batches(examples, batch_size=4)]  # fmt: skip
    with np.load(out) as arrays:
        for i, batch in enumerate(expected):
            for name, array in batch.items():
                np.testing.assert_array_equal(arrays[f'{i}{name}'], array)
