"""Meshes of analytic fields against closed forms, and what happens to them up to the file."""

import math

import mcubes
import numpy as np
import pytest
import torch
import trimesh
from scipy.spatial import cKDTree

from im2mesh import meshing
from im2mesh.errors import InputError
from im2mesh.meshing import (
    MESH_EXTENSIONS,
    drop_cavities,
    extract_mesh,
    largest_components,
    load_mesh,
    refine,
    save_mesh,
    signed_volume,
    simplify,
    vertex_colors,
)
from tests.plain import octahedron_decoder
from tests.reference import both_files, load, needs_reference
from tests.rough_fields import rough_fields

# Logit fields; the distance is scaled so that probabilities away from the surface are not 0.5.


def sphere(radius=0.4, center=(0.0, 0.0, 0.0)):
    return lambda p: 10 * (radius - (p - p.new_tensor(center)).norm(dim=1))


def box(*half):
    return lambda p: 10 * (p.new_tensor(half) - p.abs()).amin(dim=1)


def torus(major=0.3, minor=0.12):
    def field(p):
        return 10 * (minor - torch.hypot(p[:, :2].norm(dim=1) - major, p[:, 2]))

    return field


def oblique_plate(thickness=0.1, normal=(0.48, 0.6, 0.64), radius=0.4):
    """The part of a plate that lies in a ball."""

    def field(p):
        across = thickness / 2 - (p @ p.new_tensor(normal)).abs()
        return 10 * torch.minimum(across, radius - p.norm(dim=1))

    return field


def constant(value):
    return lambda p: torch.full_like(p[:, 0], value)


def mesh_of(field, resolution_0=16, upsampling_steps=1, **kwargs):
    result = extract_mesh(
        field, resolution_0=resolution_0, upsampling_steps=upsampling_steps, **kwargs
    )
    return result, trimesh.Trimesh(result.vertices, result.faces, process=False)


def assert_closed(mesh):
    """Every edge has exactly two faces, which run through it in opposite directions."""
    edges = mesh.faces[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2)
    one_way, other_way = (np.sort(e @ [len(mesh.vertices), 1]) for e in (edges, edges[:, ::-1]))
    assert (one_way == other_way).all() and (np.diff(one_way) > 0).all()
    assert mesh.volume > 0
    assert np.isfinite(mesh.vertices).all()
    assert len(np.unique(mesh.vertices.astype(np.float32), axis=0)) == len(mesh.vertices)


SHAPES = {
    "sphere": (sphere(), 4 / 3 * np.pi * 0.4**3, 4 * np.pi * 0.4**2),
    "box": (box(0.31, 0.2, 0.4), 8 * 0.31 * 0.2 * 0.4, 8 * (0.062 + 0.08 + 0.124)),
    "torus": (torus(), 2 * np.pi**2 * 0.3 * 0.12**2, 4 * np.pi**2 * 0.3 * 0.12),
    "plate": (
        oblique_plate(),
        np.pi * (0.1 * 0.4**2 - 0.1**3 / 12),
        2 * np.pi * (0.4**2 - 0.05**2) + 2 * np.pi * 0.4 * 0.1,
    ),
}


@pytest.mark.parametrize("name", SHAPES)
def test_volume_and_area_of_shapes(name):
    field, volume, area = SHAPES[name]
    result, mesh = mesh_of(field, 16, 2)
    assert_closed(mesh)
    assert mesh.volume == pytest.approx(volume, rel=0.01)
    assert mesh.area == pytest.approx(area, rel=0.03)
    assert not (result.is_empty or result.fills_cube or result.touches_cube)
    assert result.n_points < 65**3 / 3
    assert signed_volume(result.vertices, result.faces) == pytest.approx(mesh.volume)


def test_vertices_approach_the_surface_quadratically():
    errors = []
    for steps in (1, 2):
        result, _ = mesh_of(lambda p: 10 * (0.16 - p.square().sum(dim=1)), 16, steps)
        errors.append(np.abs(np.linalg.norm(result.vertices, axis=1) - 0.4).max())
    assert errors[0] < 1e-3
    assert errors[1] < 0.3 * errors[0]


