"""The visual hull: what all masks together leave of space (Laurentini 1994).

A point is in the hull if no view sees it outside of the object's mask. A view in whose frame the
point does not lie says nothing about it. The hull contains the object, and its depth along a ray
is known from masks alone: training takes it for the occupancy points of rays that must hit the
object (``data.depth_from_visual_hull``).
"""

import torch
from scipy.ndimage import distance_transform_cdt

from im2mesh.geometry import (
    CUBE_PADDING,
    camera_rays,
    cube_interval,
    look_up,
    pixel_centers,
    project,
)

NUDGE = 1e-7  # of the depth interval: how far behind a crossing a ray goes on
MAX_LOOKS = 2**17  # rays times views handled together: small enough for the processor's cache


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
def visual_hull_depth(masks, object_to_image, view):
    """Depth map of the visual hull in one view.

    Rays walk through the cube with padding 0.1 from one border between pixels to a next one: where
    the nearest mask pixel of some view is n pixels away, the ray goes on where it leaves the
    square of 2n - 1 pixels around its place in that view. Nothing is passed over, however thin,
    and what is found is exact to 1e-7 of the ray's way through the cube.

    Parameters
    ----------
    masks, object_to_image
        As in :func:`in_visual_hull`, on the CPU.
    view : int
        Whose depth is wanted.

    Returns
    -------
    Tensor (H, W), float32
        Camera z of the first point of the hull on the ray of each pixel of the mask; where the
        hull reaches out of the cube, that of the cube's face. +inf outside the mask, and where
        the masks contradict each other so that nothing is left on the ray.
    """
    mask, backgrounds = masks[view], _Backgrounds(masks, object_to_image)
    pixels = pixel_centers(*mask.shape, dtype=torch.float64)
    origins, directions = camera_rays(pixels[None], object_to_image[view, None])
    chunks = directions[0, mask.flatten()].split(max(1, MAX_LOOKS // len(masks)))
    found = [backgrounds.first_depth(origins[0, 0], chunk) for chunk in chunks]
    depth = torch.full(mask.shape, torch.inf)
    depth[mask] = torch.cat(found).float()
    return depth


class _Backgrounds:
    """The parts of V views in which the object is not."""

    def __init__(self, masks, object_to_image):
        sizes = torch.tensor([mask.shape for mask in masks])
        self.distances = torch.cat([_distance_to_mask(mask).flatten() for mask in masks])
        self.first = (sizes.prod(1).cumsum(0) - sizes.prod(1))[:, None]  # place of each in there
        self.width = sizes[:, 1:]
        self.last = (sizes.flip(1) - 1).T[..., None].double()  # column and row, (2, V, 1)
        # (column * z, row * z, z) = matrix @ (point, 1); (3, V, 4)
        x, y, z = object_to_image[:, :3].unbind(1)
        self.matrices = torch.stack([*((torch.stack([x, y]) + z) * self.last / 2), z])

    def first_depth(self, origin, directions):
        """First depth (R,) of rays (R, 3) at which no view sees background; +inf for none."""
        near, far, meets = cube_interval(origin, directions, CUBE_PADDING)
        result = torch.full_like(near, torch.inf)
        # (column * z, row * z, z) is linear in the depth: start + depth * slope
        start = self.matrices[..., :3] @ origin[:, None] + self.matrices[..., 3:]
        slope = self.matrices[..., :3] @ directions.T
        rays = meets.nonzero()[:, 0]
        depth = near[rays]
        while len(rays):
            carved, leaves = self._look(start, slope[..., rays], depth)
            found = ~carved.any(0)
            result[rays[found]] = depth[found]
            onwards = torch.where(carved, leaves, -torch.inf).amax(0)
            depth = torch.maximum(onwards, depth) + NUDGE * (far - near)[rays]
            goes_on = ~found & (depth <= far[rays])
            rays, depth = rays[goes_on], depth[goes_on]
        return result

    def _look(self, start, slope, depth):
        """Which views see background at a depth of each ray, and up to what depth; (V, R)."""
        z = start[2] + depth * slope[2]
        position = (start[:2] + depth * slope[:2]) / z
        seen = (z > 0) & ((position >= 0) & (position <= self.last)).all(0)
        pixel = position.where(seen, 0).round()
        column, row = pixel.long()
        distance = self.distances[self.first + row * self.width + column]
        # The border of the square, or of the image, that the ray comes to in columns and in rows.
        ahead = torch.where(slope[:2] * start[2] > start[:2] * slope[2], 1.0, -1.0)
        border = (pixel + ahead * (distance - 0.5)).clamp(min=0).minimum(self.last)
        leaves = (start[:2] - border * start[2]) / (border * slope[2] - slope[:2])
        # Behind the camera: the ray's image runs to a vanishing point in front of the border.
        reached = start[2] + leaves * slope[2] > NUDGE * z
        return seen & (distance > 0), leaves.where(reached, torch.inf).amin(0)


def _distance_to_mask(mask):
    """Steps of a chess king from each pixel to the mask: 0 in it, float64 (H, W)."""
    distance = torch.from_numpy(distance_transform_cdt(~mask.numpy(), "chessboard")).double()
    return distance.where(distance >= 0, max(mask.shape))  # the mask is empty
