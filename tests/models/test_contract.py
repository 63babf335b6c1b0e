"""What the rest of the program takes for granted of every network, on tiny ones. A new network adds a row to `ROWS`."""

import asyncio
import contextlib
import functools
import io
import os
import re
import shutil
from types import SimpleNamespace
from typing import NamedTuple

import httpx
import jax
import jax.numpy as jnp
import numpy as np
import onnx
import PIL.Image
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict, path_aware_map

from atonet_jax import ops
from atonet_jax.config import CHOICES, default_config
from atonet_jax.data.labels import CAMVID
from atonet_jax.data.synthetic import render_scene
from atonet_jax.errors import ExportError, InputError
from atonet_jax.evaluation.evaluate import evaluate
from atonet_jax.export import export, onnx_format, tflite_format
from atonet_jax.inference.label_map import label_map
from atonet_jax.inference.segmenter import Segmenter
from atonet_jax.models import (
    MODEL_NAMES,
    abstract_variables,
    apply,
    create_model,
    default_options,
    family,
    network,
    prepare,
)
from atonet_jax.models.blocks import BatchNorm, Conv, ConvTranspose
from atonet_jax.models.contract import cut_back, pad_to_multiple
from atonet_jax.models.counts import convolutions
from atonet_jax.models.terms import LabelsOnEdges
from atonet_jax.predict import predict
from atonet_jax.process.devices import create_mesh
from atonet_jax.published_weights import identify
from atonet_jax.runs.checkpoint import Checkpoints
from atonet_jax.runs.metrics import read_metrics
from atonet_jax.runs.network import TrainedNetwork, trained_network
from atonet_jax.serve.app import create_app
from atonet_jax.torch_files import read_state_dict
from atonet_jax.torch_weights import from_torch, to_torch
from atonet_jax.training import train as train_module
from atonet_jax.training.optimizer import parameter_group
from atonet_jax.training.step import Objective
from atonet_jax.training.train import train
from tests.models import golden

SIZE = (64, 128)


class Row(NamedTuple):
    """How the tests take a network.

    Attributes:
        options: that make it small.
        whole: its gradients are compared with those of plain programs that compute activations again. Between them
            such networks have every part but depthwise convolutions, whose tiny networks magnify rounding; tests/ops
            compares these.
        files_of: the network whose files have the same names, where that is another one.
        learning_rate: of its training; larger where float32 would round a step away, smaller where it would explode.
        size: of the scenes that it is trained and used on.
        cancelled: end of the paths of biases that a batch normalisation cancels: they learn rounding alone.
        pixel: what the network makes of the RGB pixel (10, 20, 30), by the published mean and standard deviation.
        one_rate: all parameters have the same learning rate in the published recipe.
    """

    options: dict
    whole: bool = False
    files_of: str = ''
    learning_rate: float = 1e-3
    size: tuple[int, int] = SIZE
    cancelled: str | None = None
    pixel: tuple[float, float, float] = (-1.94666, -1.68557, -1.28157)  # ImageNet's
    one_rate: bool = False


