"""Exact pictures of a union of triangle meshes: colour, mask and depth by ray casting.

NumPy in float64 throughout. Projection, rays and pixel grid are written out once more on purpose:
data made here checks the conventions of ``im2mesh.geometry`` instead of sharing its mistakes.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.spatial import ConvexHull

LIGHT = np.array([0.35, 0.80, 0.49])  # towards the light, object space, unit length
AMBIENT = 0.68  # brightness of a surface that faces away from the light
MAX_RAYS = 2**16  # of the finer grid, cast together


@dataclass(frozen=True)
class Camera:
    """The three 4x4 float64 matrices of a view: object -> world -> camera -> image."""

    camera_mat: np.ndarray
    world_mat: np.ndarray
    scale_mat: np.ndarray

    def project(self, points):
        """Object points (N, 3) -> image points (N, 2) in [-1, 1] where seen, depths z (N,)."""
        matrix = self.camera_mat @ self.world_mat @ self.scale_mat
        xyz = points @ matrix[:3, :3].T + matrix[:3, 3]
        return xyz[:, :2] / xyz[:, 2:], xyz[:, 2]

    def rays(self, pixels):
        """Image points (N, 2) -> origin (3,), directions (N, 3), object space, per unit of z."""
        inverse = np.linalg.inv(self.camera_mat @ self.world_mat @ self.scale_mat)
        return inverse[:3, 3], np.c_[pixels, np.ones(len(pixels))] @ inverse[:3, :3].T


@dataclass(frozen=True)
class View:
    """image (H, W, 3) uint8, mask (H, W) bool, depth (H, W) float64, +inf where the mask is off."""

    image: np.ndarray
    mask: np.ndarray
    depth: np.ndarray


class Scene:
    """The union of closed parts, ready for ray casting.

    Attributes
    ----------
    triangles : (F, 3, 3) float64, corners of the faces of all parts
    normals : (F, 3) float64, their unit outward normals
    part_of_face : (F,) int, index into ``parts``
    """

    def __init__(self, parts):
        self.parts = list(parts)
        self.triangles = np.concatenate([part.vertices[part.faces] for part in self.parts])
        self.part_of_face = np.repeat(np.arange(len(parts)), [len(p.faces) for p in self.parts])
        a, b, c = self.triangles.transpose(1, 0, 2)
        normals = np.cross(b - a, c - a)
        doubled_area = np.linalg.norm(normals, axis=1)
        self.normals = normals / doubled_area[:, None]
        self._face_share = np.cumsum(doubled_area) / doubled_area.sum()
        self._first_hit = _caster(self.triangles)
        self._first_hit_of_part = [
            _caster(self.triangles[self.part_of_face == i]) for i in range(len(self.parts))
        ]

    @cached_property
    def corners(self):
        """(N, 3) corners of the convex hull: all that bounds a picture."""
        vertices = np.concatenate([part.vertices for part in self.parts])
        return vertices[ConvexHull(vertices).vertices]

    def cast(self, origins, directions):
        """First surface along rays that start outside.

        Parameters
        ----------
        origins, directions : (N, 3) float64 arrays, or such that broadcast to it

        Returns
        -------
        distance : (N,) in units of the direction's length, +inf for a miss. Embree, which works
            in float32, only names the triangle; the distance to its plane is float64.
        face : (N,) int, -1 for a miss
        """
        origins, directions = np.broadcast_arrays(origins, directions)
        face = self._first_hit(origins, directions)
        hit = face >= 0
        normal = self.normals[face[hit]]
        to_plane = _dot(self.triangles[face[hit], 0] - origins[hit], normal)
        distance = np.full(len(face), np.inf)
        distance[hit] = to_plane / _dot(directions[hit], normal)
        return distance, face

    def colours(self, points, face):
        """Colours (N, 3) in [0, 1] of surface points (N, 3) on the given faces (N,).

        Texture times a soft light that depends on the normal alone, so that every view of a point
        shows the same colour.
        """
        rgb = np.empty((len(points), 3))
        part_of_point = self.part_of_face[face]
        for i in np.unique(part_of_point):
            mine = part_of_point == i
            rgb[mine] = self.parts[i].colour(points[mine])
        light = AMBIENT + (1 - AMBIENT) * (0.5 + 0.5 * self.normals[face] @ LIGHT)
        return rgb * light[:, None]

    def sample_surface(self, count, rng):
        """Uniform random points on the outer surface, where no part covers another.

        Returns points (count, 3) float64 and their faces (count,).
        """
        points, faces = np.empty((0, 3)), np.empty(0, dtype=np.int64)
        while len(points) < count:
            face = np.searchsorted(self._face_share, rng.random(count))
            s, t = rng.random((2, count, 1))
            s, t = np.where(s + t > 1, 1 - s, s), np.where(s + t > 1, 1 - t, t)
            a, b, c = self.triangles[face].transpose(1, 0, 2)
            point = a + s * (b - a) + t * (c - a)
            outer = ~self.inside(point + 1e-5 * self.normals[face])
            points = np.concatenate([points, point[outer]])
            faces = np.concatenate([faces, face[outer]])
        return points[:count], faces[:count]

    def inside(self, points):
        """Whether points (N, 3) lie in any part; good to about 1e-6 of the surface.

        A ray that leaves a closed part meets one of its back faces first.
        """
        inside = np.zeros(len(points), dtype=bool)
        direction = np.array([0.4395, 0.7571, 0.4834])  # any that no face is likely parallel to
        for i, first_hit in enumerate(self._first_hit_of_part):
            corners = self.parts[i].vertices
            boxed = np.all((points > corners.min(0)) & (points < corners.max(0)), 1) & ~inside
            origins = points[boxed]
            face = first_hit(origins, np.broadcast_to(direction, origins.shape))
            leaves = self.normals[self.part_of_face == i][face] @ direction > 0
            inside[boxed] = (face >= 0) & leaves
        return inside


def _caster(triangles):
    """Function (origins, directions), (N, 3) each -> index (N,) of the first triangle, or -1."""
    # Ray casting is only for making data, so that what else imports this module needs no Embree.
    from embreex.mesh_construction import TriangleMesh
    from embreex.rtcore_scene import EmbreeScene

    scene = EmbreeScene()
    TriangleMesh(scene, triangles.astype(np.float32))

    def first_hit(origins, directions):
        if not len(origins):
            return np.empty(0, dtype=np.int32)
        unit = directions / np.sqrt(_dot(directions, directions))[:, None]
        return scene.run(origins.astype(np.float32), unit.astype(np.float32))

    return first_hit


def _dot(a, b):
    return np.einsum("ij,ij->i", a, b)


def pixel_grid(size):
    """Image points (H*W, 2) of the pixel centres, row by row; the outermost are at -1 and 1."""
    x, y = np.meshgrid(np.linspace(-1, 1, size[1]), np.linspace(-1, 1, size[0]))
    return np.stack([x.ravel(), y.ravel()], 1)


def render(scene, camera, size, supersample=1, blend=False, tolerance=0.0):
    """Picture of a scene on white, which lies in front of the camera.

    Mask and depth are those of the pixel centres, exactly. The colour of an object pixel is that
    of its centre, or the mean over it and the ``supersample``^2 points of a finer grid that hit
    the object too; white is never mixed in, unless ``blend``, as a photograph would, takes the
    mean over all points for every pixel.

    Parameters
    ----------
    size : (H, W), both at least 2
    supersample : int
    blend : bool
    tolerance : float
        Only pixels whose centre differs by that much or more, in some channel of [0, 1], from the
        centre of a pixel beside, above or below look at the finer grid; 0 for all.
    """
    height, width = size
    pixel = 2 / np.array([width - 1, height - 1])
    pixels = pixel_grid(size)

    def look(at):
        origin, directions = camera.rays(at)
        depth, face = scene.cast(origin, directions)
        hit = face >= 0
        points = origin + depth[hit, None] * directions[hit]
        return depth, hit, scene.colours(points, face[hit])

    extent, _ = camera.project(scene.corners)
    low, high = extent.min(0) - pixel, extent.max(0) + pixel
    framed = np.flatnonzero(np.all((pixels >= low) & (pixels <= high), 1))  # all else is white
    depth, mask = np.full(height * width, np.inf), np.zeros(height * width, dtype=bool)
    depth[framed], mask[framed], colours = look(pixels[framed])
    image = np.ones((height * width, 3))
    image[mask] = colours
    if supersample > 1:
        differs = _differs(image.T.reshape(3, height, width), tolerance).ravel()[framed]
        refined = framed[differs & (blend | mask[framed])]
        shift = (np.arange(supersample) + 0.5) / supersample - 0.5
        grid = pixel * np.stack(np.meshgrid(shift, shift), -1).reshape(-1, 1, 2)
        for some in np.array_split(refined, 1 + len(refined) * len(grid) // MAX_RAYS):
            _, hit, colours = look((pixels[some] + grid).reshape(-1, 2))
            seen = np.full((len(hit), 3), float(blend))
            seen[hit] = colours
            count = 1 + np.sum((hit | blend).reshape(len(grid), -1, 1), 0)
            image[some] = (image[some] + np.sum(seen.reshape(len(grid), -1, 3), 0)) / count
    return View(
        np.round(255 * image).astype(np.uint8).reshape(height, width, 3),
        mask.reshape(size),
        depth.reshape(size),
    )


def _differs(image, tolerance):
    """Which pixels (H, W) of an image (C, H, W) differ from one of their four neighbours."""
    below = np.any(np.abs(np.diff(image, axis=1)) >= tolerance, 0)
    beside = np.any(np.abs(np.diff(image, axis=2)) >= tolerance, 0)
    differs = np.zeros(image.shape[1:], dtype=bool)
    differs[1:] |= below
    differs[:-1] |= below
    differs[:, 1:] |= beside
    differs[:, :-1] |= beside
    return differs
