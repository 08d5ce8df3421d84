"""How well a predicted surface matches the true one (method section 9).

All distances are in object units: the object fills a cube of edge 1, and 0.01 is one hundredth
of that edge.
"""

import logging
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy.spatial import cKDTree

from im2mesh.ext import new_point_grid

logger = logging.getLogger(__name__)

THRESHOLDS = np.arange(1, 1001) / 1000
"""Distances 0.001, 0.002 ... 1 at which precision, recall and F are reported."""


def evaluate_mesh(
    mesh, gt_points, gt_normals=None, n_points=100_000, seed=0, points_iou=None, occupancies=None,
    n_threads=-1,
):
    """Compare a mesh with the true surface.

    Parameters
    ----------
    mesh : trimesh.Trimesh
        Predicted mesh in object space. Without faces, or with a total area that is zero or not
        finite, it counts as empty and gets the worst value of every metric.
    gt_points, gt_normals : array (M, 3)
        The true cloud in object space; the normals may be None.
    n_points : int
        Number of points drawn on the mesh.
    seed : int or numpy.random.Generator
        The same seed gives the same points.
    points_iou, occupancies : array (K, 3) and (K,), optional
        Points in object space and whether each lies inside the true object.
    n_threads : int
        Threads that look for nearest neighbours; -1 for one on each core.

    Returns
    -------
    dict of str to float
        Everything ``evaluate_pointclouds`` returns and, only when ``points_iou`` is given, 'iou'.
        Inside and outside are well defined for watertight meshes alone.
    """
    points, normals = sample_mesh(mesh, n_points, seed)
    metrics = evaluate_pointclouds(points, gt_points, normals, gt_normals, n_threads=n_threads)
    if points_iou is not None:
        inside = mesh.contains(points_iou) if len(points) else np.zeros(len(points_iou), bool)
        metrics["iou"] = occupancy_iou(inside, occupancies)
    return metrics


def sample_mesh(mesh, n_points, seed=0):
    """Draw points uniformly by area on a mesh.

    Returns
    -------
    points, normals : array (n_points, 3)
        The points and the unit normals of the faces they lie on; both (0, 3) when the mesh has
        no faces or its area is zero or not finite.
    """
    # ndarray.take: numpy's brackets gather rows at a third of its speed.
    vertices, faces = np.asarray(mesh.vertices, dtype=np.float64), np.asarray(mesh.faces)
    corners = vertices.take(faces, axis=0)
    edges = corners[:, 1:] - corners[:, :1]
    normals = np.cross(edges[:, 0], edges[:, 1])
    doubled_areas = _lengths(normals)
    share = np.cumsum(doubled_areas)
    if len(share) == 0 or not 0 < share[-1] < np.inf:
        return np.empty((0, 3)), np.empty((0, 3))
    rng = np.random.default_rng(seed)
    # Uniform numbers in ascending order are partial sums of exponential ones: in the order of the
    # faces, which is that of the memory, and without a sort.
    ascending = np.cumsum(rng.standard_exponential(n_points + 1))
    chosen = np.searchsorted(
        share[:-1], ascending[:-1] * (share[-1] / ascending[-1]), side="right"
    )
    place = rng.random((n_points, 2))
    beyond = place[:, 0] + place[:, 1] > 1
    place = np.where(beyond[:, None], 1 - place, place)  # back into the triangle
    points = vertices.take(faces[:, 0].take(chosen), axis=0)
    points += np.einsum("nk,nkj->nj", place, edges.take(chosen, axis=0))
    return points, normals.take(chosen, axis=0) / doubled_areas.take(chosen)[:, None]