FROM_0_TO_1 = (0.0392157, 0.0784314, 0.117647)
ESPNET_CITYSCAPES = (-0.0036683, -0.00534531, -0.00551444)  # BGR
SWIFTNET_CITYSCAPES = (-1.32473, -1.29717, -0.886235)
ROWS = {
    'atonet': Row({'width': 16, 'backbone_width': 8, 'aux_levels': (1, 2, 3, 4, 5)}),
    'pidnet_s': Row({'width': 4}, whole=True, one_rate=True),
    'ddrnet_23_slim': Row({'width': 4}, one_rate=True),
    'bisenet_r18': Row({'width': 4}),
    'bisenet_x39': Row({'width': 16}),
    'bisenet_coincheung': Row({'width': 4}, pixel=(-1.35646, -1.35274, -0.967626)),
    'enet_paper': Row({'width': 16}, whole=True, pixel=FROM_0_TO_1, one_rate=True),
    'enet_davidtvs_2018_03': Row({'width': 16}, pixel=FROM_0_TO_1, one_rate=True),
    'enet_davidtvs_head': Row({'width': 16}, pixel=FROM_0_TO_1, one_rate=True),
    'fcn8s': Row({'width': 4, 'fc_features': 16}, whole=True),
    'fcn8s_fc1024': Row({'width': 4, 'fc_features': 16}, files_of='fcn8s'),
    'fcn8s_original': Row({'width': 4, 'fc_features': 16}, whole=True),
    'erfnet': Row({'width': 8}, pixel=FROM_0_TO_1, one_rate=True),
    'erfnet_encoder': Row({'width': 8}, pixel=FROM_0_TO_1, one_rate=True),
    'espnet': Row({'width': 4}, whole=True, pixel=ESPNET_CITYSCAPES, one_rate=True),
    'espnet_camvid': Row({'width': 4}, files_of='espnet', pixel=(-0.0043677, -0.00476954, -0.00533127), one_rate=True),
    'espnet_c': Row({'width': 4}, pixel=ESPNET_CITYSCAPES, one_rate=True),
    'swiftnet_ss_2019': Row({'width': 8, 'backbone_width': 4}),
    'swiftnet_ss_2020': Row({'width': 8, 'backbone_width': 4}, pixel=SWIFTNET_CITYSCAPES),
    'swiftnet_pyr_2019': Row({'width': 8, 'backbone_width': 4}, whole=True),
    # On smaller scenes, the smallest maps have too few values to be normalised: gradients vanish.
    'swiftnet_pyr_2020': Row(
        {'width': 16, 'backbone_width': 8}, size=(128, 256), learning_rate=0.1, pixel=SWIFTNET_CITYSCAPES
    ),
    'swiftnet_ens': Row({'width': 8, 'backbone_width': 4}),
    'table3_aggregation': Row({'width': 8, 'backbone_width': 4}),
    'table3_aggregation_final1x1': Row({'width': 8, 'backbone_width': 4}, files_of='table3_aggregation'),
    'table3_encoder_decoder': Row({'width': 8, 'backbone_width': 4}),
    'table3_encoder_decoder_b': Row({'width': 8, 'backbone_width': 4}),
    'table3_multi_pathway': Row({'width': 8, 'backbone_width': 4}),
    'table3_multi_pathway_b': Row({'width': 8, 'backbone_width': 4}),
    'table3_multi_pathway_c': Row({'width': 8, 'backbone_width': 4}),
    'table3_dilation': Row({'width': 8, 'backbone_width': 4}),
    'segnet': Row({'width': 4}, one_rate=True),
    'segnet_basic': Row({'width': 4}, pixel=(30, 20, 10), one_rate=True),
    'deeplab_largefov': Row({'width': 4, 'fc_features': 16}),
    'frrn_a': Row({'width': 6, 'lanes': 4}, pixel=FROM_0_TO_1, one_rate=True),
    'frrn_b': Row({'width': 6, 'lanes': 4}, pixel=FROM_0_TO_1, one_rate=True),
    'sqnet': Row({'width': 4}, whole=True, one_rate=True),
    # With fewer channels, one layer has a single one, which may learn nothing.
    'sqnet_zh320': Row({'width': 8}, one_rate=True),
    'icnet': Row({'width': 4, 'head_width': 4}, one_rate=True),
    # The attention of relu multiplies drawn numbers beyond what float32 holds, and so do longer steps.
    'dfanet_a': Row(
        {'width': 16, 'decoder_width': 8, 'attention': 'sigmoid'},
        learning_rate=5e-5,
        cancelled='attention/fc/bias',
        one_rate=True,
    ),
    'dfanet_b': Row(
        {'width': 16, 'decoder_width': 8, 'attention': 'sigmoid'},
        learning_rate=5e-5,
        cancelled='attention/fc/bias',
        files_of='dfanet_a',
        one_rate=True,
    ),
    'sparse_two_column': Row({'width': 4}),
}
# Other names of networks that have a row.
ALIASES = {
    'pidnet': 'pidnet_s',
    'ddrnet': 'ddrnet_23_slim',
    'bisenet': 'bisenet_r18',
    'enet': 'enet_paper',
    'swiftnet': 'swiftnet_ss_2019',
    'swiftnet_ss': 'swiftnet_ss_2019',
    'swiftnet_pyr': 'swiftnet_pyr_2019',
    'aggregation': 'table3_aggregation',
    'deeplab': 'deeplab_largefov',
    'frrn': 'frrn_b',
    'dfanet': 'dfanet_a',
    'dfanet_a_prime': 'dfanet_a',
}
# Epsilon and momentum of batch normalisations, where they are not all 1e-5 and 0.9.
NORMS = {
    **dict.fromkeys(('enet_paper', 'erfnet', 'erfnet_encoder', 'espnet', 'espnet_camvid', 'espnet_c'), {(1e-3, 0.9)}),
    **dict.fromkeys(('frrn_a', 'frrn_b'), {(1e-4, 0.9)}),
    **dict.fromkeys(('swiftnet_ss_2019', 'swiftnet_ss_2020', 'swiftnet_ens'), {(1e-5, 0.9), (1e-5, 0.995)}),
    'icnet': {(1e-5, 0.95)},
}


class Start(NamedTuple):
    """How a kernel, and the bias beside it, begin.

    Attributes:
        distribution: 'normal' or 'uniform'; a kernel of zeros is both.
        gain: the variance of the kernel, times `fan`.
        fan: 'fan_in', 'fan_out', or '' for a variance that no shape changes.
        has_zero_bias: the bias is 0. Otherwise it is drawn from the bounds of torch.
    """

    distribution: str
    gain: float
    fan: str
    has_zero_bias: bool = False


