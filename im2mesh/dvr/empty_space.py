"""A coarse grid that knows where one object's field is surely free, so that marching can skip it.

The bound of a cell is an estimate from the field at grid points, not a proof: the largest logit
at its corners, raised by the spread of these logits, and the largest such figure among the cell
and its 26 neighbours. A surface is overlooked only where the field rises from there to the
threshold and falls back between grid points, faster than it does anywhere around, or, in
training, where it has risen since the last look at it.
"""

import torch
import torch.nn.functional as F

from im2mesh.geometry import CUBE_PADDING


CHUNK = 2**16  # points per call of the field


class EmptySpace:
    """Bounds of a logit field over the padded cube.

    Parameters
    ----------
    resolution : int
        Cells per axis.
    """

    def __init__(self, resolution=32):
        self.resolution = resolution
        self.side = 1 + CUBE_PADDING
        self.bound = None

    @torch.no_grad()
    def update(self, field, device="cpu"):
        """Look at the field anew.

        Parameters
        ----------
        field : callable (points (M, 3)) -> logits (M,)
        """
        axis = torch.linspace(-self.side / 2, self.side / 2, self.resolution + 1, device=device)
        points = torch.cartesian_prod(axis, axis, axis)
        values = torch.cat([field(chunk) for chunk in points.split(CHUNK)])
        values = values.view(1, 1, *[self.resolution + 1] * 3)
        highest = F.max_pool3d(values, kernel_size=2, stride=1)
        lowest = -F.max_pool3d(-values, kernel_size=2, stride=1)
        bound = highest + (highest - lowest)
        self.bound = F.max_pool3d(bound, kernel_size=3, stride=1, padding=1).flatten()

    def may_hold_surface(self, threshold_logit):
        """The cells that cannot be skipped, as a function of points.

        Returns
        -------
        callable (points (M, 3)) -> bool (M,)
            True also for points outside of the grid.
        """
        occupied = self.bound >= threshold_logit
        n = self.resolution

        def look_up(points):
            cell = ((points / self.side + 0.5) * n).floor().long()
            outside = ((cell < 0) | (cell >= n)).any(dim=-1)
            x, y, z = cell.clamp(0, n - 1).unbind(-1)
            return occupied[(x * n + y) * n + z] | outside

        return look_up
