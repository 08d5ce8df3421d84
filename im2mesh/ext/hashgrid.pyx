# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The multiresolution hash grid in float32, see im2mesh.dvr.fields.encodings.

Three passes are enough for features, first derivatives and the derivatives of both: ``gather``
adds up rows of the tables, ``scatter`` is its transpose, ``pull`` takes spatial gradients. They
hold no lock: calls on different points (``scatter``: on different levels) may run side by side.
A call runs level by level, so that a table of 2^15 rows stays in a core's cache.
"""

from libc.stdint cimport int32_t, uint32_t
from libcpp.vector cimport vector


cdef struct Row1:
    float[1] values

cdef struct Row2:
    float[2] values

cdef struct Row4:
    float[4] values

cdef struct Row8:
    float[8] values

# A variant of each pass for each number of features: loops over a row are unrolled.
ctypedef fused Row:
    Row1
    Row2
    Row4
    Row8


cdef struct Level:
    int32_t n_cells
    bint dense
    uint32_t mask
    float per_side  # 1 / side of the cube
    Py_ssize_t first_row
    Py_ssize_t column  # of its first feature


cdef enum:
    BLOCK = 128  # points of a level that are located at once, in loops that a compiler turns into SIMD

cdef struct Block:
    float[3][BLOCK] upper  # weights of the upper corners of each point's cell along each axis
    float[3][BLOCK] slope  # their derivatives
    uint32_t[8][BLOCK] rows  # of the corners in the level's table, x fastest
    float[8][BLOCK] weights  # of the corners


cdef class HashGrid:
    """Passes over the tables of one grid.

    Points are float32 (M, 3), features and covectors float32 (M, D), tables float32 (rows, F);
    ``level_weights`` float32 (L,) are what the levels are multiplied by. A level of weight 0 is
    not read. Results are written to or added up in an array that is passed in.

    Parameters
    ----------
    resolutions, first_rows : sequences of int (L,)
        Of each level: cells along a side; its first row in the tables.
    n_dense : int
        The first so many levels have a row for each corner, the others hash.
    table_size : int
        Rows of a level that hashes, a power of two.
    n_features : int
        F: 1, 2, 4 or 8.
    n_lead : int
        Columns of features before those of the first level: 0, or 3 for coordinates.
    side : float
        Of the cube, around the origin, that the grid fills.
    """

    cdef vector[Level] levels
    cdef int n_features
    cdef Py_ssize_t n_lead, n_columns, n_rows

    def __init__(self, resolutions, first_rows, n_dense, table_size, n_features, n_lead, side):
        cdef Level level
        self.n_features = n_features
        self.n_lead = n_lead
        self.n_columns = n_lead + len(resolutions) * n_features
        for i, (resolution, first_row) in enumerate(zip(resolutions, first_rows, strict=True)):
            level.n_cells = resolution
            level.dense = i < n_dense
            level.mask = table_size - 1
            level.per_side = 1 / side
            level.first_row = first_row
            level.column = n_lead + i * n_features
            self.levels.push_back(level)
            self.n_rows = first_row + ((resolution + 1) ** 3 if level.dense else table_size)

    def gather(
        self, bint lead, const float[:, ::1] points, const float[:, ::1] directions,
        const float[:, ::1] tables, const float[::1] level_weights, float[:, ::1] out,
        Py_ssize_t start, Py_ssize_t stop,
    ):
        """Features, or their derivatives along directions where those are not None.

        Parameters
        ----------
        lead : bool
            Whether the leading columns are the points (or directions); else they are 0.
        out : float32 (M, D)
            Rows from ``start`` to before ``stop`` are written.
        """
        cdef Py_ssize_t m, k
        cdef const float* along = NULL
        cdef const float* source = &points[0, 0]
        self.check_points(points, out, self.n_columns, start, stop)
        self.check(tables.shape[0] == self.n_rows and tables.shape[1] == self.n_features)
        self.check(level_weights.shape[0] == <Py_ssize_t>self.levels.size())
        if directions is not None:
            self.check(directions.shape[0] == points.shape[0] and directions.shape[1] == 3)
            source = along = &directions[0, 0]
        with nogil:
            for m in range(start, stop):
                for k in range(self.n_lead):
                    out[m, k] = source[3 * m + k] if lead else 0
            if self.n_features == 1:
                gather_rows[Row1](
                    self.levels, &level_weights[0], &points[0, 0], along,
                    <const Row1*>&tables[0, 0], &out[0, 0], out.shape[1], start, stop,
                )
            elif self.n_features == 2:
                gather_rows[Row2](
                    self.levels, &level_weights[0], &points[0, 0], along,
                    <const Row2*>&tables[0, 0], &out[0, 0], out.shape[1], start, stop,
                )
            elif self.n_features == 4:
                gather_rows[Row4](
                    self.levels, &level_weights[0], &points[0, 0], along,
                    <const Row4*>&tables[0, 0], &out[0, 0], out.shape[1], start, stop,
                )
            else:
                gather_rows[Row8](
                    self.levels, &level_weights[0], &points[0, 0], along,
                    <const Row8*>&tables[0, 0], &out[0, 0], out.shape[1], start, stop,
                )

    def scatter(
        self, const float[:, ::1] points, const float[:, ::1] directions,
        const float[:, ::1] covectors, const float[::1] level_weights,
        float[:, ::1] out, Py_ssize_t start, Py_ssize_t stop,
    ):
        """Gradient, with respect to the tables, of the product of ``gather`` with covectors.

        Parameters
        ----------
        out : float32 (rows, F)
            The gradient of levels from ``start`` to before ``stop`` is added.
        """
        cdef const float* along = NULL
        self.check_points(points, covectors, self.n_columns, 0, points.shape[0])
        self.check(out.shape[0] == self.n_rows and out.shape[1] == self.n_features)
        self.check(level_weights.shape[0] == <Py_ssize_t>self.levels.size())
        self.check(0 <= start <= stop <= level_weights.shape[0])
        if directions is not None:
            self.check(directions.shape[0] == points.shape[0] and directions.shape[1] == 3)
            along = &directions[0, 0]
        with nogil:
            if self.n_features == 1:
                scatter_rows[Row1](
                    self.levels, &level_weights[0], &points[0, 0], along, &covectors[0, 0],
                    <Row1*>&out[0, 0], covectors.shape[1], points.shape[0], start, stop,
                )
            elif self.n_features == 2:
                scatter_rows[Row2](
                    self.levels, &level_weights[0], &points[0, 0], along, &covectors[0, 0],
                    <Row2*>&out[0, 0], covectors.shape[1], points.shape[0], start, stop,
                )
            elif self.n_features == 4:
                scatter_rows[Row4](
                    self.levels, &level_weights[0], &points[0, 0], along, &covectors[0, 0],
                    <Row4*>&out[0, 0], covectors.shape[1], points.shape[0], start, stop,
                )
            else:
                scatter_rows[Row8](
                    self.levels, &level_weights[0], &points[0, 0], along, &covectors[0, 0],
                    <Row8*>&out[0, 0], covectors.shape[1], points.shape[0], start, stop,
                )

    def pull(
        self, bint lead, const float[:, ::1] points, const float[:, ::1] covectors,
        const float[:, ::1] tables, const float[::1] level_weights, float[:, ::1] out,
        Py_ssize_t start, Py_ssize_t stop,
    ):
        """Spatial gradient of the features' product with covectors.

        Parameters
        ----------
        lead : bool
            Whether the leading columns are the points; else they do not depend on them.
        out : float32 (M, 3)
            Rows from ``start`` to before ``stop`` are written.
        """
        cdef Py_ssize_t m, k
        self.check_points(points, covectors, self.n_columns, start, stop)
        self.check_points(points, out, 3, start, stop)
        self.check(tables.shape[0] == self.n_rows and tables.shape[1] == self.n_features)
        self.check(level_weights.shape[0] == <Py_ssize_t>self.levels.size())
        with nogil:
            for m in range(start, stop):
                for k in range(3):
                    out[m, k] = covectors[m, k] if lead and self.n_lead > 0 else 0
            if self.n_features == 1:
                pull_rows[Row1](
                    self.levels, &level_weights[0], &points[0, 0], &covectors[0, 0],
                    <const Row1*>&tables[0, 0], &out[0, 0], covectors.shape[1], start, stop,
                )
            elif self.n_features == 2:
                pull_rows[Row2](
                    self.levels, &level_weights[0], &points[0, 0], &covectors[0, 0],
                    <const Row2*>&tables[0, 0], &out[0, 0], covectors.shape[1], start, stop,
                )
            elif self.n_features == 4:
                pull_rows[Row4](
                    self.levels, &level_weights[0], &points[0, 0], &covectors[0, 0],
                    <const Row4*>&tables[0, 0], &out[0, 0], covectors.shape[1], start, stop,
                )
            else:
                pull_rows[Row8](
                    self.levels, &level_weights[0], &points[0, 0], &covectors[0, 0],
                    <const Row8*>&tables[0, 0], &out[0, 0], covectors.shape[1], start, stop,
                )

    cdef int check_points(
        self, const float[:, ::1] points, const float[:, ::1] of_points, Py_ssize_t n_columns,
        Py_ssize_t start, Py_ssize_t stop,
    ) except -1:
        self.check(points.shape[1] == 3 and 0 <= start <= stop <= points.shape[0])
        self.check(of_points.shape[0] == points.shape[0] and of_points.shape[1] == n_columns)
        return 0

    cdef int check(self, bint fits) except -1:
        if not fits:
            raise ValueError("the shape of an array does not fit the grid or the other arrays")
        return 0


cdef void gather_rows(
    const vector[Level]& levels, const float* level_weights, const float* points,
    const float* directions, const Row* tables, float* out, Py_ssize_t n_columns,
    Py_ssize_t start, Py_ssize_t stop,
) noexcept nogil:
    cdef int c, f, i, n, n_features = sizeof(Row) // sizeof(float)
    cdef Py_ssize_t k, first
    cdef const Row* table
    cdef float* features
    cdef Block block
    cdef Row total
    for k in range(<Py_ssize_t>levels.size()):
        table = tables + levels[k].first_row
        first = start
        while first < stop:
            n = min(BLOCK, stop - first)
            if level_weights[k] != 0:
                locate(levels[k], points + 3 * first, n, &block)
                weigh(directions + 3 * first if directions != NULL else NULL, n, &block)
            for i in range(n):
                for f in range(n_features):
                    total.values[f] = 0
                if level_weights[k] != 0:
                    for c in range(8):
                        for f in range(n_features):
                            total.values[f] += block.weights[c][i] * table[block.rows[c][i]].values[f]
                features = out + (first + i) * n_columns + levels[k].column
                for f in range(n_features):
                    features[f] = level_weights[k] * total.values[f]
            first += n


cdef void scatter_rows(
    const vector[Level]& levels, const float* level_weights, const float* points,
    const float* directions, const float* covectors, Row* tables, Py_ssize_t n_columns,
    Py_ssize_t n_points, Py_ssize_t start, Py_ssize_t stop,
) noexcept nogil:
    cdef int c, f, i, n, n_features = sizeof(Row) // sizeof(float)
    cdef Py_ssize_t k, first
    cdef Row* table
    cdef Block block
    cdef Row covector
    for k in range(start, stop):
        if level_weights[k] == 0:
            continue
        table = tables + levels[k].first_row
        first = 0
        while first < n_points:
            n = min(BLOCK, n_points - first)
            locate(levels[k], points + 3 * first, n, &block)
            weigh(directions + 3 * first if directions != NULL else NULL, n, &block)
            for i in range(n):
                for f in range(n_features):
                    covector.values[f] = (
                        level_weights[k] * covectors[(first + i) * n_columns + levels[k].column + f]
                    )
                for c in range(8):
                    for f in range(n_features):
                        table[block.rows[c][i]].values[f] += block.weights[c][i] * covector.values[f]
            first += n


cdef void pull_rows(
    const vector[Level]& levels, const float* level_weights, const float* points,
    const float* covectors, const Row* tables, float* out, Py_ssize_t n_columns,
    Py_ssize_t start, Py_ssize_t stop,
) noexcept nogil:
    cdef int c, f, i, n, n_features = sizeof(Row) // sizeof(float)
    cdef Py_ssize_t k, first
    cdef const Row* table
    cdef Block block
    cdef float[8][BLOCK] products
    cdef float total
    cdef Row covector
    for k in range(<Py_ssize_t>levels.size()):
        if level_weights[k] == 0:
            continue
        table = tables + levels[k].first_row
        first = start
        while first < stop:
            n = min(BLOCK, stop - first)
            locate(levels[k], points + 3 * first, n, &block)
            for i in range(n):
                for f in range(n_features):
                    covector.values[f] = (
                        level_weights[k] * covectors[(first + i) * n_columns + levels[k].column + f]
                    )
                for c in range(8):
                    total = 0
                    for f in range(n_features):
                        total += table[block.rows[c][i]].values[f] * covector.values[f]
                    products[c][i] = total
            add_gradients(products, &block, n, out + 3 * first)
            first += n


cdef void locate(const Level& level, const float* points, int n, Block* block) noexcept nogil:
    """The cells of points. That of NaN is the last, with weights of NaN."""
    cdef int32_t[3][BLOCK] lower
    cdef float unit, position, bounded
    cdef float n_cells = level.n_cells, per_side = level.per_side
    cdef float slope = n_cells * per_side, last = n_cells - 1
    cdef uint32_t x0, x1, y0, y1, z0, z1, row_step, layer_step, mask
    cdef int i, k
    for k in range(3):
        for i in range(n):
            unit = points[3 * i + k] * per_side + <float>0.5
            block.slope[k][i] = slope if (unit >= 0) & (unit <= 1) else 0
            block.upper[k][i] = 0 if unit < 0 else unit
        for i in range(n):  # two loops, since a compiler turns both bounds in one into branches
            unit = block.upper[k][i]
            unit = 1 if unit > 1 else unit
            position = unit * n_cells
            # The last position lies on the upper side of the last cell.
            bounded = position if position < last else last
            lower[k][i] = <int32_t>bounded
            block.upper[k][i] = position - lower[k][i]
    if level.dense:
        row_step = level.n_cells + 1
        layer_step = row_step * row_step
        for i in range(n):
            x0 = <uint32_t>lower[0][i] + lower[1][i] * row_step + lower[2][i] * layer_step
            block.rows[0][i] = x0
            block.rows[1][i] = x0 + 1
            block.rows[2][i] = x0 + row_step
            block.rows[3][i] = x0 + row_step + 1
            block.rows[4][i] = x0 + layer_step
            block.rows[5][i] = x0 + layer_step + 1
            block.rows[6][i] = x0 + layer_step + row_step
            block.rows[7][i] = x0 + layer_step + row_step + 1
    else:  # of unsigned integers, which wrap around
        mask = level.mask
        for i in range(n):
            x0 = lower[0][i]
            x1 = x0 + 1
            y0 = lower[1][i] * <uint32_t>2654435761u
            y1 = y0 + <uint32_t>2654435761u
            z0 = lower[2][i] * <uint32_t>805459861u
            z1 = z0 + <uint32_t>805459861u
            block.rows[0][i] = (x0 ^ y0 ^ z0) & mask
            block.rows[1][i] = (x1 ^ y0 ^ z0) & mask
            block.rows[2][i] = (x0 ^ y1 ^ z0) & mask
            block.rows[3][i] = (x1 ^ y1 ^ z0) & mask
            block.rows[4][i] = (x0 ^ y0 ^ z1) & mask
            block.rows[5][i] = (x1 ^ y0 ^ z1) & mask
            block.rows[6][i] = (x0 ^ y1 ^ z1) & mask
            block.rows[7][i] = (x1 ^ y1 ^ z1) & mask


cdef void weigh(const float* directions, int n, Block* block) noexcept nogil:
    """Trilinear weights of the corners, or their derivatives along directions that are not NULL."""
    cdef float x0, x1, y0, y1, z0, z1, dx, dy, dz
    cdef int i
    if directions == NULL:
        for i in range(n):
            x1, y1, z1 = block.upper[0][i], block.upper[1][i], block.upper[2][i]
            x0, y0, z0 = 1 - x1, 1 - y1, 1 - z1
            block.weights[0][i] = x0 * y0 * z0
            block.weights[1][i] = x1 * y0 * z0
            block.weights[2][i] = x0 * y1 * z0
            block.weights[3][i] = x1 * y1 * z0
            block.weights[4][i] = x0 * y0 * z1
            block.weights[5][i] = x1 * y0 * z1
            block.weights[6][i] = x0 * y1 * z1
            block.weights[7][i] = x1 * y1 * z1
    else:
        for i in range(n):
            x1, y1, z1 = block.upper[0][i], block.upper[1][i], block.upper[2][i]
            x0, y0, z0 = 1 - x1, 1 - y1, 1 - z1
            dx = block.slope[0][i] * directions[3 * i]
            dy = block.slope[1][i] * directions[3 * i + 1]
            dz = block.slope[2][i] * directions[3 * i + 2]
            block.weights[0][i] = -(dx * y0 + x0 * dy) * z0 - x0 * y0 * dz
            block.weights[1][i] = (dx * y0 - x1 * dy) * z0 - x1 * y0 * dz
            block.weights[2][i] = (x0 * dy - dx * y1) * z0 - x0 * y1 * dz
            block.weights[3][i] = (dx * y1 + x1 * dy) * z0 - x1 * y1 * dz
            block.weights[4][i] = x0 * y0 * dz - (dx * y0 + x0 * dy) * z1
            block.weights[5][i] = (dx * y0 - x1 * dy) * z1 + x1 * y0 * dz
            block.weights[6][i] = (x0 * dy - dx * y1) * z1 + x0 * y1 * dz
            block.weights[7][i] = (dx * y1 + x1 * dy) * z1 + x1 * y1 * dz


cdef void add_gradients(
    const float[8][BLOCK] values, const Block* block, int n, float* gradients,
) noexcept nogil:
    """Adds the spatial gradient of what is interpolated between values at the corners."""
    cdef float x, y, z, on0, on1, on2, on3, by0, by1, by2, by3
    cdef int i
    for i in range(n):
        x, y, z = block.upper[0][i], block.upper[1][i], block.upper[2][i]
        by0, by1 = values[4][i] - values[0][i], values[5][i] - values[1][i]  # differences along z
        by2, by3 = values[6][i] - values[2][i], values[7][i] - values[3][i]
        on0, on1 = values[0][i] + z * by0, values[1][i] + z * by1  # interpolated along z
        on2, on3 = values[2][i] + z * by2, values[3][i] + z * by3
        gradients[3 * i] += block.slope[0][i] * ((1 - y) * (on1 - on0) + y * (on3 - on2))
        gradients[3 * i + 1] += block.slope[1][i] * ((1 - x) * (on2 - on0) + x * (on3 - on1))
        gradients[3 * i + 2] += block.slope[2][i] * (
            (1 - y) * ((1 - x) * by0 + x * by1) + y * ((1 - x) * by2 + x * by3)
        )
