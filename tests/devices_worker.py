"""Ten steps and an evaluation on the devices of one or several processes; started by test_distributed.py.

    python -m tests.devices_worker OUT.npz START.npz SCENES [coordinator num_processes process_id] < options as JSON
"""

import json
import sys

import jax
import numpy as np

from atonet_jax.config import default_config
from atonet_jax.data.augmentation import Augmentation
from atonet_jax.data.cityscapes import load_cityscapes
from atonet_jax.data.examples import Examples
from atonet_jax.data.pipeline import prefetch_to_device, train_batches
from atonet_jax.evaluation.evaluate import Evaluator
from atonet_jax.models import create_model, network
from atonet_jax.process.devices import create_mesh, split_by_batch
from atonet_jax.process.distributed import initialize, is_main_process
from atonet_jax.training.optimizer import create_optimizer
from atonet_jax.training.step import Objective, compile_train_step, create_state

BATCH_SIZE = 8
AUGMENTATION = Augmentation((64, 64), (0.75, 1.25), brightness=0.3, erasing=0.5, rotation=5.0)


def tiny_network():
    return create_model('atonet', 19, width=16, backbone_width=8)


def run(scenes, variables, learning_rate, num_steps, seed=0, accumulation=1, **_):
    """Losses, variables and a confusion matrix after so many steps on all devices."""
    mesh = create_mesh()
    model = tiny_network()
    rates = {group: lambda step: learning_rate for group in ('backbone', 'rest')}
    decays = {'backbone': 1e-5, 'rest': 1e-4}
    optimizer = create_optimizer('sgd', rates, network(model), momentum=0.9, weight_decays=decays)
    state = create_state(variables, optimizer, averaging=False, mesh=mesh)
    step_fn = compile_train_step(
        mesh,
        objective=Objective.of(model),
        optimizer=optimizer,
        learning_rates=rates,
        augmentation=AUGMENTATION,
        seed=seed,
        ema_decay=0.0,
        accumulation=accumulation,
    )
    batches = train_batches(
        Examples(load_cityscapes(scenes, 'train')),
        batch_size=BATCH_SIZE,
        augmentation=AUGMENTATION,
        seed=seed,
        start_step=0,
        num_steps=num_steps,
        shard_index=jax.process_index(),
        num_shards=jax.process_count(),
    )
    losses = []
    for batch in prefetch_to_device(batches, split_by_batch(mesh)):
        state, metrics = step_fn(state, batch)
        losses.append(float(metrics['loss']))
    options = default_config().eval
    options.batch_size = BATCH_SIZE
    # Of the starting variables: a rounding error in trained ones may turn a pixel.
    confusion = Evaluator(model, Examples(load_cityscapes(scenes, 'val')), options, mesh).run(variables).confusion
    return np.array(losses), jax.tree.map(np.asarray, state.variables), confusion


def main():
    out, start, scenes, *address = sys.argv[1:]
    if address:
        initialize(address[0], *map(int, address[1:]))
    with np.load(start) as file:
        leaves = [file[name] for name in sorted(file.files)]
    shapes = jax.eval_shape(lambda: tiny_network().init(jax.random.key(0), np.zeros((1, 64, 64, 3)), train=True))
    variables = jax.tree.unflatten(jax.tree.structure(shapes), leaves)
    losses, variables, confusion = run(scenes, variables, **json.load(sys.stdin))
    if is_main_process():
        arrays = {f'{i:03}': array for i, array in enumerate(jax.tree.leaves(variables))}
        np.savez(out, losses=losses, confusion=confusion, devices=jax.device_count(), **arrays)


if __name__ == '__main__':
    main()
