"""The visual hull: what all masks together leave of space (Laurentini 1994).

A point is in the hull if no view sees it outside of the object's mask. A view in whose frame the
point does not lie says nothing about it. The hull contains the object, and its depth along a ray
is known from masks alone: training takes it for the occupancy points of rays that must hit the
object (``data.depth_from_visual_hull``).
"""

import numpy as np
import torch
from scipy.ndimage import distance_transform_cdt

from im2mesh.ext import first_hull_depths
from im2mesh.geometry import (
    CUBE_PADDING,
    camera_rays,
    cube_interval,
    look_up,
    pixel_centers,
    project,
)

NUDGE = 1e-7  # of the depth interval: how far behind a crossing a ray goes on


def in_visual_hull(points, masks, object_to_image):
    """Which points lie in the visual hull.

    Parameters
    ----------
    points : Tensor (N, 3)
        Object space.
    masks : list of V Tensor (H, W), bool
        Images may differ in size.
    object_to_image : Tensor (V, 4, 4), float64
        From :func:`im2mesh.geometry.object_to_image`.

    Returns
    -------
    Tensor (N,), bool
    """
    inside = torch.ones(len(points), dtype=torch.bool, device=points.device)
    rest = inside.nonzero()[:, 0]
    for mask, matrix in zip(masks, object_to_image):
        pixels, depth = project(points[rest][None], matrix[None])
        seen = (depth[0] > 0) & (pixels[0].abs() <= 1).all(-1)
        carved = seen & ~look_up(mask[None], pixels.where(seen[:, None], 0))[0]
        inside[rest[carved]] = False
        rest = rest[~carved]
    return inside


@torch.no_grad()
def visual_hull_depths(masks, object_to_image, views=None):
    """Depth maps of the visual hull in some views.

    Rays walk through the cube with padding 0.1 from one border between pixels to a next one: where
    the nearest mask pixel of a view is n pixels away, the ray goes on where it leaves the square
    of 2n - 1 pixels around its place in that view. Nothing is passed over, however thin, and what
    is found is exact to 1e-7 of the ray's way through the cube.

    Parameters
    ----------
    masks, object_to_image
        As in :func:`in_visual_hull`, on the CPU.
    views : iterable of int
        Whose depth is wanted; all by default.

    Returns
    -------
    list of Tensor (H, W), float32
        Camera z of the first point of the hull on the ray of each pixel of the mask; where the
        hull reaches out of the cube, that of the cube's face. +inf outside the mask, and where
        the masks contradict each other so that nothing is left on the ray.

    Raises
    ------
    InputError
        When the extension is not compiled.
    """
    sizes = torch.tensor([mask.shape for mask in masks])
    distances = np.concatenate([_distance_to_mask(mask).ravel() for mask in masks])
    offsets = sizes.prod(1).cumsum(0) - sizes.prod(1)
    # (column * z, row * z, z) = matrix @ (point, 1); (V, 3, 4)
    last = (sizes.flip(1) - 1)[..., None]  # column and row
    z = object_to_image[:, 2:3]
    matrices = torch.cat([(object_to_image[:, :2] + z) * last / 2, z], 1)
    slopes = matrices[..., :3].contiguous()

    def depth_map(view):
        mask = masks[view]
        depth = torch.full(mask.shape, torch.inf)
        if not mask.any():
            return depth
        pixels = pixel_centers(*mask.shape, dtype=torch.float64)[mask.flatten()]
        origins, directions = camera_rays(pixels[None], object_to_image[view, None])
        origin, directions = origins[0, 0], directions[0]
        near, far, meets = cube_interval(origin, directions, CUBE_PADDING)
        starts = slopes @ origin + matrices[..., 3]
        arrays = (offsets, sizes, directions[meets], near[meets], far[meets])
        found = torch.full_like(near, torch.inf)
        found[meets] = torch.from_numpy(first_hull_depths(
            starts.numpy(), slopes.numpy(), distances, *(array.numpy() for array in arrays), NUDGE
        ))
        depth[mask] = found.float()
        return depth

    return [depth_map(view) for view in (range(len(masks)) if views is None else views)]


def _distance_to_mask(mask):
    """Steps of a chess king from each pixel to the mask: 0 in it, int32 (H, W)."""
    distance = distance_transform_cdt(~mask.numpy(), "chessboard")
    return np.where(distance >= 0, distance, max(mask.shape)).astype(np.int32)  # -1: empty mask
