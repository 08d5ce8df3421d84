"""Encodings of points against closed forms, finite differences and each other."""

import copy
import itertools
import pickle

import numpy as np
import pytest
import torch

from im2mesh.dvr.fields.encodings import Frequency, HashGrid
from im2mesh.geometry import CUBE_PADDING

SMALL = dict(n_levels=4, coarsest=4, finest=40, log2_table_size=10)  # two dense levels, two hashed


def random_tables(grid, seed=0):
    """The grid with tables of size 1, where derivatives show."""
    with torch.no_grad():
        grid.tables.normal_(generator=torch.Generator().manual_seed(seed))
    return grid


def draw(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def points_inside(n, dtype=torch.float32, seed=1):
    return torch.rand(n, 3, dtype=dtype, generator=torch.Generator().manual_seed(seed)) - 0.5


ENCODINGS = {
    "frequency": lambda: Frequency(5),
    "hash": lambda: random_tables(HashGrid(**SMALL)),
    "hash without points": lambda: random_tables(HashGrid(**SMALL, include_points=False)),
    "one level": lambda: random_tables(HashGrid(1, 5, 5, 8, 4)),
}
every_encoding = pytest.mark.parametrize("make", ENCODINGS.values(), ids=ENCODINGS.keys())


# The contract.


@every_encoding
@pytest.mark.parametrize("share", [1.0, 0.6])
def test_push_is_the_derivative_along_directions(make, share):
    encoding = make().double()
    encoding.set_progress(share)
    points, directions = points_inside(200, torch.float64), draw(200, 3, dtype=torch.float64)
    step = 1e-7 * directions
    with torch.no_grad():
        difference = (encoding(points + step) - encoding(points - step)) / 2e-7
        pushed = encoding.push(points, directions)
    assert pushed.shape == encoding(points).shape == (200, encoding.dim)
    assert pushed.abs().max() > 1
    torch.testing.assert_close(pushed, difference, rtol=1e-6, atol=1e-5)


@every_encoding
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pull_is_the_transpose_of_push(make, dtype):
    encoding = make().to(dtype)
    encoding.set_progress(0.8)
    points, directions = points_inside(300, dtype), draw(300, 3, dtype=dtype)
    covectors = draw(300, encoding.dim, dtype=dtype, seed=3)
    pushed, pulled = encoding.push(points, directions), encoding.pull(points, covectors)
    assert pulled.shape == (300, 3)
    one, other = (pushed * covectors).sum(1), (pulled * directions).sum(1)
    torch.testing.assert_close(one, other, rtol=0, atol=1e-6 * one.abs().max().item())


@every_encoding
def test_autograd_through_the_features_is_pull(make):
    encoding = make()
    points, covectors = points_inside(50).requires_grad_(), draw(50, encoding.dim)
    (gradient,) = torch.autograd.grad(encoding(points), points, covectors)
    torch.testing.assert_close(gradient, encoding.pull(points.detach(), covectors))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normals_found_by_autograd_are_differentiable_by_the_tables(dtype):
    grid = random_tables(HashGrid(**SMALL)).to(dtype)
    points, covectors = points_inside(50, dtype), draw(50, grid.dim, dtype=dtype)
    covectors.requires_grad_()
    asked = points.clone().requires_grad_()
    (found,) = torch.autograd.grad(grid(asked), asked, covectors, create_graph=True)
    expected = grid.pull(points, covectors)
    for one, other in zip(
        torch.autograd.grad(found.square().sum(), (grid.tables, covectors)),
        torch.autograd.grad(expected.square().sum(), (grid.tables, covectors)),
        strict=True,
    ):
        assert one.abs().max() > 0
        torch.testing.assert_close(one, other)


@every_encoding
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_points(make, dtype):
    encoding = make().to(dtype)
    points = torch.zeros(0, 3, dtype=dtype, requires_grad=True)
    covectors = torch.zeros(0, encoding.dim, dtype=dtype)
    assert encoding.push(points, points).shape == (0, encoding.dim)
    assert encoding.pull(points, covectors).shape == (0, 3)
    features = encoding(points)
    assert features.shape == (0, encoding.dim)
    features.sum().backward()
    assert points.grad.shape == (0, 3)
    for weight in encoding.parameters():
        assert not weight.grad.any()


@every_encoding
def test_inputs_need_not_be_contiguous(make):
    encoding = make()
    points, directions = points_inside(64), draw(64, 3)
    covectors = draw(64, encoding.dim)

    def scattered(tensor):
        strided = tensor.t().contiguous().t()
        assert not strided.is_contiguous()
        return strided

    assert torch.equal(encoding(scattered(points)), encoding(points))
    assert torch.equal(
        encoding.push(scattered(points), scattered(directions)), encoding.push(points, directions)
    )
    assert torch.equal(
        encoding.pull(scattered(points), scattered(covectors)), encoding.pull(points, covectors)
    )


@every_encoding
def test_nan_stays_nan(make):
    encoding = make()
    points = points_inside(5)
    points[2] = float("nan")
    for each in (encoding, encoding.double()):
        features = each(points.to(next(each.buffers()).dtype))
        assert features[2].isnan().all()
        assert not features[[0, 1, 3, 4]].isnan().any()


# Coarse to fine.


def test_progress_fades_in_octave_by_octave():
    encoding, points = Frequency(4).double(), points_inside(9, torch.float64)
    whole = encoding(points)
    encoding.set_progress(0.375)  # a = 1.5
    weights = torch.tensor([1, 0.5, 0, 0], dtype=torch.float64).repeat_interleave(6)
    torch.testing.assert_close(encoding(points)[:, 3:], whole[:, 3:] * weights)
    assert torch.equal(encoding(points)[:, :3], points)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_levels_of_weight_zero_give_nothing_and_learn_nothing(dtype):
    grid = random_tables(HashGrid(**SMALL)).to(dtype)
    points = points_inside(99, dtype)
    whole = grid(points)
    grid.set_progress(0.375)
    features = grid(points)
    weights = torch.tensor([1, 0.5, 0, 0], dtype=dtype).repeat_interleave(2)
    torch.testing.assert_close(features[:, 3:], whole[:, 3:] * weights)
    assert not features[:, 7:].any()
    with torch.no_grad():
        grid.tables[grid.first_rows[2]:] = float("inf")  # not even read, by the compiled form
    if dtype == torch.float32:
        assert torch.equal(grid(points), features)
        assert grid.pull(points, torch.ones(99, grid.dim)).isfinite().all()
    grid(points).sum().backward()
    assert grid.tables.grad[: grid.first_rows[2]].any()
    assert not grid.tables.grad[grid.first_rows[2]:].any()


@every_encoding
def test_progress_travels_in_the_state(make):
    encoding, other = make(), make()
    encoding.set_progress(0.25)
    assert encoding.state_dict()["progress"].shape == ()
    other.load_state_dict(encoding.state_dict())
    assert other.progress == 0.25
    points = points_inside(20)
    assert torch.equal(other(points), encoding(points))
    for twin in (copy.deepcopy(encoding), pickle.loads(pickle.dumps(encoding))):
        assert torch.equal(twin(points), encoding(points))


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_progress_lies_between_0_and_1(share):
    with pytest.raises(ValueError, match="between 0 and 1"):
        Frequency().set_progress(share)


# The hash grid.


def rows_by_definition(point, resolution, table_size):
    """Rows and trilinear weights of the corners of a point's cell, in 32-bit integers."""
    position = (np.clip(point / (1 + CUBE_PADDING), -0.5, 0.5) + 0.5) * resolution
    lower = np.minimum(np.floor(position), resolution - 1)
    for offset in itertools.product((0, 1), repeat=3):
        weight = np.prod(np.where(offset, position - lower, 1 - (position - lower)))
        x, y, z = (lower + offset).astype(np.uint32)
        if (resolution + 1) ** 3 <= table_size:
            yield int(x) + (resolution + 1) * (int(y) + (resolution + 1) * int(z)), weight
        else:
            with np.errstate(over="ignore"):
                mixed = x ^ (y * np.uint32(2654435761)) ^ (z * np.uint32(805459861))
            yield int(mixed % np.uint32(table_size)), weight


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_features_are_those_of_the_definition(dtype):
    grid = random_tables(HashGrid(n_levels=5, coarsest=4, finest=3000, log2_table_size=9)).to(dtype)
    assert grid.resolutions == (4, 20, 109, 573, 3000)
    assert grid.n_dense == 1
    assert grid.first_rows == (0, 125, 637, 1149, 1661)
    tables = grid.tables.detach().numpy()
    assert tables.shape == (2173, 2)
    # The corners of a cell differ in the highest bits of a product that wraps around.
    points = torch.cat([points_inside(40, dtype) * 1.2, torch.tensor([[0.55] * 3, [-0.55] * 3])])
    points = points.to(dtype)
    expected = []
    for point in points.double().numpy():
        features = [*point]
        for resolution, first in zip(grid.resolutions, grid.first_rows, strict=True):
            features += list(sum(
                weight * tables[first + row]
                for row, weight in rows_by_definition(point, resolution, 512)
            ))
        expected.append(features)
    expected = torch.tensor(np.array(expected))
    # A coordinate of 3000 cells has 12 bits less for the place in its cell.
    tolerance = 4e-3 if dtype == torch.float32 else 1e-10
    torch.testing.assert_close(grid(points).detach().double(), expected, rtol=0, atol=tolerance)


def test_growth_reaches_the_finest_level():
    for finest in range(9, 300):
        assert HashGrid(8, 8, finest, 8).resolutions[-1] == finest
    assert HashGrid().resolutions == (8, 12, 19, 31, 49, 77, 121, 192)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_points_outside_have_the_features_of_the_border(dtype):
    grid = random_tables(HashGrid(**SMALL)).to(dtype)
    border = (1 + CUBE_PADDING) / 2
    points = torch.tensor([[0.7, 0.1, -9.0], [-0.56, 0.2, 0.3]], dtype=dtype)
    nearest = points.clamp(-border, border)
    torch.testing.assert_close(grid(points)[:, 3:], grid(nearest)[:, 3:], atol=1e-5, rtol=0)
    assert torch.equal(grid(points)[:, :3], points)
    gradient = grid.pull(points, torch.ones(2, grid.dim, dtype=dtype)) - 1  # of the coordinates
    outside = torch.tensor([[True, False, True], [True, False, False]])
    assert not gradient[outside].any()
    assert (gradient[~outside] != 0).all()


def test_start_of_the_tables():
    tables = HashGrid().tables
    assert tables.dtype == torch.float32
    assert 0.99e-4 < tables.abs().max() <= 1e-4
    assert tables.mean().abs() < 1e-6


@pytest.mark.parametrize("changes, message", [
    (dict(n_levels=0), "n_levels .* nearest valid value is 1"),
    (dict(coarsest=0), "coarsest .* nearest valid value is 1"),
    (dict(finest=7), "at least coarsest, .* nearest valid value is 8"),
    (dict(n_levels=1), "coarsest where there is one level, .* nearest valid value is 8"),
    (dict(finest=10**6), "finest .* nearest valid value is 65536"),
    (dict(log2_table_size=7), "log2_table_size .* nearest valid value is 8"),
    (dict(log2_table_size=25), "log2_table_size .* nearest valid value is 24"),
    (dict(n_features=3), "n_features .* nearest valid value is 2"),
    (dict(n_features=100), "n_features .* nearest valid value is 8"),
    (dict(n_levels=16, finest=2048, log2_table_size=24, n_features=8), "log2_table_size may be 21"),
])
def test_sizes_that_make_no_grid(changes, message):
    with pytest.raises(ValueError, match=message):
        HashGrid(**changes)


@pytest.mark.parametrize("n_octaves, nearest", [(0, 1), (17, 16)])
def test_octaves_are_bounded(n_octaves, nearest):
    with pytest.raises(ValueError, match=f"nearest valid value is {nearest}$"):
        Frequency(n_octaves)


def test_largest_size_named_in_an_error_fits():
    sizes = dict(n_levels=1000, coarsest=512, finest=2048, n_features=8)
    with pytest.raises(ValueError, match="log2_table_size may be 15 at most"):
        HashGrid(**sizes, log2_table_size=16)


# Derivatives of every function by differences, in float64.


@pytest.mark.parametrize("include_points", [True, False])
def test_first_and_second_derivatives_of_the_plain_form(include_points):
    grid = random_tables(HashGrid(2, 2, 9, 8, include_points=include_points)).double()
    points = points_inside(3, torch.float64) * 1.2
    directions = draw(3, 3, dtype=torch.float64).requires_grad_()
    covectors = draw(3, grid.dim, dtype=torch.float64).requires_grad_()

    def push(tables, directions):
        return grid.push(points, directions)

    def pull(tables, covectors):
        return grid.pull(points, covectors)

    # The tables are changed in place: they are the grid's.
    check(lambda tables: grid(points), (grid.tables,))
    for function, argument in ((push, directions), (pull, covectors)):
        check(function, (grid.tables, argument), twice=True)
    check(grid, (points.requires_grad_(),))


def check(function, arguments, twice=False):
    torch.autograd.gradcheck(function, arguments, fast_mode=True)
    if twice:
        torch.autograd.gradgradcheck(function, arguments, fast_mode=True)


def test_every_derivative_of_frequencies():
    encoding = Frequency(3).double()
    points = points_inside(3, torch.float64).requires_grad_()
    directions = draw(3, 3, dtype=torch.float64).requires_grad_()
    covectors = draw(3, encoding.dim, dtype=torch.float64).requires_grad_()
    for function, arguments in (
        (encoding, (points,)),
        (encoding.push, (points, directions)),
        (encoding.pull, (points, covectors)),
    ):
        check(function, arguments, twice=True)


# The compiled form.


def everything(grid, points, directions, covectors):
    """Every function of a grid and its derivatives, two times where they exist twice."""
    points, directions, covectors = (
        t.clone().requires_grad_() for t in (points, directions, covectors)
    )

    def grad(output, inputs, **options):
        return torch.autograd.grad(output.square().sum(), inputs, **options)

    features = grid(points)
    pushed = grid.push(points, directions)
    pulled = grid.pull(points, covectors)
    (by_points,) = torch.autograd.grad(features, points, covectors, create_graph=True)
    (by_tables,) = torch.autograd.grad(features, grid.tables, covectors, create_graph=True)
    pushed_by_tables, pushed_by_directions = grad(
        pushed, (grid.tables, directions), create_graph=True
    )
    pulled_by_tables, pulled_by_covectors = grad(
        pulled, (grid.tables, covectors), create_graph=True
    )
    return {
        "features": features,
        "push": pushed,
        "pull": pulled,
        "features by points": by_points,
        "features by tables": by_tables,
        "push by tables": pushed_by_tables,
        "push by directions": pushed_by_directions,
        "pull by tables": pulled_by_tables,
        "pull by covectors": pulled_by_covectors,
        "gradient by tables": grad(by_points, grid.tables, retain_graph=True)[0],
        "gradient by covectors": grad(by_points, covectors, retain_graph=True)[0],
        "tables' gradient by covectors": grad(by_tables, covectors, retain_graph=True)[0],
        "push twice by tables": grad(pushed_by_tables, grid.tables, retain_graph=True)[0],
        "push twice by directions": grad(pushed_by_tables, directions)[0],
        "pull twice by tables": grad(pulled_by_tables, grid.tables, retain_graph=True)[0],
        "pull twice by covectors": grad(pulled_by_tables, covectors)[0],
    }


@pytest.mark.parametrize("n_features", [1, 2, 4, 8])
@pytest.mark.parametrize("include_points", [True, False])
@pytest.mark.parametrize("share", [1.0, 0.6])
def test_compiled_form_is_the_plain_form(n_features, include_points, share):
    sizes = {**SMALL, "n_features": n_features, "include_points": include_points}
    plain = random_tables(HashGrid(**sizes, compiled=False))
    compiled = random_tables(HashGrid(**sizes))
    for grid in (plain, compiled):
        grid.set_progress(share)
    n = 333  # not a multiple of what is worked on at once
    inputs = (points_inside(n) * 1.2, draw(n, 3), draw(n, plain.dim, seed=3))
    expected = everything(plain, *inputs)
    for name, value in everything(compiled, *inputs).items():
        scale = expected[name].abs().max().item()
        assert scale > 0
        torch.testing.assert_close(
            value, expected[name], rtol=0, atol=4e-6 * scale, msg=lambda text, n=name: f"{n}: {text}"
        )


def test_only_float32_on_a_cpu_is_compiled(monkeypatch):
    grid = random_tables(HashGrid(**SMALL))
    points = points_inside(5)

    def refuse(*sizes):
        raise AssertionError("compiled")

    monkeypatch.setattr("im2mesh.dvr.fields.encodings._kernel", refuse)
    with pytest.raises(AssertionError, match="compiled"):
        grid(points)
    with monkeypatch.context() as compiler:  # torch.compile sees the plain form
        compiler.setattr(torch.compiler, "is_compiling", lambda: True)
        assert grid(points).shape == (5, grid.dim)
    grid.double()
    assert grid(points.double()).dtype == torch.float64
    assert grid.pull(points.double(), draw(5, grid.dim)).dtype == torch.float64
    assert grid(points).shape == (5, grid.dim)


def test_results_do_not_depend_on_the_number_of_threads():
    grid = random_tables(HashGrid(n_levels=3, coarsest=4, finest=40, log2_table_size=10))
    n = 9001
    inputs = (points_inside(n), draw(n, 3), draw(n, grid.dim, seed=3))
    before = torch.get_num_threads()
    try:
        results = []
        for n_threads in (1, 2, 3):
            torch.set_num_threads(n_threads)
            with torch.no_grad():
                values = [grid(inputs[0]), grid.push(*inputs[:2]), grid.pull(inputs[0], inputs[2])]
            pulled = grid.pull(inputs[0], inputs[2])
            values += torch.autograd.grad(pulled, grid.tables, inputs[1])
            values += torch.autograd.grad(grid(inputs[0]), grid.tables, inputs[2])
            results.append(values)
    finally:
        torch.set_num_threads(before)
    for values in results[1:]:
        assert all(map(torch.equal, values, results[0]))


def test_compiled_passes_refuse_arrays_of_other_shapes():
    grid = HashGrid(**SMALL)
    with pytest.raises(ValueError, match="shape"):
        grid(torch.zeros(5, 2))
    with pytest.raises(ValueError, match="shape"):
        grid.push(torch.zeros(5, 3), torch.zeros(4, 3))
    with pytest.raises(ValueError, match="shape"):
        grid.pull(torch.zeros(5, 3), torch.zeros(5, grid.dim - 1))
