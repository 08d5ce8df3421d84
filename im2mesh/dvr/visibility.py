"""Which parts of space the rays of a training have passed through of late.

What no ray ever reaches is inside the object, or hidden by it; nothing in the images speaks about it. A
field with detail may hold anything there, surfaces included. The loss term ``unseen`` makes it solid.
"""

import torch

from im2mesh.dvr.support import SIDE, cell_of, place_of

RESOLUTION = 64  # cells per axis
WINDOW = 256  # iterations after which a cell that no ray passed through counts as unseen
N_DEPTHS = 32  # per ray of a step: from step to step they differ
N_POINTS = 256  # for the loss of a step, at most
N_CANDIDATES = 1024  # drawn for them
NEVER = -(2**30)


class SeenCells:
    """A grid of cells over the padded cube that remembers when a ray last passed through each.

    Attributes
    ----------
    last_seen : Tensor (N, N, N), int32
        Iteration.
    """

    def __init__(self, resolution=RESOLUTION, device="cpu"):
        self.resolution = resolution
        self.last_seen = torch.full((resolution,) * 3, NEVER, dtype=torch.int32, device=device)
        self._around = torch.cartesian_prod(*[torch.arange(-1, 2)] * 3)

    @torch.no_grad()
    def note(self, origins, directions, near, end, iteration, generator):
        """Rays (R, 3) passed through free space between the depths near and end (R,) of each.

        Empty intervals (end <= near) are left out. ``generator`` is on the CPU.
        """
        jitter = torch.rand(len(near), N_DEPTHS, generator=generator).to(near)
        share = (torch.arange(N_DEPTHS, device=near.device) + jitter) / N_DEPTHS
        rays = (end > near).nonzero()[:, 0]
        depths = torch.lerp(near[rays, None], end[rays, None], share[rays])
        points = torch.addcmul(origins[rays, None], depths[..., None], directions[rays, None])
        cells, _ = cell_of(points.flatten(0, 1), self.resolution)
        self.last_seen.view(-1)[cells] = iteration

    @torch.no_grad()
    def unseen_points(self, iteration, support, generator):
        """Random points (P, 3) of unseen space; none while the training is younger than the window.

        Cells beside a seen one are left out: the surface may be in them. So are those outside the
        ``support`` (a :class:`im2mesh.dvr.support.Support` or None).
        """
        device = self.last_seen.device
        if iteration < WINDOW:
            return torch.empty(0, 3, device=device)
        if support is not None:
            points = support.random_points(N_CANDIDATES, generator)
        else:
            points = (torch.rand(N_CANDIDATES, 3, generator=generator).to(device) - 0.5) * SIDE
        place, _ = place_of(points, self.resolution)
        around = (place[:, None] + self._around.to(device)).clamp_(0, self.resolution - 1)
        last_seen = self.last_seen[tuple(around.unbind(dim=-1))].amax(dim=1)
        points = points[last_seen < iteration - WINDOW][:N_POINTS]
        return points if support is None else points[support(points)]
