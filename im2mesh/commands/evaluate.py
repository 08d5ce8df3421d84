"""Metrics of the meshes that generate.py wrote."""

import logging

import trimesh

from im2mesh import meshing
from im2mesh.commands.generate import INCOMPLETE
from im2mesh.commands.setup import get_dataset, mesh_path, output_folder
from im2mesh.errors import InputError
from im2mesh.eval import evaluate_mesh
from im2mesh.eval_report import format_table, write_report

log = logging.getLogger("im2mesh")


def evaluate(config, device, args):
    """Compare every mesh of the test split with its true point cloud, write and print a table.

    An object without a mesh counts with the worst values.

    Returns
    -------
    int
        0, or 4 when a mesh was missing or damaged.
    """
    dataset = get_dataset(config, "eval")
    paths = [mesh_path(config, entry) for entry in dataset.entries]
    if not any(path.is_file() for path in paths):
        raise InputError(
            f"there is no mesh to evaluate, {paths[0]} and all others are missing: run "
            "generate.py with the same config first"
        )
    rows, problems = [], 0
    for number, (entry, path) in enumerate(zip(dataset.entries, paths)):
        item = dataset[number]
        try:
            mesh = meshing.load_mesh(path)
        except InputError as err:
            log.error("%s: %s (it counts with the worst values)", entry.label, err)
            mesh, problems = trimesh.Trimesh(), problems + 1
        metrics = evaluate_mesh(
            mesh,
            item["pointcloud.points"].numpy(),
            item["pointcloud.normals"].numpy(),
            seed=config["training"]["seed"],
        )
        rows.append({"class": entry.category, "model": entry.model, **metrics})
        log.debug("%s: chamferL1 %.5f", entry.label, metrics["chamferL1"])
    folder = output_folder(config, config["generation"]["generation_dir"])
    name = config["test"]["eval_file_name"]
    log.info("%s", format_table(write_report(rows, folder, name)))
    log.info("written to %s and %s", folder / f"{name}.csv", folder / f"{name}full.pkl")
    return INCOMPLETE if problems else 0
