"""Pictures of a learned object: colour, depth and normals of every pixel (method, section 8)."""

import math
from dataclasses import dataclass

import torch

from im2mesh import geometry
from im2mesh.dvr.bounds import FINE, OccupancyBounds
from im2mesh.dvr.field import outward_normals

CHUNK = 2**16  # rays at a time: memory does not grow with the resolution

TURNTABLE_VIEW = 28.0  # degrees: a calm perspective


@dataclass
class Rendering:
    """What a camera sees of a surface.

    rgb : Tensor (H, W, 3)
        Colour in [0, 1], the background colour where nothing is hit.
    depth : Tensor (H, W)
        Camera z, +inf where nothing is hit.
    normals : Tensor (H, W, 3)
        Unit normals out of the object in object space, zero where nothing is hit.
    hit : Tensor (H, W), bool
    """

    rgb: torch.Tensor
    depth: torch.Tensor
    normals: torch.Tensor
    hit: torch.Tensor

    def image(self, kind, background="white"):
        """A picture of one kind for people to look at.

        Parameters
        ----------
        kind : {"rgb", "depth", "normal"}
            Colour; grey from white at the nearest to dark at the farthest hit; normals (x, y, z)
            from [-1, 1] to red, green, blue.

        Returns
        -------
        Tensor (H, W, 3), uint8
        """
        if kind == "rgb":
            values = self.rgb
        elif kind == "normal":
            values = (self.normals + 1) / 2
        else:
            seen = self.depth[self.hit]
            near, far = (seen.min(), seen.max()) if len(seen) else (0, 1)
            grey = 1 - 0.8 * (self.depth - near) / max(float(far - near), 1e-9)
            values = grey[..., None].expand(*grey.shape, 3)
        values = values.where(self.hit[..., None], background_value(background))
        return (values.clamp(0, 1) * 255).round().to(torch.uint8)


def background_value(name):
    """1 for ``"white"``, 0 for ``"black"``."""
    return {"white": 1.0, "black": 0.0}[name]


