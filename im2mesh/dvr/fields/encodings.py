"""Encodings of points: what a field network may be given instead of three coordinates.

A small network of smooth or piecewise linear units learns fine detail slowly. Features that vary
quickly in space let it be sharp at once. :class:`Frequency` has sines and cosines of rising
frequency (Mildenhall et al. 2020, NeRF, section 5.1), :class:`HashGrid` has learnt tables on grids
of rising resolution (Mueller et al. 2022, sections 3 and 4).

The contract, see :class:`Encoding`: features, their derivative along directions (``push``, J d) and
its transpose (``pull``, J^T c). Both are first derivatives in closed form, so that the spatial
gradient of a network behind an encoding is ``encoding.pull(points, gradient of its input)``, and
plain first-order differentiation gives the derivatives of that with respect to the weights.
"""

import math
import os
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial

import torch
from torch import nn

from im2mesh.ext import new_hash_grid
from im2mesh.geometry import CUBE_PADDING

PRIMES = (1, 2654435761, 805459861)  # Mueller et al. 2022, equation 4
TABLE_BYTES = 2**30  # the most that the tables of a grid may take, in float32
MOST_CELLS = 2**16  # along a side
TABLE_START = 1e-4  # entries start uniform between minus and plus this
PIECE = 4096  # points at a time: fewer reuse a table less, more push it out of a core's cache


class Encoding(nn.Module):
    """Features of points, coarse to fine.

    The features are the three coordinates and those of ``n_scales`` octaves or levels, coarsest
    first. Scale k is multiplied by ``(1 - cos(pi clamp(a - k, 0, 1))) / 2`` with
    ``a = progress * n_scales``: at progress 0 there are only coordinates, at 1 (as made) everything.

    Attributes
    ----------
    dim : int
        D, the number of features.
    progress : Tensor (), a buffer
        See :meth:`set_progress`; it is part of a state dict.
    """

    def __init__(self, dim, n_scales):
        super().__init__()
        self.dim = dim
        self.n_scales = n_scales
        self.register_buffer("progress", torch.tensor(1.0))

    def forward(self, points):
        """The features.

        Parameters
        ----------
        points : Tensor (M, 3)
            Object space.

        Returns
        -------
        Tensor (M, D)
            Differentiable with respect to the points (once; that derivative is :meth:`pull`) and
            to the encoding's weights.
        """
        raise NotImplementedError

    def push(self, points, directions):
        """Derivative of the features along one direction per point, J(p) d.

        Parameters
        ----------
        points : Tensor (M, 3)
            Object space.
        directions : Tensor (M, 3)

        Returns
        -------
        Tensor (M, D)
            Differentiable with respect to the directions and the encoding's weights; to the points
            as well in :class:`Frequency`, not in :class:`HashGrid`.
        """
        raise NotImplementedError

    def pull(self, points, covectors):
        """Spatial gradient of the features' product with one covector per point, J(p)^T c.

        Parameters
        ----------
        points : Tensor (M, 3)
            Object space.
        covectors : Tensor (M, D)

        Returns
        -------
        Tensor (M, 3)
            Differentiable with respect to the covectors and the encoding's weights; to the points
            as well in :class:`Frequency`, not in :class:`HashGrid`.
        """
        raise NotImplementedError

    def set_progress(self, share):
        """Fade in the finer scales.

        Parameters
        ----------
        share : float
            Between 0 (coordinates only) and 1 (all scales). Not to be changed between a forward pass
            and its backward pass.

        Raises
        ------
        ValueError
            For another share.
        """
        if not 0 <= share <= 1:
            raise ValueError(f"the progress of an encoding lies between 0 and 1, it cannot be {share}")
        self.progress.fill_(share)

    def scale_weights(self):
        """What each scale is multiplied by, Tensor (n_scales,) between 0 and 1."""
        return _scale_weights(self.progress, self.n_scales)


