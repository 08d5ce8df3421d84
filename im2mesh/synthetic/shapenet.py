"""Endless objects in the layout of ShapeNet, as single-view reconstruction learns from."""

import shutil
import signal
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import yaml
from tqdm import tqdm

from im2mesh.errors import InputError
from im2mesh.files import atomic_path
from im2mesh.geometry import look_at
from im2mesh.synthetic.cameras import framing_camera, spread_directions
from im2mesh.synthetic.categories import CATEGORIES, normalised
from im2mesh.synthetic.render import Camera, Scene, render
from im2mesh.synthetic.writers import camera_arrays, save_exr, save_image, surface_arrays
from im2mesh.visual_hull import visual_hull_depths

ELEVATIONS = (-25, 70)  # degrees, of the supervision views
DISTANCES = (2.0, 2.6)  # of their cameras from the object's centre
TOLERANCE = 0.04  # see ``render``
FILL = 0.9  # share of their width or height that the object takes up

# The input pictures are like those of Choy et al. 2016 (3D-R2N2).
INPUT_SIZE = 137  # pixels
INPUT_ELEVATIONS = (25, 30)  # degrees
INPUT_FOCAL = 2.19  # half widths of the picture: a lens of 35 mm before 32 mm of film
INPUT_DISTANCES = (2.55, 3.4)  # radii of the object; it fits the frame from 2.51 on

# Of twenty objects in a row; every split has some as soon as a class has three.
SPLITS = ("train", "test", "val") + 2 * (6 * ("train",) + ("test",)) + 3 * ("train",)


@dataclass(frozen=True)
class Recipe:
    """What decides on an object's files, together with its class and number.

    n_views, size : supervision views and their width and height in pixels
    n_input_views : input pictures, of ``INPUT_SIZE`` pixels
    n_points : of the evaluation cloud
    supersample : see ``render``
    """

    seed: int = 0
    n_views: int = 24
    size: int = 96
    n_input_views: int = 24
    n_points: int = 30_000
    supersample: int = 2


def make_shapenet_dataset(
    out_dir, n_objects=100, classes=None, recipe=Recipe(), n_workers=1, overwrite=False,
):
    """Render objects of synthetic categories into ``<out_dir>/<class>/<number>/``.

    Each gets ``image/``, ``mask/``, ``depth/``, ``visual_hull_depth/`` and ``cameras.npz`` for
    supervision, ``img_choy2016/`` for input and ``pointcloud.npz``; world space is object space.
    Every object is a function of the recipe, its class and its number alone, byte for byte: more
    objects or classes come on top of what is there. An object's folder appears when it is
    complete, so that an interrupted run goes on where it stopped.

    Parameters
    ----------
    n_objects : objects per class: of 20 in a row 16 for training, 1 for validation, 3 for tests.
    classes : names from ``CATEGORIES``; all by default.
    n_workers : number of processes.
    overwrite : make objects again that are there already.

    Returns
    -------
    Number of objects made.

    Raises
    ------
    InputError
        For numbers that make no sense and unknown classes, when the folder was made by another
        recipe, and when it cannot be written.
    """
    out_dir, classes = Path(out_dir), list(CATEGORIES) if classes is None else list(classes)
    _check(n_objects, classes, recipe, n_workers)
    _keep_recipe(out_dir / "recipe.yaml", recipe)
    jobs = [
        (out_dir / category / f"{number:04d}", category, number, recipe)
        for number in range(n_objects) for category in classes
    ]
    jobs = [job for job in jobs if overwrite or not job[0].is_dir()]
    pool = ProcessPoolExecutor(n_workers, initializer=_start_worker)
    try:
        futures = [pool.submit(write_object, *job) for job in jobs]
        for future in tqdm(as_completed(futures), total=len(jobs), unit="object", disable=None):
            future.result()
    finally:
        pool.shutdown(cancel_futures=True)

    for category in classes:
        for split in dict.fromkeys(SPLITS):
            names = [f"{k:04d}\n" for k in range(n_objects) if SPLITS[k % len(SPLITS)] == split]
            _write_text(out_dir / category / f"{split}.lst", "".join(names))
    there = [category for category in CATEGORIES if (out_dir / category).is_dir()]
    names = {category: {"id": category, "name": category} for category in there}
    _write_text(out_dir / "metadata.yaml", yaml.safe_dump(names))
    return len(jobs)


def _check(n_objects, classes, recipe, n_workers):
    unknown = [name for name in classes if name not in CATEGORIES]
    if unknown or not classes:
        raise InputError(
            f"classes: there is no category {', '.join(unknown) or 'named'}. Known are "
            f"{', '.join(CATEGORIES)}."
        )
    at_least = {"objects per class": (n_objects, 1), "workers": (n_workers, 1)}
    lowest = dict(seed=0, n_views=1, size=2, n_input_views=1, n_points=1, supersample=1)
    at_least |= {name: (value, lowest[name]) for name, value in asdict(recipe).items()}
    for name, (value, low) in at_least.items():
        if value < low:
            raise InputError(f"{name}: {value} is too small; it must be at least {low}.")


