"""Highlights: colours that depend on where a surface is seen from."""

from dataclasses import dataclass

import numpy as np

from im2mesh.synthetic.render import LIGHT, Scene

STRENGTH, EXPONENT = 0.55, 14.0  # of white that the middle of a highlight mixes in; how small it is


def _lamps():
    """Unit directions (5, 3) towards the lamps: the light of all scenes, and four all around."""
    azimuth, elevation = np.radians([20, 110, 200, 290]), np.radians(22)
    around = [np.cos(elevation) * np.cos(azimuth), np.full(4, np.sin(elevation)),
              np.cos(elevation) * np.sin(azimuth)]  # fmt: skip
    return np.concatenate([LIGHT[None] / np.linalg.norm(LIGHT), np.stack(around, 1)])


LAMPS = _lamps()


@dataclass(frozen=True)
class Shining:
    """A scene as one camera sees it when its surface shines, for ``render``.

    Phong's model: towards the eye v, a surface of unit normal n reflects a lamp in direction l as
    ``max(v . (2 (n . l) n - l), 0) ** EXPONENT`` where n . l > 0. No part casts a shadow; of the
    lamps, which are fixed in object space, the strongest counts.

    eye : (3,) float64, the camera's centre in object space.
    """

    scene: Scene
    eye: np.ndarray

    @property
    def corners(self):
        return self.scene.corners

    def cast(self, origins, directions):
        return self.scene.cast(origins, directions)

    def colours(self, points, face):
        """Colours (N, 3) in [0, 1] of surface points (N, 3) on the given faces (N,)."""
        normals = self.scene.normals[face]
        to_eye = self.eye - points
        to_eye /= np.linalg.norm(to_eye, axis=1, keepdims=True)
        facing = normals @ LAMPS.T
        mirrored = 2 * np.sum(normals * to_eye, axis=1)[:, None] * facing - to_eye @ LAMPS.T
        nearest = np.max(np.where(facing > 0, mirrored, 0), axis=1, initial=0)
        white = STRENGTH * nearest[:, None] ** EXPONENT
        return (1 - white) * self.scene.colours(points, face) + white
