"""The visual hull against closed forms and a plain search, and the script that writes it."""

import math
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from im2mesh import geometry, visual_hull
from im2mesh.data import ImagesField
from im2mesh.data.images import read_depth
from im2mesh.visual_hull import hull_cells, in_visual_hull, visual_hull_depths
from scripts import make_visual_hull
from tests.sphere_scene import RADIUS, write_sphere_scene

DISTANCE = 3.0


def camera(eye, size=(48, 48), up=(0.0, 1.0, 0.0), field_of_view=40):
    """A camera that sees the whole cube."""
    height, width = size
    matrices = geometry.perspective(field_of_view, height, width), geometry.look_at(eye, up=up)
    return geometry.object_to_image(*matrices, torch.eye(4))


def around(n_views, **options):
    """Cameras on a circle that is tilted, so that no two look at each other."""
    angles = [2 * math.pi * i / n_views for i in range(n_views)]
    eyes = [(DISTANCE * math.cos(a), DISTANCE * 0.3 * math.sin(3 * a + 1), DISTANCE * math.sin(a))
            for a in angles]  # fmt: skip
    return torch.stack([camera(eye, **options) for eye in eyes])


def rays(matrix, size=(48, 48)):
    """Origin (3,) and directions (H, W, 3)."""
    pixels = geometry.pixel_centers(*size, dtype=torch.float64)
    origins, directions = geometry.camera_rays(pixels[None], matrix[None])
    return origins[0, 0], directions[0].view(*size, 3)


def sphere(matrix, radius=0.4, center=(0.0, 0, 0), size=(48, 48)):
    """True depth of a sphere, +inf where it is not seen."""
    origin, w = rays(matrix, size)
    origin = origin - torch.tensor(center, dtype=torch.float64)
    a, b, c = (w * w).sum(-1), w @ origin, origin @ origin - radius**2
    root = (b * b - a * c).clamp(min=0).sqrt()
    return torch.where(b * b > a * c, (-b - root) / a, torch.inf)


def box(matrix, half=(0.3, 0.2, 0.4), size=(48, 48)):
    """True depth of a box, +inf where it is not seen."""
    origin, w = rays(matrix, size)
    half = torch.tensor(half, dtype=torch.float64)
    ends = torch.stack([(-half - origin) / w, (half - origin) / w])
    near, far = ends.amin(0).amax(-1), ends.amax(0).amin(-1)
    return near.where(near < far, torch.inf)


def hull_depth(masks, matrices, view):
    (depth,) = visual_hull_depths(masks, matrices, [view])
    return depth


def searched(masks, matrices, view, n_steps=500):
    """The hull's depth by trying many points of each ray; exact to a step or a little less."""
    origin, w = rays(matrices[view], masks[view].shape)
    w = w[masks[view]]
    near, far, meets = geometry.cube_interval(origin, w, geometry.CUBE_PADDING)
    depth = near[:, None] + (far - near)[:, None] * torch.linspace(0, 1, n_steps).double()
    points = origin + depth[..., None] * w[:, None]
    inside = in_visual_hull(points.reshape(-1, 3), masks, matrices).view(depth.shape)
    first = depth.gather(1, inside.int().argmax(1, keepdim=True))[:, 0]
    return first.where(inside.any(1) & meets, torch.inf), (far - near) / (n_steps - 1)


# ---- spheres and boxes ---------------------------------------------------------------------------


def test_hull_contains_a_sphere_and_shrinks_with_the_views():
    # A mask knows the silhouette to half a pixel; at its rim a hull may be that much too small.
    pixel = 2 * DISTANCE * math.tan(math.radians(20)) / 47
    gaps = []
    for n_views in (3, 7, 21):
        matrices = around(n_views)
        true = [sphere(matrix) for matrix in matrices]
        mask = true[0].isfinite()
        depth = hull_depth([d.isfinite() for d in true], matrices, 0)
        assert depth.dtype == torch.float32
        assert not (depth.isfinite() & ~mask).any()
        inner = sphere(matrices[0], 0.4 - pixel)
        assert (depth <= inner).all()
        core = inner.isfinite()
        gaps.append((true[0] - depth)[core].mean().item())
    assert gaps[0] > 2 * gaps[1] and gaps[1] > 2 * gaps[2]
    assert abs(gaps[2]) < pixel / 2


