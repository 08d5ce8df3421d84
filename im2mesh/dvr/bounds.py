"""A coarse grid that knows an object's field well enough to skip most of its evaluations.

Between grid points the field is taken to be trilinear. How far it may be off follows from how much
it bends there: a network of ReLUs is linear piece by piece, and a kink between two grid points is off
by half of the second differences that it causes at them; where the field is smooth, by an eighth. Of
a field that learns, a share of the larger of its last two changes from look to look is added, however long
they were apart: from step to step it moves to and fro more than it moves on, and a single change may catch
it where it turns. These are estimates, not proofs: what is overlooked is a surface that leaves no trace at
the grid points around it. Whoever uses the bounds of a field that learns should see now and then whether
they mislead, and say so (:meth:`OccupancyBounds.update`): the share follows from that.
"""

import torch
import torch.nn.functional as F

from im2mesh.geometry import CUBE_PADDING

CHUNK = 2**16  # points per call of the field
FINE = 64  # resolution where the field stays as it is: worth more points than in training
BORDER = 1e-5  # of half a side: rays start and end on the grid's outer faces, give or take a rounding
MARGINS = (0.25, 1.0)  # of a change that a field that learns may go on with: least and most
WIDER, NARROWER = 2.0, 0.84  # after bounds that misled, and others: one in five keeps the margin as it is
STATE = ("values", "errors", "change", "margin", "staleness")


class OccupancyBounds:
    """Values of a logit field, and bounds of their errors, anywhere in the padded cube.

    Parameters
    ----------
    resolution : int
        Cells per axis, N below.
    n_objects : int
        B objects, each with a grid of its own; they lie one behind the other along the first axis.

    Attributes
    ----------
    values : Tensor (B * (N + 1), N + 1, N + 1) or None
        The logits at the grid points, once :meth:`update` was called.
    errors : Tensor (B * N, N, N) or None
        By how much a trilinear value in each cell may be off.
    change : Tensor like values, or None
        Of a field that learns: by how much the logits changed between the last two looks.
    margin : float
        The share of such a change that is reckoned with until the next look.
    staleness : float
        Share of the grid points whose side is uncertain only because the field goes on changing.
    """

    def __init__(self, resolution=32, n_objects=1):
        self.resolution = resolution
        self.n_objects = n_objects
        self.side_length = 1 + CUBE_PADDING
        self.values = self.errors = self.change = None
        self.margin = MARGINS[1]
        self.staleness = 0.0

    def state_dict(self):
        """What there is to know, to go on with in a later run."""
        return {name: getattr(self, name) for name in STATE}

    def load_state_dict(self, state, device="cpu"):
        for name in STATE:
            value = state.get(name, getattr(self, name))
            setattr(self, name, value.to(device) if torch.is_tensor(value) else value)

    @torch.no_grad()
    def update(self, field, device="cpu", learns=False, misled=False):
        """Look at the field anew.

        Parameters
        ----------
        field : callable (points (M, 3), objects (M,) int64) -> logits (M,)
        learns : bool
            The field goes on changing. The first look at it is then worth nothing yet.
        misled : bool
            Of a field that learns: the bounds so far led a ray past its surface.
        """
        half = self.side_length / 2
        axis = torch.linspace(-half, half, self.resolution + 1, device=device)
        points = torch.cartesian_prod(axis, axis, axis)
        objects = torch.arange(self.n_objects, device=device).repeat_interleave(len(points))
        chunks = zip(points.repeat(self.n_objects, 1).split(CHUNK), objects.split(CHUNK))
        values = torch.cat([field(*chunk) for chunk in chunks])
        values = values.view(self.n_objects, *[self.resolution + 1] * 3)
        bends = sum(_bend(values, axis) for axis in (1, 2, 3)) / 2
        values, bends = values.flatten(0, 1), bends.flatten(0, 1)
        errors = bends
        if learns and self.values is None:
            errors = torch.full_like(bends, torch.inf)
        elif learns:
            change = largest = (values - self.values).abs()
            if self.change is not None:  # there were bounds to learn from
                least, most = MARGINS
                self.margin = min(max(self.margin * (WIDER if misled else NARROWER), least), most)
                largest = torch.maximum(change, self.change)
            errors = bends + self.margin * largest
            self.change = change
        self.staleness = 0.0
        if learns:  # else it is not asked for, and to know a number is to wait for a GPU
            only_stale = (values.abs() > bends) & ~(values.abs() > errors)
            self.staleness = float(only_stale.float().mean())
        errors = errors.unflatten(0, (self.n_objects, -1))
        self.errors = F.max_pool3d(errors, kernel_size=2, stride=1).flatten(0, 1)
        self.values = values

    def estimate(self, points, objects=None):
        """What the field is at points (M, 3), as far as the grid tells.

        Parameters
        ----------
        points : Tensor (M, 3)
        objects : Tensor (M,), int64, or None
            To which object each belongs; not looked at where there is one.

        Returns
        -------
        values, errors : Tensor (M,)
            The logit lies within ``values - errors`` and ``values + errors``. Beyond the grid the
            error is infinite.
        """
        place = points.flip(-1) / (self.side_length / 2)  # grid_sample: the last axis first
        beyond = place.abs().amax(dim=-1) > 1 + BORDER
        at_values = at_errors = place
        if self.n_objects > 1:
            depth = self.resolution * (place[:, 2].clamp(-1, 1) + 1) / 2  # in cells of its own grid
            layer = objects * (self.resolution + 1) + depth
            at_values = _with_last(place, 2 * layer / (len(self.values) - 1) - 1)
            layer = objects * self.resolution + depth.floor().clamp_max(self.resolution - 1)
            at_errors = _with_last(place, (2 * layer + 1) / len(self.errors) - 1)
        values = _sample(self.values, at_values, "bilinear", align_corners=True)
        errors = _sample(self.errors, at_errors, "nearest", align_corners=False)
        return values, errors.masked_fill(beyond, torch.inf)

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


def _with_last(place, last):
    return torch.cat([place[:, :2], last[:, None]], dim=1)


def _sample(grid, place, mode, align_corners):
    """Values (M,) of a grid (D, H, W) at places (M, 3) from -1 to 1, the last axis first."""
    return F.grid_sample(
        grid[None, None], place[None, None, None], mode, "border", align_corners
    )[0, 0, 0, 0]


def _bend(values, axis):
    """Sizes of the second differences along an axis, of the same shape.

    A kink in an outermost cell shows at its inner point only; so the outer one takes twice of that.
    """
    inner = values.diff(n=2, dim=axis).abs()
    first, last = inner.narrow(axis, 0, 1), inner.narrow(axis, inner.shape[axis] - 1, 1)
    return torch.cat([2 * first, inner, 2 * last], dim=axis)
