"""The conventions of cameras, pixels and rays, each pinned by closed forms."""

import math

import numpy as np
import pytest
import torch

from im2mesh.geometry import (
    camera_rays,
    cube_interval,
    image_to_index,
    image_to_position,
    index_to_image,
    look_at,
    look_up,
    object_to_image,
    perspective,
    pixel_centers,
    position_matrix,
    project,
)
from tests import plain

INF = math.inf


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def dtu_camera(azimuth=0.3, elevation=0.4, height=1200, width=1600):
    """(camera_mat, world_mat, scale_mat), (1, 4, 4) each, of the size and make of DTU's.

    ``world_mat`` is K [R | t] in pixels and millimetres, ``camera_mat`` takes pixels to [-1, 1].
    """
    center = np.array([-15.0, -40.0, 650.0])
    direction = np.array([
        math.sin(azimuth) * math.cos(elevation),
        -math.sin(elevation),
        -math.cos(azimuth) * math.cos(elevation),
    ])
    rotation_translation = look_at(center + 640 * direction, center, up=(0.1, -1, 0)).numpy()
    intrinsics = np.eye(4)
    intrinsics[:3, :3] = [[2892.3, 0, 823.2], [0, 2883.2, 619.1], [0, 0, 1]]
    to_unit = np.eye(4)
    to_unit[:2, :3] = [[2 / (width - 1), 0, -1], [0, 2 / (height - 1), -1]]
    scale = np.diag([492.0, 492.0, 492.0, 1.0])
    scale[:3, 3] = center + [4.0, -7.0, 11.0]
    world_mat = intrinsics @ rotation_translation
    assert 1e5 < np.abs(world_mat).max() < 1e7
    return tuple(torch.from_numpy(m)[None] for m in (to_unit, world_mat, scale))


def simple_camera(eye=(0.0, 0.0, -2.0), target=(0.0, 0.0, 0.0), up=(0.0, -1.0, 0.0)):
    """At ``eye``, field of view 90 degrees, object space = world space."""
    return object_to_image(perspective(90, 11, 11), look_at(eye, target, up), torch.eye(4))[None]


# ---- pixels --------------------------------------------------------------------------------------


def test_convention_corners_of_the_image_are_pixel_centres():
    corners = [[0, 0], [0, 7], [5, 0], [5, 7]]
    image = index_to_image(torch.tensor(corners), 6, 8)
    assert image.tolist() == [[-1, -1], [1, -1], [-1, 1], [1, 1]]
    centers = pixel_centers(6, 8)
    assert centers.shape == (48, 2)
    assert centers[[0, 7, 40, 47]].tolist() == [[-1, -1], [1, -1], [-1, 1], [1, 1]]


def test_convention_pixels_run_row_by_row_x_right_y_down():
    x, y = pixel_centers(3, 5).view(3, 5, 2).unbind(-1)
    torch.testing.assert_close(x, torch.tensor([-1, -0.5, 0, 0.5, 1]).expand(3, 5))
    torch.testing.assert_close(y, torch.tensor([[-1.0], [0], [1]]).expand(3, 5))


def test_convention_an_index_is_row_column():
    assert index_to_image(torch.tensor([0, 4]), 3, 5).tolist() == [1, -1]
    assert image_to_index(torch.tensor([1.0, -1.0]), 3, 5).tolist() == [0, 4]


def test_one_pixel_is_at_zero():
    assert pixel_centers(1, 1).tolist() == [[0, 0]]
    assert pixel_centers(1, 3).tolist() == [[-1, 0], [0, 0], [1, 0]]
    assert pixel_centers(3, 1).tolist() == [[0, -1], [0, 0], [0, 1]]


