"""The contract of a field, over every field; the form, names and start of the residual one.

Derivatives are compared with central differences of the field's own values in float64, and with
automatic ones of a plain form.
"""

import pytest
import torch
import torch.nn.functional as F

from im2mesh.dvr.field import Evaluation, Field, outward_normals
from im2mesh.dvr.fields.registered import FIELDS
from im2mesh.dvr.fields.simple import ResidualEvaluation, ResidualField
from im2mesh.layers import ResnetBlock

N_POINTS = 40
STEP = 1e-6  # of the central differences
PLAIN = {  # the kind of a field and its options
    "plain": ("simple", {}),
    "leaky": ("simple", {"leaky": True}),
    "conditional": ("simple", {"c_dim": 5}),
    "conditional leaky": ("simple", {"c_dim": 5, "leaky": True}),
    "occupancy only": ("simple", {"c_dim": 5, "out_dim": 1}),
}
GRID = {"n_levels": 3, "coarsest": 4, "finest": 16, "log2_table_size": 10}  # the last of them hashes
ENCODED = {
    "frequency": ("frequency", {"c_dim": 5, "n_octaves": 3}),
    "hash grid": ("hashgrid", GRID),
}
HEADED = {
    f"{name}, colour head": (kind, {**options, "color_head": True})
    for name, (kind, options) in {**PLAIN, **ENCODED}.items()
    if "out_dim" not in options
}
RESIDUAL = {**PLAIN, **ENCODED, **HEADED}
AUTOMATIC = {  # the same fields without their closed forms
    f"automatic, {name}": RESIDUAL[name]
    for name in ("conditional leaky", "occupancy only", "frequency, colour head", "hash grid")
}
ALL = [*RESIDUAL, *AUTOMATIC, "waves"]


class Waves(Field):
    """A field as its user writes it: only a forward."""

    def __init__(self):
        super().__init__()
        self.fc_in = torch.nn.Linear(3, 12)
        self.fc_out = torch.nn.Linear(12, 4)

    def forward(self, points, latent=None, objects=None, directions=None):
        return self.fc_out(torch.sin(self.fc_in(points)))


class Automatic(Field):
    """The values of a residual field; its derivatives are left to the default."""

    def __init__(self, network):
        super().__init__()
        self.network = network
        self.out_dim, self.view_dependent = network.out_dim, network.view_dependent
        self.condition = network.condition
        self.set_progress = network.set_progress

    def forward(self, points, latent=None, objects=None, directions=None):
        return self.network(points, latent, objects, directions)


