"""Agreement with figures computed by the published implementation (float32)."""

import pytest
import torch

from im2mesh import geometry
from im2mesh.dvr import losses
from im2mesh.dvr.field import outward_normals
from im2mesh.dvr.implicit import depth_with_gradient, follow_surface
from im2mesh.dvr.model import DVR
from im2mesh.dvr.raymarch import DepthFunction
from tests.reference import both_files, load, needs_reference

pytestmark = needs_reference


def relative(value, reference):
    return ((value - reference).double().norm() / reference.double().norm()).item()


class Scene:
    """A reference file, its model and the rays of its pixels, flat."""

    def __init__(self, name):
        self.data, decoder = load(name)
        self.model = DVR(decoder, depth_function=DepthFunction(method="secant"))  # as published
        self.c = self.data["c"].clone().requires_grad_()
        self.shifts = decoder.condition(self.c)
        batch, n_rays = self.data["pixels"].shape[:2]
        self.objects = torch.arange(batch).repeat_interleave(n_rays)
        matrix = geometry.object_to_image(
            *(self.data[f"{m}_mat"] for m in ("camera", "world", "scale"))
        )
        self.matrix = matrix
        self.origins, self.directions = (
            t.flatten(0, 1) for t in geometry.camera_rays(self.data["pixels"], matrix)
        )

    def march(self, n_steps):
        return self.model.find_surface(
            self.origins, self.directions, self.shifts, self.objects, (n_steps, n_steps + 1)
        )

    def at_hits(self, n_steps=64):
        """What a loss needs at the hits: indices, depth and colour with gradients, the evaluation."""
        hits = self.march(n_steps)
        rays = hits.hit.nonzero()[:, 0]
        decoder = self.model.decoder
        there = decoder.evaluate(hits.points[rays], self.shifts, self.objects[rays])
        rate = there.along(self.directions[rays])
        depth = depth_with_gradient(hits.depth[rays], there.out[:, 0], rate[:, 0])
        colors = torch.sigmoid(
            follow_surface(there.out[:, 1:], rate[:, 1:], hits.depth[rays], depth)
        )
        return rays, depth, colors, there

    def check_gradients(self, loss, prefix):
        names, weights = zip(*self.model.named_parameters())
        gradients = torch.autograd.grad(loss, [*weights, self.c], allow_unused=True)
        compared = 0
        for name, gradient in zip([*names, "c"], gradients):
            key = f"{prefix}_c" if name == "c" else f"{prefix}/{name}"
            if key in self.data:
                assert relative(gradient, self.data[key]) < 1e-3, name
                compared += 1
        assert compared >= len(names)


@pytest.fixture(params=["uncond", "cond"])
def scene(request):
    return Scene(request.param)


def test_fields(scene):
    data = scene.data
    batch, n_points = data["points"].shape[:2]
    objects = torch.arange(batch).repeat_interleave(n_points)
    out = scene.model.decoder(data["points"].flatten(0, 1), scene.shifts, objects)
    assert relative(out[:, 0], data["logits"].flatten()) < 1e-4
    assert relative(torch.sigmoid(out[:, 1:]), data["rgb"].flatten(0, 1)) < 1e-4


def test_cameras(scene):
    data = scene.data
    projected, depth = geometry.project(data["p_obj"], scene.matrix)
    camera = torch.cat([projected * depth[..., None], depth[..., None]], dim=-1)
    assert relative(camera, data["p_camera_space"]) < 1e-4
    origins = scene.origins.view(*data["pixels"].shape[:2], 3)
    assert relative(origins[:, :3], data["origin_to_world"]) < 1e-4
    ends = scene.origins + scene.directions
    assert relative(ends, data["image_points_to_world"].flatten(0, 1)) < 1e-4


def test_cube_interval(scene):
    near, far, inside = geometry.cube_interval(scene.origins, scene.directions, 0.1)
    reference = scene.data["cube_inside"].flatten()
    assert (inside != reference).float().mean() < 0.005
    both = inside & reference
    interval = torch.stack([near, far], dim=-1)[both]
    assert relative(interval, scene.data["cube_interval"].flatten(0, 1)[both]) < 1e-4


@pytest.mark.parametrize("n_steps", [16, 64, 128])
def test_march(scene, n_steps):
    hits = scene.march(n_steps)
    compared = scene.data["cube_inside"].flatten()
    reference = scene.data[f"hit_{n_steps}"].flatten()
    assert (hits.hit != reference)[compared].sum() <= 2
    inside = scene.data[f"start_inside_{n_steps}"].flatten()
    assert (hits.starts_inside != inside)[compared].sum() <= 2
    both = compared & hits.hit & reference
    surface = scene.data[f"surface_{n_steps}"].flatten(0, 1)
    assert both.sum() > 50
    assert (hits.points - surface)[both].norm(dim=-1).max() < 1e-4


def test_depth_gradient(scene):
    rays, depth, _, _ = scene.at_hits()
    assert torch.equal(scene.march(64).hit, scene.data["hit_64"].flatten())
    scene.check_gradients((scene.data["grad_w"].flatten()[rays] * depth).sum(), "grad_depth")


def test_color_gradient_through_the_surface(scene):
    rays, _, colors, _ = scene.at_hits()
    loss = losses.photometric(colors, scene.data["rgb_target"].flatten(0, 1)[rays]).sum()
    assert loss.item() == pytest.approx(scene.data["rgb_loss"], rel=1e-4)
    scene.check_gradients(loss, "grad_rgb")


def test_normals(scene):
    _, _, _, there = scene.at_hits()
    into = -outward_normals(there.gradient())
    distance = (into - scene.data["normals_cd"]).norm(dim=-1)
    # Central differences average over kinks of the piecewise linear field; most rays have none.
    assert distance.median() < 1e-2
    assert (distance < 1e-2).float().mean() > 0.9


@both_files
def test_losses(name):
    data, _ = load(name)
    valid = data["patch_mask"]
    pred, true = data["patch_pred"], data["patch_gt"]
    whole = valid.view(-1, 4).all(dim=1)
    value = losses.image_gradient(pred.view(-1, 4, 3)[whole], true.view(-1, 4, 3)[whole], 2).sum()
    assert value.item() == pytest.approx(data["image_gradient_loss_sum"], rel=1e-4)
    assert float(losses.photometric(pred[valid], true[valid]).sum()) == pytest.approx(
        data["l1_sum"], rel=1e-4
    )
    logits = data["logit_vec"]
    assert float(losses.occupied(logits).sum()) == pytest.approx(
        data["occupancy_loss_sum"], rel=1e-4
    )
    assert float(losses.freespace(logits).sum()) == pytest.approx(
        data["freespace_loss_sum"], rel=1e-4
    )
