# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Rays that walk to the visual hull, see im2mesh.visual_hull."""

from libc.math cimport INFINITY, rint
from libc.stdint cimport int32_t, int64_t

import numpy as np


def first_depths(
    const double[:, ::1] starts, const double[:, :, ::1] matrices, const int32_t[::1] distances,
    const int64_t[::1] offsets, const int64_t[:, ::1] sizes, const double[:, ::1] directions,
    const double[::1] near, const double[::1] far, double nudge,
):
    """First depth of rays of one camera at which none of V views sees background.

    Parameters
    ----------
    starts : float64 (V, 3)
        The camera's centre as (column * z, row * z, z) of each view.
    matrices : float64 (V, 3, 3)
        What takes directions there.
    distances : int32 (sum of height * width)
        All views' maps of the steps of a chess king from each pixel to the mask, 0 in it.
    offsets, sizes : int64 (V,), (V, 2)
        Place of each map in there, its height and width.
    directions : float64 (R, 3)
    near, far : float64 (R,)
        Between which depths to search.
    nudge : float
        Share of the way from near to far that a ray goes on behind a crossing.

    Returns
    -------
    float64 (R,)
        +inf where some view sees background all the way.
    """
    found = np.empty(directions.shape[0])
    cdef double[::1] out = found
    cdef Py_ssize_t n_views = matrices.shape[0], n_agreeing, ray, view = 0, k
    cdef double depth
    cdef double slope[3]
    with nogil:
        for ray in range(directions.shape[0]):
            depth = near[ray]
            n_agreeing = 0
            # Starts with the view that was asked last: neighbouring rays end in like places.
            while n_agreeing < n_views and depth <= far[ray]:
                for k in range(3):
                    slope[k] = (
                        matrices[view, k, 0] * directions[ray, 0]
                        + matrices[view, k, 1] * directions[ray, 1]
                        + matrices[view, k, 2] * directions[ray, 2]
                    )
                if leave_background(
                    &starts[view, 0], slope, &distances[offsets[view]],
                    sizes[view, 0], sizes[view, 1], nudge, &depth,
                ):
                    depth += nudge * (far[ray] - near[ray])
                    n_agreeing = 0
                else:
                    n_agreeing += 1
                    view = view + 1 if view + 1 < n_views else 0
            out[ray] = depth if depth <= far[ray] else INFINITY
    return found


cdef bint leave_background(
    const double* start, const double* slope, const int32_t* distances,
    int64_t height, int64_t width, double nudge, double* depth,
) noexcept nogil:
    """Whether the view sees background; if so the depth moves on to where that may end."""
    cdef double z = start[2] + depth[0] * slope[2]
    cdef double x = (start[0] + depth[0] * slope[0]) / z
    cdef double y = (start[1] + depth[0] * slope[1]) / z
    cdef double reach
    if not (z > 0 and 0 <= x <= width - 1 and 0 <= y <= height - 1):
        return False
    x, y = rint(x), rint(y)
    reach = distances[<int64_t>y * width + <int64_t>x] - 0.5
    if reach < 0:
        return False
    depth[0] = max(depth[0], min(
        border_depth(x, reach, width - 1, start[0], slope[0], start[2], slope[2], nudge * z),
        border_depth(y, reach, height - 1, start[1], slope[1], start[2], slope[2], nudge * z),
    ))
    return True


cdef inline double border_depth(
    double pixel, double reach, double last, double start, double slope,
    double start_z, double slope_z, double least_z,
) noexcept nogil:
    """Where a ray crosses the border, of a square around a pixel or of the image, ahead of it.

    Along one axis of the image: start + depth * slope is column * z or row * z.
    """
    cdef double border = pixel + (reach if slope * start_z > start * slope_z else -reach)
    border = min(max(border, 0), last)
    cdef double depth = (start - border * start_z) / (border * slope_z - slope)
    # Behind the camera: the ray's image runs to a vanishing point in front of the border.
    return depth if start_z + depth * slope_z > least_z else INFINITY
