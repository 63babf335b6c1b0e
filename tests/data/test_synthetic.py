"""Tests of the synthetic scenes: what they promise to those who train and test on them."""

import concurrent.futures
import functools
import os
import pathlib
import shutil

import numpy as np
import pytest
from PIL import Image

from atonet_jax.data import synthetic
from atonet_jax.data.labels import CITYSCAPES, IGNORE_LABEL, UNKNOWN_LABEL

# Share of the counted pixels of 60 scenes, per class: what the README's numbers were made with, with some slack.
FREQUENCY_RANGES = {
    'road': (0.22, 0.42), 'sidewalk': (0.03, 0.10), 'building': (0.12, 0.30), 'wall': (0.007, 0.035),
    'fence': (0.007, 0.04), 'pole': (0.01, 0.035), 'traffic light': (0.002, 0.012), 'traffic sign': (0.003, 0.018),
    'vegetation': (0.07, 0.20), 'terrain': (0.007, 0.035), 'sky': (0.07, 0.20), 'person': (0.005, 0.025),
    'rider': (0.001, 0.008), 'car': (0.025, 0.08), 'truck': (0.002, 0.025), 'bus': (0.002, 0.025),
    'train': (0.002, 0.03), 'motorcycle': (0.001, 0.01), 'bicycle': (0.003, 0.016),
}  # fmt: skip
DATASET = {'splits': {'train': 3, 'val': 2}, 'height': 32, 'width': 64, 'seed': 5, 'workers': 1}


@functools.cache
def scenes(count: int = 60) -> tuple[np.ndarray, np.ndarray]:
    images, labels = zip(*(synthetic.render_scene(11, index, 128, 256) for index in range(count)), strict=True)
    return np.stack(images), np.stack(labels)


@pytest.fixture
def in_process(monkeypatch):
    """Renders in this process: starting workers costs more than these few scenes."""

    class Pool:
        def __init__(self, *args, **kwargs):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def map(self, function, jobs, chunksize):
            return map(function, jobs)

    monkeypatch.setattr(concurrent.futures, 'ProcessPoolExecutor', Pool)


def files_of(root) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob('*') if path.is_file()}


def test_scene_depends_on_its_arguments_alone():
    image, labels = synthetic.render_scene(3, 4, 64, 128)
    np.random.default_rng(0).random(5)
    again, labels_again = synthetic.render_scene(3, 4, 64, 128)
    np.testing.assert_array_equal(image, again)
    np.testing.assert_array_equal(labels, labels_again)
    for seed, index in ((4, 3), (3, 5), (4, 4)):
        assert (synthetic.render_scene(seed, index, 64, 128)[0] != image).mean() > 0.5


@pytest.mark.parametrize('size', [(32, 32), (33, 65), (47, 101), (64, 300), (90, 50)])
def test_any_size_renders(size):
    image, labels = synthetic.render_scene(0, 1, *size)
    assert image.shape == (*size, 3) and image.dtype == np.uint8
    assert labels.shape == size and labels.dtype == np.uint8


@pytest.mark.parametrize('arguments', [(0, 0, 8, 64), (-1, 0, 64, 128), (0, -1, 64, 128)])
def test_bad_arguments_are_named(arguments):
    with pytest.raises(ValueError, match=r'height=8|seed=-1|index=-1'):
        synthetic.render_scene(*arguments)


def test_every_label_is_a_cityscapes_id():
    known = CITYSCAPES.raw_to_train != UNKNOWN_LABEL
    _, labels = scenes()
    assert known[np.unique(labels)].all()


def test_class_frequencies_stay_in_range():
    _, labels = scenes()
    counts = np.bincount(CITYSCAPES.raw_to_train[labels].ravel(), minlength=256)
    assert counts[IGNORE_LABEL] < 0.03 * counts.sum()
    shares = counts[: CITYSCAPES.num_classes] / counts[: CITYSCAPES.num_classes].sum()
    wrong = {
        name: float(share)
        for name, share in zip(CITYSCAPES.class_names, shares, strict=True)
        if not FREQUENCY_RANGES[name][0] <= share <= FREQUENCY_RANGES[name][1]
    }
    assert not wrong


def test_images_use_their_range_and_follow_the_labels():
    images, labels = scenes()
    assert images.reshape(len(images), -1).std(1).min() > 10
    # Neighbours that differ in class differ more in colour than neighbours of one class.
    steps = np.abs(np.diff(images.astype(np.int32), axis=2)).sum(-1)
    edges = np.diff(labels.astype(np.int32), axis=2) != 0
    assert steps[edges].mean() > 2 * steps[~edges].mean()


def test_same_scene_at_twice_the_size():
    for index in range(4):
        small_image, small = synthetic.render_scene(2, index, 96, 192)
        large_image, large = synthetic.render_scene(2, index, 192, 384)
        assert (large[::2, ::2] == small).mean() > 0.93
        halved = np.asarray(Image.fromarray(large_image).resize((192, 96), Image.Resampling.BOX)).astype(np.int32)
        assert np.abs(halved - small_image).mean() < 20


