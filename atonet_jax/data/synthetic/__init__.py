"""Synthetic street scenes with the 19 Cityscapes classes, rendered from a seed.

A scene is a street in metres: strips of ground beside each other (lanes, parking, verge, pavement, lot), and
things that stand on them. Everything is a planar polygon in the world. `Painter` draws the polygons from far
to near as numbers into one map of surfaces and one map of labels, so image and labels agree to the pixel;
then it colours each visible surface once, in the surface's own coordinates. Colours are random and shared
between classes on purpose: what tells a class from another is its structure, shape and surroundings.
Every `draw_*` takes the painter, the scene's generator and the frame in which the thing stands.

From the outside in:
    write           a data set on disk, in the layout of Cityscapes
    scene           one scene: image and labels
    street          what stands where
    kinds           the kinds of things: how often, how far, where
    vehicles, people, furniture, surroundings       how each thing is drawn
    painter         camera, polygons, surfaces
    paints          random colours and textures
    geometry        planes, frames, outlines
"""

from atonet_jax.data.synthetic.scene import render_scene
from atonet_jax.data.synthetic.write import write_dataset

__all__ = ['render_scene', 'write_dataset']
