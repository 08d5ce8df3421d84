"""Surface points that the mask of any view shows to be background."""

import math

import pytest
import torch

from im2mesh import geometry
from im2mesh.config import load_config
from im2mesh.data import ImagesField, MultiObjectDataset, collate
from im2mesh.dvr.model import DVR
from im2mesh.dvr.raymarch import DepthFunction
from im2mesh.dvr.silhouettes import Silhouettes
from im2mesh.dvr.training import LossOptions, Trainer
from im2mesh.errors import InputError
from tests import plain
from tests.programs import run
from tests.sphere_scene import RADIUS

HEIGHT, WIDTH = 40, 60
EYES = [(0.0, 0.0, 2.0), (2.0, 0.0, 0.0)]  # along z and along x


def cameras():
    camera = geometry.perspective(30, HEIGHT, WIDTH)
    return torch.stack([camera @ geometry.look_at(eye) for eye in EYES])


@pytest.mark.parametrize(
    "row, column, outside",
    [
        (20, 30, False),
        (12, 30, False),  # the first row of the mask
        (11, 30, False),  # one pixel before it
        (10, 30, True),  # two
        (20, 42, False),  # one pixel beside it
        (20, 43, True),
        (11, 42, False),  # at its corner
        (-1, 30, False),  # not in the image
    ],
)
def test_one_mask(row, column, outside):
    masks = torch.zeros(1, HEIGHT, WIDTH, dtype=torch.bool)
    masks[0, 12:29, 20:42] = True
    pixel = geometry.index_to_image(torch.tensor([[row, column]]), HEIGHT, WIDTH)[None].float()
    origins, directions = geometry.camera_rays(pixel, cameras()[:1])
    point = (origins + 2 * directions)[0]
    assert Silhouettes(masks, cameras()[:1]).outside(point).tolist() == [outside]


def test_any_view_counts_and_none_behind_a_camera():
    masks = torch.zeros(2, HEIGHT, WIDTH, dtype=torch.bool)
    masks[0] = True
    masks[1, 15:25, 25:35] = True
    points = torch.tensor([[0.0, 0, 0], [0, 0, 0.4], [0, 0.3, 0], [0.3, 0, 0], [3, 0.3, 0]])
    assert Silhouettes(masks, cameras()).outside(points).tolist() == [False, True, True, False, False]


def test_of_many_views_each_is_asked_in_turn(monkeypatch):
    monkeypatch.setattr("im2mesh.dvr.silhouettes.MOST_VIEWS", 1)
    masks = torch.ones(2, HEIGHT, WIDTH, dtype=torch.bool)
    masks[1] = False
    views = Silhouettes(masks, cameras())
    answers = [views.outside(torch.zeros(1, 3), torch.Generator().manual_seed(i)).item() for i in range(30)]
    assert 5 < sum(answers) < 25
    assert answers[3] == views.outside(torch.zeros(1, 3), torch.Generator().manual_seed(3)).item()


@pytest.fixture
def sphere(tiny_dtu):
    dataset = MultiObjectDataset(tiny_dtu, {"img": ImagesField()}, split_model_for_images=True)
    return [dataset[view] | {"inputs": torch.tensor(view)} for view in range(len(dataset))]


def make_trainer(weights, lr=0.0, **options):
    """Of an octahedron whose corners stick out of the sphere."""
    decoder = plain.octahedron_decoder(0, 0, hidden_size=32)
    with torch.no_grad():
        decoder.fc_out.bias[0] += 0.3
    model = DVR(decoder, None, DepthFunction(schedule_ray_sampling=False))
    options = {"n_training_points": 10**6, **options}
    return Trainer(model, torch.optim.SGD(model.parameters(), lr=lr), LossOptions(weights=weights, **options))


def test_the_term_is_that_of_free_space_at_hits_that_another_view_excludes(sphere):
    """Counted pixel by pixel; the logit is 0 at a surface, where the loss is log 2."""
    trainer = make_trainer({"silhouettes": 1.0})
    trainer.know_views(sphere)
    count = 0
    for item in sphere:
        to_image = geometry.object_to_image(*(item[f"img.{m}_mat"][None] for m in ("camera", "world", "scale")))
        pixels = geometry.pixel_centers(*item["img.mask"].shape)[None]
        origins, directions = (t[0] for t in geometry.camera_rays(pixels, to_image))
        hits = trainer.model.find_surface(origins, directions)
        for point in hits.points[hits.hit & item["img.mask"].flatten()]:
            count += any(excludes(other, point) for other in sphere)
    report = trainer.train_step(collate(sphere), 0)
    assert count > 20
    assert report["silhouettes"] == pytest.approx(count * math.log(2) / len(sphere), rel=0.01)


def excludes(item, point):
    """Whether a point lies before or behind no pixel of a mask, nor beside one (plain arithmetic)."""
    matrix = item["img.camera_mat"].double() @ item["img.world_mat"].double() @ item["img.scale_mat"].double()
    x, y, z, _ = (matrix @ torch.cat([point.double(), torch.ones(1).double()])).tolist()
    height, width = item["img.mask"].shape
    row, column = (y / z + 1) / 2 * (height - 1), (x / z + 1) / 2 * (width - 1)
    if not (0 <= row <= height - 1 and 0 <= column <= width - 1):
        return False
    row, column = round(row), round(column)
    around = item["img.mask"][max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
    return not bool(around.any())


def test_it_carves_and_stops_at_the_silhouettes(sphere):
    def extent(trainer):
        axis = torch.linspace(-0.55, 0.55, 45)
        points = torch.cartesian_prod(axis, axis, axis)
        with torch.no_grad():
            inside = points[trainer.model.decoder.occupancy(points) > 0]
        return inside.norm(dim=1).max()

    trainer = make_trainer({"silhouettes": 1.0}, lr=1e-4)
    trainer.know_views(sphere)
    before = extent(trainer)
    for iteration in range(60):
        report = trainer.train_step(collate(sphere), iteration)
    after = extent(trainer)
    assert before > 1.3 * RADIUS and after < before - 0.05
    assert after > 0.8 * RADIUS and report["hit_share"] > 0.1  # not beyond


def test_rays_from_around_carve_too(sphere):
    """Their hits count besides: with none of the pixels in a mask, only they are asked about."""
    trainer = make_trainer({"silhouettes": 1.0}, n_surrounding_rays=200)
    trainer.know_views(sphere)
    hidden = [item | {"img.mask": torch.zeros_like(item["img.mask"])} for item in sphere]
    assert trainer.train_step(collate(hidden), 0)["silhouettes"] > 0


# ---- runs ----------------------------------------------------------------------------------------


def test_a_run(project, out):
    config = project(
        model={"lambda_silhouettes": 2.0},
        training={"max_iterations": 3, "print_every": 1, "validate_every": 3},
    )
    assert run("train", config) == 0
    log = (out / "train.log").read_text()
    training, validation = log.split("validation")[:2]
    assert "silhouettes" in training and "silhouettes" not in validation.split("\n")[0]


@pytest.mark.parametrize(
    "overrides, words",
    [
        (["model.lambda_silhouettes=1"], ["lambda_silhouettes", "encoder"]),
        (["model.lambda_silhouettes=1", "model.encoder=null", "model.c_dim=0"],
         ["lambda_silhouettes", "data.split_model_for_images=true"]),
        (["model.lambda_silhouettes=-1"], ["lambda_silhouettes"]),
    ],
)
def test_options_that_do_not_fit(overrides, words):
    with pytest.raises(InputError) as err:
        load_config("configs/default.yaml", overrides)
    assert all(word in str(err.value) for word in words)
