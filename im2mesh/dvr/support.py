"""Where an object can be at all: a grid of cells, everything outside of which is free space.

Masks and cameras tell it (:func:`im2mesh.visual_hull.hull_cells`). It is a part of the model, so that
nothing floats before the cameras or beside the object in renderings, meshes and training alike; and
rays need not search where it is empty.
"""

import torch
import torch.nn.functional as F
from torch import nn

from im2mesh.ext import points_in_cells, samples_in_cells
from im2mesh.geometry import CUBE_PADDING

RESOLUTION = 128  # cells per axis
SIDE = 1 + CUBE_PADDING  # of the cube of cells
CHUNK = 2**18  # samples of rays that are looked up at once
FREE = -10.0  # the occupancy logit outside


class Support(nn.Module):
    """A set of cells of the padded cube, N per axis; to begin with, all of them.

    Attributes
    ----------
    bits : Tensor (N**3 / 8,), uint8, a buffer
        One bit for each cell, the last axis fastest, the lowest bit of a byte first.
    """

    def __init__(self, resolution=RESOLUTION):
        super().__init__()
        self.resolution = resolution
        self.register_buffer("bits", torch.full((resolution**3 // 8,), 255, dtype=torch.uint8))
        self._known = None, None, None

    @torch.no_grad()
    def set_cells(self, cells):
        """Take these cells, bool (N, N, N), first axis x."""
        self.bits.copy_(_packed(cells))

    def cells(self):
        """The cells, bool (N, N, N)."""
        bit = torch.arange(8, dtype=torch.uint8, device=self.bits.device)
        return ((self.bits[:, None] >> bit) & 1).bool().view((self.resolution,) * 3)

    def random_points(self, count, generator):
        """Points (count, 3) drawn evenly from the cells; from the whole cube where there are none.

        ``generator`` is on the CPU.
        """
        index, _ = self._derived()
        if len(index) == 0:
            return (torch.rand(count, 3, generator=generator).to(index.device) - 0.5) * SIDE
        chosen = torch.randint(len(index), (count,), generator=generator)
        cell = index[chosen.to(self.bits.device)]
        n = self.resolution
        corner = torch.stack([cell // n**2, cell // n % n, cell % n], dim=1)
        offset = torch.rand(count, 3, generator=generator).to(self.bits.device)
        return ((corner + offset) / n - 0.5) * SIDE

    def forward(self, points):
        """Whether points (M, 3), object space, lie in one of the cells; False beyond the cube."""
        return self._look_up(points, self.bits)

    def _look_up(self, points, bits):
        if _runs_compiled(points):
            arrays = points.detach().contiguous().numpy(), bits.numpy()
            return torch.from_numpy(points_in_cells(*arrays, self.resolution, SIDE))
        cell, within = cell_of(points, self.resolution)
        return ((bits[cell >> 3] >> (cell & 7).to(torch.uint8)) & 1).bool() & within

    @torch.no_grad()
    def samples(self, origins, directions, near, far, last):
        """Which samples of rays lie in cells or beside one: the first and the last.

        A cell's neighbours count as well, so that no rounding of a point on a border can hide a sample.

        Parameters
        ----------
        origins, directions : Tensor (R, 3)
        near, far : Tensor (R,)
            Depths of each ray's first and last sample; those between are spread evenly.
        last : Tensor (R,), int64
            Index of the last sample.

        Returns
        -------
        first, final : Tensor (R,), int64
            -1 for a ray without such a sample, or whose interval is empty (far <= near).
        """
        _, bits = self._derived()
        if _runs_compiled(origins):
            arrays = [t.contiguous().numpy() for t in (origins, directions, near, far, last, bits)]
            return tuple(map(torch.from_numpy, samples_in_cells(*arrays, self.resolution, SIDE)))
        index = torch.arange(int(last.max()) + 1 if len(last) else 1, device=near.device)
        first, final = torch.full_like(last, -1), torch.full_like(last, -1)
        for rays in (far > near).nonzero()[:, 0].split(max(1, CHUNK // len(index))):
            share = (index / last[rays, None]).to(near.dtype)
            depths = torch.lerp(near[rays, None], far[rays, None], share)
            points = torch.addcmul(origins[rays, None], depths[..., None], directions[rays, None])
            within = self._look_up(points.flatten(0, 1), bits).view(depths.shape) & (index <= last[rays, None])
            meets = within.any(dim=1)
            first[rays[meets]] = within[meets].int().argmax(dim=1)
            final[rays[meets]] = len(index) - 1 - within[meets].flip(1).int().argmax(dim=1)
        return first, final

    def _derived(self):
        """The cells' numbers, int64 (K,), and the bits of the cells and their neighbours."""
        version = self.bits.data_ptr(), self.bits._version
        if self._known[0] != version:
            cells = self.cells()
            self._known = version, cells.flatten().nonzero()[:, 0], _packed(with_neighbors(cells))
        return self._known[1:]


def with_neighbors(cells):
    """Cells (N, N, N), bool, and those that touch one of them."""
    return F.max_pool3d(cells[None, None].float(), kernel_size=3, stride=1, padding=1)[0, 0] > 0


def _packed(cells):
    """One bit for each cell, uint8 (N**3 / 8,)."""
    weights = torch.tensor([1 << bit for bit in range(8)], dtype=torch.uint8, device=cells.device)
    return (cells.reshape(-1, 8) * weights).sum(dim=1, dtype=torch.uint8)


def _runs_compiled(points):
    return points.device.type == "cpu" and points.dtype == torch.float32


def cell_of(points, resolution):
    """The cells of the padded cube that points lie in.

    Parameters
    ----------
    points : Tensor (..., 3)
        Object space.
    resolution : int
        Cells per axis, N.

    Returns
    -------
    cell : Tensor (...,), int64
        ``(x * N + y) * N + z``; of points beyond the cube, the nearest.
    within : Tensor (...,), bool
        Whether the point is in the cube.
    """
    place, within = place_of(points, resolution)
    x, y, z = place.unbind(dim=-1)
    return (x * resolution + y) * resolution + z, within


def place_of(points, resolution):
    """As :func:`cell_of`, with the cells as three integers (..., 3) along x, y and z."""
    place = (points / SIDE + 0.5) * resolution
    within = ((place >= 0) & (place <= resolution)).all(dim=-1)
    return place.long().clamp_(0, resolution - 1), within
