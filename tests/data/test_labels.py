"""Class tables are compared by the names of their classes."""

import dataclasses

from atonet_jax.data.labels import CITYSCAPES, class_difference


def test_classes_that_differ_in_name_alone_are_named():
    renamed = dataclasses.replace(CITYSCAPES, class_names=('lane', *CITYSCAPES.class_names[1:]))
    assert class_difference(CITYSCAPES, CITYSCAPES) == ''
    assert class_difference(CITYSCAPES, renamed) == "class 0 was 'road', is 'lane'"
    turned = dataclasses.replace(CITYSCAPES, class_names=CITYSCAPES.class_names[::-1])
    assert class_difference(CITYSCAPES, turned).endswith(
        "class 1 was 'sidewalk', is 'motorcycle', class 2 was 'building', is 'train', and 15 more classes"
    )
