# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The visual hull as a grid and along rays, see im2mesh.visual_hull.

Views are given as matrices that take a point (p, 1) to (column * z, row * z, z). ``touched`` says
which sides of a frame the mask touches: left, top, right, bottom.
"""

from libc.math cimport INFINITY, fabs, floor, rint
from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t

import numpy as np

cdef enum Verdict:
    FREE     # the view sees background all over the cell
    OPEN     # it may do so in a part of the cell
    SILENT   # it does so nowhere in the cell


# ---- a grid --------------------------------------------------------------------------------------


cdef struct Views:
    const double* matrices  # (V, 3, 4)
    const int32_t* counts
    const int64_t* offsets  # (V,)
    const int64_t* sizes    # (V, 2)
    const int64_t* blocks   # (V,)
    const uint8_t* touched      # (V, 4)
    double margin


cdef struct Grid:
    uint8_t* cells
    uint64_t* open_views  # NULL: not wanted
    int64_t resolution, n_words
    double low, edge, slack


def find_cells(
    const double[:, :, ::1] matrices, const int32_t[::1] counts, const int64_t[::1] offsets,
    const int64_t[:, ::1] sizes, const int64_t[::1] blocks, const uint8_t[:, ::1] touched,
    int64_t resolution, double side_length, double margin, double slack, bint with_views,
):
    """Which cells of a grid may hold a point of the visual hull.

    Parameters
    ----------
    matrices : float64 (V, 3, 4)
    counts : int32, flat
        All views' tables of the number of mask pixels above and left of the corners of blocks of
        pixels, (rows of blocks + 1, columns of blocks + 1) each.
    offsets, sizes, blocks : int64 (V,), (V, 2), (V,)
        Place of each table in there, height and width of the image, side of its blocks in pixels.
    touched : uint8 (V, 4)
    resolution, side_length
        Cells per axis and length of the cube's sides.
    margin : float
        Pixels by which the masks are dilated.
    slack : float
        Length by which cells are larger than they are.
    with_views : bool
        Whether to say which views are open.

    Returns
    -------
    found : uint8 (resolution, resolution, resolution)
    open_views : uint64 (resolution ** 3, n_words)
        Bit ``view % 64`` of word ``view // 64``: whether the view may see background in a part of
        the cell. Without words if not asked for.
    """
    cdef Py_ssize_t n_views = matrices.shape[0]
    found = np.zeros((resolution,) * 3, np.uint8)
    open_views = np.zeros((resolution**3, (n_views + 63) // 64 if with_views else 0), np.uint64)
    if not n_views:
        found[:] = 1
        return found, open_views
    cdef uint8_t[:, :, ::1] cells = found
    cdef uint64_t[:, ::1] words = open_views
    # The views that each level of the recursion still has to ask.
    cdef int32_t[::1] asked = np.arange((resolution.bit_length() + 2) * n_views, dtype=np.int32)
    cdef Views views = Views(
        &matrices[0, 0, 0], &counts[0], &offsets[0], &sizes[0, 0], &blocks[0], &touched[0, 0], margin
    )
    cdef Grid grid = Grid(
        &cells[0, 0, 0], NULL, resolution, words.shape[1], -side_length / 2,
        side_length / resolution, slack,
    )
    if with_views:
        grid.open_views = &words[0, 0]
    cdef int64_t[3] start = [0, 0, 0]
    cdef int64_t[3] stop = [resolution, resolution, resolution]
    with nogil:
        split(&views, &grid, start, stop, &asked[0], n_views)
    return found, open_views


cdef void split(
    const Views* views, const Grid* grid, const int64_t* start, const int64_t* stop,
    int32_t* asked, Py_ssize_t n_asked,
) noexcept nogil:
    """Mark the cells of a block of the grid, which other views than those asked do not carve."""
    cdef double[3] centre
    cdef double[3] half
    cdef Py_ssize_t k, n_open = 0
    cdef int32_t view
    cdef Verdict verdict
    for k in range(3):
        centre[k] = grid.low + (start[k] + stop[k]) * grid.edge / 2
        half[k] = (stop[k] - start[k]) * grid.edge / 2 + grid.slack
    for k in range(n_asked):
        view = asked[k]
        verdict = judge(views, view, centre, half)
        if verdict == FREE:  # the next block is likely to be carved by the same view
            asked[k], asked[0] = asked[0], view
            return
        if verdict == OPEN:
            asked[n_asked + n_open] = view
            n_open += 1

    cdef int64_t i, j, at, part
    cdef int64_t[3] middle
    cdef int64_t[3] low
    cdef int64_t[3] high
    if n_open == 0 or (stop[0] - start[0] <= 1 and stop[1] - start[1] <= 1 and stop[2] - start[2] <= 1):
        for i in range(start[0], stop[0]):
            for j in range(start[1], stop[1]):
                for k in range(start[2], stop[2]):
                    grid.cells[(i * grid.resolution + j) * grid.resolution + k] = 1
        if grid.open_views != NULL:
            at = (start[0] * grid.resolution + start[1]) * grid.resolution + start[2]
            for k in range(n_asked, n_asked + n_open):  # of a single cell, or none
                view = asked[k]
                grid.open_views[at * grid.n_words + view // 64] |= <uint64_t>1 << view % 64
        return
    for k in range(3):
        middle[k] = (start[k] + stop[k]) // 2
    for part in range(8):
        for k in range(3):
            low[k] = middle[k] if part >> k & 1 else start[k]
            high[k] = stop[k] if part >> k & 1 else middle[k]
        if low[0] < high[0] and low[1] < high[1] and low[2] < high[2]:
            split(views, grid, low, high, asked + n_asked, n_open)


cdef Verdict judge(
    const Views* views, int32_t view, const double* centre, const double* half
) noexcept nogil:
    """What a view says about a box of space.

    With n and s the slopes of column * z and z, x = column of the centre: the column of a point
    at offset d from the centre is x + (n - x * s) @ d / z, so that it is bounded by the least z.
    """
    cdef const double* matrix = views.matrices + 12 * view
    cdef const uint8_t* touched = views.touched + 4 * view
    cdef bint whole = not (touched[0] or touched[1] or touched[2] or touched[3])
    cdef int64_t[2] size = [views.sizes[2 * view + 1], views.sizes[2 * view]]  # width, height
    cdef double z = value(matrix + 8, centre)
    cdef double reach_z = reach(matrix + 8, matrix + 8, 0, half)
    if z + reach_z <= 0:
        return FREE if whole else SILENT
    cdef double at
    cdef double[2] low
    cdef double[2] high
    cdef Py_ssize_t k
    if reach_z > z / 2:  # near or across the camera's plane the bound is loose or there is none
        if whole:
            for k in range(2):
                at = value(matrix + 4 * k, centre)
                if at < -reach(matrix + 4 * k, matrix + 8, 0, half):
                    return FREE
                if at - (size[k] - 1) * z > reach(matrix + 4 * k, matrix + 8, size[k] - 1, half):
                    return FREE
        if reach_z >= z:
            return OPEN
    for k in range(2):
        at = value(matrix + 4 * k, centre) / z
        low[k] = at - reach(matrix + 4 * k, matrix + 8, at, half) / (z - reach_z) - views.margin
        high[k] = 2 * at - low[k]
        if (touched[k] and high[k] < 0) or (touched[2 + k] and low[k] > size[k] - 1):
            return SILENT
    for k in range(2):
        if (touched[k] and low[k] < 0) or (touched[2 + k] and high[k] > size[k] - 1):
            return OPEN
    for k in range(2):
        if high[k] < 0 or low[k] > size[k] - 1:
            return FREE

    cdef int64_t block = views.blocks[view]
    cdef int64_t[2] first
    cdef int64_t[2] last
    for k in range(2):
        first[k] = <int64_t>rint(max(low[k], 0)) // block
        last[k] = <int64_t>rint(min(high[k], size[k] - 1)) // block + 1
    cdef const int32_t* counts = views.counts + views.offsets[view]
    cdef int64_t n_columns = (size[0] + block - 1) // block + 1
    cdef int64_t count = (
        counts[last[1] * n_columns + last[0]] - counts[first[1] * n_columns + last[0]]
        - counts[last[1] * n_columns + first[0]] + counts[first[1] * n_columns + first[0]]
    )
    if count == 0:
        return FREE
    for k in range(2):
        last[k] = min(last[k] * block, size[k]) - first[k] * block
    return SILENT if count == last[0] * last[1] else OPEN


cdef inline double value(const double* row, const double* point) noexcept nogil:
    return row[0] * point[0] + row[1] * point[1] + row[2] * point[2] + row[3]


cdef inline double reach(
    const double* row, const double* other, double factor, const double* half
) noexcept nogil:
    """Most that row - factor * other changes from the centre of a box to its corners."""
    return (
        fabs(row[0] - factor * other[0]) * half[0] + fabs(row[1] - factor * other[1]) * half[1]
        + fabs(row[2] - factor * other[2]) * half[2]
    )


# ---- rays ----------------------------------------------------------------------------------------


def first_depths(
    const double[:, ::1] starts, const double[:, :, ::1] slopes, const uint8_t[::1] distances,
    const int64_t[::1] offsets, const int64_t[:, ::1] sizes, const uint8_t[:, ::1] touched,
    const uint8_t[:, :, ::1] cells, const uint64_t[:, ::1] open_views, double side_length,
    const double[::1] origin,
    const double[:, ::1] directions, const double[::1] near, const double[::1] far, double nudge,
):
    """First depth of rays of one camera at which none of V views sees background.

    Parameters
    ----------
    starts : float64 (V, 3)
        The camera's centre as (column * z, row * z, z) of each view.
    slopes : float64 (V, 3, 3)
        What takes directions there.
    distances : uint8 (sum of height * width)
        All views' maps of the chessboard distance of each pixel to the mask, 0 in it; 255 stands
        for more, too.
    offsets, sizes : int64 (V,), (V, 2)
        Place of each map in there, its height and width.
    touched : uint8 (V, 4)
    cells : uint8 (N, N, N)
        The chessboard distance of each cell of a grid to the cells that may hold a point of the hull.
    open_views : uint64 (N ** 3, n_words)
        From :func:`find_cells`.
    side_length : float
        Of the grid's cube.
    origin, directions : float64 (3,), (R, 3)
    near, far : float64 (R,)
        Between which depths to search, inside of the cube.
    nudge : float
        Share of the way from near to far that a ray goes on behind a crossing.

    Returns
    -------
    float64 (R,)
        +inf where some view sees background all the way.
    """
    found = np.empty(directions.shape[0])
    cdef double[::1] out = found
    cdef Py_ssize_t n_views = slopes.shape[0], n_agreeing, ray, view = 0, k
    cdef int64_t resolution = cells.shape[0], cell = 0
    cdef bint carved
    cdef double depth, step
    cdef double[3] slope
    cdef double[3] place  # of the ray's origin in the grid, and its slope, in cells
    cdef double[3] speed
    with nogil:
        for k in range(3):
            place[k] = (origin[k] / side_length + 0.5) * resolution
        for ray in range(directions.shape[0]):
            for k in range(3):
                speed[k] = directions[ray, k] / side_length * resolution
            step = nudge * (far[ray] - near[ray]) + 1e-14 * far[ray]  # more than rounding
            depth = skip_cells(
                &cells[0, 0, 0], resolution, place, speed, near[ray], far[ray], step, &cell
            )
            n_agreeing = 0
            # Starts with the view that was asked last: neighbouring rays end in like places.
            while n_agreeing < n_views and depth <= far[ray]:
                carved = False
                if open_views[cell, view // 64] >> view % 64 & 1:
                    for k in range(3):
                        slope[k] = (
                            slopes[view, k, 0] * directions[ray, 0]
                            + slopes[view, k, 1] * directions[ray, 1]
                            + slopes[view, k, 2] * directions[ray, 2]
                        )
                    carved = leave_background(
                        &starts[view, 0], slope, &distances[offsets[view]],
                        sizes[view, 0], sizes[view, 1], &touched[view, 0], &depth,
                    )
                if carved:
                    depth = skip_cells(
                        &cells[0, 0, 0], resolution, place, speed, depth + step, far[ray], step, &cell
                    )
                    n_agreeing = 0
                else:
                    n_agreeing += 1
                    view = view + 1 if view + 1 < n_views else 0
            out[ray] = depth if depth <= far[ray] else INFINITY
    return found


cdef double skip_cells(
    const uint8_t* cells, int64_t resolution, const double* place, const double* speed,
    double depth, double far, double step, int64_t* index,
) noexcept nogil:
    """The first depth from the given one on that is in a cell which may hold a point of the hull.

    ``index`` becomes that of the cell.
    """
    cdef int64_t[3] cell
    cdef int64_t distance
    cdef double ahead
    cdef Py_ssize_t k
    while depth <= far:
        for k in range(3):
            cell[k] = min(max(<int64_t>floor(place[k] + depth * speed[k]), 0), resolution - 1)
        index[0] = (cell[0] * resolution + cell[1]) * resolution + cell[2]
        distance = cells[index[0]]
        if distance == 0:
            break
        ahead = INFINITY
        for k in range(3):
            ahead = min(ahead, leaving(place[k] - (cell[k] - distance + 1), speed[k], depth))
            ahead = min(ahead, leaving(cell[k] + distance - place[k], -speed[k], depth))
        depth = ahead + step
    return depth


cdef bint leave_background(
    const double* start, const double* slope, const uint8_t* distances,
    int64_t height, int64_t width, const uint8_t* touched, double* depth,
) noexcept nogil:
    """Whether the view sees background; if so the depth moves on to where that may end."""
    cdef double z = start[2] + depth[0] * slope[2]
    cdef int64_t[2] size = [width, height]
    cdef double ahead = leaving(start[2], slope[2], depth[0])
    cdef double[2] at
    cdef double border, distance, sign
    cdef Py_ssize_t k, side
    cdef bint outside = False
    if not z > 0:
        if touched[0] or touched[1] or touched[2] or touched[3]:
            return False
        depth[0] = leaving(-start[2], -slope[2], depth[0])
        return True

    for k in range(2):
        at[k] = start[k] + depth[0] * slope[k]
        if at[k] < 0 or at[k] > (size[k] - 1) * z:
            if touched[k if at[k] < 0 else 2 + k]:
                return False
            outside = True
    if outside:
        # Until it crosses the line of any side of the frame.
        for side in range(4):
            k = side % 2
            border = size[k] - 1 if side >= 2 else 0
            sign = 1 if at[k] >= border * z else -1
            ahead = min(ahead, leaving(
                sign * (start[k] - border * start[2]), sign * (slope[k] - border * slope[2]), depth[0]
            ))
        depth[0] = ahead
        return True

    for k in range(2):
        at[k] = rint(at[k] / z)
    distance = distances[<int64_t>at[1] * width + <int64_t>at[0]] - 0.5
    if distance < 0:
        return False
    for k in range(2):
        border = max(at[k] - distance, 0)
        ahead = min(ahead, leaving(
            start[k] - border * start[2], slope[k] - border * slope[2], depth[0]
        ))
        border = min(at[k] + distance, size[k] - 1)
        ahead = min(ahead, leaving(
            border * start[2] - start[k], border * slope[2] - slope[k], depth[0]
        ))
    depth[0] = ahead
    return True


cdef inline double leaving(double start, double slope, double depth) noexcept nogil:
    """Where start + depth * slope, positive here but for rounding, becomes negative ahead."""
    return max(depth, -start / slope) if slope < 0 else INFINITY
