"""Scores are those of one confusion matrix; classes that do not occur and large counts do no harm."""

import json

import numpy as np
import pytest

from atonet_jax.data.labels import IGNORE_LABEL
from atonet_jax.evaluation.metrics import Scores, confusion_matrices, confusion_matrix, image_scores

NAMES = ('road', 'car', 'train')
# 'train' does not occur; 4 of the pixels of 'road' and 'car' are confused.
CONFUSION = np.array([[3, 1, 0], [3, 5, 0], [0, 0, 0]])


def test_confusion_matrix_counts_labelled_pixels_by_true_and_predicted_class():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 19, (2, 9, 11), dtype=np.uint8)
    labels[rng.random(labels.shape) < 0.3] = IGNORE_LABEL
    predictions = rng.integers(0, 19, labels.shape, dtype=np.uint8)
    expected = np.zeros((19, 19), int)
    for true, predicted in zip(labels.ravel(), predictions.ravel()):
        if true != IGNORE_LABEL:
            expected[true, predicted] += 1
    np.testing.assert_array_equal(confusion_matrix(labels, predictions, 19), expected)


def test_scores_of_a_matrix_by_hand():
    scores = Scores.from_confusion(CONFUSION)
    np.testing.assert_allclose(scores.class_iou, [3 / 7, 5 / 9, np.nan])
    np.testing.assert_allclose(scores.class_accuracy, [3 / 4, 5 / 8, np.nan])
    np.testing.assert_allclose(scores.class_frequency, [4 / 12, 8 / 12, 0])
    assert scores.miou == pytest.approx((3 / 7 + 5 / 9) / 2)
    assert scores.mean_accuracy == pytest.approx((3 / 4 + 5 / 8) / 2)
    assert scores.pixel_accuracy == pytest.approx(8 / 12)
    assert scores.frequency_weighted_iou == pytest.approx(4 / 12 * 3 / 7 + 8 / 12 * 5 / 9)


def test_class_that_is_only_predicted_lowers_miou_but_not_mean_accuracy():
    scores = Scores.from_confusion(np.array([[3, 1], [0, 0]]))
    assert scores.class_iou[1] == 0 and np.isnan(scores.class_accuracy[1])
    assert scores.miou == pytest.approx((3 / 4 + 0) / 2)
    assert scores.mean_accuracy == pytest.approx(3 / 4)


def test_counts_beyond_32_bits_score_as_small_ones():
    large, small = Scores.from_confusion(CONFUSION.astype(np.int64) * 2**40), Scores.from_confusion(CONFUSION)
    for name, value in small._asdict().items():
        np.testing.assert_allclose(getattr(large, name), value, err_msg=name)


def test_dict_is_json_with_null_for_absent_classes():
    values = Scores.from_confusion(CONFUSION).to_dict(NAMES)
    assert json.loads(json.dumps(values, allow_nan=False)) == values
    assert set(values) == {'miou', 'pixel_accuracy', 'mean_accuracy', 'frequency_weighted_iou', 'classes'}
    assert values['classes']['car'] == pytest.approx({'iou': 5 / 9, 'accuracy': 5 / 8, 'frequency': 8 / 12})
    assert values['classes']['train'] == {'iou': None, 'accuracy': None, 'frequency': 0}


def test_table_has_a_line_a_class_and_a_dash_for_absent_ones():
    lines = Scores.from_confusion(CONFUSION).table(NAMES).splitlines()
    assert lines[2].split() == ['car', '55.56', '62.50', '66.67']
    assert lines[3].split() == ['train', '-', '-', '0.00']
    assert lines[5].split() == ['mean', '49.21', '68.75']


def test_matrix_without_pixels_scores_nothing():
    scores = Scores.from_confusion(np.zeros((3, 3), np.int64))
    assert np.isnan(scores.miou) and np.isnan(scores.pixel_accuracy)
    assert 'nan' not in scores.table(NAMES)
    json.dumps(scores.to_dict(NAMES), allow_nan=False)


def test_each_image_is_scored_as_a_split_of_its_own():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, (3, 6, 7), dtype=np.uint8)
    labels[rng.random(labels.shape) < 0.3] = IGNORE_LABEL
    labels[0][labels[0] == 4] = 3  # an image without class 4
    predictions = np.where(rng.random(labels.shape) < 0.6, labels % 5, 0).astype(np.uint8)
    confusions = np.asarray(confusion_matrices(labels, predictions, 5))
    np.testing.assert_array_equal(confusions.sum(0), confusion_matrix(labels, predictions, 5))
    miou, accuracy = image_scores(confusions)
    for i, confusion in enumerate(confusions):
        scores = Scores.from_confusion(confusion)
        assert miou[i] == pytest.approx(scores.miou) and accuracy[i] == pytest.approx(scores.pixel_accuracy)


def test_an_image_without_labels_has_no_score():
    miou, accuracy = image_scores(np.zeros((1, 5, 5), np.int32))
    assert np.isnan(miou).all() and np.isnan(accuracy).all()


def test_predicted_void_is_a_miss_of_the_true_class_and_no_class():
    labels = np.array([[0, 0, 1, IGNORE_LABEL]], np.uint8)
    predictions = np.array([[0, 2, 1, 2]], np.uint8)
    confusion = np.asarray(confusion_matrix(labels, predictions, 2, 3))
    np.testing.assert_array_equal(confusion, [[1, 0, 1], [0, 1, 0]])
    scores = Scores.from_confusion(confusion)
    np.testing.assert_allclose(scores.class_iou, [1 / 2, 1])
    assert scores.pixel_accuracy == pytest.approx(2 / 3)
    miou, accuracy = image_scores(confusion[None])
    assert (miou[0], accuracy[0]) == pytest.approx((scores.miou, scores.pixel_accuracy))
