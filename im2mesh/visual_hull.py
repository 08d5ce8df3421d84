"""The visual hull: what all masks together leave of space (Laurentini 1994).

A point is in the hull if no view says that it is free. Within the frame of a view, what projects
onto background is free. Out of the frame a view tells something, too:

- Where the mask touches a side of the frame (to within a pixel), nothing is known beyond that side.
- Where it does not, the object does not reach beyond that side, and all is free there. A point
  beyond two sides is free only if the mask touches neither.
- If the mask touches no side at all, what lies behind the camera is free.

This is right for every convex object, and for any other one that does not leave the frame at a
side to come round before another. A view with an empty mask says nothing.

The hull contains the object, and its depth along a ray is known from masks alone: training takes
it for the occupancy points of rays that must hit the object (``data.depth_from_visual_hull``).
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from scipy.ndimage import distance_transform_cdt

from im2mesh.ext import find_hull_cells, first_hull_depths
from im2mesh.geometry import (
    CUBE_PADDING,
    camera_rays,
    cube_interval,
    look_up,
    pixel_centers,
    project,
)

NUDGE = 1e-7  # of the depth interval: how far behind a crossing a ray goes on
ROUNDING = 1e-6, 1e-3  # of the cube, of a pixel: more than points and pixels in float32 are off
BLOCKS = 4  # hull_cells takes pixels together so that an image has this many blocks per cell and axis
SKIPPING = 4, 128  # pixels per cell of the grid in which rays skip free space; most cells per axis


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
        if not mask.any():
            continue
        pixels, depth = project(points[rest][None], matrix[None])
        in_front = depth[0] > 0
        beyond = torch.cat([pixels[0] < -1, pixels[0] > 1], -1)
        in_frame = in_front & ~beyond.any(-1)
        touched = _touched_sides(mask)
        unknown = torch.where(in_front, (beyond & touched).any(-1), touched.any())
        on_mask = in_frame & look_up(mask[None], pixels.where(in_frame[:, None], 0))[0]
        carved = ~unknown & ~on_mask
        inside[rest[carved]] = False
        rest = rest[~carved]
    return inside


@torch.no_grad()
def hull_cells(masks, object_to_image, resolution, side_length=1 + CUBE_PADDING, margin=1.0):
    """A grid that says where the object can not be.

    The cells fill the cube that has its centre at the origin. Every cell that holds a point of the
    hull is True, however thin the hull is there. A cell is False as soon as a single view shows
    that all of it is free; what several views show only together, each for a part of the cell, is
    not counted. The bounds on where a cell projects hold for every affine and projective camera,
    in the cube as well. So cells near the hull's border may be True without need, and cells right
    before a camera that no other view judges.

    Parameters
    ----------
    masks, object_to_image
        As in :func:`in_visual_hull`, on the CPU.
    resolution : int
        Cells per axis, N.
    side_length : float
        Of the cube, in object space.
    margin : float
        Pixels by which the masks are dilated first (chessboard distance), since their borders are
        off by up to a pixel. The mask then also touches a side of the frame from that far away.

    Returns
    -------
    Tensor (N, N, N), bool
        The first axis is x; cell i of an axis reaches from ``(i / N - 0.5) * side_length`` to
        ``((i + 1) / N - 0.5) * side_length``. False: free.

    Raises
    ------
    InputError
        When the extension is not compiled.
    ValueError
        When there is no cell or the margin is negative.
    """
    if resolution < 1 or margin < 0:
        raise ValueError(f"resolution {resolution} must be at least 1, margin {margin} at least 0")
    masks, matrices = _usable_views(masks, object_to_image)
    cells, _ = _find_cells(masks, matrices, resolution, side_length, margin)
    return torch.from_numpy(cells).bool()


@torch.no_grad()
def visual_hull_depths(masks, object_to_image, views=None):
    """Depth maps of the visual hull in some views.

    Rays walk through the cube with padding 0.1 from one border between pixels to a next one: where
    the nearest mask pixel of a view is n pixels away, the ray goes on where it leaves the square
    of 2n - 1 pixels around its place in that view. Nothing is passed over, however thin, and what
    is found is exact to 1e-7 of the ray's way through the cube. Most of the free space is skipped
    in the same way through a coarse grid of :func:`hull_cells`, which changes nothing in what is
    found. Views are done in parallel, by as many threads as PyTorch has.

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
    usable, matrices = _usable_views(masks, object_to_image)
    resolution = min(1 + max(max(mask.shape) for mask in masks) // SKIPPING[0], SKIPPING[1])
    cells, open_views = _find_cells(
        usable, matrices, resolution, 1 + CUBE_PADDING, margin=0, with_views=True
    )
    grid = _distance_to(cells), open_views, 1 + CUBE_PADDING
    sizes = _sizes(usable)
    distances = [_distance_to(mask.numpy()) for mask in usable]
    offsets = sizes.prod(1).cumsum(0) - sizes.prod(1)
    touched = [_touched_sides(mask).numpy() for mask in usable]
    slopes = matrices[..., :3].contiguous()
    maps = (
        slopes.numpy(), _flat(distances, np.uint8), offsets.numpy(), sizes.numpy(),
        np.array(touched, np.uint8),
    )  # fmt: skip

    @torch.no_grad()  # each thread has its own switch
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
        found = torch.full_like(near, torch.inf)
        found[meets] = torch.from_numpy(first_hull_depths(
            starts.numpy(), *maps, *grid, origin.numpy(),
            *(array[meets].numpy() for array in (directions, near, far)), NUDGE,
        ))  # fmt: skip
        depth[mask] = found.float()
        return depth

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        return list(pool.map(depth_map, range(len(masks)) if views is None else views))


def _usable_views(masks, object_to_image):
    """Masks that are not empty, and their matrices that take (p, 1) to (column * z, row * z, z)."""
    views = [view for view, mask in enumerate(masks) if mask.any()]
    masks = [masks[view] for view in views]
    object_to_image = object_to_image[views].double()
    last = (_sizes(masks).flip(1) - 1)[..., None]  # column and row
    z = object_to_image[:, 2:3]
    return masks, torch.cat([(object_to_image[:, :2] + z) * last / 2, z], 1)


def _sizes(masks):
    """Heights and widths, int64 (V, 2)."""
    return torch.tensor([mask.shape for mask in masks], dtype=torch.int64).view(-1, 2)


def _find_cells(masks, matrices, resolution, side_length, margin, with_views=False):
    """:func:`im2mesh.ext.hull.find_cells` of usable views."""
    blocks = np.array([max(1, max(mask.shape) // (BLOCKS * resolution)) for mask in masks], np.int64)
    tables = [_count_table(mask.numpy(), block) for mask, block in zip(masks, blocks)]
    offsets = np.cumsum([0] + [table.size for table in tables])[:-1]
    touched = [_touched_sides(mask, max(1, margin)).numpy() for mask in masks]
    return find_hull_cells(
        matrices.numpy(), _flat(tables, np.int32),
        offsets, _sizes(masks).numpy(), blocks, np.array(touched, np.uint8).reshape(-1, 4),
        resolution, side_length, margin + ROUNDING[1], side_length * ROUNDING[0], with_views,
    )  # fmt: skip


def _touched_sides(mask, reach=1):
    """Whether a mask comes within ``reach`` pixels of the frame's left, top, right, bottom; (4,)."""
    n = int(reach) + 1
    return torch.stack([part.any() for part in (mask[:, :n], mask[:n], mask[:, -n:], mask[-n:])])


def _flat(arrays, dtype):
    """All arrays one after the other."""
    return np.concatenate([np.zeros(0, dtype), *(array.ravel() for array in arrays)])


def _count_table(mask, block):
    """Mask pixels above and left of the corners of blocks of pixels, int32 (rows + 1, columns + 1)."""
    for axis in range(2):
        starts = np.arange(0, mask.shape[axis], block)
        mask = np.add.reduceat(mask, starts, axis, dtype=np.int32)
    return np.pad(mask.cumsum(0, dtype=np.int32).cumsum(1, dtype=np.int32), ((1, 0), (1, 0)))


def _distance_to(mask):
    """Chessboard distance of each place to the mask: 0 in it, at most 255, uint8 of its shape."""
    distance = distance_transform_cdt(mask == 0, "chessboard")
    return np.where(distance >= 0, distance, 255).clip(max=255).astype(np.uint8)  # -1: empty mask
