"""The implicit gradient against finite differences of the whole search, in float64."""

import pytest
import torch

from im2mesh.dvr.implicit import depth_with_gradient, follow_surface
from im2mesh.dvr.raymarch import DepthFunction
from tests import plain

STEP = 1e-6  # of the central differences
WEIGHTS = [
    "fc_p.weight",
    "fc_p.bias",
    "fc_c.1.weight",
    "fc_c.2.bias",
    "blocks.0.fc_0.weight",
    "blocks.1.fc_1.weight",
    "blocks.1.fc_0.bias",
    "blocks.2.fc_1.bias",
    "fc_out.weight",
    "fc_out.bias",
]


class Scene:
    """A small decoder, two objects' codes, and rays of both."""

    # So many bisections find the surface to the last digits of float64.
    search = DepthFunction(n_steps=(24, 25), n_secant_steps=50, method="bisection")

    def __init__(self, leaky):
        self.decoder = plain.octahedron_decoder(c_dim=3, seed=3, leaky=leaky).double()
        generator = torch.Generator().manual_seed(0)
        self.c = torch.randn(2, 3, generator=generator, dtype=torch.float64)
        targets = 0.7 * (torch.rand(40, 3, generator=generator, dtype=torch.float64) - 0.5)
        self.origins = torch.tensor([0.4, -0.5, -2.0]).double().expand(40, 3)
        self.directions = (targets - self.origins) * 1.3
        self.objects = torch.arange(40) % 2
        hits = self.march()
        self.rays = hits.hit.nonzero()[:, 0]
        assert 10 < len(self.rays) < 40

    def march(self, c=None):
        shifts = self.decoder.condition(self.c if c is None else c)
        return self.search.find_surface(
            lambda points, rays: self.decoder(points, shifts, self.objects[rays])[:, 0],
            self.origins, self.directions,
        )

    def found(self, c=None):
        """Depth and colour of the rays, by a new search."""
        c = self.c if c is None else c
        hits = self.march(c)
        assert hits.hit[self.rays].all()
        shifts = self.decoder.condition(c)
        out = self.decoder(hits.points[self.rays], shifts, self.objects[self.rays])
        return hits.depth[self.rays], torch.sigmoid(out[:, 1:])

    def attached(self, c=None):
        """Depth and colour of the rays, with gradients."""
        c = self.c if c is None else c
        hits = self.march(c)
        depth = hits.depth[self.rays]
        there = self.decoder.evaluate(
            hits.points[self.rays], self.decoder.condition(c), self.objects[self.rays]
        )
        rate = there.along(self.directions[self.rays])
        moving = depth_with_gradient(depth, there.out[:, 0], rate[:, 0])
        colors = follow_surface(there.out[:, 1:], rate[:, 1:], depth, moving)
        return moving, torch.sigmoid(colors)


@pytest.fixture(params=[False, True], ids=["relu", "leaky"])
def scene(request):
    return Scene(request.param)


def weighted(values):
    """One number of many, all of which matter."""
    generator = torch.Generator().manual_seed(5)
    return (values * torch.randn(values.shape, generator=generator, dtype=values.dtype)).sum()


def check_finite_differences(scene, quantity, tensor, gradient, c=None):
    """Entries of a weight or code, moved a little: the search is done anew."""
    entries = torch.linspace(0, tensor.numel() - 1, min(4, tensor.numel())).long().unique()
    flat = tensor.data.view(-1)
    for entry in entries.tolist():
        values = []
        for sign in (1, -1):
            flat[entry] += sign * STEP
            with torch.no_grad():
                values.append(weighted(scene.found(c)[quantity]))
            flat[entry] -= sign * STEP
        expected = (values[0] - values[1]).item() / (2 * STEP)
        assert gradient.view(-1)[entry].item() == pytest.approx(expected, rel=1e-5, abs=1e-7)
    assert gradient.view(-1)[entries].count_nonzero() > 0


def test_values_are_those_of_the_search(scene):
    for value, expected in zip(scene.attached(), scene.found()):
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("quantity", [0, 1], ids=["depth", "colour"])
@pytest.mark.parametrize("name", WEIGHTS)
def test_gradient_by_weights(scene, name, quantity):
    weight = scene.decoder.get_parameter(name)
    if quantity == 0 and name.startswith("fc_out"):
        weight = weight[:1]  # colours do not move the surface
    (gradient,) = torch.autograd.grad(
        weighted(scene.attached()[quantity]), scene.decoder.get_parameter(name)
    )
    check_finite_differences(scene, quantity, weight, gradient[: len(weight)])


