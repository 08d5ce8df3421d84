"""From an occupancy field to a mesh file: extraction, simplification, refinement, colours, export.

Method, section 7. Everything here takes callables and arrays, never a model. A *logit field* maps
points (M, 3) in object space to logits (M,), a *colour field* to rgb (M, 3) in [0, 1]; both take
and return tensors. Points whose logit exceeds ``log(tau / (1 - tau))`` are inside. A mesh is a
pair of arrays, ``vertices`` float64 (V, 3) in object space and ``faces`` int64 (F, 3), oriented
outwards.
"""

import functools
import math
from dataclasses import dataclass
from pathlib import Path

import fast_simplification
import mcubes
import numpy as np
import torch
import torch.nn.functional as F
import trimesh
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from trimesh.ray.ray_pyembree import RayMeshIntersector

from im2mesh.errors import InputError
from im2mesh.ext import new_mise
from im2mesh.files import atomic_path

MAX_POINTS = 1 << 17
MESH_EXTENSIONS = ("ply", "off", "obj", "stl", "glb")
REFINEMENT_LEARNING_RATE = 1e-5
REFINEMENT_NORMAL_WEIGHT = 0.01

# An interpolated logit tells the side of the surface if it is so many times farther from the
# threshold than interpolation was off nearby.
GUESS_MARGIN = 2.0

# Infinite logits count as this, so that -inf can stand for the free space around the cube.
LARGEST_LOGIT = 1e30

# Vertices keep this distance, in fine voxels, from the ends of their grid edge. So no two of them
# coincide, not even in float32, whatever the values; and the caps that close the mesh lie this
# far outside the cube.
MARGIN = 1e-3

N_VIEWS_OF_VERTEX = 16  # of those that see it, the ones that look at it most directly
OFF_SURFACE = 1e-3  # cube edges: rays from a vertex to a camera start so far before the surface

# Corner 4*dx + 2*dy + dz of a cell is at (dx, dy, dz), as in MISE.cells.
CORNERS = np.stack(np.unravel_index(np.arange(8), (2, 2, 2)), axis=1)
CORNER_WEIGHTS = np.array([4, 2, 1])


@dataclass(frozen=True)
class ExtractedMesh:
    """A mesh and what was seen of its field.

    vertices : float64 (V, 3)
        Object space.
    faces : int64 (F, 3)
        F = 0 when no evaluated point is inside.
    logit_range : (float, float)
        Lowest and highest logit met.
    fills_cube : bool
        Every evaluated point is inside: the mesh is the cube itself.
    touches_cube : bool
        The object reaches the faces of the cube, where the mesh is capped.
    n_points : int
        Points at which the field was evaluated.
    """

    vertices: np.ndarray
    faces: np.ndarray
    logit_range: tuple
    fills_cube: bool
    touches_cube: bool
    n_points: int

    @property
    def is_empty(self):
        return len(self.faces) == 0


def evaluate(function, points, max_points=MAX_POINTS, device="cpu"):
    """Values of a field at many points, computed in chunks and without gradients.

    Parameters
    ----------
    function : callable
        float32 Tensor (M, 3) on ``device`` -> Tensor (M, ...).
    points : float64 array (N, 3)
    max_points : int
        Points per call: bounds the memory.

    Returns
    -------
    float64 array (N, ...)
    """
    with torch.no_grad():
        values = [
            function(chunk.to(device, torch.float32)).to("cpu", torch.float64)
            for chunk in torch.from_numpy(points).split(max_points)
        ]
    return torch.cat(values).numpy()


