"""Synthetic data: exact against closed forms, and in the conventions that the rest reads by."""

import numpy as np
import OpenEXR
import pytest
import torch
import trimesh
from PIL import Image
from scipy import ndimage

from benchmarks.mesh_views import Mesh
from im2mesh import geometry
from im2mesh.errors import InputError
from im2mesh.meshing import load_mesh
from im2mesh.synthetic import SCENES, make_dtu_scene, parcels, shapes, shine, write_exr
from im2mesh.synthetic.cavities import filled, hollow
from im2mesh.synthetic.dtu import SCALE, place_cameras
from im2mesh.synthetic.render import Scene, pixel_grid, render
from im2mesh.synthetic.tugboat import tugboat
from scripts import make_synthetic_dataset

SMALL = dict(n_views=6, size=(48, 65), n_points=3000, n_sparse=300)


def read_exr(path):
    with OpenEXR.File(str(path)) as file:
        return file.channels()["Z"].pixels


@pytest.fixture(scope="module")
def boat():
    return Scene(tugboat())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_dtu_scene(tmp_path_factory.mktemp("dtu"), **SMALL)


@pytest.fixture(scope="module")
def cameras(folder):
    return np.load(folder / "cameras.npz")


def project(cameras, i, points, world=False):
    """Pixels (N, 2) and depths (N,) by im2mesh.geometry."""
    camera, world_mat, scale = (
        torch.from_numpy(cameras[f"{key}_mat_{i}"])[None] for key in ("camera", "world", "scale")
    )
    matrix = geometry.object_to_image(camera, world_mat, torch.eye(4)[None] if world else scale)
    pixels, depth = geometry.project(torch.from_numpy(points).double()[None], matrix)
    return pixels[0], depth[0].numpy()


def nearest(image, pixels):
    return geometry.look_up(torch.from_numpy(image)[None], pixels[None])[0].numpy()


def camera_for(scene, size, seed=0):
    return place_cameras(scene, 1, size, np.random.default_rng(seed))[0]


# ---------------------------------------------------------------- files and conventions


def test_convention_depth_map_lies_on_the_surface(folder, cameras, boat):
    """Pixels taken back to object space by im2mesh.geometry are points of the boat's surface."""
    for i in range(SMALL["n_views"]):
        depth = read_exr(folder / f"depth/{i:06d}.exr")
        pixels = geometry.pixel_centers(*depth.shape, dtype=torch.float64)
        matrix = geometry.object_to_image(
            *(torch.from_numpy(cameras[f"{k}_mat_{i}"])[None] for k in ("camera", "world", "scale"))
        )
        origins, directions = geometry.camera_rays(pixels[None], matrix)
        hit = np.isfinite(depth.ravel())
        points = origins[0].numpy()[hit] + depth.ravel()[hit, None] * directions[0].numpy()[hit]
        view = directions[0].numpy()[hit]
        view /= np.linalg.norm(view, axis=1, keepdims=True)
        assert not boat.inside(points - 1e-5 * view).any()
        assert boat.inside(points + 1e-4 * view).mean() > 0.99  # grazing rays come out again


def test_convention_cloud_falls_on_mask_and_never_before_the_depth(folder, cameras):
    points = np.load(folder / "pointcloud.npz")["points"]
    for i in range(SMALL["n_views"]):
        mask = np.array(Image.open(folder / f"mask/{i:06d}.png")) > 0
        depth = read_exr(folder / f"depth/{i:06d}.exr")
        pixels, z = project(cameras, i, points)
        around = [np.roll(mask, (a, b), (0, 1)) for a in (-1, 0, 1) for b in (-1, 0, 1)]
        assert nearest(mask, pixels).mean() > 0.9  # the rest: pixels cut by the outline
        assert nearest(np.any(around, 0), pixels).mean() > 0.995
        shifted = [np.roll(depth, (a, b), (0, 1)) for a in (-1, 0, 1) for b in (-1, 0, 1)]
        low, high = np.min(shifted, 0), np.max(shifted, 0)
        flat = nearest(high < low + 0.08 * SCALE, pixels)
        low, high = nearest(low, pixels)[flat], nearest(high, pixels)[flat]
        assert flat.mean() > 0.2
        assert (z[flat] > low - 0.02 * SCALE).mean() > 0.99
        seen = z[flat] < high + 0.02 * SCALE
        assert 0.1 < seen.mean() < 0.9  # about half the surface faces away


