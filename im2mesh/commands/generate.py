"""Meshes of all objects of the test split."""

import hashlib
import json
import logging
import math
import shutil
from dataclasses import dataclass

import imageio.v3 as imageio
import numpy as np
import pandas as pd
import torch

from im2mesh import checkpoints, meshing
from im2mesh.commands.capture import camera_centers, view_matrices
from im2mesh.commands.diagnosis import diagnose
from im2mesh.commands.progress import Journal, Progress
from im2mesh.commands.setup import get_dataset, load_trained_model, mesh_path, output_folder
from im2mesh.config import method_module
from im2mesh.data.fields import read_camera
from im2mesh.errors import InputError
from im2mesh.files import atomic_path

log = logging.getLogger("im2mesh")

INCOMPLETE = 4
N_NAMED = 10  # so many of the objects without a mesh are named at the end
MADE_WITH = {  # the keys that a mesh depends on, beside model file and input
    "data": ("input_type", "img_size_input", "remove_background"),
    "model": ("decoder", "decoder_kwargs", "encoder", "encoder_kwargs", "visual_hull"),
    "training": ("seed",),
    "test": ("threshold",),
    "generation": (
        "simplify_nfaces", "padding", "resolution_0", "upsampling_steps", "refinement_step",
        "refine_max_faces", "with_colors", "mesh_extension", "fill_cavities", "smallest_part",
        "root_steps",
    ),
}


def generate(config, device, args):
    """Write the mesh of every object of the test split, with the times it took.

    An object keeps a mesh that was made from the same model, input and settings, unless
    ``args.overwrite``. One whose files are bad is reported and left out.

    Returns
    -------
    int
        0 when every object has a mesh, 4 when one is empty or failed.
    """
    run = _Run(config, device)
    entries = run.dataset.entries
    states = pd.Series("failed", index=range(len(entries)))
    if not args.overwrite:
        states[[run.is_finished(number) for number in states.index]] = "kept"
    todo = states.index[states != "kept"]
    if len(todo) < len(entries):
        log.info(
            "%d of %d objects keep the mesh that was made from the same model, input and "
            "settings; --overwrite makes it again", len(entries) - len(todo), len(entries),
        )
    with Progress(len(todo)) as progress:
        for number in todo:
            try:
                source = run.source(number)
                item = run.dataset[number]
                mesh = run.reconstruct(number, item)
            except InputError as err:
                progress.advance()
                log.error("%s: %s", entries[number].label, err, exc_info=True)
                continue
            run.save(number, source, item, mesh)
            states[number] = "empty" if mesh.is_empty else "made"
            log.info(
                "[%s] %s: %d vertices, %d faces, %.1f s -> %s",
                progress.advance(), entries[number].label, len(mesh.vertices), len(mesh.faces),
                sum(mesh.seconds.values()), mesh_path(config, entries[number]),
            )
    run.journal.write_times(run.folder)
    if len(entries) > 1:
        log.info("%s", _summary(entries, states, run.journal))
    missing = [entries[number].label for number in states.index[states.isin(["failed", "empty"])]]
    if not missing:
        return 0
    more = f" and {len(missing) - N_NAMED} more" if len(missing) > N_NAMED else ""
    log.error(
        "%d of %d objects got no mesh: %s%s",
        len(missing), len(entries), ", ".join(missing[:N_NAMED]), more,
    )
    return INCOMPLETE


@dataclass
class _Source:
    """What the mesh of one object is made from.

    files : list of Path
        Of its input.
    scale : float64 (4, 4) or None
        The map from object to world space, for data that has one.
    digest : str
        Of all that the mesh depends on.
    """

    files: list
    scale: np.ndarray | None
    digest: str


