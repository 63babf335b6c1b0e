"""Training steps and an evaluation on some devices of one or several processes; started by test_distributed.py.

    python -m tests.devices_worker OUT.npz START.npz SCENES [coordinator num_processes process_id] < jobs as JSON

START.npz holds the variables that all jobs begin with; where it is missing, it is made. OUT.npz holds arrays under
<job>/<name>.
"""

import json
import os
import sys
import zlib
from contextlib import ExitStack

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh

from atonet_jax.benchmark.benchmark import benchmark
from atonet_jax.config import default_config
from atonet_jax.data.augmentation import Augmentation
from atonet_jax.data.batches import Batches
from atonet_jax.data.cityscapes import load_cityscapes
from atonet_jax.data.dataset import SegmentationDataset
from atonet_jax.data.device_cache import DeviceCache
from atonet_jax.data.examples import Examples
from atonet_jax.data.labels import CITYSCAPES
from atonet_jax.data.pipeline import eval_batches, prefetch_to_device, train_batches
from atonet_jax.errors import InputError
from atonet_jax.evaluation.evaluator import Evaluator
from atonet_jax.inference.segmenter import Segmenter
from atonet_jax.models import create_model, init_variables
from atonet_jax.process.devices import create_mesh, split_by_batch
from atonet_jax.process.distributed import in_main_process, initialize, is_main_process, processes_on_this_host
from atonet_jax.runs.workdir import lock
from atonet_jax.training.optimizer import RATE_GROUPS, Optimizer
from atonet_jax.training.step import Objective, StepSchedule, compile_train_step, create_state

BATCH_SIZE = 8
AUGMENTATION = Augmentation((64, 64), (0.75, 1.25), brightness=0.3, erasing=0.5, rotation=5.0)


def tiny_network():
    return create_model('segnet_basic', 19, width=4)  # of few layers, which take long to compile for eight devices


SETTLING_STEPS = 24  # from fresh weights a rounding error grows to per cents within a few steps


def learning_rate(step):
    """Small steps: where rounding moves an activation over ReLU's kink, gradients part by what one pixel counts."""
    return 0.02 if step < 0 else 0.0005


def first_devices(count):
    """A mesh of so many devices, or of all of them."""
    if count is None:
        return create_mesh()
    return Mesh(np.array(jax.devices()[:count]), ('data',), axis_types=(AxisType.Auto,))


def train(scenes, variables, mesh, num_steps, seed, accumulation=1, first_step=0):
    """Losses and variables after so many steps. `first_step` is what the learning rate takes the first one for."""
    model = tiny_network()
    schedule = StepSchedule(dict.fromkeys(RATE_GROUPS, learning_rate), {'backbone': 1e-5, 'rest': 1e-4})
    optimizer = Optimizer('sgd', model, momentum=0.9)
    state = create_state(variables, optimizer, averaging=False, mesh=mesh)
    step_fn = compile_train_step(
        mesh,
        objective=Objective.of(model),
        optimizer=optimizer,
        augmentation=AUGMENTATION,
        accumulation=accumulation,
    )
    batches = train_batches(
        Examples(load_cityscapes(scenes, 'train')),
        batch_size=BATCH_SIZE,
        augmentation=AUGMENTATION,
        seed=seed,
        start_sample=0,
        num_steps=num_steps,
        shard_index=jax.process_index(),
        num_shards=jax.process_count(),
    )
    losses = []
    for step, batch in enumerate(prefetch_to_device(batches, split_by_batch(mesh)), first_step):
        state, metrics = step_fn(state, batch, schedule.at(step))
        losses.append(float(metrics['loss']))
    return np.array(losses), jax.tree.map(np.asarray, state.variables)


def run(scenes, start, num_steps, devices=None, accumulation=1):
    """{name: array}: losses, variables, and a confusion matrix of the starting variables."""
    mesh = first_devices(devices)
    losses, variables = train(scenes, start, mesh, num_steps, seed=0, accumulation=accumulation)
    found = {f'{i:03}': array for i, array in enumerate(jax.tree.leaves(variables))}
    found |= {'losses': losses, 'devices': np.array(mesh.size)}
    if accumulation == 1:
        options = default_config().eval
        options.batch_size = 3  # no multiple of the devices: evaluation makes it up
        # Of the starting variables: a rounding error in trained ones may turn a pixel.
        evaluator = Evaluator(tiny_network(), Batches(Examples(load_cityscapes(scenes, 'val')), mesh), options)
        found['confusion'] = evaluator.run(start).confusion
    return found


