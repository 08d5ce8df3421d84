"""The figures and pictures of a mesh file, against what follows from the images alone."""

import numpy as np
import pytest
import trimesh
from PIL import Image

from benchmarks import mesh_views
from benchmarks.mesh_views import GAP, contact_sheet, measure
from im2mesh.errors import InputError
from im2mesh.meshing import load_mesh
from im2mesh.synthetic import make_dtu_scene, shapes
from im2mesh.synthetic.render import Scene

N_VIEWS = 5
BALL = shapes.sphere(0.25).painted(shapes.solid("#c05030")).moved(-0.15)
BLOCK = shapes.box(0.2, 0.4, 0.3).painted(lambda points: 0.5 + points).moved(0.3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_dtu_scene(
        tmp_path_factory.mktemp("scene"), n_views=N_VIEWS, size=(60, 81), n_points=3000,
        n_sparse=20, parts=[BALL, BLOCK],
    )


@pytest.fixture(scope="module")
def lit():
    """The scene's own surface, each triangle with corners of its own, in the colours that it shows."""
    scene = Scene([BALL, BLOCK])
    faces = np.arange(3 * len(scene.triangles)).reshape(-1, 3)
    mesh = trimesh.Trimesh(scene.triangles.reshape(-1, 3), faces, process=False)
    colors = scene.colours(mesh.vertices, np.repeat(np.arange(len(faces)), 3))
    mesh.visual.vertex_colors = np.round(255 * colors).astype(np.uint8)
    return mesh


def views(folder):
    """Image in [0, 1] and mask of each view, read by Pillow."""
    for i in range(N_VIEWS):
        image = np.array(Image.open(folder / f"image/{i:06d}.png")) / 255
        yield image, np.array(Image.open(folder / f"mask/{i:06d}.png")) > 0


def decibel(difference):
    return -10 * np.log10(np.mean(difference**2))


def test_the_mesh_of_a_scene_agrees_with_its_views(folder, lit):
    found = measure(folder, lit)
    assert found["mask_iou"] == 1 and found["psnr"] > 40 and found["psnr_mask"] == found["psnr"]
    assert [view["view"] for view in found["views"]] == list(range(N_VIEWS))
    assert found["chamferL1"] < 0.01 and found["normals"] > 0.99
    assert (found["components"], found["inward_components"], found["border_edges"]) == (2, 0, 0)
    assert (found["vertices"], found["faces"]) == (len(lit.vertices), len(lit.faces))
    file = measure(folder, folder / "mesh.ply", views=[1, 3])  # its colours are without the light
    assert file["mask_iou"] > 0.999 and 10 < file["psnr"] < found["psnr"] - 10
    assert [view["view"] for view in file["views"]] == [1, 3]


def test_figures_of_a_part_follow_from_those_of_the_whole(folder, lit):
    """Without the block its pixels are white, and those that hide no ball are not hit."""
    whole = measure(folder, lit)
    half = trimesh.Trimesh(lit.vertices, lit.faces[: len(BALL.faces)], process=False)
    half.visual.vertex_colors = lit.visual.vertex_colors
    found = measure(folder, half)
    assert 0.3 < found["mask_iou"] < 0.8
    assert found["psnr_mask"] < found["psnr"] < whole["psnr"]
    for (image, mask), row in zip(views(folder), found["views"]):
        missed = np.sum(mask) * (1 - row["mask_iou"])  # the ball lies within the mask
        assert missed == pytest.approx(round(missed))
    grey = trimesh.Trimesh(half.vertices, half.faces, process=False)
    grey = measure(folder, grey)
    assert grey["mask_iou"] == found["mask_iou"]
    assert np.isnan(grey["psnr"]) and np.isnan(grey["psnr_mask"])


def test_one_colour_everywhere_and_no_mesh_at_all(folder, lit):
    lit = lit.copy()
    lit.visual.vertex_colors = np.uint8([51, 102, 204, 255])
    colored, empty = measure(folder, lit), measure(folder, trimesh.Trimesh())
    for (image, mask), row, nothing in zip(views(folder), colored["views"], empty["views"]):
        assert row["psnr"] == pytest.approx(decibel(image[mask] - [0.2, 0.4, 0.8]))
        assert nothing["mask_iou"] == 0 and np.isnan(nothing["psnr"])
        assert nothing["psnr_mask"] == pytest.approx(decibel(1 - image[mask]))
    assert empty["components"] == empty["faces"] == 0 and np.isnan(empty["psnr"])
    assert empty["chamferL1"] > 1


def test_a_mesh_beside_its_place_loses(folder, lit):
    ious = [measure(folder, lit.copy().apply_translation([0, y, 0]))["mask_iou"] for y in (0, 0.02, 0.1)]
    assert 1 == ious[0] > ious[1] > 0.9 > ious[2] > 0.4


def test_of_large_views_every_other_row_and_column_counts(folder, lit, monkeypatch):
    full = measure(folder, lit.copy().apply_translation([0, 0.02, 0]))
    monkeypatch.setattr(mesh_views, "MAX_PIXELS", 60 * 81 - 1)
    less = measure(folder, lit.copy().apply_translation([0, 0.02, 0]))
    assert less["mask_iou"] != full["mask_iou"]
    assert less["mask_iou"] == pytest.approx(full["mask_iou"], abs=0.01)
    assert less["psnr"] == pytest.approx(full["psnr"], abs=1)


def test_means_over_pixels_show_fine_print_as_the_views_do(tmp_path):
    """Stripes as wide as pixels: a view shows their means, which single rays do not."""
    stripes = shapes.mix(shapes.solid("#000000"), shapes.solid("#ffffff"), shapes.stripes((1, 0.3, 0), 0.04))
    box = shapes.prism([(-0.3, -0.3), (0.3, -0.3), (0.3, 0.3), (-0.3, 0.3)], 0.6).painted(stripes)
    made = make_dtu_scene(tmp_path, n_views=2, size=(45, 60), n_points=100, n_sparse=20, parts=[box])
    scene = Scene([box])
    vertices, faces, of_face = trimesh.remesh.subdivide_to_size(
        scene.triangles.reshape(-1, 3), np.arange(36).reshape(-1, 3), 0.01, return_index=True
    )
    mesh = trimesh.Trimesh(vertices[faces].reshape(-1, 3), np.arange(3 * len(faces)).reshape(-1, 3),
                           process=False)  # fmt: skip
    colors = scene.colours(mesh.vertices, np.repeat(of_face, 3))
    mesh.visual.vertex_colors = np.round(255 * colors).astype(np.uint8)
    single, means = measure(made, mesh), measure(made, mesh, supersample=3)
    assert means["psnr"] > single["psnr"] + 6
    assert means["mask_iou"] == single["mask_iou"] == 1


def test_topology_of_boxes_in_and_beside_each_other():
    outer = trimesh.creation.box((0.8, 0.8, 0.8))
    inner = trimesh.creation.box((0.2, 0.2, 0.2))
    inner.invert()
    open_box = trimesh.creation.box((0.1, 0.1, 0.1)).apply_translation([1, 2, 3])
    open_box.update_faces(np.arange(12) > 0)
    scrap = trimesh.Trimesh([[2, 0, 0], [3, 0, 0], [2, 1, 0]], [[0, 1, 0]], process=False)
    mesh = trimesh.util.concatenate([outer, inner, open_box, scrap])
    counted = {"components": 3, "inward_components": 1, "border_edges": 3}
    assert mesh_views.Mesh(mesh).topology() == counted
    apart = trimesh.Trimesh(mesh.triangles.reshape(-1, 3), np.arange(3 * len(mesh.faces)).reshape(-1, 3),
                            process=False)  # fmt: skip
    assert mesh_views.Mesh(apart).topology() == counted


def test_pictures_show_colours_above_and_normals_below(folder):
    ball = trimesh.creation.icosphere(subdivisions=4, radius=0.3)
    ball.visual.vertex_colors = np.uint8([200, 30, 60, 255])
    sheet = contact_sheet(folder, ball, size=100).astype(float)
    assert sheet.shape == (200 + 3 * GAP, 400 + 5 * GAP, 3)
    middle = [GAP + 50 + side * (100 + GAP) for side in range(4)]
    above, below = sheet[GAP + 50, middle], sheet[2 * GAP + 150, middle]
    np.testing.assert_allclose(above, np.tile([200, 30, 60], (4, 1)), atol=1)
    towards = 2 * below / 255 - 1  # the middle of a ball faces the camera
    np.testing.assert_allclose(np.linalg.norm(towards, axis=1), 1, atol=0.05)
    np.testing.assert_allclose(towards[:, 1], np.sin(np.radians(20)), atol=0.15)
    np.testing.assert_allclose(towards[:2, [0, 2]], -towards[2:, [0, 2]], atol=0.1)
    corner = sheet[GAP + 2, GAP + 2]
    assert (corner == 255).all()
    filled = (sheet[GAP : GAP + 100, GAP : GAP + 100] < 255).any(2)
    assert filled.any(0).sum() >= 96 and filled.any(1).sum() >= 96


def test_command_line(folder, tmp_path, monkeypatch, capsys):
    def run(*args):
        monkeypatch.setattr("sys.argv", ["mesh_views", str(folder), *map(str, args)])
        return mesh_views.main(), capsys.readouterr()

    picture = tmp_path / "new/sheet.png"
    code, shown = run(folder / "mesh.ply", "--pictures", picture, "--views", 0, 2, "--each")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in shown.out.splitlines()]
    assert code == 0 and ["mask_iou", "1.0000"] in rows and ["components", "2"] in rows
    assert [row[0] for row in rows[2:4]] == ["0", "2"]
    assert Image.open(picture).size == (4 * 480 + 5 * GAP, 2 * 480 + 3 * GAP)
    code, shown = run(tmp_path / "none.ply")
    assert code == 2 and shown.err.startswith("error: ") and not shown.out


def test_bad_input(folder, tmp_path):
    mesh = load_mesh(folder / "mesh.ply")
    with pytest.raises(InputError, match="no view 7; views are 0 to 4"):
        measure(folder, mesh, views=[7])
    with pytest.raises(InputError, match="no such folder"):
        measure(tmp_path, mesh)
    mesh.vertices[3] = np.nan
    with pytest.raises(InputError, match="not finite"):
        measure(folder, mesh)