class Case:
    """A random field in float64, points of three objects, their codes, directions to go and of view.

    The points stay clear of kinks and of cell borders by chance: next to none is that near to one.
    """

    def __init__(self, name, seed=0):
        torch.manual_seed(seed)
        self.name = name
        self.kind, self.options = {**RESIDUAL, **AUTOMATIC}.get(name, ("waves", {}))
        kinds = {**FIELDS, "waves": lambda **sizes: Waves()}
        self.network = kinds[self.kind](hidden_size=12, n_blocks=3, **self.options)
        self.field = Automatic(self.network) if name in AUTOMATIC else self.network
        self.field.double()
        for parameter in self.field.parameters():  # of fc_1.weight and of the tables, too
            torch.nn.init.normal_(parameter, std=0.5)
        c_dim = self.options.get("c_dim", 0)
        self.points = torch.rand(N_POINTS, 3).double() - 0.5
        self.directions = torch.randn(N_POINTS, 3).double()
        self.views = torch.randn(N_POINTS, 3).double()
        self.c = torch.randn(3, c_dim).double() if c_dim else None
        self.objects = torch.randint(0, 3, (N_POINTS,)) if c_dim else None

    def latent(self):
        return self.field.condition(self.c)

    def values(self, points=None, directions=None):
        points = self.points if points is None else points
        return self.field(points, self.latent(), self.objects, directions)

    def evaluate(self, points=None, directions=None):
        points = self.points if points is None else points
        return self.field.evaluate(points, self.latent(), self.objects, directions)

    def evaluate_for_gradient(self, points=None):
        points = self.points if points is None else points
        return self.field.evaluate_for_gradient(points, self.latent(), self.objects)

    def plain(self, points, directions=None):
        """The network as the method writes it, object by object."""
        net = self.network
        if self.kind == "waves":
            return torch.sin(points @ net.fc_in.weight.T + net.fc_in.bias) @ net.fc_out.weight.T + (
                net.fc_out.bias
            )
        out, last = self.plain_trunk(points)
        if net.color_head is None:
            return out
        at = points.detach().requires_grad_()
        (inwards,) = torch.autograd.grad(self.plain_trunk(at)[0].sum(), at)
        seen_along = F.normalize(inwards if directions is None else directions, dim=1)
        head = net.color_head
        given = [points, head.encode_direction(seen_along), -F.normalize(inwards, dim=1), last]
        hidden = F.relu(head.fc_hidden(F.relu(head.fc_in(torch.cat(given, dim=1)))))
        return torch.cat([out, head.fc_out(hidden)], dim=1)

    def plain_trunk(self, points):
        d = self.network
        net = d.fc_p(points if d.encoding is None else d.encoding(points))
        for i, block in enumerate(d.blocks):
            if self.c is not None:
                net = net + d.fc_c[i](self.c[self.objects])
            net = net + block.fc_1(F.relu(block.fc_0(F.relu(net))))
        last = F.leaky_relu(net, 0.2) if d.slope else F.relu(net)
        return d.fc_out(last), last

    def plain_gradient(self, points=None, create_graph=False):
        points = (self.points if points is None else points).clone().requires_grad_()
        logits = self.plain(points)[:, 0]
        return torch.autograd.grad(logits.sum(), points, create_graph=create_graph)[0]

    def by_weights(self, loss):
        """Derivatives of a number by all weights of the field."""
        parameters = dict(self.field.named_parameters())
        found = torch.autograd.grad(
            loss, parameters.values(), retain_graph=True, allow_unused=True
        )
        return {
            name: torch.zeros_like(parameter) if gradient is None else gradient
            for (name, parameter), gradient in zip(parameters.items(), found)
        }

    def turned(self, gradients):
        """A number that depends on the directions of gradients only, as losses of normals do."""
        return (outward_normals(gradients) * self.directions[: len(gradients)]).sum()


@pytest.fixture(params=ALL)
def case(request):
    return Case(request.param)


@pytest.fixture(params=RESIDUAL)
def residual(request):
    return Case(request.param)


def assert_close(value, expected):
    """Equal but for rounding, which the largest of many numbers sets."""
    largest = max(1.0, expected.detach().abs().max().item()) if expected.numel() else 1.0
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-11 * largest)


def assert_same(found, expected):
    """Two dicts of tensors."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert_close(found[name], value)


def test_every_kind_of_field_is_among_the_cases():
    assert {kind for kind, _ in RESIDUAL.values()} == set(FIELDS)


# ---- the contract: values ------------------------------------------------------------------------


def test_attributes(case):
    headed = "color_head" in case.options
    assert case.field.out_dim == (1 if "out_dim" in case.options else 4)
    assert case.field.has_color == (case.field.out_dim == 4)
    assert case.field.view_dependent == headed
    assert case.field.piecewise_linear == (case.kind == "simple" and case.name not in AUTOMATIC)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shapes_and_dtypes(case, dtype):
    case.field.to(dtype)
    n_out = case.field.out_dim
    latent = case.field.condition(None if case.c is None else case.c.to(dtype))
    for n in (0, 1, N_POINTS):
        points, directions, views = (
            t[:n].to(dtype) for t in (case.points, case.directions, case.views)
        )
        objects = None if case.objects is None else case.objects[:n]
        found = case.field.evaluate(points, latent, objects, views)
        for value, shape in [
            (case.field(points, latent, objects, views), (n, n_out)),
            (case.field.occupancy(points, latent, objects), (n,)),
            (found.out, (n, n_out)),
            (found.gradient(), (n, 3)),
            (found.along(directions), (n, n_out)),
            *((gradient, (n, 3)) for gradient in found.gradients_with(found)),
        ]:
            assert value.shape == shape and value.dtype == dtype
        same = found.same_piece(found)
        assert same.shape == (n,) and same.dtype == torch.bool


def test_values(case):
    """A field's forward, its evaluation and its occupancy are one function, that of the plain form."""
    for views in (None, case.views):
        expected = case.plain(case.points, views)
        assert_close(case.values(directions=views), expected)
        assert_close(case.evaluate(directions=views).out, expected)
        logits = case.field.occupancy(case.points, case.latent(), case.objects)
        assert_close(logits, expected[:, 0])


