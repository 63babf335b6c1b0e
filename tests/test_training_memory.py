"""The benchmark of training's memory runs with what training itself needs, and measures what it says."""

import subprocess
import sys
from functools import partial

import jax
import numpy as np

from atonet_jax.models import create_model
from benchmarks import training_memory


def test_it_imports_neither_tensorflow_nor_ml_collections(repository):
    code = (
        'import sys, benchmarks.training_memory; print({"tensorflow", "ml_collections"} & {m.split(".")[0] for m in '
        'sys.modules})'
    )
    process = subprocess.run([sys.executable, '-c', code], cwd=repository, capture_output=True, text=True, check=True)
    assert process.stdout.strip() == 'set()'


def test_both_losses_and_their_gradients_are_the_same():
    labels = training_memory.noise_labels((16, 32), 2)
    logits = np.random.default_rng(1).normal(size=(2, 4, 8, training_memory.NUM_CLASSES)).astype(np.float32)
    plain, ours = (
        jax.jit(jax.value_and_grad(loss))(logits, labels)
        for loss in (training_memory.plain_loss, training_memory.our_loss)
    )
    np.testing.assert_allclose(ours[0], plain[0], rtol=1e-5)
    np.testing.assert_allclose(ours[1], plain[1], atol=1e-5 * abs(plain[1]).max())


def test_remat_lowers_the_memory_that_xla_plans(monkeypatch, capsys):
    monkeypatch.setattr(training_memory, 'create_model', partial(create_model, width=16, backbone_width=8))
    training_memory.compare_steps([(128, 128)], [1], ['float32'])
    header, _, row = capsys.readouterr().out.splitlines()
    assert row.startswith('| 128x128 | 1 | float32 | ') and row.count('|') == header.count('|')
    plain, recomputed = (
        training_memory.megabytes(training_memory.TrainingStep((128, 128), 1, 'float32', remat).compile(runs=False))
        for remat in (False, True)
    )
    assert recomputed[1] < 0.6 * plain[1] and recomputed[0] - recomputed[1] == plain[0] - plain[1]
