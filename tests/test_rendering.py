"""Pictures of an octahedron against closed forms; turntables; comparison with photographs."""

import math

import numpy as np
import pytest
import torch

from im2mesh import geometry
from im2mesh.dvr import rendering
from im2mesh.dvr.rendering import Renderer, Rendering, compare, turntable, up_axis
from tests.programs import octahedron

RADIUS = 0.3
SIGNS = np.array(np.meshgrid(*[[-1.0, 1]] * 3)).reshape(3, -1).T  # the faces' normals


def camera(eye=(1.1, 0.9, 1.3), height=24, width=30, view=30.0):
    return geometry.perspective(view, height, width) @ geometry.look_at(eye)


def rays(matrix, height, width):
    """Origins and directions of all pixels, float64, from the inverse matrix."""
    x, y = np.meshgrid(np.linspace(-1, 1, width), np.linspace(-1, 1, height))
    inverse = np.linalg.inv(matrix.numpy())
    return inverse[:3, 3], np.stack([x, y, np.ones_like(x)], -1) @ inverse[:3, :3].T


def true_octahedron(matrix, height, width, radius=RADIUS):
    """Depth, normals and length (in depth) of the chord of every pixel's ray; nan for a miss."""
    origin, directions = rays(matrix, height, width)
    rate, reach = directions @ SIGNS.T, radius - SIGNS @ origin
    crossings = reach / rate
    enter = np.where(rate < 0, crossings, -np.inf)
    leave = np.where(rate > 0, crossings, np.inf).min(-1)
    near = enter.max(-1)
    near = np.where(near < leave, near, np.nan)
    return near, SIGNS[enter.argmax(-1)] / math.sqrt(3), leave - near


@pytest.mark.parametrize("size", [(24, 30), (17, 9)])
def test_convention_picture_of_an_octahedron(size):
    matrix = camera(height=size[0], width=size[1])
    picture = Renderer(octahedron(RADIUS), n_steps=(400, 401)).render(matrix, *size)
    depth, normals, chord = true_octahedron(matrix, *size)
    hit = picture.hit.numpy()
    assert not hit[np.isnan(depth)].any()
    assert hit[chord > 0.01].all() and hit.sum() > 20  # a step is 1.1 * sqrt(3) / 399 or less

    np.testing.assert_allclose(picture.depth.numpy()[hit], depth[hit], atol=1e-4)
    assert np.isposinf(picture.depth.numpy()[~hit]).all()
    np.testing.assert_allclose(picture.normals.numpy()[hit], normals[hit], atol=1e-6)
    assert not picture.normals.numpy()[~hit].any()
    origin, directions = rays(matrix, *size)
    points = origin + depth[..., None] * directions
    rgb = 1 / (1 + np.exp(-4 * points))
    np.testing.assert_allclose(picture.rgb.numpy()[hit], rgb[hit], atol=1e-4)
    assert (picture.rgb.numpy()[~hit] == 1).all()


def test_convention_first_row_is_up_and_first_column_left():
    """The corner of the octahedron on the +y axis is at the top, that on the +x axis at the right
    of a camera on the +z axis whose up is +y."""
    picture = Renderer(octahedron(RADIUS), n_steps=(200, 201)).render(
        camera((0, 0, 2), 25, 25), 25, 25
    )
    rgb = picture.rgb.numpy()
    assert picture.hit[12].sum() == picture.hit[:, 12].sum() > 5
    rows, columns = picture.hit.nonzero().T.numpy()
    assert rgb[rows.min() + 1, 12, 1] > 0.6 > 0.4 > rgb[rows.max() - 1, 12, 1]  # green is y
    left, right = rgb[12, columns.min() + 1, 0], rgb[12, columns.max() - 1, 0]  # red is x
    assert sorted([left, right]) == [left, right] and right - left > 0.4