TORCH = Start('uniform', 1 / 3, 'fan_in')
HE_IN, HE_OUT = Start('normal', 2, 'fan_in'), Start('normal', 2, 'fan_out')
CAFFE, VGG = HE_IN._replace(has_zero_bias=True), HE_OUT._replace(has_zero_bias=True)
RESNET, XCEPTION = {r'stem/.*|layer\d/.*': HE_OUT}, {r'stem/.*|layer\d/.*': TORCH}
LASAGNE = {
    r'.*(stem|_ru\d/conv1|coder\d_\d/conv\d)/conv': Start('uniform', 2, 'fan_in'),  # before a ReLU
    '.*': Start('uniform', 1, 'fan_in', has_zero_bias=True),
}
# By the path of a layer; the first pattern that fits it counts. TORCH where none does, and for networks not named here.
STARTS = {
    'atonet': RESNET,
    'pidnet_s': {'.*': HE_OUT},
    'ddrnet_23_slim': {'.*': HE_OUT},
    'bisenet_r18': RESNET | {'.*': HE_IN},
    'bisenet_x39': XCEPTION | {'.*': HE_IN},
    'bisenet_coincheung': RESNET | {'.*': Start('normal', 1, 'fan_in', has_zero_bias=True)},
    'fcn8s_original': {'conv.*': VGG, 'fc.*': CAFFE, 'score.*': Start('normal', 0, '', has_zero_bias=True)},
    'fcn8s': {'conv.*': VGG, 'fc.*': CAFFE},
    'swiftnet': {'(.*/)?logits/conv': TORCH, '.*': HE_OUT},
    'table3': RESNET,
    'segnet': {'conv1_1_D|classifier/.*': CAFFE, '.*': HE_IN},  # a normalisation cancels all other biases
    'deeplab_largefov': {'conv.*': VGG, 'fc[67]': CAFFE, 'fc8': Start('normal', 1e-4, '', has_zero_bias=True)},
    'frrn': LASAGNE,
    'sqnet_zh320': {},
    'sqnet': {r'up\d|out': Start('normal', 8, 'fan_in'), '.*': CAFFE},
    'icnet': {'.*': CAFFE},
    'dfanet': {'.*': CAFFE},
    'sparse_two_column': {'(coarse|fine)/.*': HE_OUT},
}
# (rate, whether whole maps are dropped) of each dropout in the order of the layers; networks not named here have none.
DROPOUTS = {
    'atonet': [(0.1, True)],
    'table3': [(0.1, True)],
    'enet_paper': 5 * [(0.01, True)] + 17 * [(0.1, True)],
    'enet_davidtvs': 5 * [(0.01, True)] + 22 * [(0.1, True)],
    'erfnet': 5 * [(0.03, True)] + 8 * [(0.3, True)],
    'fcn8s_original': 2 * [(0.5, False)],
    'fcn8s': 2 * [(0.5, True)],
    'deeplab_largefov': 2 * [(0.5, False)],
}
CLASSES = 5
PIXEL = np.array([10, 20, 30], np.uint8)
MOST_DIFFERENT = 1e-3  # share of pixels: programs for other batches round in their own way
ENDINGS = {'torch': '.pth'}  # the one that an output must have

NOT_OF_ANY_SIZE = (  # in ONNX
    'segnet', 'swiftnet_pyr', 'swiftnet_ens', 'sparse_two_column', 'sqnet', 'enet_davidtvs_2018_03'
)  # fmt: skip
CANNOT_TELL_THE_CANVAS = ('swiftnet_pyr_2019', 'swiftnet_ens', 'sparse_two_column')  # have operations beside `ops`
NOT_IN_INT8_TFLITE = ('segnet_basic', 'sparse_two_column')
HARD_IN_INT8 = ('enet', 'espnet', 'dfanet', 'segnet', 'bisenet_x39')  # with drawn weights
# Without batch normalisation, all that could be computed again is ReLU or ELU.
CONVOLUTIONS_AS_UNITS = ('fcn8s', 'fcn8s_fc1024', 'fcn8s_original', 'deeplab_largefov', 'sqnet')
# A few networks that differ much; the others are for `make test-networks`.
CORE = ('atonet', 'pidnet_s', 'enet_paper', 'fcn8s')
# Those that `make test` also trains, evaluates, serves and exports; `make test-networks` does so with the others.
LIVES = ('espnet', 'fcn8s')
# Each depthwise convolution of a training step is 27 operations on CPUs, and this network has 126: a minute to compile.
# Steps and scores are those of plain programs; tests/ops compares the faster ones.
PLAIN = ('dfanet_a',)


def tiny(name, **options):
    return create_model(name, CLASSES, **ROWS[name].options, **options)


