"""A coarse grid that bounds one object's field, so that marching asks only near its surface.

The bounds of a cell are estimates, not proofs: from its corners on, the field may change as fast
as it does along the steepest grid edges of the cell and its 26 neighbours, up to the middle of the
cell. A surface is overlooked only where the field is steeper than that between grid points or, in
training, where it has changed since the last look at it.
"""

import torch
import torch.nn.functional as F

from im2mesh.geometry import CUBE_PADDING

CHUNK = 2**16  # points per call of the field
FINE = 64  # resolution where the field stays as it is: worth more points than in training


class OccupancyBounds:
    """Bounds of a logit field over the cells of the padded cube.

    Parameters
    ----------
    resolution : int
        Cells per axis.

    Attributes
    ----------
    table : Tensor (2, resolution**3) or None
        Lower and upper bound of each cell, once :meth:`update` was called.
    values : Tensor (resolution + 1,) * 3
        The logits at the grid points, likewise.
    """

    def __init__(self, resolution=32):
        self.resolution = resolution
        self.side_length = 1 + CUBE_PADDING
        self.table = None

    @torch.no_grad()
    def update(self, field, device="cpu"):
        """Look at the field anew.

        Parameters
        ----------
        field : callable (points (M, 3)) -> logits (M,)
        """
        half = self.side_length / 2
        axis = torch.linspace(-half, half, self.resolution + 1, device=device)
        points = torch.cartesian_prod(axis, axis, axis)
        values = torch.cat([field(chunk) for chunk in points.split(CHUNK)])
        values = values.view(1, 1, *[self.resolution + 1] * 3)
        highest = F.max_pool3d(values, kernel_size=2, stride=1)
        lowest = -F.max_pool3d(-values, kernel_size=2, stride=1)
        change = 0  # half of the way through the cell, along each axis
        for axis in (2, 3, 4):
            edges = values.diff(dim=axis).abs()  # one point less along this axis: as many as cells
            size, padding = [4, 4, 4], [1, 1, 1]
            size[axis - 2] = 3
            change = change + F.max_pool3d(edges, size, stride=1, padding=padding) / 2
        upper, lower = highest + change, lowest - change
        self.table = torch.stack([lower.flatten(), upper.flatten()])
        self.values = values[0, 0]

    def side(self, threshold_logit):
        """On which side of the surface points are, as far as the bounds tell.

        Returns
        -------
        callable (points (M, 3)) -> int8 (M,)
            -1 outside of the object, 1 inside, 0 not known (as for all points beyond the grid).
        """
        lower, upper = self.table
        sides = (lower > threshold_logit).to(torch.int8) - (upper < threshold_logit).to(torch.int8)
        n = self.resolution

        def look_up(points):
            cell = ((points / self.side_length + 0.5) * n).floor().long()
            beyond = ((cell < 0) | (cell >= n)).any(dim=-1)
            x, y, z = cell.clamp(0, n - 1).unbind(-1)
            return sides[(x * n + y) * n + z].masked_fill(beyond, 0)

        return look_up

    def ball(self, threshold_logit):
        """A ball that holds the object, as far as the grid points tell.

        Returns
        -------
        center : Tensor (3,)
        radius : float
            In cube edges; that of the whole grid where no grid point is inside.
        """
        inside = self.values >= threshold_logit
        index = (inside if inside.any() else torch.ones_like(inside)).nonzero()
        points = (index / self.resolution - 0.5) * self.side_length
        center = (points.amin(0) + points.amax(0)) / 2
        cell = self.side_length / self.resolution
        return center, float((points - center).norm(dim=1).max()) + cell
