"""Does a single-view model look at its input? Its meshes against two answers that do not.

    python -m benchmarks.single_view CONFIG.yaml [--set data.path=...]

Run generate.py with the same config first. The meshes of the test split are compared with

- the constant prediction: of all training objects of the right category the one that comes, on
  average over the test objects, nearest to the truth. Chosen with the test objects known, it is
  the best that an answer without input can be;
- another object of the category: for a random other test object, is the mesh farther from it
  than from the right one?

All distances are chamferL1 in cube edges.
"""

import sys
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pandas as pd
from scipy.spatial import cKDTree

from benchmarks.common import markdown_table
from im2mesh import cli, meshing
from im2mesh.commands.setup import get_dataset, mesh_path
from im2mesh.errors import InputError
from im2mesh.eval import sample_mesh

ROUGH = 1000  # points of a cloud for a first, rough comparison with all training objects
FINALISTS = 10  # of them, the nearest, are compared in full


def chamfer_l1(points, tree, others, other_tree):
    """Mean of the two mean distances between clouds (N, 3) and (M, 3) with their trees."""
    return (other_tree.query(points)[0].mean() + tree.query(others)[0].mean()) / 2


def compare(config, device, args):
    """Print the table of categories."""
    truth, training = get_dataset(config, "eval"), get_dataset(config, "eval", split="train")
    rng = np.random.default_rng(config["training"]["seed"])

    def clouds(dataset):
        by_class = defaultdict(list)
        for i, entry in enumerate(dataset.entries):
            points = dataset[i]["pointcloud.points"].numpy()
            by_class[entry.category].append(rng.permutation(points)[: args.points])
        return by_class

    test, train = clouds(truth), clouds(training)
    for category, objects in test.items():
        if len(objects) < 2:
            raise InputError(f"{category} has {len(objects)} test object; at least 2 are compared")
    meshes = defaultdict(list)
    for entry in truth.entries:
        mesh = meshing.load_mesh(mesh_path(config, entry))
        meshes[entry.category].append(sample_mesh(mesh, args.points)[0])
    with ProcessPoolExecutor(args.workers) as pool:
        seeds = rng.integers(2**32, size=len(test))
        rows = list(pool.map(compare_category, test.values(), train.values(), meshes.values(), seeds))
    table = pd.DataFrame(rows, index=[truth.class_names[category] for category in test])
    means = table.mean()
    means["objects"] = table["objects"].sum()
    means["follows the input"] = np.average(table["follows the input"], weights=table["objects"])
    table.loc["mean"] = means
    table["below constant"] = 1 - table["chamferL1"] / table["constant"]
    print(markdown_table(
        ["category", *table.columns],
        [
            [name, f"{row['objects']:.0f}", *(f"{value:.4f}" for value in row[1:3]),
             *(f"{value:.0%}" for value in row[3:])]
            for name, row in table.iterrows()
        ],
    ))


def mean_distances(answers, truths):
    """chamferL1 of each of some clouds, mean over the true ones."""
    true = [(cloud, cKDTree(cloud)) for cloud in truths]
    trees = [cKDTree(cloud) for cloud in answers]
    return [np.mean([chamfer_l1(*answer, *other) for other in true]) for answer in zip(answers, trees)]


def compare_category(test, train, meshes, seed):
    """Figures of one category from lists of clouds: true, of the training set, and predicted."""
    trees = [cKDTree(cloud) for cloud in test]
    mesh_trees = [cKDTree(cloud) for cloud in meshes]
    rough = mean_distances([cloud[:ROUGH] for cloud in train], [cloud[:ROUGH] for cloud in test])
    finalists = [train[i] for i in np.argsort(rough)[:FINALISTS]]
    constant = mean_distances(finalists, test)
    right, wrong = [], []
    rng = np.random.default_rng(seed)
    for i, mesh in enumerate(zip(meshes, mesh_trees)):
        other = (i + 1 + rng.integers(len(test) - 1)) % len(test)
        right.append(chamfer_l1(*mesh, test[i], trees[i]))
        wrong.append(chamfer_l1(*mesh, test[other], trees[other]))
    return {
        "objects": len(test),
        "chamferL1": np.mean(right),
        "constant": min(constant),
        "follows the input": np.mean(np.array(right) < np.array(wrong)),
    }


def main():
    parser = cli.argument_parser("single_view", __doc__)
    parser.add_argument("--points", type=int, default=20_000, help="of every cloud (20000)")
    parser.add_argument("--workers", type=int, default=2, help="processes (2)")
    return cli.run(compare, parser)


if __name__ == "__main__":
    sys.exit(main())