def extract_grid(
    field,
    *,
    resolution_0,
    upsampling_steps,
    threshold_logit,
    padding,
    max_points=MAX_POINTS,
    device="cpu",
):
    """Evaluate a logit field where MISE asks for it and interpolation does not tell on which side it is.

    Parameters
    ----------
    field : callable
        Logit field.
    resolution_0, upsampling_steps : int
        ``resolution_0`` cells per axis are halved ``upsampling_steps`` times.
    threshold_logit : float
    padding : float
        The grid spans the cube of side ``1 + padding`` around the origin.

    Returns
    -------
    mise : MISE
        With nothing left to ask. Its values are the field's own at both ends of every edge that the
        surface cuts.
    n_points : int
        Points at which the field was evaluated.

    Raises
    ------
    InputError
        When the field is NaN somewhere.
    """
    mise = new_mise(resolution_0, upsampling_steps, threshold_logit)
    n_points = 0

    def logits_at(grid_points):
        nonlocal n_points
        n_points += len(grid_points)
        points = _to_object_space(grid_points, mise.resolution, padding)
        logits = evaluate(field, points, max_points, device)
        if np.isnan(logits).any():
            raise InputError(
                f"the occupancy is NaN at {np.isnan(logits).sum()} of {len(logits)} points, the "
                f"first at {points[np.isnan(logits)][0].tolist()}: the network's weights are "
                "broken. Use an earlier checkpoint."
            )
        return np.clip(logits, -LARGEST_LOGIT, LARGEST_LOGIT)

    while len(grid_points := mise.query()):
        logits, errors = mise.guess(grid_points)
        needed = ~(np.abs(logits - threshold_logit) > GUESS_MARGIN * errors)
        logits[needed] = logits_at(grid_points[needed])
        mise.update(grid_points, logits, guessed=~needed)
    return mise, n_points


def extract_mesh(
    field,
    *,
    resolution_0,
    upsampling_steps,
    threshold=0.5,
    padding=0.0,
    root_steps=0,
    max_points=MAX_POINTS,
    device="cpu",
):
    """The surface where the occupancy probability is ``threshold``, as a watertight mesh.

    Marching cubes on the finest voxels of MISE, and only on those: memory and time grow with the
    area of the surface. Everything outside the cube is free space, so an object that reaches the
    cube is closed by caps on its faces. Not differentiable.

    Parameters
    ----------
    field : callable
        Logit field, called with float32 points on ``device``. Infinite logits are fine.
    resolution_0, upsampling_steps : int
        The final grid has ``resolution_0 * 2**upsampling_steps`` cells per axis.
    threshold : float
        Probability in (0, 1).
    padding : float
        The cube has side ``1 + padding``.
    root_steps : int
        Evaluations that look for each vertex along its edge of the grid, by regula falsi. 0 places it by
        the values at the edge's ends, which is off where the field is not straight between them:
        rings in the shape of the grid appear on smooth sides.
    max_points : int
        Points per call of the field.

    Returns
    -------
    ExtractedMesh

    Raises
    ------
    InputError
        When the field is NaN somewhere.
    """
    level = math.log(threshold / (1 - threshold))
    mise, n_points = extract_grid(
        field,
        resolution_0=resolution_0,
        upsampling_steps=upsampling_steps,
        threshold_logit=level,
        padding=padding,
        max_points=max_points,
        device=device,
    )
    cells, values = mise.cells()
    cap_cells, cap_values = _cells_around_the_cube(mise)
    edges, edge_values, faces = _marching_cubes(
        np.concatenate([cells, cap_cells]),
        np.concatenate([values, cap_values]) - level,
        mise.resolution,
    )

    def logits_on_edges(rows, shares):
        start, end = edges[rows, 0], edges[rows, 1]
        points = _to_object_space(start + shares[:, None] * (end - start), mise.resolution, padding)
        return evaluate(field, points, max_points, device) - level

    shares = _roots_on_edges(edge_values, logits_on_edges, root_steps)
    grid_vertices = edges[:, 0] + shares[:, None] * (edges[:, 1] - edges[:, 0])
    return ExtractedMesh(
        vertices=_to_object_space(grid_vertices, mise.resolution, padding),
        faces=faces,
        logit_range=(mise.lowest, mise.highest),
        fills_cube=mise.lowest > level,
        touches_cube=len(cap_cells) > 0,
        n_points=n_points,
    )


def _to_object_space(grid_points, resolution, padding):
    return (grid_points / resolution - 0.5) * (1 + padding)


def _cells_around_the_cube(mise):
    """The cells just outside the grid that hold a piece of surface, and their corner values.

    They have -inf where they leave the grid. Like ``MISE.cells``; coordinates run from -1 to
    ``mise.resolution``.
    """
    n = mise.resolution
    cells, values = [], []
    for axis in range(3):
        for lower_side in (True, False):
            lower, upper = np.zeros(3, dtype=int), np.full(3, n + 1)
            lower[axis] = 0 if lower_side else n
            upper[axis] = lower[axis] + 1
            # The layers of later axes are narrower: cells along the cube's edges come once.
            before = [int(a > axis) for a in range(3)]
            after = list(before)
            (before if lower_side else after)[axis] = 1
            layer = np.pad(
                mise.to_dense(lower, upper),
                list(zip(before, after, strict=True)),
                constant_values=-np.inf,
            )
            inside = layer > mise.threshold
            count = sum(_corner_view(inside, corner).astype(np.int8) for corner in CORNERS)
            crossed = np.nonzero((count > 0) & (count < 8))
            cells.append(np.stack(crossed, axis=1) + (lower - before))
            values.append(
                np.stack([_corner_view(layer, corner)[crossed] for corner in CORNERS], axis=1)
            )
    return np.concatenate(cells), np.concatenate(values)


