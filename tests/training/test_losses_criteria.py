"""Every criterion equals its plain NumPy form, and is 0 with gradient 0 where no pixel counts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atonet_jax.data.labels import IGNORE_LABEL
from atonet_jax.models.terms import (
    BalancedBinaryCrossEntropy,
    BootstrappedCrossEntropy,
    BoundaryWeightedCrossEntropy,
    CrossEntropy,
    Edges,
    HardExampleCount,
    HardExampleShare,
    LabelsOnEdges,
    Term,
)
from atonet_jax.training.losses import total_loss
from atonet_jax.training.losses.criteria import kth_largest, mean_of_largest
from atonet_jax.training.losses.edges import edge_map

NUM_CLASSES = 4
CLASS_WEIGHTS = (0.5, 2.0, 0.25, 1.5)
SIZE = (6, 10)


def random_case(seed=0, ignored_share=0.3):
    """Training outputs at the labels' size, and labels in patches, so that some pixels are not next to an edge."""
    rng = np.random.default_rng(seed)
    outputs = {
        'logits': rng.normal(scale=3, size=(2, *SIZE, NUM_CLASSES)).astype(np.float32),
        'boundary': rng.normal(scale=3, size=(2, *SIZE, 1)).astype(np.float32),
    }
    labels = rng.integers(0, NUM_CLASSES, (2, SIZE[0] // 2, SIZE[1] // 2)).repeat(2, 1).repeat(2, 2)
    labels = np.where(rng.random(labels.shape) < ignored_share, IGNORE_LABEL, labels).astype(np.uint8)
    return outputs, labels


def evaluate(term, outputs, labels, **options):
    """The term's value and the gradient of its output, of the logits [B, H, W, C] or the boundary [B, H, W, 1]."""
    needed = {term.output} | ({term.target.output} if isinstance(term.target, LabelsOnEdges) else set())

    @jax.jit
    @jax.value_and_grad
    def loss(outputs):
        return total_loss(outputs, labels, (term,), **options)[0]

    value, gradients = loss({name: jnp.asarray(outputs[name]) for name in needed})
    return float(value), np.asarray(gradients[term.output])


def log_probabilities(logits):
    logits = logits.astype(np.float64)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def labelled_losses(outputs, labels):
    """-log p of the true class, and the class, of every labelled pixel: float64 [n], int [n]."""
    labelled = labels != IGNORE_LABEL
    classes = labels[labelled].astype(int)
    return -log_probabilities(outputs['logits'])[labelled][np.arange(len(classes)), classes], classes


def cross_entropy_over_all(outputs, labels):
    losses, classes = labelled_losses(outputs, labels)
    return np.sum(np.array(CLASS_WEIGHTS)[classes] * losses) / labels.size


def cross_entropy(outputs, labels):
    losses, classes = labelled_losses(outputs, labels)
    weights = np.array(CLASS_WEIGHTS)[classes]
    return np.sum(weights * losses) / np.sum(weights)


def hard_example_share(threshold, min_kept):
    """As in BiSeNet's code: probabilities, 1 where ignored, sorted upwards."""

    def value(outputs, labels):
        losses, classes = labelled_losses(outputs, labels)
        probabilities = np.exp(-losses)
        ranked = np.sort(np.concatenate([probabilities, np.ones(labels.size - len(losses))]))
        kept = probabilities <= max(threshold, ranked[round(min_kept * labels.size) - 1])
        weights = np.array(CLASS_WEIGHTS)[classes[kept]]
        return np.sum(weights * losses[kept]) / np.sum(weights)

    return value


def hard_example_count(threshold, min_kept):
    """As in PIDNet's code: labelled pixels alone, the rank from 0, strictly below, divided by the number of pixels."""

    def value(outputs, labels):
        losses, classes = labelled_losses(outputs, labels)
        probabilities = np.exp(-losses)
        kept = probabilities < max(threshold, np.sort(probabilities)[min(min_kept, len(losses) - 1)])
        return np.mean((np.array(CLASS_WEIGHTS)[classes] * losses)[kept])

    return value


def bootstrapped(count):
    def value(outputs, labels):
        means = []
        for logits, label_map in zip(outputs['logits'], labels, strict=True):
            losses, classes = labelled_losses({'logits': logits}, label_map)
            losses = np.concatenate([np.array(CLASS_WEIGHTS)[classes] * losses, np.zeros(label_map.size - len(losses))])
            means.append(np.mean(np.sort(losses)[::-1][:count]))
        return np.mean(means)

    return value


def boundary_weighted(outputs, labels):
    """Distances by trying every pair of pixels; thresholds small, so that all four weights occur."""
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    total = 0.0
    for logits, label_map in zip(outputs['logits'], labels, strict=True):
        for y, x in zip(*np.nonzero(label_map != IGNORE_LABEL), strict=True):
            others = label_map != label_map[y, x]
            distance = np.sqrt((rows - y) ** 2 + (columns - x) ** 2)[others].min()
            near = 8.0 if distance < 1.2 else 4.0 if distance < 2 else 2.0 if distance < 3 else 1.0
            loss = -log_probabilities(logits[y, x])[label_map[y, x]]
            total += CLASS_WEIGHTS[label_map[y, x]] * near * np.exp(0.5 * (1 - np.exp(-loss))) * loss
    return total / np.sum(labels != IGNORE_LABEL)


def balanced_binary(outputs, labels):
    x = outputs['boundary'][..., 0].astype(np.float64)
    edges = np.asarray(edge_map(jnp.asarray(labels), 1, 2)).astype(np.float64)
    probabilities = 1 / (1 + np.exp(-x))
    losses = -edges * np.log(probabilities) - (1 - edges) * np.log(1 - probabilities)
    weights = np.where(edges == 1, np.mean(edges == 0), np.mean(edges == 1))
    assert 0 < edges.mean() < 1
    return np.mean(weights * losses)


def on_edges(value):
    def on_edges_alone(outputs, labels):
        kept = 1 / (1 + np.exp(-outputs['boundary'][..., 0].astype(np.float64))) > 0.8
        return value(outputs, np.where(kept, labels, IGNORE_LABEL))

    return on_edges_alone


CASES = {
    'cross_entropy': (Term('logits'), cross_entropy),
    'cross_entropy_over_all': (Term('logits', criterion=CrossEntropy(over='all')), cross_entropy_over_all),
    'share_by_threshold': (Term('logits', criterion=HardExampleShare(0.3, 0.01)), hard_example_share(0.3, 0.01)),
    'share_by_rank': (Term('logits', criterion=HardExampleShare(1e-6, 0.3)), hard_example_share(1e-6, 0.3)),
    'share_of_all': (Term('logits', criterion=HardExampleShare(1e-6, 0.9)), hard_example_share(1e-6, 0.9)),
    'count_by_threshold': (Term('logits', criterion=HardExampleCount(0.3, 5)), hard_example_count(0.3, 5)),
    'count_by_rank': (Term('logits', criterion=HardExampleCount(1e-6, 20)), hard_example_count(1e-6, 20)),
    'count_of_all': (Term('logits', criterion=HardExampleCount(1e-6, 1000)), hard_example_count(1e-6, 1000)),
    'bootstrapped': (Term('logits', criterion=BootstrappedCrossEntropy(7)), bootstrapped(7)),
    'bootstrapped_all': (Term('logits', criterion=BootstrappedCrossEntropy(1000)), bootstrapped(1000)),
    'boundary_weighted': (
        Term('logits', criterion=BoundaryWeightedCrossEntropy((1.2, 2, 3), (8.0, 4.0, 2.0, 1.0))),
        boundary_weighted,
    ),
    'balanced_binary': (
        Term('boundary', target=Edges(border=1, width=2), criterion=BalancedBinaryCrossEntropy()),
        balanced_binary,
    ),
    'on_edges': (Term('logits', target=LabelsOnEdges()), on_edges(cross_entropy)),
    'count_on_edges': (
        Term('logits', target=LabelsOnEdges(), criterion=HardExampleCount(1e-6, 5)),
        on_edges(hard_example_count(1e-6, 5)),
    ),
}


@pytest.mark.parametrize('term, reference', CASES.values(), ids=CASES)
def test_value_equals_the_plain_form_and_gradient_its_slope(term, reference):
    outputs, labels = random_case()
    value, gradient = evaluate(term, outputs, labels, class_weights=CLASS_WEIGHTS)
    np.testing.assert_allclose(value, reference(outputs, labels), rtol=1e-5)
    if isinstance(term.criterion, BoundaryWeightedCrossEntropy):
        return  # no gradient flows through one factor: see below
    direction = np.random.default_rng(1).normal(size=gradient.shape)
    logits = outputs[term.output].astype(np.float64)
    ahead, behind = (reference(outputs | {term.output: logits + step * direction}, labels) for step in (1e-6, -1e-6))
    np.testing.assert_allclose(np.sum(gradient * direction), (ahead - behind) / 2e-6, rtol=1e-3)


def test_cases_differ():
    """All but two: every labelled pixel is a cross-entropy again, and every pixel one over all of them."""
    outputs, labels = random_case()
    values = {name: reference(outputs, labels) for name, (_, reference) in CASES.items()}
    assert values.pop('share_of_all') == pytest.approx(values['cross_entropy'])
    assert values.pop('bootstrapped_all') == pytest.approx(values['cross_entropy_over_all'])
    assert np.min(np.diff(np.sort(list(values.values())))) > 1e-3


def test_gradient_of_boundary_weighting_leaves_the_focus_alone():
    term, _ = CASES['boundary_weighted']
    outputs, labels = random_case(ignored_share=0.0)
    labels[:] = 1
    _, gradient = evaluate(term, outputs, labels)
    _, plain = evaluate(Term('logits'), outputs, labels)
    losses, _ = labelled_losses(outputs, labels)
    focus = np.exp(0.5 * (1 - np.exp(-losses))).reshape(labels.shape)
    np.testing.assert_allclose(gradient, plain * focus[..., None], atol=1e-6)


@pytest.mark.parametrize('term', [term for term, _ in CASES.values() if term.output == 'logits'])
def test_no_labelled_pixel_gives_zero_and_no_gradient(term):
    outputs, labels = random_case()
    value, gradient = evaluate(term, outputs, np.full_like(labels, IGNORE_LABEL), class_weights=CLASS_WEIGHTS)
    assert value == 0 and (gradient == 0).all()


def test_no_edge_in_sight_gives_zero_and_no_gradient():
    outputs, labels = random_case()
    outputs['boundary'][:] = -5
    value, gradient = evaluate(CASES['count_on_edges'][0], outputs, labels)
    assert value == 0 and (gradient == 0).all()
    value, gradient = evaluate(CASES['balanced_binary'][0], outputs, np.full_like(labels, 2))
    assert value == 0 and (gradient == 0).all()


def test_criteria_see_the_pixels_of_the_image_whatever_their_order():
    """Enlarged by phases the losses come in another order: images and distances must not be mixed up."""
    outputs, labels = random_case()
    logits = outputs['logits'][:, :3, :5]
    enlarged = jax.image.resize(logits, (2, *SIZE, NUM_CLASSES), 'bilinear', antialias=False)
    for criterion in (BootstrappedCrossEntropy(8), BoundaryWeightedCrossEntropy((2, 3), (4.0, 2.0, 1.0))):
        by_phases, _ = evaluate(Term('logits', criterion=criterion), {'logits': logits}, labels)
        at_once, _ = evaluate(Term('logits', criterion=criterion), {'logits': enlarged}, labels)
        assert by_phases == pytest.approx(at_once, rel=1e-5)


def test_kth_largest_is_that_of_a_sort():
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(size=20), [0.0, -0.0, 3.0, 3.0, -1.0, np.inf]]).astype(np.float32)
    values = np.stack([values, rng.permutation(values)])
    find = jax.jit(kth_largest)
    for k in range(1, values.shape[1] + 1):
        np.testing.assert_array_equal(find(values, k), np.sort(values, 1)[:, -k])


def test_equal_losses_share_the_last_places():
    value, gradient = jax.value_and_grad(mean_of_largest)(jnp.array([[5.0, 1.0, 1.0, 0.5]]), 2)
    assert value == 3
    np.testing.assert_allclose(gradient, [[0.5, 0.25, 0.25, 0.0]])
