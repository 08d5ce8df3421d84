"""Meshes of all objects of the test split."""

import logging
import shutil

import numpy as np
import pandas as pd
import torch

from im2mesh import meshing
from im2mesh.commands.diagnosis import diagnose
from im2mesh.commands.setup import get_dataset, load_trained_model, mesh_path, output_folder
from im2mesh.config import method_module
from im2mesh.data.fields import read_camera
from im2mesh.errors import InputError
from im2mesh.files import atomic_path

log = logging.getLogger("im2mesh")

INCOMPLETE = 4


def generate(config, device, args):
    """Write the mesh of every object of the test split, with the times it took.

    Returns
    -------
    int
        0 when every object got a mesh, 4 when one is empty or failed.
    """
    model = load_trained_model(config, device)
    generator = method_module(config).get_generator(config, model, device)
    dataset = get_dataset(config, "test")
    folder = output_folder(config, config["generation"]["generation_dir"])
    rows, failed = [], []
    for number, entry in enumerate(dataset.entries):
        progress = f"[{number + 1}/{len(dataset)}] {entry.label}"
        try:
            scale = _world_scale(config, entry)
            mesh = _generate_one(device, model, generator, dataset[number])
        except InputError as err:
            log.error("%s: %s", entry.label, err, exc_info=True)
            failed.append(entry.label)
            continue
        _save(config, entry, mesh, scale)
        rows.append(
            {"class": entry.category, "model": entry.model, **mesh.seconds,
             "total": sum(mesh.seconds.values())}
        )
        for line in diagnose(config, device, model, entry, mesh.extracted):
            log.warning("%s: %s", entry.label, line)
        if mesh.is_empty:
            failed.append(entry.label)
        path = mesh_path(config, entry)
        log.info(
            "%s: %d vertices, %d faces, %.1f s -> %s",
            progress, len(mesh.vertices), len(mesh.faces), rows[-1]["total"], path,
        )
        if number < config["generation"]["vis_n_outputs"]:
            shown = folder / "vis" / entry.category / f"{number:02d}_mesh{path.suffix}"
            with atomic_path(shown) as temporary:
                shutil.copyfile(path, temporary)
    if rows:
        _write_times(pd.DataFrame(rows), folder)
    if failed:
        log.error("%d of %d objects got no mesh: %s", len(failed), len(dataset), ", ".join(failed))
    return INCOMPLETE if failed else 0


def _world_scale(config, entry):
    """The map (4, 4) from object to world space for data that has one, else None."""
    if config["data"]["dataset_name"] != "DTU":
        return None
    return read_camera(entry.folder / "cameras.npz", 0)["scale_mat"].numpy()


def _generate_one(device, model, generator, item):
    inputs = item.get("inputs")
    with torch.no_grad():
        shifts = model.encode(None if inputs is None else inputs[None].to(device))
    return generator.generate(shifts)


def _save(config, entry, mesh, scale):
    meshing.save_mesh(mesh_path(config, entry), mesh.vertices, mesh.faces, mesh.colors)
    if scale is None:
        return
    vertices = mesh.vertices @ scale[:3, :3].T + scale[:3, 3]
    # A mirror in the scale would turn the triangles inside out.
    faces = mesh.faces if np.linalg.det(scale[:3, :3]) > 0 else mesh.faces[:, ::-1]
    meshing.save_mesh(mesh_path(config, entry, "_world_scale"), vertices, faces, mesh.colors)


def _write_times(times, folder):
    with atomic_path(folder / "time_generation_full.pkl") as path:
        times.to_pickle(path)
    with atomic_path(folder / "time_generation.pkl") as path:
        times.groupby("class").mean(numeric_only=True).to_pickle(path)
