"""Ray marching on analytic fields: closed forms, a dense plain twin, and what it costs."""

import math

import pytest
import torch

from im2mesh.dvr import raymarch
from im2mesh.dvr.bounds import OccupancyBounds
from im2mesh.dvr.raymarch import MIN_BLOCK, LEAST_CALL, DepthFunction, march
from tests import plain
from tests.plain import promise


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


# Fields are signed distances, positive inside, of points (M, 3).


def sphere(radius=0.3, center=(0.0, 0.0, 0.0)):
    return lambda p: radius - (p - p.new_tensor(center)).norm(dim=1)


def plane(normal, offset):
    return lambda p: p @ p.new_tensor(normal) - offset


def box(*half, center=(0.0, 0.0, 0.0)):
    def field(p):
        outside = (p - p.new_tensor(center)).abs() - p.new_tensor(half)
        return -outside.clamp_min(0).norm(dim=1) - outside.amax(dim=1).clamp_max(0)

    return field


def union(*fields):
    return lambda p: torch.stack([field(p) for field in fields]).amax(dim=0)


class Recorder:
    """A field that keeps what it is asked."""

    def __init__(self, field):
        self.field = field
        self.calls = []

    def __call__(self, points, rays):
        assert points.shape == (len(rays), 3) and rays.dtype == torch.int64
        assert not torch.is_grad_enabled()
        self.calls.append((points.clone(), rays.clone()))
        return self.field(points)

    @property
    def sizes(self):
        return [len(rays) for _, rays in self.calls]

    @property
    def points(self):
        return torch.cat([points for points, _ in self.calls])

    @property
    def rays(self):
        return torch.cat([rays for _, rays in self.calls])


def along_z(n_side=9, width=0.4, start=-2.0):
    """Parallel rays from below with depth = z - start; origins and directions (R, 3), float64."""
    x = torch.linspace(-width, width, n_side, dtype=torch.float64)
    xy = torch.cartesian_prod(x, x)
    origins = torch.cat([xy, torch.full_like(xy[:, :1], start)], dim=1)
    return origins, tensor([0.0, 0, 1]).expand_as(origins)


def from_a_point(eye=(0.2, -0.3, -2.0), n_rays=300, seed=0):
    """Rays from one point into and past the cube, with directions of any length."""
    generator = torch.Generator().manual_seed(seed)
    targets = 1.6 * (torch.rand(n_rays, 3, generator=generator, dtype=torch.float64) - 0.5)
    length = 0.3 + torch.rand(n_rays, 1, generator=generator, dtype=torch.float64)
    origins = tensor(eye).expand(n_rays, 3)
    return origins, (targets - origins) * length


def find(field, origins, directions, **options):
    """Search in the padded cube, as in training and rendering."""
    options = {"n_steps": (128, 129), **options}
    return DepthFunction(**options).find_surface(
        lambda points, rays: field(points), origins, directions
    )


def check(hits, origins, directions, expected, tolerance=1e-5):
    """``expected`` (R,) depths: +inf for a miss, 0 for a ray that starts inside."""
    expected = torch.as_tensor(expected, dtype=torch.float64)
    assert torch.equal(hits.hit, expected.isfinite() & (expected > 0))
    assert torch.equal(hits.starts_inside, expected == 0)
    assert (hits.depth[~hits.hit] == expected[~hits.hit]).all()
    assert ((hits.depth - expected)[hits.hit].abs() < tolerance).all()
    points = origins + hits.depth[:, None] * directions
    torch.testing.assert_close(hits.points[hits.hit], points[hits.hit])
    assert hits.points[~hits.hit].count_nonzero() == 0


def sphere_depth(origins, directions, radius=0.3):
    a, b = directions.square().sum(1), (origins * directions).sum(1)
    root = b.square() - a * (origins.square().sum(1) - radius**2)
    depth = (-b - root.clamp_min(0).sqrt()) / a
    return depth.where((root > 0) & (depth > 0), math.inf)


# ---- closed forms --------------------------------------------------------------------------------


def test_sphere():
    origins, directions = from_a_point()
    hits = find(sphere(), origins, directions)
    expected = sphere_depth(origins, directions)
    assert 30 < hits.hit.sum() < 270
    grazing = hits.hit != expected.isfinite()  # 128 steps see all but the thinnest caps
    assert grazing.sum() <= 2 and not (hits.hit & ~expected.isfinite()).any()
    keep = ~grazing
    hits = find(sphere(), origins[keep], directions[keep])
    check(hits, origins[keep], directions[keep], expected[keep])


