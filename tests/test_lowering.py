"""Training, evaluation and `Segmenter` lower for TPUs and NVIDIA GPUs, to programs that are meant for them.

`jax.export` makes such programs on any machine. Nothing is compiled or run.
"""

import functools
import math
import re
from collections import Counter
from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType

from atonet_jax.config import default_config
from atonet_jax.data.augmentation import Augmentation, Geometry
from atonet_jax.evaluation.steps import _own_programs
from atonet_jax.inference import segmenter as inference
from atonet_jax.inference.views import Views, probabilities
from atonet_jax.models import abstract_variables, network
from atonet_jax.ops.cpu import patches, strips, winograd
from atonet_jax.process.devices import create_mesh
from atonet_jax.runs.state import TrainState
from atonet_jax.training.losses import configured_terms
from atonet_jax.training.optimizer import Optimizer, learning_rate_schedule
from atonet_jax.training.step import Objective, StepSchedule, compile_train_step

ACCELERATORS = ('tpu', 'cuda')
EVERY_AUGMENTATION = Augmentation(
    (64, 64), rotation=10.0, brightness=0.1, contrast=0.1, saturation=0.1, hue=0.1, blur=0.5, erasing=0.5
)
IMAGES = jax.ShapeDtypeStruct((1, 64, 96, 3), jnp.uint8)
LABELS = jax.ShapeDtypeStruct((1, 64, 96), jnp.uint8)
INDEX = jax.ShapeDtypeStruct((1,), jnp.int32)


class Program(NamedTuple):
    """A program for one platform.

    Attributes:
        what: it does, on which platform, to name it where a test fails.
        exported: what `jax.export` gives.
        text: its StableHLO.
        functions: names of the Python functions that its operations come from.
    """

    what: str
    exported: jax.export.Exported
    text: str
    functions: frozenset[str]

    def operand_types(self, operation: str) -> Counter:
        """How often an operation of two operands takes which: {('bf16', 'bf16'): 1, ...}."""
        tensor = r'tensor<(?:\d+x)*(\w+)>'
        return Counter(re.findall(rf'stablehlo\.{operation}\b.* : \({tensor}, {tensor}\) -> ', self.text))

    @property
    def trains(self) -> bool:
        return self.what.startswith('train')


def export(jitted, *args, platforms=ACCELERATORS):
    """{platform: exported program}; traced once."""
    return {platform: jax.export.export(jitted, platforms=[platform])(*args) for platform in platforms}


@pytest.fixture(scope='module')
def cpu_branches():
    """Names of the functions that are given for CPUs alone while this module's programs are traced.

    Partials have none: others take the same function (tests/test_losses.py looks at the loss's). Beside them, the tiny
    network's convolutions get channels and pixels enough for strips, and the deepest for Winograd.
    """
    names = set()
    platform_dependent = jax.lax.platform_dependent

    def record(*args, **branches):
        if hasattr(branches['cpu'], '__qualname__'):
            names.add(branches['cpu'].__qualname__)
        return platform_dependent(*args, **branches)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.lax, 'platform_dependent', record)
        patch.setattr(winograd, 'LEAST_CHANNELS', 64)
        patch.setattr(strips, 'LEAST_CHANNELS', 1)
        patch.setattr(patches, 'suits', lambda *_: False)
        jax.clear_caches()  # of what was traced without all this
        yield names
    jax.clear_caches()


@pytest.fixture(scope='module')
def programs(tiny_model, tiny_variables, cpu_branches):
    """{(what, dtype): {platform: Program}}, the CPU's too where it takes other code."""
    everywhere = (*ACCELERATORS, 'cpu')
    half = tiny_model.clone(dtype=jnp.bfloat16)
    exported = {
        ('train', 'float32'): export_training(Objective.of(tiny_model), 1, everywhere),
        ('train with mining', 'bfloat16'): export_training(with_mining(half), num_devices=4),
        ('train with mining and remat', 'bfloat16'): export_training(
            with_mining(half)._replace(remat=True), num_devices=4
        ),
        ('evaluate', 'float32'): export_evaluation(tiny_model, everywhere),
        ('evaluate', 'bfloat16'): export_evaluation(half),
        ('evaluate views', 'float32'): export_evaluation(tiny_model, scales=(0.75,), flip=True),
        ('probabilities of windows', 'float32'): export(
            jax.jit(functools.partial(probabilities, tiny_model)),
            abstract_variables(tiny_model),
            jax.ShapeDtypeStruct((4, 48, 64, 3), jnp.float32),
        ),
        ('labels', 'bfloat16'): export_segmenter(half, tiny_variables, 'tpu')(IMAGES),
    }
    segment = export_segmenter(tiny_model, tiny_variables, 'tpu')
    exported['with confidence', 'float32'] = segment.with_confidence(IMAGES)
    exported['logits', 'float32'] = segment.logits(IMAGES)
    on_cpu = export_segmenter(tiny_model, tiny_variables, 'cpu')
    exported['labels on a canvas', 'float32'] = segment.on_canvas([np.zeros(IMAGES.shape[1:], np.uint8)])
    exported['labels', 'float32'] = segment(IMAGES) | on_cpu(IMAGES)

    def program(what, exported):
        text = exported.mlir_module()
        return Program(what, exported, text, frozenset(re.findall(r'loc\("([^"()]*)"\(', text)))

    return {
        (what, dtype): {name: program(f'{what} in {dtype} on {name}', made) for name, made in by_platform.items()}
        for (what, dtype), by_platform in exported.items()
    }