class _Run:
    """What is the same for all objects, and what is done with each."""

    def __init__(self, config, device):
        self.config = config
        self.device = device
        self.model = load_trained_model(config, device)
        self.generator = method_module(config).get_generator(config, self.model, device)
        self.dataset = get_dataset(config, "test")
        self._has_world = config["data"]["dataset_name"] == "DTU"
        self.folder = output_folder(config, config["generation"]["generation_dir"])
        self.journal = Journal(self.folder / "generated.jsonl")
        self.settings = self._settings()

    def _settings(self):
        """Model file and keys that all meshes depend on, as bytes."""
        config = self.config
        path = checkpoints.locate(config["test"]["model_file"], config["training"]["out_dir"])
        keys = {name: [config[name][key] for key in used] for name, used in MADE_WITH.items()}
        return hashlib.sha256(path.read_bytes()).digest() + json.dumps(keys).encode()

    def source(self, number):
        """What the mesh of an object is made from; ``InputError`` when it cannot be read."""
        entry, files = self.dataset.entries[number], self.dataset.input_files(number)
        parts = [self.settings, *map(_read, files)]
        if self.config["data"]["input_type"] == "idx":
            parts.append(str(entry.number).encode())
        scale = None
        if self._has_world:
            scale = read_camera(entry.folder / "cameras.npz", 0)["scale_mat"].numpy()
            parts.append(scale.tobytes())
        return _Source(files, scale, hashlib.sha256(b"".join(parts)).hexdigest())

    def is_finished(self, number):
        """Whether an object has a mesh, and a new one would come out the same."""
        entry = self.dataset.entries[number]
        row = self.journal.find(entry)
        suffixes = ("", "_world_scale") if self._has_world else ("",)
        if (
            row is None
            or row["faces"] == 0
            or not all(mesh_path(self.config, entry, suffix).is_file() for suffix in suffixes)
        ):
            return False
        try:
            return row["source"] == self.source(number).digest
        except InputError:
            return False  # reported when it is this object's turn

    def reconstruct(self, number, item):
        """The mesh of an object; warns of one that is empty or cut off."""
        with torch.no_grad():
            latent = self.model.encode(item["inputs"][None] if "inputs" in item else None)
        entry = self.dataset.entries[number]
        mesh = self.generator.generate(latent, self._camera_centers(entry))
        for line in diagnose(self.config, self.device, self.model, latent, entry, mesh.extracted):
            log.warning("%s: %s", entry.label, line)
        return mesh

    def _camera_centers(self, entry):
        """From where the object was seen, where its colours depend on that; else None."""
        if not self.model.decoder.view_dependent:
            return None
        images = method_module(self.config).get_data_fields(self.config, "render")["img"]
        return camera_centers(view_matrices(entry, images.views(entry.folder))).numpy()

    def save(self, number, source, item, mesh):
        """Write all files of an object, and then its line of the journal."""
        entry = self.dataset.entries[number]
        path = mesh_path(self.config, entry)
        meshing.save_mesh(path, mesh.vertices, mesh.faces, mesh.colors)
        if source.scale is not None:
            self._save_in_world(entry, source.scale, mesh)
        for file in source.files:
            _copy(file, self.folder / "inputs" / entry.category / f"{entry.model}{file.suffix}")
        if number < self.config["generation"]["vis_n_outputs"]:
            shown = self.folder / "vis" / entry.category
            _copy(path, shown / f"{number:02d}_mesh{path.suffix}")
            if source.files:
                with atomic_path(shown / f"{number:02d}_input.jpg") as temporary:
                    picture = item["inputs"].permute(1, 2, 0).numpy()  # as the encoder gets it
                    imageio.imwrite(temporary, picture, quality=95)
        self.journal.add(entry, source.digest, mesh)

    def _save_in_world(self, entry, scale, mesh):
        vertices = mesh.vertices @ scale[:3, :3].T + scale[:3, 3]
        # A mirror in the scale would turn the triangles inside out.
        faces = mesh.faces if np.linalg.det(scale[:3, :3]) > 0 else mesh.faces[:, ::-1]
        meshing.save_mesh(
            mesh_path(self.config, entry, "_world_scale"), vertices, faces, mesh.colors
        )


def _read(path):
    try:
        return path.read_bytes()
    except OSError as err:
        raise InputError(f"{path}: cannot be read ({err.strerror})") from err


def _copy(source, target):
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)


def _summary(entries, states, journal):
    """A table: how many objects of each class ended how, mean time of their meshes."""
    seconds = pd.Series([journal.seconds(entry) for entry in entries])
    seconds[states == "failed"] = math.nan
    classes = pd.Series([entry.category for entry in entries])
    table = pd.crosstab(classes, states)
    table = table.reindex(columns=["made", "kept", "empty", "failed"], fill_value=0)
    table.insert(0, "objects", table.sum(axis=1))
    table.loc["all"] = table.sum()
    table["mean seconds"] = seconds.groupby(classes).mean()
    table.loc["all", "mean seconds"] = seconds.mean()
    table = table.rename_axis(index=None, columns=None)
    return table.to_string(float_format="{:.2f}".format, na_rep="-")