def test_mesh_is_that_of_the_whole_grid():
    """MISE and sparse marching cubes against PyMCubes on all points, surface at the cube too."""
    n, padding, tau = 32, 0.2, 0.3
    level = math.log(tau / (1 - tau))
    rng = np.random.default_rng(0)
    axis = (torch.arange(n + 1) / n - 0.5) * (1 + padding)
    points = torch.cartesian_prod(axis, axis, axis)
    for _ in range(4):
        directions, phases, weights = (
            torch.tensor(rng.normal(size=s) * scale, dtype=torch.float32)
            for s, scale in (((3, 5), 3), (5, 6), (5, 1))
        )

        def field(p):
            return torch.cos(p @ directions + phases) @ weights  # noqa: B023

        dense = np.pad(field(points).reshape((n + 1,) * 3).double() - level, 1, constant_values=-1e9)
        vertices, faces = mcubes.marching_cubes(dense, 0.0)
        vertices = ((vertices - 1) / n - 0.5) * (1 + padding)
        result, mesh = mesh_of(field, n // 2, 1, padding=padding, threshold=tau)
        assert result.touches_cube
        assert_closed(mesh)
        assert len(result.faces) == len(faces)
        # PyMCubes merges what coincides exactly: vertices cannot be counted, but all must be found.
        for a, b in ((vertices, result.vertices), (result.vertices, vertices)):
            assert cKDTree(a).query(b)[0].max() < 2e-3 * (1 + padding) / n
        assert mesh.volume == pytest.approx(signed_volume(vertices, faces), rel=1e-3)


def test_object_that_leaves_the_cube_is_capped_at_its_face():
    result, mesh = mesh_of(sphere(0.4, (0.3, 0.0, 0.0)), 16, 2)
    height = 0.2  # of the part that is cut off
    volume = 4 / 3 * np.pi * 0.4**3 - np.pi * height**2 / 3 * (3 * 0.4 - height)
    assert_closed(mesh)
    assert result.touches_cube and not result.fills_cube
    assert mesh.volume == pytest.approx(volume, rel=5e-3)
    assert mesh.bounds[1, 0] == pytest.approx(0.5, abs=1e-4)


@pytest.mark.parametrize("value", [3.0, 1e6, np.inf])
@pytest.mark.parametrize("padding", [0.0, 0.1])
def test_field_without_a_surface_fills_the_cube(value, padding):
    result, mesh = mesh_of(constant(value), 4, 1, padding=padding)
    assert result.fills_cube and result.touches_cube and not result.is_empty
    assert_closed(mesh)
    assert mesh.volume == pytest.approx((1 + padding) ** 3, rel=2e-3)
    assert np.abs(mesh.bounds).max() == pytest.approx((1 + padding) / 2, rel=1e-3)
    assert result.n_points == 5**3


@pytest.mark.parametrize("value", [-3.0, -np.inf, 0.0])
def test_empty_field_gives_an_empty_mesh(value):
    result, _ = mesh_of(constant(value), 4, 1)
    assert result.is_empty and not (result.fills_cube or result.touches_cube)
    assert result.vertices.shape == result.faces.shape == (0, 3)
    assert result.vertices.dtype == np.float64 and result.faces.dtype == np.int64
    assert result.logit_range == pytest.approx((max(value, -1e30),) * 2)


def test_threshold_is_a_probability_and_padding_widens_the_cube():
    _, mesh = mesh_of(sphere(0.4), 16, 1, threshold=0.8)
    assert mesh.volume == pytest.approx(4 / 3 * np.pi * (0.4 - math.log(4) / 10) ** 3, rel=0.02)
    result, mesh = mesh_of(sphere(0.55), 16, 1, padding=0.25)
    assert not result.touches_cube
    assert mesh.volume == pytest.approx(4 / 3 * np.pi * 0.55**3, rel=0.02)


def test_any_values_give_a_closed_mesh():
    """Noise of all signs, values on the threshold, huge and infinite values."""
    rng = np.random.default_rng(0)
    choices = torch.tensor([-np.inf, -1e6, -1.0, -1e-7, 0.0, 1e-7, 1.0, 1e6, np.inf])
    for _ in range(5):
        values = choices[torch.from_numpy(rng.integers(0, 9, size=(9, 9, 9)))]

        def field(p):
            return values[tuple(torch.round((p + 0.5) * 8).long().T)]  # noqa: B023

        _, mesh = mesh_of(field, 4, 1)
        assert_closed(mesh)


def on_grid(values):
    """A field that is looked up in a cubic array of values."""
    values = torch.from_numpy(values).float()
    return lambda p: values[tuple(torch.round((p + 0.5) * (len(values) - 1)).long().T)]


@pytest.mark.parametrize("resolution_0, steps", [(4, 3), (1, 4), (5, 2), (5, 1), (9, 0)])
@pytest.mark.parametrize("guessing", [False, True])
def test_rough_fields_give_closed_meshes(resolution_0, steps, guessing, monkeypatch):
    if not guessing:
        monkeypatch.setattr(meshing, "GUESS_MARGIN", math.inf)
    touching = []
    for values in rough_fields(7, resolution_0 << steps):
        with np.errstate(invalid="ignore"):  # an infinite margin times an error of zero
            result, mesh = mesh_of(on_grid(values), resolution_0, steps)
        touching.append(result.touches_cube)
        if not result.is_empty:
            assert_closed(mesh)
    assert len(set(touching)) == 2


def test_the_triangles_of_cells_side_by_side_match_at_the_face_between_them():
    """For all sign patterns: each face is cut by the same lines from both sides, in opposite ways."""
    counts, triangles = meshing._triangle_table()
    lines = {}  # by axis, side of the cell and signs at the corners of that face
    for pattern, own in enumerate(np.split(triangles, np.cumsum(counts)[:-1])):
        signs = (pattern >> np.arange(8) & 1).reshape(2, 2, 2)
        edges = {tuple(e.ravel()) for e in own[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2, 3)}
        assert len(edges) == 3 * len(own)
        on_faces = set()
        for axis, side in np.ndindex(3, 2):
            here = {e for e in edges if e[axis] == e[axis + 3] == 2 * side}
            on_faces |= here
            flat = {tuple(np.delete(e, [axis, axis + 3])) for e in here}
            face = axis, side, signs.take(side, axis=axis).tobytes()
            assert lines.setdefault(face, flat) == flat
        one_way, other_way = (
            {e[3:] + e[:3] if turned else e for e in edges - on_faces} for turned in (False, True)
        )
        assert one_way == other_way
        assert not any(e[3:] + e[:3] in edges for e in on_faces)
    assert len(lines) == 3 * 2 * 16
    for (axis, side, signs), flat in lines.items():
        assert lines[axis, 1 - side, signs] == {e[2:] + e[:2] for e in flat}


def test_infinite_logits_put_the_surface_between_their_points():
    _, mesh = mesh_of(lambda p: torch.where(p.abs().amax(dim=1) < 0.3, torch.inf, -torch.inf), 10, 0)
    assert np.abs(mesh.vertices).max(axis=1) == pytest.approx(0.25)  # last in 0.2, first out 0.3


def test_extraction_is_deterministic_and_independent_of_chunks():
    first, _ = mesh_of(torus())
    for max_points in (1 << 20, 100):
        again, _ = mesh_of(torus(), max_points=max_points)
        assert (again.vertices == first.vertices).all() and (again.faces == first.faces).all()


def test_field_is_called_without_gradients_on_float32_chunks():
    def field(p):
        assert p.dtype == torch.float32 and p.shape[1] == 3 and len(p) <= 50
        assert not torch.is_grad_enabled()
        return sphere()(p)

    mesh_of(field, 4, 1, max_points=50)


def test_field_that_is_nan_is_refused():
    def field(p):
        return torch.where(p[:, 0] > 0.2, torch.nan, -p[:, 0])

    with pytest.raises(InputError, match="NaN at .* checkpoint"):
        mesh_of(field)


def joined(*parts):
    """One mesh of several, their faces in random order, and a vertex that no face uses."""
    offsets = np.cumsum([1] + [len(vertices) for vertices, _ in parts])
    vertices = np.concatenate([np.zeros((1, 3))] + [vertices for vertices, _ in parts])
    faces = np.concatenate([f + o for (_, f), o in zip(parts, offsets[:-1], strict=True)])
    return vertices, np.random.default_rng(0).permutation(faces)


def ball(radius, center=(0.0, 0.0, 0.0), hollow=False):
    """The mesh of a ball, or of a hollow of that shape."""
    mesh = trimesh.creation.icosphere(1, radius=radius)
    faces = np.array(mesh.faces, dtype=np.int64)
    return mesh.vertices + np.array(center), faces[:, ::-1] if hollow else faces


def ring(center=(0.0, 0.0, 0.0), hollow=False):
    mesh = trimesh.creation.torus(0.5, 0.2, major_sections=16, minor_sections=8)
    faces = np.array(mesh.faces, dtype=np.int64)
    return mesh.vertices + np.array(center), faces[:, ::-1] if hollow else faces


def corner_sets(vertices, faces):
    """The faces as sets of corner positions, which no renumbering changes."""
    return sorted(np.sort(vertices[faces].reshape(-1, 9), axis=1).tolist())


def assert_same_mesh(mesh, *parts):
    vertices, faces = mesh
    assert corner_sets(vertices, faces) == corner_sets(*joined(*parts))
    assert (np.unique(faces) == np.arange(len(vertices))).all()


def test_cavities_and_what_is_in_them_go():
    shell, hollow, island = ball(1.0), ball(0.8, hollow=True), ball(0.3, (0.2, 0.0, 0.0))
    assert_same_mesh(drop_cavities(*joined(shell, hollow)), shell)
    assert_same_mesh(drop_cavities(*joined(island, hollow, shell)), shell)
    inner = ball(0.2, (0.2, 0.0, 0.0), hollow=True), ball(0.1, (0.2, 0.0, 0.0))
    assert_same_mesh(drop_cavities(*joined(*inner, island, hollow, shell)), shell)
    second = ball(1.0, (3.0, 0.0, 0.0))
    assert_same_mesh(drop_cavities(*joined(second, hollow, shell)), shell, second)
    # A ball in the hole of a ring is outside of it; in a ring-shaped cavity it is not.
    ring_island = ball(0.05, (0.5, 0.0, 0.0))
    block = ball(2.0), ring(hollow=True), ring_island, ball(0.1, hollow=True)
    assert_same_mesh(drop_cavities(*joined(*block)), block[0])
    beside = ring(), ball(0.1), ball(2.0, (0.0, 0.0, 9.0))
    assert_same_mesh(drop_cavities(*joined(*beside, ball(1.0, (0.0, 0.0, 9.0), hollow=True))), *beside)


def test_meshes_without_a_cavity_stay_as_they_are():
    def cup(p):
        wall = 0.06 - (p.norm(dim=1) - 0.35).abs()
        return 10 * torch.minimum(wall, 0.2 - p[:, 2])

    for field in (cup, torus(), constant(-1.0), constant(1.0)):
        result, _ = mesh_of(field)
        for vertices, faces in (
            drop_cavities(result.vertices, result.faces),
            largest_components(result.vertices, result.faces, 1.0),
        ):
            assert vertices is result.vertices and faces is result.faces


def test_floaters_go_with_what_is_in_them():
    body, inside = ball(1.0), (ball(0.8, hollow=True), ball(0.3))
    shell = ball(0.5, (2.0, 0.0, 0.0)), ball(0.4, (2.0, 0.0, 0.0), hollow=True)
    speck = ball(0.1, (0.0, 2.0, 0.0))
    mesh = joined(speck, *shell, body, *inside)
    assert_same_mesh(largest_components(*mesh, 0.01), body, *inside, *shell)
    assert_same_mesh(largest_components(*mesh, 0.12), body, *inside, *shell)
    assert_same_mesh(largest_components(*mesh, 0.13), body, *inside)
    assert_same_mesh(largest_components(*mesh, 1.0), body, *inside)
    assert largest_components(*mesh, 0.0)[1] is mesh[1]
    # In the hole of a ring is outside.
    assert_same_mesh(largest_components(*joined(ring(), ball(0.1)), 0.5), ring())


def winding_numbers(points, triangles):
    """Of a closed mesh around points, by solid angles."""
    a, b, c = (triangles - points[:, None, None]).transpose(2, 0, 1, 3)
    la, lb, lc = (np.linalg.norm(v, axis=2) for v in (a, b, c))
    dots = np.sum(a * b, axis=2) * lc + np.sum(b * c, axis=2) * la + np.sum(c * a, axis=2) * lb
    angles = np.arctan2(np.sum(a * np.cross(b, c), axis=2), la * lb * lc + dots)
    return np.rint(angles.sum(axis=1) / (2 * np.pi))


@pytest.mark.parametrize("seed", range(3))
def test_components_in_noise_are_told_apart_as_by_solid_angles(seed):
    """Shells in shells, rough, with holes and specks; and many vertices on common grid lines."""
    rng = np.random.default_rng(seed)
    radius = np.linalg.norm(np.stack(np.meshgrid(*[np.arange(19) - 9.0] * 3)), axis=0)
    values = np.cos(2 * np.pi * radius / 6) + 0.4 * rng.normal(size=radius.shape)
    result, mesh = mesh_of(on_grid(values), 18, 0)
    parts = [(part.vertices, np.array(part.faces)) for part in mesh.split(only_watertight=False)]
    volumes = np.array([signed_volume(*part) for part in parts])
    points = np.array([vertices[0] for vertices, _ in parts])
    around = np.array([winding_numbers(points, vertices[faces]) != 0 for vertices, faces in parts])
    np.fill_diagonal(around, False)

    hidden = (volumes < 0) | around[volumes < 0].any(axis=0)
    outer = ~around.any(axis=0)
    small = outer & (volumes < 1e-3 * volumes.max())
    floats = small | around[small].any(axis=0)
    assert 0 < small.sum() < outer.sum() and 1 < (volumes < 0).sum() < hidden.sum()
    whole = result.vertices, result.faces
    for kept, gone in ((drop_cavities(*whole), hidden), (largest_components(*whole, 1e-3), floats)):
        expected = [part for part, is_gone in zip(parts, gone, strict=True) if not is_gone]
        assert_same_mesh(kept, *expected)


def test_misuse_of_components_is_refused():
    vertices, faces = ball(1.0)
    for share in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="share"):
            largest_components(vertices, faces, share)
    with pytest.raises(ValueError, match="inwards"):
        drop_cavities(vertices, faces[:, ::-1])
    with pytest.raises(ValueError, match="inwards"):
        largest_components(vertices, faces[:, ::-1], 0.5)