def test_files_agree_with_each_other(folder, cameras):
    height, width = SMALL["size"]
    for i in range(SMALL["n_views"]):
        image = np.array(Image.open(folder / f"image/{i:06d}.png"))
        mask = np.array(Image.open(folder / f"mask/{i:06d}.png"))
        depth = read_exr(folder / f"depth/{i:06d}.exr")
        assert image.shape == (height, width, 3) and mask.shape == depth.shape == (height, width)
        assert depth.dtype == np.float32 and set(np.unique(mask)) == {0, 255}
        np.testing.assert_array_equal(np.isfinite(depth), mask > 0)
        assert (image[mask == 0] == 255).all() and image[mask > 0].std() > 40
        rows, columns = np.nonzero(mask)
        border = rows.min(), columns.min(), height - 1 - rows.max(), width - 1 - columns.max()
        assert min(border) >= 1 and min(border[0] + border[2], border[1] + border[3]) <= 6
    assert len(list((folder / "image").iterdir())) == SMALL["n_views"]


def test_cameras(cameras):
    for i in range(SMALL["n_views"]):
        for key in ("camera_mat", "world_mat", "scale_mat"):
            matrix = cameras[f"{key}_{i}"]
            assert matrix.shape == (4, 4) and matrix.dtype == np.float64
            np.testing.assert_allclose(matrix @ cameras[f"{key}_inv_{i}"], np.eye(4), atol=1e-9)
        rotation = cameras[f"world_mat_{i}"][:3, :3]
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
        assert np.linalg.det(rotation) == pytest.approx(1)
        assert rotation[1] @ [0, 1, 0] < 0  # up in the world is up in the picture: y points down
        scale = cameras[f"scale_mat_{i}"]
        assert scale[0, 0] == scale[1, 1] == scale[2, 2] == SCALE and (scale[:3, 3] != 0).all()
    assert len(cameras.files) == 6 * SMALL["n_views"]


