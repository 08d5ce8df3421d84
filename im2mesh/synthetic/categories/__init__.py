"""Endless objects of a few categories, in the manner of ShapeNet.

A category is a function ``rng -> list of Part``: everything about the object, its structure, its
proportions and its colours, is drawn from the generator. All objects of a category stand upright,
+y up, and face the same way: chairs, cars and airplanes look towards -z (as in ShapeNet), the
handle of a mug points to +x. Sizes are arbitrary here, about 1; see ``normalised``.
"""

import numpy as np

from im2mesh.synthetic.categories.airplane import airplane
from im2mesh.synthetic.categories.car import car
from im2mesh.synthetic.categories.chair import chair
from im2mesh.synthetic.categories.lamp import lamp
from im2mesh.synthetic.categories.mug import mug
from im2mesh.synthetic.categories.table import table

CATEGORIES = {
    "airplane": airplane, "car": car, "chair": chair, "lamp": lamp, "mug": mug, "table": table,
}
EDGE_LENGTH = 0.9  # of the bounding box: the longest


def normalised(parts):
    """The parts with their common bounding box centred, its longest edge ``EDGE_LENGTH``."""
    corners = np.concatenate([part.vertices for part in parts])
    low, high = corners.min(0), corners.max(0)
    factor = EDGE_LENGTH / (high - low).max()
    return [part.moved(*-(low + high) / 2).scaled(factor) for part in parts]