SIZES = [(h, w) for h in range(1, 6) for w in range(1, 6)] + [(16, 20), (63, 64), (127, 251)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("height, width", SIZES)
def test_look_up_gives_every_pixel_its_own_value(height, width, dtype):
    image = torch.arange(2 * height * width).view(2, height, width)
    pixels = pixel_centers(height, width, dtype=dtype).expand(2, -1, -1)
    assert pixels.dtype == dtype
    assert torch.equal(look_up(image, pixels), image.flatten(1))
    colors = torch.stack([image, -image, image + 1], dim=-1)
    assert torch.equal(look_up(colors, pixels), colors.flatten(1, 2))


def test_position_matrix_is_that_of_the_positions():
    pixels = torch.rand(50, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3 - 1.5
    homogeneous = torch.cat([pixels, torch.ones(50, 2, dtype=torch.float64)], dim=1)
    column, row, *rest = (homogeneous @ position_matrix(30, 47).T).unbind(dim=1)
    expected = image_to_position(pixels, 30, 47)
    assert torch.allclose(torch.stack([row, column], dim=1), expected)
    assert all((value == 1).all() for value in rest)


def test_look_up_in_images_of_different_sizes():
    images = [torch.arange(12).view(3, 4), torch.arange(20).view(5, 4)]
    corners = torch.tensor([[-1.0, -1], [1, 1]]).expand(2, -1, -1)
    assert look_up(images, corners).tolist() == [[0, 11], [0, 19]]
    same = images[0], 2 * images[0]
    assert torch.equal(look_up(same, corners), look_up(torch.stack(same), corners))


@pytest.mark.parametrize("height, width", [(1200, 1600), (1199, 1601), (300, 400), (2, 4097)])
def test_look_up_in_large_images(height, width):
    """Every pixel in float32, and the corners by name."""
    image = torch.arange(height * width, dtype=torch.int32).view(1, height, width)
    assert torch.equal(look_up(image, pixel_centers(height, width)[None]), image.flatten(1))
    corners = torch.tensor([[[-1.0, -1], [1, -1], [-1, 1], [1, 1]]])
    expected = [0, width - 1, (height - 1) * width, height * width - 1]
    assert look_up(image, corners).tolist() == [expected]


def test_look_up_takes_the_nearest_pixel():
    image = torch.arange(12).view(1, 3, 4)
    offset = torch.tensor([2 / 3, 1.0])  # of one pixel in x and y
    centers = pixel_centers(3, 4)[None]
    for part in ([0.49, 0.49], [-0.49, 0.49], [0.49, -0.49], [-0.49, -0.49]):
        moved = centers + torch.tensor(part) * offset
        assert torch.equal(look_up(image, moved), image.flatten(1))
    beyond = torch.tensor([[[-9.0, 0], [9, 0], [0.34, -9], [0.32, 9]]])
    assert look_up(image, beyond).tolist() == [[4, 7, 2, 10]]


def test_index_and_image_are_inverse_between_pixels():
    generator = torch.Generator().manual_seed(0)
    index = torch.rand(100, 2, generator=generator).double() * tensor([5, 8])
    x, y = index_to_image(index, 6, 9, dtype=torch.float64).unbind(-1)
    torch.testing.assert_close((y + 1) / 2 * 5, index[:, 0])
    torch.testing.assert_close((x + 1) / 2 * 8, index[:, 1])


# ---- cameras -------------------------------------------------------------------------------------


def test_convention_camera_looks_forward_along_z():
    points = tensor([[[0, 0, 0], [0, 0, 1], [0.3, 0.4, -1], [0, 0, -3]]])
    _, depth = project(points, simple_camera())
    torch.testing.assert_close(depth, tensor([[2, 3, 1, -1]]))


def test_convention_x_is_right_and_y_is_down():
    """World axes as the camera's: a point with larger x is further right, larger y lower."""
    pixels, _ = project(tensor([[[0, 0, 0], [1, 0, 0], [0, 1, 0]]]), simple_camera())
    torch.testing.assert_close(pixels, tensor([[[0, 0], [0.5, 0], [0, 0.5]]]))


def test_convention_depth_is_z_and_not_length():
    """A plane that faces the camera has one depth all over."""
    pixels = pixel_centers(5, 5, dtype=torch.float64)[None]
    origins, directions = camera_rays(pixels, simple_camera())
    points = origins + 1.5 * directions
    torch.testing.assert_close(points[..., 2], torch.full((1, 25), -0.5, dtype=torch.float64))
    assert directions.norm(dim=-1).max() > 1.7  # not normalised: sqrt(3) in the corners
    torch.testing.assert_close(directions[..., 2], torch.ones(1, 25, dtype=torch.float64))


def test_convention_order_of_the_matrices():
    """(x z, y z, z, 1) = camera_mat @ world_mat @ scale_mat @ (p, 1), with maps of every kind."""
    generator = torch.Generator().manual_seed(1)
    matrices = [torch.eye(4, dtype=torch.float64).repeat(3, 1, 1) for _ in range(3)]
    for matrix in matrices:
        matrix[:, :3] += 0.4 * torch.randn(3, 3, 4, generator=generator, dtype=torch.float64)
    points = torch.randn(3, 7, 3, generator=generator, dtype=torch.float64)
    pixels, depth = project(points, object_to_image(*matrices))
    for b in range(3):
        for n in range(7):
            p = np.append(points[b, n].numpy(), 1)
            camera, world, scale = (m[b].numpy() for m in matrices)
            xz, yz, z, one = camera @ (world @ (scale @ p))
            assert one == pytest.approx(1)
            assert depth[b, n].item() == pytest.approx(z)
            assert pixels[b, n].tolist() == pytest.approx([xz / z, yz / z])


def test_matrices_are_multiplied_in_float64():
    single = [m.float() for m in dtu_camera()]
    double = [m.double() for m in single]
    assert torch.equal(object_to_image(*single), object_to_image(*double))
    assert object_to_image(*single).dtype == torch.float64


def test_rays_come_from_the_inverse_matrices():
    cameras = [dtu_camera(azimuth, elevation) for azimuth, elevation in ((0.3, 0.4), (-1, 0.1))]
    matrices = [torch.cat(m) for m in zip(*cameras)]
    pixels = tensor([[[-1, -1], [1, -1], [0.2, 0.7]], [[0, 0], [1, 1], [-1, 0.3]]])
    origins, directions = camera_rays(pixels, object_to_image(*matrices))
    for b in range(2):
        for n in range(3):
            origin, direction = plain.ray(*pixels[b, n].tolist(), *(m[b].numpy() for m in matrices))
            assert origins[b, n].tolist() == pytest.approx(origin.tolist(), rel=1e-9)
            assert directions[b, n].tolist() == pytest.approx(direction.tolist(), rel=1e-7)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 2e-6), (torch.float64, 1e-11)])
