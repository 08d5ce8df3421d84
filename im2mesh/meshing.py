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
    grid_vertices, faces = _marching_cubes(
        np.concatenate([cells, cap_cells]),
        np.concatenate([values, cap_values]) - level,
        mise.resolution,
    )
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
    vertices : float64 (V, 3)
        In grid units.
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
    with np.errstate(divide="ignore"):
        t = np.clip(1 / (1 - b / a), MARGIN, 1 - MARGIN)  # a / (a - b), for one infinite value too
    return corner + start + t[:, None] * (end - start), faces.reshape(-1, 3)


def signed_volume(vertices, faces):
    """The volume a closed mesh encloses; positive when its triangles are oriented outwards."""
    a, b, c = vertices[faces].transpose(1, 0, 2)
    return float(np.sum(a * np.cross(b, c)) / 6)


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
    rgb = evaluate(color_field, vertices, max_points, device)
    rgba = np.full((len(vertices), 4), 255, dtype=np.uint8)
    rgba[:, :3] = 255 * rgb
    return rgba


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
