"""Synthetic categories: sound objects, exact files, a dataset that grows and resumes."""

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import OpenEXR
import pytest
import torch
import trimesh
import yaml
from PIL import Image

from im2mesh import geometry
from im2mesh.errors import InputError
from im2mesh.synthetic import CATEGORIES, Recipe, make_shapenet_dataset
from im2mesh.synthetic.categories import EDGE_LENGTH
from im2mesh.synthetic.shapenet import INPUT_SIZE, SPLITS, make_scene, write_object

ROOT = Path(__file__).resolve().parents[1]
SMALL = Recipe(seed=3, n_views=6, size=32, n_input_views=2, n_points=400)
TINY = Recipe(n_views=1, size=8, n_input_views=1, n_points=10, supersample=1)
CLASSES = ["lamp", "car"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapenet")
    assert make_shapenet_dataset(folder, 3, CLASSES, SMALL, n_workers=2) == 6
    return folder


@pytest.fixture(scope="module")
def objects(dataset):
    """(folder, scene) of each object."""
    return [
        (dataset / category / f"{k:04d}", make_scene(category, k, SMALL.seed))
        for category in CLASSES for k in range(3)
    ]


def read_exr(path):
    with OpenEXR.File(str(path)) as file:
        (channel,) = file.channels().values()
    return channel.pixels


def contents(folder):
    return {
        path.relative_to(folder): path.read_bytes()
        for path in sorted(folder.rglob("*")) if path.is_file()
    }


def object_to_image(folder, i):
    cameras = np.load(folder / "cameras.npz")
    world_mat, camera_mat = (torch.from_numpy(cameras[f"{k}_mat_{i}"]) for k in ("world", "camera"))
    return geometry.object_to_image(camera_mat, world_mat, torch.eye(4))


def pixel_rays(folder, i):
    """Origin (3,) and directions (H*W, 3) of a supervision view, by im2mesh.geometry."""
    pixels = geometry.pixel_centers(SMALL.size, SMALL.size, dtype=torch.float64)
    origins, directions = geometry.camera_rays(pixels[None], object_to_image(folder, i)[None])
    return origins[0, 0].numpy(), directions[0].numpy()


# ---------------------------------------------------------------- the objects


@pytest.mark.parametrize("category", CATEGORIES)
def test_objects_are_closed_and_fill_the_cube(category):
    for number in range(12):
        scene = make_scene(category, number)
        for i, part in enumerate(scene.parts):
            mesh = trimesh.Trimesh(part.vertices, part.faces)  # merges equal vertices
            sound = mesh.is_watertight and mesh.is_winding_consistent and mesh.volume > 0
            assert sound, (number, i)
        corners = scene.triangles.reshape(-1, 3)
        low, high = corners.min(0), corners.max(0)
        np.testing.assert_allclose(low + high, 0, atol=1e-12)
        assert (high - low).max() == pytest.approx(EDGE_LENGTH)
        rgb = scene.colours(*_surface(scene, 200))
        assert rgb.shape == (200, 3) and rgb.min() >= 0 and rgb.max() <= 1


@pytest.mark.parametrize("category", CATEGORIES)
def test_nothing_is_too_thin_to_be_learnt(category):
    for number in range(12):
        scene = make_scene(category, number)
        points, faces = _surface(scene, 1000)
        inwards = [scene.inside(points - t * scene.normals[faces]) for t in (0.004, 0.013, 0.022)]
        assert np.all(inwards, 0).mean() > 0.93, number


@pytest.mark.parametrize("category", CATEGORIES)
def test_objects_of_a_category_differ_in_shape(category):
    points = np.random.default_rng(0).uniform(-0.45, 0.45, (6000, 3))
    inside = [make_scene(category, number).inside(points) for number in range(8)]
    overlap = [
        (a & b).sum() / (a | b).sum() for i, a in enumerate(inside) for b in inside[:i]
    ]
    assert np.mean(overlap) < 0.65 and max(overlap) < 0.97
    assert min(shape.sum() for shape in inside) > 20


def test_shapes_depend_on_seed_class_and_number_only():
    scenes = [make_scene("chair", *key) for key in ((4, 0), (4, 0), (5, 0), (4, 1))]
    first, again, *others = [scene.triangles for scene in scenes]
    np.testing.assert_array_equal(first, again)
    assert all(other.shape != first.shape or np.any(other != first) for other in others)


def test_convention_the_handle_of_a_mug_points_to_x():
    middle = []  # of the body: the handle makes it stand on the other side of the cube
    for number in range(20):
        x = make_scene("mug", number).parts[0].vertices[:, 0]
        middle.append((x.min() + x.max()) / 2)
    assert max(middle) < 1e-9 and np.mean(np.array(middle) < -0.03) >= 0.8  # a few have two


@pytest.mark.parametrize("category", ["chair", "airplane"])
def test_convention_chairs_and_airplanes_look_along_minus_z(category):
    """What is highest near the plane of symmetry, a back or a fin, is behind."""
    behind = []
    for number in range(20):
        points, _ = _surface(make_scene(category, number), 2000)
        x, y, z = points[np.abs(points[:, 0]) < 0.12].T
        behind.append(z[y >= np.quantile(y, 0.97)].mean() > 0)
    assert np.mean(behind) >= 0.75  # but for stools and biplanes


def test_convention_cars_drive_along_minus_z():
    for number in range(8):
        points, faces = _surface(scene := make_scene("car", number), 4000)
        assert np.ptp(points[:, 2]) > 1.5 * np.ptp(points[:, 0])
        light = scene.colours(points, faces)
        light /= light.max(1, keepdims=True)
        front = points[:, 2] < -0.4
        lamps = np.all(np.abs(light - [0.992, 0.953, 0.769]) < 0.02, axis=1)
        assert lamps[front].sum() > lamps[~front].sum()


def _surface(scene, count):
    return scene.sample_surface(count, np.random.default_rng(0))


# ---------------------------------------------------------------- the files


def test_layout(dataset):
    names = {path.name for path in dataset.iterdir()}
    assert names == {*CLASSES, "metadata.yaml", "recipe.yaml"}
    metadata = yaml.safe_load((dataset / "metadata.yaml").read_text())
    assert metadata == {name: {"id": name, "name": name} for name in CLASSES}
    for category in CLASSES:
        assert {path.name for path in (dataset / category).iterdir()} == {
            "0000", "0001", "0002", "train.lst", "val.lst", "test.lst"
        }
        for model in ("0000", "0001", "0002"):
            files = contents(dataset / category / model)
            views = [f"{i:03d}" for i in range(SMALL.n_views)]
            assert {str(path) for path in files} == {
                "cameras.npz", "pointcloud.npz",
                *(f"{kind}/{i}.png" for i in views for kind in ("image", "mask")),
                *(f"{kind}/{i}.exr" for i in views for kind in ("depth", "visual_hull_depth")),
                *(f"img_choy2016/{i:03d}.jpg" for i in range(SMALL.n_input_views)),
            }
            cameras = np.load(dataset / category / model / "cameras.npz")
            assert set(cameras.files) == {
                f"{kind}_mat{inverse}_{i}" for i in range(SMALL.n_views)
                for kind in ("world", "camera") for inverse in ("", "_inv")
            }
            for key in cameras.files:
                assert cameras[key].shape == (4, 4) and cameras[key].dtype == np.float64
                other = key.replace("_mat_", "_mat_inv_")
                if "inv" not in key:
                    np.testing.assert_allclose(cameras[key] @ cameras[other], np.eye(4), atol=1e-9)


def test_masks_and_depths_are_those_of_the_mesh(objects):
    """Against every triangle (Moeller and Trumbore 1997), on rays of im2mesh.geometry."""
    for folder, scene in objects[::3]:
        mask = np.array(Image.open(folder / "mask/001.png"))
        depth = read_exr(folder / "depth/001.exr")
        assert set(np.unique(mask)) == {0, 255} and depth.dtype == np.float32
        np.testing.assert_array_equal(mask > 0, np.isfinite(depth))
        origin, directions = pixel_rays(folder, 1)
        true, clearance = _first_hits(scene.triangles, origin, directions)
        sure = clearance > 1e-5  # not a ray along an edge of some triangle
        assert sure.mean() > 0.95
        np.testing.assert_array_equal(np.isfinite(true[sure]), (mask.ravel() > 0)[sure])
        np.testing.assert_allclose(depth.ravel()[sure], true[sure], rtol=1e-6)


def _first_hits(triangles, origin, directions):
    a, b, c = triangles.transpose(1, 0, 2)
    edge, other, to_origin = b - a, c - a, origin - a
    q = np.cross(to_origin, edge)
    result, clearance = [], []
    for direction in directions:
        p = np.cross(direction, other)
        with np.errstate(divide="ignore", invalid="ignore"):
            inverse = 1 / np.sum(edge * p, 1)
            u, v = np.sum(to_origin * p, 1) * inverse, q @ direction * inverse
            margin = np.minimum(np.minimum(u, v), 1 - u - v)
            depth = np.sum(other * q, 1) * inverse
        result.append(np.min(depth, where=margin >= 0, initial=np.inf))
        clearance.append(np.nanmin(np.abs(margin)))
    return np.array(result), np.array(clearance)


def test_convention_depths_taken_back_to_object_space_lie_on_the_surface(objects):
    for folder, scene in objects:
        for i in range(SMALL.n_views):
            depth = read_exr(folder / f"depth/{i:03d}.exr").ravel()
            origin, directions = pixel_rays(folder, i)
            hit = np.isfinite(depth)
            points = origin + depth[hit, None] * directions[hit]
            towards = directions[hit] / np.linalg.norm(directions[hit], axis=1, keepdims=True)
            assert not scene.inside(points - 1e-5 * towards).any()
            assert scene.inside(points + 1e-4 * towards).mean() > 0.97


def test_every_view_shows_the_whole_object(objects):
    for folder, scene in objects:
        corners = torch.from_numpy(scene.triangles.reshape(1, -1, 3))
        for i in range(SMALL.n_views):
            pixels, depth = geometry.project(corners, object_to_image(folder, i)[None])
            assert depth.min() > 1 and 0.85 < pixels.abs().max() <= 1
            image = np.array(Image.open(folder / f"image/{i:03d}.png"))
            mask = np.array(Image.open(folder / f"mask/{i:03d}.png")) > 0
            assert image.shape == (SMALL.size, SMALL.size, 3) and image.dtype == np.uint8
            assert (image[~mask] == 255).all() and (image[mask] < 255).any(1).mean() > 0.9


def test_views_look_from_all_sides(objects):
    for folder, _ in objects[:2]:
        eyes = [pixel_rays(folder, i)[0] for i in range(SMALL.n_views)]
        elevation = [np.degrees(np.arcsin(eye[1] / np.linalg.norm(eye))) for eye in eyes]
        assert -40 < min(elevation) < 10 and 30 < max(elevation) < 75
        angle = np.sort(np.degrees([np.arctan2(eye[2], eye[0]) for eye in eyes]))
        assert np.diff(np.r_[angle, angle[0] + 360]).max() < 150


def test_hull_is_around_the_object(objects):
    ahead = []
    for folder, _ in objects:
        for i in range(SMALL.n_views):
            depth = read_exr(folder / f"depth/{i:03d}.exr")
            hull = read_exr(folder / f"visual_hull_depth/{i:03d}.exr")
            on = np.isfinite(depth)
            assert np.isinf(hull[~on]).all()
            # A mask is cut at pixels, which takes a little off the object where it is thin: at this
            # size, a tenth of the thinnest lamp in its narrowest view.
            assert (hull[on] <= depth[on] + 0.03).mean() > 0.85
            assert (hull[on] > 1).all()
            ahead.append(np.median(depth[on] - hull[on]))
    assert min(ahead) > -0.01 and np.median(ahead) < 0.1


def test_cloud_lies_on_the_outer_surface(objects):
    for folder, scene in objects:
        cloud = np.load(folder / "pointcloud.npz")
        points, normals = cloud["points"], cloud["normals"]
        assert points.shape == normals.shape == (SMALL.n_points, 3)
        assert points.dtype == normals.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1, atol=1e-6)
        assert scene.inside(points + 3e-5 * normals).mean() < 0.01
        assert scene.inside(points - 3e-5 * normals).mean() > 0.99