def step_programs(name):
    """The context in which the tests train a network and score it."""
    return ops.cpu.fast_paths(False) if name in PLAIN else contextlib.nullcontext()


# Of networks that are the same when they are tiny, the first.
DISTINCT = [*{tiny(name): name for name in reversed(ROWS)}.values()][::-1]
every_network = pytest.mark.parametrize(
    'name', [pytest.param(name, marks=() if name in CORE else pytest.mark.networks) for name in DISTINCT]
)
abstract = functools.cache(abstract_variables)  # traced once a network


def drawn_variables(model, train=True, seed=0):
    """Numbers in the range of trained ones, without a program to draw them."""
    generator = np.random.default_rng(seed)

    def draw(path, array):
        if path[-1].endswith('kernel'):
            fan_in = np.prod(array.shape[:-1])
            return (generator.standard_normal(array.shape) * np.sqrt(2 / fan_in)).astype(np.float32)
        low, high = {'scale': (0.8, 1.2), 'var': (0.5, 1.5), 'slope': (0.1, 0.4)}.get(path[-1], (-0.1, 0.1))
        return generator.uniform(low, high, array.shape).astype(np.float32)

    return path_aware_map(draw, abstract(model, train))


def drawn_images(*size, seed=0):
    return np.random.default_rng(seed).normal(size=(2, *size, 3)).astype(np.float32)


def abstract_images(*size):
    return jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)


def training_options(variables):
    mutable = [collection for collection in variables if collection != 'params']
    return {'train': True, 'mutable': mutable, 'rngs': {'dropout': jax.random.key(0)}}


def training_outputs(model, variables, size=SIZE):
    """Shapes and types of what the network gives in training."""
    options = training_options(variables)
    return jax.eval_shape(lambda v, x: apply(model, v, x, **options), variables, abstract_images(*size))[0]


def test_every_registered_network_has_a_row():
    assert {*ROWS, *ALIASES} == set(MODEL_NAMES)


def test_every_registered_network_is_in_the_docs(repository):
    page = (repository / 'docs' / 'networks.md').read_text()
    assert not [name for name in MODEL_NAMES if f'`{name}`' not in page]


@pytest.mark.parametrize(('alias', 'name'), ALIASES.items())
def test_an_alias_is_the_network_that_it_stands_for(alias, name):
    assert create_model(alias, CLASSES) == create_model(name, CLASSES)


@pytest.mark.parametrize('name', ROWS)
def test_options_have_defaults_and_the_module_says_which_cannot_work(name):
    options = default_options(name)
    assert set(ROWS[name].options) <= set(options)
    known = ', '.join(sorted(options))
    with pytest.raises(ValueError, match=f'^no_such_option: {name} has no such option; it has {known}$'):
        create_model(name, CLASSES, no_such_option=1)
    for option in (option for option, value in ROWS[name].options.items() if isinstance(value, int)):
        least = family(name).least.get(option, 1)
        wanted = 'greater than 0' if least == 1 else f'{least} or more'
        with pytest.raises(ValueError, match=f'{option}=0: must be {wanted}$'):
            create_model(name, CLASSES, **{option: 0})


@every_network
def test_any_size_gives_logits_and_labels_of_that_size(name):
    model = tiny(name)
    variables, smallest = abstract(model), network(model).smallest
    for size in [(smallest, smallest + 2), (smallest + 32, smallest + 47)]:

        def labels(variables, images, size=size):
            logits = apply(model, variables, images)['logits']
            return logits, label_map(logits, size, network(model).upsampling)

        logits, labels = jax.eval_shape(labels, variables, abstract_images(*size))
        assert logits.shape[0] == 2 and logits.shape[3] == CLASSES
        assert all(1 <= rows <= length for rows, length in zip(logits.shape[1:3], size))
        assert (labels.shape, labels.dtype) == ((2, *size), np.uint8)


@every_network
def test_every_training_output_is_taken_by_a_term_and_every_term_has_its_output(name):
    outputs, terms = training_pass(name)[0], network(tiny(name)).terms
    edges = {term.target.output for term in terms if isinstance(term.target, LabelsOnEdges)}
    assert set(outputs) == {term.output for term in terms} | edges
    assert len({term.loss_name for term in terms}) == len(terms), 'metrics would overwrite each other'


@every_network
def test_batch_normalisations_have_the_published_epsilon_and_momentum(name):
    """Which goldens hardly show: theirs move no averages, and rounding hides a small epsilon."""
    found = {(module.epsilon, module.momentum) for module in modules_called(name, BatchNorm)}
    has_any = 'batch_stats' in abstract(tiny(name))
    assert found == (NORMS.get(name, {(1e-5, 0.9)}) if has_any else set())


def of_family(table, name, default):
    """What a table says of a network by the longest beginning of its name that it has."""
    known = [beginning for beginning in table if name.startswith(beginning)]
    return table[max(known, key=len)] if known else default