def test_cameras_stand_all_around_above_and_below(boat):
    placed = place_cameras(boat, 32, (120, 160), np.random.default_rng(0))
    eyes = np.array([camera.rays(np.zeros((1, 2)))[0] for camera in placed])
    eyes /= np.linalg.norm(eyes, axis=1, keepdims=True)
    assert eyes[:, 1].min() < -0.5 and eyes[:, 1].max() > 0.8
    directions = np.random.default_rng(0).normal(size=(1000, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    directions = directions[np.abs(directions[:, 1]) < 0.6]
    assert (directions @ eyes.T).max(1).min() > np.cos(np.radians(40))  # a camera near every one


def test_sparse_points(folder, cameras):
    cloud = np.load(folder / "pcl.npz")
    points, in_hull = cloud["points"], cloud["is_in_visual_hull"]
    assert in_hull.sum() == SMALL["n_sparse"] and (~in_hull).sum() == SMALL["n_sparse"] // 20
    assert cloud["colors"].shape == points.shape and cloud["colors"].dtype == np.uint8
    n_seen, outside = np.zeros(len(points), int), np.zeros(len(points), bool)
    for i in range(SMALL["n_views"]):
        image = np.array(Image.open(folder / f"image/{i:06d}.png")).astype(float)
        mask = np.array(Image.open(folder / f"mask/{i:06d}.png")) > 0
        depth = read_exr(folder / f"depth/{i:06d}.exr")
        pixels, z = project(cameras, i, points, world=True)
        outside |= ~nearest(mask, pixels)
        seen = cloud[f"visibility_{i:04d}"]
        n_seen[seen] += 1
        on_object = seen[in_hull[seen] & nearest(mask, pixels)[seen]]
        assert len(on_object) > 50
        z_error = np.abs(nearest(depth, pixels) - z)[on_object]
        assert np.median(z_error) < 0.02 * SCALE
        colour_error = np.abs(nearest(image, pixels) - cloud["colors"])[on_object]
        assert np.median(colour_error) < 20  # same order of channels, same colour from all sides
    assert (n_seen[in_hull] >= 2).all() and outside[~in_hull].all()


def test_same_seed_same_bytes(tmp_path):
    small = dict(n_views=2, size=(9, 12), n_points=50, n_sparse=20)
    first, again, other = (
        make_dtu_scene(tmp_path / name, seed=seed, **small) for name, seed in zip("abc", (3, 3, 4))
    )
    files = sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file())
    assert len(files) == 3 * 2 + 4  # and nothing temporary
    for file in files:
        assert (first / file).read_bytes() == (again / file).read_bytes(), file
    for file in ("image/000000.png", "cameras.npz", "pointcloud.npz"):
        assert (first / file).read_bytes() != (other / file).read_bytes(), file


def test_exr_round_trip(tmp_path):
    depth = np.array([[0.5, np.inf, 3.25], [1e-3, 640.1, np.inf]], np.float32)
    write_exr(tmp_path / "new/depth.exr", depth)
    with OpenEXR.File(str(tmp_path / "new/depth.exr")) as file:
        (channel,) = file.channels().values()
    assert channel.pixels.dtype == np.float32
    np.testing.assert_array_equal(channel.pixels, depth)


def test_refuses_to_overwrite_unless_told(tmp_path):
    tiny = dict(size=(4, 5), n_points=10, n_sparse=10)
    folder = make_dtu_scene(tmp_path, n_views=3, **tiny)
    with pytest.raises(InputError, match="not empty.*--overwrite"):
        make_dtu_scene(tmp_path, n_views=2, **tiny)
    assert len(list((folder / "depth").iterdir())) == 3
    make_dtu_scene(tmp_path, n_views=2, overwrite=True, **tiny)
    assert [len(list((folder / d).iterdir())) for d in ("image", "mask", "depth")] == [2, 2, 2]


def test_command_line(tmp_path, monkeypatch, capsys):
    def run(*args):
        monkeypatch.setattr("sys.argv", ["make_synthetic_dataset.py", *args])
        return make_synthetic_dataset.main(), capsys.readouterr()

    code, shown = run(str(tmp_path / "a"), "--views", "1", "--size", "8")
    assert code == 0 and str(tmp_path / "a/scan1/scan1") in shown.out
    assert Image.open(tmp_path / "a/scan1/scan1/image/000000.png").size == (8, 6)
    code, shown = run(str(tmp_path / "a"))
    assert code == 2 and shown.out == ""
    assert shown.err.startswith("error: ") and shown.err.count("\n") == 1


def test_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write .*file"):
        make_dtu_scene(tmp_path / "file", n_views=1, size=(4, 5))


@pytest.mark.parametrize("bad", [{"n_views": 0}, {"size": (1, 5)}, {"size": (5, 1)}])
def test_impossible_sizes(tmp_path, bad):
    with pytest.raises(InputError, match="at least"):
        make_dtu_scene(tmp_path, **bad)
    assert not any(tmp_path.iterdir())


# ---------------------------------------------------------------- rendering against closed forms


@pytest.fixture(scope="module")
def ball():
    return Scene([shapes.sphere(0.4, n=512)])


@pytest.mark.parametrize("size", [(2, 2), (31, 40), (40, 31), (33, 33)])
def test_sphere_depth_is_the_closed_form(ball, size):
    radius = 0.4
    camera = camera_for(Scene([shapes.sphere(radius, n=32)]), size)
    depth = render(ball, camera, size).depth.ravel()

    rows, columns = np.indices(size)
    pixels = np.stack([2 * columns / (size[1] - 1) - 1, 2 * rows / (size[0] - 1) - 1], -1)
    origin, w = camera.rays(pixels.reshape(-1, 2))
    a, b, c = (w * w).sum(1), w @ origin, origin @ origin - radius**2
    discriminant = b * b - a * c
    clear = np.abs(discriminant / a) > 1e-4  # not a ray that just grazes the facets
    np.testing.assert_array_equal(np.isfinite(depth[clear]), discriminant[clear] > 0)
    assert clear.mean() > 0.9
    hit = clear & (discriminant > 0)
    points = origin + depth[hit, None] * w[hit]
    np.testing.assert_allclose(np.linalg.norm(points, axis=1), radius, atol=2e-5)
    true = (-b - np.sqrt(np.maximum(discriminant, 0))) / a
    steep = hit & (discriminant / a > 0.01)
    np.testing.assert_allclose(depth[steep], true[steep], atol=2e-4 * SCALE, rtol=0)


def test_box_depth_is_exact():
    half = np.array([0.3, 0.2, 0.1])
    outline = [(-0.3, -0.1), (0.3, -0.1), (0.3, 0.1), (-0.3, 0.1)]
    scene = Scene([shapes.prism(outline, 0.4)])
    camera = camera_for(scene, (60, 81))
    view = render(scene, camera, (60, 81))
    origin, w = camera.rays(pixel_grid((60, 81)))
    slabs = np.stack([(-half - origin) / w, (half - origin) / w])
    near, far = slabs.min(0).max(1), slabs.max(0).min(1)
    true = np.where(near < far, near, np.inf)
    np.testing.assert_array_equal(view.mask.ravel(), near < far)
    np.testing.assert_allclose(view.depth.ravel(), true, atol=1e-9 * SCALE)


def test_supersampling_changes_colours_inside_only(boat):
    camera = camera_for(boat, (30, 40))
    plain, fine = render(boat, camera, (30, 40)), render(boat, camera, (30, 40), supersample=2)
    np.testing.assert_array_equal(plain.mask, fine.mask)
    np.testing.assert_array_equal(plain.depth, fine.depth)
    assert (fine.image[~fine.mask] == 255).all()
    assert 0 < np.abs(plain.image.astype(int) - fine.image).mean() < 10
    black = [shapes.sphere(0.4, n=32).painted(shapes.solid("#000000"))]
    for supersample in (1, 3):
        view = render(Scene(black), camera, (30, 40), supersample)
        assert (view.image[view.mask] == 0).all()  # the white around it is not mixed in


@pytest.mark.parametrize("blend", [False, True])
def test_tolerance_spares_smooth_pixels_only(boat, blend):
    camera, size = camera_for(boat, (60, 80)), (60, 80)
    plain = render(boat, camera, size)
    full = render(boat, camera, size, 3, blend)
    spared = render(boat, camera, size, 3, blend, tolerance=0.04)
    np.testing.assert_array_equal(spared.mask, full.mask)
    np.testing.assert_array_equal(spared.depth, full.depth)
    error = np.abs(spared.image.astype(int) - full.image).max(-1)
    assert (error[full.mask] > 3).mean() < 0.02
    edges = np.abs(plain.image.astype(int) - full.image).max(-1) > 20
    assert edges.sum() > 100 and (error[edges] == 0).mean() > 0.98
    kept = (spared.image == plain.image).all(-1) & (full.image != plain.image).any(-1)
    assert kept.sum() > 100


def test_colour_does_not_depend_on_the_view(boat):
    points, faces = boat.sample_surface(200, np.random.default_rng(0))
    for camera in place_cameras(boat, 3, (60, 80), np.random.default_rng(0)):
        pixels, z = camera.project(points)
        origin, directions = camera.rays(pixels)
        depth, face = boat.cast(origin, directions)
        seen = np.abs(depth - z) < 1e-6 * SCALE
        assert seen.sum() > 40
        seen_colours = boat.colours(origin + depth[seen, None] * directions[seen], face[seen])
        np.testing.assert_allclose(seen_colours, boat.colours(points, faces)[seen], atol=1e-3)


# ---------------------------------------------------------------- the surface cloud


def test_cloud_covers_the_outer_surface_of_a_union_evenly():
    """Two spheres of radius 0.2 whose centres are 0.2 apart: each keeps 3/4 of its surface."""
    ball = shapes.sphere(0.2, n=128)
    scene = Scene([ball.moved(x=-0.1), ball.moved(x=0.1)])
    points, faces = scene.sample_surface(20000, np.random.default_rng(0))
    centre = np.array([[-0.1, 0, 0], [0.1, 0, 0]])
    distance = np.linalg.norm(points[:, None] - centre, axis=2)
    assert distance.min() > 0.2 - 1e-3 and distance.min(1).max() < 0.2 + 1e-9
    # Archimedes: the area of a spherical zone is proportional to its height.
    left = points[scene.part_of_face[faces] == 0, 0]
    assert len(left) / 20000 == pytest.approx(0.5, abs=0.02)
    assert np.mean(left < -0.15) == pytest.approx(0.5, abs=0.02)
    normals = (points - centre[scene.part_of_face[faces]]) / 0.2
    np.testing.assert_allclose((scene.normals[faces] * normals).sum(1), 1, atol=2e-3)


def test_cloud_of_the_boat_is_on_the_outside(folder, boat):
    cloud = np.load(folder / "pointcloud.npz")
    points, normals = cloud["points"].astype(float), cloud["normals"].astype(float)
    assert points.shape == normals.shape == (SMALL["n_points"], 3)
    np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1, atol=1e-6)
    # All but the few that are so close to a crease that the step crosses another face.
    assert boat.inside(points + 2e-5 * normals).mean() < 0.002
    assert boat.inside(points - 2e-5 * normals).mean() > 0.998
    # Fresh air: some straight line leads out.
    trapped = np.arange(len(points))
    rng = np.random.default_rng(0)
    for _ in range(200):
        away = rng.normal(size=(len(trapped), 3))
        away *= np.sign((away * normals[trapped]).sum(1, keepdims=True))
        _, face = boat.cast(points[trapped] + 2e-5 * normals[trapped], away)
        trapped = trapped[face >= 0]
    assert len(trapped) == 0


