"""The visual hull against closed forms and a plain search, and the script that writes it."""

import math
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from im2mesh import geometry
from im2mesh.data import ImagesField
from im2mesh.data.images import read_depth
from im2mesh.visual_hull import in_visual_hull, visual_hull_depths
from scripts import make_visual_hull
from tests.sphere_scene import RADIUS, write_sphere_scene

DISTANCE = 3.0


def camera(eye, size=(48, 48), up=(0.0, 1.0, 0.0), field_of_view=40):
    """A camera that sees the whole cube."""
    height, width = size
    matrices = geometry.perspective(field_of_view, height, width), geometry.look_at(eye, up=up)
    return geometry.object_to_image(*matrices, torch.eye(4))


def around(n_views, **options):
    """Cameras on a circle that is tilted, so that no two look at each other."""
    angles = [2 * math.pi * i / n_views for i in range(n_views)]
    eyes = [(DISTANCE * math.cos(a), DISTANCE * 0.3 * math.sin(3 * a + 1), DISTANCE * math.sin(a))
            for a in angles]  # fmt: skip
    return torch.stack([camera(eye, **options) for eye in eyes])


def rays(matrix, size=(48, 48)):
    """Origin (3,) and directions (H, W, 3)."""
    pixels = geometry.pixel_centers(*size, dtype=torch.float64)
    origins, directions = geometry.camera_rays(pixels[None], matrix[None])
    return origins[0, 0], directions[0].view(*size, 3)


def sphere(matrix, radius=0.4, center=(0.0, 0, 0), size=(48, 48)):
    """True depth of a sphere, +inf where it is not seen."""
    origin, w = rays(matrix, size)
    origin = origin - torch.tensor(center, dtype=torch.float64)
    a, b, c = (w * w).sum(-1), w @ origin, origin @ origin - radius**2
    root = (b * b - a * c).clamp(min=0).sqrt()
    return torch.where(b * b > a * c, (-b - root) / a, torch.inf)


def box(matrix, half=(0.3, 0.2, 0.4), size=(48, 48)):
    """True depth of a box, +inf where it is not seen."""
    origin, w = rays(matrix, size)
    half = torch.tensor(half, dtype=torch.float64)
    ends = torch.stack([(-half - origin) / w, (half - origin) / w])
    near, far = ends.amin(0).amax(-1), ends.amax(0).amin(-1)
    return near.where(near < far, torch.inf)


def hull_depth(masks, matrices, view):
    (depth,) = visual_hull_depths(masks, matrices, [view])
    return depth


def searched(masks, matrices, view, n_steps=500):
    """The hull's depth by trying many points of each ray; exact to a step or a little less."""
    origin, w = rays(matrices[view], masks[view].shape)
    w = w[masks[view]]
    near, far, meets = geometry.cube_interval(origin, w, geometry.CUBE_PADDING)
    depth = near[:, None] + (far - near)[:, None] * torch.linspace(0, 1, n_steps).double()
    points = origin + depth[..., None] * w[:, None]
    inside = in_visual_hull(points.reshape(-1, 3), masks, matrices).view(depth.shape)
    first = depth.gather(1, inside.int().argmax(1, keepdim=True))[:, 0]
    return first.where(inside.any(1) & meets, torch.inf), (far - near) / (n_steps - 1)


# ---- spheres and boxes ---------------------------------------------------------------------------


def test_hull_contains_a_sphere_and_shrinks_with_the_views():
    # A mask knows the silhouette to half a pixel; at its rim a hull may be that much too small.
    pixel = 2 * DISTANCE * math.tan(math.radians(20)) / 47
    gaps = []
    for n_views in (3, 7, 21):
        matrices = around(n_views)
        true = [sphere(matrix) for matrix in matrices]
        mask = true[0].isfinite()
        depth = hull_depth([d.isfinite() for d in true], matrices, 0)
        assert depth.dtype == torch.float32
        assert not (depth.isfinite() & ~mask).any()
        inner = sphere(matrices[0], 0.4 - pixel)
        assert (depth <= inner).all()
        core = inner.isfinite()
        gaps.append((true[0] - depth)[core].mean().item())
    assert gaps[0] > 2 * gaps[1] and gaps[1] > 2 * gaps[2]
    assert abs(gaps[2]) < pixel / 2


def test_hull_of_one_view_is_its_cone():
    matrix = camera((DISTANCE, 0.1, 0.2))[None]
    mask = sphere(matrix[0]).isfinite()
    origin, w = rays(matrix[0])
    near, _, _ = geometry.cube_interval(origin, w, geometry.CUBE_PADDING)
    depth = hull_depth([mask], matrix, 0)
    assert mask.any() and not mask.all()
    torch.testing.assert_close(depth, near.where(mask, torch.inf).float())


