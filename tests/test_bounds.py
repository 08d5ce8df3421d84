"""What the bounds let rays skip must not change what rays find."""

import pytest
import torch

from benchmarks.shape import fitted_model, view_batch
from im2mesh import geometry
from im2mesh.dvr.bounds import MARGINS, NARROWER, OccupancyBounds
from im2mesh.dvr.raymarch import DepthFunction, march
from tests.plain import promise


def sphere(radius, sharpness=20.0):
    return lambda points, rays=None: sharpness * (radius - points.norm(dim=-1))


def rays(height=40, width=40):
    camera = geometry.perspective(30, height, width) @ geometry.look_at((0.4, 0.9, 1.9))
    pixels = geometry.pixel_centers(height, width)[None]
    origins, directions = (t[0] for t in geometry.camera_rays(pixels, camera[None]))
    near, far, _ = geometry.cube_interval(origins, directions, geometry.CUBE_PADDING)
    return origins, directions, near, far


class Counting:
    def __init__(self, field):
        self.field, self.n_points = field, 0

    def __call__(self, points, rays=None):
        self.n_points += len(points)
        return self.field(points, rays)


@pytest.mark.parametrize("radius", [0.05, 0.3, 0.54])
@pytest.mark.parametrize("n_steps", [16, 64])
def test_a_sphere_is_found_as_without_the_grid(radius, n_steps):
    bounds, field = OccupancyBounds(), Counting(sphere(radius))
    bounds.update(field)
    plain, skipping = Counting(field.field), Counting(field.field)
    everything = march(plain, *rays(), n_steps)
    skipped = march(skipping, *rays(), n_steps, estimate=bounds.estimate)
    assert torch.equal(everything.hit, skipped.hit) and everything.hit.any()
    assert torch.equal(everything.starts_inside, skipped.starts_inside)
    torch.testing.assert_close(everything.depth, skipped.depth, rtol=0, atol=1e-5)
    if radius < 0.5:
        assert skipping.n_points < 0.6 * plain.n_points


def test_values_between_grid_points():
    """Exact where the field is linear; nothing is promised beyond the grid."""
    bounds = OccupancyBounds(5)
    slope = torch.tensor([3.0, -2.0, 0.5])
    bounds.update(lambda points, objects: points @ slope + 0.25)
    points = 1.2 * torch.rand(500, 3, generator=torch.Generator().manual_seed(0)) - 0.6
    values, errors = bounds.estimate(points)
    within = (points.abs() <= 0.55).all(dim=1)
    assert within.any() and not within.all()
    torch.testing.assert_close(values[within], points[within] @ slope + 0.25, rtol=0, atol=1e-5)
    assert errors[within].max() < 1e-5 and errors[~within].isinf().all()


def test_each_object_has_a_grid_of_its_own():
    """As if each had been looked at alone; on the outer faces and edges, too, where two grids touch."""
    radii = torch.tensor([0.1, 0.3, 0.5])
    together = OccupancyBounds(6, n_objects=3)
    together.update(lambda points, objects: sphere(radii[objects])(points))
    generator = torch.Generator().manual_seed(0)
    points = 1.2 * torch.rand(900, 3, generator=generator) - 0.6
    points[:300] = points[:300].sign() * 0.55  # corners
    points[300:600, 0] = points[300:600, 0].sign() * 0.55
    objects = torch.arange(900) % 3
    values, errors = together.estimate(points, objects)
    for i, radius in enumerate(radii):
        alone = OccupancyBounds(6)
        alone.update(sphere(radius))
        expected_values, expected_errors = alone.estimate(points[objects == i])
        torch.testing.assert_close(values[objects == i], expected_values, rtol=0, atol=1e-4)
        assert torch.equal(errors[objects == i], expected_errors)