def test_boat_fits_the_cube_and_is_far_from_symmetric(boat):
    corners = boat.triangles.reshape(-1, 3)
    assert np.abs(corners).max() <= 0.45
    mirrored = corners * [1, 1, -1]
    assert boat.inside(0.999 * mirrored[::7]).mean() < 0.8


def test_parts_are_closed_and_face_outwards(boat):
    for i, part in enumerate(boat.parts):
        mesh = trimesh.Trimesh(part.vertices, part.faces)  # merges equal vertices
        assert mesh.is_watertight and mesh.is_winding_consistent and mesh.volume > 0, i


# ---------------------------------------------------------------- the scenes


@pytest.fixture(scope="module")
def scenes():
    """Each scene as it is rendered: without closed hollows."""
    return {name: Scene([filled(part) for part in make()]) for name, make in SCENES.items()}


def test_the_tugboat_stays_as_it_is(tmp_path):
    made = make_dtu_scene(tmp_path, n_views=2, size=(7, 9), n_points=3, n_sparse=2)
    image, cameras = Image.open(made / "image/000001.png"), np.load(made / "cameras.npz")
    red = [
        [255, 255, 255, 255, 255, 255, 255, 255, 255], [255, 255, 255, 140, 122, 255, 255, 255, 255],
        [255, 255, 255, 122, 255, 148, 255, 255, 255], [255, 255, 207, 196, 182, 190, 255, 255, 255],
        [255, 255, 50, 87, 95, 111, 38, 255, 255], [255, 255, 156, 148, 149, 136, 149, 255, 255],
        [255, 255, 255, 255, 255, 255, 255, 255, 255],
    ]  # fmt: skip
    np.testing.assert_allclose(np.array(image)[..., 0], red, atol=1)
    assert cameras["world_mat_1"].sum() == pytest.approx(-524.2274898522448)
    points = np.load(made / "pointcloud.npz")["points"]
    np.testing.assert_allclose(points[1], [-0.00901313, 0.23262945, 0.05520239], atol=1e-6)