@pytest.fixture(scope='module')
def accelerator_programs(programs):
    return [by_platform[platform] for by_platform in programs.values() for platform in ACCELERATORS]


def abstract_mesh(num_devices):
    """`create_mesh()` where there are so many devices."""
    return AbstractMesh((num_devices,), ('data',), axis_types=(AxisType.Auto,))


def with_mining(model):
    options = default_config().loss
    options.update(mining=True, aux_target='upsampled_features')
    return Objective(model, configured_terms(network(model).terms, options))


def export_training(objective, num_devices, platforms=ACCELERATORS):
    learning_rates = {
        group: learning_rate_schedule(peak=0.1, name='cosine', total_steps=10) for group in ('backbone', 'rest')
    }
    decays, weights = {'backbone': 1e-5, 'rest': 1e-4}, (1.0, 1.0, 2.0, 1.0, 1.0)
    numbers = StepSchedule(learning_rates, decays, ema_decay=0.9, class_weights=weights).at(0)
    optimizer = Optimizer('sgd', objective.model, momentum=0.9)
    variables = abstract_variables(objective.model)
    state = TrainState(
        step=jax.ShapeDtypeStruct((), jnp.int32),
        variables=variables,
        opt_state=jax.eval_shape(optimizer.init, variables['params']),
        averaged=variables,
    )
    batch = {
        'image': jax.ShapeDtypeStruct((4, 96, 96, 3), jnp.uint8),
        'label': jax.ShapeDtypeStruct((4, 96, 96), jnp.uint8),
        'geometry': jax.ShapeDtypeStruct((4, len(Geometry._fields)), jnp.int32),
    }
    step = compile_train_step(
        abstract_mesh(num_devices),
        objective=objective,
        optimizer=optimizer,
        augmentation=EVERY_AUGMENTATION,
    )
    return export(step, state, batch, numbers, platforms=platforms)


def export_evaluation(model, platforms=ACCELERATORS, **options):
    step = _own_programs(model, (model.num_classes,) * 2, Views(**options), create_mesh())(IMAGES.shape)
    return export(step, abstract_variables(model), IMAGES, LABELS, INDEX, platforms=platforms)


def export_segmenter(model, variables, backend):
    """A `Segmenter` as on a machine of that backend, except that its methods give {platform: exported program}."""
    platforms = ('cpu',) if backend == 'cpu' else ACCELERATORS

    jitted = inference._jitted

    def exporting(*options):
        def lower(*args):
            exported = export(jitted(*options), *args, platforms=platforms)
            return SimpleNamespace(compile=lambda: lambda *_: exported)

        return SimpleNamespace(lower=lower)

    class ExportingSegmenter(inference.Segmenter):
        def _compile(self, *args):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(inference, '_jitted', exporting)
                return super()._compile(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, 'default_backend', lambda: backend)
        return ExportingSegmenter(model, variables)


def test_nothing_in_them_needs_the_host_or_a_library_of_one_platform(accelerator_programs):
    """Host callbacks are custom calls; so are the functions of LAPACK and other libraries."""
    for program in accelerator_programs:
        assert 'custom_call' not in program.text, program.what
        assert not program.exported.ordered_effects and not program.exported.unordered_effects, program.what


def test_all_shapes_are_static_and_nothing_is_in_float64(accelerator_programs):
    for program in accelerator_programs:
        assert not re.search(r'tensor<[^>]*\?|xf64>|tensor<f64>', program.text), program.what