def test_one_object_needs_no_indices(case):
    if case.c is None:
        assert case.latent() is None
        return
    latent = case.field.condition(case.c[1:2])
    ones = torch.ones(N_POINTS, dtype=torch.long)
    expected = case.field(case.points, case.latent(), ones)
    assert_close(case.field(case.points, latent), expected)
    assert_close(case.field.evaluate(case.points, latent).out, expected)
    zeros = torch.zeros_like(ones)
    assert not torch.allclose(case.field(case.points, case.latent(), zeros), expected)


def test_directions_of_view(case):
    """Without one, along the inward normal; of any length; only colours may depend on it."""
    inwards = case.evaluate().gradient().detach()
    seen, from_elsewhere = case.values(), case.values(directions=case.views)
    assert_close(case.values(directions=inwards), seen)
    assert_close(case.values(directions=7 * case.views), from_elsewhere)
    assert_close(from_elsewhere[:, 0], seen[:, 0])
    changed = (from_elsewhere - seen).abs()[:, 1:] > 1e-3
    assert changed.any(dim=1).float().mean() == pytest.approx(float(case.field.view_dependent), abs=0.2)


def test_evaluation_without_gradients(case):
    """Values and derivatives are there, no graph is."""
    expected = case.evaluate(directions=case.views)
    with torch.no_grad():
        found = case.evaluate(directions=case.views)
        gradient = found.gradient()
        rate = found.along(case.directions)
    assert expected.out.requires_grad and expected.gradient().requires_grad
    assert not any(value.requires_grad for value in (found.out, gradient, rate))
    assert_close(found.out, expected.out.detach())
    assert_close(gradient, expected.gradient().detach())
    assert_close(rate, expected.along(case.directions))


def test_evaluation_leaves_its_points_as_they_are(case):
    before = case.points.clone()
    found = case.evaluate()
    (found.out.sum() + found.gradient().sum()).backward()
    assert torch.equal(case.points, before)
    assert not case.points.requires_grad and case.points.grad is None


# ---- the contract: derivatives -------------------------------------------------------------------


def share_near(values, points_apart):
    """The share of points at which derivatives equal differences; a kink may lie between the two."""
    scale = values.abs().amax().clamp_min(1.0)
    return ((values - points_apart).abs().amax(dim=1) < 1e-6 * scale).double().mean()


def test_gradient_against_differences(case):
    gradient = case.evaluate().gradient()
    with torch.no_grad():
        columns = [
            (case.values(case.points + e)[:, 0] - case.values(case.points - e)[:, 0]) / (2 * STEP)
            for e in STEP * torch.eye(3).double()
        ]
    assert share_near(gradient, torch.stack(columns, dim=1)) > 0.95
    assert gradient.norm(dim=1).min() > 0


@pytest.mark.parametrize("seen", [False, True], ids=["from outside", "directions"])
def test_rates_against_differences(case, monkeypatch, seen):
    """All logits, in steps along one direction per point; the normal that a colour head sees is held."""
    views = case.views if seen else None
    found = case.evaluate(directions=views)
    rate = found.along(case.directions)
    held = found.gradient().detach()
    monkeypatch.setattr(ResidualEvaluation, "gradient", lambda self: held)
    with torch.no_grad():
        ahead, behind = (
            case.values(case.points + step * case.directions, views) for step in (STEP, -STEP)
        )
    assert share_near(rate, (ahead - behind) / (2 * STEP)) > 0.95
    assert not found.along(case.directions.requires_grad_()).requires_grad
    assert (rate.abs().amax(dim=0) > 0).all()


def test_gradient(case):
    assert_close(case.evaluate().gradient(), case.plain_gradient())


@pytest.mark.parametrize("seen", [False, True], ids=["from outside", "directions"])
def test_rates(case, seen):
    views = case.views if seen else None
    _, expected = torch.autograd.functional.jvp(
        lambda points: case.plain(points, views), case.points, case.directions
    )
    assert_close(case.evaluate(directions=views).along(case.directions), expected)


def test_gradient_and_rates_agree(case):
    found = case.evaluate()
    along = (found.gradient() * case.directions).sum(dim=1)
    assert_close(found.along(case.directions)[:, 0], along.detach())