@pytest.mark.parametrize("name", SCENES)
def test_scenes_fit_the_cube_and_are_closed(name, scenes):
    assert np.abs(scenes[name].triangles).max() <= 0.45
    for i, part in enumerate(SCENES[name]()):
        mesh = trimesh.Trimesh(part.vertices, part.faces)
        assert mesh.is_watertight and mesh.is_winding_consistent and mesh.volume > 0, i


@pytest.mark.parametrize("name", SCENES)
def test_clouds_of_scenes_are_outside(name, scenes):
    scene = scenes[name]
    points, faces = scene.sample_surface(3000, np.random.default_rng(0))
    normals = scene.normals[faces]
    assert scene.inside(points + 2e-5 * normals).mean() < 0.002
    assert scene.inside(points - 2e-5 * normals).mean() > 0.998
    # Nearly all see the sky: what does not lies in a crevice between two parts.
    trapped = np.arange(len(points))
    rng = np.random.default_rng(0)
    for _ in range(100):
        away = rng.normal(size=(len(trapped), 3))
        away *= np.sign((away * normals[trapped]).sum(1, keepdims=True))
        _, face = scene.cast(points[trapped] + 2e-5 * normals[trapped], away)
        trapped = trapped[face >= 0]
    assert len(trapped) <= 0.01 * len(points)


