"""Every loss term equals a plain NumPy reference, in every variant, and never becomes NaN."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atonet_jax import ops
from atonet_jax.data.labels import IGNORE_LABEL
from atonet_jax.errors import InputError
from atonet_jax.models import create_model, distinct_networks, network
from atonet_jax.models.terms import (
    BalancedBinaryCrossEntropy,
    CrossEntropy,
    Edges,
    HardExampleCount,
    HardExampleShare,
    LabelsOnEdges,
    Term,
)
from atonet_jax.training.losses import check_terms, configured_terms, label_weights, total_loss
from atonet_jax.training.losses.terms import downsample_labels

NUM_CLASSES = 4
MAIN = (Term('logits'),)
TERMS = (*MAIN, Term('aux3', 0.4, at='output'), Term('aux5', 1.25, at='output'))
PIDNET_LIKE = (
    Term('aux', 0.4, criterion=CrossEntropy(over='all')),
    Term('logits', criterion=HardExampleCount()),
    Term('boundary', 20.0, Edges(), BalancedBinaryCrossEntropy()),
    Term('logits', target=LabelsOnEdges(), criterion=HardExampleCount()),
)
NO_CHANGES = {'aux_weights': (), 'aux_target': '', 'mining': False, 'mining_threshold': 0.7, 'mining_min_kept': 0.1}
CLASS_WEIGHTS = (0.5, 2.0, 0.0, 1.5)
VARIANTS = {
    'plain': {},
    'table_4s_dagger_row': {'aux_target': 'upsampled_features'},
    'class_weights': {'class_weights': CLASS_WEIGHTS},
    'mining_by_threshold': {'mining': HardExampleShare(threshold=0.2, min_kept=0.01)},
    'mining_by_share': {'mining': HardExampleShare(threshold=1e-6, min_kept=0.3)},
    'mining_of_more_than_is_labelled': {'mining': HardExampleShare(threshold=1e-6, min_kept=1.0)},
    'mining_and_class_weights': {'mining': HardExampleShare(threshold=0.2), 'class_weights': CLASS_WEIGHTS},
}
# Of the labels, the main output and the two auxiliary ones; the others are strides 4, 16 and 32 of an odd size.
SIZES = {
    'integer_factors': ((8, 24), (4, 12), (4, 8), (8, 12)),
    'other_factors': ((33, 50), (9, 13), (3, 4), (2, 2)),
}


def random_labels(size, ignored_share=0.3):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, NUM_CLASSES, (2, *size), dtype=np.uint8)
    return np.where(rng.random(labels.shape) < ignored_share, IGNORE_LABEL, labels).astype(np.uint8)


def random_outputs(main, aux3, aux5):
    rng = np.random.default_rng(1)

    def logits(size):
        return rng.normal(scale=3, size=(2, *size, NUM_CLASSES)).astype(np.float32)

    return {'logits': logits(main), 'aux3': logits(aux3), 'aux5': logits(aux5)}


def enlarge(logits, size):
    return np.asarray(jax.image.resize(logits, (2, *size, NUM_CLASSES), 'bilinear', antialias=False), np.float64)


def shrink(labels, size):
    height, width = labels.shape[1:]
    rows = [int((i + 0.5) * height / size[0]) for i in range(size[0])]
    columns = [int((j + 0.5) * width / size[1]) for j in range(size[1])]
    return labels[:, rows][:, :, columns]


def reference_term(logits, labels, mining=None, class_weights=(1,) * NUM_CLASSES):
    """Average cross-entropy, by a sort of the labelled pixels where hard ones are mined."""
    labelled = labels != IGNORE_LABEL
    classes, logits = labels[labelled], logits[labelled].astype(np.float64)
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    probabilities = probabilities[np.arange(len(classes)), classes]
    hardest_first = np.argsort(probabilities)
    if mining is not None:
        below_threshold = np.sum(probabilities < mining.threshold)
        kept = max(below_threshold, round(mining.min_kept * labels.size))
        hardest_first = hardest_first[:kept]
    weights = np.array(class_weights)[classes[hardest_first]]
    return np.sum(weights * -np.log(probabilities[hardest_first])) / np.sum(weights)


def reference_terms(outputs, labels, aux_target='downsampled_labels', **options):
    size = labels.shape[1:]
    terms = {'main_loss': reference_term(enlarge(outputs['logits'], size), labels, **options)}
    for name in ('aux3', 'aux5'):
        if aux_target == 'downsampled_labels':
            target = shrink(labels, outputs[name].shape[1:3])
            terms[f'{name}_loss'] = reference_term(outputs[name], target, **options)
        else:
            terms[f'{name}_loss'] = reference_term(enlarge(outputs[name], size), labels, **options)
    return terms


def loss_of(outputs, labels, aux_target='', mining=None, class_weights=None):
    """The loss with the options of a variant, as the configuration makes terms of them."""
    config = NO_CHANGES | {'aux_target': aux_target}
    if mining is not None:
        config |= {'mining': True, 'mining_threshold': mining.threshold, 'mining_min_kept': mining.min_kept}
    terms = configured_terms(TERMS, SimpleNamespace(**config))
    return total_loss(outputs, labels, terms, class_weights=class_weights)


@pytest.mark.parametrize('sizes', SIZES.values(), ids=SIZES)
@pytest.mark.parametrize('options', VARIANTS.values(), ids=VARIANTS)
def test_loss_and_its_terms_equal_the_reference(options, sizes):
    labels, outputs = random_labels(sizes[0]), random_outputs(*sizes[1:])
    loss, terms = jax.jit(lambda *args: loss_of(*args, **options))(outputs, labels)
    expected = reference_terms(outputs, labels, **options)
    assert set(terms) == set(expected)
    for name, term in terms.items():
        np.testing.assert_allclose(term, expected[name], rtol=1e-4, err_msg=name)
    weighted_sum = expected['main_loss'] + 0.4 * expected['aux3_loss'] + 1.25 * expected['aux5_loss']
    np.testing.assert_allclose(loss, weighted_sum, rtol=1e-4)


def test_variants_of_the_reference_differ():
    """Else the comparison above could not tell them apart."""
    sizes = SIZES['other_factors']
    labels, outputs = random_labels(sizes[0]), random_outputs(*sizes[1:])
    losses = [sum(reference_terms(outputs, labels, **options).values()) for options in VARIANTS.values()]
    everything_kept = list(VARIANTS).index('mining_of_more_than_is_labelled')
    assert losses.pop(everything_kept) == pytest.approx(losses[0])
    assert min(np.diff(sorted(losses))) > 1e-2


@pytest.mark.parametrize('branch', ['cpu', 'default'])
@pytest.mark.parametrize('factors', [(4, 4), (2, 3), (6, 12)])
def test_loss_by_phases_has_the_value_and_gradient_of_the_enlarged_logits(factors, branch, monkeypatch):
    """Enlarged logits are never written where the factors are integers; nothing else may change, on any platform."""
    monkeypatch.setattr(jax.lax, 'platform_dependent', lambda *args, **branches: branches[branch](*args))
    labels = random_labels((12, 12))
    logits = random_outputs((12 // factors[0], 12 // factors[1]), (1, 1), (1, 1))['logits']

    def by_phases(logits):
        return total_loss({'logits': logits}, labels, MAIN)[0]

    def at_full_resolution(logits):
        logits = jax.image.resize(logits, (2, 12, 12, NUM_CLASSES), 'bilinear', antialias=False)
        return total_loss({'logits': logits}, labels, MAIN)[0]

    value, gradient = jax.jit(jax.value_and_grad(by_phases))(logits)
    expected_value, expected_gradient = jax.jit(jax.value_and_grad(at_full_resolution))(logits)
    np.testing.assert_allclose(value, expected_value, rtol=1e-5)
    np.testing.assert_allclose(gradient, expected_gradient, atol=1e-6)


@pytest.mark.parametrize('upsampling, size', [('align_corners', (16, 24)), ('half_pixel', (17, 25))])
def test_loss_by_strips_has_the_value_and_gradient_of_the_enlarged_logits(upsampling, size):
    labels, logits = random_labels(size), random_outputs((4, 6), (1, 1), (1, 1))['logits']
    resize = {'align_corners': ops.resize_align_corners, 'half_pixel': ops.resize_bilinear}[upsampling]

    def loss(logits):
        return total_loss({'logits': logits}, labels, MAIN, upsampling)[0]

    value, gradient = jax.jit(jax.value_and_grad(loss))(logits)
    expected_value, expected_gradient = jax.jit(jax.value_and_grad(lambda logits: loss(resize(logits, size))))(logits)
    np.testing.assert_allclose(value, expected_value, rtol=1e-5)
    np.testing.assert_allclose(gradient, expected_gradient, atol=1e-6)


def test_loops_over_phases_carry_neighbours_on_cpus_alone():
    """Three maps and the gradient of each; elsewhere half as many at most, as phases form the rest."""

    def loss(logits, labels):
        return total_loss({'logits': logits}, labels, MAIN)[0]

    shapes = jax.ShapeDtypeStruct((1, 6, 9, 5), jnp.float32), jax.ShapeDtypeStruct((1, 24, 36), jnp.uint8)
    carried = {}
    for platform in ('cpu', 'cuda', 'tpu'):
        program = jax.export.export(jax.jit(jax.grad(loss)), platforms=[platform])(*shapes).mlir_module()
        loops = [line for line in program.splitlines() if 'stablehlo.while' in line]
        carried[platform] = max(line.count('tensor<1x6x5x9xf32>') for line in loops)
    assert carried['cpu'] == 6 and max(carried['cuda'], carried['tpu']) <= 3


@pytest.mark.parametrize('size', [(1, 2), (2, 2), (3, 4), (9, 13), (33, 50)])
def test_labels_are_downsampled_at_pixel_centres(size):
    """Straight from full size, for maps whose size does not divide the image's too."""
    labels = np.arange(33 * 50).reshape(1, 33, 50)
    np.testing.assert_array_equal(downsample_labels(labels, size), shrink(labels, size))


