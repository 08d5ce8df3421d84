"""Cameras, pixels, rays and the object cube: the conventions of the whole project.

Frames
------
Object space: the object lies in the cube [-0.5, 0.5]^3. World space: ``scale_mat`` takes object
space to it (identity where data has none). Camera space: ``world_mat`` takes world space to it;
the camera looks along +z, x points right, y down. ``world_mat`` is an arbitrary affine map (DTU
folds the intrinsics into it), its rotation block need not be orthonormal.

Image coordinates: ``(x*z, y*z, z, 1) = camera_mat @ world_mat @ scale_mat @ (p, 1)``. The CENTRE
of the top-left pixel is (-1, -1), that of the bottom-right pixel is (1, 1).

Depth is the camera's z, never the length along the ray: because every map is affine, the point
of a ray at depth d is ``origin + d * direction`` with a direction that is not normalised.
Surfaces at +inf do not exist.

All functions run on the device of their inputs. Matrices are inverted in float64 whatever their
dtype, since DTU's mix entries of size 1e5 with ones.
"""

import math

import torch

CUBE_PADDING = 0.1  # surfaces are searched in a cube a little larger than the object's


def pixel_centers(height, width, device=None, dtype=torch.float32):
    """Image coordinates of all pixel centres of an image, row by row.

    Returns
    -------
    Tensor (height * width, 2)
        (x, y) in [-1, 1]; row ``i * width + j`` is the pixel in row i and column j.
    """
    rows, columns = torch.meshgrid(
        torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij"
    )
    index = torch.stack([rows, columns], dim=-1).reshape(-1, 2)
    return index_to_image(index, height, width, dtype)


def index_to_image(index, height, width, dtype=torch.float32):
    """Image coordinates of pixels.

    Parameters
    ----------
    index : Tensor (..., 2)
        (row, column), integers or real-valued positions between pixel centres.

    Returns
    -------
    Tensor (..., 2)
        (x, y) with x = 2 * column / (width - 1) - 1 and y likewise; 0 along an axis of one pixel.
    """
    row, column = index.to(torch.float64).unbind(-1)
    x = 2 * column / (width - 1) - 1 if width > 1 else torch.zeros_like(column)
    y = 2 * row / (height - 1) - 1 if height > 1 else torch.zeros_like(row)
    return torch.stack([x, y], dim=-1).to(dtype)


def image_to_index(pixels, height, width):
    """The pixel nearest to an image point; inverse of :func:`index_to_image`.

    Parameters
    ----------
    pixels : Tensor (..., 2)
        (x, y) image coordinates; points outside the image get the nearest border pixel.

    Returns
    -------
    Tensor (..., 2)
        int64 (row, column).
    """
    row, column = image_to_position(pixels.to(torch.float64), height, width).round().long().unbind(-1)
    return torch.stack([row.clamp(0, height - 1), column.clamp(0, width - 1)], dim=-1)


def image_to_position(pixels, height, width):
    """Where image points lie between pixel centres; the other inverse of :func:`index_to_image`.

    Parameters
    ----------
    pixels : Tensor (..., 2)
        (x, y) image coordinates.

    Returns
    -------
    Tensor (..., 2)
        Real-valued (row, column), beyond the image as well. Differentiable.
    """
    x, y = pixels.unbind(-1)
    return torch.stack([(y + 1) / 2 * (height - 1), (x + 1) / 2 * (width - 1)], dim=-1)