def test_background_is_seen_through_the_excavator(scenes):
    """Beside the boat, which has hardly any, most views have many gaps."""
    n_gaps = {}
    for name in ("excavator", "tugboat"):
        masks = [
            render(scenes[name], camera, (150, 200)).mask
            for camera in place_cameras(scenes[name], 6, (150, 200), np.random.default_rng(0))
        ]
        n_gaps[name] = [ndimage.label(ndimage.binary_fill_holes(mask) & ~mask)[1] for mask in masks]
    assert np.median(n_gaps["excavator"]) >= 6 and np.median(n_gaps["tugboat"]) <= 2


def test_parcels_are_flat_and_their_print_is_fine(scenes):
    normals = np.unique(np.round(scenes["parcels"].normals, 6) + 0.0, axis=0)
    assert len(normals) == 2 + 5 * 4  # all share above and below
    contrast = {}
    for name in ("parcels", "tugboat"):
        camera = place_cameras(scenes[name], 1, (120, 160), np.random.default_rng(0))[0]
        view = render(scenes[name], camera, (120, 160), supersample=2)
        beside = view.mask[:, 1:] & view.mask[:, :-1]
        contrast[name] = np.abs(np.diff(view.image.astype(int), axis=1)).max(2)[beside].mean()
    assert contrast["parcels"] > 2 * contrast["tugboat"]


def test_prints_are_upright_and_not_mirrored():
    for axis, sign, right, up in parcels.FACES.values():
        np.testing.assert_array_equal(np.cross(right, up), sign * np.eye(3)[axis])
    box = parcels._box((0.4, 0.5, 0.6), "#000000", **{
        face: parcels._text((0.0, 0.0), 0.02, ["7L"], "#ffffff") for face in parcels.FACES
    })  # fmt: skip
    rows = ["###.#..", "..#.#..", ".#..#..", "#...#..", "#...###"]
    y, x = np.indices((5, 7)).reshape(2, -1)
    at = np.stack([0.02 * (x - 3), 0.02 * (2 - y)], 1)
    expected = np.array([[cell == "#" for cell in row] for row in rows]).ravel()
    for axis, sign, right, up in parcels.FACES.values():
        points = at @ np.array([right, up]) + sign * np.eye(3)[axis] * (0.2, 0.25, 0.3)
        np.testing.assert_array_equal(box.colour(points)[:, 0] > 0.5, expected)