def test_hull_of_a_box_seen_along_the_axes_is_the_box():
    """Far cameras: their rays run along the axes, and the silhouettes leave nothing but the box."""
    half, far = (0.3, 0.2, 0.4), 200.0
    options = {"size": (201, 201), "field_of_view": 2 * math.degrees(math.atan(0.6 / far))}
    eyes = [((far, 0, 0), (0.0, 1, 0)), ((0, far, 0), (0.0, 0, 1)), ((0, 0, -far), (0.0, 1, 0))]
    matrices = torch.stack([camera(eye, up=up, **options) for eye, up in eyes])
    masks = [box(matrix, half, (201, 201)).isfinite() for matrix in matrices]
    pixel = 2 * 0.6 / 200
    for view, axis in enumerate((0, 1, 2)):
        depth = hull_depth(masks, matrices, view)[masks[view]]
        assert (far - depth - half[axis]).abs().max() < pixel


def test_depths_are_where_the_masks_say():
    """A ball on a thin rod; every depth is a border between two pixels."""
    size = (40, 52)
    matrices = around(6, size=size)
    masks = [
        sphere(m, 0.2, (0.1, -0.1, 0), size).isfinite()
        | box(m, (0.03, 0.45, 0.03), size).isfinite() for m in matrices
    ]  # fmt: skip
    for view in range(6):
        depth = hull_depth(masks, matrices, view)[masks[view]].double()
        expected, step = searched(masks, matrices, view)
        both = depth.isfinite() & expected.isfinite()
        assert (both == expected.isfinite()).all() and both.sum() > 50
        assert ((expected - depth)[both] > -1e-5).all()  # never behind what a search finds
        near = ((expected - depth)[both] < step[both] + 1e-5).float().mean()
        assert near > 0.97  # a search passes over what is thinner than its steps
        origin, w = rays(matrices[view], size)
        found = depth[depth.isfinite()]
        for offset, inside in ((1e-5, True), (-1e-5, False)):
            points = origin + (found + offset)[:, None] * w[masks[view]][depth.isfinite()]
            share = (in_visual_hull(points, masks, matrices) == inside).float().mean()
            assert share > 0.97


def test_nothing_is_passed_over():
    """A plate as thin as 1/2000 of a ray's way through the cube, found in a large picture."""
    half = (0.4, 0.4, 0.0005)
    sizes = [(31, 31), (1501, 1501)]
    eyes = [(0, 0.01, -DISTANCE), (0.02, DISTANCE, 0)]
    matrices = torch.stack([
        camera(eye, size, up=(0.0, 0.1, 1.0)) for eye, size in zip(eyes, sizes)
    ])
    masks = [box(m, half, s).isfinite() for m, s in zip(matrices, sizes)]
    depth = hull_depth(masks, matrices, 0)
    true = box(matrices[0], half, sizes[0])
    assert masks[0].sum() > 100
    assert (depth[masks[0]] - true[masks[0]]).abs().max() < 0.01


def test_views_are_all_or_those_named():
    sizes = [(20, 30), (25, 20), (30, 30)]
    eyes = [(DISTANCE, 0.1, 0.2), (0.3, 0.2, DISTANCE), (-2.0, 0.5, -2)]
    matrices = torch.stack([camera(eye, size) for eye, size in zip(eyes, sizes)])
    masks = [sphere(m, size=size).isfinite() for m, size in zip(matrices, sizes)]
    every = visual_hull_depths(masks, matrices)
    assert [tuple(depth.shape) for depth in every] == sizes
    some = visual_hull_depths(masks, matrices, [2, 0])
    assert torch.equal(some[0], every[2]) and torch.equal(some[1], every[0])
    assert visual_hull_depths(masks, matrices, []) == []


# ---- conventions and odd masks -------------------------------------------------------------------


def test_views_may_differ_in_size_and_borders_belong_to_the_frame():
    matrices = torch.stack([camera((0, 0, -DISTANCE), (9, 9)), camera((DISTANCE, 0, 0), (4, 7))])
    masks = [torch.ones(9, 9, dtype=torch.bool), torch.zeros(4, 7, dtype=torch.bool)]
    masks[1][:, :3] = True  # the far side, as the first camera sees it
    depth = hull_depth(masks, matrices, 0)
    expected, step = searched(masks, matrices, 0)
    torch.testing.assert_close(depth.flatten().double(), expected, atol=step.max().item(), rtol=0)
    middle = depth[4][depth[4].isfinite()]
    assert DISTANCE < middle.min() < middle.max() < DISTANCE + 0.4