def test_input_pictures(objects):
    seen = []
    for folder, _ in objects:
        for i in range(SMALL.n_input_views):
            picture = np.array(Image.open(folder / f"img_choy2016/{i:03d}.jpg")).astype(int)
            assert picture.shape == (INPUT_SIZE, INPUT_SIZE, 3)
            border = np.concatenate([picture[[0, -1]], picture[:, [0, -1]].swapaxes(0, 1)])
            assert border.min() > 245  # white all around, up to what JPEG makes of it
            assert 0.02 < (picture.min(2) < 230).mean() < 0.7
            seen.append(picture)
    assert all(np.abs(a - b).mean() > 0.5 for i, a in enumerate(seen) for b in seen[:i])


# ---------------------------------------------------------------- many objects


def test_bytes_do_not_depend_on_company_or_workers(dataset, tmp_path):
    for category, number in (("car", 2), ("lamp", 1)):
        alone = tmp_path / f"{number:04d}"
        write_object(alone, category, number, SMALL)
        assert contents(alone) == contents(dataset / category / f"{number:04d}")


def test_splits_are_disjoint_and_do_not_change_as_a_class_grows(tmp_path):
    lists = []
    for n_objects in (3, 7):
        make_shapenet_dataset(tmp_path, n_objects, ["mug"], TINY)
        lists.append({
            split: (tmp_path / f"mug/{split}.lst").read_text().split()
            for split in ("train", "val", "test")
        })
        names = sorted(sum(lists[-1].values(), []))
        assert names == [f"{k:04d}" for k in range(n_objects)] and all(lists[-1].values())
    assert all(set(lists[0][split]) <= set(lists[1][split]) for split in lists[0])
    shares = {split: SPLITS.count(split) / len(SPLITS) for split in lists[0]}
    assert shares == {"train": 0.8, "val": 0.05, "test": 0.15}