def test_dataset_layout_and_content(tmp_path, in_process):
    synthetic.write_dataset(tmp_path / 'data', **DATASET)
    stems = [f'train/synthetown/synthetown_000000_{k:06d}' for k in range(3)]
    stems += [f'val/synthetown/synthetown_000001_{k:06d}' for k in range(2)]
    expected = {'synthetic.json'}
    expected |= {f'leftImg8bit/{stem}_leftImg8bit.png' for stem in stems}
    expected |= {f'gtFine/{stem}_gtFine_labelIds.png' for stem in stems}
    assert set(files_of(tmp_path / 'data')) == expected
    for index, stem in enumerate(stems):
        image, labels = synthetic.render_scene(5, index, 32, 64)
        stored = np.asarray(Image.open(tmp_path / 'data' / f'leftImg8bit/{stem}_leftImg8bit.png'))
        np.testing.assert_array_equal(stored, image)
        stored = np.asarray(Image.open(tmp_path / 'data' / f'gtFine/{stem}_gtFine_labelIds.png'))
        np.testing.assert_array_equal(stored, labels)


def test_splits_share_no_scene(tmp_path, in_process):
    synthetic.write_dataset(tmp_path, **DATASET)
    images = [content for name, content in files_of(tmp_path).items() if name.startswith('leftImg8bit')]
    assert len(set(images)) == len(images) == 5


def test_complete_dataset_is_left_alone(tmp_path, in_process, monkeypatch):
    synthetic.write_dataset(tmp_path, **DATASET)
    monkeypatch.setattr(synthetic.write, 'render_scene', None)
    synthetic.write_dataset(tmp_path, **DATASET)


def test_interrupted_dataset_is_completed(tmp_path, in_process, monkeypatch):
    synthetic.write_dataset(tmp_path / 'whole', **DATASET)
    replace, moved = os.replace, []

    def fail_after_six(source, target):
        if len(moved) == 6:
            raise KeyboardInterrupt
        moved.append(target)
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, 'replace', fail_after_six)
        with pytest.raises(KeyboardInterrupt):
            synthetic.write_dataset(tmp_path / 'broken', **DATASET)
    assert not (tmp_path / 'broken/synthetic.json').exists()
    for path in (tmp_path / 'broken').rglob('*.png'):
        os.truncate(path, 0)  # as a power failure leaves it
    synthetic.write_dataset(tmp_path / 'broken', **DATASET)
    assert files_of(tmp_path / 'broken') == files_of(tmp_path / 'whole')


def test_another_process_that_writes_the_same_may_end_first(tmp_path, in_process, monkeypatch):
    def ended_elsewhere(*arguments):
        yield from watched(*arguments)
        os.replace(tmp_path / 'synthetic.json.part', tmp_path / 'synthetic.json')

    watched = synthetic.write.watched
    monkeypatch.setattr(synthetic.write, 'watched', ended_elsewhere)
    synthetic.write_dataset(tmp_path, **DATASET)
    assert (tmp_path / 'synthetic.json').exists() and not list(tmp_path.rglob('.*'))


def test_another_process_may_begin_at_the_same_time(tmp_path, in_process, monkeypatch):
    """Its first file is still hidden at the first look; at the second it has begun."""
    whole, root = tmp_path / 'whole', tmp_path / 'root'
    synthetic.write_dataset(whole, **DATASET)
    root.mkdir()
    (root / '.1-2-3.part').touch()
    synthetic.write_dataset(root, **DATASET)
    shutil.rmtree(root)

    def begun_elsewhere(folder):
        if folder == root:
            (root / 'leftImg8bit').mkdir(exist_ok=True)
            shutil.copy(whole / 'synthetic.json', root / 'synthetic.json.part')
        return iterdir(folder)

    iterdir = pathlib.Path.iterdir
    root.mkdir()
    monkeypatch.setattr(pathlib.Path, 'iterdir', begun_elsewhere)
    synthetic.write_dataset(root, **DATASET)
    assert files_of(root) == files_of(whole)


@pytest.mark.parametrize('change', [{'seed': 6}, {'height': 48}, {'splits': {'train': 4, 'val': 2}}])
def test_folder_with_other_parameters_is_refused(tmp_path, in_process, change):
    synthetic.write_dataset(tmp_path, **DATASET)
    before = files_of(tmp_path)
    with pytest.raises(ValueError, match=r'synthetic\.json: .*choose another folder or delete'):
        synthetic.write_dataset(tmp_path, **(DATASET | change))
    assert files_of(tmp_path) == before


def test_folder_with_foreign_files_is_refused(tmp_path, in_process):
    (tmp_path / 'thesis.tex').write_text('mine')
    with pytest.raises(ValueError, match='no synthetic data set; choose an empty or new folder'):
        synthetic.write_dataset(tmp_path, **DATASET)
    assert files_of(tmp_path) == {'thesis.tex': b'mine'}


def test_worker_processes_write_the_same_files(tmp_path, in_process, monkeypatch):
    few = DATASET | {'splits': {'train': 2}}
    synthetic.write_dataset(tmp_path / 'here', **few)
    monkeypatch.undo()
    synthetic.write_dataset(tmp_path / 'workers', **few)
    assert files_of(tmp_path / 'workers') == files_of(tmp_path / 'here')