def test_dtu_round_trips(dtype, tolerance):
    """Object point -> pixel and depth -> the same point, and back, with entries of 1e5."""
    generator = torch.Generator().manual_seed(0)
    points = (torch.rand(1, 200, 3, generator=generator) - 0.5).to(dtype)
    matrices = dtu_camera()
    matrix = object_to_image(*matrices)
    pixels, depth = project(points, matrix)
    assert (pixels.dtype, depth.dtype) == (dtype, dtype)
    assert depth.min() > 200 and depth.max() < 1100  # millimetres
    origins, directions = camera_rays(pixels, matrix)
    assert origins.dtype == directions.dtype == dtype
    assert (origins + depth[..., None] * directions - points).abs().max() < tolerance

    centers = pixel_centers(30, 40, dtype=dtype)[None]
    origins, directions = camera_rays(centers, matrix)
    pixels, depth = project(origins + 600 * directions, matrix)
    assert (pixels - centers).abs().max() < 10 * tolerance  # 1e-3 pixels of 1600
    assert (depth / 600 - 1).abs().max() < 10 * tolerance


def test_points_in_world_space():
    camera, world, scale = dtu_camera()
    points = tensor([[[0.1, 0.2, -0.3], [-0.4, 0, 0.2]]])
    in_world = points @ scale[:, :3, :3].mT + scale[:, None, :3, 3]
    by_object = project(points, object_to_image(camera, world, scale))
    by_world = project(in_world, camera @ world)
    torch.testing.assert_close(by_world, by_object)


