"""A tiny object folder in the DTU layout, exact because the object is a sphere."""

import numpy as np
import OpenEXR
from PIL import Image

RADIUS = 0.35  # object space
SCALE = np.array([[200.0, 0, 0, 30], [0, 200, 0, -20], [0, 0, 200, 600], [0, 0, 0, 1]])


def write_exr(path, depth):
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    with OpenEXR.File(header, {"Z": depth}) as exr:
        exr.write(str(path))


def look_at(eye, target):
    """World -> camera, (4, 4): x right, y down, z forward; the world's -z is up."""
    forward = (target - eye) / np.linalg.norm(target - eye)
    right = np.cross([0.0, 0, 1], forward)
    right /= np.linalg.norm(right)
    world_mat = np.eye(4)
    world_mat[:3, :3] = right, np.cross(forward, right), forward
    world_mat[:3, 3] = -world_mat[:3, :3] @ eye
    return world_mat


def write_sphere_scene(folder, n_views=5, size=(16, 20)):
    """Write one object folder: images, masks, depth, cameras, both point clouds.

    The sphere has radius ``RADIUS`` in object space and the colour (normal + 1) / 2; view i looks
    at it from azimuth i / n_views of a turn. Sparse point k is seen in view k % n_views; every
    third point is outside the visual hull.
    """
    height, width = size
    for name in ("image", "mask", "depth"):
        (folder / name).mkdir(parents=True)
    camera_mat = np.diag([5.0 * height / width, 5.0, 1, 1])
    x, y = np.meshgrid(np.linspace(-1, 1, width), np.linspace(-1, 1, height))
    cameras = {}
    for view in range(n_views):
        azimuth = 2 * np.pi * view / n_views
        eye = SCALE[:3, 3] + 480 * np.array([np.cos(azimuth), np.sin(azimuth), -0.4])
        world_mat = look_at(eye, SCALE[:3, 3])
        cameras |= {f"camera_mat_{view}": camera_mat, f"world_mat_{view}": world_mat}
        cameras |= {f"scale_mat_{view}": SCALE}
        to_object = np.linalg.inv(camera_mat @ world_mat @ SCALE)
        origin = to_object[:3, 3]
        rays = np.stack([x, y, np.ones_like(x)], -1) @ to_object[:3, :3].T
        # |origin + d * ray| = RADIUS
        a, b, c = (rays**2).sum(-1), rays @ origin, origin @ origin - RADIUS**2
        mask = b**2 > a * c
        d = (-b - np.sqrt(np.where(mask, b**2 - a * c, 0))) / a
        normals = (origin + d[..., None] * rays) / RADIUS
        image = np.where(mask[..., None], (normals + 1) / 2 * 255, 255).round().astype(np.uint8)
        Image.fromarray(image).save(folder / f"image/{view:06d}.png")
        Image.fromarray(mask.astype(np.uint8) * 255).save(folder / f"mask/{view:03d}.png")
        depth = np.where(mask, d, np.inf).astype(np.float32)
        write_exr(folder / f"depth/{view:06d}.exr", depth)
    np.savez(folder / "cameras.npz", **cameras)

    normals = np.random.default_rng(0).normal(size=(60, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    points = RADIUS * normals
    np.savez(folder / "pointcloud.npz", points=points, normals=normals)
    seen = {f"visibility_{view:04d}": np.arange(view, 60, n_views) for view in range(n_views)}
    np.savez(
        folder / "pcl.npz",
        points=points @ SCALE[:3, :3].T + SCALE[:3, 3],
        colors=np.zeros((60, 3), np.uint8),
        is_in_visual_hull=np.arange(60) % 3 != 0,
        **seen,
    )
