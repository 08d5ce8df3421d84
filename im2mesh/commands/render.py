"""Renderings of all objects of the test split, from the dataset's cameras or a turntable."""

import logging
import math

import imageio.v3 as imageio
import pandas as pd
import torch

from im2mesh.commands.capture import camera_centers, view_matrices
from im2mesh.commands.setup import get_dataset, load_trained_model, output_folder
from im2mesh.config import method_module
from im2mesh.dvr.rendering import compare, turntable, up_axis
from im2mesh.errors import InputError
from im2mesh.files import atomic_path

log = logging.getLogger("im2mesh")

TURNTABLE_FRAMES = 60  # where rendering.n_views is 0


def render(config, device, args):
    """Write pictures of every object; report PSNR and mask IoU where a true view exists.

    Returns
    -------
    int
        0
    """
    model = load_trained_model(config, device)
    options = config["rendering"]
    kinds = options["colors"] if isinstance(options["colors"], list) else [options["colors"]]
    if "rgb" in kinds and not model.has_color:
        raise InputError(
            "rendering.colors: the model has no colours (model.decoder_kwargs.out_dim is 1); "
            "choose depth or normal"
        )
    if not config["data"]["img_with_camera"]:
        raise InputError("data.img_with_camera is false, but render.py needs the cameras; set true")
    if config["data"]["dataset_name"] == "images":
        _require_turntable(options)
    renderer = method_module(config).get_renderer(config, model, device)
    dataset = get_dataset(config, "render")
    folder = output_folder(config, options["render_dir"])
    rows = []
    for number, entry in enumerate(dataset.entries):
        item = dataset[number]
        inputs = item.get("inputs")
        with torch.no_grad():
            latent = model.encode(None if inputs is None else inputs[None])
        frames = {kind: [] for kind in kinds}
        images = dataset.fields.get("img")
        size = options["resolution"] or item["img"].shape[:2]
        bounds = renderer.bounds(latent)
        ball = renderer.ball(latent, bounds) if options["trajectory"] == "turntable" else None
        cameras = _cameras(options, images, entry, size, ball)
        for name, matrix, view in cameras:
            rendering = renderer.render(matrix, *size, latent, bounds)
            for kind in kinds:
                picture = rendering.image(kind, options["background"]).numpy()
                frames[kind].append(picture)
                suffix = f"_{kind}" if len(kinds) > 1 else ""
                path = folder / entry.category / f"{entry.model}_{name}{suffix}.{options['extension']}"
                _write(path, picture)
            if view is not None and images.mask_folder is not None:
                true = images.load(entry.folder, view)
                measured = compare(rendering, true[""], true["mask"])
                if not model.has_color:
                    measured["psnr"] = math.nan
                rows.append({"class": entry.category, "model": entry.model, "view": name, **measured})
        if len(cameras) > 1:
            for kind, pictures in frames.items():
                suffix = f"_{kind}" if len(kinds) > 1 else ""
                path = folder / entry.category / f"{entry.model}{suffix}.gif"
                with atomic_path(path) as temporary:
                    imageio.imwrite(temporary, pictures, duration=1000 / options["fps"], loop=0)
        log.info(
            "[%d/%d] %s: %d views -> %s",
            number + 1, len(dataset), entry.label, len(cameras), folder / entry.category,
        )
    if rows:
        table = pd.DataFrame(rows)
        with atomic_path(folder / "metrics.csv") as path:
            table.to_csv(path, index=False)
        log.info(
            "mean over %d views: PSNR inside the true masks %.2f dB, mask IoU %.4f (each in %s)",
            len(table), table["psnr"].mean(), table["mask_iou"].mean(), folder / "metrics.csv",
        )
    return 0


def _require_turntable(options):
    if options["trajectory"] != "turntable" or options["resolution"] is None:
        raise InputError(
            "data.dataset_name: a folder of images has no cameras; set rendering.trajectory: "
            "turntable and rendering.resolution: [height, width]"
        )


def _cameras(options, images, entry, size, ball):
    """The cameras to render an object from; ``images`` is None where there are none.

    Returns
    -------
    list of (name, object_to_image (4, 4), number of the true view or None)
    """
    first, count, axis = (options[k] for k in ("n_start_view", "n_views", "turntable_axis"))
    views = [] if images is None else images.views(entry.folder)
    if options["trajectory"] == "dataset":
        if first >= len(views):
            raise InputError(
                f"rendering.n_start_view is {first}, but {entry.label} has {len(views)} views "
                "(0 is the first)"
            )
        chosen = views[first : first + count] if count else views[first:]
        matrices = view_matrices(entry, chosen)
        return [(f"{view:03d}", matrix, view) for view, matrix in zip(chosen, matrices)]
    up, start = (0.0, 1.0, 0.0), None  # of the canonical pose of ShapeNet's objects
    if views:
        matrices = view_matrices(entry, views)
        up, start = up_axis(matrices), camera_centers(matrices)[0]
    frames = turntable(
        count or TURNTABLE_FRAMES,
        *size,
        options["turntable_elevation"],
        up if axis is None else axis,
        start,
        *ball,
    )
    return [(f"{frame:03d}", matrix, None) for frame, matrix in enumerate(frames)]


def _write(path, picture):
    with atomic_path(path) as temporary:
        if path.suffix == ".jpg":
            imageio.imwrite(temporary, picture, quality=95)
        else:
            imageio.imwrite(temporary, picture)