def test_any_resolution_is_rendered_in_chunks(monkeypatch):
    renderer = Renderer(octahedron(RADIUS), n_steps=(50, 51))
    whole = renderer.render(camera(), 24, 30)
    sizes = []
    march = renderer.model.find_surface
    monkeypatch.setattr(
        renderer.model, "find_surface", lambda o, *a, **k: sizes.append(len(o)) or march(o, *a, **k)
    )
    monkeypatch.setattr(rendering, "CHUNK", 100)
    parts = renderer.render(camera(), 24, 30)
    assert max(sizes) == 100 and sum(sizes) == 24 * 30
    for name in ("rgb", "depth", "normals", "hit"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name), rtol=0, atol=1e-6)


def test_random_numbers_of_steps_are_reproducible():
    renderer = Renderer(octahedron(RADIUS), n_steps=(10, 40))
    torch.manual_seed(0)
    first = renderer.render(camera(), 24, 30)
    torch.manual_seed(1)
    assert torch.equal(renderer.render(camera(), 24, 30).depth, first.depth)


def test_surface_is_that_of_the_threshold():
    """logit = slope * (radius - |p|_1) = log(tau / (1 - tau))"""
    model = octahedron(RADIUS, slope=20.0, tau=0.8)
    matrix = camera()
    depth, _, _ = true_octahedron(matrix, 24, 30, RADIUS - math.log(4) / 20)
    picture = Renderer(model, n_steps=(200, 201)).render(matrix, 24, 30)
    hit = picture.hit.numpy()
    assert hit.any()
    np.testing.assert_allclose(picture.depth.numpy()[hit], depth[hit], atol=1e-4)


def test_latent_of_the_object():
    """A shift of one unit of the first block widens the octahedron."""
    model = octahedron(RADIUS)
    with torch.no_grad():
        model.decoder.fc_out.weight[0, 6] = 20
    shifts = [torch.zeros(1, 16) for _ in model.decoder.blocks]
    shifts[0][0, 6] = 0.1
    matrix = camera()
    depth, _, _ = true_octahedron(matrix, 24, 30, RADIUS + 0.1)
    picture = Renderer(model, n_steps=(200, 201)).render(matrix, 24, 30, shifts)
    hit = picture.hit.numpy()
    assert hit.any()
    np.testing.assert_allclose(picture.depth.numpy()[hit], depth[hit], atol=1e-4)


def test_nothing_in_view_and_camera_inside():
    for model, eye in ((octahedron(-1), (1.1, 0.9, 1.3)), (octahedron(RADIUS), (0.01, 0.02, 0.1))):
        picture = Renderer(model, n_steps=(20, 21), background="black").render(camera(eye), 6, 5)
        assert not picture.hit.any() and picture.depth.isposinf().all()
        for kind in ("rgb", "depth", "normal"):
            assert (picture.image(kind, "black") == 0).all()
            assert (picture.image(kind) == 255).all()


def test_model_without_colors():
    picture = Renderer(octahedron(RADIUS, out_dim=1), n_steps=(50, 51)).render(camera(), 24, 30)
    assert picture.hit.any() and (picture.rgb == 1).all()
    assert torch.allclose(picture.normals[picture.hit].norm(dim=-1), torch.tensor(1.0))


def test_rendering_leaves_no_gradients():
    model = octahedron(RADIUS)
    picture = Renderer(model, n_steps=(20, 21)).render(camera(), 6, 5)
    assert not picture.rgb.requires_grad and not picture.depth.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())


# ---- pictures for people -------------------------------------------------------------------------


@pytest.fixture
def three_pixels():
    """Two hits at the depths 1 and 3, and a miss."""
    return Rendering(
        rgb=torch.tensor([[[0.0, 0.5, 1.0], [1.0, 0.2, 0.0], [1.0, 1.0, 1.0]]]),
        depth=torch.tensor([[1.0, 3.0, torch.inf]]),
        normals=torch.tensor([[[1.0, 0.0, 0.0], [0.0, -1.0, 0.0], [0.0, 0.0, 0.0]]]),
        hit=torch.tensor([[True, True, False]]),
    )


