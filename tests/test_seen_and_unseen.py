"""What a trained field with detail is where rays pass, where none does, and where no mask is."""

import numpy as np
import pytest
import torch

from im2mesh.commands.setup import get_dataset, load_trained_model
from im2mesh.config import load_config, method_module
from im2mesh.dvr.raymarch import march
from im2mesh.geometry import camera_rays, object_to_image, pixel_centers
from im2mesh.meshing import signed_volume
from im2mesh.synthetic import make_dtu_scene
from im2mesh.synthetic.shapes import revolve, solid
from tests.programs import run, write_config

WALL = 0.06
RADIUS, FLOOR, RIM = 0.3, -0.05, 0.3  # of the pot's inside, and its lowest and highest point
INSIDE = [0.0, -0.24, 0.0]  # the middle of its thick foot


def pot():
    """A pot, open above, with a thick foot."""
    outer = RADIUS + WALL
    profile = [
        (0, -0.4), (outer, -0.4), (outer, RIM), (RADIUS, RIM), (RADIUS, FLOOR), (0, FLOOR),
    ]
    return [revolve(profile, 48).painted(solid("#b08040"))]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model of the pot, learned in seconds from cameras above and below it."""
    folder = tmp_path_factory.mktemp("pot")
    make_dtu_scene(folder / "data", n_views=16, size=(48, 64), parts=pot(), n_points=2000, n_sparse=50)
    config = write_config(
        folder, folder / "data",
        model={
            "decoder": "hashgrid", "visual_hull": True, "lambda_unseen": 0.5, "lambda_normal": 0.1,
            "normal_neighborhood": 0.02, "lambda_depth": 10.0,
            "depth_function_kwargs": {"n_steps": [64, 65], "schedule_ray_sampling": False},
            "decoder_kwargs": {"hidden_size": 32, "n_levels": 6, "finest": 64, "log2_table_size": 14},
        },
        training={
            "batch_size": 4, "n_training_points": 200, "learning_rate": 0.008, "scheduler": "cosine",
            "scheduler_gamma": 0.05, "hull_iterations": 60, "occupancy_points": "closest",
            "max_iterations": 450, "print_every": 0, "validate_every": 0,
        },
        generation={"resolution_0": 32, "upsampling_steps": 1, "refinement_step": 0},
        test={"model_file": "model.pt"},
    )
    assert run("train", config) == 0
    config = load_config(config)
    return config, load_trained_model(config, torch.device("cpu"))


def inside_share(model, middle, radius=0.03):
    offsets = torch.rand(500, 3, generator=torch.Generator().manual_seed(0)) * 2 * radius - radius
    with torch.no_grad():
        return float((model.logit_field()(torch.tensor(middle).float() + offsets) > 0).float().mean())


def test_a_cavity_that_is_seen_stays_open(trained):
    _, model = trained
    assert inside_share(model, [0.0, 0.15, 0.0]) < 0.05
    assert inside_share(model, [0.12, 0.05, 0.1]) < 0.05


def test_a_place_that_no_ray_reaches_is_solid(trained):
    _, model = trained
    assert inside_share(model, INSIDE) > 0.99
    assert inside_share(model, [0.2, -0.22, 0.1]) > 0.99


def test_the_mesh_has_no_hidden_surface(trained):
    """One part, oriented outwards, that holds the whole foot and not the pot's inside."""
    config, model = trained
    config["generation"]["fill_cavities"] = False  # the field itself has none
    mesh = method_module(config).get_generator(config, model, "cpu").generate()
    edges = np.sort(mesh.faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1)
    _, counts = np.unique(edges, axis=0, return_counts=True)
    assert (counts == 2).all()
    outer = RADIUS + WALL
    volume = np.pi * (outer**2 * (RIM + 0.4) - RADIUS**2 * (RIM - FLOOR))
    assert signed_volume(mesh.vertices, mesh.faces) == pytest.approx(volume, rel=0.08)


def test_nothing_floats(trained):
    """Outside of the pot, cameras' places included, all is free."""
    _, model = trained
    points = (torch.rand(20000, 3, generator=torch.Generator().manual_seed(1)) - 0.5) * 1.1
    outside = (points[:, [0, 2]].norm(dim=1) > 0.42) | (points[:, 1] > 0.36) | (points[:, 1] < -0.46)
    with torch.no_grad():
        assert (model.logit_field()(points[outside]) < 0).all()


def test_rays_of_a_trained_field(trained):
    """The search with all its shortcuts meets the same surface as every sample of every ray."""
    config, model = trained
    differ = total = 0
    for item in get_dataset(config, "render"):
        matrix = object_to_image(*(item[f"img.{m}_mat"] for m in ("camera", "world", "scale")))
        pixels = pixel_centers(48, 64)[None]
        origins, directions = (t[0] for t in camera_rays(pixels, matrix[None]))
        found = model.find_surface(origins, directions)
        near, far = model.depth_function.interval(origins, directions)
        with torch.no_grad():
            field = model.logit_field()
            plainly = march(
                lambda points, rays: field(points), origins, directions, near, far, 64
            )
        apart = (found.points - plainly.points).norm(dim=1) > 1e-3
        differ += int(((found.hit != plainly.hit) | apart).sum())
        total += len(near)
    assert differ <= 0.001 * total