@pytest.mark.parametrize(
    'options', [VARIANTS[name] for name in ('plain', 'mining_and_class_weights', 'table_4s_dagger_row')]
)
@pytest.mark.parametrize(
    'label', [IGNORE_LABEL, CLASS_WEIGHTS.index(0)], ids=['all_ignored', 'all_of_the_class_that_may_weigh_nothing']
)
def test_batch_without_labelled_pixels_gives_exactly_zero(options, label):
    weighs_nothing = label == IGNORE_LABEL or 'class_weights' in options
    full_size, *sizes = SIZES['integer_factors']
    labels = jnp.full((2, *full_size), label, jnp.uint8)
    loss_fn = jax.jit(jax.value_and_grad(lambda outputs: loss_of(outputs, labels, **options)[0]))
    loss, gradients = loss_fn(random_outputs(*sizes))
    assert np.isfinite(loss) and (loss == 0) == weighs_nothing
    for gradient in jax.tree.leaves(gradients):
        assert np.isfinite(gradient).all() and (gradient == 0).all() == weighs_nothing


def test_enlargement_from_a_stride_of_32_stays_a_small_program():
    """1024 phases, each with its own loss, would compile for minutes."""
    outputs, labels = random_outputs((16, 16), (4, 4), (2, 2)), random_labels((64, 64))
    program = jax.make_jaxpr(lambda outputs: loss_of(outputs, labels, aux_target='upsampled_features'))(outputs)
    assert str(program).count('\n') < 5000