def test_sphere_in_float32():
    origins, directions = (t.float() for t in from_a_point())
    hits = find(sphere(), origins, directions)
    assert hits.depth.dtype == hits.points.dtype == torch.float32
    expected = sphere_depth(origins.double(), directions.double())
    assert (hits.depth - expected)[hits.hit].abs().max() < 1e-5


@pytest.mark.parametrize("normal", [(0.0, 0.0, 1.0), (0.48, -0.6, 0.64), (1.0, 0.2, 0.3)])
def test_plane(normal):
    """A linear field: the secant is exact at once."""
    origins, directions = along_z()
    hits = find(plane(normal, 0.11), origins, directions, n_secant_steps=0)
    depth = 2 + (0.11 - origins[:, :2] @ origins.new_tensor(normal[:2])) / normal[2]
    depth[depth > 2.55] = math.inf
    depth[depth <= 1.45] = 0
    check(hits, origins, directions, depth, tolerance=1e-9)


def test_plane_seen_from_behind_is_inside_at_once():
    origins, directions = along_z()
    hits = find(plane((0.0, 0.0, -1.0), 0.1), origins, directions)
    check(hits, origins, directions, torch.zeros(81))


def test_box():
    origins, directions = along_z()
    hits = find(box(0.25, 0.15, 0.35), origins, directions)
    inside = (origins[:, 0].abs() <= 0.25) & (origins[:, 1].abs() <= 0.15)
    check(hits, origins, directions, torch.where(inside, tensor(1.65), math.inf))


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_rays_along_an_axis(axis, sign, zero):
    direction = [zero] * 3
    direction[axis] = 2 * sign
    origin = [0.1] * 3
    origin[axis] = -2 * sign
    origins, directions = tensor([origin]), tensor([direction])
    hits = find(sphere(), origins, directions)
    check(hits, origins, directions, [1 - math.sqrt(0.09 - 0.02) / 2])


def test_camera_inside_the_cube():
    origins = tensor([[0.0, 0, -0.45]] * 2)
    directions = tensor([[0.0, 0, 1], [0, 0, -1]])
    check(find(sphere(), origins, directions), origins, directions, [0.15, math.inf])


def test_camera_inside_the_object():
    origins, directions = from_a_point(eye=(0.1, 0.0, 0.1))
    check(find(sphere(), origins, directions), origins, directions, torch.zeros(300))


def test_cube_behind_the_camera():
    origins, directions = from_a_point()
    field = Recorder(sphere())
    hits = DepthFunction().find_surface(field, origins, -directions)
    check(hits, origins, -directions, torch.full((300,), math.inf))
    assert field.calls == []


def test_first_of_several_surfaces():
    near, far = sphere(0.1, (0, 0, -0.3)), sphere(0.1, (0, 0, 0.3))
    origins, directions = along_z()
    both = find(union(near, far), origins, directions)
    first = find(near, origins, directions)
    assert both.hit.sum() == first.hit.sum() > 0
    torch.testing.assert_close(both.depth, first.depth)
    # seen from the other side it is the other one
    origins[:, 2] = 2
    both = find(union(near, far), origins, -directions)
    torch.testing.assert_close(both.depth, find(far, origins, -directions).depth)


def test_leaving_and_entering_again_is_not_a_hit():
    """A ray that starts inside one part does not see another one behind."""
    around_the_camera, ahead = sphere(0.2, (0, 0, -0.55)), sphere(0.1, (0, 0, 0.3))
    origins = tensor([[0.0, 0, -0.5]])
    directions = tensor([[0.0, 0, 1]])
    check(find(ahead, origins, directions), origins, directions, [0.7])
    hits = find(union(around_the_camera, ahead), origins, directions)
    check(hits, origins, directions, [0])


def test_a_surface_beyond_the_interval_is_a_miss():
    """At z = 0.54 the padded cube still has it, at 0.56 no more."""
    origins, directions = along_z(n_side=1, width=0.0)
    for offset, expected in ((0.54, 2.54), (0.56, math.inf)):
        hits = find(plane((0.0, 0.0, 1.0), offset), origins, directions)
        check(hits, origins, directions, [expected])


def test_thin_plate_needs_enough_steps():
    """1.1 / 15 between samples steps over it, 1.1 / 127 does not."""
    field = box(0.4, 0.4, 0.006, center=(0, 0, 0.1034))
    origins, directions = along_z(n_side=3, width=0.3)
    misses = find(field, origins, directions, n_steps=(16, 17))
    check(misses, origins, directions, torch.full((9,), math.inf))
    hits = find(field, origins, directions)
    check(hits, origins, directions, torch.full((9,), 2.0974))