def _scale_weights(progress, n_scales):
    share = (progress * n_scales - torch.arange(n_scales, device=progress.device)).clamp(0, 1)
    return (1 - torch.cos(math.pi * share)) / 2


class Frequency(Encoding):
    """Sines and cosines: (p, sin(2^k pi p), cos(2^k pi p)) for k = 0 .. n_octaves - 1.

    Columns: three coordinates, then for each octave three sines and three cosines; D is
    3 + 6 n_octaves. No weights. Everything is differentiable any number of times.

    Parameters
    ----------
    n_octaves : int
        1 to 16.

    Raises
    ------
    ValueError
        For another number of octaves.
    """

    def __init__(self, n_octaves=6):
        if not 1 <= n_octaves <= 16:
            raise ValueError(
                f"n_octaves must be between 1 and 16, not {n_octaves}; "
                f"the nearest valid value is {_nearest(n_octaves, 1, 16)}"
            )
        super().__init__(dim=3 + 6 * n_octaves, n_scales=n_octaves)

    def forward(self, points):
        sines, cosines, weights, _ = self._waves(points)
        waves = torch.stack([sines * weights, cosines * weights], dim=2)
        return torch.cat([points, waves.flatten(1)], dim=1)

    def push(self, points, directions):
        sines, cosines, weights, rates = self._waves(points)
        along = directions.unsqueeze(1) * (weights * rates)
        waves = torch.stack([cosines * along, -sines * along], dim=2)
        return torch.cat([directions, waves.flatten(1)], dim=1)

    def pull(self, points, covectors):
        sines, cosines, weights, rates = self._waves(points)
        of_sines, of_cosines = covectors[:, 3:].unflatten(1, (self.n_scales, 2, 3)).unbind(2)
        waves = (of_sines * cosines - of_cosines * sines) * (weights * rates)
        return covectors[:, :3] + waves.sum(dim=1)

    def _waves(self, points):
        """Sines and cosines (M, n_octaves, 3), weights and angular frequencies (n_octaves, 1)."""
        octaves = torch.arange(self.n_scales, device=points.device, dtype=points.dtype)
        rates = (math.pi * 2**octaves).unsqueeze(1)
        angles = points.unsqueeze(1) * rates
        weights = self.scale_weights().to(points.dtype).unsqueeze(1)
        return angles.sin(), angles.cos(), weights, rates


