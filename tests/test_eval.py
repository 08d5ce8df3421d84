"""Metrics: the published figures, closed forms, a plain twin, and meshes with nothing in them."""

import numpy as np
import pandas as pd
import pytest
import torch
import trimesh
from scipy.spatial import cKDTree

from benchmarks.evaluate import evaluate_plainly
from im2mesh.errors import InputError
from im2mesh.eval import (
    THRESHOLDS,
    evaluate_mesh,
    evaluate_pointclouds,
    occupancy_iou,
    sample_mesh,
)
from im2mesh.eval_report import format_table, write_report
from tests.reference import FOLDER, both_files, needs_reference


def sphere(radius, subdivisions=4):
    return trimesh.creation.icosphere(subdivisions=subdivisions, radius=radius)


def noisy_sphere(n_points, seed):
    rng = np.random.default_rng(seed)
    normals = rng.normal(size=(n_points, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    return 0.4 * normals + rng.normal(scale=0.003, size=(n_points, 3)), normals


def grid_plane(height=0.0, n=20):
    """(n*n, 3) points on the plane z = height, 1/n apart."""
    x, y = np.meshgrid(np.arange(n) / n, np.arange(n) / n)
    return np.stack([x.ravel(), y.ravel(), np.full(x.size, height)], axis=1)


@needs_reference
@both_files
def test_agrees_with_the_published_figures(name):
    with np.load(FOLDER / f"{name}.npz") as archive:
        clouds = [archive[f"eval_{k}"] for k in ("pred", "gt", "pred_normals", "gt_normals")]
        published = {k[5:]: float(archive[k]) for k in archive if k.startswith("eval/")}
    metrics = evaluate_pointclouds(*clouds)
    assert len(published) == 30
    assert {key: metrics[key] for key in published} == pytest.approx(published, rel=1e-4)


def test_equals_the_plain_twin():
    (pred, pred_normals), (gt, gt_normals) = noisy_sphere(1500, 0), noisy_sphere(2000, 1)
    fast = evaluate_pointclouds(pred, gt, pred_normals, gt_normals)
    plain = evaluate_plainly(pred, gt, pred_normals, gt_normals)
    assert 0 < fast["F@0.0100"] < 1
    assert fast == pytest.approx(plain, rel=1e-12)


def cloud(shape, n_points, seed):
    """Points of many shapes, so that the grid of the search meets all its cases."""
    rng = np.random.default_rng(seed)
    points = rng.random((n_points, 3))
    if shape == "surface":
        return 0.4 * points / np.linalg.norm(points, axis=1, keepdims=True)
    if shape == "outliers":
        points[:5] *= 1000
        return points
    along = {"volume": [1, 1, 1], "plane": [1, 0, 1], "line": [0, 0, 1], "place": [0, 0, 0]}
    return points * along[shape]


@pytest.mark.parametrize("offset", [0.0, 0.02, 0.3, 5.0])
@pytest.mark.parametrize("n_pred, n_gt", [(3000, 2000), (1, 2000), (2000, 1)])
@pytest.mark.parametrize("shape", ["surface", "volume", "plane", "line", "place", "outliers"])
def test_nearest_neighbours_of_clouds_near_and_far(shape, n_pred, n_gt, offset):
    pred, gt = cloud(shape, n_pred, 0), cloud(shape, n_gt, 1) + offset
    metrics = evaluate_pointclouds(pred, gt)
    completeness, accuracy = cKDTree(pred).query(gt)[0], cKDTree(gt).query(pred)[0]
    assert metrics["completeness2"] == pytest.approx(np.mean(completeness**2), rel=1e-12)
    assert metrics["accuracy2"] == pytest.approx(np.mean(accuracy**2), rel=1e-12)
    assert metrics["precision@0.0200"] == np.mean(accuracy <= 0.02)


def test_number_of_threads_changes_nothing():
    (pred, pred_normals), (gt, gt_normals) = noisy_sphere(3001, 0), noisy_sphere(2000, 1)
    gt[:100] += 1  # some for the tree
    one, three = (
        evaluate_pointclouds(pred, gt, pred_normals, gt_normals, n_threads=n) for n in (1, 3)
    )
    assert one == three


def test_nearest_neighbours_equal_brute_force():
    pred, gt = noisy_sphere(300, 0)[0], noisy_sphere(400, 1)[0]
    distances = np.linalg.norm(gt[:, None] - pred, axis=2)
    metrics = evaluate_pointclouds(pred, gt)
    assert metrics["completeness"] == pytest.approx(distances.min(axis=1).mean())
    assert metrics["accuracy"] == pytest.approx(distances.min(axis=0).mean())


def test_convention_key_names():
    keys = list(evaluate_pointclouds(grid_plane(), grid_plane()))
    assert keys[:9] == [
        "completeness",
        "accuracy",
        "normals completeness",
        "normals accuracy",
        "normals",
        "completeness2",
        "accuracy2",
        "chamfer",
        "chamferL1",
    ]
    steps = [f"{i // 1000}.{i % 1000:03d}0" for i in range(1, 1001)]  # 0.0010 ... 1.0000
    assert keys[9:] == [f"{name}@{t}" for name in ("precision", "recall", "F") for t in steps]


def test_convention_precision_counts_predicted_and_recall_true_points():
    whole = grid_plane()
    half = whole[whole[:, 0] < 0.5]
    metrics = evaluate_pointclouds(pred=half, gt=whole)
    assert metrics["precision@0.0010"] == 1.0
    assert metrics["recall@0.0010"] == 0.5
    assert metrics["F@0.0010"] == pytest.approx(2 / 3)
    assert metrics["accuracy"] == 0.0
    assert metrics["completeness"] == pytest.approx(np.mean([0.05 * i for i in range(1, 11)]) / 2)


def test_convention_a_threshold_includes_its_own_distance():
    metrics = evaluate_pointclouds(grid_plane(0.015625), grid_plane(), thresholds=[0.015625])
    assert metrics["F@0.0156"] == 1.0


def test_thresholds_in_any_order():
    clouds = grid_plane(0.015625), grid_plane()
    ascending = evaluate_pointclouds(*clouds, thresholds=[0.01, 0.0155, 0.016, 0.5])
    shuffled = evaluate_pointclouds(*clouds, thresholds=[0.016, 0.01, 0.5, 0.0155])
    assert shuffled == pytest.approx(ascending, nan_ok=True)
    assert [ascending[f"F@{t}"] for t in ("0.0100", "0.0155", "0.0160", "0.5000")] == [0, 0, 1, 1]


def test_shifted_plane_has_the_shift_as_distance():
    up = np.tile([0.0, 0.0, 2.0], (400, 1))  # normals need not be of unit length
    tilted = np.tile([0.0, -3.0, -4.0], (400, 1))  # nor agree in sign
    metrics = evaluate_pointclouds(grid_plane(0.0155), grid_plane(), tilted, up)
    for key in ("completeness", "accuracy", "chamferL1"):
        assert metrics[key] == pytest.approx(0.0155)
    for key in ("completeness2", "accuracy2", "chamfer"):
        assert metrics[key] == pytest.approx(0.0155**2)
    for key in ("normals completeness", "normals accuracy", "normals"):
        assert metrics[key] == pytest.approx(0.8)
    assert (metrics["F@0.0150"], metrics["F@0.0160"]) == (0.0, 1.0)


def test_concentric_spheres_are_their_gap_apart():
    gt, gt_normals = sample_mesh(sphere(0.3), 20_000, seed=1)
    metrics = evaluate_mesh(sphere(0.4), gt, gt_normals, n_points=20_000)
    assert metrics["accuracy"] == pytest.approx(0.1, rel=0.01)
    assert metrics["completeness"] == pytest.approx(0.1, rel=0.01)
    assert metrics["chamfer"] == pytest.approx(0.01, rel=0.02)
    assert metrics["normals"] > 0.99
    assert (metrics["F@0.0950"], metrics["F@0.1100"]) == (0.0, 1.0)


def test_shares_rise_with_the_threshold_and_f_lies_between():
    metrics = evaluate_pointclouds(noisy_sphere(500, 0)[0], noisy_sphere(3000, 1)[0])
    precision, recall, f = (
        np.array([metrics[f"{name}@{t:.4f}"] for t in THRESHOLDS])
        for name in ("precision", "recall", "F")
    )
    for shares in (precision, recall, f):
        assert (np.diff(shares) >= 0).all() and shares[0] < shares[-1] == 1.0
    assert (f >= np.minimum(precision, recall)).all()
    assert (f <= np.maximum(precision, recall)).all()


def test_normals_are_not_a_number_when_a_cloud_has_none():
    (pred, pred_normals), (gt, gt_normals) = noisy_sphere(200, 0), noisy_sphere(200, 1)
    full = evaluate_pointclouds(pred, gt, pred_normals, gt_normals)
    for normals in ((None, None), (pred_normals, None), (None, gt_normals)):
        metrics = evaluate_pointclouds(pred, gt, *normals)
        assert {key for key, value in metrics.items() if np.isnan(value)} == {
            "normals",
            "normals completeness",
            "normals accuracy",
        }
        assert all(metrics[key] == full[key] for key in full if "normals" not in key)


def test_a_normal_of_length_zero_agrees_with_nothing():
    metrics = evaluate_pointclouds([[0, 0, 0.0]], [[0, 0, 0.0]], [[0, 0, 0.0]], [[0, 0, 1.0]])
    assert metrics["normals"] == 0.0


def test_takes_tensors():
    (pred, pred_normals), (gt, gt_normals) = noisy_sphere(200, 0), noisy_sphere(200, 1)
    arrays = evaluate_pointclouds(pred, gt, pred_normals, gt_normals)
    tensors = map(torch.from_numpy, (pred, gt, pred_normals, gt_normals))
    assert evaluate_pointclouds(*tensors) == pytest.approx(arrays, rel=1e-12)


@pytest.mark.parametrize(
    "empty",
    [
        trimesh.Trimesh(),
        trimesh.Trimesh(vertices=np.eye(3)),
        trimesh.Trimesh([[0, 0, 0], [1, 0, 0], [2, 0, 0.0]], [[0, 1, 2]], process=False),
        trimesh.Trimesh([[0, 0, 0], [1, 0, 0], [0, np.nan, 0]], [[0, 1, 2]], process=False),
    ],
    ids=["nothing", "no faces", "no area", "not finite"],
)
def test_empty_mesh_gets_every_key_with_the_worst_value(empty, caplog):
    gt, gt_normals = noisy_sphere(200, 1)
    occupied = {"points_iou": gt, "occupancies": np.ones(200, bool)}
    good = evaluate_mesh(sphere(0.5), gt, gt_normals, n_points=200, **occupied)
    assert not caplog.records
    worst = evaluate_mesh(empty, gt, gt_normals, **occupied)
    assert "worst" in caplog.text
    assert list(worst) == list(good)
    for key, value in worst.items():
        if "@" in key or key == "iou":
            assert value == 0.0
        elif "normals" in key:
            assert value == -1.0
        elif key in ("completeness2", "accuracy2", "chamfer"):
            assert value == 3.0
        else:
            assert value == np.sqrt(3)
    assert np.isnan(evaluate_mesh(empty, gt)["normals"])  # as for every other mesh of such data


def test_a_true_cloud_without_points_or_with_nan_is_an_error():
    pred, _ = noisy_sphere(10, 0)
    with pytest.raises(ValueError, match="empty"):
        evaluate_pointclouds(pred, np.empty((0, 3)))
    with pytest.raises(ValueError, match="finite"):
        evaluate_pointclouds(pred, np.full((5, 3), np.nan))


def test_sampling_is_uniform_by_area_and_knows_the_faces():
    box = trimesh.creation.box(extents=(0.8, 0.4, 0.2))
    points, normals = sample_mesh(box, 30_000)
    axis = np.abs(normals).argmax(axis=1)
    assert np.linalg.norm(normals, axis=1) == pytest.approx(1.0)
    assert np.sign(normals).sum(axis=0) == pytest.approx(0, abs=600)
    on_face = points[np.arange(len(points)), axis] * normals[np.arange(len(points)), axis]
    assert on_face == pytest.approx(np.array([0.4, 0.2, 0.1])[axis])
    shares = np.bincount(axis) / len(points)
    assert shares == pytest.approx(np.array([0.08, 0.16, 0.32]) / 0.56, abs=0.01)
    top = points[axis == 2]
    quadrants = np.bincount((top[:, 0] > 0) + 2 * (top[:, 1] > 0)) / len(top)
    assert quadrants == pytest.approx(0.25, abs=0.02)


def test_the_seed_decides():
    gt, gt_normals = noisy_sphere(500, 1)
    first, again, other = (
        evaluate_mesh(sphere(0.4), gt, gt_normals, n_points=500, seed=seed) for seed in (3, 3, 4)
    )
    assert first == again
    assert first["chamferL1"] != other["chamferL1"]


def test_iou_against_analytic_solids():
    rng = np.random.default_rng(0)
    points = rng.uniform(-0.5, 0.5, size=(20_000, 3))
    radius = np.linalg.norm(points, axis=1)
    gt, _ = noisy_sphere(100, 0)

    def iou(mesh, occupancies):
        return evaluate_mesh(mesh, gt, None, 100, 0, points, occupancies)["iou"]

    assert iou(sphere(0.4), radius < 0.4) > 0.99
    inner = radius < 0.3
    assert iou(sphere(0.4), inner) == pytest.approx(inner.sum() / (radius < 0.4).sum(), rel=0.01)
    torus = trimesh.creation.torus(0.3, 0.12, major_sections=128, minor_sections=64)
    in_torus = np.hypot(np.hypot(points[:, 0], points[:, 1]) - 0.3, points[:, 2]) < 0.12
    assert iou(torus, in_torus) > 0.98
    assert "iou" not in evaluate_mesh(torus, gt, n_points=100)


def test_occupancy_iou_counts():
    assert occupancy_iou([1, 1, 1, 0], [0, 1, 1, 1]) == 0.5
    assert occupancy_iou([0, 0], [0, 0]) == 0.0


ROWS = [
    {"class": "chair", "model": "a", "chamferL1": 0.01, "normals": 0.9, "F@0.0100": 0.5},
    {"class": "chair", "model": "b", "chamferL1": 0.03, "normals": np.nan, "F@0.0100": 0.7},
    {"class": "skull", "model": "c", "chamferL1": 0.06, "normals": np.nan, "F@0.0100": 0.2},
]


def test_report_holds_a_row_per_object_and_means_per_class(tmp_path):
    per_class = write_report(ROWS, tmp_path / "generation", "eval_meshes")
    assert sorted(p.name for p in (tmp_path / "generation").iterdir()) == [
        "eval_meshes.csv",
        "eval_meshesfull.pkl",
    ]
    full = pd.read_pickle(tmp_path / "generation" / "eval_meshesfull.pkl")
    pd.testing.assert_frame_equal(full, pd.DataFrame(ROWS))
    stored = pd.read_csv(tmp_path / "generation" / "eval_meshes.csv", index_col="class")
    pd.testing.assert_frame_equal(stored, per_class)
    assert list(stored.index) == ["chair", "skull", "mean"]
    assert list(stored["chamferL1"]) == pytest.approx([0.02, 0.06, 0.04])
    assert list(stored["normals"]) == pytest.approx([0.9, np.nan, 0.9], nan_ok=True)


def test_report_keeps_every_metric_and_an_empty_mesh_weighs_in(tmp_path):
    gt, gt_normals = noisy_sphere(200, 1)
    meshes = {"good": sphere(0.4), "empty": trimesh.Trimesh()}
    rows = [
        {"class": "na", "model": name, **evaluate_mesh(mesh, gt, gt_normals, n_points=200)}
        for name, mesh in meshes.items()
    ]
    write_report(rows, tmp_path, "eval")
    stored = pd.read_csv(tmp_path / "eval.csv", index_col="class")
    assert len(stored.columns) == 9 + 3 * 1000
    assert stored.loc["mean", "chamferL1"] == (rows[0]["chamferL1"] + np.sqrt(3)) / 2


def test_report_that_cannot_be_written_names_the_file(tmp_path):
    (tmp_path / "generation").write_text("a file where the folder should be")
    with pytest.raises(InputError, match="eval_meshesfull.pkl"):
        write_report(ROWS, tmp_path / "generation", "eval_meshes")


def test_table_shows_the_main_columns_with_units(tmp_path):
    rows = [{**row, "F@0.0110": 0.123, "completeness2": 0.456} for row in ROWS]
    table = format_table(write_report(rows, tmp_path, "eval"))
    names, units, chair, skull, mean, note = table.splitlines()
    assert names.split() == ["chamferL1", "normals", "F@0.0100"]
    assert "[cube edges]" in units
    assert chair.split() == ["chair", "0.0200", "0.9000", "0.6000"]
    assert skull.split() == ["skull", "0.0600", "-", "0.2000"]
    assert mean.split() == ["mean", "0.0400", "0.9000", "0.4000"]
    assert "times 10" in note
