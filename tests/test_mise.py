"""MISE against its definition written out on dense arrays, and its protocol."""

import itertools

import numpy as np
import pytest
import torch

from im2mesh.ext.mise import MISE
from tests.reference import both_files, load, needs_reference
from tests.rough_fields import rough_fields, waves


def solve(grid, resolution_0, depth, threshold=0.0):
    """MISE on a dense array of values; returns it and the points of each round."""
    mise = MISE(resolution_0, depth, threshold)
    rounds = []
    while len(points := mise.query()):
        rounds.append(points)
        mise.update(points, grid[tuple(points.T)])
    return mise, rounds


def oracle(grid, resolution_0, depth, threshold=0.0):
    """The definition: whether each point of the grid is known, for every round."""
    known = np.zeros(grid.shape, dtype=bool)
    known[:: 2**depth, :: 2**depth, :: 2**depth] = True
    leaves = {(0, cell) for cell in itertools.product(range(resolution_0), repeat=3)}
    while True:
        yield known
        known = known.copy()
        active = set()
        for level, cell in leaves:
            size = 2**depth >> level
            box = tuple(slice(c * size, (c + 1) * size + 1) for c in cell)
            values = grid[box][known[box]]
            if level < depth and values.min() <= threshold <= values.max():
                active.add((level, cell))
        if not active:
            return
        leaves -= active
        for level, cell in active:
            half = 2**depth >> (level + 1)
            box = tuple(slice(c * 2 * half, (c + 1) * 2 * half + 1, half) for c in cell)
            known[box] = True
            leaves |= {
                (level + 1, tuple(2 * c + o for c, o in zip(cell, offset, strict=True)))
                for offset in itertools.product((0, 1), repeat=3)
            }


@pytest.mark.parametrize("resolution_0, depth", [(4, 2), (3, 3), (2, 0), (1, 4)])
@pytest.mark.parametrize("seed, frequency", [(0, 2), (0, 8), (5, 6), (4, 12), (5, 4), (0, 60)])
def test_asks_exactly_what_the_definition_says(resolution_0, depth, seed, frequency):
    grid = waves(seed, resolution_0 << depth, frequency)
    mise, rounds = solve(grid, resolution_0, depth, threshold=0.1)
    known = list(oracle(grid, resolution_0, depth, threshold=0.1))
    asked = np.zeros(grid.shape, dtype=int)
    assert len(rounds) == len(known)
    for points, expected in zip(rounds, known, strict=True):
        np.add.at(asked, tuple(points.T), 1)
        assert (asked == expected).all()  # and so nothing is asked twice
    assert mise.n_points == asked.sum()


def test_neighbours_of_split_voxels_are_split():
    """The definition test is of little use if late voxels never occur in it."""
    _, rounds = solve(waves(0, 24, 8), 3, 3, threshold=0.1)
    assert len(rounds) > 1 + 3


@pytest.mark.parametrize("frequency", [2, 12, 60])
def test_dense_grid_has_the_right_values_and_makes_up_no_surface(frequency):
    grid = waves(1, 32, frequency)
    mise, rounds = solve(grid, 4, 3)
    dense = mise.to_dense()
    asked = tuple(np.concatenate(rounds).T)
    assert (dense[asked] == grid[asked]).all()
    for axis in range(3):
        known = np.zeros(grid.shape, dtype=bool)
        known[asked] = True
        inside, known = (np.moveaxis(a, axis, 0) for a in (dense > 0, known))
        crossing = inside[1:] != inside[:-1]
        assert crossing.any()
        assert (known[1:] & known[:-1])[crossing].all()
    lower, upper = (3, 0, 32), (9, 33, 33)
    assert (mise.to_dense(lower, upper) == dense[3:9, :, 32:]).all()


def test_smooth_field_gets_the_signs_of_the_whole_grid():
    grid = waves(5, 32, 2)
    mise, _ = solve(grid, 8, 2)
    assert ((mise.to_dense() > 0) == (grid > 0)).all()
    assert mise.n_points < grid.size / 2


@pytest.mark.parametrize("depth", [0, 2])
def test_cells_are_the_finest_voxels_the_surface_crosses(depth):
    grid = waves(2, 16, 6)
    mise, _ = solve(grid, 16 >> depth, depth, threshold=0.25)
    cells, values = mise.cells()
    dense = mise.to_dense()
    corners = np.stack([dense[x:, y:, z:][:16, :16, :16] for x, y, z in np.ndindex(2, 2, 2)], -1)
    n_inside = (corners > 0.25).sum(axis=-1)
    expected = np.argwhere((n_inside > 0) & (n_inside < 8))
    order = np.lexsort(cells.T[::-1])
    assert (cells[order] == expected).all()
    assert (values[order] == corners[tuple(expected.T)]).all()


def test_value_on_the_threshold_counts_for_both_sides():
    grid = np.full((9, 9, 9), -1.0)
    grid[4, 4, 4] = 0.5
    _, rounds = solve(grid, 4, 1, threshold=0.5)
    assert len(rounds[1]) == 5**3 - 3**3  # the 8 voxels around the point; 27 corners were known
    grid[4, 4, 4] = np.nextafter(0.5, 0)
    _, rounds = solve(grid, 4, 1, threshold=0.5)
    assert len(rounds) == 1


