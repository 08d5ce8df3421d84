"""Meshes of an octahedron against closed forms; what is said about a bad mesh."""

import math
import re

import numpy as np
import pytest
import torch
from PIL import Image

from im2mesh.commands.diagnosis import diagnose
from im2mesh.commands.setup import get_dataset
from im2mesh.config import load_config
from im2mesh.dvr.field import Field
from im2mesh.dvr.generation import Generator
from im2mesh.dvr.model import DVR
from im2mesh.errors import InputError
from im2mesh.meshing import signed_volume
from tests.programs import octahedron, write_config
from tests.sphere_scene import SCALE, write_sphere_scene
from tests.test_rendering import true_octahedron

RADIUS = 0.3


def generate(model, shifts=None, **options):
    options = {"resolution_0": 16, "upsampling_steps": 1, "refinement_step": 0} | options
    return Generator(model, **options).generate(shifts)


def l1_norm(vertices):
    return np.abs(vertices).sum(axis=1)


# ---- meshes --------------------------------------------------------------------------------------


def test_octahedron():
    """The field is linear in each octant, so the vertices lie on it exactly."""
    mesh = generate(octahedron(RADIUS))
    np.testing.assert_allclose(l1_norm(mesh.vertices), RADIUS, atol=1e-6)
    assert signed_volume(mesh.vertices, mesh.faces) == pytest.approx(4 / 3 * RADIUS**3, rel=0.02)
    assert not mesh.is_empty and mesh.vertices.dtype == np.float64
    assert mesh.extracted.vertices is mesh.vertices  # nothing came after the extraction
    expected = np.floor(255 / (1 + np.exp(-4 * mesh.vertices)))
    assert mesh.colors.shape == (len(mesh.vertices), 4) and mesh.colors.dtype == np.uint8
    assert np.abs(mesh.colors[:, :3] - expected).max() <= 1 and (mesh.colors[:, 3] == 255).all()


def test_surface_is_that_of_the_threshold():
    """slope * (radius - |p|_1) = log(tau / (1 - tau))"""
    for tau in (0.2, 0.9):
        mesh = generate(octahedron(RADIUS, slope=20.0), threshold=tau)
        expected = RADIUS - math.log(tau / (1 - tau)) / 20
        np.testing.assert_allclose(l1_norm(mesh.vertices), expected, atol=1e-6)


def test_padding_widens_the_cube():
    cut, whole = (generate(octahedron(0.55), padding=padding) for padding in (0.0, 0.2))
    assert cut.extracted.touches_cube and not whole.extracted.touches_cube
    assert np.abs(cut.vertices).max() == pytest.approx(0.5, abs=0.001)
    np.testing.assert_allclose(l1_norm(whole.vertices), 0.55, atol=1e-6)


def test_resolution():
    counts = [
        len(generate(octahedron(RADIUS), resolution_0=n, upsampling_steps=s).faces)
        for n, s in [(8, 0), (8, 1), (16, 0), (8, 2)]
    ]
    assert counts[1] == counts[2] and counts[0] < counts[1] / 3 and counts[1] < counts[3] / 3


def test_simplification():
    mesh = generate(octahedron(RADIUS), simplify_nfaces=800)
    assert len(mesh.faces) <= 800 < len(mesh.extracted.faces)
    assert signed_volume(mesh.vertices, mesh.faces) == pytest.approx(4 / 3 * RADIUS**3, rel=0.05)
    assert len(mesh.colors) == len(mesh.vertices)


def test_refinement_follows_the_seed_and_the_threshold():
    options = {"refinement_step": 3, "refine_max_faces": 50}
    one, same, other = (generate(octahedron(RADIUS), seed=seed, **options) for seed in (1, 1, 2))
    assert 0 < np.abs(one.vertices - one.extracted.vertices).max() < 1e-3
    np.testing.assert_array_equal(one.vertices, same.vertices)
    assert (one.vertices != other.vertices).any()
    np.testing.assert_array_equal(one.faces, one.extracted.faces)

    # Away from the surface of the threshold the points would all be drawn back to it.
    high = generate(octahedron(RADIUS), threshold=0.9, refinement_step=20)
    assert np.abs(l1_norm(high.vertices) - (RADIUS - math.log(9) / 20)).mean() < 1e-3


