"""Procedural objects rendered into datasets with exact ground truth."""

from im2mesh.synthetic.categories import CATEGORIES
from im2mesh.synthetic.dtu import SCENES, make_dtu_scene
from im2mesh.synthetic.shapenet import Recipe, make_shapenet_dataset
from im2mesh.synthetic.writers import write_exr

__all__ = [
    "CATEGORIES", "SCENES", "Recipe", "make_dtu_scene", "make_shapenet_dataset", "write_exr",
]
