"""The files of a dataset: images, float maps, arrays and cameras."""

import numpy as np
from PIL import Image

from im2mesh.files import atomic_path


def write_exr(path, array):
    """Write an (H, W) map as the single float32 channel ``Z`` of an EXR file; inf survives."""
    with atomic_path(path) as temporary:
        save_exr(temporary, array)


def save_exr(path, array):
    """As :func:`write_exr`, though a program killed meanwhile leaves half a file."""
    import OpenEXR

    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    channels = {"Z": np.ascontiguousarray(array, dtype=np.float32)}
    with OpenEXR.File(header, channels) as file:
        file.write(str(path))


def save_image(path, array, **options):
    """Write a uint8 array (H, W) or (H, W, 3) in the format that the suffix names."""
    Image.fromarray(array).save(path, **options)


def camera_arrays(cameras, names):
    """Content of ``cameras.npz``: the named matrices of each camera and their inverses."""
    arrays = {}
    for i, camera in enumerate(cameras):
        for name in names:
            matrix = getattr(camera, name)
            arrays[f"{name}_{i}"] = matrix
            arrays[f"{name}_inv_{i}"] = np.linalg.inv(matrix)
    return arrays


def surface_arrays(scene, n_points, rng):
    """Content of ``pointcloud.npz``: points uniform on the outer surface and their normals."""
    points, faces = scene.sample_surface(n_points, rng)
    return {
        "points": points.astype(np.float32), "normals": scene.normals[faces].astype(np.float32)
    }