@pytest.mark.parametrize('stride, upsampling', [(4, 'half_pixel'), (8, 'half_pixel'), (8, 'align_corners')])
def test_loss_and_gradient_take_less_memory_than_the_enlarged_logits(stride, upsampling):
    """Enlarged logits, 512x512 pixels of 19 classes, are 20 MB; with their gradient the plain way takes 60."""
    logits = jax.ShapeDtypeStruct((1, 512 // stride, 512 // stride, 19), jnp.float32)
    labels = jax.ShapeDtypeStruct((1, 512, 512), jnp.uint8)

    def loss(logits, labels):
        return total_loss({'logits': logits}, labels, MAIN, upsampling)[0]

    program = jax.jit(jax.value_and_grad(loss)).lower(logits, labels).compile()
    assert program.memory_analysis().temp_size_in_bytes < 20e6


@pytest.mark.parametrize('upsampling, expected', [('half_pixel', [1, 3, 5, 7]), ('align_corners', [0, 3, 5, 8])])
def test_labels_are_downsampled_as_outputs_are_upsampled(upsampling, expected):
    labels = np.arange(9).reshape(1, 1, 9).astype(np.uint8)
    np.testing.assert_array_equal(downsample_labels(labels, (1, 4), upsampling)[0, 0], expected)


@functools.cache
def shares_of_equal_pixels(upsampling, stride):
    """Of drawn labels that are shrunk by each rule and enlarged again by `upsampling`: the share that is as before."""
    size = 180, 240
    rows, columns = np.mgrid[: size[0], : size[1]]
    labels = (rows > 100).astype(np.uint8)
    for i, (row, column, radius) in enumerate([(40, 50, 30), (90, 120, 25), (150, 190, 20), (120, 30, 12)]):
        labels[(rows - row) ** 2 + (columns - column) ** 2 < radius**2] = 2 + i % 2
    for left in (80, 163, 205):
        labels[20:150, left : left + 6] = 4
    matrix_of = {'half_pixel': ops.half_pixel_matrix, 'align_corners': ops.align_corners_matrix}[upsampling]
    steps = [-(-length // stride) for length in size]
    matrices = [matrix_of(new, old) for new, old in zip(steps, size)]
    corners = [np.arange(new) * old // new for new, old in zip(steps, size)]  # torch's 'nearest'
    shrunk = {rule: downsample_labels(labels[None], steps, rule)[0] for rule in ('half_pixel', 'align_corners')}
    shrunk['corners'] = labels[np.ix_(*corners)]
    enlarged = {
        rule: np.einsum('Hh,Ww,hwc->HWc', *matrices, np.eye(5)[small], optimize=True) for rule, small in shrunk.items()
    }
    return {rule: np.mean(scores.argmax(-1) == labels) for rule, scores in enlarged.items()}


MODELS = [create_model(name, 19) for name in distinct_networks()]
MODELS += [create_model('deeplab_largefov', 19, caffe_sizes=True), create_model('erfnet', 19, head='both')]


@pytest.mark.parametrize('stride', [4, 8, 16])
def test_labels_at_the_size_of_an_output_are_those_that_its_enlargement_restores_best(stride):
    """Of all terms that compare labels at that size, or do if asked. Other rules shift what a network learns."""
    compared = 0
    for contract in map(network, MODELS):
        shares = shares_of_equal_pixels(contract.upsampling, stride)
        for term in contract.terms:
            if term.at == 'output' or term.target == 'labels' and term.output != 'logits':
                assert shares[contract.upsampling] == max(shares.values()), (contract.published.title, term)
                compared += 1
    assert compared > 15


def test_the_networks_upsampling_holds_at_either_size():
    outputs, labels = random_outputs((3, 4), (3, 4), (3, 4)), random_labels((9, 13))
    outputs = {name: outputs[name] for name in ('logits', 'aux3')}
    terms = Term('logits'), Term('aux3', at='output')
    values = jax.jit(lambda outputs: total_loss(outputs, labels, terms, 'align_corners')[1])(outputs)
    rows, columns = (
        np.array([np.interp(np.arange(new) * (old - 1) / (new - 1), np.arange(old), one) for one in np.eye(old)])
        for old, new in ((3, 9), (4, 13))
    )
    enlarged = np.einsum('hH,wW,bhwc->bHWc', rows, columns, outputs['logits'].astype(np.float64))
    np.testing.assert_allclose(values['main_loss'], reference_term(enlarged, labels), rtol=1e-5)
    target = labels[:, [0, 4, 8]][:, :, [0, 4, 8, 12]]
    np.testing.assert_allclose(values['aux3_loss'], reference_term(outputs['aux3'], target), rtol=1e-5)


def test_parts_of_a_batch_sum_to_its_plain_terms_and_to_the_mean_of_others():
    """The parts differ in their labelled pixels: a mean over the whole batch is not the mean over the parts."""
    terms = (
        Term('logits'),
        Term('aux3', at='output', criterion=CrossEntropy(over='all')),
        Term('aux5', at='output', criterion=HardExampleShare(min_kept=0.5)),
    )
    outputs, labels = random_outputs((8, 8), (4, 4), (2, 2)), random_labels((16, 16))
    labels[1, 3:] = IGNORE_LABEL

    @jax.jit
    def in_parts(outputs, labels, **options):
        return [
            total_loss({name: logits[i : i + 1] for name, logits in outputs.items()}, labels[i : i + 1], terms,
                       class_weights=CLASS_WEIGHTS, **options)
            for i in range(2)
        ]  # fmt: skip

    totals = label_weights(outputs, labels, terms, class_weights=CLASS_WEIGHTS)
    assert set(totals) == {'main_loss', 'aux3_loss'}
    loss, values = jax.tree.map(lambda *parts: sum(parts), *in_parts(outputs, labels, total_weights=totals, parts=2))
    _, whole = jax.jit(lambda *args: total_loss(*args, terms, class_weights=CLASS_WEIGHTS))(outputs, labels)
    alone = [values['aux5_loss'] for _, values in in_parts(outputs, labels)]
    assert float(values['main_loss']) == pytest.approx(float(whole['main_loss']), rel=1e-5)
    assert float(values['aux3_loss']) == pytest.approx(float(whole['aux3_loss']), rel=1e-5)
    assert float(values['aux5_loss']) == pytest.approx(float(sum(alone)) / 2, rel=1e-5)
    assert float(loss) == pytest.approx(float(sum(values.values())), rel=1e-5)


def test_a_term_that_weighs_nothing_is_still_reported():
    full_size, *sizes = SIZES['integer_factors']
    outputs, labels = random_outputs(*sizes), random_labels(full_size)
    terms = configured_terms(TERMS, SimpleNamespace(**NO_CHANGES | {'aux_weights': (0.0, 0.0)}))
    loss, values = jax.jit(lambda *args: total_loss(*args, terms))(outputs, labels)
    assert set(values) == {'main_loss', 'aux3_loss', 'aux5_loss'}
    assert loss == values['main_loss']


def test_names_of_terms():
    names = [term.loss_name for term in PIDNET_LIKE]
    assert names == ['aux_loss', 'main_loss', 'boundary_loss', 'logits_on_edges_loss']
    assert Term('logits', name='coarse').loss_name == 'coarse_loss'


def test_configuration_changes_the_terms_that_it_names():
    def configured(terms, **changes):
        return configured_terms(terms, SimpleNamespace(**NO_CHANGES | changes))

    assert configured(PIDNET_LIKE) == PIDNET_LIKE
    weights = [term.weight for term in configured(PIDNET_LIKE, aux_weights=(1.0, 2.0, 3.0))]
    assert weights == [1.0, 1.0, 2.0, 3.0], 'the main term, here the second, keeps its own'
    assert [term.at for term in configured(TERMS)] == ['labels', 'output', 'output']
    assert [term.at for term in configured(TERMS, aux_target='upsampled_features')] == ['labels'] * 3
    at = [term.at for term in configured(PIDNET_LIKE, aux_target='downsampled_labels')]
    assert at == ['output', 'labels', 'labels', 'labels'], 'edges are no labels'
    criteria = [term.criterion for term in configured(PIDNET_LIKE, mining=True)]
    assert criteria == [HardExampleShare(0.7, 0.1), *(term.criterion for term in PIDNET_LIKE[1:])]


@pytest.mark.parametrize(
    ('terms', 'changes', 'message'),
    [
        (PIDNET_LIKE[1:], {'mining': True}, 'mining=True: the network has no plain cross-entropy'),
        (PIDNET_LIKE[1:], {'aux_target': 'upsampled_features'}, "aux_target='upsampled_features': the network has"),
        (MAIN, {'aux_target': 'downsampled_labels'}, "aux_target='downsampled_labels': the network has no auxiliary"),
    ],
)
def test_settings_that_no_term_could_follow_are_refused(terms, changes, message):
    with pytest.raises(InputError, match=f'config.loss.{message}'):
        configured_terms(terms, SimpleNamespace(**NO_CHANGES | changes))


@pytest.mark.parametrize('weights', [(1.0,), (1.0, 1.0, 1.0)])
def test_a_wrong_number_of_auxiliary_weights_is_refused_in_one_line(weights):
    with pytest.raises(InputError, match=r'config\.loss\.aux_weights=.*2 numbers.*aux3, aux5') as error:
        configured_terms(TERMS, SimpleNamespace(**NO_CHANGES | {'aux_weights': weights}))
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    'channels, terms, message',
    [
        ({'logits': 3, 'aux9': 3}, MAIN, "none takes the training output 'aux9'"),
        ({'logits': 3}, TERMS, "no training output 'aux3'"),
        ({'logits': 3}, (Term('logits', target=LabelsOnEdges()),), "no training output 'boundary'"),
        ({'logits': 3}, (Term('logits'), Term('logits')), "two are named 'main_loss'"),
        ({'logits': 3, 'aux': 3, 'boundary': 2}, PIDNET_LIKE, "'boundary'.*one channel"),
    ],
)
def test_outputs_and_terms_that_do_not_belong_together_are_refused_in_one_line(channels, terms, message):
    outputs = {name: np.zeros((1, 2, 2, count), np.float32) for name, count in channels.items()}
    for refuse in (check_terms, lambda outputs, terms: total_loss(outputs, np.zeros((1, 2, 2), np.uint8), terms)):
        with pytest.raises(InputError, match=message) as error:
            refuse(outputs, terms)
        assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    'fields',
    [{'at': 'input'}, {'target': 'edges'}, {'target': Edges()}],
)
def test_a_term_with_a_wrong_field_is_refused(fields):
    with pytest.raises(ValueError, match='Term'):
        Term('logits', **fields)
