"""Procedural objects rendered into datasets with exact ground truth."""

from im2mesh.synthetic.dataset import make_dtu_scene, write_exr

__all__ = ["make_dtu_scene", "write_exr"]
