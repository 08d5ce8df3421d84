"""Metrics of the meshes that generate.py wrote."""

import contextlib
import logging
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import numpy as np
import pandas as pd
import trimesh

from im2mesh import meshing
from im2mesh.commands.generate import INCOMPLETE
from im2mesh.commands.progress import Progress
from im2mesh.commands.setup import get_dataset, mesh_path, output_folder
from im2mesh.errors import InputError
from im2mesh.eval import evaluate_mesh
from im2mesh.eval_report import format_table, write_report

log = logging.getLogger("im2mesh")

CHUNK = 16  # objects handed to a worker at once


def evaluate(config, device, args):
    """Compare every mesh of the test split with its true point cloud, write and print a table.

    An object without a mesh counts with the worst values; one without a readable point cloud is
    left out, as there is nothing to compare with.

    Returns
    -------
    int
        0, or 4 when a mesh was missing or damaged, or an object left out.
    """
    if args.workers < 1:
        raise InputError(f"--workers is {args.workers}, but must be 1 or more")
    dataset = get_dataset(config, "eval")
    paths = [mesh_path(config, entry) for entry in dataset.entries]
    if not any(path.is_file() for path in paths):
        raise InputError(
            f"there is no mesh to evaluate, {paths[0]} and all others are missing: run "
            "generate.py with the same config first"
        )
    n_threads = -1 if args.workers == 1 else 1  # of each process
    measure = partial(_measure, dataset, config["training"]["seed"], n_threads)
    # On a terminal the progress bar says it; elsewhere, and in the log, lines do.
    level = logging.DEBUG if sys.stderr.isatty() else logging.INFO
    labels, rows, damaged, left_out = [], [], 0, []
    with _mapping(args.workers) as mapped, Progress(len(dataset)) as progress:
        results = mapped(measure, range(len(dataset)), paths)
        for entry, (metrics, problem) in zip(dataset.entries, results):
            place = progress.advance()
            if metrics is None:
                left_out.append(problem)
                continue
            if problem is not None:
                damaged += 1
                log.error("%s: %s (it counts with the worst values)", entry.label, problem)
            log.log(level, "[%s] %s: chamferL1 %.5f", place, entry.label, metrics["chamferL1"])
            labels.append((entry.category, entry.model))
            # There are thousands of metrics: a dict for each of thousands of objects is too much.
            rows.append(np.fromiter(metrics.values(), float))
            columns = list(metrics)
    if not rows:
        raise left_out[0]
    for problem in left_out:
        log.error("left out: %s", problem)
    full = pd.concat(
        [pd.DataFrame(labels, columns=["class", "model"]), pd.DataFrame(rows, columns=columns)],
        axis=1,
    )
    folder = output_folder(config, config["generation"]["generation_dir"])
    name = config["test"]["eval_file_name"]
    log.info("%s", format_table(write_report(full, folder, name)))
    log.info("written to %s and %s", folder / f"{name}.csv", folder / f"{name}full.pkl")
    return INCOMPLETE if damaged or left_out else 0


def _measure(dataset, seed, n_threads, number, path):
    """The metrics of an object, or None, and the ``InputError`` that was met, or None."""
    try:
        truth = dataset[number]
    except InputError as err:
        return None, err
    problem = None
    try:
        mesh = meshing.load_mesh(path)
    except InputError as err:
        mesh, problem = trimesh.Trimesh(), err
    points, normals = (truth[f"pointcloud.{name}"].numpy() for name in ("points", "normals"))
    return evaluate_mesh(mesh, points, normals, seed=seed, n_threads=n_threads), problem


@contextlib.contextmanager
def _mapping(n_workers):
    """A ``map`` over objects, in this process or in several; results come in order."""
    if n_workers == 1:
        yield map
        return
    pool = ProcessPoolExecutor(n_workers)
    try:
        yield partial(pool.map, chunksize=CHUNK)
    finally:
        pool.shutdown(cancel_futures=True)
