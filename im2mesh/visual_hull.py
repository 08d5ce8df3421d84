"""The visual hull: what all masks together leave of space (Laurentini 1994).

A point is in the hull if no view sees it outside of the object's mask. A view in whose frame the
point does not lie says nothing about it. The hull contains the object, and its depth along a ray
is known from masks alone: training takes it for the occupancy points of rays that must hit the
object (``data.depth_from_visual_hull``).
"""

import torch

from im2mesh.dvr.raymarch import march
from im2mesh.geometry import CUBE_PADDING, camera_rays, cube_interval, look_up, pixel_centers, project

BISECTIONS = 12  # leave 1/4096 of a step


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


def visual_hull_depth(masks, object_to_image, view, n_steps=256, max_points=2**20):
    """Depth map of the visual hull in one view.

    Rays are sampled at ``n_steps`` depths in the cube with padding 0.1, then halved down to the
    hull's boundary: exact to 1/4096 of a step, except that parts of the hull thinner than a step
    may be passed through.

    Parameters
    ----------
    masks, object_to_image
        As in :func:`in_visual_hull`.
    view : int
        Whose depth is wanted.
    max_points : int
        Upper bound on the points looked at together (memory).

    Returns
    -------
    Tensor (H, W), float32
        Camera z of the first point of the hull on the ray of each pixel of the mask; where the
        hull reaches out of the cube, that of the cube's face. +inf outside the mask, and where
        the masks contradict each other so that nothing is left on the ray.
    """
    height, width = masks[view].shape
    pixels = pixel_centers(height, width)[masks[view].flatten()]
    rays = camera_rays(pixels[None].double(), object_to_image[view, None])
    origins, directions = (t[0] for t in rays)
    near, far, _ = cube_interval(origins, directions, CUBE_PADDING)
    others = [i for i in range(len(masks)) if i != view]  # the ray lies in this view's own mask
    other_masks, other_cameras = [masks[i] for i in others], object_to_image[others]

    def field(points, _):
        inside = in_visual_hull(points, other_masks, other_cameras)
        return inside.to(points.dtype) - 0.5

    hits = march(
        field, origins, directions, near, far, n_steps,
        n_secant_steps=BISECTIONS, method="bisection", max_points=max_points,
    )
    depth = torch.full((height, width), torch.inf)
    depth[masks[view]] = torch.where(hits.starts_inside, near, hits.depth).float()
    return depth
