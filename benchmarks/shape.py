"""What the benchmarks of the method work on: an object with a closed form, a view, a fitted model.

No data on disk and no training run: the same figures mean the same work on every machine.
"""

from pathlib import Path

import torch

from im2mesh import geometry
from im2mesh.config import load_config, method_module
from im2mesh.dvr.raymarch import march

CONFIG = Path(__file__).parents[1] / "configs/multi_view_reconstruction/skull/ours_rgb.yaml"


def bumpy_ball(points):
    """What a decoder ideally gives at points (M, 3): logit of occupancy, logits of colour, (M, 4).

    A ball of radius 0.36 with bumps and dents 0.06 high.
    """
    radius = 0.36 + 0.06 * torch.sin(8 * points).prod(dim=1)
    occupancy = 20 * (radius - points.norm(dim=1))
    return torch.cat([occupancy[:, None], 6 * points], dim=1)


def view_batch(height=300, width=400, with_depth=False):
    """A training batch of one image of the bumpy ball, as the dataset gives it."""
    matrices = {
        "camera_mat": geometry.perspective(33, height, width),
        "world_mat": geometry.look_at((1.1, 0.9, -1.6)),
        "scale_mat": torch.eye(4, dtype=torch.float64),
    }
    to_image = geometry.object_to_image(**matrices)
    origins, directions = geometry.camera_rays(
        geometry.pixel_centers(height, width)[None], to_image[None]
    )
    near, far, _ = geometry.cube_interval(origins[0], directions[0], padding=0.0)
    hits = march(
        lambda points, rays: bumpy_ball(points)[:, 0], origins[0], directions[0], near, far, 64
    )
    colors = torch.sigmoid(bumpy_ball(hits.points)[:, 1:]).where(hits.hit[:, None], 1.0)
    image = (255 * colors).to(torch.uint8).view(1, height, width, 3)
    batch = {"img": image, "img.mask": hits.hit.view(1, height, width)}
    if with_depth:
        depth = hits.depth.where(hits.hit, torch.inf)
        batch["img.depth"] = depth.view(1, height, width).float()
    return batch | {f"img.{name}": matrix[None] for name, matrix in matrices.items()}


def conditional_batch(n_objects, size=137, input_size=224):
    """A single-view training batch: the bumpy ball so many times, each with an input of its own."""
    batch = view_batch(size, size, with_depth=True)
    batch = {name: torch.cat([value] * n_objects) for name, value in batch.items()}
    generator = torch.Generator().manual_seed(0)
    pictures = torch.rand(n_objects, 3, input_size, input_size, generator=generator)
    return batch | {"inputs": (255 * pictures).to(torch.uint8)}


def fitted_conditional_model(config, batch):
    """The model of a single-view config whose decoder fits the bumpy ball for a batch's inputs."""
    torch.manual_seed(0)
    model = method_module(config).get_model(config)
    with torch.no_grad():
        codes = model.encoder(batch["inputs"].float() / 255)
    _fit(model.decoder, codes)
    return model


def fitted_model(hidden_size, overrides=(), n_steps=200, n_points=512):
    """The DTU configuration and its model, fitted to the bumpy ball.

    Parameters
    ----------
    hidden_size : int
        Of the decoder.
    overrides : iterable of str
        Further keys, as for ``--set``.
    n_steps, n_points : int
        Gradient steps of the fit, and random points in each. By default the surface is good to a
        hundredth of the cube or two: what the figures need, not more.

    Returns
    -------
    config : dict
    model : DVR
    """
    config = load_config(CONFIG, [f"model.decoder_kwargs.hidden_size={hidden_size}", *overrides])
    torch.manual_seed(0)
    model = method_module(config).get_model(config)
    _fit(model.decoder, None, n_steps, n_points)
    return config, model


def _fit(decoder, codes, n_steps=200, n_points=512):
    """Teach a decoder the bumpy ball, for random ones of the latent codes (B, C) if there are any."""
    optimizer = torch.optim.Adam(decoder.parameters(), lr=1e-3)
    for _ in range(n_steps):
        points = 1.1 * torch.rand(n_points, 3) - 0.55
        if codes is None:
            found = decoder(points)
        else:
            objects = torch.randint(len(codes), (n_points,))
            found = decoder(points, decoder.condition(codes), objects)
        loss = (found - bumpy_ball(points)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
