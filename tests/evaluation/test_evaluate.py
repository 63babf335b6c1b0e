"""Scores of a split do not depend on how it is batched, and count every pixel once."""

import dataclasses
import json
import logging
import os
import shutil

import numpy as np
import pytest

from atonet_jax.config import create_network
from atonet_jax.data.batches import Batches
from atonet_jax.data.decode import read_example
from atonet_jax.data.examples import Examples
from atonet_jax.data.labels import IGNORE_LABEL
from atonet_jax.data.sources import load_dataset
from atonet_jax.data.verify import verify
from atonet_jax.errors import InputError
from atonet_jax.evaluation import evaluator, steps
from atonet_jax.evaluation.evaluate import evaluate
from atonet_jax.evaluation.evaluator import Evaluator
from atonet_jax.evaluation.metrics import Scores
from atonet_jax.inference import Segmenter, canvases
from atonet_jax.inference.segmenter import prepared_variables
from atonet_jax.models import create_model, init_variables
from atonet_jax.process.devices import create_mesh
from tests.disks import full_disk


@pytest.fixture(scope='module')
def run(tiny_config):
    """Evaluates fresh variables on the validation split with changed options."""
    model = create_network(tiny_config, 19)
    variables = init_variables(model, seed=1)
    dataset = load_dataset(tiny_config.data, 'val')

    def evaluate_with(**options):
        config = tiny_config.copy_and_resolve_references()
        config.eval.update(options)
        return Evaluator(model, Batches(Examples(dataset), create_mesh()), config.eval).run(variables)

    return evaluate_with


@pytest.fixture(scope='module')
def labels(tiny_config):
    dataset = load_dataset(tiny_config.data, 'val')
    return np.stack([read_example(dataset, i)[1] for i in range(len(dataset))])


def test_a_partial_last_batch_counts_exactly_once(run, labels):
    assert len(labels) % 2 == 1
    one_by_one, in_twos = (run(batch_size=n).confusion for n in (1, 2))
    np.testing.assert_array_equal(in_twos, one_by_one)
    assert in_twos.sum() == np.count_nonzero(labels != IGNORE_LABEL)
    assert in_twos.dtype == np.int64


def test_the_confusion_matrix_agrees_with_the_returned_predictions(run):
    evaluation = run(pictures=5)
    assert [example.index for example in evaluation.examples] == list(range(5))
    counted = np.zeros_like(evaluation.confusion)
    for example in evaluation.examples:
        labelled = example.labels != IGNORE_LABEL
        np.add.at(counted, (example.labels[labelled], example.predictions[labelled]), 1)
    np.testing.assert_array_equal(counted, evaluation.confusion)


def test_what_is_scored_is_what_people_get(tiny_config):
    """The program that inference is prepared for, not that of training."""
    config = tiny_config.copy_and_resolve_references()
    config.eval.pictures = 5
    model = create_network(config, 19)
    variables = init_variables(model, seed=1)
    batches = Batches(Examples(load_dataset(config.data, 'val')), create_mesh())
    scorer, given = Evaluator(model, batches, config.eval), []
    step = scorer._step
    scorer._step = lambda variables, *batch: given.append(variables) or step(variables, *batch)
    segment = Segmenter(model, variables)
    for example in scorer.run(variables).examples:
        np.testing.assert_array_equal(example.predictions, segment(example.image[None])[0])
    assert 'batch_stats' in variables and given and not any('batch_stats' in each for each in given)


def test_images_on_a_canvas_have_the_scores_and_predictions_of_their_own(run, monkeypatch):
    options = {'center_crop': (50, 101), 'pictures': 5, 'batch_size': 2}
    alone = run(**options)
    monkeypatch.setattr(canvases, '_ON_CPUS', canvases._Costs(own=1e6, shared=0.0))
    monkeypatch.setattr(steps, '_own_programs', None)
    shared = run(**options)
    assert np.abs(shared.confusion - alone.confusion).sum() <= 1e-3 * alone.confusion.sum()
    assert shared.confusion.sum() == alone.confusion.sum()
    for of_one, of_own in zip(shared.examples, alone.examples):
        assert of_one.predictions.shape == (50, 101)
        assert np.mean(of_one.predictions != of_own.predictions) <= 1e-3