@functools.cache  # traced once a network
def training_pass(name):
    """Shapes and types of the tiny network's outputs in training, and the modules that it calls, in their order."""
    model, modules = tiny(name), []

    def look(call, arguments, options, context):
        if context.method_name == '__call__':
            modules.append(context.module)
        return call(*arguments, **options)

    with nn.intercept_methods(look):
        return training_outputs(model, abstract(model)), modules


def modules_called(name, kind):
    return [module for module in training_pass(name)[1] if isinstance(module, kind)]


@functools.cache
def drawn_by(init, fan_of_bias=None):
    """A kernel, [3, 5, 40, 60], or where the fan is given a bias, [600], as an initialiser draws it."""
    return np.asarray(init(jax.random.key(0), (600,) if fan_of_bias else (3, 5, 40, 60)))


@every_network
def test_kernels_and_biases_start_as_in_the_published_code(name):
    fans = {'fan_in': 3 * 5 * 40, 'fan_out': 3 * 5 * 60, '': 1}
    starts = of_family(STARTS, name, {})
    modules = modules_called(name, (Conv, ConvTranspose, nn.Dense))
    assert modules
    for module in modules:
        path = '/'.join(module.path)
        start = next((start for pattern, start in starts.items() if re.fullmatch(pattern, path)), TORCH)
        if isinstance(module, ConvTranspose) and module.kernel_init is None:
            assert start == TORCH, path  # tests/models/test_blocks.py has its bounds
            assert module.fan == ('input' if name == 'enet_paper' else 'output'), path
            continue
        kernel, variance = drawn_by(module.kernel_init), start.gain / fans[start.fan]
        assert kernel.var() == pytest.approx(variance, rel=0.05), path
        assert not variance or (abs(kernel).max() < 1.8 * variance**0.5) == (start.distribution == 'uniform'), path
        if module.use_bias and not isinstance(module, ConvTranspose):
            is_zero = module.bias_init is not None and not drawn_by(module.bias_init, 1).any()
            assert is_zero == start.has_zero_bias, path


@every_network
def test_dropout_has_the_published_rates_and_drops_maps_or_values(name):
    dropouts = [module for module in modules_called(name, nn.Dropout) if module.rate]
    found = [(module.rate, tuple(module.broadcast_dims) == (1, 2)) for module in dropouts]
    assert found == of_family(DROPOUTS, name, [])


@every_network
def test_inference_has_logits_alone_and_no_module_of_training_alone(name):
    model = tiny(name)
    in_training, in_inference = (abstract(model, train)['params'] for train in (True, False))
    assert set(in_training) - set(in_inference) == set(network(model).training_only)
    outputs = jax.eval_shape(lambda v, x: apply(model, v, x), abstract(model, False), abstract_images(*SIZE))
    assert set(outputs) == {'logits'}


@every_network
def test_bfloat16_computes_most_and_neither_stores_nor_returns_anything(name):
    model = tiny(name, dtype=jnp.bfloat16)
    variables = abstract(model)
    assert {array.dtype for array in jax.tree.leaves(variables)} == {np.dtype(np.float32)}
    assert {output.dtype for output in training_outputs(model, variables).values()} == {np.dtype(np.float32)}
    program = jax.make_jaxpr(lambda v, x: apply(model, v, x))(variables, abstract_images(*SIZE))
    dtypes = [convolution.outvars[0].aval.dtype for convolution in convolutions(program.jaxpr)]
    assert dtypes.count(jnp.bfloat16) > len(dtypes) / 2


@every_network
def test_remat_keeps_less_for_the_gradient(name):
    model, variables = tiny(name), abstract(tiny(name))

    def kept_bytes(remat):
        def backward(variables, images):
            def outputs(params):
                given = variables | {'params': params}
                return Objective.of(model, remat=remat).outputs(given, images, jax.random.key(0))[0]

            return jax.vjp(outputs, variables['params'])[1]

        kept = jax.tree.leaves(jax.eval_shape(backward, variables, abstract_images(*ROWS[name].size)))
        parameters = {array.shape for array in jax.tree.leaves(variables['params'])}
        return sum(array.size * array.dtype.itemsize for array in kept if array.shape not in parameters)

    most = 1 if name in CONVOLUTIONS_AS_UNITS else 0.65
    assert kept_bytes(remat=True) <= most * kept_bytes(remat=False)


@pytest.mark.parametrize('name', DISTINCT)
def test_images_are_normalised_by_the_published_mean_and_deviation(name):
    np.testing.assert_allclose(network(tiny(name)).normalization(PIXEL), ROWS[name].pixel, rtol=1e-5)


@pytest.mark.parametrize('name', DISTINCT)
def test_the_backbone_has_a_rate_of_its_own_where_that_is_published(name):
    model = tiny(name)
    groups = {parameter_group(path, network(model)) for path in flatten_dict(abstract(model)['params'])}
    assert groups == ({'rest'} if ROWS[name].one_rate else {'rest', 'backbone'})


