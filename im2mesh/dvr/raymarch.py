"""Finding the first surface along rays (paper, section 3.2; method, section 3).

Nothing here has gradients and nothing knows a network: a field is any callable
``field(points (M, 3), rays (M,) int64) -> values (M,)`` that is negative outside of the object
and not negative inside; ``rays`` tells which ray each point lies on, so that a field may depend
on the object that a ray belongs to.
"""

import bisect
import math
from dataclasses import dataclass, replace

import torch

from im2mesh.geometry import CUBE_PADDING, cube_interval

METHODS = ("chandrupatla", "secant", "bisection")
TOLERANCE = 5e-6  # of a depth, as a share of its ray's interval
NEARBY = 10  # tolerances from an evaluation, within which two lines that agree on a root are believed
MIN_BLOCK = 4  # samples per ray between two looks at which rays have found their surface
MAX_BLOCKS = 32  # such looks per ray
LEAST_CALL = 128  # points that a call of the field should have: fewer take as long
N_COARSE = (4, 8)  # samples per ray of the first look of an adaptive search, at least and at most
COARSE_SHARE = 4  # of so many samples one belongs to the first look, within these limits
SLOPE_MARGIN = 2.0  # how much steeper a field may be between two samples than around them


@dataclass
class RayHits:
    """Where rays meet the surface; R rays.

    depth : Tensor (R,)
        Depth of the surface, +inf for a miss, 0 for a ray that starts inside.
    points : Tensor (R, 3)
        ``origin + depth * direction`` where ``hit``, else zero.
    hit : Tensor (R,), bool
        The ray comes from free space and meets the surface.
    starts_inside : Tensor (R,), bool
        The first sample is inside already: not a hit.
    closest : Tensor (R,) or None
        Depth of the sample with the largest value of those that were evaluated; +inf where none was.
        Only where it was asked for.
    """

    depth: torch.Tensor
    points: torch.Tensor
    hit: torch.Tensor
    starts_inside: torch.Tensor
    closest: torch.Tensor | None = None