def position_matrix(height, width):
    """:func:`image_to_position` as a matrix (4, 4), float64, for homogeneous image coordinates.

    ``position_matrix(...) @ object_to_image(...)`` projects to (column, row), in this order.
    """
    x, y = (width - 1) / 2, (height - 1) / 2
    rows = [[x, 0, x, 0], [0, y, y, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    return torch.tensor(rows, dtype=torch.float64)


def look_up(images, pixels):
    """Values of images at image points, taken from the nearest pixel.

    Parameters
    ----------
    images : Tensor (B, H, W, ...) or sequence of B Tensors (H, W, ...)
        The sizes of a sequence's images may differ.
    pixels : Tensor (B, N, 2)

    Returns
    -------
    Tensor (B, N, ...)
        Exactly the stored value for the centre of every pixel, borders included.
    """
    sizes = [image.shape[:2] for image in images]
    if len(set(sizes)) == 1:
        index = image_to_index(pixels, *sizes[0])
    else:
        index = [image_to_index(p, *size) for p, size in zip(pixels, sizes)]
    return torch.stack([image[of_image.unbind(-1)] for image, of_image in zip(images, index)])


def object_to_image(camera_mat, world_mat, scale_mat):
    """``camera_mat @ world_mat @ scale_mat`` in float64; (..., 4, 4) each."""
    return camera_mat.double() @ world_mat.double() @ scale_mat.double()


def project(points, object_to_image_mat):
    """Project points into the image.

    Parameters
    ----------
    points : Tensor (B, N, 3)
    object_to_image_mat : Tensor (B, 4, 4)
        From :func:`object_to_image`; leave ``scale_mat`` out of it for points in world space.

    Returns
    -------
    pixels : Tensor (B, N, 2)
        Image coordinates, in the dtype of ``points``.
    depth : Tensor (B, N)
        Camera z; points with z <= 0 lie behind the camera and their pixels mean nothing.
    """
    matrix = object_to_image_mat.double()
    image = points.double() @ matrix[:, :3, :3].mT + matrix[:, None, :3, 3]
    depth = image[..., 2]
    return (image[..., :2] / depth[..., None]).to(points.dtype), depth.to(points.dtype)


def camera_rays(pixels, object_to_image_mat):
    """Rays of image points in object space (method, section 1).

    Parameters
    ----------
    pixels : Tensor (B, N, 2)
        Image coordinates.
    object_to_image_mat : Tensor (B, 4, 4)

    Returns
    -------
    origins : Tensor (B, N, 3)
        The camera centre, the same for all rays of an object (an expanded view).
    directions : Tensor (B, N, 3)
        Not normalised: ``origins + d * directions`` is the point of camera depth d.

    Differentiable with respect to the matrix.
    """
    matrix = object_to_image_mat.double()
    inverse = torch.linalg.inv(matrix[:, :3, :3])
    homogeneous = torch.cat([pixels.double(), torch.ones_like(pixels[..., :1]).double()], dim=-1)
    directions = homogeneous @ inverse.mT
    origins = -(inverse @ matrix[:, :3, 3:]).mT
    return origins.to(pixels.dtype).expand(directions.shape), directions.to(pixels.dtype)


def cube_interval(origins, directions, padding):
    """Depths between which rays are inside the cube [-0.5 - padding/2, 0.5 + padding/2]^3.

    Slab method; rays parallel to a face, cameras inside the cube (the interval then starts at 0)
    and cubes behind the camera (a miss) are right.

    Parameters
    ----------
    origins, directions : Tensor (..., 3)

    Returns
    -------
    near, far : Tensor (...)
        Depths; both 0 where the ray misses the cube.
    inside : Tensor (...), bool
        Whether the ray meets the cube in front of the camera.
    """
    half = 0.5 + padding / 2
    # For a parallel ray 1/0 gives infinities of the right signs; 0 * inf, a ray that runs inside
    # a face, gives nan and is counted as within the slab.
    to_low = (-half - origins) / directions
    to_high = (half - origins) / directions
    enter = torch.minimum(to_low, to_high).nan_to_num(nan=-math.inf, posinf=math.inf, neginf=-math.inf)
    leave = torch.maximum(to_low, to_high).nan_to_num(nan=math.inf, posinf=math.inf, neginf=-math.inf)
    near = enter.amax(-1).clamp_min(0)
    far = leave.amin(-1)
    inside = near < far
    return near.where(inside, 0), far.where(inside, 0), inside


def look_at(eye, target=(0.0, 0.0, 0.0), up=(0.0, 1.0, 0.0)):
    """``world_mat`` of a camera at ``eye`` that looks at ``target``.

    ``up`` points up in the image (the camera's -y); it must not be parallel to the view.

    Returns
    -------
    Tensor (4, 4), float64
        Rigid world -> camera map.
    """
    eye, target, up = (torch.as_tensor(v, dtype=torch.float64) for v in (eye, target, up))
    forward = torch.nn.functional.normalize(target - eye, dim=0)
    right = torch.nn.functional.normalize(torch.linalg.cross(forward, up), dim=0)
    rotation = torch.stack([right, torch.linalg.cross(forward, right), forward])
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, :3] = rotation
    matrix[:3, 3] = -rotation @ eye
    return matrix


def perspective(field_of_view, height, width):
    """``camera_mat`` of a pinhole camera with square pixels.

    Parameters
    ----------
    field_of_view : float
        Angle in degrees between the centres of the first and the last pixel along the longer side.

    Returns
    -------
    Tensor (4, 4), float64
    """
    focal = max(height - 1, width - 1) / math.tan(math.radians(field_of_view) / 2)
    return torch.diag(
        torch.tensor([focal / (width - 1), focal / (height - 1), 1, 1], dtype=torch.float64)
    )