def test_all_rays_start_at_the_camera_centre():
    eye = (0.3, -1.2, 2.0)
    matrix = simple_camera(eye, (0.1, 0, 0))
    origins, _ = camera_rays(pixel_centers(3, 3, dtype=torch.float64)[None], matrix)
    torch.testing.assert_close(origins, tensor(eye).expand(1, 9, 3))


def test_rays_are_differentiable_by_the_camera():
    matrix = object_to_image(*dtu_camera()).requires_grad_()
    pixels = tensor([[[0.3, -0.2]]])
    assert torch.autograd.gradcheck(lambda m: camera_rays(pixels, m), matrix, eps=1e-2, rtol=1e-4)


# ---- look_at and perspective ---------------------------------------------------------------------


@pytest.mark.parametrize("up", [(0, 1, 0), (0.2, -0.5, 1.0)])
def test_look_at(up):
    eye, target = np.array([1.0, 2.0, -3.0]), np.array([0.1, -0.2, 0.3])
    world_mat = look_at(eye, target, up).numpy()
    rotation = world_mat[:3, :3]
    assert rotation @ rotation.T == pytest.approx(np.eye(3), abs=1e-12)
    assert np.linalg.det(rotation) == pytest.approx(1)
    assert world_mat[3].tolist() == [0, 0, 0, 1]
    assert world_mat @ np.append(eye, 1) == pytest.approx([0, 0, 0, 1], abs=1e-12)
    distance = np.linalg.norm(target - eye)
    assert world_mat @ np.append(target, 1) == pytest.approx([0, 0, distance, 1], abs=1e-12)
    x, y, _ = rotation @ up
    assert x == pytest.approx(0, abs=1e-12) and y < 0  # up in the image is -y


@pytest.mark.parametrize("height, width", [(11, 21), (21, 11), (16, 16), (480, 640)])
def test_perspective(height, width):
    """The angle spans the longer side, pixels are square, and the axis meets the middle."""
    camera_mat = perspective(70, height, width)[None]
    longer = max(height, width)
    half = math.tan(math.radians(35))
    edge = tensor([[[half if width == longer else 0, half if height == longer else 0, 1]]])
    pixels, _ = project(5 * edge, camera_mat)
    assert pixels.max().item() == pytest.approx(1)
    _, directions = camera_rays(pixel_centers(height, width, dtype=torch.float64)[None], camera_mat)
    x, y = directions[0].view(height, width, 3)[..., :2].unbind(-1)
    torch.testing.assert_close(x.diff(dim=1), (2 * half / (longer - 1)) * torch.ones_like(x[:, 1:]))
    torch.testing.assert_close(y.diff(dim=0), (2 * half / (longer - 1)) * torch.ones_like(y[1:]))
    torch.testing.assert_close(camera_mat[0, 2:], torch.eye(4, dtype=torch.float64)[2:])