def test_what_rays_meet_at_the_outer_faces_is_known():
    """Their first and last samples lie there, some of them on the outer side by a rounding."""
    bounds = OccupancyBounds()
    bounds.update(sphere(0.3))
    origins, directions, near, far = rays()
    ends = torch.cat([origins + depth[:, None] * directions for depth in (near, far)])
    ends = ends[(far > near).repeat(2)]
    assert (ends.abs() > bounds.side_length / 2).any()
    _, errors = bounds.estimate(ends)
    assert errors.isfinite().all()


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("place", [-0.549, -0.52, 0.0, 0.003, 0.02, 0.548])
def test_a_kink_stays_within_the_errors(axis, place):
    """Wherever the field bends between two grid points, it is off by no more than is said."""
    field = lambda points, objects=None: 7 * (points[:, axis] - place).relu() - 2  # noqa: E731
    bounds = OccupancyBounds(20)
    bounds.update(field)
    points = 1.1 * torch.rand(2000, 3, generator=torch.Generator().manual_seed(1)) - 0.55
    values, errors = bounds.estimate(points)
    assert ((values - field(points)).abs() <= errors + 1e-5).all()
    far = (points[:, axis] - place).abs() > 2.5 * 1.1 / 20
    assert errors[far].max() < 1e-5


def test_a_learning_field_goes_on_changing():
    """By a share of what it changed between the last looks; how much, experience tells."""
    bounds = OccupancyBounds(8)
    points = torch.tensor([[0.1, 0.2, -0.3]])

    def look(height, **options):
        bounds.update(lambda points, objects: torch.full_like(points[:, 0], height), **options)
        return [float(value) for value in bounds.estimate(points)]

    most = MARGINS[1]
    assert look(1.0, learns=True) == pytest.approx([1.0, torch.inf])  # how much it changes, nobody knows yet
    for height, misled, change, margin in [
        (1.5, False, 0.5, most),
        (1.7, False, 0.5, most * NARROWER),
        (1.7, True, 0.2, most),
        (0.3, False, 1.4, most * NARROWER),
        (-0.1, False, 1.4, most * NARROWER**2),
        (-0.1, False, 0.4, most * NARROWER**3),
        (-0.1, False, 0.0, most * NARROWER**4),
    ]:
        expected = pytest.approx([height, margin * change], abs=1e-6)
        assert look(height, learns=True, misled=misled) == expected
        assert bounds.margin == pytest.approx(margin)
        assert bounds.staleness == (0 < abs(height) <= margin * change)
    for _ in range(20):
        look(0.0, learns=True)
    assert bounds.margin == MARGINS[0]
    assert look(3.0) == pytest.approx([3.0, 0]) and bounds.staleness == 0


def test_state_goes_from_run_to_run():
    first, second = OccupancyBounds(8), OccupancyBounds(8)
    second.load_state_dict(first.state_dict())
    assert second.values is None
    first.update(sphere(0.3))
    second.load_state_dict(first.state_dict())
    points = torch.rand(10, 3) - 0.5
    for one, other in zip(first.estimate(points), second.estimate(points)):
        assert torch.equal(one, other)
    first.update(sphere(0.35), learns=True)
    second.load_state_dict(first.state_dict())
    for bounds in (first, second):
        bounds.update(sphere(0.34), learns=True)
    assert torch.equal(first.errors, second.errors) and first.margin == second.margin
    assert first.errors.min() > 0.9 * NARROWER  # from 0.3 to 0.35 is a change of 1


@pytest.mark.parametrize("n_secant_steps", [0, 1, 8])
@pytest.mark.parametrize(
    "lie, depth_of_lie",
    [
        (-1, -0.2),  # hides the front of the sphere, not its middle
        (1, -0.55),  # calls the free space before it inside
    ],
)
def test_a_wrong_promise_is_noticed_at_the_surface(n_secant_steps, lie, depth_of_lie):
    """A ray whose samples around the surface turn out otherwise is searched anew without help."""
    origin, direction = torch.tensor([[0.0, 0.0, -2.0]]), torch.tensor([[0.0, 0.0, 1.0]])
    near, far = torch.tensor([1.4]), torch.tensor([2.6])
    truth = march(sphere(0.4), origin, direction, near, far, 33, n_secant_steps=n_secant_steps)

    def lies(points):
        return torch.where(points[:, 2] > depth_of_lie, 0 if lie < 0 else 1, min(lie, 0))

    found = march(
        sphere(0.4), origin, direction, near, far, 33,
        n_secant_steps=n_secant_steps, estimate=promise(lies),
    )
    assert found.hit.all()
    assert torch.equal(found.depth, truth.depth) and torch.equal(found.points, truth.points)


