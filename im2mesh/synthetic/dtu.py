"""One object in the DTU layout: many large views, world units, sparse points."""

import shutil
from pathlib import Path

import numpy as np

from im2mesh.errors import InputError
from im2mesh.files import atomic_path
from im2mesh.synthetic.cameras import framing_camera, spread_directions
from im2mesh.synthetic.cavities import filled, vessel
from im2mesh.synthetic.excavator import excavator
from im2mesh.synthetic.parcels import parcels
from im2mesh.synthetic.render import Scene, render
from im2mesh.synthetic.shine import Shining
from im2mesh.synthetic.tugboat import tugboat
from im2mesh.synthetic.writers import camera_arrays, save_image, surface_arrays, write_exr

SCALE, CENTRE = 120.0, (-37.0, 22.0, 640.0)  # DTU: world units are millimetres
ELEVATIONS = (-38, 62)  # degrees
DISTANCES = (2.3, 2.7)  # of the cameras from the object's centre, object units
SCENES = {"tugboat": tugboat, "excavator": excavator, "parcels": parcels, "vessel": vessel}
FRAME = 0.94  # share of the frame's width or height that the object fills


def make_dtu_scene(
    out_dir, *, n_views=32, size=(120, 160), seed=0, n_points=100_000, n_sparse=1500,
    supersample=3, name="scan1", parts=None, shine=False, overwrite=False,
):
    """Render one object into the DTU layout, ``<out_dir>/<name>/<name>/``.

    Written are ``image/``, ``mask/``, ``depth/`` (six-digit names), ``cameras.npz`` (float64, with
    inverses), ``pointcloud.npz`` (object space), ``pcl.npz`` (world space) and ``mesh.ply``, the
    coloured parts in object space, their hidden sides and hollows too, as they are without light.
    The same arguments give the same files, byte for byte.

    Parameters
    ----------
    size : (H, W) of the images in pixels.
    n_points : number of points of the evaluation cloud, uniform on the outer surface.
    n_sparse : number of sparse points on the surface; a twentieth as many again are outliers.
    supersample : see ``render``.
    parts : list of ``Part`` within [-0.45, 0.45]^3, such as one of ``SCENES`` gives; the tugboat
        by default.
    shine : put highlights on the images that move with the camera, see ``shine``.
    overwrite : replace a scene that is there already.

    Returns
    -------
    Path of the scene's folder.

    Raises
    ------
    InputError
        When the folder holds files already and ``overwrite`` is off, or cannot be written; for no
        views and for images that have fewer than two pixels along a side.
    """
    if n_views < 1 or min(size) < 2:
        raise InputError(
            f"cannot render {n_views} views of {size[1]}x{size[0]} pixels: there must be at least "
            "one view and two pixels along each side."
        )
    folder = Path(out_dir) / name / name
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise InputError(
            f"{folder} is not empty. Choose another folder, or add --overwrite to replace the "
            "scene in it."
        )
    for images in ("image", "mask", "depth"):  # fewer views must not leave old ones behind
        shutil.rmtree(folder / images, ignore_errors=True)

    rng = np.random.default_rng(seed)
    parts = tugboat() if parts is None else parts
    scene = Scene([filled(part) for part in parts])
    cameras = place_cameras(scene, n_views, size, rng)
    masks = []
    for i, camera in enumerate(cameras):
        seen = Shining(scene, camera.rays(np.zeros((1, 2)))[0]) if shine else scene
        view = render(seen, camera, size, supersample)
        masks.append(view.mask)
        _write(folder / "image" / f"{i:06d}.png", save_image, view.image)
        _write(folder / "mask" / f"{i:06d}.png", save_image, np.uint8(255) * view.mask)
        write_exr(folder / "depth" / f"{i:06d}.exr", view.depth)

    _write(folder / "cameras.npz", np.savez, **camera_arrays(cameras, list(vars(cameras[0]))))
    _write(folder / "pointcloud.npz", np.savez, **surface_arrays(scene, n_points, rng))
    _write(folder / "pcl.npz", np.savez, **sparse_points(scene, cameras, masks, n_sparse, rng))
    _write_ply(folder / "mesh.ply", parts)
    return folder


def place_cameras(scene, n_views, size, rng):
    """Cameras all around a scene, each zoomed and cropped so that it just fits its frame."""
    eyes = spread_directions(n_views, ELEVATIONS) * rng.uniform(*DISTANCES, (n_views, 1))
    targets = rng.uniform(-0.05, 0.05, (n_views, 3))
    scale_mat = np.diag([SCALE, SCALE, SCALE, 1.0])
    scale_mat[:3, 3] = CENTRE
    return [
        framing_camera(scene, eye, target, size, scale_mat, FRAME)
        for eye, target in zip(eyes, targets)
    ]


def sparse_points(scene, cameras, masks, count, rng):
    """What structure from motion might have found: the arrays of ``pcl.npz``.

    Surface points seen by two views or more, then count / 20 outliers that float around the
    object; these lie outside the visual hull, that is outside the mask of some view.
    """
    surface, faces = scene.sample_surface(2 * count, rng)
    seen = np.stack([_visible(scene, camera, surface) for camera in cameras], 1)
    tracked = np.flatnonzero(seen.sum(1) >= min(2, len(cameras)))[:count]
    stray = rng.uniform(-0.5, 0.5, (4 * count, 3))
    in_hull = np.all([_in_mask(c, mask, stray) for c, mask in zip(cameras, masks)], 0)
    stray = stray[~in_hull][: count // 20]

    points = np.concatenate([surface[tracked], stray])
    colours = np.concatenate([
        scene.colours(surface[tracked], faces[tracked]), rng.random((len(stray), 3))
    ])
    scale_mat = cameras[0].scale_mat
    arrays = {
        "points": (points @ scale_mat[:3, :3].T + scale_mat[:3, 3]).astype(np.float32),
        "colors": np.round(255 * colours).astype(np.uint8),
        "is_in_visual_hull": np.arange(len(points)) < len(tracked),
    }
    for i, camera in enumerate(cameras):
        arrays[f"visibility_{i:04d}"] = np.flatnonzero(_visible(scene, camera, points))
    return arrays


def _visible(scene, camera, points):
    """Whether points (N, 3) are within the frame and nothing lies before them."""
    pixels, depth = camera.project(points)
    origin, directions = camera.rays(pixels)
    nearest, _ = scene.cast(origin, directions)
    return (np.abs(pixels).max(1) <= 1) & (depth < nearest + 1e-4 * SCALE)


def _in_mask(camera, mask, points):
    """Whether the pixels nearest to points (N, 3) are in the mask."""
    pixels, _ = camera.project(points)
    height, width = mask.shape
    column, row = np.round((pixels + 1) / 2 * [width - 1, height - 1]).astype(int).T
    framed = np.abs(pixels).max(1) <= 1
    return framed & mask[row * framed, column * framed]


def _write(path, save, *args, **kwargs):
    with atomic_path(path) as temporary:
        save(temporary, *args, **kwargs)


def _write_ply(path, parts):
    """The parts, cut fine enough for vertex colours to show their textures."""
    import trimesh

    meshes = []
    for part in parts:
        vertices, faces = trimesh.remesh.subdivide_to_size(part.vertices, part.faces, 0.015)
        mesh = trimesh.Trimesh(vertices, faces, process=False)
        mesh.visual.vertex_colors = np.round(255 * part.colour(vertices)).astype(np.uint8)
        meshes.append(mesh)
    with atomic_path(path) as temporary:
        trimesh.util.concatenate(meshes).export(temporary)