@pytest.mark.parametrize(
    "kind, first, second",
    [
        ("rgb", [0, 128, 255], [255, 51, 0]),
        ("depth", [255] * 3, [51] * 3),
        ("normal", [255, 128, 128], [128, 0, 128]),
    ],
)
def test_images(three_pixels, kind, first, second):
    image = three_pixels.image(kind)
    assert image.dtype == torch.uint8 and image.shape == (1, 3, 3)
    assert image[0].tolist() == [first, second, [255] * 3]
    assert three_pixels.image(kind, "black")[0].tolist() == [first, second, [0] * 3]


def test_depth_is_linear_between_nearest_and_farthest(three_pixels):
    three_pixels.depth = torch.tensor([[1.0, 2.0, 5.0]])
    three_pixels.hit[:] = True
    assert three_pixels.image("depth")[0, :, 0].tolist() == [255, round(255 * (1 - 0.2)), 51]
    three_pixels.depth[:] = 2.0
    assert (three_pixels.image("depth") == 255).all()


# ---- cameras -------------------------------------------------------------------------------------


def centers(matrices):
    """Where cameras stand, (V, 3)."""
    return np.stack([np.linalg.inv(matrix.numpy())[:3, 3] for matrix in matrices])


AXES = [(0.0, 1.0, 0.0), (0.0, 0.0, -2.0), (1.0, 2.0, -0.5)]


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("elevation", [0.0, 20.0, -60.0])
def test_turntable(axis, elevation):
    start = torch.tensor([0.3, -0.4, 0.9])
    center = np.array([0.1, -0.2, 0.05])
    matrices = turntable(12, 40, 60, elevation, axis, start, torch.tensor(center), 0.3)
    assert len(matrices) == 12
    up = np.array(axis) / np.linalg.norm(axis)
    eyes = centers(matrices) - center
    distance = np.linalg.norm(eyes[0])
    np.testing.assert_allclose(eyes @ up, distance * math.sin(math.radians(elevation)), atol=1e-9)
    flat = eyes - np.outer(eyes @ up, up)
    radius = distance * math.cos(math.radians(elevation))
    np.testing.assert_allclose(np.linalg.norm(flat, axis=1), radius)
    side = start.numpy() - up * (start.numpy() @ up)
    np.testing.assert_allclose(flat[0] / radius, side / np.linalg.norm(side), atol=1e-7)
    turn = np.cross(flat, np.roll(flat, -1, axis=0)) @ up / radius**2
    np.testing.assert_allclose(turn, math.sin(2 * math.pi / 12))  # evenly, anticlockwise

    points = torch.tensor(np.stack([center, center + 0.1 * up]))
    pixels, depth = geometry.project(points.expand(12, -1, -1), torch.stack(matrices))
    np.testing.assert_allclose(pixels[:, 0], 0, atol=1e-9)
    np.testing.assert_allclose(depth[:, 0], distance)
    np.testing.assert_allclose(pixels[:, 1, 0], 0, atol=1e-9)
    assert (pixels[:, 1, 1] < 0).all()  # the axis points up in the image


@pytest.mark.parametrize("axis", AXES)
def test_turntable_starts_anywhere_when_the_start_is_above(axis):
    matrices = turntable(3, 8, 8, 10.0, axis, 5 * torch.tensor(axis))
    assert np.isfinite(centers(matrices)).all()
    distances = np.linalg.norm(centers(matrices), axis=1)
    np.testing.assert_allclose(distances, distances[0])


def test_turntable_has_square_pixels_and_holds_the_object():
    (matrix,) = turntable(1, 40, 60, 20.0)
    angle = np.linspace(0, 2 * np.pi, 100)
    _, directions = geometry.camera_rays(torch.zeros(1, 1, 2, dtype=torch.float64), matrix[None])
    forward = directions[0, 0].numpy() / np.linalg.norm(directions[0, 0].numpy())
    right = np.cross(forward, [0.0, 1, 0])
    right /= np.linalg.norm(right)
    down = np.cross(forward, right)
    circle = 0.1 * (np.outer(np.cos(angle), right) + np.outer(np.sin(angle), down))
    pixels, _ = geometry.project(torch.tensor(circle)[None], matrix[None])
    in_pixels = pixels[0].numpy() * np.array([59, 39]) / 2
    lengths = np.linalg.norm(in_pixels, axis=1)
    np.testing.assert_allclose(lengths, lengths[0])


