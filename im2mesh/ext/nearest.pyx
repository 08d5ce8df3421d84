# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Nearest neighbours between two clouds that lie close together, see im2mesh.eval.

A cloud on a surface is sorted into the cells of a regular grid, a few points in each that it
meets. A neighbour that is about as near as the points are to each other is then found in a handful
of cells, without the walk down a tree.
"""

from libc.math cimport INFINITY, cbrt, floor, sqrt
from libc.stdint cimport int32_t, int64_t
from libcpp.vector cimport vector

import numpy as np

cdef double POINTS_PER_CELL = 3.0    # about so many, on the sides of the cloud's bounding box
cdef double CELLS_PER_POINT = 16.0   # at most, whatever the shape of the cloud
cdef int64_t REACH = 8               # cells in each direction; beyond, a tree is faster
cdef int64_t MOST_LOOKED_AT = 1000   # points for one query; a few outliers make all cells too large


cdef class PointGrid:
    """A cloud sorted by the cells of a grid.

    Parameters
    ----------
    points : float64 (N, 3)
        At least one, all finite.
    """

    cdef readonly Py_ssize_t n_points
    cdef vector[double] xyz        # of the points, in the order of their cells
    cdef vector[int32_t] index     # of each in the cloud as given
    cdef vector[int32_t] start     # of each cell's points, and the end of the last
    cdef double lowest[3]
    cdef double size               # of a cell
    cdef int64_t n_cells[3]

    def __init__(self, const double[:, ::1] points):
        cdef Py_ssize_t n = points.shape[0], i
        cdef int64_t k, cell, total
        cdef double extent[3]
        cdef double highest, longest, area
        cdef vector[int32_t] cell_of = vector[int32_t](n)
        self.n_points = n
        with nogil:
            for k in range(3):
                self.lowest[k] = highest = points[0, k]
                for i in range(n):
                    self.lowest[k] = min(self.lowest[k], points[i, k])
                    highest = max(highest, points[i, k])
                extent[k] = highest - self.lowest[k]
            longest = max(extent[0], max(extent[1], extent[2]))
            area = 2 * (
                extent[0] * extent[1] + extent[1] * extent[2] + extent[2] * extent[0]
            )
            self.size = max(sqrt(POINTS_PER_CELL * area / n), longest / n)
            if self.size == 0:
                self.size = 1  # one place, one cell
            while True:
                total = 1
                for k in range(3):
                    self.n_cells[k] = <int64_t>floor(extent[k] / self.size) + 1
                    total *= self.n_cells[k]
                if total <= max(CELLS_PER_POINT * n, 1000.0):
                    break
                self.size *= 1.01 * cbrt(total / max(CELLS_PER_POINT * n, 1000.0))
            self.start.assign(total + 1, 0)
            for i in range(n):
                cell = 0
                for k in range(3):
                    cell = cell * self.n_cells[k] + self.place(points[i, k], k)
                cell_of[i] = <int32_t>cell
                self.start[cell] += 1
            for cell in range(1, total):
                self.start[cell] += self.start[cell - 1]
            self.start[total] = <int32_t>n
            self.xyz.resize(3 * n)
            self.index.resize(n)
            # Filled from the back: start goes from the end of each cell to its first point.
            for i in range(n):
                cell = cell_of[n - 1 - i]
                self.start[cell] -= 1
                self.index[self.start[cell]] = <int32_t>(n - 1 - i)
                for k in range(3):
                    self.xyz[3 * self.start[cell] + k] = points[n - 1 - i, k]

    cdef inline int64_t place(self, double x, int64_t k) noexcept nogil:
        """The cell along an axis, that at the border for places beyond it."""
        cdef double cell = floor((x - self.lowest[k]) / self.size)
        return <int64_t>max(0.0, min(cell, <double>(self.n_cells[k] - 1)))

    def nearest(
        self, PointGrid queries, Py_ssize_t begin, Py_ssize_t end, double[::1] distances,
        int64_t[::1] found,
    ):
        """The nearest points of this cloud to those of another.

        Parameters
        ----------
        queries : PointGrid
            Answers are given for its points ``begin`` to ``end`` in the order of its cells, so
            that neighbours are asked for in turn; parts may be given to threads.
        distances, found : float64 and int64 (queries.n_points,)
            Are filled, in the order of the cloud as it was given: distance and index of the nearest
            point, or +inf and -1 where it takes too many cells or points to find it.
        """
        cdef Py_ssize_t i
        cdef int32_t which, best = 0
        cdef double distance
        with nogil:
            for i in range(begin, end):
                which = self.find(&queries.xyz[3 * i], best, &distance)
                distances[queries.index[i]] = distance
                if which >= 0:
                    best = which
                    found[queries.index[i]] = self.index[which]
                else:
                    found[queries.index[i]] = -1

    cdef int32_t find(self, const double* q, int32_t best, double* distance) noexcept nogil:
        cdef int64_t center[3]
        cdef int64_t low[3]
        cdef int64_t high[3]
        cdef int64_t k, x, y, reach = 1, left = MOST_LOOKED_AT
        cdef double squared = 0, safe, gap_x, gap_y
        for k in range(3):
            center[k] = self.place(q[k], k)
            squared += (q[k] - self.xyz[3 * best + k]) ** 2
        if squared > self.size * self.size:
            reach = 2
        while True:
            safe = INFINITY  # nothing nearer than this lies beyond these cells
            for k in range(3):
                low[k], high[k] = center[k] - reach, center[k] + reach
                if low[k] > 0:
                    safe = min(safe, q[k] - self.lowest[k] - low[k] * self.size)
                else:
                    low[k] = 0
                if high[k] < self.n_cells[k] - 1:
                    safe = min(safe, self.lowest[k] + (high[k] + 1) * self.size - q[k])
                else:
                    high[k] = self.n_cells[k] - 1
            # The row in the middle first: a near point there leaves out most of the others.
            self.search(q, center[0], center[1], low[2], high[2], &squared, &best, &left)
            for x in range(low[0], high[0] + 1):
                gap_x = self.gap(q[0], x, 0)
                if gap_x * gap_x >= squared:
                    continue
                for y in range(low[1], high[1] + 1):
                    gap_y = self.gap(q[1], y, 1)
                    if gap_x * gap_x + gap_y * gap_y < squared:
                        self.search(q, x, y, low[2], high[2], &squared, &best, &left)
            distance[0] = sqrt(squared)
            if left >= 0 and distance[0] <= safe:
                return best
            if left < 0 or reach == REACH:
                distance[0] = INFINITY
                return -1
            reach = min(2 * reach, REACH)

    cdef inline double gap(self, double x, int64_t cell, int64_t k) noexcept nogil:
        """Distance along an axis from a coordinate to a cell."""
        cdef double low = self.lowest[k] + cell * self.size
        return max(0.0, max(low - x, x - low - self.size))

    cdef inline void search(
        self, const double* q, int64_t x, int64_t y, int64_t low, int64_t high, double* squared,
        int32_t* best, int64_t* left,
    ) noexcept nogil:
        """Look at all points of neighbouring cells along the last axis, if ``left`` allows it."""
        cdef int64_t row = (x * self.n_cells[1] + y) * self.n_cells[2]
        cdef int32_t i, begin = self.start[row + low], end = self.start[row + high + 1]
        cdef double dx, dy, dz, d
        left[0] -= end - begin
        if left[0] < 0:
            return
        for i in range(begin, end):
            dx = q[0] - self.xyz[3 * i]
            dy = q[1] - self.xyz[3 * i + 1]
            dz = q[2] - self.xyz[3 * i + 2]
            d = dx * dx + dy * dy + dz * dz
            if d < squared[0]:
                squared[0] = d
                best[0] = i