class HashGrid(Encoding):
    """Multiresolution hash grid: on each level a grid of learnt features, interpolated.

    Level l has N_l = floor(coarsest * b^l) cells along each side of the padded object cube, from
    ``coarsest`` to ``finest``. Its (N_l + 1)^3 corners have a row each in the level's table where
    they fit in 2^log2_table_size rows (dense, x runs fastest); else they share that many rows by a
    hash of their integer coordinates: (x * 1) xor (y * 2654435761) xor (z * 805459861), modulo the
    table size. The features of a point are interpolated between the eight corners of its cell.

    A point outside the padded cube has the features of the nearest point of its border; their
    derivative along the axes on which it is outside is zero. Between cells the derivative jumps.
    Second derivatives with respect to points are dropped everywhere, here and in automatic
    differentiation through this module. Results are the same in every run and for any number of
    threads; only on a GPU is the gradient of the tables added up in no fixed order.

    Columns: three coordinates (where ``include_points``), then ``n_features`` of each level,
    coarsest level first; D is 3 + n_levels * n_features.

    Parameters
    ----------
    n_levels : int
        At least 1; with one level ``finest`` must be ``coarsest``.
    coarsest, finest : int
        Cells along a side on the first and on the last level.
    log2_table_size : int
        8 to 24: a level's table has no more than 2 to the power of this rows.
    n_features : int
        Per level: 1, 2, 4 or 8.
    include_points : bool
        Whether the coordinates are features as well.
    compiled : bool
        Whether float32 on a CPU runs in :mod:`im2mesh.ext.hashgrid`, on PyTorch's number of threads,
        instead of the plain form, which serves all else (and what ``torch.compile`` compiles). The
        two differ by rounding.

    Attributes
    ----------
    tables : Parameter (rows of all levels, n_features), float32
        The levels' tables, one after the other; they start uniform in [-1e-4, 1e-4].
    resolutions, first_rows : tuple of int
        Of each level: cells along a side; its first row in ``tables``.
    n_dense : int
        The first so many levels have a row for each corner, the others hash.

    Raises
    ------
    ValueError
        For sizes that make no grid or too large a one; it names the nearest valid value.
    """

    def __init__(
        self, n_levels=8, coarsest=8, finest=192, log2_table_size=15, n_features=2,
        include_points=True, compiled=True,
    ):
        _check_grid(n_levels, coarsest, finest, log2_table_size, n_features)
        self.resolutions = _resolutions(n_levels, coarsest, finest)
        super().__init__(dim=3 * include_points + n_levels * n_features, n_scales=n_levels)
        self.include_points = include_points
        self.compiled = compiled
        self.n_features = n_features
        self.table_size = 2**log2_table_size
        sizes = [_n_rows(n, self.table_size) for n in self.resolutions]
        self.n_dense = sum((n + 1) ** 3 <= self.table_size for n in self.resolutions)
        self.first_rows = tuple(sum(sizes[:level]) for level in range(n_levels))
        self.tables = nn.Parameter(
            torch.empty(sum(sizes), n_features).uniform_(-TABLE_START, TABLE_START)
        )
        strides = [(1, n + 1, (n + 1) ** 2) for n in self.resolutions[: self.n_dense]]
        strides += [PRIMES] * (n_levels - self.n_dense)
        self.register_buffer("_strides", torch.tensor(strides), persistent=False)
        self.register_buffer("_cells", torch.tensor(self.resolutions), persistent=False)
        self.register_buffer("_firsts", torch.tensor(self.first_rows), persistent=False)

    def forward(self, points):
        features = self._gather(points.detach(), None, self.tables)
        if not (points.requires_grad and torch.is_grad_enabled()):
            return features
        return _Attach.apply(self, points, features, self.tables)

    def push(self, points, directions):
        return self._gather(points.detach(), directions.to(points.dtype), self.tables)

    def pull(self, points, covectors):
        return self._pull(points.detach(), covectors.to(points.dtype), self.tables)

    def _gather(self, points, directions, tables):
        """Features or, where directions are given, their derivative along them."""
        if self._runs_compiled(points, tables):
            return _Gather.apply(_Passes(self), points, directions, tables, True)
        return self._plain_gather(points, directions, tables)

    def _pull(self, points, covectors, tables):
        if self._runs_compiled(points, tables):
            return _Pull.apply(_Passes(self), points, covectors, tables, True)
        return self._plain_pull(points, covectors, tables)

    def _runs_compiled(self, points, tables):
        if not self.compiled or torch.compiler.is_compiling():  # which traces the plain form only
            return False
        on_cpu = points.device.type == tables.device.type == "cpu"
        return on_cpu and points.dtype == tables.dtype == torch.float32

    # The plain form, differentiated by autograd. No matrix products, which autocast would round.

    def _plain_gather(self, points, directions, tables):
        rows, low_high, slopes = self._locate(points)
        if directions is None:
            weights = _products(*low_high)
        else:
            along = (slopes * directions.unsqueeze(1)).unsqueeze(-1)
            weights = sum(
                _products(*_with_slope(low_high, axis)) * along[:, :, axis] for axis in range(3)
            )
        weights = weights * self.scale_weights().to(weights.dtype).unsqueeze(1)
        features = (_rows_of(tables, rows) * weights.unsqueeze(-1)).sum(dim=2).flatten(1)
        if not self.include_points:
            return features
        return torch.cat([points if directions is None else directions, features], dim=1)

    def _plain_pull(self, points, covectors, tables):
        rows, low_high, slopes = self._locate(points)
        of_levels = covectors[:, 3 * self.include_points:]
        of_levels = of_levels.unflatten(1, (self.n_scales, 1, self.n_features))
        of_levels = of_levels * self.scale_weights().to(points.dtype).view(-1, 1, 1)
        products = (_rows_of(tables, rows) * of_levels).sum(dim=-1)  # (M, L, 8)
        gradient = torch.stack([
            ((_products(*_with_slope(low_high, axis)) * products).sum(-1) * slopes[:, :, axis]).sum(-1)
            for axis in range(3)
        ], dim=1)
        return covectors[:, :3] + gradient if self.include_points else gradient

    def _locate(self, points):
        """The cells of points.

        Returns
        -------
        rows : Tensor (M, L, 8), int64
            Of ``tables``: the corners of a point's cell, x fastest.
        low_high : list of three Tensors (M, L, 2)
            Along each axis the weights of the lower and of the upper corners.
        slopes : Tensor (M, L, 3)
            Derivative of the upper weight with respect to the coordinate; 0 outside the cube.
        """
        unit = points * (1 / (1 + CUBE_PADDING)) + 0.5
        inside = (unit >= 0) & (unit <= 1)
        n_cells = self._cells.to(unit.dtype).unsqueeze(1)
        position = unit.clamp(0, 1).unsqueeze(1) * n_cells
        lower = torch.minimum(position.floor(), n_cells - 1).nan_to_num()  # of NaN: NaN, not a crash
        upper_weight = position - lower
        low_high = torch.stack([1 - upper_weight, upper_weight], dim=-1).unbind(2)
        slopes = inside.unsqueeze(1) * (n_cells / (1 + CUBE_PADDING))
        return self._rows(lower.long()), low_high, slopes

    def _rows(self, lower):
        """Rows (M, L, 8) of the corners of cells (M, L, 3).

        The hash is defined on unsigned 32-bit integers that wrap around. Products in int64 have
        the same lowest 32 bits, which is all that the remainder by a power of two keeps.
        """
        corners = torch.stack([lower, lower + 1], dim=-1) * self._strides.unsqueeze(-1)
        x, y, z = corners.unbind(2)
        x, y, z = x[:, :, None, None, :], y[:, :, None, :, None], z[:, :, :, None, None]
        dense, hashed = slice(None, self.n_dense), slice(self.n_dense, None)
        rows = torch.cat([
            x[:, dense] + y[:, dense] + z[:, dense],
            (x[:, hashed] ^ y[:, hashed] ^ z[:, hashed]) & (self.table_size - 1),
        ], dim=1)
        return rows.flatten(2) + self._firsts.unsqueeze(1)