@pytest.mark.parametrize(
    ('name', 'pixel'),
    [
        ('fcn8s', (-74.007, -96.66877, -112.67892)),
        ('deeplab_largefov', (-74.008, -96.669, -112.675)),
        ('segnet', (30, 20, 10)),
    ],
)
def test_images_are_those_of_caffe_where_asked(name, pixel):
    normalization = network(create_model(name, CLASSES, caffe_images=True)).normalization
    np.testing.assert_allclose(normalization(PIXEL), pixel, rtol=1e-6)
    np.testing.assert_array_equal(normalization(normalization.mean_color()), 0)


@functools.cache
def logits_of_images(name):
    """Drawn variables, images, and the network's logits of these."""
    model = tiny(name)
    variables, images = drawn_variables(model), drawn_images(37, 53)
    program = jax.jit(lambda variables, images: apply(model, variables, images)['logits'])
    return program, variables, images, np.asarray(program(variables, images))


@every_network
def test_prepared_variables_give_what_the_variables_give(name):
    program, variables, images, expected = logits_of_images(name)
    assert np.isfinite(expected).all() and np.ptp(expected) > 0.1
    prepared = prepare(tiny(name), variables, transform_kernels=True)
    assert not {'batch_stats'} & set(prepared)
    np.testing.assert_allclose(program(prepared, images), expected, atol=2e-5 * np.ptp(expected))


