"""Every loss term equals a plain NumPy reference, in every variant, and never becomes NaN."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atonet_jax.data.labels import IGNORE_LABEL
from atonet_jax.training.losses import HardExampleMining, downsample_labels, segmentation_loss

NUM_CLASSES = 4
AUX_WEIGHTS = {'aux3': 0.4, 'aux5': 1.25}
CLASS_WEIGHTS = (0.5, 2.0, 0.0, 1.5)
VARIANTS = {
    'plain': {},
    'table_4s_dagger_row': {'aux_target': 'upsampled_features'},
    'class_weights': {'class_weights': CLASS_WEIGHTS},
    'mining_by_threshold': {'mining': HardExampleMining(threshold=0.2, min_kept=0.01)},
    'mining_by_share': {'mining': HardExampleMining(threshold=1e-6, min_kept=0.3)},
    'mining_of_more_than_is_labelled': {'mining': HardExampleMining(threshold=1e-6, min_kept=1.0)},
    'mining_and_class_weights': {'mining': HardExampleMining(threshold=0.2), 'class_weights': CLASS_WEIGHTS},
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

    return {'logits': logits(main), 'aux': {'aux3': logits(aux3), 'aux5': logits(aux5)}}


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
    for name, logits in outputs['aux'].items():
        if aux_target == 'downsampled_labels':
            terms[f'{name}_loss'] = reference_term(logits, shrink(labels, logits.shape[1:3]), **options)
        else:
            terms[f'{name}_loss'] = reference_term(enlarge(logits, size), labels, **options)
    return terms


@pytest.mark.parametrize('sizes', SIZES.values(), ids=SIZES)
@pytest.mark.parametrize('options', VARIANTS.values(), ids=VARIANTS)
def test_loss_and_its_terms_equal_the_reference(options, sizes):
    labels, outputs = random_labels(sizes[0]), random_outputs(*sizes[1:])
    loss_fn = jax.jit(lambda *args: segmentation_loss(*args, aux_weights=AUX_WEIGHTS, **options))
    loss, terms = loss_fn(outputs, labels)
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
@pytest.mark.parametrize('factors', [(4, 4), (2, 3)])
def test_loss_by_phases_has_the_value_and_gradient_of_the_enlarged_logits(factors, branch, monkeypatch):
    """Enlarged logits are never written where the factors are integers; nothing else may change, on any platform."""
    monkeypatch.setattr(jax.lax, 'platform_dependent', lambda *args, **branches: branches[branch](*args))
    labels = random_labels((12, 12))
    logits = random_outputs((12 // factors[0], 12 // factors[1]), (1, 1), (1, 1))['logits']

    def by_phases(logits):
        return segmentation_loss({'logits': logits}, labels, aux_weights={})[0]

    def at_full_resolution(logits):
        logits = jax.image.resize(logits, (2, 12, 12, NUM_CLASSES), 'bilinear', antialias=False)
        return segmentation_loss({'logits': logits}, labels, aux_weights={})[0]

    value, gradient = jax.jit(jax.value_and_grad(by_phases))(logits)
    expected_value, expected_gradient = jax.jit(jax.value_and_grad(at_full_resolution))(logits)
    np.testing.assert_allclose(value, expected_value, rtol=1e-5)
    np.testing.assert_allclose(gradient, expected_gradient, atol=1e-6)


def test_loops_over_phases_carry_neighbours_on_cpus_alone():
    """Three maps and the gradient of each; elsewhere half as many at most, as phases form the rest."""

    def loss(logits, labels):
        return segmentation_loss({'logits': logits}, labels, aux_weights={})[0]

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
    loss_fn = jax.jit(
        jax.value_and_grad(lambda outputs: segmentation_loss(outputs, labels, aux_weights=AUX_WEIGHTS, **options)[0])
    )
    loss, gradients = loss_fn(random_outputs(*sizes))
    assert np.isfinite(loss) and (loss == 0) == weighs_nothing
    for gradient in jax.tree.leaves(gradients):
        assert np.isfinite(gradient).all() and (gradient == 0).all() == weighs_nothing


def test_enlargement_from_a_stride_of_32_stays_a_small_program():
    """1024 phases, each with its own loss, would compile for minutes."""
    outputs, labels = random_outputs((16, 16), (4, 4), (2, 2)), random_labels((64, 64))
    program = jax.make_jaxpr(
        lambda outputs: segmentation_loss(outputs, labels, aux_weights=AUX_WEIGHTS, aux_target='upsampled_features')
    )(outputs)
    assert str(program).count('\n') < 5000


def test_auxiliary_outputs_without_a_weight_are_left_out():
    full_size, *sizes = SIZES['integer_factors']
    outputs, labels = random_outputs(*sizes), random_labels(full_size)
    loss, terms = jax.jit(lambda *args: segmentation_loss(*args, aux_weights={'aux5': 0.0}))(outputs, labels)
    assert set(terms) == {'main_loss', 'aux5_loss'}
    assert loss == terms['main_loss']