def test_branches_for_cpus_stay_on_cpus(programs, accelerator_programs, cpu_branches):
    on_cpu = [by_platform['cpu'].functions for by_platform in programs.values() if 'cpu' in by_platform]
    seen = cpu_branches & frozenset().union(*on_cpu)  # programs do not name functions of gradients
    assert 'label_map.<locals>.by_rows' in seen
    for program in accelerator_programs:
        assert not program.functions & cpu_branches, program.what


def test_gradients_that_suit_cpus_stay_on_cpus(programs, tiny_variables):
    """Each kernel has one by a convolution, on CPUs along rows, or for 1x1 by a product."""
    kernels = [leaf for path, leaf in jax.tree.leaves_with_path(tiny_variables['params']) if path[-1].key == 'kernel']
    count, pointwise = len(kernels), sum(kernel.shape[:2] == (1, 1) for kernel in kernels)
    by_platform = programs['train', 'float32']
    found = {name: sum(program.operand_types('convolution').values()) for name, program in by_platform.items()}
    assert found == {'cpu': 3 * count - 1 - pointwise, 'cuda': 3 * count - 1, 'tpu': 3 * count - 1}
    along_rows = {name: program.text.count('dim_numbers = [b, 0, f]x') for name, program in by_platform.items()}
    assert along_rows == {'cpu': count - pointwise, 'cuda': 0, 'tpu': 0}


def test_winograd_stays_on_cpus(programs, accelerator_programs):
    assert '_multiply' in programs['labels', 'float32']['cpu'].functions  # of ops.cpu.winograd
    for program in accelerator_programs:
        assert '_multiply' not in program.functions, program.what


def test_the_gradient_of_max_pooling_is_one_scatter(accelerator_programs):
    for program in accelerator_programs:
        assert program.text.count('"stablehlo.select_and_scatter"') == program.trains, program.what


def test_only_confidence_loops_over_the_classes(accelerator_programs):
    for program in accelerator_programs:
        if not program.trains:  # where the loss loops over phases
            assert ('stablehlo.while' in program.text) == ('confidence' in program.what), program.what


def test_convolutions_and_resizing_compute_in_bfloat16(programs):
    """All but the classifiers: one, and in training four, each with the gradients of its inputs and its kernel."""
    for (_, dtype), by_platform in programs.items():
        for program in by_platform.values():
            convolutions = program.operand_types('convolution')
            if dtype == 'bfloat16':
                assert convolutions.pop(('f32', 'f32')) == (12 if program.trains else 1), program.what
                assert set(convolutions) == set(program.operand_types('dot_general')) == {('bf16', 'bf16')}
            else:
                assert set(convolutions) == {('f32', 'f32')}, program.what


def test_a_training_step_takes_over_the_memory_of_its_state(accelerator_programs):
    for program in accelerator_programs:
        if program.trains:
            (state, *_), _ = jax.tree.unflatten(program.exported.in_tree, program.exported.in_avals)
            assert program.text.count('tf.aliasing_output') == len(jax.tree.leaves(state)), program.what


def test_a_batch_is_split_over_four_devices_and_the_state_is_on_each(programs):
    for program in programs['train with mining', 'bfloat16'].values():
        exported = program.exported
        assert exported.nr_devices == 4
        shardings = exported.in_shardings_jax(abstract_mesh(4))
        parts = [
            math.prod(aval.shape) // math.prod(sharding.shard_shape(aval.shape))
            for aval, sharding in zip(exported.in_avals, shardings, strict=True)
        ]
        (state, batch, _), _ = jax.tree.unflatten(exported.in_tree, parts)
        assert set(jax.tree.leaves(state)) == {1} and set(jax.tree.leaves(batch)) == {4}


def test_remat_computes_convolutions_again_behind_barriers(programs):
    for platform in ACCELERATORS:
        plain = programs['train with mining', 'bfloat16'][platform]
        recomputed = programs['train with mining and remat', 'bfloat16'][platform]
        barriers = [program.text.count('stablehlo.optimization_barrier') for program in (plain, recomputed)]
        of_losses = 4 * len(network('atonet').terms)
        assert barriers[0] <= of_losses < barriers[1], f'without remat those of the loss alone: {barriers}'
        more = recomputed.operand_types('convolution') - plain.operand_types('convolution')
        assert more == {('bf16', 'bf16'): 1 + 19 + 5 + 5 + 2 + 3}, 'stem, layers, spp, up1 .. up5, head, aux3 .. aux5'