def test_depth_range_without_the_cube():
    origins, directions = along_z(n_side=1, width=0.0)
    options = {"check_cube_intersection": False}
    far_away = sphere(0.3, (0, 0, 3))
    hits = find(far_away, origins, directions, depth_range=(0, 8), **options)
    check(hits, origins, directions, [4.7])
    hits = find(far_away, origins, directions, depth_range=(0, 4.6), **options)
    check(hits, origins, directions, [math.inf])
    hits = find(far_away, origins, directions, depth_range=(5, 8), **options)
    check(hits, origins, directions, [0])


def test_threshold():
    """tau moves the surface to where the logit is log(tau / (1 - tau))."""
    origins, directions = along_z(n_side=1, width=0.0)
    for tau in (0.2, 0.5, 0.9):
        hits = find(lambda p: 10 * sphere(0.3)(p), origins, directions, tau=tau)
        radius = 0.3 - math.log(tau / (1 - tau)) / 10
        check(hits, origins, directions, [2 - radius])


# ---- samples -------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_steps", [2, 3, 8, 9, 10, 17, 100, 1000])
def test_samples_are_even_and_have_both_ends(n_steps):
    origins, directions = along_z(n_side=2)
    near = tensor([1.0, 1.5, 2.0, 0.0])
    far = tensor([3.0, 1.6, 2.1, 4.0])
    field = Recorder(lambda p: torch.full_like(p[:, 0], -1.0))
    hits = march(field, origins, directions, near, far, n_steps)
    assert not hits.hit.any() and hits.depth.isinf().all()
    assert sum(field.sizes) == 4 * n_steps
    for i in range(4):
        depths = (field.points[field.rays == i][:, 2] + 2).sort()[0]
        expected = torch.linspace(near[i], far[i], n_steps, dtype=torch.float64)
        torch.testing.assert_close(depths, expected)


@pytest.mark.parametrize("n_steps", [2, 8, 9, 10, 128, 1024])
def test_a_surface_at_the_very_ends(n_steps):
    """Occupied at the last sample only: a hit. At the first one: inside. A value of 0 is inside."""
    origins, directions = along_z(n_side=1, width=0.0)
    near, far = tensor([1.5]), tensor([2.5])
    last = march(lambda p, _: p[:, 2] - 0.5, origins, directions, near, far, n_steps)
    check(last, origins, directions, [2.5])
    first = march(lambda p, _: -0.5 - p[:, 2], origins, directions, near, far, n_steps)
    check(first, origins, directions, [0])


def test_each_ray_may_have_its_own_number_of_steps():
    origins, directions = along_z(n_side=3)
    n_steps = torch.tensor([2, 3, 7, 8, 9, 10, 16, 17, 40])
    near, far = tensor([1.0]).expand(9), tensor([3.0]).expand(9)
    field = Recorder(lambda p: torch.full_like(p[:, 0], -1.0))
    march(field, origins, directions, near, far, n_steps)
    assert torch.equal(field.rays.bincount(), n_steps)


def test_steps_are_drawn_from_low_to_below_high():
    origins, directions = along_z(n_side=20)

    def draw(seed, n_steps=None):
        field = Recorder(lambda p: torch.full_like(p[:, 0], -1.0))
        function = DepthFunction(n_steps=(5, 9), adaptive=False)
        generator = torch.Generator().manual_seed(seed)
        before = torch.get_rng_state()
        function.find_surface(field, origins, directions, n_steps, generator)
        assert torch.equal(torch.get_rng_state(), before)
        return field.rays.bincount()

    counts = draw(0)
    shares = counts.bincount(minlength=10) / 400
    assert shares[:5].sum() == 0 and len(shares) == 10 and shares[9] == 0
    assert (shares[5:9] - 0.25).abs().max() < 0.1
    assert torch.equal(draw(0), counts) and not torch.equal(draw(1), counts)
    assert (draw(0, (6, 7)) == 6).all()


@pytest.mark.parametrize("n_steps, n_coarse", [(16, 4), (24, 6), (64, 8), (256, 8)])
def test_the_first_look_takes_one_sample_of_four_within_limits(n_steps, n_coarse):
    origins, directions = along_z()
    field = Recorder(lambda p: torch.full_like(p[:, 0], -1.0))
    DepthFunction(n_steps=(n_steps, n_steps + 1)).find_surface(field, origins, directions)
    assert (field.rays.bincount() == 1 + n_coarse).all()


def test_n_steps_128_129_is_128():
    origins, directions = along_z(n_side=2)
    field = Recorder(lambda p: torch.full_like(p[:, 0], -1.0))
    DepthFunction(adaptive=False).find_surface(field, origins, directions)
    assert (field.rays.bincount() == 128).all()