def test_hull_of_one_view_is_its_cone():
    matrix = camera((DISTANCE, 0.1, 0.2))[None]
    mask = sphere(matrix[0]).isfinite()
    origin, w = rays(matrix[0])
    near, _, _ = geometry.cube_interval(origin, w, geometry.CUBE_PADDING)
    depth = hull_depth([mask], matrix, 0)
    assert mask.any() and not mask.all()
    torch.testing.assert_close(depth, near.where(mask, torch.inf).float())


def test_hull_of_a_box_seen_along_the_axes_is_the_box():
    """Far cameras: their rays run along the axes, and the silhouettes leave nothing but the box."""
    half, far = (0.3, 0.2, 0.4), 200.0
    options = {"size": (201, 201), "field_of_view": 2 * math.degrees(math.atan(0.6 / far))}
    eyes = [((far, 0, 0), (0.0, 1, 0)), ((0, far, 0), (0.0, 0, 1)), ((0, 0, -far), (0.0, 1, 0))]
    matrices = torch.stack([camera(eye, up=up, **options) for eye, up in eyes])
    masks = [box(matrix, half, (201, 201)).isfinite() for matrix in matrices]
    pixel = 2 * 0.6 / 200
    for view, axis in enumerate((0, 1, 2)):
        depth = hull_depth(masks, matrices, view)[masks[view]]
        assert (far - depth - half[axis]).abs().max() < pixel


def test_depths_are_where_the_masks_say():
    """A ball on a thin rod; every depth is a border between two pixels."""
    size = (40, 52)
    matrices = around(6, size=size)
    masks = [
        sphere(m, 0.2, (0.1, -0.1, 0), size).isfinite()
        | box(m, (0.03, 0.45, 0.03), size).isfinite() for m in matrices
    ]  # fmt: skip
    for view in range(6):
        depth = hull_depth(masks, matrices, view)[masks[view]].double()
        expected, step = searched(masks, matrices, view)
        both = depth.isfinite() & expected.isfinite()
        assert (both == expected.isfinite()).all() and both.sum() > 50
        assert ((expected - depth)[both] > -1e-5).all()  # never behind what a search finds
        near = ((expected - depth)[both] < step[both] + 1e-5).float().mean()
        assert near > 0.97  # a search passes over what is thinner than its steps
        origin, w = rays(matrices[view], size)
        found = depth[depth.isfinite()]
        for offset, inside in ((1e-5, True), (-1e-5, False)):
            points = origin + (found + offset)[:, None] * w[masks[view]][depth.isfinite()]
            share = (in_visual_hull(points, masks, matrices) == inside).float().mean()
            assert share > 0.97


def test_nothing_is_passed_over():
    """A plate as thin as 1/2000 of a ray's way through the cube, found in a large picture."""
    half = (0.4, 0.4, 0.0005)
    sizes = [(31, 31), (1501, 1501)]
    eyes = [(0, 0.01, -DISTANCE), (0.02, DISTANCE, 0)]
    matrices = torch.stack([
        camera(eye, size, up=(0.0, 0.1, 1.0)) for eye, size in zip(eyes, sizes)
    ])
    masks = [box(m, half, s).isfinite() for m, s in zip(matrices, sizes)]
    depth = hull_depth(masks, matrices, 0)
    true = box(matrices[0], half, sizes[0])
    assert masks[0].sum() > 100
    assert (depth[masks[0]] - true[masks[0]]).abs().max() < 0.01


def test_views_are_all_or_those_named():
    sizes = [(20, 30), (25, 20), (30, 30)]
    eyes = [(DISTANCE, 0.1, 0.2), (0.3, 0.2, DISTANCE), (-2.0, 0.5, -2)]
    matrices = torch.stack([camera(eye, size) for eye, size in zip(eyes, sizes)])
    masks = [sphere(m, size=size).isfinite() for m, size in zip(matrices, sizes)]
    every = visual_hull_depths(masks, matrices)
    assert [tuple(depth.shape) for depth in every] == sizes
    some = visual_hull_depths(masks, matrices, [2, 0])
    assert torch.equal(some[0], every[2]) and torch.equal(some[1], every[0])
    assert visual_hull_depths(masks, matrices, []) == []


