"""The field network: its form, its names, and derivatives against automatic ones in float64."""

import pytest
import torch
import torch.nn.functional as F

from im2mesh.dvr.decoder import Decoder
from im2mesh.layers import ResnetBlock

VARIANTS = [  # c_dim, leaky, out_dim
    (0, False, 4),
    (0, True, 4),
    (5, False, 4),
    (5, True, 4),
    (5, False, 1),
]


class Case:
    """A random decoder in float64, points of three objects and their codes."""

    def __init__(self, c_dim, leaky, out_dim, seed=0):
        torch.manual_seed(seed)
        self.decoder = Decoder(
            c_dim=c_dim, hidden_size=12, n_blocks=3, out_dim=out_dim, leaky=leaky
        ).double()
        for parameter in self.decoder.parameters():  # fc_1.weight, too, is not zero
            torch.nn.init.normal_(parameter, std=0.5)
        self.points = torch.randn(40, 3).double()
        self.directions = torch.randn(40, 3).double()
        self.c = torch.randn(3, c_dim).double() if c_dim else None
        self.objects = torch.randint(0, 3, (40,)) if c_dim else None

    def shifts(self, c=None):
        return self.decoder.condition(self.c if c is None else c)

    def plain(self, points, c=None):
        """The network as the method writes it, object by object."""
        d, c = self.decoder, self.c if c is None else c
        net = d.fc_p(points)
        for i, block in enumerate(d.blocks):
            if c is not None:
                net = net + d.fc_c[i](c[self.objects])
            net = net + block.fc_1(F.relu(block.fc_0(F.relu(net))))
        activated = F.leaky_relu(net, 0.2) if d.slope else F.relu(net)
        return d.fc_out(activated)


@pytest.fixture(params=VARIANTS, ids=lambda v: f"c_dim={v[0]}, leaky={v[1]}, out_dim={v[2]}")
def case(request):
    return Case(*request.param)


def assert_close(value, expected):
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-11)


# ---- form and names ------------------------------------------------------------------------------


def test_names_are_those_of_published_checkpoints():
    names = set(Decoder(c_dim=7, hidden_size=6).state_dict())
    layers = ["fc_p", "fc_out", *(f"fc_c.{i}" for i in range(5))]
    layers += [f"blocks.{i}.fc_{j}" for i in range(5) for j in range(2)]
    assert names == {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}
    without_code = set(Decoder(hidden_size=6).state_dict())
    assert without_code == {name for name in names if not name.startswith("fc_c")}


def test_sizes_are_the_defaults_of_the_method():
    shapes = {name: tuple(value.shape) for name, value in Decoder(c_dim=256).state_dict().items()}
    assert shapes["fc_p.weight"] == (512, 3)
    assert shapes["fc_c.4.weight"] == (512, 256)
    assert shapes["blocks.4.fc_1.weight"] == (512, 512)
    assert shapes["fc_out.weight"] == (4, 512)
    assert "blocks.5.fc_0.weight" not in shapes


def test_start_weights():
    """fc_1.weight is zero; all else is PyTorch's own, uniform up to 1 / sqrt(inputs)."""
    torch.manual_seed(0)
    decoder = Decoder(c_dim=16, hidden_size=64)
    for name, layer in decoder.named_modules():
        if not isinstance(layer, torch.nn.Linear):
            continue
        bound = layer.in_features**-0.5
        tensors = [layer.bias] if name.endswith("fc_1") else [layer.weight, layer.bias]
        for values in tensors:
            assert values.abs().max() <= bound
            if values.numel() > 16:
                assert values.abs().max() > 0.8 * bound and values.std() > 0.4 * bound
        if name.endswith("fc_1"):
            assert layer.weight.count_nonzero() == 0


def test_residual_block():
    torch.manual_seed(0)
    block = ResnetBlock(6)
    x = torch.randn(4, 5, 6)
    torch.testing.assert_close(block(x), x + block.fc_1.bias)
    torch.nn.init.normal_(block.fc_1.weight)
    inner = F.linear(x.clamp_min(0), block.fc_0.weight, block.fc_0.bias).clamp_min(0)
    expected = x + inner @ block.fc_1.weight.T + block.fc_1.bias
    torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize("sizes", [{"out_dim": 3}, {"hidden_size": 0}, {"n_blocks": 0}])
def test_sizes_that_make_no_network(sizes):
    with pytest.raises(ValueError, match=next(iter(sizes))):
        Decoder(**sizes)


def test_forward(case):
    out = case.decoder(case.points, case.shifts(), case.objects)
    assert out.shape == (40, case.decoder.out_dim)
    assert_close(out, case.plain(case.points))


def test_condition():
    case = Case(5, False, 4)
    shifts = case.shifts()
    assert [s.shape for s in shifts] == [(3, 12)] * 3
    assert Case(0, False, 4).decoder.condition(None) is None
    one = case.decoder.condition(case.c[1:2])
    every = case.decoder(case.points, shifts, torch.ones(40, dtype=torch.long))
    assert_close(case.decoder(case.points, one), every)  # one object needs no indices


@pytest.mark.parametrize("n_points", [0, 1, 7, 8, 9, 16, 40])
def test_without_gradients_in_blocks(case, n_points):
    """Cache-sized blocks change nothing, whether they divide the points or not."""
    points = case.points[:n_points]
    objects = None if case.objects is None else case.objects[:n_points]
    whole = case.decoder(points, case.shifts(), objects)
    case.decoder.cpu_block = 8
    with torch.no_grad():
        out = case.decoder(points, case.shifts(), objects)
    assert out.shape == (n_points, case.decoder.out_dim)
    assert_close(out, whole.detach())