def test_schedule_of_steps_in_training():
    function = DepthFunction()
    steps = {i: function.training_steps(i) for i in (0, 49999, 50000, 99999, 100000, 250000, 10**9)}
    assert [n for n, _ in steps.values()] == [16, 16, 32, 32, 64, 128, 128]
    assert all(high == low + 1 for low, high in steps.values())
    function = DepthFunction(schedule_ray_sampling=False, n_steps=(30, 50))
    assert function.training_steps(0) == (30, 50)
    function = DepthFunction(init_resolution=10, schedule_milestones=(3,))
    assert [function.training_steps(i)[0] for i in (2, 3, 4)] == [10, 20, 20]


# ---- a first look --------------------------------------------------------------------------------


@pytest.mark.parametrize("n_steps", [16, 40, 64, 128, 1000])
@pytest.mark.parametrize("n_coarse", [4, 5, 16])
def test_a_smooth_surface_is_found_with_less_work(n_steps, n_coarse):
    """A signed distance has slope 1 everywhere: nothing is missed, whatever the first look."""
    shape = union(sphere(0.2, (0.1, 0, -0.2)), box(0.3, 0.05, 0.1, center=(0, -0.3, 0.2)))
    rays = from_a_point(n_rays=600)
    interval = DepthFunction().interval(*rays)
    full, part = Recorder(shape), Recorder(shape)
    expected = march(full, *rays, *interval, n_steps)
    hits = march(part, *rays, *interval, n_steps, n_coarse=n_coarse)
    assert torch.equal(hits.hit, expected.hit) and hits.hit.any() and not hits.hit.all()
    assert torch.equal(hits.depth, expected.depth)
    if n_steps >= 64:
        assert sum(part.sizes) < 0.6 * sum(full.sizes)


@pytest.mark.parametrize("n_steps", [2, 3, 9, 16, 33, 100, "random"])
def test_bumps_after_a_first_look(n_steps):
    """Holes and thin parts everywhere, rays from inside; a thin part may be missed now and then."""
    field = bumps(3)
    origins, directions = from_a_point(n_rays=2000, seed=3)
    origins = origins.clone()
    origins[:80] *= 0.2
    interval = DepthFunction().interval(origins, directions)
    if n_steps == "random":
        n_steps = torch.randint(2, 200, (2000,), generator=torch.Generator().manual_seed(0))
    expected = march(field, origins, directions, *interval, n_steps)
    hits = march(field, origins, directions, *interval, n_steps, n_coarse=16)
    assert torch.equal(hits.starts_inside, expected.starts_inside) and hits.starts_inside.any()
    assert (hits.depth != expected.depth).float().mean() <= 1e-3 and hits.hit.any()


def test_the_first_of_several_surfaces_counts():
    """The first look sees the last slab only, a closer look the one in front of it."""
    origins, directions = along_z(n_side=1, width=0.0)
    near, far = tensor([1.5]), tensor([2.5])

    def field(points, rays):  # slabs around depths 1.72 and 2.3, slope 1
        z = points[:, 2] + 2
        return torch.maximum(0.02 - (z - 1.72).abs(), 0.15 - (z - 2.3).abs())

    hits = march(field, origins, directions, near, far, 101, n_coarse=4)
    check(hits, origins, directions, [1.7])


def test_what_rises_faster_than_all_that_was_seen_is_missed():
    origins, directions = along_z(n_side=1, width=0.0)
    near, far = tensor([1.5]), tensor([2.5])

    def field(points, rays):
        return torch.where((points[:, 2] - 0.13).abs() < 0.02, 1.0, -1.0).double()

    assert march(field, origins, directions, near, far, 101).hit
    assert not march(field, origins, directions, near, far, 101, n_coarse=4).hit


def test_a_first_look_goes_with_bounds_and_a_scout():
    scout, field = Recorder(sphere()), sphere()
    side = promise(lambda points: torch.where(points.norm(dim=1) > 0.4, -1, 0))
    rays = *from_a_point(n_rays=50), *(torch.full((50,), depth).double() for depth in (1.0, 3.0))
    plain_field = lambda points, _: field(points)  # noqa: E731
    found = march(plain_field, *rays, 64, n_coarse=8, estimate=side, scout=scout)
    assert torch.equal(found.depth, march(plain_field, *rays, 64).depth) and found.hit.any()
    assert (scout.points.norm(dim=1) <= 0.4).all()


# ---- a scout -------------------------------------------------------------------------------------


def padded_cube(field, **options):
    """March one ray along z through [-0.55, 0.55] with 23 samples; depth = z + 2."""
    return march(
        field, tensor([[0.0, 0, -2]]), tensor([[0.0, 0, 1]]), tensor([1.45]), tensor([2.55]), 23,
        **options,
    )


