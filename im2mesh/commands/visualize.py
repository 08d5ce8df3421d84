"""Pictures and meshes of the validation set in the course of training."""

import logging

import imageio.v3 as imageio
import torch

from im2mesh import geometry, meshing
from im2mesh.commands.setup import output_folder
from im2mesh.data import collate
from im2mesh.files import atomic_path

log = logging.getLogger("im2mesh")

N_ITEMS = 4
MAX_EDGE = 200  # pixels: a look, not a result
N_STEPS = (128, 129)


class Visualizer:
    """Shows how far a model is: views beside renderings, and meshes at low resolution.

    Writes to ``<out_dir>/vis/`` and to TensorBoard. The items are fixed, spread over the
    validation set.
    """

    def __init__(self, config, model, method, device, dataset, board):
        self.folder = output_folder(config, "vis")
        self.overwrite = config["training"]["overwrite_visualization"]
        self.model = model
        self.dataset = dataset
        self.board = board
        # A look every few thousand iterations: 64^3 cells and 128 steps, unrefined.
        coarse = {"resolution_0": 32, "upsampling_steps": 1, "refinement_step": 0}
        coarse["with_colors"] = model.has_color
        generation = config["generation"] | coarse
        rendering = config["rendering"] | {"ray_sampling_accuracy": N_STEPS}
        low = config | {"generation": generation, "rendering": rendering}
        self.generator = method.get_generator(low, model, device)
        self.renderer = method.get_renderer(low, model, device)

    def show(self, iteration):
        """Render and extract the fixed items with the present weights."""
        self.model.eval()  # a training step sets it back
        suffix = "" if self.overwrite else f"_{iteration}"
        n_items = min(N_ITEMS, len(self.dataset))
        seen = set()
        for number in range(n_items):
            index = number * len(self.dataset) // n_items
            batch = collate([self.dataset[index]])
            with torch.no_grad():
                latent = self.model.encode(batch.get("inputs"))
            panel = self._panel(batch, latent)
            self.board.image(f"view_{number}", panel, iteration)
            with atomic_path(self.folder / f"view_{number}{suffix}.png") as path:
                imageio.imwrite(path, panel)
            entry = self.dataset.entries[index]
            if entry.label not in seen:  # one mesh per object, not per view
                seen.add(entry.label)
                self._mesh(latent, len(seen) - 1, suffix, iteration)
        log.debug("pictures and meshes of iteration %d in %s", iteration, self.folder)

    def _panel(self, batch, latent):
        """True view, rendered colour, depth and normals, side by side."""
        matrices = (batch["img.camera_mat"], batch["img.world_mat"], batch["img.scale_mat"])
        height, width = batch["img"][0].shape[:2]
        shrink = min(1, MAX_EDGE / max(height, width))
        height, width = (max(2, round(edge * shrink)) for edge in (height, width))
        rendering = self.renderer.render(
            geometry.object_to_image(*matrices)[0],
            height,
            width,
            latent,
            self.renderer.bounds(latent),
        )
        pixels = geometry.pixel_centers(height, width)[None]
        true = geometry.look_up(batch["img"][0][None], pixels).view(height, width, 3)
        views = [rendering.image(kind) for kind in ("rgb", "depth", "normal")]
        return torch.cat([true, *views], dim=1).numpy()

    def _mesh(self, latent, number, suffix, iteration):
        mesh = self.generator.generate(latent)
        meshing.save_mesh(
            self.folder / f"mesh_{number}{suffix}.ply", mesh.vertices, mesh.faces, mesh.colors
        )
        if not mesh.is_empty:
            colors = None if mesh.colors is None else mesh.colors[:, :3]
            self.board.mesh(f"mesh_{number}", mesh.vertices, mesh.faces, colors, iteration)