# ---- derivatives ---------------------------------------------------------------------------------


def test_trace_is_forward(case):
    out, trace = case.decoder.trace(case.points, case.shifts(), case.objects)
    assert_close(out, case.plain(case.points))
    assert len(trace.blocks) == 3
    assert not trace.last.requires_grad


def test_gradient(case):
    _, trace = case.decoder.trace(case.points, case.shifts(), case.objects)
    points = case.points.clone().requires_grad_()
    (expected,) = torch.autograd.grad(case.plain(points)[:, 0].sum(), points)
    assert expected.norm(dim=1).min() > 0
    assert_close(case.decoder.gradient(trace), expected)


def test_directional_derivative(case):
    _, trace = case.decoder.trace(case.points, case.shifts(), case.objects)
    _, expected = torch.autograd.functional.jvp(case.plain, case.points, case.directions)
    rate = case.decoder.directional_derivative(trace, case.directions)
    assert rate.shape == (40, case.decoder.out_dim)
    assert_close(rate, expected)


def test_gradient_and_directional_derivative_agree(case):
    _, trace = case.decoder.trace(case.points, case.shifts(), case.objects)
    along = (case.decoder.gradient(trace) * case.directions).sum(1)
    assert_close(case.decoder.directional_derivative(trace, case.directions)[:, 0], along)


def test_gradient_of_the_gradient(case):
    """Derivatives of normals by the weights: as by automatic differentiation twice."""

    def of(normals):
        loss = (F.normalize(normals, dim=1) * case.directions).sum()
        parameters = dict(case.decoder.named_parameters())
        found = torch.autograd.grad(loss, parameters.values(), allow_unused=True)
        return {
            name: torch.zeros_like(parameter) if gradient is None else gradient
            for (name, parameter), gradient in zip(parameters.items(), found)
        }

    points = case.points.clone().requires_grad_()
    logits = case.plain(points)[:, 0]
    (twice,) = torch.autograd.grad(logits.sum(), points, create_graph=True)
    expected = of(twice)
    _, trace = case.decoder.trace(case.points, case.shifts(), case.objects)
    found = of(case.decoder.gradient(trace))
    for name, gradient in expected.items():
        assert_close(found[name], gradient)
    assert expected["blocks.1.fc_0.weight"].count_nonzero() > 0
    assert expected["fc_p.weight"].count_nonzero() > 0


def test_logits_are_differentiable_by_weights_and_codes(case):
    target = torch.randn(40, case.decoder.out_dim).double()
    wanted = dict(case.decoder.named_parameters())
    if case.c is not None:
        wanted["c"] = case.c.requires_grad_()
    out, _ = case.decoder.trace(case.points, case.shifts(), case.objects)
    found = torch.autograd.grad((out * target).sum(), wanted.values())
    expected = torch.autograd.grad((case.plain(case.points) * target).sum(), wanted.values())
    for name, one, other in zip(wanted, found, expected):
        assert_close(one, other)
        assert other.count_nonzero() > 0, name


def test_points_in_one_linear_piece(case):
    """Where no activation changes its side, the gradient is the same."""
    generator = torch.Generator().manual_seed(2)
    nearby = case.points + 0.03 * torch.randn(case.points.shape, generator=generator)
    traces = [case.decoder.trace(p, case.shifts(), case.objects)[1] for p in (case.points, nearby)]
    gradients = [case.decoder.gradient(trace) for trace in traces]
    differs = traces[0].differs(traces[1])
    assert 5 < differs.sum() < 35
    assert torch.equal(differs, (gradients[0] != gradients[1]).any(dim=1))
    assert not traces[0].differs(traces[0]).any()


def test_rows_of_a_trace(case):
    _, trace = case.decoder.trace(case.points, case.shifts(), case.objects)
    rows = slice(5, 20)
    assert_close(case.decoder.gradient(trace[rows]), case.decoder.gradient(trace)[rows])
    part = case.decoder.directional_derivative(trace[rows], case.directions[rows])
    assert_close(part, case.decoder.directional_derivative(trace, case.directions)[rows])


def test_kinks_are_those_of_torch(case):
    """Where an activation's input is exactly zero, the derivatives are PyTorch's."""
    zeroed = {
        name: torch.zeros_like(value) if name.startswith("fc_p") else value
        for name, value in case.decoder.state_dict().items()
    }
    case.decoder.load_state_dict(zeroed)
    for block in case.decoder.blocks:
        torch.nn.init.zeros_(block.fc_0.bias)
        torch.nn.init.zeros_(block.fc_1.bias)
    torch.nn.init.eye_(case.decoder.fc_p.weight)
    points = torch.zeros(40, 3).double().requires_grad_()
    shifts = None if case.c is None else [torch.zeros_like(s) for s in case.shifts()]
    out = case.decoder(points, shifts, case.objects)
    (expected,) = torch.autograd.grad(out[:, 0].sum(), points)
    _, trace = case.decoder.trace(points.detach(), shifts, case.objects)
    assert_close(case.decoder.gradient(trace), expected)
    assert (expected.count_nonzero() > 0) == bool(case.decoder.slope)


def test_finite_differences(case):
    """By its own forward pass in steps of 1e-6, independently of automatic differentiation."""
    step = 1e-6
    _, trace = case.decoder.trace(case.points, case.shifts(), case.objects)
    rate = case.decoder.directional_derivative(trace, case.directions)
    ahead, behind = (
        case.decoder(case.points + s * case.directions, case.shifts(), case.objects)
        for s in (step, -step)
    )
    difference = (rate - (ahead - behind) / (2 * step)).abs().amax(1)
    # a kink may lie between the two points of a few
    assert (difference < 1e-6).float().mean() > 0.95