def test_small_splits_take_programs_that_compile_fast(tiny_config, labels, monkeypatch):
    """Without Winograd's algorithm, unless the images of a size have pixels enough."""
    model = create_network(tiny_config, 19)
    variables = init_variables(model, seed=1)
    dataset = dataclasses.replace(load_dataset(tiny_config.data, 'val'), sizes=len(labels) * (labels.shape[1:],))
    asked = []

    def prepared(model, variables, mesh, winograd):
        asked.append(winograd)
        return prepared_variables(model, variables, mesh, winograd)

    monkeypatch.setattr(evaluator, 'prepared_variables', prepared)
    for least in (labels.size + 1, labels.size):
        monkeypatch.setattr('atonet_jax.inference.views._WORTH_WINOGRAD', least)
        Evaluator(model, Batches(Examples(dataset), create_mesh()), tiny_config.eval).run(variables)
    assert asked == [False, True]


def test_every_image_has_its_own_scores_and_padding_has_none(run):
    evaluation = run(pictures=5, batch_size=2)
    assert [score.index for score in evaluation.per_image] == list(range(5))
    for score, example in zip(evaluation.per_image, evaluation.examples):
        confusion = np.zeros_like(evaluation.confusion)
        labelled = example.labels != IGNORE_LABEL
        np.add.at(confusion, (example.labels[labelled], example.predictions[labelled]), 1)
        alone = Scores.from_confusion(confusion)
        assert (score.miou, score.pixel_accuracy) == pytest.approx((alone.miou, alone.pixel_accuracy))
        assert score.path.endswith('.png')


@pytest.mark.parametrize(('pictures', 'num_best', 'num_worst'), [(0, 0, 0), (1, 1, 1), (2, 1, 1), (3, 2, 2), (8, 3, 2)])
def test_the_best_and_the_worst_images_are_kept_and_no_others(run, pictures, num_best, num_worst):
    evaluation = run(pictures=pictures)
    ranked = sorted(evaluation.per_image, key=lambda score: -score.miou)
    assert [example.index for example in evaluation.best] == [score.index for score in ranked[:num_best]]
    worst = [score.index for score in sorted(evaluation.per_image, key=lambda score: score.miou)[:num_worst]]
    assert [example.index for example in evaluation.worst] == worst
    assert len(evaluation.examples) == min(5, pictures)


def test_a_kept_example_is_the_image_that_has_its_score(run, labels):
    evaluation = run(pictures=2)
    for example in (*evaluation.best, *evaluation.worst):
        np.testing.assert_array_equal(example.labels, labels[example.index])
        assert example.image.base is None, 'it does not keep its batch in memory'


def test_large_images_are_thinned_out_before_they_are_kept(run, labels, monkeypatch):
    whole = run(pictures=1)
    monkeypatch.setattr(evaluator, '_LONGEST_SIDE', 64)  # of images of 64 x 128
    evaluation = run(pictures=1)
    np.testing.assert_array_equal(evaluation.confusion, whole.confusion)
    (example,), (of_whole,) = evaluation.examples, whole.examples
    for part, all_of_it in zip(example[1:], of_whole[1:], strict=True):
        np.testing.assert_array_equal(part, all_of_it[::2, ::2])
        assert part.base is None


def test_windows_are_scored_alike_in_any_batch(run):
    one_by_one, in_threes = (run(window=(40, 64), batch_size=n).confusion for n in (1, 3))
    np.testing.assert_array_equal(in_threes, one_by_one)
    assert (one_by_one != run().confusion).any()


def test_a_centre_crop_scores_the_centre_alone(run, labels):
    evaluation = run(center_crop=(40, 64))
    centre = labels[:, 12:52, 32:96]
    assert evaluation.confusion.sum() == np.count_nonzero(centre != IGNORE_LABEL)
    np.testing.assert_array_equal(evaluation.examples[0].labels, centre[0])


def test_a_centre_crop_larger_than_the_images_is_refused(run):
    with pytest.raises(InputError, match=r'config\.eval\.center_crop=\(500, 500\) is larger'):
        run(center_crop=(500, 500))


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'center_crop': (500, 500)}, r'center_crop=\(500, 500\) is larger than an image of 64x128'),
        ({'height': 16}, 'images of 16x32: ICNet takes heights and widths from 18'),
        ({'scales': (1.0, 0.25)}, 'images of 16x32: ICNet takes'),
        ({'window': (16, 64), 'scales': (2.0,)}, 'images of 16x64: ICNet takes'),
    ],
)
def test_what_images_are_too_small_for_is_refused_before_anything_is_read(tiny_config, options, message):
    examples = Examples(verify(load_dataset(tiny_config.data, 'val')))
    settings = tiny_config.eval.copy_and_resolve_references()
    settings.update(options)
    with pytest.raises(InputError, match=message):
        Evaluator(create_model('icnet', 19), Batches(examples, create_mesh()), settings)