def test_gradient_of_the_gradient(case):
    """Derivatives of normals by the weights: as by automatic differentiation twice."""
    expected = case.by_weights(case.turned(case.plain_gradient(create_graph=True)))
    assert_same(case.by_weights(case.turned(case.evaluate().gradient())), expected)
    assert_same(case.by_weights(case.turned(case.evaluate_for_gradient().gradient())), expected)
    learnt = [name for name, value in expected.items() if value.count_nonzero() > 0]
    needed = {
        "waves": ["fc_in.weight"],
        "hashgrid": ["fc_p.weight", "blocks.1.fc_0.weight", "encoding.tables"],
    }.get(case.kind, ["fc_p.weight", "blocks.1.fc_0.weight"])
    assert {*needed, "fc_out.weight"} <= {name.removeprefix("network.") for name in learnt}


def test_logits_are_differentiable_by_weights_and_codes(case):
    target = torch.randn(N_POINTS, case.field.out_dim).double()
    wanted = dict(case.field.named_parameters())
    if case.c is not None:
        wanted["c"] = case.c.requires_grad_()
    expected = torch.autograd.grad(
        (case.plain(case.points, case.views) * target).sum(), wanted.values()
    )
    for out in (case.values(directions=case.views), case.evaluate(directions=case.views).out):
        found = torch.autograd.grad((out * target).sum(), wanted.values())
        assert_same(dict(zip(wanted, found)), dict(zip(wanted, expected)))
    for name, gradient in zip(wanted, expected):
        assert gradient.count_nonzero() > 0, name


def test_values_are_differentiable_by_points(case):
    target = torch.randn(N_POINTS, case.field.out_dim).double()
    points = case.points.clone().requires_grad_()
    expected, found = (
        torch.autograd.grad((function(points, case.views) * target).sum(), points)[0]
        for function in (case.plain, case.values)
    )
    assert_close(found, expected)


def test_gradient_for_less(case):
    """An evaluation of which only gradients are wanted gives the same ones."""
    found = case.evaluate_for_gradient()
    expected = case.evaluate()
    assert_close(found.gradient(), expected.gradient())
    rows = torch.tensor([3, 30, 7])
    assert_close(found[rows].gradient(), expected.gradient()[rows])
    assert torch.equal(expected.same_piece(found), expected.same_piece(expected))


def test_rows(case):
    found = case.evaluate(directions=case.views)
    out, gradient, rate = found.out, found.gradient(), found.along(case.directions)
    backwards = found[torch.arange(N_POINTS - 1, -1, -1)]
    for part, rows in [
        (found[5:20], slice(5, 20)),
        (found[:0], slice(0)),
        (found[torch.tensor([31, 4, 4, 0])], torch.tensor([31, 4, 4, 0])),
        (backwards[10:30][torch.tensor([2, 5])], torch.tensor([27, 24])),
    ]:
        assert_close(part.out, out[rows])
        assert_close(part.gradient(), gradient[rows])
        assert_close(part.along(case.directions[rows]), rate[rows])
        assert torch.equal(part.same_piece(part), found.same_piece(found)[rows])
        learnt, expected = (
            case.by_weights(case.turned(gradients) + values.square().sum())
            for gradients, values in [(part.gradient(), part.out), (gradient[rows], out[rows])]
        )
        assert_same(learnt, expected)


def test_gradients_of_two_evaluations(case):
    nearby = case.points + 0.1
    rows = torch.tensor([3, 30, 7])
    one, other = case.evaluate(directions=case.views), case.evaluate_for_gradient(nearby)
    pairs = [one.gradients_with(other), one[rows].gradients_with(other[rows])]
    expected = case.plain_gradient(), case.plain_gradient(nearby)
    for gradients in (pairs[0], expected):
        assert len(gradients) == 2
    for found, plainly in zip(pairs[0], expected):
        assert_close(found, plainly)
    for found, plainly in zip(pairs[1], expected):
        assert_close(found, plainly[rows])
    apart = [
        outward_normals(first) - outward_normals(second)
        for first, second in (
            pairs[0], [case.plain_gradient(p, create_graph=True) for p in (case.points, nearby)]
        )
    ]
    assert_same(*(case.by_weights((difference * case.directions).sum()) for difference in apart))