# ---- conventions and odd masks -------------------------------------------------------------------


def test_views_may_differ_in_size_and_borders_belong_to_the_frame():
    matrices = torch.stack([camera((0, 0, -DISTANCE), (9, 9)), camera((DISTANCE, 0, 0), (4, 7))])
    masks = [torch.ones(9, 9, dtype=torch.bool), torch.zeros(4, 7, dtype=torch.bool)]
    masks[1][:, :3] = True  # the far side, as the first camera sees it
    depth = hull_depth(masks, matrices, 0)
    expected, step = searched(masks, matrices, 0)
    torch.testing.assert_close(depth.flatten().double(), expected, atol=step.max().item(), rtol=0)
    middle = depth[4][depth[4].isfinite()]
    assert DISTANCE < middle.min() < middle.max() < DISTANCE + 0.4


def ring(height, width):
    """A mask that touches all sides of the frame and leaves nothing else."""
    mask = torch.ones(height, width, dtype=torch.bool)
    mask[1:-1, 1:-1] = False
    return mask


def test_points_out_of_a_frame_are_not_carved_where_the_mask_touches_it():
    """A camera that looks past the object, and one that has it behind itself."""
    front = camera((0, 0, -DISTANCE))
    true = sphere(front)
    away = geometry.object_to_image(
        geometry.perspective(40, 48, 48), geometry.look_at((0, 0, 3), (0, 0, 9)), torch.eye(4)
    )
    aside = geometry.object_to_image(
        geometry.perspective(40, 48, 48), geometry.look_at((3, 0, 0), (3, 0, 9)), torch.eye(4)
    )
    frame = ring(48, 48)
    alone = hull_depth([true.isfinite()], front[None], 0)
    with_others = hull_depth(
        [true.isfinite(), frame, frame], torch.stack([front, away, aside]), 0
    )
    assert torch.equal(alone, with_others)
    points = torch.tensor([[0.0, 0, 0], [0, 0, 5]])
    assert in_visual_hull(points, [frame], away[None]).tolist() == [True, False]
    # With a mask that keeps off the frame, nothing is left of the object in both cases.
    inner = torch.zeros(48, 48, dtype=torch.bool)
    inner[20:30, 20:30] = True
    for other in (away, aside):
        depth = hull_depth([true.isfinite(), inner], torch.stack([front, other]), 0)
        assert depth.isinf().all()
    assert in_visual_hull(points, [inner], away[None]).tolist() == [False, True]


@pytest.mark.parametrize("sides", [(), (0,), (1,), (2,), (3,), (0, 1), (1, 3), (0, 1, 2, 3)])
def test_what_lies_beyond_a_side_is_free_if_the_mask_keeps_off_it(sides):
    """Points beyond each side, each corner of the frame and behind the camera."""
    size, matrix = (30, 40), camera((0, 0, -DISTANCE), (30, 40))
    places = {  # column, row: beyond which sides (left, top, right, bottom)
        (-4, 14): {0}, (19, -4): {1}, (44, 14): {2}, (19, 34): {3},
        (-4, -4): {0, 1}, (44, -4): {1, 2}, (44, 34): {2, 3}, (-4, 34): {0, 3},
    }  # fmt: skip
    pixels = geometry.index_to_image(torch.tensor([(r, c) for c, r in places]), *size, torch.float64)
    origins, directions = geometry.camera_rays(pixels[None], matrix[None])
    points = torch.cat([origins[0] + 3 * directions[0], origins[0, :1] - directions[0, :1]]).float()
    for near_by, touched in ((1, set(sides)), (2, set())):  # from the frame's outermost pixels
        mask = torch.zeros(size, dtype=torch.bool)
        mask[14:16, 19:21] = True
        ends = (14, near_by), (near_by, 19), (14, -1 - near_by), (-1 - near_by, 19)
        for side in sides:
            mask[ends[side]] = True
        kept = [bool(beyond & touched) for beyond in places.values()] + [bool(touched)]
        assert in_visual_hull(points, [mask], matrix[None]).tolist() == kept


