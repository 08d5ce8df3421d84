# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Points and rays in a grid of cells of one bit each, see im2mesh.dvr.support."""

from libc.stdint cimport int64_t, uint8_t

import numpy as np


cdef inline bint holds(float x, float y, float z, const uint8_t* bits, int64_t n, float side) noexcept nogil:
    """Whether a point lies in a cell that is set; the same roundings as in im2mesh.dvr.support.cell_of."""
    cdef float px = (x / side + <float>0.5) * n
    cdef float py = (y / side + <float>0.5) * n
    cdef float pz = (z / side + <float>0.5) * n
    cdef int64_t cell
    if not (0 <= px <= n and 0 <= py <= n and 0 <= pz <= n):
        return False
    cell = (min(<int64_t>px, n - 1) * n + min(<int64_t>py, n - 1)) * n + min(<int64_t>pz, n - 1)
    return (bits[cell >> 3] >> (cell & 7)) & 1


def points_in_cells(const float[:, ::1] points, const uint8_t[::1] bits, int64_t n, float side):
    """Whether points lie in cells that are set.

    Parameters
    ----------
    points : float32 (M, 3)
    bits : uint8 (n**3 / 8,)
        The last axis fastest, the lowest bit of a byte first.
    n : int
        Cells per axis of the cube with its centre at the origin.
    side : float
        Of that cube.

    Returns
    -------
    bool (M,)
    """
    cdef Py_ssize_t i
    inside = np.empty(points.shape[0], dtype=bool)
    cdef uint8_t[::1] out = inside.view(np.uint8)
    with nogil:
        for i in range(points.shape[0]):
            out[i] = holds(points[i, 0], points[i, 1], points[i, 2], &bits[0], n, side)
    return inside


def samples_in_cells(
    const float[:, ::1] origins, const float[:, ::1] directions, const float[::1] near,
    const float[::1] far, const int64_t[::1] last, const uint8_t[::1] bits, int64_t n, float side,
):
    """The first and the last sample of rays that lie in cells that are set.

    Parameters
    ----------
    origins, directions : float32 (R, 3)
    near, far : float32 (R,)
        Depths of the first and the last sample; those between are spread evenly.
    last : int64 (R,)
        Index of the last sample.
    bits, n, side
        As in :func:`points_in_cells`.

    Returns
    -------
    first, final : int64 (R,)
        -1 where there is none.
    """
    cdef Py_ssize_t i
    cdef int64_t k, step
    cdef float depth, share
    first = np.full(near.shape[0], -1)
    final = np.full(near.shape[0], -1)
    cdef int64_t[::1] out_first = first
    cdef int64_t[::1] out_final = final
    with nogil:
        for i in range(near.shape[0]):
            if not far[i] > near[i]:
                continue
            for k in range(last[i] + 1):
                depth = near[i] + <float>k / <float>last[i] * (far[i] - near[i])
                if holds(
                    origins[i, 0] + depth * directions[i, 0], origins[i, 1] + depth * directions[i, 1],
                    origins[i, 2] + depth * directions[i, 2], &bits[0], n, side,
                ):
                    out_first[i] = k
                    break
            if out_first[i] < 0:
                continue
            for k in range(last[i], -1, -1):
                depth = near[i] + <float>k / <float>last[i] * (far[i] - near[i])
                if holds(
                    origins[i, 0] + depth * directions[i, 0], origins[i, 1] + depth * directions[i, 1],
                    origins[i, 2] + depth * directions[i, 2], &bits[0], n, side,
                ):
                    out_final[i] = k
                    break
    return first, final