def slab(front, back):
    return lambda points, rays: torch.minimum(points[:, 2] - front, back - points[:, 2])


def test_a_scout_looks_and_the_field_refines():
    exact, rough = Recorder(sphere()), Recorder(lambda p: 0.9 * sphere()(p) + 0.001)
    rays = from_a_point()
    alone = find(sphere(), *rays)
    found = DepthFunction(adaptive=False, method="secant").find_surface(exact, *rays, scout=rough)
    assert torch.equal(found.hit, alone.hit) and found.hit.any()
    torch.testing.assert_close(found.depth, alone.depth, rtol=0, atol=1e-5)
    assert len(rough.points) > 10 * len(exact.points)
    # The field itself is asked at both ends of each bracket and in each of 8 secant steps, and
    # again all along the few rays whose samples next to the surface the scout misjudges.
    assert len(exact.points) <= 10 * int(found.hit.sum()) + 140 * 5


@pytest.mark.parametrize("n_refine", [0, 1, 8])
@pytest.mark.parametrize(
    "scout, seen",
    [
        pytest.param(slab(-0.4, 0.3), True, id="too near"),
        pytest.param(slab(-0.02, 0.3), True, id="too far"),
        pytest.param(slab(-0.9, 0.3), True, id="starts inside"),
        pytest.param(slab(0.9, 1.0), False, id="blind"),
    ],
)
def test_where_a_scout_errs(scout, seen, n_refine):
    """At the surface it is found out; what it does not see at all is missed."""
    field = slab(-0.21, 0.3)
    truth = padded_cube(field, n_secant_steps=n_refine)
    found = padded_cube(field, n_secant_steps=n_refine, scout=scout)
    assert truth.hit and found.hit == seen and not found.starts_inside
    if seen:
        assert torch.equal(found.depth, truth.depth)


def test_a_scout_does_not_hide_a_start_inside():
    field = slab(-0.9, 0.3)
    assert padded_cube(field, scout=field).starts_inside.all()
    assert padded_cube(field, scout=slab(-0.9, 0.1)).starts_inside.all()
    late = padded_cube(field, scout=slab(-0.3, 0.3))  # the field is inside at either end of that
    assert late.starts_inside.all() and not late.hit.any() and late.depth == 0


def test_a_scout_goes_with_bounds():
    scout, field = Recorder(sphere()), sphere()
    side = promise(lambda points: torch.where(points.norm(dim=1) > 0.4, -1, 0))
    rays = *from_a_point(n_rays=50), *(torch.full((50,), depth).double() for depth in (1.0, 3.0))
    plain_field = lambda points, _: field(points)  # noqa: E731
    found = march(plain_field, *rays, 64, estimate=side, scout=scout)
    assert torch.equal(found.depth, march(plain_field, *rays, 64).depth) and found.hit.any()
    assert (scout.points.norm(dim=1) <= 0.4).all()


# ---- refinement ----------------------------------------------------------------------------------


def curved(points, rays):
    return points[:, 2] ** 3 + 0.5 * points[:, 2] + 0.01


@pytest.mark.parametrize("method", ["secant", "bisection"])
@pytest.mark.parametrize("n_refine", [0, 1, 3, 8])
def test_refinement_step_by_step(method, n_refine):
    origins, directions = along_z(n_side=1, width=0.0)
    interval = tensor([1.5]), tensor([2.6])
    options = {"n_secant_steps": n_refine, "method": method}
    hits = march(curved, origins, directions, *interval, 12, **options)
    expected = plain.march(curved, origins, directions, *interval, 12, n_refine, method)
    assert hits.depth.item() == pytest.approx(expected[0], abs=1e-13)


def kink(points, rays):
    """Steep outside, flat inside, as logits often are: the secant creeps."""
    height = points[:, 2] - 0.0123
    return torch.where(height < 0, 300 * height, height)


@pytest.mark.parametrize("field, tolerance", [(curved, 1e-5), (kink, 1e-3)])
def test_less_work_for_a_better_depth(field, tolerance):
    """Against 8 secant steps: no more evaluations, and a smaller error."""
    origins, directions = along_z(n_side=5)
    near, far = tensor([1.45]).expand(25), tensor([2.55]).expand(25)
    exact = march(field, origins, directions, near, far, 16, n_secant_steps=60, method="bisection")
    error, work = {}, {}
    for method in ("chandrupatla", "secant"):
        asked = Recorder(lambda p: field(p, None))
        hits = march(asked, origins, directions, near, far, 16, method=method)
        error[method] = (hits.depth - exact.depth).abs().max()
        work[method] = sum(asked.sizes)
    assert exact.hit.all() and error["chandrupatla"] < tolerance
    assert work["chandrupatla"] < work["secant"]
    assert field is curved or error["secant"] > 10 * tolerance