class _Attach(torch.autograd.Function):
    """Features as they are, with their derivative with respect to points.

    A step of its own: the gradient with respect to points alone leaves the tables' uncomputed.
    """

    @staticmethod
    def forward(ctx, grid, points, features, tables):
        ctx.grid = grid
        ctx.save_for_backward(points.detach(), tables)
        return features.view_as(features)

    @staticmethod
    def backward(ctx, covectors):
        points, tables = ctx.saved_tensors
        return None, ctx.grid._pull(points, covectors, tables), covectors, None


# The compiled form. Its three passes are linear in tables, directions and covectors, so that the
# derivatives of each are the two others.


class _Gather(torch.autograd.Function):
    """Features of points, or their derivatives along directions."""

    @staticmethod
    def forward(ctx, passes, points, directions, tables, lead):
        ctx.passes, ctx.lead = passes, lead
        ctx.save_for_backward(points, directions, tables)
        return passes.gather(points, directions, tables, lead)

    @staticmethod
    def backward(ctx, covectors):
        points, directions, tables = ctx.saved_tensors
        _, _, of_directions, of_tables, _ = ctx.needs_input_grad
        passes, lead = ctx.passes, ctx.lead
        return (
            None,
            None,
            _Pull.apply(passes, points, covectors, tables, lead) if of_directions else None,
            _Scatter.apply(passes, points, directions, covectors) if of_tables else None,
            None,
        )


