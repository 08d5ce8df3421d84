# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Multi-resolution iso-surface extraction (MISE) on flat arrays.

The voxels are an octree over a regular coarse grid: one array each for lower corner, level and
first child. The values live in a hash table with open addressing. Nothing is allocated per voxel
or per point, and both grow with the area of the surface, not with the volume of the grid.
"""

from libc.math cimport INFINITY, NAN, fabs, isnan
from libc.stdint cimport int8_t, int32_t, int64_t, uint8_t, uint64_t
from libcpp.vector cimport vector

import numpy as np

cdef enum:
    BITS = 21     # of each coordinate in a packed grid point
    FREE = -1     # hash slot without a point
    LEAF = -1     # voxel without children
    QUEUED = -2   # leaf about to be split


cdef inline int64_t pack(int64_t x, int64_t y, int64_t z) noexcept:
    return (x << 2 * BITS) | (y << BITS) | z


cdef inline void unpack(int64_t code, int64_t* p) noexcept:
    cdef int64_t mask = (1 << BITS) - 1
    p[0] = code >> 2 * BITS
    p[1] = (code >> BITS) & mask
    p[2] = code & mask


cdef inline int64_t lowest_bit(int64_t number) noexcept:
    return number & -number


cdef class MISE:
    """Decides which points of a fine grid must be evaluated to find an iso-surface.

    The grid has ``resolution = resolution_0 * 2**depth`` cells per axis. First all points of the
    coarse grid (``resolution_0`` cells per axis) are asked for. A voxel is active when evaluated
    points on it, its corners or points that a finer neighbour has put on its faces and edges, lie
    on both sides of the threshold; a value equal to the threshold counts for both. Active voxels
    are split in 8 down to the finest level and the new corners asked for, until nothing is left:

        mise = MISE(32, 3, 0.0)
        while len(points := mise.query()):
            mise.update(points, f(points))
        cells, values = mise.cells()

    Where the field is smooth, most of these points need no evaluation: :meth:`guess` interpolates
    between coarser points and says how far off that was at those. A guess on the right side of the
    threshold decides as well as the value, except at the ends of the edges that the surface cuts:
    in the end those are asked for again.

        while len(points := mise.query()):
            values, errors = mise.guess(points)
            needed = ~(abs(values - threshold) > errors)
            values[needed] = f(points[needed])
            mise.update(points, values, guessed=~needed)

    At the end the surface of the cells is closed, whatever the field: of each edge of the finest grid
    with known ends on different sides (one above the threshold, one not), all cells around it that are
    in the grid are among :meth:`cells`, and both values are the field's. For the known points of a voxel
    that is not of the finest level lie on its faces, and unless all of them are on one side it is
    active; the voxel is looked at when it is made, when a point comes up on it, and when a corrected
    guess on it changes sides, its corners included. So a voxel next to such an edge is of the finest
    level; and there the guesses are asked for again until no edge ends at one.

    Parameters
    ----------
    resolution_0 : int
        Cells per axis of the coarse grid.
    depth : int
        How many times voxels are halved.
    threshold : float
        The level of the surface; values above it are inside.
    """

    cdef readonly int64_t resolution
    cdef readonly int64_t resolution_0
    cdef readonly int depth
    cdef readonly double threshold
    cdef readonly int64_t n_points     # asked for so far
    cdef readonly double lowest        # of the values answered so far
    cdef readonly double highest

    cdef vector[int64_t] slot_code     # packed grid point, or FREE
    cdef vector[double] slot_value     # NaN until it is answered
    cdef vector[float] slot_error      # of a guess there: observed, or its bound; NaN if not known
    cdef vector[int8_t] slot_guessed   # whether the value is a guess
    cdef int hash_shift
    cdef vector[int64_t] asked         # the points of this round
    cdef size_t n_unanswered
    cdef size_t n_guesses

    cdef vector[int64_t] voxel_corner  # packed lower corner, on the finest grid
    cdef vector[int8_t] voxel_level
    cdef vector[int32_t] voxel_child   # first of 8 neighbouring entries, LEAF or QUEUED
    cdef size_t first_new_voxel        # voxels from here on were made in this round
    cdef int finest_level              # reached so far

    def __init__(self, int64_t resolution_0, int depth, double threshold):
        cdef int64_t x, y, z, size
        if resolution_0 < 1 or not 0 <= depth < BITS or resolution_0 << depth >= 1 << BITS:
            raise ValueError(
                f"resolution_0 = {resolution_0} halved {depth} times: resolution_0 must be at "
                f"least 1, depth at least 0 and the final resolution below {1 << BITS}"
            )
        self.resolution_0, self.depth, self.threshold = resolution_0, depth, threshold
        self.resolution = resolution_0 << depth
        self.n_points = self.n_unanswered = self.n_guesses = self.first_new_voxel = self.finest_level = 0
        self.lowest, self.highest = INFINITY, -INFINITY
        self.resize_table(10)
        size = 1 << depth
        for x in range(resolution_0):
            for y in range(resolution_0):
                for z in range(resolution_0):
                    self.add_voxel(pack(x * size, y * size, z * size), 0)
        for x in range(resolution_0 + 1):
            for y in range(resolution_0 + 1):
                for z in range(resolution_0 + 1):
                    self.ask(pack(x * size, y * size, z * size))

    def query(self):
        """The grid points to evaluate next: int64 (K, 3) indices on the finest grid.

        Never contains a point that has been answered by more than a guess; K = 0 once the surface
        is found.
        """
        cdef vector[int64_t] wanted
        cdef size_t i
        if self.n_unanswered:
            for i in range(self.asked.size()):
                if isnan(self.value(self.asked[i])):
                    wanted.push_back(self.asked[i])
        else:
            self.find_doubtful(wanted)
        points = np.empty((wanted.size(), 3), dtype=np.int64)
        cdef int64_t[:, ::1] out = points
        for i in range(wanted.size()):
            unpack(wanted[i], &out[i, 0])
        return points

    def update(self, const int64_t[:, :] points, const double[:] values, guessed=None):
        """Answer points of the last ``query``, all or some of them, in any order.

        Parameters
        ----------
        points : int64 (K, 3)
        values : float64 (K,)
            Infinite values are fine.
        guessed : bool (K,) or None
            Which values are from :meth:`guess`; None when none is.

        Raises
        ------
        ValueError
            When a value is NaN, a point was not asked for or has been answered before.
        """
        cdef Py_ssize_t i
        cdef size_t slot
        cdef double guess, error, old
        cdef const uint8_t[::1] is_guess
        if points.shape[1] != 3 or points.shape[0] != values.shape[0]:
            raise ValueError("update takes points (K, 3) and values (K,)")
        if guessed is None:
            guessed = np.zeros(len(values), dtype=bool)
        is_guess = np.ascontiguousarray(guessed, dtype=bool).view(np.uint8)
        if is_guess.shape[0] != values.shape[0]:
            raise ValueError("guessed must have as many entries as values")
        for i in range(points.shape[0]):
            slot = self.find(pack(points[i, 0], points[i, 1], points[i, 2]))
            old = self.slot_value[slot]
            if self.slot_code[slot] == FREE or not (isnan(old) or self.slot_guessed[slot]):
                raise ValueError(f"point {list(points[i])} is not being asked for")
            if isnan(values[i]):
                raise ValueError(f"the value at grid point {list(points[i])} is NaN")
            if isnan(old):
                self.interpolate(self.slot_code[slot], &guess, &error)
                self.slot_error[slot] = error if is_guess[i] else fabs(guess - values[i])
                self.n_unanswered -= 1
            else:
                self.n_guesses -= 1
                if self.on_both_sides(old, values[i]):
                    self.asked.push_back(self.slot_code[slot])  # its voxels may be active after all
            self.slot_value[slot], self.slot_guessed[slot] = values[i], is_guess[i]
            self.n_guesses += is_guess[i]
            self.lowest = min(self.lowest, values[i])
            self.highest = max(self.highest, values[i])
        if self.n_unanswered == 0:
            self.refine()

    def guess(self, const int64_t[:, ::1] points):
        """Values of asked points by interpolation between the coarser points around them.

        Returns
        -------
        values : float64 (K,)
            NaN where there is none: for points of the coarse grid, and a second time.
        errors : float64 (K,)
            How far off guesses at those coarser points were at most, scaled to the distances: that
            of a kink halves from level to level. Infinite where none of them was a guess.
        """
        values, errors = np.empty(points.shape[0]), np.empty(points.shape[0])
        cdef double[::1] out_values = values
        cdef double[::1] out_errors = errors
        cdef Py_ssize_t i
        cdef int64_t code
        for i in range(points.shape[0]):
            code = pack(points[i, 0], points[i, 1], points[i, 2])
            if isnan(self.value(code)):
                self.interpolate(code, &out_values[i], &out_errors[i])
            else:
                out_values[i], out_errors[i] = NAN, INFINITY
        return values, errors

    def cells(self):
        """The finest voxels that the surface crosses.

        Returns
        -------
        cells : int64 (C, 3)
            Lower corners on the finest grid.
        values : float64 (C, 8)
            At the corners; corner ``4*dx + 2*dy + dz`` is at ``cell + (dx, dy, dz)``.
        """
        self.check_finished()
        cdef vector[int64_t] crossed
        cdef double corner_values[8]
        cdef size_t i
        cdef int inside, k
        for i in range(self.voxel_level.size()):
            if self.voxel_level[i] == self.depth:
                self.corners(self.voxel_corner[i], corner_values)
                inside = 0
                for k in range(8):
                    inside += corner_values[k] > self.threshold
                if 0 < inside < 8:
                    crossed.push_back(self.voxel_corner[i])
        cells = np.empty((crossed.size(), 3), dtype=np.int64)
        values = np.empty((crossed.size(), 8))
        cdef int64_t[:, ::1] out_cells = cells
        cdef double[:, ::1] out_values = values
        for i in range(crossed.size()):
            unpack(crossed[i], &out_cells[i, 0])
            self.corners(crossed[i], &out_values[i, 0])
        return cells, values

    def to_dense(self, lower=(0, 0, 0), upper=None):
        """The values of a box of grid points, ``lower <= p < upper`` (default: all of them).

        Points that were never asked for take the value at the lower corner of the coarse voxel
        that holds them; it is on their side of the threshold, so no surface is made up.

        Returns
        -------
        float64 (upper - lower)
        """
        self.check_finished()
        upper = (self.resolution + 1,) * 3 if upper is None else upper
        cdef int64_t lo[3]
        cdef int64_t hi[3]
        cdef int64_t start[3]
        cdef int64_t stop[3]
        cdef int64_t p[3]
        cdef int64_t x, y, z, size
        cdef size_t i, k
        cdef double value
        for i in range(3):
            lo[i], hi[i] = lower[i], upper[i]
            if not 0 <= lo[i] <= hi[i] <= self.resolution + 1:
                raise ValueError(f"the box from {lower} to {upper} is not within the grid")
        dense = np.empty((hi[0] - lo[0], hi[1] - lo[1], hi[2] - lo[2]))
        cdef double[:, :, ::1] out = dense
        for i in range(self.voxel_level.size()):
            if self.voxel_child[i] != LEAF or self.voxel_level[i] == self.depth:
                continue
            size = self.size_of(i)
            unpack(self.voxel_corner[i], p)
            for k in range(3):
                start[k] = max(p[k], lo[k])
                stop[k] = min(p[k] + size + 1, hi[k])
            if start[0] >= stop[0] or start[1] >= stop[1] or start[2] >= stop[2]:
                continue
            value = self.value(self.voxel_corner[i])
            for x in range(start[0] - lo[0], stop[0] - lo[0]):
                for y in range(start[1] - lo[1], stop[1] - lo[1]):
                    for z in range(start[2] - lo[2], stop[2] - lo[2]):
                        out[x, y, z] = value
        for i in range(self.slot_code.size()):
            if self.slot_code[i] != FREE:
                unpack(self.slot_code[i], p)
                if (lo[0] <= p[0] < hi[0] and lo[1] <= p[1] < hi[1] and lo[2] <= p[2] < hi[2]):
                    out[p[0] - lo[0], p[1] - lo[1], p[2] - lo[2]] = self.slot_value[i]
        return dense

    # -- values: a hash table from grid points to values ---------------------------------------

    cdef size_t find(self, int64_t code) noexcept:
        """The slot of a point, or the free slot where it belongs."""
        cdef size_t mask = self.slot_code.size() - 1
        cdef size_t slot = (<uint64_t>code * <uint64_t>0x9E3779B97F4A7C15) >> self.hash_shift
        while self.slot_code[slot] != code and self.slot_code[slot] != FREE:
            slot = (slot + 1) & mask
        return slot

    cdef inline double value(self, int64_t code) noexcept:
        """The value at a point; NaN where it is not known."""
        return self.slot_value[self.find(code)]

    cdef void corners(self, int64_t code, double* values) noexcept:
        """The values at the 8 corners of the finest voxel at ``code``."""
        cdef int k
        for k in range(8):
            values[k] = self.value(code + pack(k >> 2, (k >> 1) & 1, k & 1))

    cdef int find_doubtful(self, vector[int64_t]& found) except -1:
        """Collect the guesses at ends of edges of the finest voxels that the surface cuts."""
        cdef double values[8]
        cdef size_t i, slot
        cdef int k, axis
        if self.n_guesses == 0:
            return 0
        for i in range(self.voxel_level.size()):
            if self.voxel_level[i] != self.depth:
                continue
            self.corners(self.voxel_corner[i], values)
            for k in range(8):
                for axis in range(3):
                    if (values[k] > self.threshold) != (values[k ^ (1 << axis)] > self.threshold):
                        slot = self.find(
                            self.voxel_corner[i] + pack(k >> 2, (k >> 1) & 1, k & 1)
                        )
                        if self.slot_guessed[slot] == 1:
                            self.slot_guessed[slot] = 2  # each point once
                            found.push_back(self.slot_code[slot])
        for i in range(found.size()):
            self.slot_guessed[self.find(found[i])] = 1
        return 0

    cdef void interpolate(self, int64_t code, double* value, double* error) noexcept:
        """The mean of the coarser points next to a point, and how far off it may be."""
        cdef int64_t p[3]
        cdef int64_t q[3]
        unpack(code, p)
        cdef int64_t step = lowest_bit(p[0] | p[1] | p[2])
        cdef int k, axis, n = 0
        cdef double known
        cdef size_t slot
        value[0], error[0] = 0, -1
        if step == 0 or step >= 1 << self.depth:  # of the coarse grid
            value[0], error[0] = NAN, INFINITY
            return
        for k in range(8):
            for axis in range(3):
                q[axis] = p[axis]
                if p[axis] & step:
                    q[axis] += step if (k >> axis) & 1 else -step
                elif (k >> axis) & 1:
                    break  # this neighbour has come already
            else:
                slot = self.find(pack(q[0], q[1], q[2]))
                value[0] += self.slot_value[slot]
                n += 1
                known = self.slot_error[slot]  # NaN for points of the coarse grid
                known *= <double>step / lowest_bit(q[0] | q[1] | q[2])
                if known > error[0]:
                    error[0] = known
        value[0] /= n
        if error[0] < 0:
            error[0] = INFINITY

    cdef int ask(self, int64_t code) except -1:
        cdef size_t slot = self.find(code)
        if self.slot_code[slot] == FREE:
            self.slot_code[slot] = code
            self.asked.push_back(code)
            self.n_unanswered += 1
            self.n_points += 1
            if 2 * self.n_points > <int64_t>self.slot_code.size():
                self.resize_table(65 - self.hash_shift)
        return 0

    cdef int resize_table(self, int bits) except -1:
        cdef vector[int64_t] codes
        cdef vector[double] values
        cdef size_t i, slot
        cdef vector[float] errors
        cdef vector[int8_t] guessed
        codes.swap(self.slot_code)
        values.swap(self.slot_value)
        errors.swap(self.slot_error)
        guessed.swap(self.slot_guessed)
        self.slot_code.assign(<size_t>1 << bits, <int64_t>FREE)
        self.slot_value.assign(<size_t>1 << bits, <double>NAN)
        self.slot_error.assign(<size_t>1 << bits, <float>NAN)
        self.slot_guessed.assign(<size_t>1 << bits, <int8_t>0)
        self.hash_shift = 64 - bits
        for i in range(codes.size()):
            if codes[i] != FREE:
                slot = self.find(codes[i])
                self.slot_code[slot] = codes[i]
                self.slot_value[slot] = values[i]
                self.slot_error[slot] = errors[i]
                self.slot_guessed[slot] = guessed[i]
        return 0

    def check_finished(self):
        if self.n_unanswered:
            raise ValueError(f"{self.n_unanswered} points of the last query are not answered yet")

    # -- voxels: an octree ---------------------------------------------------------------------

    cdef inline int64_t size_of(self, size_t voxel) noexcept:
        return <int64_t>1 << (self.depth - self.voxel_level[voxel])

    cdef int add_voxel(self, int64_t corner, int level) except -1:
        self.voxel_corner.push_back(corner)
        self.voxel_level.push_back(level)
        self.voxel_child.push_back(LEAF)
        return 0

    cdef size_t leaf_at(self, int64_t x, int64_t y, int64_t z) noexcept:
        """The leaf that holds the finest cell (x, y, z)."""
        cdef int shift = self.depth
        cdef int64_t n = self.resolution_0
        cdef size_t voxel = ((x >> shift) * n + (y >> shift)) * n + (z >> shift)
        while self.voxel_child[voxel] >= 0:
            shift -= 1
            voxel = (
                self.voxel_child[voxel]
                + 4 * ((x >> shift) & 1) + 2 * ((y >> shift) & 1) + ((z >> shift) & 1)
            )
        return voxel

    cdef bint on_both_sides(self, double a, double b) noexcept:
        """False as well where a value is not known."""
        cdef double t = self.threshold
        return (a >= t and b <= t) or (a <= t and b >= t)

    cdef bint is_active(self, size_t voxel) noexcept:
        """Whether known points on the surface of the voxel lie on both sides."""
        cdef int64_t size = self.size_of(voxel)
        cdef int64_t step = (<int64_t>1) << (self.depth - self.finest_level)
        cdef int64_t corner = self.voxel_corner[voxel]
        cdef double first = self.value(corner)
        cdef int64_t x = 0, y, z
        while x <= size:
            y = 0
            while y <= size:
                z = 0
                while z <= size:
                    if self.on_both_sides(first, self.value(corner + pack(x, y, z))):
                        # The first corner meets itself only when it is ON the threshold.
                        return True
                    z += size if 0 < x < size and 0 < y < size else step
                y += step
            x += step
        return False

    cdef int refine(self) except -1:
        """With this round answered: split what is active, and ask for the new corners."""
        cdef vector[int32_t] queue
        cdef size_t voxel, i, first_new = self.first_new_voxel
        cdef int64_t p[3]
        cdef int64_t x, y, z
        cdef double value
        cdef bint active
        cdef int k
        for voxel in range(first_new, self.voxel_level.size()):
            if self.voxel_level[voxel] < self.depth and self.is_active(voxel):
                self.voxel_child[voxel] = QUEUED
                queue.push_back(voxel)
        self.first_new_voxel = self.voxel_level.size()
        # A new point may lie on the face or edge of an older, coarser voxel, and a corrected guess
        # anywhere on it. Until now all points of that voxel were on the side of its lower corner: the
        # point is compared with the corner, but a corrected corner with all of them.
        for i in range(self.asked.size()):
            unpack(self.asked[i], p)
            value = self.value(self.asked[i])
            for k in range(8):
                x, y, z = p[0] - (k >> 2), p[1] - ((k >> 1) & 1), p[2] - (k & 1)
                if (0 <= x < self.resolution and 0 <= y < self.resolution
                        and 0 <= z < self.resolution):
                    voxel = self.leaf_at(x, y, z)
                    if (voxel < first_new and self.voxel_level[voxel] < self.depth
                            and self.voxel_child[voxel] == LEAF):
                        if self.voxel_corner[voxel] == self.asked[i]:
                            active = self.is_active(voxel)
                        else:
                            active = self.on_both_sides(value, self.value(self.voxel_corner[voxel]))
                        if active:
                            self.voxel_child[voxel] = QUEUED
                            queue.push_back(voxel)
        self.asked.clear()
        for i in range(queue.size()):
            self.split(queue[i])
        return 0

    cdef int split(self, size_t voxel) except -1:
        cdef int64_t corner = self.voxel_corner[voxel]
        cdef int level = self.voxel_level[voxel] + 1
        cdef int64_t half = self.size_of(voxel) // 2
        cdef int64_t x, y, z
        self.voxel_child[voxel] = self.voxel_level.size()
        self.finest_level = max(self.finest_level, level)
        for x in range(2):
            for y in range(2):
                for z in range(2):
                    self.add_voxel(corner + pack(x * half, y * half, z * half), level)
        for x in range(3):
            for y in range(3):
                for z in range(3):
                    self.ask(corner + pack(x * half, y * half, z * half))
        return 0