def test_a_ray_is_refined_until_its_depth_is_known():
    """A plane soon, a kink later; each ray on its own."""
    origins, directions = along_z(n_side=2)
    near, far = tensor([1.45]).expand(4), tensor([2.55]).expand(4)

    def field(points):
        return torch.where(points[:, 0] < 0, points[:, 2] - 0.0123, kink(points, None))

    counts = []
    for n_secant_steps in (0, 20):
        asked = Recorder(field)
        march(asked, origins, directions, near, far, 16, n_secant_steps=n_secant_steps)
        counts.append(asked.rays.bincount())
    at_plane, at_kink = (counts[1] - counts[0]).view(2, 2)
    assert (at_plane == at_plane[0]).all() and (at_kink == at_kink[0]).all()
    assert 0 < at_plane[0] <= 3 < at_kink[0] < 12


def test_a_root_is_believed_where_a_third_point_sees_no_bend(monkeypatch):
    """It saves evaluations and costs no depth; a kink next to the root is seen."""
    origins, directions = along_z()
    near, far = tensor([1.45]).expand(81), tensor([2.55]).expand(81)

    def field(points):
        height = points[:, 2] + points[:, 0] ** 2
        kinked = torch.where(points[:, 2] < 0.0123, 5, 1) * (points[:, 2] - 0.0123)
        return torch.where(points[:, 1] > 0, height + height**3, kinked)

    exact = march(Recorder(field), origins, directions, near, far, 16, n_secant_steps=60,
                  method="bisection")
    work = []
    for nearby in (0, raymarch.NEARBY):
        monkeypatch.setattr(raymarch, "NEARBY", nearby)
        asked = Recorder(field)
        hits = march(asked, origins, directions, near, far, 16, n_secant_steps=20)
        assert (hits.depth - exact.depth).abs().max() < 1e-5
        work.append(sum(asked.sizes))
    assert work[1] < work[0]


def test_bisection_halves():
    origins, directions = along_z(n_side=1, width=0.0)
    near, far = tensor([1.0]), tensor([3.0])
    for n_refine in range(8):
        hits = march(curved, origins, directions, near, far, 5, n_secant_steps=n_refine,
                     method="bisection")
        root = 2 - 0.0199841  # of z^3 + z / 2 + 0.01
        assert abs(hits.depth.item() - root) <= 0.5 / 2 ** (n_refine + 1)
    assert abs(hits.depth.item() - root) > 1e-6


def test_a_value_of_zero_replaces_the_inner_end():
    """Halving meets the surface at once and then closes in on it from outside."""
    origins, directions = along_z(n_side=1, width=0.0)
    near, far = tensor([1.5]), tensor([2.5])
    hits = march(lambda p, _: p[:, 2], origins, directions, near, far, 2, n_secant_steps=3,
                 method="bisection")
    assert hits.depth.item() == 2 - 0.5 / 2**3


@pytest.mark.parametrize("n_refine", [0, 3, 8])
def test_refinement_evaluates_each_hit_so_many_times(n_refine):
    origins, directions = along_z()
    field = Recorder(sphere())
    near, far = tensor([1.45]).expand(81), tensor([2.55]).expand(81)
    hits = march(field, origins, directions, near, far, 64, n_secant_steps=n_refine, method="secant")
    bare = Recorder(sphere())
    march(bare, origins, directions, near, far, 64, n_secant_steps=0)
    assert sum(field.sizes) - sum(bare.sizes) == n_refine * hits.hit.sum() > 0 or n_refine == 0


def test_steps_of_a_constant_field_do_not_divide_by_zero():
    """A step from just below zero to zero: a secant of no rise."""
    tiny = torch.finfo(torch.float32).tiny

    def field(points, rays):
        return torch.where(points[:, 2] < 0.1, -tiny * 2**-22, 0.0).float()

    origins, directions = (t.float() for t in along_z(n_side=1, width=0.0))
    near, far = torch.tensor([1.5]), torch.tensor([2.5])
    for method in ("secant", "bisection"):
        hits = march(field, origins, directions, near, far, 16, method=method)
        assert hits.hit.all() and 1.5 <= hits.depth.item() <= 2.5


def test_a_hard_step_stays_in_its_bracket():
    """Occupancy of -1 and 1: the secant has nothing to go by, the result is still between."""

    def field(points, rays):
        return torch.where(points[:, 2] < 0.123, -1.0, 1.0).double()

    origins, directions = along_z(n_side=1, width=0.0)
    near, far = tensor([1.5]), tensor([2.5])
    for method in ("secant", "bisection"):
        hits = march(field, origins, directions, near, far, 11, method=method)
        assert 2.1 <= hits.depth.item() <= 2.2
    assert abs(hits.depth.item() - 2.123) < 0.1 / 2**8


