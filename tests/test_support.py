"""Where the object can be: the grid itself, the search within it, and what was not seen of late."""

import pytest
import torch

from im2mesh.dvr.model import DVR
from im2mesh.dvr.raymarch import DepthFunction, march
from im2mesh.dvr.support import FREE, Support, cell_of
from im2mesh.dvr.visibility import WINDOW, SeenCells
from tests.plain import octahedron_decoder

HALF = 0.55


def random_cells(share=0.3, resolution=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(resolution, resolution, resolution, generator=generator) < share


def random_points(count, seed=1, side=1.1):
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(count, 3, generator=generator) - 0.5) * side


def random_rays(count, seed=2):
    """From a sphere around the cube towards points in it."""
    generator = torch.Generator().manual_seed(seed)
    origins = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=1) * 2
    targets = (torch.rand(count, 3, generator=generator) - 0.5) * 0.9
    return origins, targets - origins


# ---- the grid ------------------------------------------------------------------------------------


def test_a_new_support_is_the_cube():
    support = Support(8)
    assert support.cells().all()
    assert support(random_points(500)).all()
    assert not support(torch.tensor([[0.551, 0, 0], [0, -0.551, 0], [0, 0, 7.0]])).any()


def test_cells_come_back():
    support, cells = Support(16), random_cells()
    support.set_cells(cells)
    assert torch.equal(support.cells(), cells)
    other = Support(16)
    other.load_state_dict(support.state_dict())
    assert torch.equal(other.cells(), cells)
    assert support.state_dict()["bits"].shape == (16**3 // 8,)


def test_points_by_cells():
    support, cells = Support(16), random_cells()
    support.set_cells(cells)
    points = random_points(2000)
    place = ((points + HALF) / 1.1 * 16).floor().long()
    assert torch.equal(support(points), cells[tuple(place.T)])
    assert torch.equal(support(points.double()), support(points))  # the form for other devices and types


def test_samples_in_cells():
    """As by looking up each sample; a neighbour of a cell counts as well."""
    support, cells = Support(16), torch.zeros(16, 16, 16, dtype=torch.bool)
    cells[5:9, 4:12, 7] = True
    support.set_cells(cells)
    wide = Support(16)
    wide.set_cells(torch.nn.functional.max_pool3d(cells[None, None].float(), 3, 1, 1)[0, 0] > 0)
    origins, directions = random_rays(500)
    near, far = DepthFunction().interval(origins, directions)
    far[:50] = near[:50]
    last = torch.randint(10, 40, (500,), generator=torch.Generator().manual_seed(4))
    first, final = support.samples(origins, directions, near, far, last)
    plainly = support.samples(*(t.double() for t in (origins, directions, near, far)), last)
    assert (first != plainly[0]).sum() <= 2 and (final != plainly[1]).sum() <= 2  # roundings at borders
    assert (first[:50] == -1).all() and 50 < (first >= 0).sum() < 400
    for ray in range(50, 500):
        share = torch.arange(int(last[ray]) + 1) / last[ray]
        depths = near[ray] + share * (far[ray] - near[ray])
        there = wide(origins[ray] + depths[:, None] * directions[ray]).nonzero()[:, 0]
        expected = (there[0], there[-1]) if len(there) else (-1, -1)
        assert (first[ray], final[ray]) == expected


def test_random_points_fill_the_cells():
    support, cells = Support(16), random_cells(share=0.05)
    support.set_cells(cells)
    points = support.random_points(20000, torch.Generator().manual_seed(0))
    assert support(points).all()
    place = ((points + HALF) / 1.1 * 16).floor().long().clamp(0, 15)
    counts = torch.zeros(16, 16, 16).index_put_(tuple(place.T), torch.ones(len(points)), accumulate=True)
    assert counts[cells].min() > 0.5 * 20000 / cells.sum()
    support.set_cells(torch.zeros_like(cells))
    assert support.random_points(1000, torch.Generator()).abs().max() > 0.5  # anywhere in the cube


def test_convention_first_axis_is_x():
    cell, within = cell_of(torch.tensor([[-HALF, -HALF, HALF], [HALF, -HALF, -HALF]]), 4)
    assert cell.tolist() == [3, 48] and within.all()


# ---- search --------------------------------------------------------------------------------------


def model_in(cells):
    support = Support(len(cells))
    support.set_cells(cells)
    return DVR(octahedron_decoder(), support=support)


def test_the_field_is_free_outside():
    model = model_in(random_cells())
    points = random_points(1000)
    with torch.no_grad():
        logits = model.logit_field()(points)
        plainly = model.decoder(points)[:, 0]
    within = model.support(points)
    assert (logits[~within] == FREE).all() and 100 < within.sum() < 900
    torch.testing.assert_close(logits[within], plainly[within])


@pytest.mark.parametrize("n_steps", [(16, 17), (40, 90)])
def test_the_search_finds_what_it_would_find_in_the_whole_cube(n_steps):
    """Leaving out samples before and after the support changes nothing, not a bit."""
    cells = random_cells(share=0.6, resolution=16)
    cells[:6] = cells[10:] = False
    model = model_in(cells)
    origins, directions = random_rays(3000)
    low, high = n_steps
    steps = torch.randint(low, high, (3000,), generator=torch.Generator().manual_seed(3))
    near, far = model.depth_function.interval(origins, directions)
    evaluated = []

    def field(points, rays):
        evaluated.append(len(points))
        with torch.no_grad():
            return model.logit_field()(points)

    whole = march(field, origins, directions, near, far, steps)
    n_whole = sum(evaluated)
    evaluated.clear()
    found = march(field, origins, directions, near, far, steps, support=model.support)
    assert 500 < whole.hit.sum() < 2500 and whole.starts_inside.sum() == found.starts_inside.sum()
    for name in ("depth", "points", "hit"):
        assert torch.equal(getattr(found, name), getattr(whole, name)), name
    assert sum(evaluated) < 0.8 * n_whole


def test_a_ray_that_starts_inside_the_support():
    """The camera is in the object: the first sample counts."""
    model = model_in(torch.ones(8, 8, 8, dtype=torch.bool))
    origin, direction = torch.tensor([[0.1, 0.05, -0.05]]), torch.tensor([[1.0, 0, 0]])
    hits = model.find_surface(origin, direction)
    assert hits.starts_inside.all() and not hits.hit.any() and hits.depth.item() == 0


def test_rays_beside_the_support_cost_nothing():
    cells = torch.zeros(8, 8, 8, dtype=torch.bool)
    model = model_in(cells)
    origins, directions = random_rays(50)

    def field(points, rays):
        assert len(points) == 0
        return points[:, 0]

    near, far = model.depth_function.interval(origins, directions)
    hits = march(field, origins, directions, near, far, 32, support=model.support, closest=True)
    assert not hits.hit.any() and hits.closest.isinf().all()


def test_closest_is_the_sample_with_the_largest_value():
    origins, directions = random_rays(400)
    near, far = DepthFunction().interval(origins, directions)

    def field(points, rays):
        return 0.1 - points.norm(dim=1)  # a small ball

    hits = march(field, origins, directions, near, far, 33, closest=True)
    depths = torch.lerp(near[:, None], far[:, None], torch.linspace(0, 1, 33))
    points = origins[:, None] + depths[..., None] * directions[:, None]
    values = 0.1 - points.norm(dim=-1)
    missed = ~hits.hit
    assert 50 < missed.sum() < 390
    largest = values.max(dim=1).values
    there = 0.1 - (origins + hits.closest[:, None] * directions).norm(dim=1)
    torch.testing.assert_close(there[missed], largest[missed], rtol=1e-4, atol=1e-5)


# ---- what was seen -------------------------------------------------------------------------------


def seen_around_a_ball(radius=0.3, iterations=WINDOW + 40):
    """Rays from all sides that end on a ball, over some iterations."""
    seen = SeenCells(resolution=32)
    for iteration in range(0, iterations, 8):
        generator = torch.Generator().manual_seed(iteration)
        sources = torch.nn.functional.normalize(torch.randn(4000, 3, generator=generator), dim=1)
        directions = torch.nn.functional.normalize(torch.randn(4000, 3, generator=generator), dim=1)
        directions = directions * -(directions * sources).sum(1, keepdim=True).sign()
        origins = 0.9 * sources
        along = -(origins * directions).sum(1)
        miss = (origins + along[:, None] * directions).norm(dim=1)
        end = torch.where(miss < radius, along - (radius**2 - miss**2).clamp_min(0).sqrt(), 2 * along)
        seen.note(origins, directions, torch.zeros(4000), end, iteration, generator)
    return seen, iterations - 8


def test_the_inside_of_a_ball_is_unseen():
    seen, iteration = seen_around_a_ball()
    points = seen.unseen_points(iteration, None, torch.Generator().manual_seed(0))
    radii = points.norm(dim=1)
    assert 40 < len(points) <= 512
    near_the_ball = radii[points.abs().amax(dim=1) < 0.4]
    assert near_the_ball.max() < 0.3 and near_the_ball.max() > 0.2 and len(near_the_ball) > 30


def test_unseen_points_stay_in_the_support():
    seen, iteration = seen_around_a_ball()
    cells = torch.zeros(16, 16, 16, dtype=torch.bool)
    cells[8:] = True
    support = Support(16)
    support.set_cells(cells)
    points = seen.unseen_points(iteration, support, torch.Generator().manual_seed(0))
    assert 40 < len(points) < 400 and (points[:, 0] >= 0).all()


def test_what_was_seen_is_forgotten():
    seen, iteration = seen_around_a_ball()
    later = seen.unseen_points(iteration + 2 * WINDOW, None, torch.Generator().manual_seed(0))
    assert (later.norm(dim=1) > 0.35).float().mean() > 0.5  # free space as well by now


def test_before_the_window_is_over_nothing_is_unseen():
    assert len(SeenCells(8).unseen_points(WINDOW - 1, None, torch.Generator())) == 0
