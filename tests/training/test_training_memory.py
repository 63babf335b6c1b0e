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


def test_its_steps_are_lowered_as_training_takes_them_and_remat_recomputes(monkeypatch):
    monkeypatch.setattr(training_memory, 'create_model', partial(create_model, width=16, backbone_width=8))
    programs = [training_memory.TrainingStep((64, 64), 1, 'bfloat16', remat).lower() for remat in (False, True)]
    barriers = [program.as_text().count('stablehlo.optimization_barrier') for program in programs]
    assert barriers[0] <= 4 < barriers[1], 'without remat those of the loss alone'


def test_memory_that_is_reused_counts_once():
    donating = jax.jit(lambda x: x + 1, donate_argnums=0)
    numbers = jax.ShapeDtypeStruct((1_000_000,), np.float32)
    assert training_memory.megabytes(donating.lower(numbers).compile()) == (4, 0)
    assert training_memory.megabytes(jax.jit(lambda x: x + 1).lower(numbers).compile()) == (8, 0)