def test_a_hollow_is_in_the_part_but_neither_in_pictures_nor_in_the_cloud():
    ball, bubble = shapes.sphere(0.4), shapes.sphere(0.2).moved(0.1)
    part = hollow(ball, bubble)
    mesh = trimesh.Trimesh(part.vertices, part.faces)
    assert mesh.is_watertight and mesh.volume == pytest.approx(4 / 3 * np.pi * (0.4**3 - 0.2**3), rel=0.01)
    camera = camera_for(Scene([ball]), (20, 30))
    images = [render(Scene([p]), camera, (20, 30)).image for p in (part, filled(part), ball)]
    np.testing.assert_array_equal(images[0], images[1])
    np.testing.assert_array_equal(images[0], images[2])
    np.testing.assert_array_equal(filled(ball).faces, ball.faces)
    inside = shapes.sphere(0.05).moved(0.1)  # a part in the hollow
    points, _ = Scene([filled(part), inside]).sample_surface(500, np.random.default_rng(0))
    np.testing.assert_allclose(np.linalg.norm(points, axis=1), 0.4, atol=1e-3)
    loose, _ = Scene([part, inside]).sample_surface(500, np.random.default_rng(0))
    assert np.linalg.norm(loose, axis=1).min() < 0.3


def test_the_mug_is_seen_inside_and_the_tin_is_not(scenes, tmp_path):
    made = make_dtu_scene(
        tmp_path, n_views=8, size=(30, 40), n_points=4000, n_sparse=20, parts=SCENES["vessel"]()
    )
    x, y, z = np.load(made / "pointcloud.npz")["points"].T
    radius = np.hypot(x, z)
    assert not np.any((radius < 0.33) & (y > -0.4) & (y < -0.2))
    assert np.mean((radius < 0.235) & (y > -0.115) & (y < 0.2)) > 0.1
    assert Mesh(load_mesh(made / "mesh.ply")).topology()["inward_components"] == 1
    scene, floors = scenes["vessel"], 0
    for camera in place_cameras(scene, 8, (60, 80), np.random.default_rng(0)):
        origin, directions = camera.rays(pixel_grid((60, 80)))
        depth, face = scene.cast(origin, directions)
        points = origin + depth[face >= 0, None] * directions[face >= 0]
        floors += np.any((np.hypot(*points[:, [0, 2]].T) < 0.17) & (np.abs(points[:, 1] + 0.11) < 1e-6))
    assert floors >= 2


# ---------------------------------------------------------------- highlights


def test_shine_changes_the_images_and_nothing_else(tmp_path):
    small = dict(n_views=2, size=(30, 40), n_points=50, n_sparse=20)
    dull = make_dtu_scene(tmp_path / "dull", **small)
    shiny = make_dtu_scene(tmp_path / "shiny", shine=True, **small)
    for file in sorted(path.relative_to(dull) for path in dull.rglob("*") if path.is_file()):
        same = (dull / file).read_bytes() == (shiny / file).read_bytes()
        assert same == (file.parent.name != "image"), file
        if not same:
            before, after = (np.array(Image.open(made / file)).astype(int) for made in (dull, shiny))
            assert (after >= before).all() and (after > before + 25).any(2).mean() > 0.01


