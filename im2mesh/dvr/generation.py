"""Meshes of a learned object (method, section 7)."""

import time
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch

from im2mesh import meshing
from im2mesh.errors import InputError


COLOR_CHUNK = 2**14  # vertices at a time, each seen from several views


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
        root_steps=0,
        refinement_step=30,
        refine_max_faces=10000,
        with_colors=True,
        fill_cavities=True,
        smallest_part=0.0,
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
        self.root_steps = root_steps
        self.refinement_step = refinement_step
        self.refine_max_faces = refine_max_faces
        self.with_colors = with_colors
        self.fill_cavities = fill_cavities
        self.smallest_part = smallest_part
        self.device = torch.device(device)
        self.seed = seed

    def generate(self, latent=None, camera_centers=None):
        """The mesh of one object.

        Parameters
        ----------
        latent : from ``model.encode``, or None
            Of the object.
        camera_centers : float64 array (C, 3) or None
            Of the views of the object, object space. Colours that depend on the direction of view
            become their mean over the views that see a vertex; without them, they are those seen along
            the inward normal.

        Returns
        -------
        GeneratedMesh
            Without faces where the field has no surface in the cube.
        """
        self.model.eval()
        seconds = {}
        max_points = self.model.depth_function.max_points
        logit_field = self.model.logit_field(latent)
        with _timed(seconds, "extraction"):
            extracted = meshing.extract_mesh(
                logit_field,
                resolution_0=self.resolution_0,
                upsampling_steps=self.upsampling_steps,
                threshold=self.threshold,
                padding=self.padding,
                root_steps=self.root_steps,
                max_points=max_points,
                device=self.device,
            )
            vertices, faces, colors = extracted.vertices, extracted.faces, None
            if self.fill_cavities and not extracted.is_empty:
                vertices, faces = meshing.drop_cavities(vertices, faces)
            if self.smallest_part > 0 and not extracted.is_empty:
                vertices, faces = meshing.largest_components(vertices, faces, self.smallest_part)
        if not extracted.is_empty and self.simplify_nfaces is not None:
            with _timed(seconds, "simplification"):
                vertices, faces = meshing.simplify(vertices, faces, self.simplify_nfaces)
        if not extracted.is_empty and self.refinement_step > 0:
            with _timed(seconds, "refinement"):
                vertices = meshing.refine(
                    vertices,
                    faces,
                    self.model.logit_and_gradient(latent),
                    n_steps=self.refinement_step,
                    max_faces=self.refine_max_faces,
                    tau=self.threshold,
                    generator=torch.Generator().manual_seed(self.seed),
                    device=self.device,
                )
        if self.with_colors:
            with _timed(seconds, "colors"):
                if camera_centers is None or not self.model.decoder.view_dependent or len(faces) == 0:
                    colors = meshing.vertex_colors(
                        self.model.color_field(latent), vertices, max_points, self.device
                    )
                else:
                    colors = self._colors_in_views(latent, vertices, faces, camera_centers)
        return GeneratedMesh(vertices, faces, colors, extracted, seconds)


    def _colors_in_views(self, latent, vertices, faces, camera_centers):
        directions, weights = meshing.views_of_vertices(vertices, faces, camera_centers)
        arrays = [torch.from_numpy(array).float() for array in (vertices, directions, weights)]
        chunks = zip(*(array.split(COLOR_CHUNK) for array in arrays))
        rgb = torch.cat([
            self.model.color_in_views(*(part.to(self.device) for part in chunk), latent).cpu()
            for chunk in chunks
        ])
        return meshing.rgba(rgb.numpy())


@contextmanager
def _timed(seconds, stage):
    start = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - start