class _Pull(torch.autograd.Function):
    """Spatial gradient of the features' product with covectors."""

    @staticmethod
    def forward(ctx, passes, points, covectors, tables, lead):
        ctx.passes, ctx.lead = passes, lead
        ctx.save_for_backward(points, covectors, tables)
        return passes.pull(points, covectors, tables, lead)

    @staticmethod
    def backward(ctx, directions):
        points, covectors, tables = ctx.saved_tensors
        _, _, of_covectors, of_tables, _ = ctx.needs_input_grad
        passes, lead = ctx.passes, ctx.lead
        return (
            None,
            None,
            _Gather.apply(passes, points, directions, tables, lead) if of_covectors else None,
            _Scatter.apply(passes, points, directions, covectors) if of_tables else None,
            None,
        )


class _Scatter(torch.autograd.Function):
    """Gradient with respect to the tables of :class:`_Gather` times covectors."""

    @staticmethod
    def forward(ctx, passes, points, directions, covectors):
        ctx.passes = passes
        ctx.save_for_backward(points, directions, covectors)
        return passes.scatter(points, directions, covectors)

    @staticmethod
    def backward(ctx, tables):
        points, directions, covectors = ctx.saved_tensors
        _, _, of_directions, of_covectors = ctx.needs_input_grad
        # The leading columns of features do not depend on the tables.
        return (
            None,
            None,
            _Pull.apply(ctx.passes, points, covectors, tables, False) if of_directions else None,
            _Gather.apply(ctx.passes, points, directions, tables, False) if of_covectors else None,
        )


class _Passes:
    """The compiled passes of a grid at its present progress, on tensors and on several threads."""

    def __init__(self, grid):
        self.dim, self.n_levels = grid.dim, grid.n_scales
        self.table_shape = grid.tables.shape
        self.level_weights = _level_weights(grid.progress.item(), grid.n_scales)
        self.kernel = _kernel(
            grid.resolutions, grid.first_rows, grid.n_dense, grid.table_size, grid.n_features,
            3 * grid.include_points,
        )

    def gather(self, points, directions, tables, lead):
        out = points.new_empty(len(points), self.dim)
        arrays = _arrays(points, directions, tables, self.level_weights, out)
        _share_out(partial(self.kernel.gather, lead, *arrays), len(points), PIECE, len(points))
        return out

    def pull(self, points, covectors, tables, lead):
        out = points.new_empty(len(points), 3)
        arrays = _arrays(points, covectors, tables, self.level_weights, out)
        _share_out(partial(self.kernel.pull, lead, *arrays), len(points), PIECE, len(points))
        return out

    def scatter(self, points, directions, covectors):
        out = points.new_zeros(self.table_shape)
        if len(points) > 0:
            arrays = _arrays(points, directions, covectors, self.level_weights, out)
            _share_out(partial(self.kernel.scatter, *arrays), self.n_levels, 1, len(points))
        return out


@lru_cache
def _kernel(*sizes):
    # Not kept by the module: it could not be copied nor pickled.
    return new_hash_grid(*sizes, 1 + CUBE_PADDING)


@lru_cache
def _level_weights(progress, n_levels):
    # Half a dozen operations on tensors would take as long as a thousand points.
    return _scale_weights(torch.tensor(progress, dtype=torch.float32, device="cpu"), n_levels)


def _arrays(*tensors):
    """Contiguous numpy arrays of tensors, copied where need be; None stays."""
    return [None if t is None else t.detach().contiguous().numpy() for t in tensors]


def _share_out(work, n_items, piece, n_points):
    """Call ``work(start, stop)`` for pieces of a range, on PyTorch's number of threads.

    A piece is the work of one thread alone and no two write to the same place, so results do not
    depend on the number of threads. Threads of Python, since the calls hold no lock: a second
    OpenMP runtime beside PyTorch's would compete with it for the cores.
    """
    starts = range(0, n_items, piece)
    n_threads = torch.get_num_threads()
    n_helpers = min(n_threads, len(starts)) - 1 if n_points > PIECE else 0
    starts = iter(starts)

    def work_off():
        for start in starts:  # whichever thread is free takes the next one
            work(start, min(start + piece, n_items))

    helpers = [_threads(n_threads).submit(work_off) for _ in range(n_helpers)]
    work_off()
    for helper in helpers:
        if not helper.cancel():  # one that never began is not waited for
            helper.result()


