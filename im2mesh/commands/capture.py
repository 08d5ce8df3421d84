"""What a config's views say about an object without any training: its visual hull, and from where it is seen."""

import logging
import time

import torch

from im2mesh import geometry
from im2mesh.commands.setup import get_dataset
from im2mesh.config import method_module
from im2mesh.data.fields import read_camera
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
    images = method_module(config).get_data_fields(config, "render")["img"]
    views = images.views(folder)
    masks = [images.load(folder, view)["mask"] for view in views]
    cells = hull_cells(masks, view_matrices(entries[0], views), RESOLUTION)
    share = float(cells.float().mean())
    if share == 0:
        raise InputError(
            f"{folder}: no point of the cube lies in the masks of all views. Likely causes: cameras or "
            "scale_mat that put the object outside the cube, a wrong mask, or masks in another order "
            "than the images. model.visual_hull=false trains without the hull"
        )
    log.info(
        "visual hull of %d views: %.1f%% of the cube, %.1f s", len(views), 100 * share,
        time.monotonic() - start,
    )
    return cells


def view_matrices(entry, views):
    """Object to image, (V, 4, 4), of some views of an entry, by number."""
    cameras = [read_camera(entry.folder / "cameras.npz", view) for view in views]
    return torch.stack([
        geometry.object_to_image(camera["camera_mat"], camera["world_mat"], camera["scale_mat"])
        for camera in cameras
    ])


def camera_centers(matrices):
    """The centres (V, 3), float64, object space, of cameras (V, 4, 4) from object to image."""
    pixels = torch.zeros(len(matrices), 1, 2, dtype=torch.float64)
    return geometry.camera_rays(pixels, matrices)[0][:, 0]