@torch.no_grad()
def march(field, origins, directions, near, far, n_steps, *, n_secant_steps=8,
          method=METHODS[0], max_points=None, n_coarse=None, estimate=None, scout=None,
          support=None, closest=False, least_call=LEAST_CALL):
    """First crossing from free space into the object along every ray.

    ``n_steps`` depths are placed evenly over [near, far], both ends included. They are
    evaluated front to back, a block at a time, and a ray takes no further part once its first
    non-negative sample is known; the crossing in front of it is then refined.

    With ``n_coarse``, only so many samples are evaluated at first, evenly spread. Between two of
    them, a and b apart by l, the field stays below ``(f_a + f_b + s * l) / 2`` if it rises and falls
    no faster than s; where that is negative there is nothing to find, elsewhere the interval is
    halved. s is twice the steepest slope seen in the interval, its two neighbours on the ray and
    the intervals that it is a part of.

    Parameters
    ----------
    field : callable
        See the module's description.
    origins, directions : Tensor (R, 3)
    near, far : Tensor (R,)
        Depth interval; a ray whose interval is empty (far <= near) is a miss and costs nothing.
    n_steps : int or Tensor (R,), int64
        Samples per ray, at least 2.
    n_secant_steps : int
        Field evaluations spent on the refinement of each hit, at most.
    method : {"chandrupatla", "secant", "bisection"}
        Inverse quadratic interpolation and bisection in turn, which ends a ray's refinement as soon as
        its depth is known; or the bracketed secant, as published, or interval halving.
    max_points : int or None
        Upper bound on the points of one call of ``field``.
    n_coarse : int or Tensor (R,), int64, or None
        Samples per ray of a first look, from 4 on; None evaluates all that lie before the surface.
    estimate : callable (points (M, 3), rays (M,)) -> values (M,), errors (M,), or None
        What is known of the field: a sample is evaluated only where its sign is not certain, that
        is, unless its value is farther from zero than its error. The two samples around a surface
        are evaluated all the same, and a ray that this proves wrong is searched anew without help.
    scout : callable or None
        A cheaper, less exact ``field`` that looks for the surface in its place; the same holds
        for the two samples around the surface and for rays that they prove wrong.
    support : im2mesh.dvr.support.Support, or None
        Where the field may be other than negative. Samples before the first and after the last of a
        ray's that lie there are not evaluated; what is found is the same.
    closest : bool
        Note the sample with the largest value of each ray.
    least_call : int
        Points that a call of ``field`` in the search for samples inside should have, if there are so many.

    Returns
    -------
    RayHits
        Depths are detached from everything; see :mod:`im2mesh.dvr.implicit`.
    """
    if not torch.is_tensor(n_steps):
        n_steps = torch.full((len(near),), n_steps, dtype=torch.long, device=near.device)
    last = n_steps - 1
    samples = _Samples(
        field, origins, directions, near, far, last, torch.zeros_like(last), last, max_points, estimate,
        scout, _Largest(near) if closest else None, least_call,
    )
    active = far > near
    if support is not None:
        first, final = support.samples(origins, directions, near, far, last)
        samples.start, samples.end, active = (first - 1).clamp_min(0), final, first >= 0
    strides = torch.ones_like(n_steps) if n_coarse is None else (n_steps // n_coarse).clamp_min(1)
    brackets, inside = _search(samples, active.nonzero()[:, 0], strides)
    samples.make_sure(brackets)
    wrong = (brackets.low_value >= 0) | (brackets.high_value < 0)
    if wrong.any():
        alone = replace(samples, estimate=None, scout=None)
        anew, more = _search(alone, brackets.rays[wrong], strides)
        brackets, inside = _Intervals.cat([brackets[~wrong], anew]), torch.cat([inside, more])
    rays = brackets.rays
    depth = torch.full_like(near, torch.inf)
    depth[rays] = _refine(
        lambda depths, rows: samples.evaluate(rays[rows], depths),
        samples.depths(rays, brackets.low), brackets.low_value,
        samples.depths(rays, brackets.high), brackets.high_value,
        n_secant_steps, method, TOLERANCE * (far - near)[rays],
    )
    starts_inside = torch.zeros_like(near, dtype=torch.bool).index_fill(0, inside, True)
    hit = depth.isfinite()
    points = torch.addcmul(origins, depth.where(hit, 0)[:, None], directions)
    depth[starts_inside] = 0
    nearest = None
    if closest:
        nearest = samples.depths(slice(None), samples.largest.index)
        nearest = nearest.where(samples.largest.value > -torch.inf, torch.inf)
    return RayHits(depth, points.where(hit[:, None], 0), hit, starts_inside, nearest)


class _Largest:
    """The largest value met on each ray, and the sample that has it."""

    def __init__(self, like):
        self.value = torch.full_like(like, -torch.inf)
        self.index = torch.zeros_like(like, dtype=torch.long)

    def note(self, rays, values, index):
        """Values and indices (A, K) of samples of the rays (A,)."""
        value, place = values.max(dim=1)
        larger = (value > self.value[rays]).nonzero()[:, 0]
        self.value[rays[larger]] = value[larger]
        self.index[rays[larger]] = index[larger, place[larger]]


@dataclass
class _Intervals:
    """Pieces of rays between two of their samples; K of them.

    rays : Tensor (K,), int64
    low, high : Tensor (K,), int64
        Which samples.
    low_value, high_value : Tensor (K,)
        Of the field there.
    """

    rays: torch.Tensor
    low: torch.Tensor
    low_value: torch.Tensor
    high: torch.Tensor
    high_value: torch.Tensor

    def __getitem__(self, mask):
        return _Intervals(*_taken(mask, *vars(self).values()))

    @classmethod
    def cat(cls, parts):
        return cls(*(torch.cat(values) for values in zip(*(vars(p).values() for p in parts))))

    @property
    def narrow(self):
        """Whether there is no sample between the two."""
        return self.high == self.low + 1


@dataclass
class _Samples:
    """The samples of rays and what is known of the field there; see :func:`march`.

    last : Tensor (R,), int64
        Index of each ray's last sample.
    start, end : Tensor (R,), int64
        The first and the last sample that is of interest.
    largest : _Largest or None
    least_call : int
    """

    field: callable
    origins: torch.Tensor
    directions: torch.Tensor
    near: torch.Tensor
    far: torch.Tensor
    last: torch.Tensor
    start: torch.Tensor
    end: torch.Tensor
    max_points: int | None
    estimate: callable
    scout: callable
    largest: _Largest | None
    least_call: int

    @property
    def pitch(self):
        """Distance (R,) of neighbouring samples in object space."""
        return (self.far - self.near) / self.last * self.directions.norm(dim=1)

    def depths(self, rays, index):
        share = index.to(self.near.dtype) / self.last[rays]
        return torch.lerp(self.near[rays], self.far[rays], share)

    def points(self, rays, depths):
        return torch.addcmul(self.origins[rays], depths[:, None], self.directions[rays])

    def evaluate(self, rays, depths, field=None):
        """Values of the field (or of another)."""
        if len(rays) == 0:
            return depths.new_zeros(0)
        field = field or self.field
        size = self.max_points or len(rays)
        points = self.points(rays, depths)
        return torch.cat([field(p, r) for p, r in zip(points.split(size), rays.split(size))])

    def estimated(self, rays, depths):
        """Values, and whether their signs are certain."""
        values, errors = self.estimate(self.points(rays, depths), rays)
        return values.to(depths.dtype), values.abs() > errors

    def search_values(self, rays, depths):
        """Values to search by: what is known, the rest from the scout or the field."""
        field = self.scout or self.field
        if self.estimate is None:
            return self.evaluate(rays, depths, field)
        values, known = self.estimated(rays, depths)
        unknown = (~known).nonzero()[:, 0]
        values[unknown] = self.evaluate(rays[unknown], depths[unknown], field)
        return values

    def own_values(self, rays, depths, values):
        """``values`` of the search with the field's own in the place of all others."""
        if self.scout is not None:
            return self.evaluate(rays, depths)
        if self.estimate is None:
            return values
        known = self.estimated(rays, depths)[1].nonzero()[:, 0]
        values = values.clone()
        values[known] = self.evaluate(rays[known], depths[known])
        return values

    def at_start(self, rays):
        """Values of the first samples; those inside are the field's own."""
        depths = self.depths(rays, self.start[rays])
        values = self.search_values(rays, depths)
        inside = (values >= 0).nonzero()[:, 0]
        values[inside] = self.own_values(rays[inside], depths[inside], values[inside])
        return values

    def make_sure(self, intervals):
        """The values at both ends of intervals become the field's own."""
        rays = intervals.rays.repeat(2)
        depths = self.depths(rays, torch.cat([intervals.low, intervals.high]))
        values = torch.cat([intervals.low_value, intervals.high_value])
        intervals.low_value, intervals.high_value = self.own_values(rays, depths, values).chunk(2)


def _search(samples, rays, strides):
    """The intervals in front of the first sample inside, and the rays that start there.

    Parameters
    ----------
    rays : Tensor (A,), int64
    strides : Tensor (R,), int64
        Of the first look.
    """
    value = samples.at_start(rays)
    if samples.largest is not None:
        samples.largest.note(rays, value[:, None], samples.start[rays, None])
    outside = value < 0
    intervals = _first_look(samples, rays[outside], value[outside], strides)
    return _halve(samples, intervals, strides), rays[~outside]


def _first_look(samples, active, value, strides):
    """Every ``strides``-th sample of each ray, a block at a time, up to the first inside.

    Parameters
    ----------
    active : Tensor (A,), int64
        The rays to look at.
    value : Tensor (A,)
        Of their first samples.
    strides : Tensor (R,), int64

    Returns
    -------
    _Intervals
        Those that end inside, and the others with samples between their ends.
    """
    index = samples.start[active]
    found = [_Intervals(active[:0], index[:0], value[:0], index[:0], value[:0])]
    block = MIN_BLOCK
    if len(active):
        n_samples = (samples.end - samples.start + 1) // strides
        block = max(block, int(n_samples.max()) // MAX_BLOCKS)
    while len(active):
        block = max(block, samples.least_call // len(active))
        stride, end = strides[active, None], samples.end[active, None]
        high = index[:, None] + stride * torch.arange(1, block + 1, device=value.device)
        exists = high < end + stride
        high = torch.minimum(high, end)
        rays = active[:, None].expand(high.shape)
        high_value = value.new_full(high.shape, -torch.inf)
        place = exists.nonzero(as_tuple=True)
        high_value[place] = samples.search_values(
            rays[place], samples.depths(rays[place], high[place])
        )
        if samples.largest is not None:
            samples.largest.note(active, high_value, high)
        intervals = _Intervals(
            rays,
            torch.cat([index[:, None], high[:, :-1]], dim=1),
            torch.cat([value[:, None], high_value[:, :-1]], dim=1),
            high,
            high_value,
        )
        inside = high_value >= 0
        first = inside.cumsum(dim=1) <= inside.long()  # up to it
        found.append(intervals[exists & first & (inside | ~intervals.narrow)])
        goes_on = ~inside.any(dim=1) & (high[:, -1] < end[:, 0])
        active, index, value = active[goes_on], high[goes_on, -1], high_value[goes_on, -1]
    return _Intervals.cat(found)


def _halve(samples, intervals, strides):
    """A closer look into intervals that may hide a sample inside: halves, halves of halves.

    Parameters
    ----------
    intervals : _Intervals
        Of :func:`_first_look`.
    strides : Tensor (R,), int64
        Samples of an interval, by ray.

    Returns
    -------
    _Intervals
        In front of the first sample inside, at most one per ray.
    """
    rays = intervals.rays
    first = torch.full_like(strides, torch.iinfo(strides.dtype).max)  # known sample inside
    pitch = samples.pitch
    steepest = _with_neighbours(
        rays, intervals.low // strides[rays], _rise(intervals) / _length(intervals, pitch)
    )
    brackets = []
    while len(intervals.rays):
        inside = intervals.high_value >= 0
        first.scatter_reduce_(0, intervals.rays[inside], intervals.high[inside], "amin")
        narrow, length = intervals.narrow, _length(intervals, pitch)
        brackets.append(intervals[narrow & inside])
        steepest = torch.maximum(steepest, _rise(intervals) / length)
        may_hide = (
            intervals.low_value + intervals.high_value + SLOPE_MARGIN * steepest * length >= 0
        )
        of_use = intervals.low < first[intervals.rays]
        split = ~narrow & (inside | may_hide) & of_use
        intervals, steepest = intervals[split], steepest[split]
        middle = (intervals.low + intervals.high) // 2
        value = samples.search_values(intervals.rays, samples.depths(intervals.rays, middle))
        intervals = _Intervals.cat([
            replace(intervals, high=middle, high_value=value),
            replace(intervals, low=middle, low_value=value),
        ])
        steepest = torch.cat([steepest, steepest])
    brackets = _Intervals.cat([*brackets, intervals])
    return brackets[brackets.high == first[brackets.rays]]


def _taken(mask, *values):
    """Where a mask is set, of each of some tensors of its shape; the places are looked for once."""
    place = mask.nonzero(as_tuple=True)
    return [value[place] for value in values]


def _rise(intervals):
    return (intervals.high_value - intervals.low_value).abs()


def _length(intervals, pitch):
    """Lengths (K,) of intervals in object space; ``pitch`` as of :class:`_Samples`."""
    return (intervals.high - intervals.low) * pitch[intervals.rays]


@dataclass(frozen=True)
class DepthFunction:
    """How surfaces are searched: the options ``model.depth_function_kwargs`` of a config.

    tau : float
        Occupancy probability of the surface.
    n_steps : (int, int)
        Samples per ray are drawn from the integers [n_steps[0], n_steps[1]).
    n_secant_steps : int
        Field evaluations for the refinement of each hit, at most.
    depth_range : (float, float)
        Depths searched when ``check_cube_intersection`` is off.
    method : {"chandrupatla", "secant", "bisection"}
        Of the refinement, see :func:`march`.
    adaptive : bool
        Leave out samples between two that are too far below the surface for it to lie between
        them, see ``n_coarse`` of :func:`march`.
    check_cube_intersection : bool
        Search the ray's interval in the cube with padding 0.1.
    max_points : int
        Upper bound on points per network call (memory).
    schedule_ray_sampling : bool
        In training, start with ``init_resolution`` samples per ray and double them at each of the
        iterations ``schedule_milestones``.
    """

    tau: float = 0.5
    n_steps: tuple = (128, 129)
    n_secant_steps: int = 8
    depth_range: tuple = (0.0, 2.4)
    method: str = METHODS[0]
    adaptive: bool = True
    check_cube_intersection: bool = True
    max_points: int = 2**18
    schedule_ray_sampling: bool = True
    schedule_milestones: tuple = (50000, 100000, 250000)
    init_resolution: int = 16

    def __post_init__(self):
        near_far = len(self.depth_range) == 2 and 0 <= self.depth_range[0] < self.depth_range[1]
        steps = len(self.n_steps) == 2 and 2 <= self.n_steps[0] < self.n_steps[1]
        for right, wanted in (
            (0 < self.tau < 1, "tau must lie between 0 and 1"),
            (self.method in METHODS, f"method must be one of {', '.join(METHODS)}"),
            (steps, "n_steps must be [low, high] with 2 <= low < high"),
            (near_far, "depth_range must be [near, far] with 0 <= near < far"),
            (self.n_secant_steps >= 0, "n_secant_steps must not be negative"),
            (self.max_points >= 1, "max_points must be at least 1"),
            (self.init_resolution >= 2, "init_resolution must be at least 2"),
            (
                list(self.schedule_milestones) == sorted(self.schedule_milestones),
                "schedule_milestones must ascend",
            ),
        ):
            if not right:
                raise ValueError(wanted)

    @property
    def logit_threshold(self):
        """l_tau = log(tau / (1 - tau))."""
        return math.log(self.tau / (1 - self.tau))

    def training_steps(self, iteration):
        """Range of samples per ray at a training iteration."""
        if not self.schedule_ray_sampling:
            return self.n_steps
        n = self.init_resolution * 2 ** bisect.bisect_right(self.schedule_milestones, iteration)
        return n, n + 1

    def interval(self, origins, directions, padding=CUBE_PADDING):
        """Depth interval of rays, ``near`` and ``far`` (R,); equal where there is none."""
        if self.check_cube_intersection:
            near, far, _ = cube_interval(origins, directions, padding)
            return near, far
        return tuple(torch.full_like(origins[:, 0], depth) for depth in self.depth_range)

    def find_surface(self, logit_field, origins, directions, n_steps=None, generator=None,
                     estimate=None, scout=None, support=None, closest=False, every_sample=False,
                     least_call=LEAST_CALL):
        """March rays (R, 3) through a field of occupancy logits.

        Parameters
        ----------
        logit_field : callable (points (M, 3), rays (M,)) -> (M,)
        n_steps : (int, int) or None
            Overrides ``self.n_steps``.
        generator : torch.Generator or None
            CPU generator for the number of samples of each ray, where it is not fixed.
        estimate : callable (points (M, 3), rays (M,)) -> logits (M,), errors (M,), or None
            Knows where the field need not be evaluated, see :func:`march`.
        scout : callable or None
            A cheaper ``logit_field`` to search with, see :func:`march`.
        support : Support, or None
            Outside of which there is no surface, see :func:`march`.
        closest : bool
            Note the sample with the largest logit of each ray.
        every_sample : bool
            Search as if ``adaptive`` were off.
        least_call : int
            See :func:`march`.

        Returns
        -------
        RayHits
        """
        low, high = n_steps or self.n_steps
        steps = low
        if high - low > 1:
            steps = torch.randint(low, high, (len(origins),), generator=generator)
            steps = steps.to(origins.device)

        n_coarse = None
        if self.adaptive and not every_sample:
            n_coarse = (torch.as_tensor(steps) // COARSE_SHARE).clamp(*N_COARSE)

        def shifted(field):
            return field and (lambda points, rays: field(points, rays) - self.logit_threshold)

        def shifted_estimate(points, rays):
            values, errors = estimate(points, rays)
            return values - self.logit_threshold, errors

        return march(
            shifted(logit_field),
            origins,
            directions,
            *self.interval(origins, directions),
            steps,
            n_secant_steps=self.n_secant_steps,
            method=self.method,
            max_points=self.max_points,
            n_coarse=n_coarse,
            estimate=estimate and shifted_estimate,
            scout=shifted(scout),
            support=support,
            closest=closest,
            least_call=least_call,
        )


def _with_neighbours(rays, index, slopes):
    """The steepest of each interval's slope and those of the two intervals next to it on its ray.

    rays, index : Tensor (K,), int64
        The ray of each interval, and its place on it.
    """
    if len(rays) == 0:
        return slopes
    table = slopes.new_zeros(int(rays.max()) + 1, int(index.max()) + 3)
    table[rays, index + 1] = slopes
    return torch.stack([table[rays, index + step] for step in range(3)]).amax(dim=0)


def _refine(evaluate, low, low_value, high, high_value, n_steps, method, tolerance):
    """Root between ``low`` (negative value) and ``high`` (value >= 0), one of each per ray.

    ``evaluate(depths (M,), rows (M,))`` gives the field at depths of some of the rays.
    """
    if method == "chandrupatla":
        return _chandrupatla(evaluate, low, low_value, high, high_value, n_steps, tolerance)

    def guess():
        if method == "bisection":
            return (low + high) / 2
        return _secant(low, low_value, high, high_value)

    depth, rows = guess(), torch.arange(len(low), device=low.device)
    for _ in range(n_steps):
        value = evaluate(depth, rows)
        outside = value < 0
        low, low_value = torch.where(outside, depth, low), torch.where(outside, value, low_value)
        high, high_value = torch.where(outside, high, depth), torch.where(outside, high_value, value)
        depth = guess()
    return depth


def _secant(a, f_a, b, f_b):
    """Where the line through two points of a function is zero; the middle if it is never."""
    share = f_a / (f_a - f_b)
    return torch.where(share.isfinite(), a + share * (b - a), (a + b) / 2)


def _chandrupatla(evaluate, low, low_value, high, high_value, n_steps, tolerance):
    """Inverse quadratic interpolation where it can be trusted, else bisection.

    Chandrupatla, A new hybrid quadratic/bisection algorithm for finding the zero of a nonlinear
    function without using derivatives, Advances in Engineering Software 28, 1997. Logits are steep
    on one side of a surface and flat on the other: a secant creeps there, this does not.
    """
    # The root lies between a, the latest point, and b; c is the one before.
    a, f_a, b, f_b = high, high_value, low, low_value
    share = torch.full_like(a, 0.5)
    root = _secant(a, f_a, b, f_b)
    rows = torch.arange(len(a), device=a.device)
    for _ in range(n_steps):
        x = a + share * (b - a)
        f_x = evaluate(x, rows)
        same = (f_x < 0) == (f_a < 0)
        c, f_c = torch.where(same, a, b), torch.where(same, f_a, f_b)
        b, f_b = torch.where(same, b, a), torch.where(same, f_b, f_a)
        a, f_a = x, f_x
        estimate = _secant(a, f_a, b, f_b)
        root[rows] = estimate
        off = (estimate - torch.where(f_a.abs() < f_b.abs(), a, b)).abs()
        # Where the line through the two points before agrees on the root, the field does not bend.
        straight = (_secant(a, f_a, c, f_c) - estimate).abs() <= tolerance / 2
        known = (f_a == 0) | (off <= tolerance) | straight & (off <= NEARBY * tolerance)
        if known.all():
            break
        rows, tolerance, a, f_a, b, f_b, c, f_c = _taken(
            ~known, rows, tolerance, a, f_a, b, f_b, c, f_c
        )
        xi, phi = (a - b) / (c - b), (f_a - f_b) / (f_c - f_b)
        quadratic = f_a / (f_b - f_a) * f_c / (f_b - f_c) + (c - a) / (b - a) * f_a / (
            f_c - f_a
        ) * f_b / (f_c - f_b)
        trusted = (phi.square() < xi) & ((1 - phi).square() < 1 - xi)
        least = (tolerance / (b - a).abs()).clamp_max(0.5)
        share = torch.where(trusted, quadratic, 0.5).clamp(least, 1 - least)
    return root