@pytest.mark.parametrize(
    ('count', 'options', 'said'),
    [
        (4, {'flip': True}, True),
        (4, {}, False),  # on one canvas
        (3, {'flip': True}, False),
        (4, {'flip': True, 'window': (64, 64)}, False),
        (4, {'flip': True, 'center_crop': (64, 64)}, False),
    ],
)
def test_images_of_many_sizes_are_told_of(tiny_config, caplog, count, options, said):
    """Each compiles a program of its own."""
    dataset = load_dataset(tiny_config.data, 'val')
    dataset = dataclasses.replace(dataset, sizes=tuple((64, 64 + 64 * (i % count)) for i in range(len(dataset))))
    settings = tiny_config.eval.copy_and_resolve_references()
    settings.update(options)
    with caplog.at_level(logging.INFO):
        Evaluator(create_network(tiny_config, 19), Batches(Examples(dataset), create_mesh()), settings)
    assert ('the images of synthetic val have 4 sizes: 4 programs are compiled' in caplog.text) == said


@pytest.mark.parametrize(
    'options', [{'window': (40, 64)}, {'scales': (0.75, 1.0), 'flip': True}], ids=['sliding', 'multi-scale and flip']
)
def test_other_ways_to_look_count_every_pixel_once(run, labels, options):
    assert run(**options).confusion.sum() == np.count_nonzero(labels != IGNORE_LABEL)


def test_a_split_without_labels_is_refused(tiny_config, run):
    dataset = load_dataset(tiny_config.data, 'val')
    unlabelled = type(dataset)(dataset.name, 'test', dataset.class_table, dataset.image_paths, label_paths=None)
    with pytest.raises(InputError, match='has no labels'):
        Batches(Examples(unlabelled), create_mesh())


def test_a_workdir_that_cannot_be_written_is_refused_before_anything_is_computed(tiny_config, finished, tmp_path):
    shutil.copytree(finished, tmp_path / 'run')
    shutil.rmtree(tmp_path / 'run' / 'evaluation', ignore_errors=True)
    (tmp_path / 'run' / 'evaluation').touch()  # in the way; who runs the tests may be allowed everything
    with pytest.raises(InputError, match='run/evaluation: cannot be written .*; choose another --config.eval.output'):
        evaluate(tiny_config, str(tmp_path / 'run'))


def test_on_a_full_disk_the_scores_are_printed_and_nothing_is_half_written(tiny_config, finished, tmp_path, capsys):
    workdir = shutil.copytree(finished, tmp_path / 'run', ignore=shutil.ignore_patterns('evaluation'))
    message = r'evaluation: cannot be written \(File too large\); free space'
    with full_disk(100), pytest.raises(InputError, match=message):
        evaluate(tiny_config, str(workdir))
    assert 'pixel accuracy' in capsys.readouterr().out
    assert list((workdir / 'evaluation').iterdir()) == []


def test_a_run_in_a_read_only_folder_is_evaluated_into_another(tiny_config, finished, tmp_path, monkeypatch):
    workdir = shutil.copytree(finished, tmp_path / 'run')
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob('*')}
    config = tiny_config.copy_and_resolve_references()
    config.eval.update(output=str(tmp_path / 'elsewhere'), pictures=1)
    (tmp_path / 'elsewhere').mkdir()
    for name in ('example_0007.png', 'example_0008.png'):
        (tmp_path / 'elsewhere' / name).touch()
    earlier = {'pictures': ['example_0007.png', '../classes.csv']}
    (tmp_path / 'elsewhere' / 'scores.json').write_text(json.dumps(earlier))
    (tmp_path / 'classes.csv').touch()
    monkeypatch.setattr(os, 'access', lambda path, mode: not str(path).startswith(str(workdir)))
    evaluate(config, str(workdir))
    assert {path: path.stat().st_mtime_ns for path in workdir.rglob('*')} == before
    written = {path.name for path in (tmp_path / 'elsewhere').iterdir()}
    assert {'scores.json', 'images.csv', 'report.html', 'example_0000.png'} <= written
    assert 'example_0007.png' not in written, 'it is of an earlier evaluation'
    assert 'example_0008.png' in written and (tmp_path / 'classes.csv').exists(), 'of the user'
    assert json.loads((tmp_path / 'elsewhere' / 'scores.json').read_text())['pictures'] == ['example_0000.png']


def test_data_of_renamed_classes_is_refused_with_the_names(tiny_config, finished, tmp_path):
    workdir = shutil.copytree(finished, tmp_path / 'run')
    table = json.loads((workdir / 'class_table.json').read_text())
    table['class_names'][3] = 'hedge'
    (workdir / 'class_table.json').write_text(json.dumps(table))
    with pytest.raises(InputError, match="other classes than the network predicts .class 3 was 'hedge', is 'wall'."):
        evaluate(tiny_config, str(workdir))
