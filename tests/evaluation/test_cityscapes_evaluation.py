"""Confusion matrix and IoU are those of the official cityscapesScripts on the same PNG files."""

import copy

import jax
import numpy as np
import PIL.Image
import pytest
from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as official

from atonet_jax.data.labels import CITYSCAPES, IGNORE_LABEL
from atonet_jax.evaluation.metrics import Scores, confusion_matrix

SIZE = (32, 48)
CLASS_RAW_IDS = CITYSCAPES.train_to_raw[: CITYSCAPES.num_classes]
TRAIN, RIDER, BUS = 31, 25, 28
ABSENT, ONLY_LABELLED, ONLY_PREDICTED = (CITYSCAPES.raw_to_train[raw_id] for raw_id in (TRAIN, RIDER, BUS))


@pytest.fixture(scope='module')
def pairs(tmp_path_factory):
    """Paths of four label files with every raw id but two, and of predictions of classes, 70 % of them right."""
    folder = tmp_path_factory.mktemp('evaluation')
    rng = np.random.default_rng(0)
    label_ids = np.setdiff1d(np.arange(34), [TRAIN, BUS])
    predicted_ids = np.setdiff1d(CLASS_RAW_IDS, [TRAIN, RIDER])
    paths = []
    for i in range(4):
        labels = rng.choice(label_ids, SIZE)
        guesses = rng.choice(predicted_ids, SIZE)
        predictions = np.where(np.isin(labels, predicted_ids) & (rng.random(SIZE) < 0.7), labels, guesses)
        label_path = str(folder / f'city_{i:06}_000019_gtFine_labelIds.png')
        prediction_path = str(folder / f'city_{i:06}_000019_prediction.png')
        for path, array in ((label_path, labels), (prediction_path, predictions)):
            PIL.Image.fromarray(array.astype(np.uint8)).save(path)
        paths.append((label_path, prediction_path))
    return paths


@pytest.fixture(scope='module')
def official_result(pairs):
    args = copy.copy(official.args)
    args.quiet, args.JSONOutput, args.evalInstLevelScore = True, False, False
    label_paths, prediction_paths = zip(*pairs)
    return official.evaluateImgLists(prediction_paths, label_paths, args)


@pytest.fixture(scope='module')
def confusion(pairs):
    count = jax.jit(confusion_matrix, static_argnums=2)
    total = np.zeros((CITYSCAPES.num_classes,) * 2, np.int64)
    for paths in pairs:
        labels, predictions = (CITYSCAPES.raw_to_train[np.asarray(PIL.Image.open(path))] for path in paths)
        total += np.asarray(count(labels, predictions, CITYSCAPES.num_classes))
    return total


def test_confusion_counts_are_the_official_ones_of_the_19_classes(confusion, official_result):
    # Theirs is by raw id and also counts the pixels of ignored labels, in rows that their IoU leaves out. A prediction
    # of an ignored label would be a miss there; our networks predict none.
    official_confusion = np.array(official_result['confMatrix'])
    np.testing.assert_array_equal(confusion, official_confusion[np.ix_(CLASS_RAW_IDS, CLASS_RAW_IDS)])
    ignored = CITYSCAPES.raw_to_train[: len(official_confusion)] == IGNORE_LABEL
    assert official_confusion[ignored].sum(axis=1).all() and not official_confusion[:, ignored].any()


def test_iou_of_every_class_and_its_mean_are_the_official_ones(confusion, official_result):
    scores = Scores.from_confusion(confusion)
    official_iou = [official_result['classScores'][name] for name in CITYSCAPES.class_names]
    np.testing.assert_allclose(scores.class_iou, official_iou, rtol=0, atol=1e-9)
    assert scores.miou == pytest.approx(official_result['averageScoreClasses'], rel=0, abs=1e-9)
    # Absent from labels and predictions alike: no score. Present in one of them: 0, and part of the mean.
    assert np.isnan(scores.class_iou[ABSENT])
    assert scores.class_iou[ONLY_LABELLED] == scores.class_iou[ONLY_PREDICTED] == 0
    assert 0.2 < scores.miou < 0.9