# ---- cost ----------------------------------------------------------------------------------------


def test_rays_that_miss_the_cube_cost_nothing():
    origins, directions = from_a_point()
    field = Recorder(sphere())
    DepthFunction().find_surface(field, origins, directions)
    rays = zip(origins.numpy(), directions.numpy())
    missing = [i for i, ray in enumerate(rays) if plain.interval(*ray, 0.1) is None]
    assert 20 < len(missing) < 280
    assert not set(field.rays.tolist()) & set(missing)
    assert field.points.abs().max() <= 0.55 + 1e-9


def test_an_empty_interval_costs_nothing():
    origins, directions = along_z(n_side=2)
    field = Recorder(sphere(5.0))
    near = tensor([1.0, 2, 3, 0])
    hits = march(field, origins, directions, near, tensor([1.0, 1, 1, 0]), 16)
    assert field.calls == []
    assert hits.depth.isinf().all() and not hits.hit.any() and not hits.starts_inside.any()


def test_no_rays():
    empty = torch.zeros(0, 3)
    hits = DepthFunction().find_surface(Recorder(sphere()), empty, empty)
    assert hits.depth.shape == hits.hit.shape == (0,) and hits.points.shape == (0, 3)


def test_a_ray_that_found_its_surface_is_left_alone():
    """No samples but the block with the surface, and those of the refinement, behind it."""
    origins, directions = along_z(n_side=8, width=0.0)
    n_rays = len(origins)
    field = Recorder(plane((0.0, 0.0, 1.0), -0.3))
    near, far = tensor([1.0]).expand(n_rays), tensor([3.0]).expand(n_rays)
    march(field, origins, directions, near, far, 101, n_secant_steps=2)
    step = 2 / 100
    assert (field.points[:, 2] + 2).max() <= 1.7 + MIN_BLOCK * step
    assert sum(field.sizes) <= n_rays * (1 + math.ceil(35 / MIN_BLOCK + 1) * MIN_BLOCK + 2)


