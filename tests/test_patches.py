"""Consistency between views: patches of images carried over through the tangent plane."""

import pytest
import torch

from im2mesh import geometry
from im2mesh.config import load_config
from im2mesh.dvr import patches
from im2mesh.dvr.patches import PatchConsistency
from im2mesh.errors import InputError
from tests.programs import run

HEIGHT, WIDTH = 60, 80
EYES = [(0.0, 0.0, 2.0), (0.4, 0.0, 2.0), (-0.4, 0.1, 2.0), (0.1, 0.5, 1.9), (0.0, -0.5, 2.1)]
NORMAL = (0.0, 0.6, 0.8)  # of a plane through the origin


def texture(points):
    """Grey (M,) in [0, 1] of points of space, finer than a patch, coarser than a pixel."""
    phase = points.double() @ torch.tensor([[60.0, 15.0, 30.0], [-20.0, 50.0, 9.0]]).double().T
    return 0.5 + 0.2 * phase.sin().sum(dim=-1)


def cameras():
    camera = geometry.perspective(30, HEIGHT, WIDTH)
    return torch.stack([camera @ geometry.look_at(eye) for eye in EYES])


def rays_to_plane(matrices, pixels):
    """Origins, directions and depths of rays of pixels (V, N, 2) where they meet the plane."""
    origins, directions = geometry.camera_rays(pixels, matrices)
    normal = torch.tensor(NORMAL)
    return origins, directions, -(origins @ normal) / (directions @ normal)


def plane_views(masks=None, covered=()):
    """Pictures of the textured plane; those of ``covered`` views show something else."""
    matrices = cameras()
    pixels = geometry.pixel_centers(HEIGHT, WIDTH).expand(len(EYES), -1, -1)
    origins, directions, depth = rays_to_plane(matrices, pixels)
    grey = texture(origins + depth[..., None] * directions).view(-1, HEIGHT, WIDTH)
    for view in covered:
        grey[view] = torch.rand(HEIGHT, WIDTH, generator=torch.Generator().manual_seed(view))
    images = (255 * grey).round().to(torch.uint8)[..., None].expand(-1, -1, -1, 3)
    if masks is None:
        masks = torch.ones(images.shape[:3], dtype=torch.bool)
    return PatchConsistency(images, masks, matrices)


def disagreement(views, offset=0.0, pixels=((0.0, 0.0), (0.3, -0.2), (-0.4, 0.1)), view=0, normal=NORMAL):
    """Values for points ``offset`` in depth behind the plane, and the depths that they depend on."""
    pixels = torch.tensor(pixels)[None]
    origins, directions, depth = rays_to_plane(cameras()[view : view + 1], pixels)
    depth = (depth + offset).requires_grad_()
    points = (origins + depth[..., None] * directions)[0]
    normals = torch.tensor(normal).expand_as(points)
    return views(points, normals, torch.full((len(points),), view)), depth


@pytest.mark.parametrize("view", range(len(EYES)))
def test_views_agree_on_the_true_surface(view):
    values, _ = disagreement(plane_views(), view=view)
    assert len(values) == 3 and values.max() < 0.02


@pytest.mark.parametrize("offset", [-0.05, 0.05])
def test_the_gradient_leads_to_the_surface(offset):
    views = plane_views()
    values, depth = disagreement(views, offset)
    assert (values > 0.05).all()
    values.sum().backward()
    assert (depth.grad.sign() == torch.tensor(offset).sign()).all()


def test_gradient_is_that_of_differences():
    views = plane_views()
    values, depth = disagreement(views, 0.05)
    values.sum().backward()
    step = 2e-4
    change = disagreement(views, 0.05 + step)[0] - disagreement(views, 0.05 - step)[0]
    # The patch is carried by its centre, which stays on its ray.
    torch.testing.assert_close(depth.grad[0], change.detach() / (2 * step), rtol=0.1, atol=0.05)


def test_the_normal_counts():
    values, _ = disagreement(plane_views(), normal=(0.0, -0.6, 0.8))
    assert (values > 0.05).all()