def _keep_recipe(path, recipe):
    """Note down what a folder is made by, and refuse to mix it with anything else."""
    text = yaml.safe_dump(asdict(recipe), sort_keys=False)
    try:
        made_by = path.read_text()
    except FileNotFoundError:
        _write_text(path, text)
        return
    except OSError as err:
        raise InputError(f"cannot read {path}: {err.strerror or err}.") from err
    if made_by != text:
        raise InputError(
            f"{path}: the objects in this folder were made with other settings "
            f"({', '.join(made_by.split(chr(10))[:-1])}). Give the same ones, or choose another "
            "folder."
        )


def _start_worker():
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process hears Ctrl-C and ends us
    torch.set_num_threads(1)


# ---------------------------------------------------------------- one object


def make_scene(category, number, seed=0):
    """The object itself, in object space: a ``Scene``."""
    rng, *_ = _generators(category, number, seed)
    return Scene(normalised(CATEGORIES[category](rng)))


def _generators(category, number, seed):
    """Random numbers for shape, views, input views and surface points."""
    sequence = np.random.SeedSequence([seed, number, *category.encode()])
    return [np.random.default_rng(child) for child in sequence.spawn(4)]


def write_object(folder, category, number, recipe):
    """Write one object into ``folder``, in full or not at all.

    Raises
    ------
    InputError
        When the folder cannot be written.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        for name in ("image", "mask", "depth", "visual_hull_depth", "img_choy2016"):
            (partial / name).mkdir(parents=True)
        _fill(partial, category, number, recipe)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    except OSError as err:
        raise InputError(
            f"cannot write {folder}: {err.strerror or err}. Check free space and permissions, then "
            "start again: what is complete is kept."
        ) from err


def _fill(folder, category, number, recipe):
    scene = make_scene(category, number, recipe.seed)
    _, of_views, of_inputs, of_points = _generators(category, number, recipe.seed)
    size = recipe.size, recipe.size
    cameras = _supervision_cameras(scene, recipe.n_views, size, of_views)
    look = partial(render, scene, supersample=recipe.supersample, tolerance=TOLERANCE)
    views = [look(camera, size) for camera in cameras]
    masks = [torch.from_numpy(view.mask) for view in views]
    matrices = torch.from_numpy(np.stack([c.camera_mat @ c.world_mat for c in cameras]))
    for i, (view, hull) in enumerate(zip(views, visual_hull_depths(masks, matrices))):
        save_image(folder / "image" / f"{i:03d}.png", view.image)
        save_image(folder / "mask" / f"{i:03d}.png", np.uint8(255) * view.mask)
        save_exr(folder / "depth" / f"{i:03d}.exr", view.depth)
        save_exr(folder / "visual_hull_depth" / f"{i:03d}.exr", hull.numpy())
    for i, camera in enumerate(input_cameras(scene, recipe.n_input_views, of_inputs)):
        picture = look(camera, (INPUT_SIZE, INPUT_SIZE), blend=True)
        save_image(folder / "img_choy2016" / f"{i:03d}.jpg", picture.image, quality=95)
    np.savez(folder / "cameras.npz", **camera_arrays(cameras, ["world_mat", "camera_mat"]))
    np.savez(folder / "pointcloud.npz", **surface_arrays(scene, recipe.n_points, of_points))


def _supervision_cameras(scene, count, size, rng):
    directions = spread_directions(count, ELEVATIONS, start=rng.random(2))
    eyes = directions * rng.uniform(*DISTANCES, (count, 1))
    targets = rng.uniform(-0.05, 0.05, (count, 3))
    return [framing_camera(scene, *at, size, np.eye(4), FILL) for at in zip(eyes, targets)]


def input_cameras(scene, count, rng):
    """Cameras like those of Choy et al.: random azimuth and distance, from a little above."""
    radius = np.linalg.norm(scene.corners, axis=1).max()
    azimuth = rng.uniform(0, 2 * np.pi, count)
    elevation = np.radians(rng.uniform(*INPUT_ELEVATIONS, count))
    directions = np.stack([
        np.cos(elevation) * np.cos(azimuth), np.sin(elevation), np.cos(elevation) * np.sin(azimuth)
    ], 1)
    eyes = directions * radius * rng.uniform(*INPUT_DISTANCES, (count, 1))
    camera_mat = np.diag([INPUT_FOCAL, INPUT_FOCAL, 1, 1])
    return [Camera(camera_mat, look_at(eye, np.zeros(3)).numpy(), np.eye(4)) for eye in eyes]


def _write_text(path, text):
    with atomic_path(path) as temporary:
        temporary.write_text(text)