# ---- rays and the cube ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "origin, direction, expected",
    [
        # along an axis
        ((0, 0, -2), (0, 0, 1), (1.5, 2.5)),
        ((0, 0, 2), (0, 0, -1), (1.5, 2.5)),
        ((-2, 0.1, 0.2), (2, 0, 0), (0.75, 1.25)),
        ((0.49, -0.49, -2), (0, 0, 1), (1.5, 2.5)),
        ((0.51, 0, -2), (0, 0, 1), None),
        ((0, -0.51, -2), (0, 0, 1), None),
        # with zeros of the other sign
        ((0, 0, -2), (-0.0, -0.0, 1), (1.5, 2.5)),
        ((0.3, 0.3, -2), (-0.0, 0.0, 1), (1.5, 2.5)),
        ((0.51, 0, -2), (-0.0, 0.0, 1), None),
        ((-0.51, 0, -2), (-0.0, -0.0, 1), None),
        # within a face: counts as inside
        ((0.5, 0, -2), (0, 0, 1), (1.5, 2.5)),
        ((0.5, 0, -2), (-0.0, 0, 1), (1.5, 2.5)),
        ((-0.5, 0.5, -2), (0, -0.0, 1), (1.5, 2.5)),
        # oblique
        ((-2, -2, 0), (1, 1, 0), (1.5, 2.5)),
        ((-2, 0, 0), (1, 0.25, 0), (1.5, 2.0)),
        ((-1, -0.75, -0.75), (2, 1, 1), (0.25, 0.75)),
        ((-2, -1, 0), (1, 0.1, 0), None),
        ((0, -2, 0.2), (0.3, 1, 0), (1.5, 0.5 / 0.3)),
        # through a corner and through an edge only: nothing to search
        ((-1.5, -0.5, 0.5), (1, 1, 0), None),
        ((-0.5, 1.5, 0), (1, -1, 0), None),
        ((-1.0, 0.0, 0.5), (1, 1, 0), None),
        # from inside: starts at the camera
        ((0, 0, 0), (0, 0, 1), (0, 0.5)),
        ((0, 0, 0), (0, 0, -4), (0, 0.125)),
        ((0.4, 0.1, -0.2), (1, 1, 1), (0, 0.1)),
        # from a face inwards, outwards and along
        ((0, 0, -0.5), (0, 0, 1), (0, 1)),
        ((0, 0, 0.5), (0, 0, 1), None),
        ((0, 0, 0.5), (1, 0, 0), (0, 0.5)),
        # behind the camera
        ((0, 0, 2), (0, 0, 1), None),
        ((0, 0, 0.6), (0.1, 0.2, 1), None),
        ((1, 1, 1), (1, 1, 1), None),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cube_interval(origin, direction, expected, dtype):
    near, far, inside = cube_interval(
        torch.tensor([origin], dtype=dtype), torch.tensor([direction], dtype=dtype), padding=0
    )
    assert inside.item() == (expected is not None)
    assert (near.item(), far.item()) == pytest.approx(expected or (0, 0))
    assert near.dtype == far.dtype == dtype


def test_padding_is_split_between_both_sides():
    origins = tensor([[0, 0, -2], [0.54, 0, -2], [0.56, 0, -2]])
    directions = tensor([[0, 0, 1]] * 3)
    near, far, inside = cube_interval(origins, directions, padding=0.1)
    assert inside.tolist() == [True, True, False]
    torch.testing.assert_close(near, tensor([1.45, 1.45, 0]))
    torch.testing.assert_close(far, tensor([2.55, 2.55, 0]))


@pytest.mark.parametrize("scale", [1.0, 1e-3])  # directions of a depth in millimetres are short
def test_cube_interval_against_its_plain_twin(scale):
    generator = torch.Generator().manual_seed(0)
    origins = 1.6 * (torch.rand(600, 3, generator=generator, dtype=torch.float64) - 0.5)
    origins[:300] *= 3
    directions = scale * torch.randn(600, 3, generator=generator, dtype=torch.float64)
    directions[torch.rand(600, 3, generator=generator) < 0.2] = 0
    directions[:, 2] += scale * (directions == 0).all(1)
    near, far, inside = cube_interval(origins, directions, padding=0.1)
    kinds = set()
    for i in range(600):
        expected = plain.interval(origins[i].numpy(), directions[i].numpy(), 0.1)
        assert inside[i] == (expected is not None), i
        assert (near[i].item(), far[i].item()) == pytest.approx(expected or (0, 0)), i
        kinds.add((inside[i].item(), near[i].item() == 0))
    assert kinds == {(True, True), (True, False), (False, True)}


def test_cube_interval_takes_any_shape():
    origins = torch.zeros(2, 3, 4, 3)
    directions = torch.ones(2, 3, 4, 3)
    near, far, inside = cube_interval(origins, directions, padding=0)
    assert near.shape == far.shape == inside.shape == (2, 3, 4)
    assert inside.all() and far.eq(0.5).all()
