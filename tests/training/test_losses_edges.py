"""Edges are OpenCV's in every pixel, and a plain loop's; distances are those of every pair of pixels."""

import cv2
import jax
import numpy as np
import pytest

from atonet_jax.training.losses.edges import boundary_weights, canny, edge_map

EDGE_MAP = jax.jit(edge_map, static_argnums=(1, 2))
CANNY = jax.jit(canny)
SIZE = (37, 50)


def random_label_maps():
    """[8, *SIZE] uint8: from single pixels to patches of several sizes, few and many classes, ignored pixels."""
    rng = np.random.default_rng(0)
    maps = []
    for patch in (1, 2, 3, 7):
        for classes in (2, 256):
            cells = rng.integers(0, classes, (-(-SIZE[0] // patch), -(-SIZE[1] // patch)), dtype=np.uint8)
            labels = cells.repeat(patch, 0).repeat(patch, 1)[: SIZE[0], : SIZE[1]]
            maps.append(np.where(rng.random(SIZE) < 0.02, 255, labels))
    yy, xx = np.mgrid[: SIZE[0], : SIZE[1]]
    maps.append(((yy - 18) ** 2 + (xx - 25) ** 2 < 200) * 7 + (2 * yy + xx > 80) * 3)  # slopes of every direction
    return np.stack(maps).astype(np.uint8)


def opencv_edges(labels, border, width):
    edges = cv2.Canny(labels, 0.1, 0.2)
    if border:
        inside = edges[border:-border, border:-border].copy()
        edges[:] = 0
        edges[border:-border, border:-border] = inside
    return cv2.dilate(edges, np.ones((width, width), np.uint8)) > 0


def plain_edges(labels):
    """Canny's maxima, pixel by pixel."""
    padded = np.pad(labels.astype(int), 1, mode='edge')
    height, width = labels.shape
    gx, gy = np.zeros((2, height, width), int)
    for y in range(height):
        for x in range(width):
            window = padded[y : y + 3, x : x + 3]
            gx[y, x] = (window[:, 2] - window[:, 0]) @ [1, 2, 1]
            gy[y, x] = (window[2] - window[0]) @ [1, 2, 1]
    norm = np.pad(abs(gx) + abs(gy), 1)
    edges = np.zeros((height, width), bool)
    for y in range(height):
        for x in range(width):
            m, w = norm[y + 1, x + 1], norm[y : y + 3, x : x + 3]
            if abs(gy[y, x]) < np.tan(np.pi / 8) * abs(gx[y, x]):
                edges[y, x] = m > w[1, 0] and m >= w[1, 2]
            elif abs(gy[y, x]) > np.tan(3 * np.pi / 8) * abs(gx[y, x]):
                edges[y, x] = m > w[0, 1] and m >= w[2, 1]
            elif (gx[y, x] < 0) == (gy[y, x] < 0):
                edges[y, x] = m > w[0, 0] and m > w[2, 2]
            else:
                edges[y, x] = m > w[0, 2] and m > w[2, 0]
            edges[y, x] &= m > 0
    return edges


@pytest.mark.parametrize('border, width', [(0, 4), (6, 4), (0, 1), (2, 3)])
def test_edges_are_those_of_opencv(border, width):
    labels = random_label_maps()
    expected = np.stack([opencv_edges(one, border, width) for one in labels])
    assert 0.05 < expected.mean() < 0.999
    np.testing.assert_array_equal(EDGE_MAP(labels, border, width), expected)


def test_canny_is_the_plain_loop():
    labels = random_label_maps()
    np.testing.assert_array_equal(CANNY(labels), np.stack([plain_edges(one) for one in labels]))


def test_a_map_of_one_class_has_no_edge():
    assert not np.asarray(EDGE_MAP(np.full((1, *SIZE), 255, np.uint8), 0, 4)).any()


@pytest.mark.parametrize('distances', [(2, 4, 8), (3, 5, 100)])
def test_weights_follow_the_distance_to_another_class(distances):
    labels = random_label_maps()[4:]
    labels = np.concatenate([labels, np.zeros((2, *SIZE), np.uint8)])
    labels[-1, 0, 0] = 1
    weights = (8.0, 4.0, 2.0, 1.0)
    yy, xx = np.mgrid[: SIZE[0], : SIZE[1]]
    squared = (yy.reshape(-1, 1) - yy.ravel()) ** 2 + (xx.reshape(-1, 1) - xx.ravel()) ** 2
    expected = np.empty(labels.shape)
    for i, one in enumerate(labels):
        ids = one.ravel()
        nearest = np.where(ids[:, None] == ids, 10**6, squared).min(1).reshape(SIZE)
        expected[i] = np.select([nearest < d**2 for d in distances], weights[:3], weights[3])
    assert set(np.unique(expected)) == set(weights)
    actual = jax.jit(lambda labels: boundary_weights(labels, distances, weights))(labels)
    np.testing.assert_array_equal(actual, expected)
