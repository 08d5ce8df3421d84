"""What a config's views say about an object without any training: its visual hull, and from where it is seen."""

import logging
import time

import torch

from im2mesh import geometry
from im2mesh.commands.setup import get_dataset
from im2mesh.config import method_module
from im2mesh.dvr.support import RESOLUTION
from im2mesh.errors import InputError
from im2mesh.visual_hull import hull_cells

log = logging.getLogger("im2mesh")


def find_hull(config):
    """The cells (N, N, N) that may hold the object, from the masks and cameras of its training views.

    Raises
    ------
    InputError
        When the data hold several objects, or the masks contradict each other.
    """
    entries = get_dataset(config, "train").entries
    if len({entry.folder for entry in entries}) > 1:
        raise InputError(
            f"model.visual_hull is true, but there are several objects in {config['data']['path']}: "
            "choose one with data.classes, or set false"
        )
    start = time.monotonic()
    folder = entries[0].folder
    items, cameras = _views(config, folder)
    cells = hull_cells([item["mask"] for item in items], cameras, RESOLUTION)
    share = float(cells.float().mean())
    if share == 0:
        raise InputError(
            f"{folder}: no point of the cube lies in the masks of all views. Likely causes: cameras or "
            "scale_mat that put the object outside the cube, a wrong mask, or masks in another order "
            "than the images. model.visual_hull=false trains without the hull"
        )
    log.info(
        "visual hull of %d views: %.1f%% of the cube, %.1f s", len(items), 100 * share,
        time.monotonic() - start,
    )
    return cells


def camera_centers(config, entry):
    """The centres of the cameras of an entry's views: float64 array (V, 3), object space."""
    _, cameras = _views(config, entry.folder)
    pixels = torch.zeros(len(cameras), 1, 2, dtype=torch.float64)
    origins, _ = geometry.camera_rays(pixels, cameras)
    return origins[:, 0].numpy()


def _views(config, folder):
    """What is known of each view of an object, and object to image, (V, 4, 4)."""
    images = method_module(config).get_data_fields(config, "render")["img"]
    items = [images.load(folder, view) for view in images.views(folder)]
    cameras = torch.stack([
        geometry.object_to_image(item["camera_mat"], item["world_mat"], item["scale_mat"])
        for item in items
    ])
    return items, cameras
