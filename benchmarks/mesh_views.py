"""How well a mesh file agrees with the views of a capture, without the project's own renderer.

    python -m benchmarks.mesh_views DATA/scan1/scan1 MESH.ply [--pictures SHEET.png]

DATA/scan1/scan1 is the folder of one object, with image/, mask/ and cameras.npz; MESH is in object
space, with colours of its vertices if it has any. One ray through the centre of each pixel is cast
onto the triangles by Embree (for colours, more with --supersample). The mask IoU and the PSNRs are means over the views.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from trimesh.ray.ray_pyembree import RayMeshIntersector

from benchmarks.common import markdown_table
from im2mesh import geometry
from im2mesh.data import ImagesField, PointCloudField
from im2mesh.data.fields import read_camera
from im2mesh.dvr.rendering import turntable, up_axis
from im2mesh.errors import InputError
from im2mesh.eval import evaluate_mesh
from im2mesh.files import atomic_path
from im2mesh.meshing import load_mesh

MAX_PIXELS = 640 * 480  # of a view; of larger ones every second, third ... row and column counts
GREY = 0.7  # in pictures of a mesh that has no colours
SIDES, TILE, GAP = 4, 480, 8  # pictures of a sheet, their size and the space between, in pixels
ELEVATION = 20.0  # degrees, of the cameras of a sheet
SAME_POINT = 1e-8  # vertices so close are one, object units


class Mesh:
    """Triangles that rays can be cast at.

    Parameters
    ----------
    mesh : trimesh.Trimesh
        In object space; may be empty.

    Attributes
    ----------
    vertices : (V, 3) float64
    faces : (F, 3) int64
    colors : (V, 3) float64 in [0, 1], or None

    Raises
    ------
    InputError
        When a vertex is not finite.
    """

    def __init__(self, mesh):
        self.vertices = np.asarray(mesh.vertices, dtype=np.float64).reshape(-1, 3)
        self.faces = np.asarray(mesh.faces, dtype=np.int64).reshape(-1, 3)
        if not np.isfinite(self.vertices).all():
            raise InputError("the mesh has vertices that are not finite. Make it again")
        self.colors = None
        if len(self.faces):
            self._embree = RayMeshIntersector(mesh)
            self._low, self._high = self.vertices.min(0), self.vertices.max(0)
            if mesh.visual.kind in ("vertex", "face"):
                self.colors = np.asarray(mesh.visual.vertex_colors)[:, :3] / 255

    def cast(self, origins, directions):
        """First face along each of the rays (N, 3) and where it is met.

        Returns
        -------
        face : (N,) int64, -1 for a miss
        weights : (N, 3) float64
            Barycentric: the point of a hit is ``weights @ corners``.
        """
        face, weights = np.full(len(origins), -1), np.zeros((len(origins), 3))
        if not len(self.faces):
            return face, weights
        # Rays start at the box around the mesh: Embree works in float32, cameras may be far away.
        centre = (self._low + self._high) / 2
        extent = np.maximum(self._high - self._low, 1e-6)
        near, _, inside = geometry.cube_interval(
            torch.from_numpy((origins - centre) / extent), torch.from_numpy(directions / extent), 0.02
        )
        rays = np.flatnonzero(inside.numpy())
        starts = origins[rays] + near.numpy()[rays, None] * directions[rays]
        first = self._embree.intersects_first(starts, directions[rays])
        rays, first, starts = rays[first >= 0], first[first >= 0], starts[first >= 0]
        face[rays] = first
        weights[rays] = _barycentric(starts, directions[rays], self.vertices[self.faces[first]])
        return face, weights

    def color_at(self, face, weights):
        """Interpolated colours (N, 3) of hits, from :meth:`cast`."""
        return np.einsum("nk,nkc->nc", weights, self.colors[self.faces[face]])

    def normals(self, face):
        """Unit normals (N, 3) of faces (N,); zero where a face has no area."""
        a, b, c = self.vertices[self.faces[face]].transpose(1, 0, 2)
        normals = np.cross(b - a, c - a)
        return normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-30)

    def topology(self):
        """What the triangles are joined to, whether or not the file shares their vertices.

        Returns
        -------
        dict of int
            ``components``; ``inward_components``, those of negative volume, such as the walls of
            a cavity inside; ``border_edges``, that do not belong to exactly two faces.
        """
        rounded = np.round(self.vertices / SAME_POINT).astype(np.int64)
        _, index = np.unique(rounded, axis=0, return_inverse=True)
        faces = index.reshape(-1)[self.faces]
        whole = np.all(faces != np.roll(faces, 1, axis=1), axis=1)
        faces, corners = faces[whole], self.vertices[self.faces[whole]]
        if not len(faces):
            return {"components": 0, "inward_components": 0, "border_edges": 0}
        edges = np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), axis=1)
        _, count = np.unique(edges @ [len(rounded), 1], return_counts=True)
        graph = coo_array((np.ones(len(edges)), edges.T), shape=2 * [len(rounded)])
        _, label = connected_components(graph, directed=False)
        label = np.unique(label[faces[:, 0]], return_inverse=True)[1]
        # Volumes about a vertex of the component itself: the sums stay small, and so their errors.
        first = np.unique(label, return_index=True)[1]
        a, b, c = (corners - corners[first, :1][label]).transpose(1, 0, 2)
        volumes = np.bincount(label, np.einsum("nk,nk->n", np.cross(a, b), c) / 6)
        return {
            "components": len(volumes),
            "inward_components": int(np.sum(volumes < 0)),
            "border_edges": int(np.sum(count != 2)),
        }


def measure(folder, mesh, images=None, views=None, supersample=1, n_points=100_000):
    """Compare a mesh with the views of an object and, where there is one, with the true cloud.

    Parameters
    ----------
    folder : str or Path
        Of the object.
    mesh : trimesh.Trimesh, or the str or Path of a file
        In object space. Colours are those of its vertices, interpolated.
    images : ImagesField or None
        How views are read; by default image/*.png and mask/*.png.
    views : list of int or None
        Only these.
    supersample : int
        Above 1, the colour of a pixel that is hit is the mean over its centre and those of
        ``supersample``^2 points around it that are hit. A pixel of a picture is a mean too: with
        its centre alone, even a perfect mesh with fine print stays at 25 dB.
    n_points : int
        Drawn on the mesh to compare it with the cloud.

    Returns
    -------
    dict
        - ``mask_iou``: of the pixels that are hit and the mask, mean over the views;
        - ``psnr``: dB of the colours where mask and hits overlap, mean over the views;
        - ``psnr_mask``: dB inside the mask, where a pixel that is not hit counts as white. Both
          are nan for a mesh without colours; a view without such pixels does not count;
        - ``views``: a list of dicts of these three and ``view``, for each;
        - ``vertices``, ``faces``, and what :meth:`Mesh.topology` counts;
        - ``chamferL1``, ``accuracy``, ``completeness``, ``normals`` of ``im2mesh.eval``, only
          where the folder has ``pointcloud.npz``.

    Raises
    ------
    InputError
        When a file cannot be read, there is no view of that number, or the mesh is not finite.
    """
    folder = Path(folder)
    images = ImagesField() if images is None else images
    mesh = load_mesh(mesh) if isinstance(mesh, (str, Path)) else mesh
    triangles = Mesh(mesh)
    rows = []
    for view in _chosen(folder, images, views):
        item = images.load(folder, view)
        rows.append({"view": view, **_compare(triangles, item, supersample)})
    found = {
        name: _mean([row[name] for row in rows]) for name in ("mask_iou", "psnr", "psnr_mask")
    }
    found |= {"views": rows, "vertices": len(triangles.vertices), "faces": len(triangles.faces)}
    found |= triangles.topology()
    if (folder / "pointcloud.npz").exists():
        cloud = PointCloudField().load(folder)
        metrics = evaluate_mesh(mesh, cloud["points"].numpy(), cloud["normals"].numpy(), n_points)
        found |= {k: metrics[k] for k in ("chamferL1", "accuracy", "completeness", "normals")}
    return found


def contact_sheet(folder, mesh, images=None, size=TILE):
    """A mesh from four sides, its colours above, the normals of its faces below.

    The cameras stand on a turntable around the mesh, whose axis is that of the capture and whose
    first side is that of its first camera. Normals (x, y, z) in [-1, 1] are red, green, blue.

    Parameters
    ----------
    folder, mesh, images : see :func:`measure`
    size : int
        Pixels along a side of each picture.

    Returns
    -------
    uint8 array (H, W, 3)
    """
    folder = Path(folder)
    triangles = Mesh(load_mesh(mesh) if isinstance(mesh, (str, Path)) else mesh)
    images = ImagesField() if images is None else images
    cameras = [read_camera(folder / "cameras.npz", view) for view in images.views(folder)]
    matrices = torch.stack([_matrix(camera) for camera in cameras])
    eyes, _ = geometry.camera_rays(torch.zeros(len(matrices), 1, 2, dtype=torch.float64), matrices)
    center, radius = np.zeros(3), 0.5
    if len(triangles.faces):
        center = (triangles.vertices.min(0) + triangles.vertices.max(0)) / 2
        radius = np.linalg.norm(triangles.vertices - center, axis=1).max()
    turned = turntable(
        SIDES, size, size, ELEVATION, up_axis(matrices), eyes[0, 0], torch.from_numpy(center), radius
    )
    sheet = np.full((2 * size + 3 * GAP, SIDES * (size + GAP) + GAP, 3), 255, dtype=np.uint8)
    for side, camera in enumerate(turned):
        left = GAP + side * (size + GAP)
        for row, picture in enumerate(_pictures(triangles, camera, size)):
            top = GAP + row * (size + GAP)
            sheet[top : top + size, left : left + size] = picture
    return sheet


def _pictures(triangles, camera, size):
    """Colours and normals on white, uint8 (size, size, 3), means of 2x2 rays for each pixel."""
    pixels = geometry.pixel_centers(2 * size, 2 * size, dtype=torch.float64)
    face, weights = triangles.cast(*_rays(pixels, camera))
    hit = face >= 0
    colors, normals = np.ones((2, len(face), 3))
    if hit.any():
        colors[hit] = GREY if triangles.colors is None else triangles.color_at(face[hit], weights[hit])
        normals[hit] = (triangles.normals(face[hit]) + 1) / 2
    for values in (colors, normals):
        means = values.reshape(size, 2, size, 2, 3).mean((1, 3))
        yield np.round(255 * means).astype(np.uint8)


def _compare(triangles, item, supersample):
    """The three figures of one view."""
    image, mask = item[""], item["mask"]
    height, width = mask.shape
    step = int(np.ceil(np.sqrt(height * width / MAX_PIXELS)))
    pixels = geometry.pixel_centers(height, width, dtype=torch.float64).view(height, width, 2)
    pixels, image, mask = (values[::step, ::step] for values in (pixels, image, mask))
    pixels, matrix = pixels.reshape(-1, 2), _matrix(item)
    mask, true = mask.reshape(-1).numpy(), image.reshape(-1, 3).numpy() / 255
    face, weights = triangles.cast(*_rays(pixels, matrix))
    hit = face >= 0
    union = np.sum(mask | hit)
    found = {"mask_iou": np.sum(mask & hit) / union if union else 1.0, "psnr": np.nan}
    if len(triangles.faces) and triangles.colors is None:
        return found | {"psnr_mask": np.nan}
    squared = np.square(1 - true).mean(1)
    both = mask & hit
    if both.any():
        colors = triangles.color_at(face[both], weights[both])
        if supersample > 1:
            spacing = 2 / np.maximum([width - 1, height - 1], 1)
            colors = _mean_with(colors, triangles, pixels[both], matrix, spacing, supersample)
        squared[both] = np.square(colors - true[both]).mean(1)
        found["psnr"] = _decibel(squared[both])
    return found | {"psnr_mask": _decibel(squared[mask]) if mask.any() else np.nan}


def _mean_with(colors, triangles, pixels, matrix, spacing, supersample):
    """Means (N, 3) of the colours of pixels' centres and of those points around that are hit."""
    count, total = np.ones((len(colors), 1)), colors
    shift = (np.arange(supersample) + 0.5) / supersample - 0.5
    for offset in np.stack(np.meshgrid(shift, shift), -1).reshape(-1, 2):
        face, weights = triangles.cast(*_rays(pixels + torch.from_numpy(offset * spacing), matrix))
        hit = face >= 0
        total[hit] += triangles.color_at(face[hit], weights[hit])
        count[hit] += 1
    return total / count


def _barycentric(origins, directions, corners):
    """Weights (N, 3) of the corners (N, 3, 3) at the points where rays meet their planes."""
    a, b, c = corners.transpose(1, 0, 2)
    along_b, along_c, shift = b - a, c - a, origins - a
    normal = np.cross(directions, along_c)
    determinant = np.einsum("nk,nk->n", along_b, normal)
    determinant = np.where(np.abs(determinant) < 1e-30, 1e-30, determinant)
    across = np.cross(shift, along_b)
    at_b = np.clip(np.einsum("nk,nk->n", shift, normal) / determinant, 0, 1)
    at_c = np.clip(np.einsum("nk,nk->n", directions, across) / determinant, 0, 1 - at_b)
    return np.stack([1 - at_b - at_c, at_b, at_c], axis=1)


def _chosen(folder, images, views):
    known = images.views(folder)
    for view in known if views is None else views:
        if view not in known:
            raise InputError(f"{folder}: there is no view {view}; views are {known[0]} to {known[-1]}")
    return known if views is None else views


def _matrix(camera):
    return geometry.object_to_image(camera["camera_mat"], camera["world_mat"], camera["scale_mat"])


def _rays(pixels, matrix):
    origins, directions = geometry.camera_rays(pixels[None], matrix[None])
    return origins[0].numpy(), directions[0].numpy()


def _decibel(squared):
    return float(-10 * np.log10(np.maximum(squared.mean(), 1e-10)))


def _mean(values):
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else np.nan


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", metavar="FOLDER", help="of one object")
    parser.add_argument("mesh", metavar="MESH.ply")
    parser.add_argument("--pictures", metavar="SHEET.png", help="write the mesh from four sides")
    parser.add_argument("--views", type=int, nargs="+", metavar="N", help="only these (all)")
    parser.add_argument(
        "--supersample", type=int, default=1, metavar="N",
        help="colours are means over N x N more rays for each pixel (1: its centre alone)",
    )
    parser.add_argument("--each", action="store_true", help="print the figures of each view as well")
    parser.add_argument("--image-folder", default="image", help="(image)")
    parser.add_argument("--image-extension", default="png", help="(png)")
    parser.add_argument("--mask-folder", default="mask", help="(mask)")
    parser.add_argument("--mask-extension", default="png", help="(png)")
    args = parser.parse_args()
    if args.supersample < 1:
        parser.error("--supersample must be 1 or more")
    images = ImagesField(
        img_folder=args.image_folder, img_extension=args.image_extension,
        mask_folder=args.mask_folder, mask_extension=args.mask_extension,
    )
    try:
        mesh = load_mesh(args.mesh)
        found = measure(args.folder, mesh, images, args.views, args.supersample)
        if args.pictures:
            with atomic_path(args.pictures) as path:
                Image.fromarray(contact_sheet(args.folder, mesh, images)).save(path)
    except InputError as err:
        print(f"error: {err}", file=sys.stderr)
        return 2
    views = found.pop("views")
    if args.each:
        print(markdown_table(list(views[0]), [_shown(view).values() for view in views]) + "\n")
    print(markdown_table(("", Path(args.mesh).name), _shown(found).items()))
    return 0


def _shown(found):
    """The numbers as text: more digits than the table would give them."""
    return {
        name: f"{value:.2f}" if "psnr" in name else f"{value:.4f}" if isinstance(value, float) else value
        for name, value in found.items()
    }


if __name__ == "__main__":
    sys.exit(main())