def test_latent_of_the_object():
    """A shift of one unit of the first block widens the octahedron and whitens it."""
    model = octahedron(RADIUS)
    with torch.no_grad():
        model.decoder.fc_out.weight[:, 6] = 20
    shifts = [torch.zeros(1, 16) for _ in model.decoder.blocks]
    shifts[0][0, 6] = 0.1
    mesh = generate(model, shifts, refinement_step=1)
    np.testing.assert_allclose(l1_norm(mesh.vertices), RADIUS + 0.1, atol=1e-4)
    expected = np.floor(255 / (1 + np.exp(-4 * mesh.vertices - 2)))
    assert np.abs(mesh.colors[:, :3] - expected).max() <= 1


def test_empty_field():
    mesh = generate(octahedron(-1), refinement_step=5, simplify_nfaces=10)
    assert mesh.is_empty and mesh.extracted.is_empty
    assert mesh.vertices.shape == mesh.faces.shape == (0, 3) and mesh.colors.shape == (0, 4)
    assert set(mesh.seconds) == {"extraction", "colors"}
    assert mesh.extracted.logit_range == pytest.approx((20 * -2.5, 20 * -1.0))


@pytest.mark.parametrize(
    "options, stages",
    [
        ({}, {"extraction", "colors"}),
        ({"with_colors": False, "refinement_step": 1}, {"extraction", "refinement"}),
        ({"with_colors": False, "simplify_nfaces": 50}, {"extraction", "simplification"}),
    ],
)
def test_stages_are_timed(options, stages):
    mesh = generate(octahedron(RADIUS), **options)
    assert set(mesh.seconds) == stages and all(time > 0 for time in mesh.seconds.values())
    assert (mesh.colors is None) == ("colors" not in stages)


def test_colors_of_a_model_without_any():
    with pytest.raises(InputError, match="generation.with_colors.*out_dim"):
        Generator(octahedron(out_dim=1))
    assert generate(octahedron(RADIUS, out_dim=1), with_colors=False).colors is None


def test_the_network_is_left_as_it_was_and_asked_in_parts():
    model = octahedron(RADIUS, max_points=500)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    sizes = []
    model.decoder.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    occupancy = model.decoder.occupancy

    def recorded(points, *args):
        sizes.append(len(points))
        return occupancy(points, *args)

    model.decoder.occupancy = recorded
    generate(model, refinement_step=2, refine_max_faces=300)
    assert max(sizes) <= 500 and sum(sizes) > 17**3
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())


# ---- diagnosis -----------------------------------------------------------------------------------


@pytest.fixture
def diagnosis(tmp_path, tiny_dtu):
    """Generate a mesh of a model and tell what is wrong with it."""

    def diagnosis(model, **data):
        config = load_config(write_config(tmp_path, tiny_dtu, data=data))
        extracted = generate(model, resolution_0=8, with_colors=False).extracted
        (entry,) = get_dataset(config, "test").entries
        return diagnose(config, torch.device("cpu"), model, None, entry, extracted)

    return diagnosis


def test_a_good_mesh_needs_no_words_and_no_data(diagnosis, tiny_dtu):
    for path in (tiny_dtu / "scan1/scan1/image").iterdir():
        path.unlink()
    assert diagnosis(octahedron(RADIUS)) == []