def test_a_wrong_promise_about_the_start_is_noticed():
    origin, direction = torch.zeros(1, 3), torch.tensor([[0.0, 0.0, 1.0]])
    found = march(
        sphere(0.4), origin, direction, torch.zeros(1), torch.ones(1), 11,
        estimate=promise(lambda points: torch.where(points[:, 2] > 0.15, 0, -1)),
    )
    assert found.starts_inside.all() and not found.hit.any() and found.depth == 0


@pytest.mark.parametrize("help_of", ["bounds", "bfloat16", "a first look"])
def test_a_fitted_network_loses_at_most_one_ray_in_a_thousand(help_of):
    model = fitted_model(32)[1].eval()
    batch = view_batch(80, 80)
    matrix = geometry.object_to_image(
        *(batch[f"img.{name}_mat"] for name in ("camera", "world", "scale"))
    )
    pixels = geometry.pixel_centers(80, 80)[None]
    origins, directions = (t[0] for t in geometry.camera_rays(pixels, matrix))
    model.depth_function = DepthFunction(adaptive=False)
    everything = model.find_surface(origins, directions)
    if help_of == "a first look":
        model.depth_function = DepthFunction()
        skipped = model.find_surface(origins, directions)
    elif help_of == "bounds":
        bounds = OccupancyBounds()
        bounds.update(model.logit_field())
        skipped = model.find_surface(origins, directions, bounds=bounds)
    else:
        skipped = model.find_surface(origins, directions, dtype=torch.bfloat16)
    differs = everything.hit != skipped.hit
    both = everything.hit & skipped.hit
    differs[both] |= (everything.depth - skipped.depth)[both].abs() > 1e-5
    assert both.sum() > 1000
    assert differs.float().mean() <= 1e-3


@pytest.mark.parametrize("resolution", [32, 64])
@pytest.mark.parametrize("thickness", [0.3, 0.6, 0.9])  # cells
def test_a_plate_between_grid_points_is_not_lost(resolution, thickness):
    """No grid point lies in the plate: only how fast the field rises towards it tells."""
    cell = 1.1 / resolution
    middle = -0.55 + cell * (resolution // 2 + 0.5)

    def plate(points, rays=None):
        half = torch.tensor([0.4, 0.4, thickness * cell / 2])
        return (half - (points - torch.tensor([0, 0, middle])).abs()).amin(dim=-1)

    bounds = OccupancyBounds(resolution)
    bounds.update(plate)
    xy = torch.cartesian_prod(torch.linspace(-0.3, 0.3, 9), torch.linspace(-0.3, 0.3, 9))
    origins = torch.cat([xy, torch.full((81, 1), -2.0)], dim=1)
    directions = torch.tensor([[0.0, 0.0, 1.0]]).expand(81, 3)
    near, far = torch.full((81,), 1.45), torch.full((81,), 2.55)
    everything = march(plate, origins, directions, near, far, 512)
    skipped = march(plate, origins, directions, near, far, 512, estimate=bounds.estimate)
    assert everything.hit.all() and torch.equal(everything.hit, skipped.hit)
    torch.testing.assert_close(everything.depth, skipped.depth)


def test_ball_around_the_object():
    bounds = OccupancyBounds(50)
    middle = torch.tensor([0.1, -0.15, 0.2])
    bounds.update(lambda points, objects: 20 * (0.2 - (points - middle).norm(dim=-1)))
    center, radius = bounds.ball(0.0)
    assert (center - middle).norm() < 0.022 and 0.2 < radius < 0.25
    bounds.update(lambda points, objects: torch.full_like(points[:, 0], -3.0))
    center, radius = bounds.ball(0.0)  # nothing there: look at all of the grid
    assert center.abs().max() < 1e-6 and radius == pytest.approx(0.55 * 3**0.5 + 0.022)