def _corner_view(grid, corner):
    """The values at one corner of all cells of a grid."""
    return grid[tuple(slice(c, c + n - 1) for c, n in zip(corner, grid.shape, strict=True))]


@functools.cache
def _triangle_table():
    """The triangles of marching cubes for each of the 256 sign patterns of a cell.

    Bit k of a pattern says whether corner k is inside. PyMCubes is asked once for each pattern;
    with values of -1 and 1 its vertices are the middles of the cut edges.

    Returns
    -------
    counts : int64 (256,)
        Triangles per pattern.
    triangles : int64 (T, 3, 3)
        Of all patterns in turn: three edge middles each, in half cells.
    """
    triangles = []
    for pattern in range(256):
        signs = np.where(pattern >> np.arange(8) & 1, 1.0, -1.0).reshape(2, 2, 2)
        middles, faces = mcubes.marching_cubes(signs, 0.0)
        triangles.append(np.rint(2 * middles).astype(np.int64)[faces].reshape(-1, 3, 3))
    return np.array([len(t) for t in triangles]), np.concatenate(triangles)


def _marching_cubes(cells, values, resolution):
    """Triangulate the zero level within separate cells; what they share is joined.

    The triangles follow from the signs alone and the vertices from linear interpolation along the
    cut edges, so the mesh is closed and without double vertices even where values are huge,
    infinite or zero.

    Parameters
    ----------
    cells : int64 (C, 3)
        Lower corners, from -1 to ``resolution``.
    values : float64 (C, 8)
        At the corners, positive inside. -inf pulls the vertex to the other end of its edge.

    Returns
    -------
    edges : int64 (V, 2, 3)
        The ends of the grid edge that each vertex lies on.
    edge_values : float64 (V, 2)
        There.
    faces : int64 (F, 3)
    """
    counts, triangles = _triangle_table()
    pattern = np.packbits(values > 0, axis=1, bitorder="little")[:, 0]
    n_faces = counts[pattern]
    cell = np.repeat(np.arange(len(cells)), n_faces)
    rank = np.arange(len(cell)) - np.repeat(np.cumsum(n_faces) - n_faces, n_faces)
    row = (np.cumsum(counts) - counts)[pattern[cell]] + rank

    # An edge is named by its middle, counted in half cells from the corner (-1, -1, -1).
    shape = (2 * resolution + 5,) * 3
    strides = np.array([shape[1] * shape[2], shape[2], 1])
    keys = ((2 * cells + 2) @ strides)[cell, None] + (triangles @ strides)[row]
    keys, first, faces = np.unique(keys, return_index=True, return_inverse=True)

    cell = cell[first // 3]
    corner = cells[cell]
    middle = np.stack(np.unravel_index(keys, shape), axis=1) - (2 * corner + 2)
    start, end = middle // 2, (middle + 1) // 2
    a, b = values[cell, start @ CORNER_WEIGHTS], values[cell, end @ CORNER_WEIGHTS]
    edges = np.stack([corner + start, corner + end], axis=1)
    return edges, np.stack([a, b], axis=1), faces.reshape(-1, 3)


def _roots_on_edges(values, evaluate_at, n_steps):
    """Where on its edge each vertex lies, as a share of it from the first end, MARGIN from both.

    Parameters
    ----------
    values : float64 (V, 2)
        At the ends, on both sides of 0. An infinite one pulls the vertex to the other end.
    evaluate_at : callable (rows (M,), shares (M,)) -> values (M,)
    n_steps : int
        Steps of regula falsi, which halves the value of an end that is kept twice (Illinois).
    """

    def crossing(a, b):
        with np.errstate(divide="ignore", invalid="ignore"):
            return 1 / (1 - b / a)  # a / (a - b), for one infinite value too

    shares = crossing(*values.T)
    rows = np.flatnonzero(np.isfinite(values).all(axis=1)) if n_steps else np.arange(0)
    a, b = values[rows].T.copy()
    low, high, kept = np.zeros(len(rows)), np.ones(len(rows)), np.zeros(len(rows))
    for _ in range(n_steps):
        place = np.clip(low + crossing(a, b) * (high - low), low, high)
        found = evaluate_at(rows, place)
        left = (found > 0) == (a > 0)  # the root is beyond: the lower end moves up
        b = np.where(left & (kept == 1), b / 2, b)
        a = np.where(~left & (kept == -1), a / 2, a)
        low, a = np.where(left, place, low), np.where(left, found, a)
        high, b = np.where(left, high, place), np.where(left, b, found)
        kept = np.where(left, 1, -1)
    if n_steps:
        shares[rows] = low + np.nan_to_num(crossing(a, b), nan=0.5) * (high - low)
    return np.clip(shares, MARGIN, 1 - MARGIN)


def signed_volume(vertices, faces):
    """The volume a closed mesh encloses; positive when its triangles are oriented outwards."""
    a, b, c = vertices[faces].transpose(1, 0, 2)
    return float(np.sum(a * np.cross(b, c)) / 6)


def drop_cavities(vertices, faces):
    """Remove the surfaces that no ray from outside reaches: cavities and all that is in them.

    A component (faces that hang together by shared vertices) whose signed volume is negative bounds
    free space enclosed by the object. It goes, and with it every component inside it, such as an
    island that floats in the cavity. Of a closed mesh oriented outwards what is left is closed, with
    the same outer surfaces. Components are told to be inside one another by winding numbers along a
    ray, so they must not intersect.

    Parameters
    ----------
    vertices : float64 (V, 3)
        In any unit.
    faces : int64 (F, 3)

    Returns
    -------
    vertices, faces
        The arrays given where nothing goes; else new ones, in the same order and without the vertices
        that no face uses.

    Raises
    ------
    ValueError
        When the mesh as a whole is oriented inwards.
    """
    component, vertex, volumes = _components(vertices, faces)
    if volumes.sum() < 0:
        raise ValueError("the mesh is oriented inwards: all of it would be a cavity")
    hidden = volumes < 0
    if not hidden.any():
        return vertices, faces
    inner, _ = _nested(vertices, faces, component, vertex, ~hidden, hidden)
    hidden[inner] = True
    return _faces_subset(vertices, faces, ~hidden[component])


def largest_components(vertices, faces, share):
    """Remove floaters: outer components whose volume is below a share of that of the largest.

    Outer components are inside no other. Their volume is that within their surface, cavities
    included, and what is inside them stays or goes with them.

    Parameters
    ----------
    vertices : float64 (V, 3)
        In any unit.
    faces : int64 (F, 3)
        A closed mesh oriented outwards, as for :func:`drop_cavities`.
    share : float
        In [0, 1]. 1 leaves the largest component alone, and those just as large; 0 all of them.

    Returns
    -------
    vertices, faces
        As :func:`drop_cavities` returns them.

    Raises
    ------
    ValueError
        When ``share`` is not in [0, 1] or the mesh as a whole is oriented inwards.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share = {share} is not in [0, 1]")
    component, vertex, volumes = _components(vertices, faces)
    if volumes.sum() < 0:
        raise ValueError("the mesh is oriented inwards: it has no largest component")
    outer = np.ones(len(volumes), dtype=bool)
    # The outermost one around a component is oriented outwards.
    inner, container = _nested(vertices, faces, component, vertex, outer, volumes > 0)
    outer[inner] = False
    dropped = outer & (volumes < share * volumes.max(initial=0, where=outer))
    dropped[inner[dropped[container]]] = True
    if not dropped.any():
        return vertices, faces
    return _faces_subset(vertices, faces, ~dropped[component])


def _faces_subset(vertices, faces, kept):
    """The faces that are kept and the vertices they use."""
    faces = faces[kept]
    used = np.zeros(len(vertices), dtype=bool)
    used[faces] = True
    return vertices[used], (np.cumsum(used) - 1)[faces]


def _components(vertices, faces):
    """What hangs together by shared vertices.

    Returns
    -------
    component : int64 (F,)
        That of each face.
    vertex : int64 (C,)
        One of each component.
    volumes : float64 (C,)
        Signed.
    """
    ends = faces[:, :2].ravel(), faces[:, 1:].ravel()
    links = coo_matrix((np.ones(len(ends[0]), dtype=bool), ends), shape=(len(vertices),) * 2)
    component = connected_components(links, directed=False)[1][faces[:, 0]]
    is_used = np.bincount(component) > 0  # a vertex without faces is no component
    component = (np.cumsum(is_used) - 1)[component]
    vertex = np.zeros(np.count_nonzero(is_used), dtype=np.int64)
    vertex[component] = faces[:, 0]
    # Seen from a vertex of its own, a small component far from the origin has an exact volume too.
    origin = vertices[vertex[component]]
    a, b, c = (vertices[corner] - origin for corner in faces.T)
    volumes = np.bincount(component, np.einsum("ij,ij->i", a, np.cross(b, c)) / 6)
    return component, vertex, volumes


def _nested(vertices, faces, component, vertex, is_query, is_container):
    """Which components are inside which others.

    The winding number of a container around a vertex of the query, counted where a ray from there
    crosses the container. Edges are tested in the same way from both of their faces, so that no
    rounding lets a ray slip between them.

    Parameters
    ----------
    component, vertex : int64 (F,), (C,)
        From :func:`_components`.
    is_query, is_container : bool (C,)

    Returns
    -------
    inner, container : int64 (K,)
        All pairs of a query component and a container around it.
    """
    # The ray runs down the third axis of a frame in which nothing of a grid is aligned.
    frame = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    vertices = vertices @ frame
    queries = np.flatnonzero(is_query)
    points = vertices[vertex[queries]]
    walls = np.flatnonzero(is_container[component])
    a, b, c = (vertices[corner] for corner in faces[walls].T)
    lower, upper = np.minimum(np.minimum(a, b), c), np.maximum(np.maximum(a, b), c)
    wall, query = _pairs_in_boxes(points[:, :2], lower[:, :2], upper[:, :2])
    other = (component[walls[wall]] != queries[query]) & (lower[wall, 2] <= points[query, 2])
    wall, query = walls[wall[other]], query[other]

    names = faces[wall]
    relative = vertices[names] - points[query, None]
    areas, left = np.empty((len(wall), 3)), np.empty((len(wall), 3), dtype=bool)
    for k in range(3):
        i, j = (k + 1) % 3, (k + 2) % 3
        swap = names[:, i] > names[:, j]
        a = np.where(swap[:, None], relative[:, j], relative[:, i])
        b = np.where(swap[:, None], relative[:, i], relative[:, j])
        cross = a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]
        left[:, k] = (cross >= 0) ^ swap
        areas[:, k] = np.where(swap, -cross, cross)
    hit = (left == left[:, :1]).all(axis=1)
    areas, relative, wall, query = areas[hit], relative[hit], wall[hit], query[hit]
    # The height of the crossing above the point, times an area of the sign of ``left``.
    below = (np.sum(areas * relative[..., 2], axis=1) < 0) == left[hit, 0]
    wall, query, upwards = wall[below], query[below], left[hit, 0][below]

    pairs = queries[query] * len(is_query) + component[wall]
    pairs, index = np.unique(pairs, return_inverse=True)
    winding = np.bincount(index, np.where(upwards, -1, 1), minlength=len(pairs))
    return np.divmod(pairs[winding != 0], len(is_query))


def _pairs_in_boxes(points, lower, upper):
    """All pairs of a box, ``lower <= point <= upper``, and a point in it; and a few others.

    The points are sorted into stripes of about sqrt(N) points along the first axis and by the second
    axis within each.

    Parameters
    ----------
    points : float64 (N, 2)
    lower, upper : float64 (B, 2)

    Returns
    -------
    box, point : int64 (P,)
        Indices. Boxes of the others are in the same stripe as the point.
    """
    n = len(points)
    width = math.isqrt(n) + 1
    x, y = np.sort(points, axis=0).T
    stripe = np.searchsorted(x, points[:, 0]) // width
    keys = stripe * (n + 1) + np.searchsorted(y, points[:, 1])
    order = np.argsort(keys, kind="stable")
    keys = keys[order]

    first, last = np.searchsorted(x, lower[:, 0]), np.searchsorted(x, upper[:, 0], side="right")
    start, stop = np.searchsorted(y, lower[:, 1]), np.searchsorted(y, upper[:, 1], side="right")
    boxes = np.flatnonzero((first < last) & (start < stop))
    box, stripe = _ranges(first[boxes] // width, (last[boxes] - 1) // width + 1)
    box = boxes[box]
    row, rank = _ranges(
        np.searchsorted(keys, stripe * (n + 1) + start[box]),
        np.searchsorted(keys, stripe * (n + 1) + stop[box]),
    )
    return box[row], order[rank]


def _ranges(start, stop):
    """All pairs of an index i of ranges and a number ``start[i] <= number < stop[i]``."""
    length = stop - start
    index = np.repeat(np.arange(len(start)), length)
    return index, np.arange(len(index)) + np.repeat(start - (np.cumsum(length) - length), length)


def simplify(vertices, faces, n_faces):
    """Decimate a closed mesh to about ``n_faces`` faces by quadric edge collapses.

    A mesh that is small enough already, an empty one included, comes back as it is.

    Raises
    ------
    InputError
        When the mesh collapses or turns inside out because ``n_faces`` is too small.
    """
    if len(faces) <= n_faces:
        return vertices, faces
    simple_vertices, simple_faces = fast_simplification.simplify(
        vertices, faces, target_count=n_faces
    )
    simple_faces = simple_faces.astype(np.int64)
    volumes = signed_volume(vertices, faces), signed_volume(simple_vertices, simple_faces)
    if not volumes[0] * volumes[1] > 0:
        raise InputError(
            f"the mesh of {len(faces)} faces collapses when it is simplified to {n_faces}: ask "
            "for more faces (generation.simplify_nfaces)"
        )
    return simple_vertices, simple_faces


@torch.enable_grad()
def refine(vertices, faces, field, *, n_steps, max_faces, tau, generator, device="cpu"):
    """Move the vertices onto the level set and turn the faces into its tangent planes.

    RMSprop on the vertices. Each step draws one point on each of up to ``max_faces`` random faces
    and descends

        mean((sigmoid(f) - tau)^2) + 0.01 * mean(|n_face - n_field|^2)

    with ``n_field`` the normalised gradient of -sigmoid(f), which points outwards and is taken as
    constant around a point: in a field that is linear piece by piece it is. Faces and points without
    a normal (no area, no gradient) count for the first term only.

    Parameters
    ----------
    field : callable
        Points float32 (M, 3) -> logits (M,) and their spatial gradients (M, 3). It is called
        without gradients.
    n_steps : int
    max_faces : int
    tau : float
        Threshold as a probability.
    generator : torch.Generator
        On the CPU, whatever ``device`` is.
    device : str or torch.device
        Where the field is evaluated.

    Returns
    -------
    float64 array (V, 3)
        The new vertices.

    Raises
    ------
    InputError
        When the field is NaN somewhere near the mesh.
    """
    if len(faces) == 0:
        return vertices
    corners = torch.from_numpy(faces).to(device)
    moving = torch.tensor(vertices, dtype=torch.float64, device=device, requires_grad=True)
    optimizer = torch.optim.RMSprop([moving], lr=REFINEMENT_LEARNING_RATE)
    for _ in range(n_steps):
        chosen = torch.randperm(len(faces), generator=generator)[:max_faces]
        # Squares of normal variates, normalised, are Dirichlet(0.5, 0.5, 0.5).
        weights = torch.randn(len(chosen), 3, 1, generator=generator, dtype=torch.float64) ** 2
        weights = (weights / weights.sum(dim=1, keepdim=True)).to(device)

        triangles = moving[corners[chosen.to(device)]]
        points = (weights * triangles).sum(dim=1).float()
        with torch.no_grad():
            logits, gradient = field(points)
        logits = logits + ((points - points.detach()) * gradient).sum(dim=1)
        a, b, c = triangles.unbind(dim=1)
        face_normal = torch.linalg.cross(b - a, c - a)

        has_normal = (face_normal.detach().norm(dim=1) > 0) & (gradient.norm(dim=1) > 0)
        # The sigmoid is monotonic: it scales the gradient and leaves its direction.
        difference = F.normalize(face_normal[has_normal], eps=0) + F.normalize(
            gradient[has_normal], eps=0
        )
        loss = (logits.sigmoid() - tau).square().mean() + REFINEMENT_NORMAL_WEIGHT * (
            difference.square().sum() / len(chosen)
        )
        if not loss.isfinite():
            raise InputError(
                "the occupancy or its gradient is not finite near the mesh: the network's weights "
                "are broken. Use an earlier checkpoint."
            )
        (moving.grad,) = torch.autograd.grad(loss, moving)
        optimizer.step()
    return moving.detach().cpu().numpy()


def vertex_colors(color_field, vertices, max_points=MAX_POINTS, device="cpu"):
    """Colours of the vertices.

    Parameters
    ----------
    color_field : callable
        rgb in [0, 1], called with float32 points on ``device``.
    vertices : float64 (V, 3)

    Returns
    -------
    uint8 (V, 4)
        RGBA, opaque; ``floor(255 * rgb)``.
    """
    return rgba(evaluate(color_field, vertices, max_points, device))


def rgba(rgb):
    """Colours (V, 3) in [0, 1] as uint8 (V, 4), opaque; ``floor(255 * rgb)``."""
    colors = np.full((len(rgb), 4), 255, dtype=np.uint8)
    colors[:, :3] = 255 * rgb
    return colors


def views_of_vertices(vertices, faces, centers, n_best=N_VIEWS_OF_VERTEX):
    """From which cameras each vertex of a mesh is seen best.

    Parameters
    ----------
    vertices : float64 (V, 3)
    faces : int64 (F, 3)
    centers : float64 (C, 3)
        Of the cameras, in the space of the vertices.
    n_best : int
        So many views of a vertex at most, K = min(n_best, C).

    Returns
    -------
    directions : float64 (V, K, 3)
        From the cameras to the vertices, unit length.
    weights : float64 (V, K)
        Cosine of the angle between view and normal; 0 where the vertex is hidden or turned away. Where
        it is hidden from all cameras, those towards which it faces count as if they saw it.
    """
    mesh = trimesh.Trimesh(vertices, faces, process=False)
    caster = RayMeshIntersector(mesh)
    normals = np.asarray(mesh.vertex_normals)
    start = vertices + OFF_SURFACE * normals
    facing = np.zeros((len(centers), len(vertices)))
    seen = np.zeros((len(centers), len(vertices)))
    for view, center in enumerate(centers):
        towards = center - vertices
        towards /= np.linalg.norm(towards, axis=1, keepdims=True)
        facing[view] = np.clip((towards * normals).sum(axis=1), 0, None)
        front = np.flatnonzero(facing[view])
        free = ~caster.intersects_any(start[front], towards[front])
        seen[view, front[free]] = facing[view, front[free]]
    weights = np.where(seen.any(axis=0), seen, facing).T
    n_best = min(n_best, len(centers))
    best = np.argpartition(-weights, n_best - 1, axis=1)[:, :n_best]
    directions = vertices[:, None] - centers[best]
    directions /= np.linalg.norm(directions, axis=2, keepdims=True)
    return directions, np.take_along_axis(weights, best, axis=1)


def save_mesh(path, vertices, faces, colors=None):
    """Write a mesh to ``path``, whose extension (one of ``MESH_EXTENSIONS``) is the format.

    Empty meshes are written as well. ``colors`` (uint8 RGBA per vertex) are kept by ply, obj and
    glb; off and stl hold the geometry only.

    Raises
    ------
    InputError
        When the extension is unknown or the file cannot be written.
    """
    path = Path(path)
    extension = path.suffix.removeprefix(".").lower()
    if extension not in MESH_EXTENSIONS:
        raise InputError(
            f"{path}: no mesh format is called {extension!r}; known: {', '.join(MESH_EXTENSIONS)}"
        )
    mesh = trimesh.Trimesh(vertices, faces, process=False)
    if colors is not None and len(vertices) > 0:
        mesh.visual.vertex_colors = colors
    with atomic_path(path) as temporary:
        mesh.export(temporary, file_type=extension)


def load_mesh(path):
    """Read a mesh file as it is, nothing merged or dropped.

    Returns
    -------
    trimesh.Trimesh
        Without faces when the file holds an empty mesh.

    Raises
    ------
    InputError
        When the file is missing, of zero size or damaged, or holds points without faces.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"there is no mesh file {path}: run generate.py, or correct the path")
    damaged = f"{path} is not a whole {path.suffix} mesh: damaged or truncated. Make it again."
    if path.stat().st_size == 0:
        raise InputError(damaged)
    try:
        scene = trimesh.load_scene(path, process=False)
        parts = [part for part in scene.geometry.values() if part.vertices.size]
        mesh = scene.to_mesh() if parts else trimesh.Trimesh()
    except Exception as err:  # the readers raise whatever they stumble on
        raise InputError(damaged) from err
    if not all(isinstance(part, trimesh.Trimesh) for part in parts):
        raise InputError(damaged)
    return mesh