def test_view_with_an_empty_mask_says_nothing():
    matrices = around(3)
    masks = [sphere(matrix).isfinite() for matrix in matrices]
    masks[1] = torch.zeros_like(masks[1])
    some = [0, 2]
    others = [masks[0], masks[2]], matrices[some]
    first, empty, last = visual_hull_depths(masks, matrices)
    assert empty.isinf().all()
    for depth, expected in zip((first, last), visual_hull_depths(*others)):
        assert torch.equal(depth, expected)
    points = torch.rand(1000, 3, generator=torch.Generator().manual_seed(0)) - 0.5
    assert torch.equal(in_visual_hull(points, masks, matrices), in_visual_hull(points, *others))
    assert torch.equal(hull_cells(masks, matrices, 12), hull_cells(*others, 12))
    empty = [masks[1]] * 3
    assert all(depth.isinf().all() for depth in visual_hull_depths(empty, matrices))
    assert in_visual_hull(points, empty, matrices).all() and hull_cells(empty, matrices, 3).all()


def test_frame_that_shows_a_part_carves_that_part_only():
    matrices = torch.stack([camera((0, 0, -DISTANCE)), camera((DISTANCE, 0, 0), field_of_view=6)])
    masks = [torch.ones(48, 48, dtype=torch.bool), ring(48, 48)]
    depth = hull_depth(masks, matrices, 0)
    expected, step = searched(masks, matrices, 0)
    assert 0.05 < (expected > expected.min() + 0.2).float().mean() < 0.95
    torch.testing.assert_close(
        depth.flatten().double(), expected, atol=1.5 * step.max().item(), rtol=0
    )


def test_masks_that_contradict_each_other_leave_nothing():
    matrices = around(3)
    masks = [sphere(matrix).isfinite() for matrix in matrices]
    masks[1] = sphere(matrices[1], 0.1, (0.0, 0.8, 0)).isfinite()
    assert masks[1].any() and not hull_cells(masks, matrices, 10).any()
    assert hull_depth(masks, matrices, 0).isinf().all()
    assert hull_depth(masks, matrices, 1).isinf().all()
    masks[1] = sphere(matrices[1], 0.1, (0.0, 0.35, 0)).isfinite()
    depth = hull_depth(masks, matrices, 0)
    assert 0 < depth.isfinite().sum() < masks[0].sum()


def test_mask_pixels_whose_rays_miss_the_cube():
    matrices = torch.stack([camera((0, 0, -DISTANCE), field_of_view=60)])
    mask = torch.ones(48, 48, dtype=torch.bool)
    depth = hull_depth([mask], matrices, 0)
    assert depth[0, 0].isinf() and depth[24, 24].isfinite()
    # What reaches out of the cube starts at its face.
    assert depth[24, 24] == pytest.approx(DISTANCE - 0.55, abs=1e-4)


def test_camera_in_the_cube_and_two_at_one_place():
    inner = camera((0.1, 0.2, 0.3))
    outer = camera((0, 0, -DISTANCE))
    mask = torch.zeros(48, 48, dtype=torch.bool)
    mask[:, :24] = True
    other = torch.ones(48, 48, dtype=torch.bool)
    other[:, :20] = False
    # The same camera with a smaller mask: only pixels of both stay.
    depth = hull_depth([mask, other], torch.stack([outer, outer]), 0)
    cube = box(outer, (0.55, 0.55, 0.55))
    torch.testing.assert_close(depth, cube.where(mask & other, torch.inf).float())
    assert (hull_depth([mask, other], torch.stack([inner, outer]), 0)[mask] >= 0).all()


# ---- the grid ------------------------------------------------------------------------------------


def cells_of(points, cells, side_length=1.1):
    """The values of the cells that hold points (N, 3)."""
    n = len(cells)
    index = ((points / side_length + 0.5) * n).floor().long().clamp(0, n - 1)
    return cells[index.unbind(-1)]