def test_points_out_of_a_frame_are_not_carved():
    """A camera that looks past the object, and one that has it behind itself."""
    front = camera((0, 0, -DISTANCE))
    true = sphere(front)
    away = geometry.object_to_image(
        geometry.perspective(40, 48, 48), geometry.look_at((0, 0, 3), (0, 0, 9)), torch.eye(4)
    )
    aside = geometry.object_to_image(
        geometry.perspective(40, 48, 48), geometry.look_at((3, 0, 0), (3, 0, 9)), torch.eye(4)
    )
    nothing = torch.zeros(48, 48, dtype=torch.bool)
    alone = hull_depth([true.isfinite()], front[None], 0)
    with_others = hull_depth(
        [true.isfinite(), nothing, nothing], torch.stack([front, away, aside]), 0
    )
    assert torch.equal(alone, with_others)
    points = torch.tensor([[0.0, 0, 0], [0, 0, 5]])
    assert in_visual_hull(points, [nothing], away[None]).tolist() == [True, False]


def test_frame_that_shows_a_part_carves_that_part_only():
    matrices = torch.stack([camera((0, 0, -DISTANCE)), camera((DISTANCE, 0, 0), field_of_view=6)])
    masks = [torch.ones(48, 48, dtype=torch.bool), torch.zeros(48, 48, dtype=torch.bool)]
    depth = hull_depth(masks, matrices, 0)
    expected, step = searched(masks, matrices, 0)
    torch.testing.assert_close(
        depth.flatten().double(), expected, atol=1.5 * step.max().item(), rtol=0
    )


def test_masks_that_contradict_each_other_leave_nothing():
    matrices = around(3)
    masks = [sphere(matrix).isfinite() for matrix in matrices]
    masks[1] = torch.zeros_like(masks[1])
    assert hull_depth(masks, matrices, 0).isinf().all()
    assert hull_depth(masks, matrices, 1).isinf().all()
    masks[1] = sphere(matrices[1], 0.1, (0.0, 0.35, 0)).isfinite()
    depth = hull_depth(masks, matrices, 0)
    assert 0 < depth.isfinite().sum() < masks[0].sum()


def test_mask_pixels_whose_rays_miss_the_cube():
    matrices = torch.stack([camera((0, 0, -DISTANCE), field_of_view=60)])
    mask = torch.ones(48, 48, dtype=torch.bool)
    depth = hull_depth([mask], matrices, 0)
    assert depth[0, 0].isinf() and depth[24, 24].isfinite()
    # What reaches out of the cube starts at its face.
    assert depth[24, 24] == pytest.approx(DISTANCE - 0.55, abs=1e-4)


def test_camera_in_the_cube_and_two_at_one_place():
    inner = camera((0.1, 0.2, 0.3))
    outer = camera((0, 0, -DISTANCE))
    mask = torch.zeros(48, 48, dtype=torch.bool)
    mask[:, :24] = True
    other = torch.ones(48, 48, dtype=torch.bool)
    other[:, :20] = False
    # The same camera with a smaller mask: only pixels of both stay.
    depth = hull_depth([mask, other], torch.stack([outer, outer]), 0)
    cube = box(outer, (0.55, 0.55, 0.55))
    torch.testing.assert_close(depth, cube.where(mask & other, torch.inf).float())
    assert (hull_depth([mask, other], torch.stack([inner, outer]), 0)[mask] >= 0).all()


# ---- scripts/make_visual_hull.py -----------------------------------------------------------------


@pytest.fixture
def script(monkeypatch, capsys):
    """Run the script; gives exit code, stdout, stderr."""

    def script(*arguments):
        monkeypatch.setattr(sys, "argv", ["make_visual_hull.py", *map(str, arguments)])
        return make_visual_hull.main(), *capsys.readouterr()

    return script


def write_shapenet(folder, n_views=4, size=(20, 20)):
    """A sphere in the layout of ShapeNet: no scale matrix, no depth."""
    for name in ("image", "mask"):
        (folder / name).mkdir(parents=True)
    cameras = {}
    for view, matrix in enumerate(around(n_views, size=size)):
        mask = sphere(matrix, RADIUS, size=size).isfinite().numpy()
        Image.fromarray(np.full((*size, 3), 255, np.uint8)).save(folder / f"image/{view:04d}.png")
        Image.fromarray(mask.astype(np.uint8) * 255).save(folder / f"mask/{view:04d}.png")
        cameras |= {f"world_mat_{view}": matrix.numpy(), f"camera_mat_{view}": np.eye(4)}
    np.savez(folder / "cameras.npz", **cameras)