@pytest.mark.parametrize("quantity", [0, 1], ids=["depth", "colour"])
def test_gradient_by_the_latent_code(scene, quantity):
    c = scene.c.requires_grad_()
    (gradient,) = torch.autograd.grad(weighted(scene.attached(c)[quantity]), c)
    assert gradient.count_nonzero() == c.numel()
    check_finite_differences(scene, quantity, c, gradient, c)


def test_the_surface_matters_to_colour(scene):
    """Colour at the found point alone has another gradient."""
    (through,) = torch.autograd.grad(weighted(scene.attached()[1]), scene.decoder.fc_p.weight)
    hits = scene.march()
    shifts = scene.decoder.condition(scene.c)
    out = scene.decoder(hits.points[scene.rays], shifts, scene.objects[scene.rays])
    still = weighted(torch.sigmoid(out[:, 1:]))
    (still,) = torch.autograd.grad(still, scene.decoder.fc_p.weight)
    assert (through - still).norm() > 0.2 * through.norm()


def test_colour_weights_do_not_move_the_surface(scene):
    (gradient,) = torch.autograd.grad(weighted(scene.attached()[0]), scene.decoder.fc_out.weight)
    assert gradient[0].count_nonzero() > 0 and gradient[1:].count_nonzero() == 0


def test_cameras_get_no_gradient(scene):
    scene.origins = scene.origins.clone().requires_grad_()
    scene.directions = scene.directions.clone().requires_grad_()
    depth, colors = scene.attached()
    gradients = torch.autograd.grad(
        depth.sum() + colors.sum(), [scene.origins, scene.directions], allow_unused=True
    )
    assert gradients == (None, None)


def test_sphere_by_its_radius():
    """f = r^2 - |p|^2: the depth of a central ray is 2 - r, that of others known as well."""
    radius = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    origins = torch.tensor([[0, 0, -2], [0.1, 0, -2], [0, 0.25, -2]], dtype=torch.float64)
    directions = torch.tensor([[0, 0, 1], [0, 0, 2], [0, 0, 0.5]], dtype=torch.float64)

    def field(points, rays=None):
        return radius**2 - points.square().sum(1)

    hits = Scene.search.find_surface(field, origins, directions)
    slope = -2 * (hits.points * directions).sum(1)
    depth = depth_with_gradient(hits.depth, field(hits.points), slope)
    z = [(0.09 - squared) ** 0.5 for squared in (0, 0.01, 0.0625)]
    for i in range(3):
        (gradient,) = torch.autograd.grad(depth[i], radius, retain_graph=True)
        expected = -0.3 / z[i] / directions[i, 2].item()
        assert gradient.item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    "slope, kept",
    [
        (2.0, 2.0),
        (-2.0, -2.0),
        (1e-3, 1e-3),
        (5e-4, 1e-3),
        (-5e-4, -1e-3),
        (-1e-12, -1e-3),
        (0.0, 1e-3),
    ],
)
def test_slope_is_kept_away_from_zero_with_its_sign(slope, kept):
    logits = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    depth = depth_with_gradient(torch.ones(1).double(), logits, torch.tensor([slope]).double())
    assert depth.item() == 1
    depth.backward()
    assert logits.grad.item() == pytest.approx(-1 / kept)


def test_the_least_slope_can_be_chosen():
    logits = torch.zeros(3, requires_grad=True)
    depth_with_gradient(torch.ones(3), logits, torch.tensor([0.1, -1.9, 4.0]), 2.0).sum().backward()
    torch.testing.assert_close(logits.grad, torch.tensor([-0.5, 0.5, -0.25]))


def test_slope_and_rate_are_constants():
    depth = torch.tensor([1.0, 2.0])
    logits, slope, rate, values = (torch.rand(2, requires_grad=True) for _ in range(4))
    moving = depth_with_gradient(depth, logits, slope)
    colors = follow_surface(values[:, None], rate[:, None], depth, moving)
    found = torch.autograd.grad(
        colors.sum(), [slope, rate, values, logits], allow_unused=True
    )
    assert found[:2] == (None, None)
    torch.testing.assert_close(found[2], torch.ones(2))
    torch.testing.assert_close(found[3], -(rate / slope.clamp_min(1e-3)).detach())


def test_no_hits():
    empty = torch.zeros(0, requires_grad=True)
    depth = depth_with_gradient(torch.zeros(0), empty, torch.zeros(0))
    colors = follow_surface(torch.zeros(0, 3), torch.zeros(0, 3), torch.zeros(0), depth)
    assert depth.shape == (0,) and colors.shape == (0, 3)
    colors.sum().backward()