def sampled(masks, matrices, n, per_axis=5):
    """Cells in which one of per_axis^3 points is in the hull, the corners among them."""
    within = torch.linspace(1e-5, 1 - 1e-5, per_axis, dtype=torch.float64)
    axis = ((torch.arange(n)[:, None] + within) / n - 0.5).flatten() * 1.1
    points = torch.cartesian_prod(axis, axis, axis)
    inside = in_visual_hull(points, masks, matrices).view(n, per_axis, n, per_axis, n, per_axis)
    return inside.permute(0, 2, 4, 1, 3, 5).flatten(3).any(-1)


def grown(cells):
    """Cells and their neighbours."""
    return torch.nn.functional.max_pool3d(cells[None].float(), 3, 1, 1)[0] > 0


def scattered(seed, n_views=5):
    """Views no two of which are alike: oblique maps, all sizes, ragged masks, cameras anywhere."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(low, high, *shape):
        return low + (high - low) * torch.rand(*shape, generator=generator, dtype=torch.float64)

    masks, matrices = [], []
    for view in range(n_views):
        size = (500, 630) if view == 0 else torch.randint(20, 90, (2,), generator=generator).tolist()
        noise = torch.randn(1, 1, 5, 6, generator=generator)
        noise = torch.nn.functional.interpolate(noise, size, mode="bicubic")[0, 0]
        pixels = geometry.pixel_centers(*size).view(*size, 2)
        from_middle = (pixels - uniform(-0.3, 0.3, 2)).norm(dim=-1)
        masks.append(0.3 * noise > from_middle - 0.75)
        eye = torch.nn.functional.normalize(uniform(-1, 1, 3), dim=0) * uniform(0.3, 2, 1)
        matrix = geometry.object_to_image(
            geometry.perspective(float(uniform(30, 80, 1)), *size),
            geometry.look_at(eye, uniform(-0.2, 0.2, 3), uniform(-1, 1, 3)), torch.eye(4),
        )  # fmt: skip
        matrix[:3, :3] = matrix[:3, :3] @ (torch.eye(3) + uniform(-0.2, 0.2, 3, 3))
        matrix[:3] *= uniform(0.1, 500, 1)
        matrices.append(matrix)
    return masks, torch.stack(matrices)


def test_cells_are_those_with_hull_in_them():
    """A ball and a box from all sides: no cell is missing, at most neighbours are too many."""
    matrices = around(8, size=(60, 80))
    masks = [
        sphere(m, 0.3, (0.1, 0, 0), (60, 80)).isfinite() | box(m, (0.1, 0.4, 0.2), (60, 80)).isfinite()
        for m in matrices
    ]  # fmt: skip
    for n in (1, 5, 24):
        cells, expected = hull_cells(masks, matrices, n, margin=0), sampled(masks, matrices, n)
        assert cells.shape == (n, n, n) and cells.dtype == torch.bool
        assert not (expected & ~cells).any()
        assert not (cells & ~grown(expected)).any()
    assert 0.05 < cells.float().mean() < 0.4


def test_first_axis_of_the_grid_is_x_and_the_cube_has_its_middle_at_the_origin():
    matrices = torch.stack([camera((DISTANCE, 0, 0)), camera((0.2, 0, DISTANCE))])
    center, side = (0.3, -0.2, 0.05), 2.0
    masks = [sphere(matrix, 0.04, center).isfinite() for matrix in matrices]
    where = hull_cells(masks, matrices, 20, side, margin=0).nonzero()
    assert 1 <= len(where) <= 27
    middle = (where.double().mean(0) + 0.5) / 20 * side - side / 2
    torch.testing.assert_close(middle, torch.tensor(center).double(), atol=0.08, rtol=0)


@pytest.mark.parametrize("seed", range(5))
def test_cells_hold_every_point_of_the_hull(seed):
    """Cameras in the cube and behind it, masks cut by the frame, blocks of pixels."""
    masks, matrices = scattered(seed)
    generator = torch.Generator().manual_seed(seed)
    depths = visual_hull_depths(masks, matrices)
    n_found = 0
    for n, side_length, margin in ((7, 1.1, 0), (33, 1.1, 0), (16, 1.5, 0.7)):
        cells = hull_cells(masks, matrices, n, side_length, margin)
        points = (torch.rand(40000, 3, generator=generator) - 0.5) * side_length
        inside = in_visual_hull(points, masks, matrices)
        assert cells_of(points, cells, side_length)[inside].all()
        for view, depth in enumerate(depths):
            origin, w = rays(matrices[view], depth.shape)
            hit = depth.isfinite()
            points = origin + depth[hit].double()[:, None] * w[hit]
            assert cells_of(points, cells, side_length).all()
            n_found += len(points)
    assert cells.float().mean() < 0.6 and inside.sum() > 20 and n_found > 5000


@pytest.mark.parametrize("seed", range(3))
def test_depths_are_where_scattered_views_say(seed):
    """As above for a ball and a rod; the frames of these views say something, too."""
    masks, matrices = scattered(seed)
    n_both = n_near = 0
    for view in range(1, len(masks)):
        depth = hull_depth(masks, matrices, view)[masks[view]].double()
        expected, step = searched(masks, matrices, view, 100)
        both = depth.isfinite() & expected.isfinite()
        assert (both == expected.isfinite()).all()
        expected, depth, step = expected[both], depth[both], step[both]
        assert (expected - depth > -1e-6 * depth).all()  # never behind what a search finds
        n_near += (expected - depth < step + 1e-6 * depth).sum()
        n_both += len(depth)
    assert n_both > 500 and n_near / n_both > 0.9


@pytest.mark.parametrize("n_views", [6, 70])
def test_grid_changes_no_depth(monkeypatch, n_views):
    size = (40, 52) if n_views < 10 else (12, 16)
    matrices = around(n_views, size=size)
    masks = [sphere(m, 0.3, (0.1, -0.1, 0), size).isfinite() for m in matrices]
    with_grid = visual_hull_depths(masks, matrices)
    monkeypatch.setattr(visual_hull, "SKIPPING", (1000, 1))  # a single cell
    for depth, expected in zip(with_grid, visual_hull_depths(masks, matrices)):
        torch.testing.assert_close(depth, expected, atol=1e-6, rtol=0)
    assert sum(depth.isfinite().sum() for depth in with_grid) > 500


def test_rod_thinner_than_a_cell_is_kept():
    half, n = 0.006, 16
    matrices = around(9, size=(300, 300))
    masks = [box(m, (half, 0.45, half), (300, 300)).isfinite() for m in matrices]
    cells = hull_cells(masks, matrices, n)
    points = torch.zeros(500, 3)
    points[:, 1] = torch.linspace(-0.45, 0.45, 500)
    for x in (-half, half):  # the axis is a border between cells
        points[:, 0] = points[:, 2] = x
        assert cells_of(points, cells).all()
    assert cells.any(1).sum() == 4


def test_space_before_cameras_and_out_of_all_frames_is_free():
    """Frames that show the ball and little else, from places near the cube."""
    size, angles = (60, 60), [2 * math.pi * i / 9 for i in range(9)]
    matrices = torch.stack([
        camera((0.9 * math.cos(a), 0.3 * math.sin(2 * a), 0.9 * math.sin(a)), size) for a in angles
    ])
    masks = [sphere(matrix, 0.2, size=size).isfinite() for matrix in matrices]
    n = 40
    axis = ((torch.arange(n) + 0.5) / n - 0.5) * 1.1
    distance = torch.cartesian_prod(axis, axis, axis).view(n, n, n, 3).norm(dim=-1)
    for margin in (0, 1):
        cells = hull_cells(masks, matrices, n, margin=margin)
        assert cells[distance < 0.18].all() and not cells[distance > 0.32].any()


def test_what_a_side_of_the_frame_cuts_off_is_kept():
    """A view that sees the lower end of a tower: it says nothing about what is above."""
    matrix = geometry.object_to_image(
        geometry.perspective(20, 48, 48),
        geometry.look_at((0, -0.4, -DISTANCE), (0, -0.4, 0)), torch.eye(4),
    )  # fmt: skip
    mask = box(matrix, (0.1, 0.45, 0.1)).isfinite()
    assert mask[0].any() and not mask[-1].any() and not mask[:, [0, -1]].any()
    cells = hull_cells([mask], matrix[None], 22)
    above, beside = cells[:, 20], cells[:, 5]
    assert above.all()  # up to both of the cube's other sides
    assert beside[10:12].all() and not beside[:7].any() and not beside[-7:].any()
    assert not cells[:, 0].any()
    assert hull_cells([mask], matrix[None], 22, 8.0)[:, :, 0].all()  # behind the camera
    mask[:2] = False
    assert not hull_cells([mask], matrix[None], 22)[:, 20].any()
    assert not hull_cells([mask], matrix[None], 22, 8.0)[:, :, 0].any()
    # Two pixels off the frame is near for a margin of two.
    assert hull_cells([mask], matrix[None], 22, margin=2)[:, 20].all()


def test_camera_in_the_cube():
    """It sees a ball; what is behind it is free, and so is the space before it but for a cell."""
    matrices = torch.stack([camera((0.02, 0.03, -0.4), field_of_view=60), *around(5)])
    masks = [sphere(matrix, 0.15).isfinite() for matrix in matrices]
    alone = hull_cells(masks[:1], matrices[:1], 32)
    assert not alone[:, :, :3].any() and alone[16, 16, 6:].all()
    assert sampled(masks, matrices, 32, 2)[~hull_cells(masks, matrices, 32)].sum() == 0
    assert not hull_cells(masks, matrices, 32)[:, :, :8].any()


def test_margin_is_what_dilates_the_masks():
    matrices = around(5)
    masks = [sphere(matrix, 0.3, (0.1, 0, 0)).isfinite() for matrix in matrices]
    grids = [hull_cells(masks, matrices, 30, margin=margin) for margin in (0, 1, 3)]
    assert grids[0].sum() < grids[1].sum() < grids[2].sum()
    assert torch.equal(grids[1], hull_cells(masks, matrices, 30))
    for margin, cells in zip((0, 1, 3), grids):
        wide = [
            torch.nn.functional.max_pool2d(mask[None].float(), 2 * margin + 1, 1, margin)[0] > 0
            for mask in masks
        ]
        assert torch.equal(cells, hull_cells(wide, matrices, 30, margin=0))


def test_grid_without_views_is_full_and_bad_arguments_are_refused():
    assert hull_cells([], torch.zeros(0, 4, 4), 3).all()
    for arguments in ((0,), (4, 1.1, -1)):
        with pytest.raises(ValueError, match="at least"):
            hull_cells([], torch.zeros(0, 4, 4), *arguments)


# ---- scripts/make_visual_hull.py -----------------------------------------------------------------


@pytest.fixture
def script(monkeypatch, capsys):
    """Run the script; gives exit code, stdout, stderr."""

    def script(*arguments):
        monkeypatch.setattr(sys, "argv", ["make_visual_hull.py", *map(str, arguments)])
        return make_visual_hull.main(), *capsys.readouterr()

    return script


def write_shapenet(folder, n_views=4, size=(20, 20)):
    """A sphere in the layout of ShapeNet: no scale matrix, no depth."""
    for name in ("image", "mask"):
        (folder / name).mkdir(parents=True)
    cameras = {}
    for view, matrix in enumerate(around(n_views, size=size)):
        mask = sphere(matrix, RADIUS, size=size).isfinite().numpy()
        Image.fromarray(np.full((*size, 3), 255, np.uint8)).save(folder / f"image/{view:04d}.png")
        Image.fromarray(mask.astype(np.uint8) * 255).save(folder / f"mask/{view:04d}.png")
        cameras |= {f"world_mat_{view}": matrix.numpy(), f"camera_mat_{view}": np.eye(4)}
    np.savez(folder / "cameras.npz", **cameras)


def maps(folder):
    return sorted(folder.glob("visual_hull_depth/*"))


def test_script_writes_what_training_reads(script, tmp_path):
    write_sphere_scene(tmp_path / "dtu/scan1/scan1")
    for model in ("a", "b"):
        write_shapenet(tmp_path / "shapenet/02691156" / model)
    (tmp_path / "shapenet/02691156/train.lst").write_text("a\n")  # all objects, whatever the split
    for root, n_objects, n_maps in (("dtu", 1, 5), ("shapenet", 2, 8)):
        code, out, err = script(tmp_path / root, "--workers", 2)
        assert (code, err) == (0, "")
        assert out.startswith(f"{n_objects} objects: {n_maps} maps written")
    for folder in (tmp_path / "dtu/scan1/scan1", tmp_path / "shapenet/02691156/a"):
        images = ImagesField(visual_hull_depth_folder="visual_hull_depth")
        assert [p.stem for p in maps(folder)] == [p.stem for p in images.images(folder)]
        items = [images.load(folder, view) for view in images.views(folder)]
        matrices = torch.stack([
            geometry.object_to_image(item["camera_mat"], item["world_mat"], item["scale_mat"])
            for item in items
        ])
        for item, matrix in zip(items, matrices):
            size = tuple(item["mask"].shape)
            depth, true = item["visual_hull_depth"], sphere(matrix, RADIUS, size=size)
            assert torch.equal(depth.isfinite(), item["mask"])
            assert (depth <= sphere(matrix, 0.8 * RADIUS, size=size)).all()
            in_front = (true - depth)[item["mask"]] / matrix[2, :3].norm()  # in cube edges
            assert in_front.mean() < 0.2


def test_script_goes_on_where_it_stopped(script, tmp_path):
    write_shapenet(tmp_path / "data/chair/a")
    write_shapenet(tmp_path / "data/chair/b")
    assert script(tmp_path / "data")[0] == 0
    paths = maps(tmp_path / "data/chair/a")
    before = [path.read_bytes() for path in paths]
    paths[1].unlink()
    paths[2].write_bytes(b"kept")
    code, out, _ = script(tmp_path / "data")
    assert code == 0 and "1 maps written, 1 objects had all of theirs" in out
    assert paths[1].read_bytes() == before[1] and paths[2].read_bytes() == b"kept"
    assert script(tmp_path / "data", "--overwrite")[0] == 0
    assert [path.read_bytes() for path in paths] == before


def test_object_that_fails_does_not_stop_the_rest(script, tmp_path):
    for model in ("a", "b", "c"):
        write_shapenet(tmp_path / "data/chair" / model)
    damaged = tmp_path / "data/chair/b/mask/0002.png"
    damaged.write_bytes(damaged.read_bytes()[:60])
    code, out, err = script(tmp_path / "data", "--workers", 2)
    assert code == 2 and "1 failed" in out
    assert err.startswith(f"error: {tmp_path / 'data/chair/b'}: ") and err.count("\n") == 1
    assert "0002.png" in err and "truncated" in err
    counts = [len(maps(tmp_path / "data/chair" / model)) for model in ("a", "b", "c")]
    assert counts == [4, 0, 4]


def test_script_takes_names_of_folders(script, tmp_path):
    write_shapenet(tmp_path / "data/chair/a")
    write_shapenet(tmp_path / "data/table/a")
    (tmp_path / "data/chair/a/mask").rename(tmp_path / "data/chair/a/silhouette")
    options = ("--classes", "chair", "--mask-folder", "silhouette", "--out-folder", "hull")
    assert script(tmp_path / "data", *options)[0] == 0
    written = sorted((tmp_path / "data").glob("*/*/hull/*.exr"))
    assert [path.parts[-4] for path in written] == ["chair"] * 4
    assert np.isfinite(read_depth(written[0])).any()


@pytest.mark.parametrize("arguments, words", [
    (["nowhere"], ["there is no folder", "nowhere"]),
    (["data", "--classes", "sofa"], ["sofa", "chair"]),
    (["data", "--workers", "0"], ["--workers must be 1 or more"]),
])  # fmt: skip
def test_bad_arguments_of_the_script(script, tmp_path, monkeypatch, capsys, arguments, words):
    write_shapenet(tmp_path / "data/chair/a")
    monkeypatch.chdir(tmp_path)
    try:
        code, _, err = script(*arguments)
    except SystemExit as exit:
        code, err = exit.code, capsys.readouterr().err
    assert code == 2
    for word in words:
        assert word in err