def test_points_in_one_piece(case):
    """Where two points share a piece, their gradients are the same, and so are those by the weights."""
    generator = torch.Generator().manual_seed(2)
    nearby = case.points + 0.02 * torch.randn(case.points.shape, generator=generator)
    one, other = case.evaluate(), case.evaluate_for_gradient(nearby)
    same = one.same_piece(other)
    if not case.field.piecewise_linear:
        assert not same.any() and not one.same_piece(one).any()
        return
    assert one.same_piece(one).all()
    assert 5 < same.sum() < 35
    first, second = one.gradient(), other.gradient()
    assert torch.equal(same, (first == second).all(dim=1))
    assert_same(case.by_weights(case.turned(first[same])), case.by_weights(case.turned(second[same])))


def test_progress(case):
    """Handed on to the encoding, where there is one; that of directions of view is not faded."""
    before = case.values(directions=case.views)
    case.field.set_progress(0.0)
    after = case.values(directions=case.views)
    assert torch.allclose(before, after) == (case.kind not in ("frequency", "hashgrid"))
    assert_close(case.evaluate(directions=case.views).out, after)
    assert_close(case.evaluate().gradient(), case.plain_gradient())
    case.field.set_progress(1.0)
    assert_close(case.values(directions=case.views), before)


@pytest.mark.parametrize("name", ["hash grid, colour head", "waves"])
def test_compiled_passes(monkeypatch, name):
    """The same values and derivatives, as far as the tracing of code goes; machine code takes too long."""
    to_machine_code, compiled = torch.compile, []

    def traced_only(function, **options):
        compiled.append(options)
        return to_machine_code(function, backend="aot_eager", fullgraph=True, **options)

    monkeypatch.setattr(torch, "compile", traced_only)
    case = Case(name)
    case.field.compile_passes()
    assert compiled and all(options == {"dynamic": True} for options in compiled)
    found = case.evaluate(directions=case.views)
    assert_close(found.out, case.plain(case.points, case.views))
    assert_close(found.gradient(), case.plain_gradient())
    by_default = Field.evaluate(
        Case(name).field, case.points, case.latent(), case.objects, case.views
    )
    assert_close(found.along(case.directions), by_default.along(case.directions))
    expected = case.by_weights(case.turned(case.plain_gradient(create_graph=True)))
    assert_same(case.by_weights(case.turned(found.gradient())), expected)
    expected = case.plain(case.points)[:, 0].detach()
    with torch.no_grad():
        for n in (N_POINTS, 7):
            objects = None if case.objects is None else case.objects[:n]
            logits = case.field.occupancy(case.points[:n], case.latent(), objects)
            assert_close(logits, expected[:n])