def segment(images):
    """{name: array}: labels of as many images as there are devices and of one more, and the shapes on each device;
    labels of images that lie on the first device."""
    segmenter = Segmenter(tiny_network(), init_variables(tiny_network(), 0))
    found = {}
    for name, batch in {'even': images[:-1], 'odd': images}.items():
        labels = segmenter(batch)
        found[name] = np.asarray(labels)
        found[f'{name}_shards'] = np.array([shard.data.shape for shard in labels.addressable_shards])
    found['of one device'] = np.asarray(segmenter(jax.device_put(images[:-1], jax.devices()[0])))
    return found


def other_modes(folder):
    """{'devices': of a benchmark} with a training batch that they could not share."""
    config = default_config('segnet_basic')
    config.model.width = 4
    config.train.batch_size = 3
    config.benchmark.update(sizes=(64, 64), rounds=1, warmup=0)
    return {'devices': np.array(benchmark(config, folder)['environment']['devices'])}


def decide(locked):
    """{'codes': [processes, 2]}, checksums of what each process hears of a decision, and of why one could not be."""

    def told(decision):
        try:
            return in_main_process(decision)
        except InputError as error:
            return str(error)

    with ExitStack() as held:
        texts = told(lambda: f'ö {jax.process_index()}'), told(lambda: held.enter_context(lock(locked)))
    return {'codes': multihost_utils.process_allgather(np.array([zlib.crc32(t.encode()) for t in texts], np.uint32))}


def gather():
    """{'here': [processes], 'code': [processes]}: how many processes each finds on this host, and a checksum of what it
    knows to be skipped after each process has skipped an image of its own."""
    paths = tuple(f'{i}.png' for i in range(3))
    examples = Examples(SegmentationDataset('missing', 'val', CITYSCAPES, paths, paths), on_corrupt='skip')
    examples.read(jax.process_index())
    examples.check(jax.process_index())
    examples.gather_skipped()
    skipped = ' '.join(f'{i} {reason}' for i, reason in sorted(examples.skipped.items()))
    found = {'here': processes_on_this_host(), 'code': zlib.crc32(skipped.encode())}
    return {name: multihost_utils.process_allgather(np.uint32(number)) for name, number in found.items()}


def cached(scenes):
    """{'equal': [processes]}: whether a process's part of the device cache's batches is that of the host pipeline."""
    mesh, shard = create_mesh(), {'shard_index': jax.process_index(), 'num_shards': jax.process_count()}
    examples = Examples(load_cityscapes(scenes, 'val'))
    cache = DeviceCache(examples, mesh)
    options = dict(batch_size=BATCH_SIZE, augmentation=AUGMENTATION, seed=0, start_sample=3, num_steps=3)
    ours = [*cache.train_batches(**options), *cache.eval_batches(BATCH_SIZE)]
    host = [*train_batches(examples, **options, **shard), *eval_batches(examples, batch_size=BATCH_SIZE, **shard)]

    def part(array):
        shards = sorted(array.addressable_shards, key=lambda shard: shard.index[0].start)
        return np.concatenate([np.asarray(shard.data) for shard in shards])

    equal = len(ours) == len(host) and all(
        np.array_equal(part(batch[name]), other[name]) for batch, other in zip(ours, host) for name in other
    )
    return {'equal': multihost_utils.process_allgather(np.array(equal))}


def settled(scenes, path):
    """The variables that all begin with, from `path` or into it."""
    model = tiny_network()
    key = jax.random.key(0, impl='rbg')
    init = jax.jit(lambda: model.init(key, np.zeros((1, 64, 64, 3), np.float32), train=True))
    structure = jax.tree.structure(jax.eval_shape(init))
    if not os.path.exists(path):
        fresh = jax.tree.map(np.asarray, init())
        _, variables = train(scenes, fresh, first_devices(1), SETTLING_STEPS, seed=1, first_step=-SETTLING_STEPS)
        np.savez(path, **{f'{i:03}': array for i, array in enumerate(jax.tree.leaves(variables))})
    with np.load(path) as file:
        return jax.tree.unflatten(structure, [file[name] for name in sorted(file.files)])


def main():
    out, start, scenes, *address = sys.argv[1:]
    if address:
        initialize(address[0], *map(int, address[1:]))
    variables, found = settled(scenes, start), {}
    for name, options in json.load(sys.stdin).items():
        if name == 'segment':
            images = np.random.default_rng(0).integers(0, 256, (jax.device_count() + 1, 64, 64, 3), dtype=np.uint8)
            made = segment(images)
        elif name == 'other modes':
            made = other_modes(**options)
        elif name == 'decide':
            made = decide(**options)
        elif name == 'gather':
            made = gather()
        elif name == 'cached':
            made = cached(scenes)
        else:
            made = run(scenes, variables, **options)
        found |= {f'{name}/{key}': array for key, array in made.items()}
    if is_main_process():
        np.savez(out, **found)


if __name__ == '__main__':
    main()
