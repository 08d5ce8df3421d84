"""Meshes of a learned object (method, section 7)."""

import time
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch

from im2mesh import meshing
from im2mesh.errors import InputError


@dataclass
class GeneratedMesh:
    """A mesh, how it came about and how long each stage took.

    vertices : float64 (V, 3), faces : int64 (F, 3)
        Object space, oriented outwards.
    colors : uint8 (V, 4) or None
        RGBA.
    extracted : meshing.ExtractedMesh
        The mesh before simplification and refinement, with what was seen of the field.
    seconds : dict of float
        By stage.
    """

    vertices: np.ndarray
    faces: np.ndarray
    colors: np.ndarray | None
    extracted: meshing.ExtractedMesh
    seconds: dict = field(default_factory=dict)

    @property
    def is_empty(self):
        return len(self.faces) == 0


class Generator:
    """Generates meshes with a DVR model; parameters as in ``configs/default.yaml``.

    Raises
    ------
    InputError
        When colours are asked of a model that has none.
    """

    def __init__(
        self,
        model,
        *,
        threshold=0.5,
        resolution_0=32,
        upsampling_steps=3,
        padding=0.0,
        simplify_nfaces=None,
        refinement_step=30,
        refine_max_faces=10000,
        with_colors=True,
        device="cpu",
        seed=0,
    ):
        if with_colors and not model.has_color:
            raise InputError(
                "generation.with_colors is true, but the model has no colours "
                "(model.decoder_kwargs.out_dim is 1); set it to false"
            )
        self.model = model
        self.threshold = threshold
        self.resolution_0 = resolution_0
        self.upsampling_steps = upsampling_steps
        self.padding = padding
        self.simplify_nfaces = simplify_nfaces
        self.refinement_step = refinement_step
        self.refine_max_faces = refine_max_faces
        self.with_colors = with_colors
        self.device = torch.device(device)
        self.seed = seed

    def generate(self, shifts=None):
        """The mesh of one object.

        Parameters
        ----------
        shifts : list of Tensors (1, H) or None
            Latent of the object, from ``model.encode``.

        Returns
        -------
        GeneratedMesh
            Without faces where the field has no surface in the cube.
        """
        self.model.eval()
        seconds = {}
        max_points = self.model.depth_function.max_points
        logit_field = self.model.logit_field(shifts)
        with _timed(seconds, "extraction"):
            extracted = meshing.extract_mesh(
                logit_field,
                resolution_0=self.resolution_0,
                upsampling_steps=self.upsampling_steps,
                threshold=self.threshold,
                padding=self.padding,
                max_points=max_points,
                device=self.device,
            )
        vertices, faces, colors = extracted.vertices, extracted.faces, None
        if not extracted.is_empty and self.simplify_nfaces is not None:
            with _timed(seconds, "simplification"):
                vertices, faces = meshing.simplify(vertices, faces, self.simplify_nfaces)
        if not extracted.is_empty and self.refinement_step > 0:
            with _timed(seconds, "refinement"):
                vertices = meshing.refine(
                    vertices,
                    faces,
                    self.model.logit_and_gradient(shifts),
                    n_steps=self.refinement_step,
                    max_faces=self.refine_max_faces,
                    tau=self.threshold,
                    generator=torch.Generator().manual_seed(self.seed),
                    device=self.device,
                )
        if self.with_colors:
            with _timed(seconds, "colors"):
                colors = meshing.vertex_colors(
                    self.model.color_field(shifts), vertices, max_points, self.device
                )
        return GeneratedMesh(vertices, faces, colors, extracted, seconds)


@contextmanager
def _timed(seconds, stage):
    start = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - start