def test_simplify():
    result, mesh = mesh_of(torus(), 16, 2)
    vertices, faces = simplify(result.vertices, result.faces, 1000)
    simple = trimesh.Trimesh(vertices, faces, process=False)
    assert vertices.dtype == np.float64 and faces.dtype == np.int64
    assert 900 < len(faces) <= 1000
    assert simple.is_watertight
    assert simple.volume == pytest.approx(mesh.volume, rel=0.02)
    assert simplify(vertices, faces, 1000)[1] is faces
    with pytest.raises(InputError, match="more faces"):
        simplify(vertices, faces, 2)


def noisy_sphere(size=2e-4):
    rng = np.random.default_rng(0)
    mesh = trimesh.creation.icosphere(3, radius=0.4)
    return mesh.vertices + rng.normal(size=mesh.vertices.shape) * size, mesh.faces.astype(np.int64)


def refined(vertices, faces, field, n_steps=30, max_faces=1000, seed=0):
    def with_gradient(points):
        assert not torch.is_grad_enabled()
        with torch.enable_grad():
            points = points.detach().requires_grad_()
            logits = field(points)
            (gradient,) = torch.autograd.grad(logits.sum(), points)
        return logits.detach(), gradient

    return refine(
        vertices,
        faces,
        with_gradient,
        n_steps=n_steps,
        max_faces=max_faces,
        tau=0.5,
        generator=torch.Generator().manual_seed(seed),
    )