@every_network
def test_an_image_on_a_canvas_has_the_logits_that_it_has_by_itself_where_the_network_says_so(name):
    model, (_, variables, images, expected) = tiny(name), logits_of_images(name)
    contract = network(model)
    prepared = prepare(model, variables, transform_kernels=True)
    padded = np.asarray(pad_to_multiple(images, contract.multiple_of))
    size = padded.shape[1:3]
    canvas = tuple(-(-length // ops.canvas.STEP) * ops.canvas.STEP for length in size)

    @jax.jit
    def on_canvas(variables, images, size):
        with ops.canvas.on_canvas(canvas, size, contract.multiple_of):
            return model.apply(variables, ops.canvas.masked(images), train=False)['logits']

    edges = (0, 0), *((0, all_ - part) for all_, part in zip(canvas, size)), (0, 0)
    images_on_canvas = np.pad(padded, edges, constant_values=np.nan)
    if not contract.on_canvas:
        with contextlib.suppress(ops.canvas.NotOnCanvasError):
            jax.eval_shape(on_canvas, prepared, images_on_canvas, size)
            assert name.startswith(CANNOT_TELL_THE_CANVAS), 'nothing speaks against on_canvas=True'
        return
    logits = on_canvas(prepared, images_on_canvas, size)
    rows, columns = (-(-n * part // all_) for n, part, all_ in zip(logits.shape[1:3], size, canvas))
    outputs = {'logits': logits[:, :rows, :columns]}
    if contract.multiple_of > 1:
        outputs = cut_back(outputs, size, images.shape[1:3], contract.upsampling)
    np.testing.assert_allclose(outputs['logits'], expected, atol=2e-5 * np.ptp(expected))


@every_network
def test_weights_go_to_torch_and_back_and_the_file_is_recognised(name):
    model = tiny(name)
    variables = drawn_variables(model)
    if not network(model).weights:
        pytest.fail(f'{name} has no names in PyTorch; say so in its row')
    state_dict = to_torch(variables, model)
    assert identify(state_dict) == (ROWS[name].files_of or name)
    jax.tree.map(np.testing.assert_array_equal, from_torch(state_dict, model), variables)


@pytest.fixture(scope='module')
def scenes(tmp_path_factory):
    """The folder of a few scenes that all networks here share."""
    return str(tmp_path_factory.mktemp('scenes'))


def config_of(name, scenes):
    """Two steps on scenes of the row's size, and scores after them."""
    config, (height, width) = default_config(name), ROWS[name].size
    config.model.update(ROWS[name].options)
    config.data.update(name='synthetic', root=f'{scenes}/{height}x{width}', crop_size=(height, width))
    config.data.synthetic.update(train_scenes=4, val_scenes=2, height=height, width=width)
    config.optimizer.learning_rate = ROWS[name].learning_rate
    config.schedule.per = 'step'
    config.train.update(batch_size=2, epochs=1.0, log_every_steps=1, checkpoint_every_steps=1)
    config.eval.update(batch_size=2, pictures=1)
    config.export.size = height, width
    return config


class Life(NamedTuple):
    """A network's way from training to use: the config, the workdir, and what training said at its end."""

    config: object
    workdir: str
    scores: object


@pytest.fixture(
    scope='module',
    params=[pytest.param(name, marks=() if name in LIVES else pytest.mark.networks) for name in DISTINCT],
)
def life(request, scenes, tmp_path_factory):
    config, workdir = config_of(request.param, scenes), str(tmp_path_factory.mktemp(request.param) / 'run')
    with pytest.MonkeyPatch.context() as patched:  # drawing them by JAX takes seconds to compile
        patched.setattr(train_module, 'starting_variables', lambda config, model, *_: (drawn_variables(model), ()))
        with step_programs(request.param):
            return Life(config, workdir, train(config, workdir))


@pytest.fixture(scope='module')
def trained(life):
    return trained_network(life.config, life.workdir, create_mesh())


@pytest.fixture(scope='module')
def segment(trained):
    return Segmenter(trained.model, trained.variables, trained.class_table)


@pytest.fixture(scope='module')
def images(life):
    return np.stack([render_scene(1, i, *life.config.export.size)[0] for i in range(2)])


@pytest.fixture(scope='module')
def labels(segment, images):
    labels = np.asarray(segment(images))
    for of_one in labels:
        assert np.bincount(of_one.ravel()).max() < (1 - 2 * MOST_DIFFERENT) * of_one.size, 'one class alone would pass'
    return labels


def variables_after(life, step, workdir):
    checkpoints = Checkpoints(workdir)
    assert checkpoints.step('latest') == step
    model = create_model(life.config.model.name, 19, **ROWS[life.config.model.name].options)
    variables = checkpoints.restore_variables(step, model, create_mesh(), averaged=False)
    checkpoints.close()
    return jax.device_get(variables)


def test_a_resumed_run_ends_as_one_that_was_not_stopped(life, tmp_path):
    """The second step, from the first one's checkpoint: nothing of the state is lost, and gradients are the same.

    For `whole` networks it is taken by plain programs, which compute activations again for the gradient. For the others
    it is the program of the first run, which need not be compiled again.
    """
    config = life.config.copy_and_resolve_references()
    config.train.remat = whole = ROWS[config.model.name].whole
    workdir = str(shutil.copytree(life.workdir, tmp_path / 'resumed'))
    expected = variables_after(life, 2, workdir)
    shutil.rmtree(os.path.join(workdir, 'checkpoints', '2'))
    before = variables_after(life, 1, workdir)
    with ops.cpu.fast_paths(False) if whole else step_programs(config.model.name):
        train(config, workdir)
    after = variables_after(life, 2, workdir)

    updates, wanted = (jax.tree.map(np.subtract, variables, before) for variables in (after, expected))
    updates, wanted = (flatten_dict(update, sep='/') for update in (updates, wanted))
    whole = np.sqrt(sum(np.sum(np.square(update)) for update in wanted.values()))
    cancelled = ROWS[config.model.name].cancelled
    for path, update in updates.items():
        want = wanted[path]
        if cancelled and path.endswith(cancelled):
            assert np.linalg.norm(want) <= 1e-6 * whole, f'{path} learned something'
        else:
            assert np.linalg.norm(want) > 0, f'{path} learned nothing'
        assert np.linalg.norm(update - want) <= 2e-3 * np.linalg.norm(want) + 1e-6 * whole, path


def test_training_tells_each_term(life):
    first, *_ = (line for line in read_metrics(life.workdir) if 'train/loss' in line)
    terms = network(tiny(life.config.model.name)).terms
    assert {f'train/{term.loss_name}' for term in terms} <= set(first)
    total = sum(term.weight * first[f'train/{term.loss_name}'] for term in terms)
    assert first['train/loss'] == pytest.approx(total, rel=1e-4)


def test_training_weighs_the_classes_where_the_network_says_so(life):
    path = os.path.join(life.workdir, 'class_pixels.json')
    assert os.path.exists(path) == (network(life.config.model.name).class_weights is not None)


def test_evaluation_finds_the_scores_that_training_found(life):
    with step_programs(life.config.model.name):
        assert evaluate(life.config, life.workdir).miou == pytest.approx(life.scores.miou, abs=1e-9)


def test_predictions_are_the_labels_of_segmenter(life, segment, images, labels, tmp_path):
    PIL.Image.fromarray(images[0]).save(tmp_path / 'a.png')
    config = life.config.copy_and_resolve_references()
    config.predict.update(input=str(tmp_path / 'a.png'), output=str(tmp_path / 'predicted'), pictures=('labels',))
    assert predict(config, life.workdir)
    with PIL.Image.open(tmp_path / 'predicted' / 'a_labels.png') as picture:
        assert np.mean(np.asarray(picture) != labels[0]) <= MOST_DIFFERENT


def test_the_server_gives_the_labels_of_segmenter(life, segment, images, labels):
    options = life.config.serve.copy_and_resolve_references()
    options.long_side = images.shape[2]
    app = create_app(segment, options, life.config.model.name)
    picture = io.BytesIO()
    PIL.Image.fromarray(images[0]).save(picture, 'PNG')

    async def ask():
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url='http://localhost') as client:
            return await client.post('/segment', content=picture.getvalue())

    response = asyncio.run(ask())
    assert response.status_code == 200, response.text
    with PIL.Image.open(io.BytesIO(response.content)) as answer:
        assert np.mean(np.asarray(answer) != labels[0]) <= MOST_DIFFERENT


@pytest.mark.parametrize('form', CHOICES['export.format'])
def test_each_export_loaded_back_gives_the_labels_of_segmenter(
    life, trained, segment, tmp_path, monkeypatch, capsys, form
):
    """`export` compares what it loads back, in the export's own runtime, with the Segmenter; here with ours."""
    monkeypatch.setattr('atonet_jax.export.trained_network', lambda *arguments: trained)  # all load it once
    monkeypatch.setattr('atonet_jax.export.comparison.Segmenter', SimpleNamespace(of=lambda trained: segment))
    config = life.config.copy_and_resolve_references()
    config.export.update(format=form, output=str(tmp_path / f'export{ENDINGS.get(form, "")}'))
    path = export(config, life.workdir, force=False)
    said = capsys.readouterr().out
    if form != 'torch':
        assert f'of {np.prod(config.export.size) * (1 if form == "tflite" else 2)} labels' in said
    else:
        name = config.model.name
        assert identify(read_state_dict(path)) == (ROWS[name].files_of or name)


@pytest.mark.parametrize('name', MODEL_NAMES)
def test_dropout_may_change_after_training(name):
    rates = {option for option in family(name).options() if option.startswith('dropout')}
    assert rates <= set(family(name).changeable) <= set(family(name).options())


@pytest.mark.networks
@pytest.mark.parametrize('name', DISTINCT)
@pytest.mark.parametrize('form', [onnx_format, tflite_format])
def test_every_network_is_made_int8_and_gives_nearly_the_logits_of_float(name, form, tmp_path):
    """Of drawn weights labels say little; tests/export/test_int8.py compares those of trained ones."""
    config = default_config(name)
    config.export.update(size=SIZE, outputs='logits')
    images = [render_scene(1, i, *SIZE)[0][None] for i in range(2)]
    model, variables = tiny(name), drawn_variables(tiny(name))
    if form is tflite_format and name.startswith(('dfanet', 'espnet')):
        # It gives one scale to maps that are concatenated, which those of drawn statistics are too unlike for.
        # Of two such images, rounding alone changes some variances a thousandfold, and with them the logits.
        scenes = np.stack([render_scene(1, i, 2 * SIZE[0], 2 * SIZE[1])[0] for i in range(4)])
        variables |= golden.train_mode(model, variables, network(model).normalization(scenes))[1]
    trained = TrainedNetwork(model, variables, CAMVID, step=None)
    path = str(tmp_path / f'int8{form.ENDING}')
    if form is tflite_format and name in NOT_IN_INT8_TFLITE:
        with pytest.raises(ExportError, match='TensorFlow Lite cannot') as refused:
            form.write_int8(path, trained, config, images)
            form.load(path)(images[0])
        assert '\n' not in str(refused.value)
        return
    form.write_int8(path, trained, config, images)
    both = [form.load(path)(images[0]), Segmenter.of(trained).logits(images[0])]
    assert {logits.shape for logits in both} == {(1, *SIZE, CLASSES)}
    pattern, expected = (np.ravel(logits - logits.mean((1, 2))) for logits in both)  # without each class's own level
    assert np.corrcoef(pattern, expected)[0, 1] > (0.5 if name.startswith(HARD_IN_INT8) else 0.9)
    if form is onnx_format:
        assert 'QuantizeLinear' in {node.op_type for node in onnx.load(path).graph.node}


@pytest.mark.networks  # tests/export/test_onnx.py has that of ATONet
def test_one_onnx_file_takes_images_of_any_size_or_says_that_it_cannot(life, trained, tmp_path, monkeypatch, capsys):
    """`export` compares it at two sizes."""
    monkeypatch.setattr('atonet_jax.export.trained_network', lambda *arguments: trained)
    config = life.config.copy_and_resolve_references()
    config.export.update(format='onnx', dynamic_size=True, output=str(tmp_path / 'network.onnx'))
    multiple = network(trained.model).multiple_of
    config.export.size = tuple(-(-length // multiple) * multiple for length in config.export.size)
    if config.model.name.startswith(NOT_OF_ANY_SIZE):
        with pytest.raises(InputError, match='^ONNX: .*config.export.dynamic_size=False') as refused:
            export(config, life.workdir, force=False)
        assert '\n' not in str(refused.value)
    else:
        export(config, life.workdir, force=False)
        assert re.search(r'labels.*; at \d+x\d+: .*labels', capsys.readouterr().out)