@pytest.mark.parametrize("height, width", [(50, 50), (40, 60), (61, 30)])
def test_turntable_just_holds_the_ball(height, width):
    """A ball seen from its own distance reaches the edges of the shorter side, and no further."""
    (matrix,) = turntable(1, height, width, 0.0, center=(0.1, 0.0, -0.2), radius=0.3)
    distance = float((torch.tensor(centers([matrix])[0]) - torch.tensor([0.1, 0, -0.2])).norm())
    angle = math.asin(0.3 / distance)
    touching = 0.3 * math.cos(angle)  # where the tangent cone touches: this far from the axis
    depth = distance - 0.3 * math.sin(angle)
    for side, size in (((1.0, 0, 0), width), ((0.0, 1.0, 0), height)):
        point = torch.tensor([0.1, 0, -0.2 + distance - depth]) + touching * torch.tensor(side)
        pixel, z = geometry.project(point[None, None].double(), matrix[None])
        assert float(z) == pytest.approx(depth, rel=1e-6)
        reach = float(pixel.abs().max())
        assert reach == pytest.approx((min(height, width) - 1) / (size - 1), rel=1e-6)


def test_up_axis_of_a_turntable():
    """... whose cameras have different intrinsics, folded into world_mat as in DTU."""
    for axis in AXES:
        matrices = turntable(5, 30, 50, 35.0, axis) + turntable(4, 50, 20, -35.0, axis)
        found = up_axis(torch.stack(matrices)).numpy()
        expected = np.array(axis) / np.linalg.norm(axis)
        assert np.linalg.norm(found) == pytest.approx(1)
        assert found @ expected > 0.99
        np.testing.assert_allclose(
            up_axis(torch.stack(turntable(8, 30, 50, 35.0, axis))).numpy(), expected, atol=1e-9
        )


def test_up_axis_where_the_cameras_do_not_agree():
    upright, upside_down = turntable(2, 8, 8, 0.0, (0.0, 0.0, 1.0))[0], None
    upside_down = torch.diag(torch.tensor([-1.0, -1, 1, 1], dtype=torch.float64)) @ upright
    found = up_axis(torch.stack([upright, upside_down]))
    assert found.tolist() == [0.0, 1.0, 0.0]


# ---- comparison ----------------------------------------------------------------------------------


def test_compare_is_psnr_in_the_mask_and_iou(three_pixels):
    image = torch.tensor([[[0, 0, 255], [255, 51, 0], [0, 0, 0]]], dtype=torch.uint8)
    both = compare(three_pixels, image, torch.tensor([[True, True, False]]))
    assert both == pytest.approx({"psnr": -10 * math.log10(0.25 / 6), "mask_iou": 1.0}, rel=1e-4)
    # The miss counts with the background, 1 against 0.
    other = compare(three_pixels, image, torch.tensor([[False, True, True]]))
    assert other == pytest.approx({"psnr": -10 * math.log10(0.5), "mask_iou": 1 / 3}, rel=1e-4)


def test_compare_without_a_mask_or_a_hit(three_pixels):
    image, nothing = torch.zeros(1, 3, 3, dtype=torch.uint8), torch.zeros(1, 3, dtype=torch.bool)
    metrics = compare(three_pixels, image, nothing)
    assert math.isnan(metrics["psnr"]) and metrics["mask_iou"] == 0
    three_pixels.hit[:] = False
    assert compare(three_pixels, image, nothing)["mask_iou"] == 1


def test_compare_looks_up_the_photograph_at_the_pixels_of_the_rendering():
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(256, (9, 13, 3), generator=generator, dtype=torch.uint8)
    mask = torch.rand(9, 13, generator=generator) > 0.4
    small = Rendering(  # every second row and third column, corners included
        rgb=image[::2, ::3].float() / 255,
        depth=torch.ones(5, 5),
        normals=torch.zeros(5, 5, 3),
        hit=mask[::2, ::3],
    )
    metrics = compare(small, image, mask)
    assert metrics["mask_iou"] == 1 and metrics["psnr"] > 100
