"""Where to look at an object from."""

import numpy as np

from im2mesh.geometry import look_at
from im2mesh.synthetic.render import Camera


def spread_directions(count, elevations, start=(50 / 360, 0.63)):
    """Directions (count, 3), unit length, spread evenly between two elevations in degrees.

    They follow a low-discrepancy sequence: the first few cover all sides as evenly as all do.
    ``start``, two numbers in [0, 1), turns and shifts it.
    """
    i = np.arange(count)
    azimuth = 2 * np.pi * (start[0] + 0.5698402910 * i % 1)
    lowest, highest = np.sin(np.radians(elevations))
    sine = lowest + (highest - lowest) * ((start[1] + 0.7548776662 * i) % 1)
    cosine = np.sqrt(1 - sine**2)
    return np.stack([cosine * np.cos(azimuth), sine, cosine * np.sin(azimuth)], 1)


def framing_camera(scene, eye, target, size, scale_mat, fill):
    """Camera zoomed and cropped so that the object just fits the frame.

    eye, target : (3,) points in object space
    size : (H, W) of the image
    fill : share of the frame's width or height that the object takes up
    """
    scale, centre = scale_mat[:3, :3], scale_mat[:3, 3]
    world_mat = look_at(scale @ eye + centre, scale @ target + centre).numpy()
    pinhole, _ = Camera(np.eye(4), world_mat, scale_mat).project(scene.corners)
    low, high = pinhole.min(0), pinhole.max(0)
    steps = np.array([size[1] - 1, size[0] - 1])
    focal = 2 * np.min(fill * steps / (high - low)) / steps  # pixels are square
    camera_mat = np.diag([*focal, 1.0, 1.0])
    camera_mat[:2, 2] = -focal * (low + high) / 2
    return Camera(camera_mat, world_mat, scale_mat)