def test_a_highlight_is_where_the_lamp_is_mirrored(ball):
    """On a ball seen from far away it lies half way between the lamp and the eye, from every side."""
    points, face = ball.sample_surface(20000, np.random.default_rng(0))
    dull = ball.colours(points, face)
    for eye in ([0, 0, 1.0], [0.6, 0.8, 0], [-0.5, -0.1, -0.8]):
        eye = np.array(eye) / np.linalg.norm(eye)
        colours = shine.Shining(ball, 1e4 * eye).colours(points, face)
        share = ((colours - dull) / (1 - dull))[:, 0]
        half_way = (eye + shine.LAMPS) / np.linalg.norm(eye + shine.LAMPS, axis=1, keepdims=True)
        brightest = points[np.argmax(share)] / 0.4
        assert np.max(half_way @ brightest) > np.cos(np.radians(3))
        for lamp in half_way[shine.LAMPS @ eye > -0.5]:
            assert share[np.argmax(points @ lamp)] == pytest.approx(shine.STRENGTH, rel=0.03)
        assert share.max() <= shine.STRENGTH
        np.testing.assert_allclose(share, ((colours - dull) / (1 - dull))[:, 2], atol=1e-9)
        unlit = (ball.normals[face] @ shine.LAMPS.T).max(1) < 0
        assert unlit.sum() > 500 and (share[unlit] == 0).all()


# ---------------------------------------------------------------- shapes


@pytest.mark.parametrize("part, volume", [
    (shapes.sphere(0.3, n=200), 4 / 3 * np.pi * 0.3**3),
    (shapes.torus(0.3, 0.05), 2 * np.pi**2 * 0.3 * 0.05**2),
    (shapes.revolve([(0, -0.1), (0.2, -0.1), (0.2, 0.3), (0, 0.3)]), np.pi * 0.2**2 * 0.4),
    (shapes.revolve([(0.2, 0.3), (0.2, -0.1)]), np.pi * 0.2**2 * 0.4),
    (shapes.revolve([(0, 0), (0.2, 0), (0.2, 0.3), (0.1, 0.3), (0.1, 0.1), (0, 0.1)]),
     np.pi * (0.2**2 * 0.3 - 0.1**2 * 0.2)),
    (shapes.tube([(0, 0, 0), (0.5, 0, 0)], (0.1, 0.2)), np.pi * 0.1 * 0.2 * 0.5),
    (shapes.tube([(0, 0, 0), (0.5, 0, 0)], (0.1, 0.2), power=60), 4 * 0.1 * 0.2 * 0.5),
    (shapes.rod((0.1, 0, 0), (0.1, 0.6, 0), 0.1), np.pi * 0.1**2 * 0.6),
    (shapes.rod((0, 0, 0), (0.3, 0.4, 0), [[0.1], [0.05]], n=96), np.pi / 3 * 0.0175 * 0.5),
    (shapes.sections(*np.array([[-1, 0], [0, 0.2], [1, 0.3]]).T, 0.1, 0.2), np.pi * 0.1 * 0.2 * 2),
    (shapes.sphere(0.1).scaled(3), 4 / 3 * np.pi * 0.3**3),
    (shapes.prism([(0, 0), (0, 1), (1, 0)], 0.5), 0.25),
    (shapes.box(0.5, 0.3, 0.2, corner=0.001, bevel=0.0005), 0.5 * 0.3 * 0.2),
])
def test_volumes(part, volume):
    mesh = trimesh.Trimesh(part.vertices, part.faces)
    assert mesh.is_watertight and mesh.volume == pytest.approx(volume, rel=0.02)


def test_texture_moves_and_grows_with_its_part():
    part = shapes.box(0.1, 0.1, 0.1).painted(lambda points: points)
    larger = part.scaled(2)
    np.testing.assert_allclose(larger.vertices, 2 * part.vertices)
    np.testing.assert_allclose(larger.colour(larger.vertices), part.vertices)
    placed = part.turned("z", 90).moved(y=0.2)
    turned = part.vertices[:, [1, 0]] * [-1, 1]
    np.testing.assert_allclose(placed.vertices[:, :2], turned + [0, 0.2])
    np.testing.assert_allclose(placed.colour(placed.vertices), part.vertices, atol=1e-15)