def smooth_ball(p):
    return 60 * (0.16 - p.square().sum(dim=1))


def test_refinement_moves_the_faces_onto_the_surface_and_aligns_them():
    vertices, faces = noisy_sphere()
    result = refined(vertices, faces, smooth_ball)

    def errors(v):
        mesh = trimesh.Trimesh(v, faces, process=False)
        points, _ = trimesh.sample.sample_surface(mesh, 10000, seed=0)
        off = np.abs(np.linalg.norm(points, axis=1) - 0.4).mean()
        outwards = mesh.triangles_center / np.linalg.norm(mesh.triangles_center, axis=1)[:, None]
        return off, (1 - (mesh.face_normals * outwards).sum(axis=1)).mean()

    (off, bent), (new_off, new_bent) = errors(vertices), errors(result)
    assert result.dtype == np.float64
    assert new_off < 0.5 * off
    assert new_bent < 0.7 * bent


def test_refinement_descends_the_published_loss():
    """One face: the loss written out as in the paper. Steps after the first depend on its size.

    The twin differentiates the field's normal as well, which is no difference where the field is linear.
    """
    decoder = octahedron_decoder(radius=0.42).double()

    def field(points):
        return decoder(points.double())[:, 0]

    vertices = np.array([[0.3, 0.0, 0.1], [0.0, 0.35, 0.1], [0.05, 0.0, 0.42]])
    generator = torch.Generator().manual_seed(3)
    v = torch.tensor(vertices, requires_grad=True)
    optimizer = torch.optim.RMSprop([v], lr=1e-5)
    for _ in range(4):
        torch.randperm(1, generator=generator)
        weights = torch.randn(1, 3, 1, generator=generator, dtype=torch.float64)[0] ** 2
        point = (weights / weights.sum() * v).sum(dim=0, keepdim=True)
        probability = field(point).sigmoid()
        (gradient,) = torch.autograd.grad(probability.sum(), point, create_graph=True)
        normal = torch.linalg.cross(v[1] - v[0], v[2] - v[0])
        difference = normal / normal.norm() + gradient[0] / gradient[0].norm()
        loss = (probability - 0.5).square().mean() + 0.01 * difference.square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    result = refined(vertices, np.array([[0, 1, 2]]), field, n_steps=4, seed=3)
    moved, expected = result - vertices, (v.detach().numpy() - vertices)
    assert moved == pytest.approx(expected, rel=1e-3, abs=1e-8)


