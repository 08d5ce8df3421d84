"""The plain twin of the benchmarks computes what the product computes."""

from dataclasses import replace

import pytest
import torch
from scipy.spatial import cKDTree

from benchmarks import plain
from benchmarks.shape import fitted_model, view_batch
from im2mesh import geometry, meshing
from im2mesh.config import method_module
from im2mesh.dvr.field import outward_normals
from im2mesh.dvr.raymarch import DepthFunction
from im2mesh.dvr.rendering import Renderer
from im2mesh.dvr.training import Trainer

WEIGHTS = {
    "rgb": 1.0, "image_gradients": 1.0, "depth": 2.0, "freespace": 1.0, "occupied": 1.0,
}


@pytest.fixture(scope="module")
def scene():
    """A fitted model, a view, and the trainer of its config; free and occupied points not random."""
    config, model = fitted_model(32)
    model.depth_function = DepthFunction(
        schedule_ray_sampling=False, n_steps=(64, 65), method="secant", adaptive=False
    )
    trainer = method_module(config).get_trainer(config, model, None, "cpu")
    options = replace(
        trainer.options, weights=WEIGHTS, n_training_points=10**6, always_freespace=False,
        coarse_bounds=False,
    )
    batch = view_batch(30, 40)
    batch["img.mask"] = batch["img.mask"].roll(3, dims=2)  # hits outside of it, and none in it
    batch["img.depth"] = torch.where(batch["img.mask"], 2.0, torch.inf)
    return model, batch, options


def test_march(scene):
    model, batch, options = scene
    rays = Trainer(model, None, options)._sample(batch, 10**6, torch.Generator())
    field = model.logit_field()
    found = plain.march(field, rays.origins, rays.directions, 64)
    hits = model.find_surface(rays.origins, rays.directions)
    assert torch.equal(found.isfinite(), hits.hit) and hits.hit.sum() > 100
    torch.testing.assert_close(found[hits.hit], hits.depth[hits.hit], rtol=0, atol=1e-5)


def test_normals(scene):
    """Central differences smooth the kinks of the field; elsewhere they are its gradient."""
    model, batch, options = scene
    rays = Trainer(model, None, options)._sample(batch, 10**6, torch.Generator())
    points = model.find_surface(rays.origins, rays.directions).points
    points = points[points.any(dim=1)]
    with torch.no_grad():
        exact = outward_normals(model.decoder.evaluate(points).gradient())
        plainly = plain.Step._normals(lambda p, which: model.decoder(p), points, None)
    assert (exact * plainly).sum(dim=1).mean() > 0.999


def test_training_step(scene):
    model, batch, options = scene
    trainer = Trainer(model, torch.optim.SGD(model.parameters(), 0.0), options)
    report = trainer.train_step(batch, 0)
    gradients = [p.grad.clone() for p in model.parameters()]
    rays = trainer._sample(batch, 10**6, trainer._generator(0, 0))
    step = plain.Step(model, options)
    terms = step.terms(rays, None, 64, trainer._generator(0, 0))
    assert terms.keys() == WEIGHTS.keys()
    for name, values in terms.items():
        assert values.sum().item() == pytest.approx(report[name], rel=1e-3) and report[name] > 0
    model.zero_grad()
    step.loss(rays, None, 64, trainer._generator(0, 0)).backward()
    for parameter, gradient in zip(model.parameters(), gradients):
        assert (gradient - parameter.grad).norm() <= 1e-2 * parameter.grad.norm()


def test_rendering(scene):
    model, batch, _ = scene
    to_image = geometry.object_to_image(
        *(batch[f"img.{name}_mat"][0] for name in ("camera", "world", "scale"))
    )
    renderer = Renderer(model, n_steps=(64, 65))
    rendering = renderer.render(to_image, 30, 40, bounds=renderer.bounds())
    rays = geometry.camera_rays(geometry.pixel_centers(30, 40)[None], to_image[None])
    rgb, depth, normals = plain.render(model, *(t[0] for t in rays), 64)
    assert torch.equal(depth.isfinite(), rendering.hit.flatten())
    torch.testing.assert_close(rgb.view(30, 40, 3), rendering.rgb, rtol=0, atol=1e-4)
    torch.testing.assert_close(depth.view(30, 40), rendering.depth, rtol=0, atol=1e-5)
    agreement = (normals.view(30, 40, 3) * rendering.normals).sum(-1)[rendering.hit]
    assert agreement.mean() > 0.999


def test_meshes(scene):
    """The same triangles, from a dense grid and from few evaluations; refined alike."""
    model, _, _ = scene
    field = model.logit_field()
    mesh = meshing.extract_mesh(field, resolution_0=8, upsampling_steps=2)
    vertices, faces = plain.extract_mesh(field, 32)
    assert mesh.n_points < 33**3 and mesh.faces.shape == faces.shape
    own = mesh.vertices[mesh.faces].mean(axis=1)
    distance, nearest = cKDTree(own).query(vertices[faces].mean(axis=1))
    assert distance.max() < 1e-4 and len(set(nearest)) == len(faces)

    options = {"n_steps": 5, "max_faces": 500, "tau": 0.5}
    refined = meshing.refine(
        mesh.vertices, mesh.faces, model.logit_and_gradient(),
        generator=torch.Generator().manual_seed(0), **options,
    )
    plainly = plain.refine(
        mesh.vertices, mesh.faces, lambda points: model.decoder(points)[:, 0],
        generator=torch.Generator().manual_seed(0), **options,
    )
    assert abs(refined - mesh.vertices).max() > 1e-5
    # RMSprop divides by the size of the gradient: where that is next to nothing, rounding decides.
    assert (abs(refined - plainly).max(axis=1) < 1e-6).mean() > 0.99
