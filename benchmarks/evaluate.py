"""Evaluating one mesh: ``im2mesh.eval`` against a plain version of the same definitions.

    python -m benchmarks.evaluate [--points 100000] [--repeats 5]
"""

import argparse

import numpy as np
import trimesh
from scipy.spatial import cKDTree

from benchmarks.common import machine_line, markdown_table, measure, peak_memory
from im2mesh.eval import THRESHOLDS, evaluate_mesh, sample_mesh


def evaluate_plainly(pred, gt, pred_normals, gt_normals):
    """``evaluate_pointclouds`` as section 9 reads: one thread, one pass per threshold.

    Slow and simple; the tests take it as their oracle.
    """
    completeness, nearest_pred = cKDTree(pred).query(gt)
    accuracy, nearest_gt = cKDTree(gt).query(pred)
    normals_completeness = np.mean(np.abs(np.sum(gt_normals * pred_normals[nearest_pred], 1)))
    normals_accuracy = np.mean(np.abs(np.sum(pred_normals * gt_normals[nearest_gt], 1)))
    metrics = {
        "completeness": np.mean(completeness),
        "accuracy": np.mean(accuracy),
        "normals completeness": normals_completeness,
        "normals accuracy": normals_accuracy,
        "normals": (normals_completeness + normals_accuracy) / 2,
        "completeness2": np.mean(completeness**2),
        "accuracy2": np.mean(accuracy**2),
        "chamfer": (np.mean(completeness**2) + np.mean(accuracy**2)) / 2,
        "chamferL1": (np.mean(completeness) + np.mean(accuracy)) / 2,
    }
    for t in THRESHOLDS:
        precision, recall = np.mean(accuracy <= t), np.mean(completeness <= t)
        f_score = 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0
        metrics[f"precision@{t:.4f}"] = precision
        metrics[f"recall@{t:.4f}"] = recall
        metrics[f"F@{t:.4f}"] = f_score
    return metrics


def evaluate_mesh_plainly(mesh, gt_points, gt_normals, n_points):
    points, faces = trimesh.sample.sample_surface(mesh, n_points, seed=0)
    return evaluate_plainly(points, gt_points, mesh.face_normals[faces], gt_normals)


def main():
    parser = argparse.ArgumentParser(description="time and memory of evaluating one mesh")
    parser.add_argument("--points", type=int, default=100_000, help="points on either surface")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs; the median counts")
    args = parser.parse_args()

    mesh = trimesh.creation.icosphere(subdivisions=6, radius=0.40)  # 81920 faces
    truth = trimesh.creation.icosphere(subdivisions=6, radius=0.41)
    others = (*sample_mesh(truth, args.points, seed=1), args.points)
    versions = {"im2mesh.eval": evaluate_mesh, "plain twin": evaluate_mesh_plainly}
    seconds = {  # a copy each time: a mesh caches its areas and normals
        name: measure(lambda: function(mesh.copy(), *others), args.repeats)
        for name, function in versions.items()
    }
    memory = {name: peak_memory(function, mesh, *others) for name, function in versions.items()}

    print(machine_line())
    print(f"{len(mesh.faces)} faces, {args.points} points, median of {args.repeats} runs\n")
    rows = [
        (name, seconds[name], memory[name], seconds["plain twin"] / seconds[name])
        for name in versions
    ]
    print(markdown_table(("", "seconds", "peak memory [MiB]", "times as fast"), rows))


if __name__ == "__main__":
    main()