def test_refinement_draws_at_most_max_faces_and_moves_only_them():
    vertices, faces = noisy_sphere()
    sizes = []

    def field(p):
        sizes.append(len(p))
        return smooth_ball(p)

    result = refined(vertices, faces, field, n_steps=2, max_faces=5)
    assert sizes == [5, 5]
    assert 0 < (result != vertices).any(axis=1).sum() <= 30
    again = refined(vertices, faces, smooth_ball, n_steps=2, max_faces=5)
    assert (again == result).all()


def test_refinement_survives_degenerate_faces_and_flat_fields():
    vertices, faces = noisy_sphere()
    faces = np.concatenate([faces, [[0, 0, 1], [2, 2, 2]]])
    assert np.isfinite(refined(vertices, faces, smooth_ball, n_steps=3)).all()
    flat = refined(vertices, faces, lambda p: 0 * p.sum(dim=1), n_steps=3)
    assert (flat == vertices).all()
    empty = np.zeros((0, 3)), np.zeros((0, 3), dtype=np.int64)
    assert refined(*empty, smooth_ball).shape == (0, 3)


def test_refinement_leaves_the_network_alone_and_reports_nan():
    vertices, faces = noisy_sphere()
    weight = torch.tensor(60.0, requires_grad=True)
    with torch.no_grad():  # as generation runs
        refined(vertices, faces, lambda p: weight * (0.16 - p.square().sum(dim=1)), n_steps=1)
    assert weight.grad is None
    with pytest.raises(InputError, match="checkpoint"):
        refined(vertices, faces, lambda p: torch.nan * p.sum(dim=1))