def test_outward_normals():
    gradients = torch.tensor([[0.0, 0.0, -4.0], [3.0, 4.0, 0.0], [0.0, 0.0, 0.0]])
    expected = torch.tensor([[0.0, 0.0, 1.0], [-0.6, -0.8, 0.0], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(outward_normals(gradients), expected)


# ---- the residual field --------------------------------------------------------------------------


def test_names_are_those_of_published_checkpoints():
    simple = FIELDS["simple"]
    names = set(simple(c_dim=7, hidden_size=6).state_dict())
    layers = ["fc_p", "fc_out", *(f"fc_c.{i}" for i in range(5))]
    layers += [f"blocks.{i}.fc_{j}" for i in range(5) for j in range(2)]
    assert names == {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}
    without_code = set(simple(hidden_size=6).state_dict())
    assert without_code == {name for name in names if not name.startswith("fc_c")}


def test_what_is_added_has_names_of_its_own():
    plainly = set(ResidualField(hidden_size=6, n_blocks=2).state_dict())
    field = FIELDS["hashgrid"](hidden_size=6, color_head=True, **GRID)
    added = set(field.state_dict()) - plainly
    assert plainly < set(field.state_dict())
    assert {name.partition(".")[0] for name in added} == {"encoding", "color_head"}
    assert field.fc_p.weight.shape == (6, 9) and field.fc_out.weight.shape == (1, 6)


def test_sizes_are_the_defaults_of_the_method():
    state = FIELDS["simple"](c_dim=256).state_dict()
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    assert shapes["fc_p.weight"] == (512, 3)
    assert shapes["fc_c.4.weight"] == (512, 256)
    assert shapes["blocks.4.fc_1.weight"] == (512, 512)
    assert shapes["fc_out.weight"] == (4, 512)
    assert "blocks.5.fc_0.weight" not in shapes


def test_start_weights():
    """fc_1.weight is zero; all else is PyTorch's own, uniform up to 1 / sqrt(inputs)."""
    torch.manual_seed(0)
    field = FIELDS["simple"](c_dim=16, hidden_size=64)
    for name, layer in field.named_modules():
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


def test_sines_and_cosines_start_without_weight():
    """The field is smooth at first: a waveless one of the same weights is the same."""
    torch.manual_seed(0)
    field = FIELDS["frequency"](hidden_size=8, n_blocks=2)
    for block in field.blocks:
        torch.nn.init.normal_(block.fc_1.weight)
    bare = ResidualField(hidden_size=8, n_blocks=2)
    state = field.state_dict()
    state["fc_p.weight"] = state["fc_p.weight"][:, :3]
    bare.load_state_dict({name: state[name] for name in bare.state_dict()})
    points = torch.rand(20, 3) - 0.5
    torch.testing.assert_close(field(points), bare(points))
    assert field.fc_p.weight[:, :3].count_nonzero() == 24


def test_residual_block():
    torch.manual_seed(0)
    block = ResnetBlock(6)
    x = torch.randn(4, 5, 6)
    torch.testing.assert_close(block(x), x + block.fc_1.bias)
    torch.nn.init.normal_(block.fc_1.weight)
    inner = F.linear(x.clamp_min(0), block.fc_0.weight, block.fc_0.bias).clamp_min(0)
    expected = x + inner @ block.fc_1.weight.T + block.fc_1.bias
    torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize(
    "options", [{"out_dim": 3}, {"hidden_size": 0}, {"n_blocks": 0}, {"color_head": True, "out_dim": 1}]
)
def test_options_that_make_no_network(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        ResidualField(**options)


def test_condition():
    case = Case("conditional")
    assert [shift.shape for shift in case.latent()] == [(3, 12)] * 3
    assert Case("plain").field.condition(None) is None


def test_without_gradients_in_blocks(residual):
    """Cache-sized blocks change nothing, whether they divide the points or not."""
    field, latent = residual.field, residual.latent()
    field.cpu_block = 8
    for n in (0, 1, 7, 8, 9, 16, N_POINTS):
        points, views = residual.points[:n], residual.views[:n]
        objects = None if residual.objects is None else residual.objects[:n]
        whole = field(points, latent, objects, views)
        with torch.no_grad():
            out = field(points, latent, objects, views)
            logits = field.occupancy(points, latent, objects)
        assert out.shape == (n, field.out_dim)
        assert_close(out, whole.detach())
        assert_close(logits, whole[:, 0].detach())


def test_its_derivatives_are_in_closed_form(residual):
    assert not isinstance(residual.evaluate(), Evaluation)
    assert not isinstance(residual.evaluate_for_gradient(), Evaluation)


def test_closed_forms_equal_the_default(residual):
    """The whole evaluation, beside that of the same forward by automatic differentiation."""
    default = Field.evaluate(
        residual.field, residual.points, residual.latent(), residual.objects, residual.views
    )
    found = residual.evaluate(directions=residual.views)
    assert isinstance(default, Evaluation)
    assert_close(found.out, default.out)
    assert_close(found.gradient(), default.gradient())
    assert_close(found.along(residual.directions), default.along(residual.directions))
    assert_same(*(
        residual.by_weights(residual.turned(one.gradient()) + one.out.square().sum())
        for one in (found, default)
    ))


@pytest.mark.parametrize("name", PLAIN)
def test_kinks_are_those_of_torch(name):
    """Where an activation's input is exactly zero, the derivatives are PyTorch's."""
    case = Case(name)
    field = case.field
    zeroed = {
        name: torch.zeros_like(value) if name.startswith("fc_p") else value
        for name, value in field.state_dict().items()
    }
    field.load_state_dict(zeroed)
    for block in field.blocks:
        torch.nn.init.zeros_(block.fc_0.bias)
        torch.nn.init.zeros_(block.fc_1.bias)
    torch.nn.init.eye_(field.fc_p.weight)
    points = torch.zeros(N_POINTS, 3).double().requires_grad_()
    latent = None if case.c is None else [torch.zeros_like(shift) for shift in case.latent()]
    out = field(points, latent, case.objects)
    (expected,) = torch.autograd.grad(out[:, 0].sum(), points)
    found = field.evaluate(points.detach(), latent, case.objects)
    assert_close(found.gradient(), expected)
    assert (expected.count_nonzero() > 0) == bool(field.slope)