class Renderer:
    """Renders a DVR model.

    Parameters
    ----------
    model : DVR
    n_steps : (int, int)
        Samples per ray are drawn from the integers [n_steps[0], n_steps[1]).
    background : {"white", "black"}
    coarse_bounds : bool
        Let :meth:`bounds` find where rays need not look.
    device : torch.device
    """

    def __init__(self, model, n_steps=(1024, 1025), background="white", coarse_bounds=True,
                 device="cpu"):
        self.model = model
        self.coarse_bounds = coarse_bounds
        self.n_steps = n_steps
        self.background = background
        self.device = torch.device(device)

    def bounds(self, latent=None):
        """Bounds of an object's field, found once for all of its renderings.

        Returns
        -------
        OccupancyBounds, or None when they are not to be used
        """
        if not (self.coarse_bounds and self.model.trusts_grids):
            return None
        return self._grid(latent)

    def ball(self, latent=None, bounds=None):
        """A ball around an object, as far as a coarse grid tells: centre, Tensor (3,), and radius.

        ``bounds``, from :meth:`bounds`, save a second look at the grid.
        """
        return (bounds or self._grid(latent)).ball(self.model.depth_function.logit_threshold)

    def _grid(self, latent):
        grid = OccupancyBounds(FINE)
        grid.update(self.model.logit_field(latent), self.device)
        return grid

    @torch.no_grad()
    def render(self, object_to_image, height, width, latent=None, bounds=None):
        """All pixels of one camera.

        Parameters
        ----------
        object_to_image : Tensor (4, 4)
            From :func:`im2mesh.geometry.object_to_image`.
        height, width : int
            Pixels; any size fits, the rays are rendered in chunks.
        latent : from ``model.encode``, or None
            Of the object.
        bounds : OccupancyBounds or None
            From :meth:`bounds`; saves evaluations.

        Returns
        -------
        Rendering
            On the CPU.
        """
        self.model.eval()
        pixels = geometry.pixel_centers(height, width)[None]
        origins, directions = geometry.camera_rays(pixels, object_to_image[None])
        generator = torch.Generator().manual_seed(0)
        parts = [
            self._render_rays(
                o.to(self.device), d.to(self.device), latent, bounds, generator
            )
            for o, d in zip(origins[0].split(CHUNK), directions[0].split(CHUNK))
        ]
        rgb, depth, normals, hit = (torch.cat(part).cpu() for part in zip(*parts))
        return Rendering(
            rgb.view(height, width, 3),
            depth.view(height, width),
            normals.view(height, width, 3),
            hit.view(height, width),
        )

    def _render_rays(self, origins, directions, latent, bounds, generator):
        hits = self.model.find_surface(
            origins, directions, latent, n_steps=self.n_steps, generator=generator,
            bounds=bounds,
        )
        rgb = torch.full_like(origins, background_value(self.background))
        normals = torch.zeros_like(origins)
        rays = hits.hit.nonzero()[:, 0]
        for chunk in rays.split(CHUNK // 4):  # an evaluation holds many numbers per point
            found = self.model.decoder.evaluate(
                hits.points[chunk], latent, directions=directions[chunk]
            )
            if self.model.has_color:
                rgb[chunk] = torch.sigmoid(found.out[:, 1:])
            normals[chunk] = outward_normals(found.gradient())
        depth = hits.depth.where(hits.hit, torch.inf)
        return rgb, depth, normals, hits.hit


def turntable(n_frames, height, width, elevation=20.0, axis=(0.0, 1.0, 0.0), start=None,
              center=(0.0, 0.0, 0.0), radius=0.6):
    """Cameras on a circle around a ball, which fills the shorter side of the pictures.

    Parameters
    ----------
    elevation : float
        Degrees above the plane through the centre at right angles to ``axis``.
    axis : (float, float, float)
        Which way is up, in object space.
    start : Tensor (3,) or None
        The first camera is on the side of this point, in object space.
    center, radius : Tensor (3,) and float
        The ball, in object space.

    Returns
    -------
    list of Tensor (4, 4)
        ``object_to_image`` of every frame, for square pixels.
    """
    axis = torch.nn.functional.normalize(torch.as_tensor(axis, dtype=torch.float64), dim=0)
    start = torch.tensor([0.0, 0.0, 1.0]) if start is None else start
    first = start.double() - axis * (start.double() @ axis)
    if first.norm() < 1e-6 * start.double().norm():  # straight above: any side will do
        first = torch.linalg.cross(axis, torch.eye(3, dtype=torch.float64)[axis.abs().argmin()])
    first = first / first.norm()
    second = torch.linalg.cross(axis, first)
    camera_mat = geometry.perspective(TURNTABLE_VIEW, height, width)
    center = torch.as_tensor(center, dtype=torch.float64).cpu()
    share = (min(height, width) - 1) / (max(height, width) - 1)
    half = math.atan(share * math.tan(math.radians(TURNTABLE_VIEW) / 2))
    distance = radius / math.sin(half)
    rise = math.radians(elevation)
    matrices = []
    for frame in range(n_frames):
        angle = 2 * math.pi * frame / n_frames
        side = math.cos(angle) * first + math.sin(angle) * second
        eye = center + distance * (math.cos(rise) * side + math.sin(rise) * axis)
        matrices.append(camera_mat @ geometry.look_at(eye, center, axis))
    return matrices


def up_axis(object_to_image):
    """Which way is up for a set of cameras: the mean of their images' up directions.

    Parameters
    ----------
    object_to_image : Tensor (V, 4, 4)

    Returns
    -------
    Tensor (3,)
        In object space, unit length; +y where the cameras contradict each other.
    """
    pixels = torch.tensor([[0.0, 0.0], [0.0, -1.0]], dtype=torch.float64)
    _, directions = geometry.camera_rays(pixels.expand(len(object_to_image), -1, -1), object_to_image)
    forward, to_top = torch.nn.functional.normalize(directions, dim=-1).unbind(1)
    up = to_top - forward * (forward * to_top).sum(-1, keepdim=True)
    mean = torch.nn.functional.normalize(up, dim=-1).mean(0)
    if mean.norm() < 1e-6:
        return torch.tensor([0.0, 1.0, 0.0], dtype=mean.dtype)
    return torch.nn.functional.normalize(mean, dim=0)


def compare(rendering, image, mask):
    """How well a rendering agrees with a photograph.

    Values are looked up at the rendering's pixels, so that the sizes may differ.

    Parameters
    ----------
    image : Tensor (H, W, 3), uint8
    mask : Tensor (H, W), bool

    Returns
    -------
    dict of float
        ``psnr``: dB over the pixels of the true mask (colours in [0, 1]; a pixel of it that is not
        hit counts with the background colour), nan without any; ``mask_iou``: intersection over
        union of hits and mask.
    """
    height, width = rendering.hit.shape
    pixels = geometry.pixel_centers(height, width)[None]
    true = geometry.look_up(image[None], pixels).view(height, width, 3).float() / 255
    mask = geometry.look_up(mask[None], pixels).view(height, width)
    union = (mask | rendering.hit).sum()
    error = (rendering.rgb - true)[mask].square().mean()
    return {
        "psnr": float(-10 * torch.log10(error)),
        "mask_iou": float((mask & rendering.hit).sum() / union) if union else 1.0,
    }