def test_covered_neighbors_are_forgiven(monkeypatch):
    monkeypatch.setattr(patches, "N_BEST", 2)
    values, _ = disagreement(plane_views(covered=[3, 4]))
    assert values.max() < 0.02
    assert disagreement(plane_views(covered=[2, 3, 4]))[0].min() > 0.1


def test_points_of_which_nothing_can_be_told():
    masks = torch.ones(len(EYES), HEIGHT, WIDTH, dtype=torch.bool)
    masks[0, :, : WIDTH // 2] = False
    values, _ = disagreement(plane_views(masks))  # two of three lie at the border or beyond it
    assert len(values) == 1
    away, _ = disagreement(plane_views(), normal=(0.0, 0.0, -1.0))
    assert len(away) == 0
    at_the_edge, _ = disagreement(plane_views(), pixels=((0.99, 0.0),))
    assert len(at_the_edge) == 0
    plain = PatchConsistency(
        torch.full((5, HEIGHT, WIDTH, 3), 90, dtype=torch.uint8), torch.ones_like(masks), cameras()
    )
    assert len(disagreement(plain)[0]) == 0
    assert len(plain(torch.empty(0, 3), torch.empty(0, 3), torch.empty(0, dtype=torch.long))) == 0


def test_one_view_alone():
    with pytest.raises(ValueError, match="one view"):
        PatchConsistency(
            torch.zeros(1, 4, 4, 3, dtype=torch.uint8), torch.ones(1, 4, 4, dtype=torch.bool), cameras()[:1]
        )


def test_nearest_views():
    views = plane_views()
    assert set(views.nearest[0].tolist()) == {1, 2, 3, 4}
    assert views.nearest[1, 0] == 0


# ---- runs ----------------------------------------------------------------------------------------


@pytest.fixture
def compared(project):
    return project(
        model={"lambda_patch": 2.0},
        training={"max_iterations": 3, "print_every": 1, "validate_every": 3, "n_compared_patches": 40},
    )


def test_a_run_that_compares_views(compared, out, monkeypatch):
    monkeypatch.setattr(patches, "SIZE", 2)  # the images have 16 x 20 pixels
    counts, values = [], PatchConsistency.__call__

    def counted(self, points, normals, views):
        counts.append(len(points))
        assert points.requires_grad and (views < len(self.grey)).all()
        # The points are seen where the views that are named see them.
        centres = self._patch(points, views).mean(dim=1)
        assert (centres.abs() <= 1.001).all()
        return values(self, points, normals, views)

    monkeypatch.setattr(PatchConsistency, "__call__", counted)
    assert run("train", compared) == 0
    assert len(counts) == 3 and 0 < max(counts) <= 40
    log = (out / "train.log").read_text()
    assert "patch" in log.split("validation")[0] and "patch" not in log.split("validation")[1].split("\n")[0]


def test_images_of_several_sizes(compared, tiny_dtu, capsys):
    from PIL import Image

    for kind in ("image", "mask"):
        [path] = (tiny_dtu / "scan1/scan1" / kind).glob("*1.png")
        Image.open(path).resize((30, 24)).save(path)
    assert run("train", compared) == 2
    message = capsys.readouterr().err
    assert "model.lambda_patch" in message and "several sizes" in message


@pytest.mark.parametrize(
    "overrides, words",
    [
        (["model.lambda_patch=1"], ["lambda_patch", "encoder"]),
        (["model.lambda_patch=1", "model.encoder=null", "model.c_dim=0"],
         ["lambda_patch", "data.split_model_for_images=true"]),
        (["model.lambda_patch=-1"], ["lambda_patch"]),
        (["training.n_compared_patches=0"], ["n_compared_patches"]),
    ],
)
def test_options_that_do_not_fit(overrides, words):
    with pytest.raises(InputError) as err:
        load_config("configs/default.yaml", overrides)
    assert all(word in str(err.value) for word in words)