@lru_cache(maxsize=1)
def _threads(n):
    return ThreadPoolExecutor(n, thread_name_prefix="hash grid")


# The threads do not survive a fork.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_threads.cache_clear)


def _products(x, y, z):
    """All eight products (..., 8) of pairs (..., 2) along three axes, x fastest."""
    return (z[..., :, None, None] * y[..., None, :, None] * x[..., None, None, :]).flatten(-3)


def _rows_of(tables, rows):
    """Rows (..., F) of the tables."""
    # index_select has a derivative of its derivative, and a faster one than indexing.
    return tables.index_select(0, rows.flatten()).unflatten(0, rows.shape)


def _with_slope(low_high, axis):
    """The weights with those along one axis replaced by their derivative, (-1, 1)."""
    like = low_high[axis]
    slope = torch.arange(-1, 2, 2, dtype=like.dtype, device=like.device)  # no copy from the CPU
    return [slope if a == axis else weights for a, weights in enumerate(low_high)]


def _resolutions(n_levels, coarsest, finest):
    growth = (finest / coarsest) ** (1 / max(n_levels - 1, 1))
    # The last one is ``finest``, not one less because a root was rounded.
    return tuple(math.floor(coarsest * growth**level * (1 + 1e-9)) for level in range(n_levels))


def _n_rows(resolution, table_size):
    return min((resolution + 1) ** 3, table_size)


def _table_bytes(resolutions, log2_table_size, n_features):
    return 4 * n_features * sum(_n_rows(n, 2**log2_table_size) for n in resolutions)


def _nearest(value, least, most):
    return min(max(value, least), most)


def _check_grid(n_levels, coarsest, finest, log2_table_size, n_features):
    if n_levels < 1:
        raise ValueError(f"n_levels must be at least 1, not {n_levels}; the nearest valid value is 1")
    if coarsest < 1:
        raise ValueError(f"coarsest must be at least 1, not {coarsest}; the nearest valid value is 1")
    if finest > MOST_CELLS:
        raise ValueError(
            f"finest must be at most {MOST_CELLS}, where float32 still tells places in a cell apart, "
            f"not {finest}; the nearest valid value is {MOST_CELLS}"
        )
    if finest < coarsest or (n_levels == 1 and finest != coarsest):
        rule = "at least coarsest" if n_levels > 1 else "coarsest where there is one level"
        raise ValueError(
            f"finest must be {rule}, not {finest}; the nearest valid value is {coarsest}"
        )
    if not 8 <= log2_table_size <= 24:
        raise ValueError(
            f"log2_table_size must be between 8 and 24, not {log2_table_size}; "
            f"the nearest valid value is {_nearest(log2_table_size, 8, 24)}"
        )
    if n_features not in (1, 2, 4, 8):
        nearest = min((1, 2, 4, 8), key=lambda n: abs(n - n_features))
        raise ValueError(
            f"n_features must be 1, 2, 4 or 8, not {n_features}; the nearest valid value is {nearest}"
        )
    resolutions = _resolutions(n_levels, coarsest, finest)
    if _table_bytes(resolutions, log2_table_size, n_features) > TABLE_BYTES:
        fitting = [
            size for size in range(8, log2_table_size)
            if _table_bytes(resolutions, size, n_features) <= TABLE_BYTES
        ]
        cure = (
            f"log2_table_size may be {fitting[-1]} at most" if fitting else "take fewer n_levels"
        )
        raise ValueError(
            f"tables of {n_levels} levels with 2^{log2_table_size} rows of {n_features} features "
            f"take more than {TABLE_BYTES // 2**20} MiB; {cure}"
        )