def test_goes_on_where_it_stopped(dataset, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(dataset, folder)
    before = contents(folder)
    shutil.rmtree(folder / "car/0001")
    (folder / "car/.0001.partial/image").mkdir(parents=True)  # killed in the midst of it
    (folder / "car/.0001.partial/image/000.png").write_bytes(b"half")
    (folder / "car/0000/image/000.png").write_bytes(b"kept")
    assert make_shapenet_dataset(folder, 3, CLASSES, SMALL) == 1
    after = contents(folder)
    assert after.pop(Path("car/0000/image/000.png")) == b"kept"
    assert after == {key: before[key] for key in after} and len(after) == len(before) - 1
    make_shapenet_dataset(folder, 1, ["car"], SMALL, overwrite=True)
    assert contents(folder / "car/0000") == contents(dataset / "car/0000")


def test_a_class_comes_on_top(tmp_path):
    make_shapenet_dataset(tmp_path, 1, ["table"], TINY)
    make_shapenet_dataset(tmp_path, 1, ["airplane"], TINY)
    assert set(yaml.safe_load((tmp_path / "metadata.yaml").read_text())) == {"airplane", "table"}


def test_other_settings_are_not_mixed_in(dataset):
    with pytest.raises(InputError, match="recipe.yaml.*size: 32.*another folder"):
        make_shapenet_dataset(dataset, 3, CLASSES, Recipe())


@pytest.mark.parametrize("bad, message", [
    (dict(n_objects=0), "objects per class: 0"),
    (dict(classes=["chair", "boat"]), "boat.*airplane, car"),
    (dict(classes=[]), "classes"),
    (dict(n_workers=0), "workers: 0"),
    (dict(recipe=Recipe(size=1)), "size: 1 .* at least 2"),
    (dict(recipe=Recipe(n_views=0)), "n_views: 0"),
    (dict(recipe=Recipe(n_input_views=0)), "n_input_views: 0"),
    (dict(recipe=Recipe(n_points=0)), "n_points: 0"),
    (dict(recipe=Recipe(seed=-1)), "seed: -1"),
])
def test_bad_settings(tmp_path, bad, message):
    with pytest.raises(InputError, match=message):
        make_shapenet_dataset(tmp_path, **bad)
    assert not any(tmp_path.iterdir())


def test_folder_that_cannot_be_written(tmp_path):
    make_shapenet_dataset(tmp_path, 1, ["mug"], TINY)
    (tmp_path / "car").write_text("in the way")
    with pytest.raises(InputError, match="cannot write .*car"):
        make_shapenet_dataset(tmp_path, 1, ["car"], TINY)


# ---------------------------------------------------------------- command line


COMMAND = [sys.executable, "scripts/make_synthetic_dataset.py"]
QUICK = ["--layout", "shapenet", "--views", "1", "--input-views", "1", "--points", "10"]


def test_command_line(tmp_path):
    def run(*args):
        command = [*COMMAND, str(tmp_path / "data"), *args]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    options = [*QUICK, "--objects-per-class", "2", "--classes", "mug", "--size", "8"]
    done = run(*options)
    assert done.returncode == 0 and "2 objects made, 0 were there" in done.stdout, done.stderr
    assert Image.open(tmp_path / "data/mug/0001/image/000.png").size == (8, 8)
    assert "0 objects made, 2 were there" in run(*options).stdout
    failed = run(*options, "--seed", "1")
    assert failed.returncode == 2 and failed.stdout == ""
    assert failed.stderr.startswith("error: ") and failed.stderr.count("\n") == 1
    wrong = run("--workers", "2")
    assert wrong.returncode == 2 and "--workers does not go with --layout dtu" in wrong.stderr


def test_ctrl_c_ends_quietly(tmp_path):
    command = [*COMMAND, str(tmp_path), *QUICK, "--size", "16", "--objects-per-class", "9999"]
    process = subprocess.Popen(
        command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while process.poll() is None and not (tmp_path / "airplane/0001").is_dir():
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in errors
    assert errors.splitlines()[-1].startswith("interrupted")
    for folder in tmp_path.glob("*/0*"):
        assert len(contents(folder)) == 7, folder