def test_vertex_colors_are_opaque_bytes():
    vertices = np.linspace(0, 1, 256)[:, None].repeat(3, axis=1)
    colors = vertex_colors(lambda p: p * p.new_tensor([1.0, 0.5, 0.0]), vertices, max_points=100)
    assert colors.dtype == np.uint8 and colors.shape == (256, 4)
    assert (colors[[0, -1]] == [[0, 0, 0, 255], [255, 127, 0, 255]]).all()
    assert vertex_colors(lambda p: p, np.zeros((0, 3))).shape == (0, 4)


@pytest.mark.parametrize("extension", MESH_EXTENSIONS)
def test_meshes_survive_the_file(tmp_path, extension):
    result, mesh = mesh_of(sphere(), 4, 1)
    colors = np.random.default_rng(0).integers(0, 256, (len(result.vertices), 4), dtype=np.uint8)
    colors[:, 3] = 255
    path = tmp_path / f"new/folder/mesh.{extension}"
    save_mesh(path, result.vertices, result.faces, colors)
    loaded = load_mesh(path)
    assert loaded.triangles == pytest.approx(mesh.triangles, abs=1e-6)
    if extension != "stl":  # a list of triangles, without shared vertices
        assert loaded.vertices == pytest.approx(mesh.vertices, abs=1e-6)
    if extension in ("ply", "obj", "glb"):
        assert (loaded.visual.vertex_colors == colors).all()
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("extension", MESH_EXTENSIONS)
def test_empty_meshes_survive_the_file(tmp_path, extension):
    path = tmp_path / f"empty.{extension}"
    save_mesh(path, np.zeros((0, 3)), np.zeros((0, 3), dtype=int), np.zeros((0, 4), dtype=np.uint8))
    mesh = load_mesh(path)
    assert isinstance(mesh, trimesh.Trimesh)
    assert len(mesh.vertices) == len(mesh.faces) == 0