def test_figures_of_the_diagnosis(diagnosis, tiny_dtu):
    """Against the closed form of all rays of a 64 x 64 picture of each view."""
    (text,) = diagnosis(octahedron(0.52, slope=4.0))
    folder = tiny_dtu / "scan1/scan1"
    cameras = np.load(folder / "cameras.npz")
    rows, columns = (np.rint(np.linspace(0, n - 1, 64)).astype(int) for n in (16, 20))
    masks, hits = [], []
    for view in range(5):
        mask = np.asarray(Image.open(folder / f"mask/{view:03d}.png")) > 0
        masks.append(mask[np.ix_(rows, columns)])
        matrix = cameras[f"camera_mat_{view}"] @ cameras[f"world_mat_{view}"] @ SCALE
        hits.append(~np.isnan(true_octahedron(torch.from_numpy(matrix), 64, 64, 0.52)[0]))
    masks, hits = np.array(masks), np.array(hits)
    found = re.search(
        r"in 5 views (\d+)% of the pixels are in the mask, the rays of 100% of those meet the "
        r"cube, (\d+)% of all rays hit, mask IoU ([\d.]+)", text,
    )
    assert int(found[1]) == round(100 * masks.mean())
    assert int(found[2]) == pytest.approx(100 * hits.mean(), abs=1)
    assert float(found[3]) == pytest.approx((masks & hits).sum() / (masks | hits).sum(), abs=0.01)


def test_camera_that_misses_the_cube_is_seen(diagnosis, tiny_dtu):
    path = tiny_dtu / "scan1/scan1/cameras.npz"
    away = SCALE.copy()
    away[:3, 3] += 5000
    moved = {f"scale_mat_{view}": away for view in range(5)}
    np.savez(path, **dict(np.load(path)) | moved)
    (text,) = diagnosis(octahedron(-1))
    assert "the rays of 0% of those meet the cube" in text and "scale_mat" in text


def test_at_most_eight_views_are_looked_at(diagnosis, tmp_path, tiny_dtu):
    write_sphere_scene(tmp_path / "many", n_views=17, size=(4, 5))
    (tiny_dtu / "scan1/scan1").rename(tmp_path / "old")
    (tmp_path / "many").rename(tiny_dtu / "scan1/scan1")
    (text,) = diagnosis(octahedron(-1))
    assert "in 6 views" in text  # 0, 3 ... 15


def test_data_that_cannot_be_looked_at(diagnosis, tiny_dtu):
    (text,) = diagnosis(octahedron(-1), img_with_mask=False)
    assert "mesh is empty" in text and "no masks or cameras to compare with" in text
    (tiny_dtu / "scan1/scan1/mask/000.png").unlink()
    (text,) = diagnosis(octahedron(2))
    assert "whole cube" in text and "its views could not be read: " in text


def test_colors_are_means_over_the_views_that_see_a_vertex():
    """Of a field whose colour is the direction of view, so that the mean can be told."""
    class Seen(Field):
        view_dependent = True

        def __init__(self):
            super().__init__()
            self.radius = torch.nn.Parameter(torch.tensor(0.3))

        def forward(self, points, latent=None, objects=None, directions=None):
            if directions is None:
                directions = -points
            logit = 20 * (self.radius - points.norm(dim=1, keepdim=True))
            return torch.cat([logit, torch.nn.functional.normalize(directions, dim=1)], dim=1)

    generator = Generator(DVR(Seen()), resolution_0=16, upsampling_steps=0, refinement_step=0)
    centers = np.array([[3.0, 0, 0], [0, 3.0, 0]])
    mesh = generator.generate(camera_centers=centers)
    top = int(np.argmax(mesh.vertices[:, 0]))
    towards = mesh.vertices[top] - centers[0]
    expected = 255 / (1 + np.exp(-towards / np.linalg.norm(towards)))
    np.testing.assert_allclose(mesh.colors[top, :3], expected, atol=4)
    back = int(np.argmin(mesh.vertices[:, 2]))  # turned away from both: along the inward normal
    inward = 255 / (1 + np.exp(-np.array([0, 0, 1.0])))
    np.testing.assert_allclose(mesh.colors[back, :3], inward, atol=4)
    along_normals = generator.generate()
    assert (along_normals.colors[back] == mesh.colors[back]).all()
    assert (along_normals.colors != mesh.colors).any()