def test_infinite_values_are_values():
    grid = np.where(waves(1, 16, 2) > 0, np.inf, -np.inf)
    mise, _ = solve(grid, 8, 1)
    assert (mise.to_dense() == grid).all()
    assert (mise.lowest, mise.highest) == (-np.inf, np.inf)


def test_answers_may_come_in_parts_and_in_any_order():
    grid = waves(4, 16, 6)
    whole, _ = solve(grid, 4, 2)
    mise = MISE(4, 2, 0.0)
    rng = np.random.default_rng(0)
    while len(points := mise.query()):
        assert (mise.query() == points).all()
        points = rng.permutation(points)[: len(points) // 2 + 1]
        mise.update(points, grid[tuple(points.T)])
    assert mise.n_points == whole.n_points
    assert (mise.to_dense() == whole.to_dense()).all()


def test_misuse_is_refused():
    mise = MISE(2, 1, 0.0)
    points = mise.query()
    zeros = np.zeros(len(points))
    with pytest.raises(ValueError, match="not answered"):
        mise.cells()
    with pytest.raises(ValueError, match="not answered"):
        mise.to_dense()
    with pytest.raises(ValueError, match="takes points"):
        mise.update(points, zeros[1:])
    with pytest.raises(ValueError, match="NaN"):
        mise.update(points, zeros * np.nan)
    with pytest.raises(ValueError, match="not being asked for"):
        mise.update(points + 1, zeros)
    with pytest.raises(ValueError, match="not being asked for"):
        mise.update(-points, zeros)
    for resolution_0, depth in ((0, 1), (2, -1), (1 << 20, 1), (1, 64)):
        with pytest.raises(ValueError, match="resolution"):
            MISE(resolution_0, depth, 0.0)
    mise = MISE(2, 0, 0.0)
    mise.update(points // 2, zeros)
    with pytest.raises(ValueError, match="not within"):
        mise.to_dense((0, 0, 0), (4, 3, 3))


# ---- guesses -------------------------------------------------------------------------------------


def solve_guessing(grid, resolution_0, depth, margin=2.0):
    """MISE on a dense array, which is looked up only where a guess does not do."""
    mise = MISE(resolution_0, depth, 0.0)
    n_points = 0
    while len(points := mise.query()):
        values, errors = mise.guess(points)
        needed = ~(np.abs(values) > margin * errors)
        values[needed] = grid[tuple(points[needed].T)]
        n_points += needed.sum()
        mise.update(points, values, guessed=~needed)
        assert len(np.unique(points, axis=0)) == len(points)
    return mise, n_points


def cut_edges(mise):
    """The edges of the finest voxels that the surface cuts, with the values at their ends."""
    cells, values = mise.cells()
    corners = cells[:, None] + np.stack(np.unravel_index(np.arange(8), (2, 2, 2)), axis=1)
    ends = np.array([(k, k | 1 << axis) for k in range(8) for axis in range(3) if not k >> axis & 1])
    cut = (values[:, ends] > 0).any(axis=2) & ~(values[:, ends] > 0).all(axis=2)
    edges = np.concatenate([corners[:, ends].reshape(-1, 12, 6), values[:, ends]], axis=2)
    return np.unique(edges[cut], axis=0)


@pytest.mark.parametrize("seed", range(4))
def test_guesses_find_the_same_surface_with_less_work(seed):
    grid = waves(seed, 128, 2)
    whole, _ = solve(grid, 16, 3)
    mise, n_points = solve_guessing(grid, 16, 3)
    assert (cut_edges(mise) == cut_edges(whole)).all() and len(cut_edges(mise)) > 1000
    assert n_points < 0.6 * whole.n_points


def test_a_guess_and_its_error():
    """One kink at x = 9: guesses there are off by as much as is said, and exact elsewhere."""
    x = np.arange(33.0)
    grid = np.broadcast_to((np.maximum(x - 9, 0) + 0.1 * x - 0.5)[:, None, None], (33, 33, 33))
    mise = MISE(4, 3, 0.0)
    for level in range(3):
        points = mise.query()
        values, errors = mise.guess(points)
        off = np.abs(values - grid[tuple(points.T)])
        if level == 0:
            assert np.isnan(values).all() and np.isinf(errors).all()
        elif level == 1:
            assert np.isinf(errors).all()
            assert off[points[:, 0] == 12] == pytest.approx(1.0 / 2 * 1) and off.min() < 1e-12
        else:
            assert (off <= 2 * errors + 1e-12).all() and np.isfinite(errors).any()
        mise.update(points, grid[tuple(points.T)])


def test_a_wrong_guess_at_the_surface_is_corrected_and_what_follows_from_it():
    """Two of the points next to the surface are on its other side: new edges are cut."""
    grid = np.broadcast_to(np.arange(9.0)[:, None, None] - 4.5, (9, 9, 9)).copy()
    true = grid.copy()
    true[4, 4, 4] = true[3, 4, 4] = 0.7
    mise = MISE(2, 2, 0.0)
    answered = set()
    while len(points := mise.query()):
        first = np.array([tuple(p) not in answered for p in points.tolist()])
        answered.update(map(tuple, points.tolist()))
        guessed = first & ~(points % 4 == 0).all(axis=1)
        values = np.where(guessed, grid[tuple(points.T)], true[tuple(points.T)])
        mise.update(points, values, guessed=guessed)
    edges = cut_edges(mise)
    assert (edges[:, 6] == true[tuple(edges[:, :3].astype(int).T)]).all()
    assert (edges[:, 7] == true[tuple(edges[:, 3:6].astype(int).T)]).all()


# ---- the surface of the cells is closed ----------------------------------------------------------


def assert_closed_cells(mise, grid, asked):
    """All cells in the grid around every cut edge with known ends are there, with the field's values."""
    known = np.zeros(grid.shape, dtype=bool)
    known[asked] = True
    crossed = np.zeros(np.subtract(grid.shape, 1), dtype=bool)
    crossed[tuple(mise.cells()[0].T)] = True
    inside = mise.to_dense() > 0
    for axis in range(3):
        there, side, cells = (np.moveaxis(a, axis, 0) for a in (known, inside, crossed))
        cut = there[1:] & there[:-1] & (side[1:] != side[:-1])
        around = np.pad(cells, ((0, 0), (1, 1), (1, 1)), constant_values=True)
        for dy, dz in itertools.product((0, 1), repeat=2):
            assert around[:, dy : dy + cut.shape[1], dz : dz + cut.shape[2]][cut].all()
        true = np.moveaxis(grid, axis, 0) > 0
        assert (side[1:] == true[1:])[cut].all() and (side[:-1] == true[:-1])[cut].all()


@pytest.mark.parametrize("resolution_0, depth", [(4, 3), (1, 4), (3, 3), (5, 2), (8, 1), (12, 0)])
@pytest.mark.parametrize("guessing", [False, True])
def test_the_cells_are_closed_whatever_the_field(resolution_0, depth, guessing):
    n_guessed = n_cells = 0
    for grid in rough_fields(7, resolution_0 << depth):
        mise = MISE(resolution_0, depth, 0.0)
        asked = []
        while len(points := mise.query()):
            asked.append(points)
            values, errors = mise.guess(points)
            needed = ~(np.abs(values) > 2 * errors) | (not guessing)
            values[needed] = grid[tuple(points[needed].T)]
            mise.update(points, values, guessed=~needed)
            n_guessed += (~needed).sum()
        assert_closed_cells(mise, grid, tuple(np.concatenate(asked).T))
        n_cells += len(mise.cells()[0])
    assert n_cells > 1000
    assert (n_guessed > 0) == (guessing and depth > 1)  # at first there is nothing to learn from


@pytest.mark.parametrize("value", [1.0, 0.0])
def test_a_corrected_guess_at_the_lower_corner_splits_the_voxel(value):
    """All known points of a coarse voxel are outside, until its own corner is asked for again."""
    mise = MISE(4, 2, 0.0)
    points = mise.query()
    at_corner = (points == 8).all(axis=1)
    mise.update(points, np.where((points == [4, 8, 8]).all(axis=1), 1.0, -1.0), guessed=at_corner)
    while not (at_corner := ((points := mise.query()) == 8).all(axis=1)).any():
        mise.update(points, np.where(points[:, 0] < 8, 1.0, -1.0))
    assert mise.n_points < 17**3
    mise.update(points[at_corner], np.array([value]))
    assert [10, 10, 10] in mise.query().tolist()  # the middle of the voxel


def test_misuse_of_guesses_is_refused():
    mise = MISE(2, 1, 0.0)
    points = mise.query()
    with pytest.raises(ValueError, match="as many entries"):
        mise.update(points, np.zeros(len(points)), guessed=[True])
    values = np.arange(len(points)) - 12.5
    mise.update(points[:1], values[:1])
    with pytest.raises(ValueError, match="not being asked for"):
        mise.update(points[:1], values[:1])
    mise.update(points[1:2], values[1:2], guessed=[True])
    mise.update(points[1:2], values[1:2])
    with pytest.raises(ValueError, match="not being asked for"):
        mise.update(points[1:2], values[1:2])


@needs_reference
@both_files
def test_reference_queries_and_grid(name):
    data, decoder = load(name)
    shifts = decoder.condition(data["c"][:1])
    mise = MISE(16, 2, 0.0)
    counts = []
    while len(points := mise.query()):
        counts.append(len(points))
        with torch.no_grad():
            logits = decoder(torch.tensor(points / 64 - 0.5, dtype=torch.float32), shifts)[:, 0]
        mise.update(points, logits.double().numpy())
    assert counts == data["mise_query_counts"].tolist()
    dense, expected = mise.to_dense()[::3, ::3, ::3], data["mise_dense_stride3"].numpy()
    assert ((dense > 0) == (expected > 0)).all()
    near_surface = np.abs(expected) < 0.5  # asked for, by both
    assert np.abs(dense - expected)[near_surface].max() < 1e-4