def maps(folder):
    return sorted(folder.glob("visual_hull_depth/*"))


def test_script_writes_what_training_reads(script, tmp_path):
    write_sphere_scene(tmp_path / "dtu/scan1/scan1")
    for model in ("a", "b"):
        write_shapenet(tmp_path / "shapenet/02691156" / model)
    (tmp_path / "shapenet/02691156/train.lst").write_text("a\n")  # all objects, whatever the split
    for root, n_objects, n_maps in (("dtu", 1, 5), ("shapenet", 2, 8)):
        code, out, err = script(tmp_path / root, "--workers", 2)
        assert (code, err) == (0, "")
        assert out.startswith(f"{n_objects} objects: {n_maps} maps written")
    for folder in (tmp_path / "dtu/scan1/scan1", tmp_path / "shapenet/02691156/a"):
        images = ImagesField(visual_hull_depth_folder="visual_hull_depth")
        assert [p.stem for p in maps(folder)] == [p.stem for p in images.images(folder)]
        items = [images.load(folder, view) for view in images.views(folder)]
        matrices = torch.stack([
            geometry.object_to_image(item["camera_mat"], item["world_mat"], item["scale_mat"])
            for item in items
        ])
        for item, matrix in zip(items, matrices):
            size = tuple(item["mask"].shape)
            depth, true = item["visual_hull_depth"], sphere(matrix, RADIUS, size=size)
            assert torch.equal(depth.isfinite(), item["mask"])
            assert (depth <= sphere(matrix, 0.8 * RADIUS, size=size)).all()
            in_front = (true - depth)[item["mask"]] / matrix[2, :3].norm()  # in cube edges
            assert in_front.mean() < 0.2


def test_script_goes_on_where_it_stopped(script, tmp_path):
    write_shapenet(tmp_path / "data/chair/a")
    write_shapenet(tmp_path / "data/chair/b")
    assert script(tmp_path / "data")[0] == 0
    paths = maps(tmp_path / "data/chair/a")
    before = [path.read_bytes() for path in paths]
    paths[1].unlink()
    paths[2].write_bytes(b"kept")
    code, out, _ = script(tmp_path / "data")
    assert code == 0 and "1 maps written, 1 objects had all of theirs" in out
    assert paths[1].read_bytes() == before[1] and paths[2].read_bytes() == b"kept"
    assert script(tmp_path / "data", "--overwrite")[0] == 0
    assert [path.read_bytes() for path in paths] == before


def test_object_that_fails_does_not_stop_the_rest(script, tmp_path):
    for model in ("a", "b", "c"):
        write_shapenet(tmp_path / "data/chair" / model)
    damaged = tmp_path / "data/chair/b/mask/0002.png"
    damaged.write_bytes(damaged.read_bytes()[:60])
    code, out, err = script(tmp_path / "data", "--workers", 2)
    assert code == 2 and "1 failed" in out
    assert err.startswith(f"error: {tmp_path / 'data/chair/b'}: ") and err.count("\n") == 1
    assert "0002.png" in err and "truncated" in err
    counts = [len(maps(tmp_path / "data/chair" / model)) for model in ("a", "b", "c")]
    assert counts == [4, 0, 4]


def test_script_takes_names_of_folders(script, tmp_path):
    write_shapenet(tmp_path / "data/chair/a")
    write_shapenet(tmp_path / "data/table/a")
    (tmp_path / "data/chair/a/mask").rename(tmp_path / "data/chair/a/silhouette")
    options = ("--classes", "chair", "--mask-folder", "silhouette", "--out-folder", "hull")
    assert script(tmp_path / "data", *options)[0] == 0
    written = sorted((tmp_path / "data").glob("*/*/hull/*.exr"))
    assert [path.parts[-4] for path in written] == ["chair"] * 4
    assert np.isfinite(read_depth(written[0])).any()


@pytest.mark.parametrize("arguments, words", [
    (["nowhere"], ["there is no folder", "nowhere"]),
    (["data", "--classes", "sofa"], ["sofa", "chair"]),
    (["data", "--workers", "0"], ["--workers must be 1 or more"]),
])  # fmt: skip
def test_bad_arguments_of_the_script(script, tmp_path, monkeypatch, capsys, arguments, words):
    write_shapenet(tmp_path / "data/chair/a")
    monkeypatch.chdir(tmp_path)
    try:
        code, _, err = script(*arguments)
    except SystemExit as exit:
        code, err = exit.code, capsys.readouterr().err
    assert code == 2
    for word in words:
        assert word in err