def evaluate_pointclouds(
    pred, gt, pred_normals=None, gt_normals=None, thresholds=THRESHOLDS, n_threads=-1
):
    """Compare a cloud of predicted surface points with the true cloud (method section 9).

    Parameters
    ----------
    pred, pred_normals : array (N, 3)
        Predicted points; an empty cloud gets the worst value of every metric and a warning.
    gt, gt_normals : array (M, 3)
        True points.
    thresholds : array (T,)
        Distances at which precision, recall and F are taken.
    n_threads : int
        Threads that look for nearest neighbours; -1 for one on each core.

    Returns
    -------
    dict of str to float
        The keys depend on ``thresholds`` alone:

        - 'completeness', 'accuracy': mean distance true -> predicted, predicted -> true;
        - 'completeness2', 'accuracy2': means of the squared distances;
        - 'chamferL1', 'chamfer': mean of the first two, mean of the second two;
        - 'normals completeness', 'normals accuracy', 'normals': mean |cos| between the normals
          of nearest neighbours, in either direction and on average. The sign of a normal does
          not matter. NaN, which means over objects skip, where a cloud comes without normals;
        - 'precision@t' ('recall@t'): share of predicted (true) points whose nearest true
          (predicted) point is at most t away; 'F@t': their harmonic mean, 0 where both are 0.

    Raises
    ------
    ValueError
        When the true cloud is empty or a coordinate is not finite.
    """
    pred, gt = (np.ascontiguousarray(points, dtype=np.float64) for points in (pred, gt))
    if len(gt) == 0:
        raise ValueError("the true point cloud is empty: there is nothing to compare with")
    if len(pred) == 0:
        logger.warning("empty prediction: every metric gets its worst value")
        return _worst_metrics(thresholds, has_normals=gt_normals is not None)
    if not (np.isfinite(pred).all() and np.isfinite(gt).all()):
        raise ValueError("a point cloud has coordinates that are not finite")
    if pred_normals is None or gt_normals is None:
        pred_normals = gt_normals = None
    n_threads = (os.cpu_count() or 1) if n_threads == -1 else n_threads
    one_way = partial(_one_way, thresholds=thresholds, n_threads=-(-n_threads // 2))
    with ThreadPoolExecutor(min(n_threads, 2)) as pool:  # one for each direction
        pred, gt = pool.map(_Cloud, (pred, gt), (pred_normals, gt_normals))
        completeness, accuracy = pool.map(one_way, (gt, pred), (pred, gt))
    return _metrics(completeness, accuracy, thresholds)


def occupancy_iou(inside, occupancies):
    """Intersection over union of two sets of points given as flags (K,); 0 if both are empty."""
    inside, occupancies = np.asarray(inside) > 0.5, np.asarray(occupancies) > 0.5
    return float((inside & occupancies).sum() / max((inside | occupancies).sum(), 1))


class _Cloud:
    """Points (N, 3) with unit normals or None, and the grid that finds the nearest of them."""

    def __init__(self, points, normals):
        self.points = points
        self.normals = None if normals is None else np.asarray(normals)
        self.grid = new_point_grid(points)


@dataclass
class _OneWay:
    """What is measured at the points of one cloud, each compared with the nearest of another.

    distance, squared : float
        Means.
    normals : float
        Mean |cos|.
    share : array (T,)
        Of the points that are within each threshold.
    """

    distance: float
    squared: float
    normals: float
    share: np.ndarray


def _one_way(cloud, other, thresholds, n_threads):
    distances, nearest = _nearest(cloud, other, n_threads)
    normals = np.nan
    if cloud.normals is not None:
        normals = _mean_abs_cosine(cloud.normals, other.normals.take(nearest, axis=0))
    return _OneWay(
        distances.mean(), np.square(distances).mean(), normals, _share_within(distances, thresholds)
    )


def _nearest(cloud, other, n_threads):
    """Distance of each point of a cloud to the nearest of another, and which it is."""
    n_points = len(cloud.points)
    distances, nearest = np.empty(n_points), np.empty(n_points, dtype=np.int64)
    ends = np.linspace(0, n_points, n_threads + 1).astype(int)
    with ThreadPoolExecutor(n_threads) as pool:
        list(pool.map(
            lambda begin, end: other.grid.nearest(cloud.grid, begin, end, distances, nearest),
            ends[:-1], ends[1:],
        ))
    far = nearest < 0
    if far.any():
        tree = cKDTree(other.points)
        distances[far], nearest[far] = tree.query(cloud.points[far], workers=n_threads)
    return distances, nearest


def _share_within(distances, thresholds):
    """Share of the distances (N,) that are <= each threshold (T,): one histogram serves them all."""
    ascending, place = np.unique(thresholds, return_inverse=True)
    count = np.bincount(np.searchsorted(ascending, distances), minlength=len(ascending) + 1)
    return count.cumsum()[place] / len(distances)


def _mean_abs_cosine(a, b):
    """Mean |cos| between the rows of a and b (N, 3); a row of length zero agrees with nothing."""
    lengths = _lengths(a) * _lengths(b)
    dots = np.abs(np.einsum("nk,nk->n", a, b))
    return np.divide(dots, lengths, out=np.zeros_like(lengths), where=lengths > 0).mean()


def _lengths(vectors):
    return np.sqrt(np.einsum("nk,nk->n", vectors, vectors))


def _worst_metrics(thresholds, has_normals):
    """What an empty prediction gets; distances are the diagonal of the cube."""
    nothing = np.zeros(len(thresholds))
    worst = _OneWay(np.sqrt(3), 3.0, -1.0 if has_normals else np.nan, nothing)
    return _metrics(worst, worst, thresholds)


def _metrics(completeness, accuracy, thresholds):
    """The row of metrics; the one place that knows the keys, so that no row can lack one."""
    metrics = {
        "completeness": completeness.distance,
        "accuracy": accuracy.distance,
        "normals completeness": completeness.normals,
        "normals accuracy": accuracy.normals,
        "normals": (completeness.normals + accuracy.normals) / 2,
        "completeness2": completeness.squared,
        "accuracy2": accuracy.squared,
        "chamfer": (completeness.squared + accuracy.squared) / 2,
        "chamferL1": (completeness.distance + accuracy.distance) / 2,
    }
    precision, recall = accuracy.share, completeness.share
    total = precision + recall
    f_score = np.divide(2 * precision * recall, total, out=np.zeros(len(total)), where=total > 0)
    labels = [f"{threshold:.4f}" for threshold in thresholds]
    for name, values in (("precision", precision), ("recall", recall), ("F", f_score)):
        metrics.update(zip([f"{name}@{t}" for t in labels], values.tolist()))
    return {name: float(value) for name, value in metrics.items()}