def test_unknown_mesh_format_names_the_known_ones(tmp_path):
    for name in ("mesh.plyy", "mesh"):
        with pytest.raises(InputError, match="ply, off, obj"):
            save_mesh(tmp_path / name, np.zeros((0, 3)), np.zeros((0, 3), dtype=int))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("extension", MESH_EXTENSIONS)
def test_damaged_mesh_files_are_refused(tmp_path, extension):
    path = tmp_path / f"mesh.{extension}"
    with pytest.raises(InputError, match=f"mesh.{extension}"):
        load_mesh(path)
    mesh = trimesh.creation.icosphere(2)
    save_mesh(path, mesh.vertices, mesh.faces)
    content = path.read_bytes()
    for damaged in (b"", content[: len(content) // 4]):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=f"mesh.{extension} is not a whole"):
            load_mesh(path)


@needs_reference
@both_files
def test_reference_mesh_and_colors(name):
    data, decoder = load(name)
    shifts = decoder.condition(data["c"][:1])
    result, mesh = mesh_of(lambda p: decoder(p, shifts)[:, 0], 16, 2)
    expected = data["mesh_vertices"].numpy()
    assert_closed(mesh)
    assert result.vertices.shape == expected.shape
    assert result.faces.shape == data["mesh_faces"].shape
    assert cKDTree(expected).query(result.vertices)[0].max() < 2e-5
    assert mesh.volume == pytest.approx(data["mesh_volume"], rel=1e-5)
    colors = vertex_colors(lambda p: decoder(p, shifts)[:, 1:].sigmoid(), expected[:500])
    difference = colors.astype(int) - data["vertex_colors"].numpy()
    assert np.abs(difference).max() <= 1  # at a rounding edge
    assert (difference != 0).mean() < 0.01


# ---- vertices on their edges ---------------------------------------------------------------------


def saturated_ball(points, radius=0.33, sharpness=300.0):
    """A field that is nearly a step: values at the ends of an edge say little about where it crosses."""
    return 10 * torch.tanh(sharpness * (radius - points.norm(dim=1)))


@pytest.mark.parametrize("root_steps, off", [(0, 1e-2), (4, 3e-4), (8, 2e-5)])
def test_vertices_of_a_steep_field(root_steps, off):
    mesh = extract_mesh(saturated_ball, resolution_0=16, upsampling_steps=2, root_steps=root_steps)
    distance = np.abs(np.linalg.norm(mesh.vertices, axis=1) - 0.33)
    assert distance.max() < off
    if root_steps == 0:
        assert distance.max() > 1e-3  # else the rest would prove nothing


def test_vertices_stay_on_their_edges():
    plain, rooted = (
        extract_mesh(saturated_ball, resolution_0=16, upsampling_steps=1, root_steps=n) for n in (0, 5)
    )
    assert np.array_equal(plain.faces, rooted.faces)
    moved = np.abs(plain.vertices - rooted.vertices)
    assert ((moved > 1e-12).sum(axis=1) <= 1).all() and moved.max() < 1 / 32


def test_roots_at_the_caps_of_the_cube():
    """An edge that leaves the cube ends in free space: there is nothing to look for."""
    mesh = extract_mesh(
        lambda points: torch.full_like(points[:, 0], 3.0), resolution_0=4, upsampling_steps=1, root_steps=3
    )
    assert mesh.fills_cube and np.isfinite(mesh.vertices).all()


# ---- colours by view -----------------------------------------------------------------------------


def test_views_of_vertices():
    """A ball: each vertex is seen from the cameras in front of it, the nearer to its normal the more."""
    ball = trimesh.creation.icosphere(3, 0.3)
    centers = 2.0 * np.array([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, 0, 1]], float)
    directions, weights = meshing.views_of_vertices(ball.vertices, ball.faces, centers, n_best=2)
    assert directions.shape == (len(ball.vertices), 2, 3) and weights.shape == directions.shape[:2]
    np.testing.assert_allclose(np.linalg.norm(directions, axis=2), 1)
    front = int(np.argmax(ball.vertices[:, 0]))
    best = int(np.argmax(weights[front]))
    np.testing.assert_allclose(directions[front, best], [-1, 0, 0], atol=0.05)
    assert weights[front, best] == pytest.approx(1, abs=0.01)
    cosines = np.sort((ball.vertices / 0.3) @ (centers / 2).T, axis=1)[:, ::-1]
    seen = cosines[:, 0] > 0.4  # not at the rim, where the ball hides itself
    np.testing.assert_allclose(weights[seen].max(axis=1), cosines[seen, 0], atol=0.15)


def test_what_hides_a_vertex():
    """A plate before a ball: what it hides from the only camera counts as if it were seen."""
    ball = trimesh.creation.icosphere(3, 0.2)
    plate = trimesh.creation.box((0.02, 1.0, 1.0)).apply_translation([0.5, 0, 0])
    both = trimesh.util.concatenate([ball, plate])
    centers = np.array([[2.0, 0, 0], [0, 0, 2.0]])
    _, weights = meshing.views_of_vertices(both.vertices, both.faces, centers, n_best=2)
    towards_both = np.argmin(np.linalg.norm(ball.vertices - [0.141, 0, 0.141], axis=1))
    assert (weights[towards_both] > 0).sum() == 1  # seen by the second camera alone
    front = int(np.argmax(ball.vertices[:, 0]))
    assert weights[front].max() > 0.9  # hidden, but which way it faces is known