def test_few_rays_are_searched_in_few_calls():
    """Up to LEAST_CALL points at a time: fewer would take as long."""
    near, far = tensor([1.0]), tensor([3.0])
    for n_rays, n_calls in ((1, 1), (LEAST_CALL // 16, 1), (LEAST_CALL, 16 / MIN_BLOCK)):
        field = Recorder(plane((0.0, 0.0, 1.0), 9.0))
        origins, directions = (t.expand(n_rays, 3) for t in along_z(n_side=1, width=0.0))
        march(field, origins, directions, near.expand(n_rays), far.expand(n_rays), 17)
        assert len(field.sizes) == 1 + n_calls  # the first samples are a call of their own
        assert sum(field.sizes) == 17 * n_rays


def test_a_ray_that_starts_inside_costs_one_sample():
    origins, directions = from_a_point(eye=(0.0, 0.0, 0.0), n_rays=50)
    field = Recorder(sphere(0.4))
    DepthFunction().find_surface(field, origins, directions)
    assert sum(field.sizes) == 50


@pytest.mark.parametrize("max_points", [1, 7, 81, 100, 10**6])
def test_max_points_bounds_every_call_and_changes_nothing(max_points):
    origins, directions = along_z()
    near, far = tensor([1.45]).expand(81), tensor([2.55]).expand(81)
    field = Recorder(sphere())
    hits = march(field, origins, directions, near, far, 20, max_points=max_points)
    assert max(field.sizes) <= max_points
    free = Recorder(sphere())
    expected = march(free, origins, directions, near, far, 20)
    assert sum(field.sizes) == sum(free.sizes)
    assert torch.equal(hits.depth, expected.depth) and torch.equal(hits.hit, expected.hit)


def test_max_points_of_the_depth_function():
    field = Recorder(sphere())
    DepthFunction(max_points=50).find_surface(field, *from_a_point())
    assert max(field.sizes) == 50


def test_nothing_has_a_gradient():
    origins, directions = (t.clone().requires_grad_() for t in along_z())
    hits = find(sphere(), origins, directions)
    assert not any(t.requires_grad for t in (hits.depth, hits.points, hits.hit))


def test_fields_may_depend_on_the_ray():
    origins, directions = along_z(n_side=2, width=0.0)
    radius = tensor([0.1, 0.2, 0.3, 0.4])
    hits = DepthFunction().find_surface(
        lambda points, rays: radius[rays] - points.norm(dim=1), origins, directions
    )
    check(hits, origins, directions, 2 - radius)


# ---- against the dense plain twin ----------------------------------------------------------------


def bumps(seed):
    """Many smooth bumps and dents: surfaces, holes and thin parts everywhere."""
    generator = torch.Generator().manual_seed(seed)
    centers = 1.1 * (torch.rand(25, 3, generator=generator, dtype=torch.float64) - 0.5)
    heights = torch.randn(25, generator=generator, dtype=torch.float64)

    def field(points, rays):
        squared = (points[:, None] - centers).square().sum(2)
        return (heights * (-squared / 0.02).exp()).sum(1) - 0.05

    return field


@pytest.mark.parametrize("n_steps", [2, 3, 8, 9, 10, 16, 33, 100, 300, "random"])
@pytest.mark.parametrize("method", ["secant", "bisection"])
def test_against_the_dense_twin(n_steps, method):
    seed = 0 if n_steps == "random" else n_steps + 1
    field = bumps(seed)
    origins, directions = from_a_point(n_rays=240, seed=seed)
    origins = origins.clone()
    origins[:80] *= 0.2  # inside the cube, some inside the object
    near, far = DepthFunction().interval(origins, directions)
    if n_steps == "random":
        n_steps = torch.randint(2, 40, (240,), generator=torch.Generator().manual_seed(0))
    hits = march(field, origins, directions, near, far, n_steps, method=method)
    expected = plain.march(field, origins, directions, near, far, n_steps, method=method)
    expected = torch.tensor(expected, dtype=torch.float64)
    kinds = [expected.isinf(), expected == 0, expected.isfinite() & (expected > 0)]
    assert all(kind.any() for kind in kinds)
    check(hits, origins, directions, expected, tolerance=1e-11)


# ---- what is known beforehand --------------------------------------------------------------------


@pytest.mark.parametrize("n_steps", [5, 8, 9, 40])
@pytest.mark.parametrize("method", ["secant", "bisection"])
def test_known_space_is_not_evaluated_and_changes_nothing(n_steps, method):
    """With true knowledge, the surface is the same to the last bit, wherever the brackets begin."""
    field = bumps(11)
    origins, directions = from_a_point(n_rays=240, seed=11)
    origins = origins.clone()
    origins[:80] *= 0.2
    near, far = DepthFunction().interval(origins, directions)

    def known_side(points):
        cell = (points * 7).floor()  # two of three cells are known
        side = torch.where(field(points, None) >= 0, 1, -1)
        return side.masked_fill((cell.sum(dim=1) % 3) == 0, 0)

    full, part = Recorder(lambda p: field(p, None)), Recorder(lambda p: field(p, None))
    options = {"method": method}
    expected = march(full, origins, directions, near, far, n_steps, **options)
    options["estimate"] = promise(known_side)
    hits = march(part, origins, directions, near, far, n_steps, **options)
    assert torch.equal(hits.depth, expected.depth) and torch.equal(hits.points, expected.points)
    assert torch.equal(hits.hit, expected.hit)
    assert torch.equal(hits.starts_inside, expected.starts_inside)
    assert hits.hit.any() and hits.starts_inside.any()
    assert sum(part.sizes) < 0.9 * sum(full.sizes)


def test_a_grid_of_the_field_knows_where_the_surface_is_not():
    """On bumpy fields, at the grid's coarsest, no surface is lost and much is saved."""
    for seed in range(4):
        origins, directions = from_a_point(n_rays=1000, seed=seed)
        full, part = (Recorder(lambda p: bumps(seed)(p, None)) for _ in range(2))
        bounds = OccupancyBounds()
        bounds.update(lambda p, _: bumps(seed)(p.double(), None))
        function = DepthFunction(n_steps=(64, 65))
        expected = function.find_surface(full, origins, directions)
        hits = function.find_surface(part, origins, directions, estimate=bounds.estimate)
        assert torch.equal(hits.depth, expected.depth) and torch.equal(hits.hit, expected.hit)
        assert sum(part.sizes) < 0.8 * sum(full.sizes)


# ---- options -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "option",
    [
        {"tau": 0.0},
        {"tau": 1.0},
        {"method": "newton"},
        {"n_steps": (1, 5)},
        {"n_steps": (8, 8)},
        {"n_steps": (8,)},
        {"depth_range": (2.0, 1.0)},
        {"depth_range": (-1.0, 1.0)},
        {"n_secant_steps": -1},
        {"max_points": 0},
        {"init_resolution": 1},
    ],
    ids=str,
)
def test_options_that_make_no_sense(option):
    with pytest.raises(ValueError, match=next(iter(option))):
        DepthFunction(**option)
