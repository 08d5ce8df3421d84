"""Telling why a mesh is empty, fills the cube or is cut off by it."""

import dataclasses

import torch

from im2mesh import geometry
from im2mesh.commands.setup import get_dataset
from im2mesh.errors import InputError

N_VIEWS = 8
EDGE = 64  # pixels; enough for shares of rays


def diagnose(config, device, model, entry, extracted):
    """Sentences on what is wrong with an extracted mesh; none if nothing is.

    Parameters
    ----------
    entry : im2mesh.data.Entry
        The object, whose own views show what the rays find.
    extracted : meshing.ExtractedMesh

    Returns
    -------
    list of str
    """
    if not (extracted.is_empty or extracted.touches_cube):
        return []
    threshold = config["test"]["threshold"]
    low, high = (float(torch.tensor(logit).sigmoid()) for logit in extracted.logit_range)
    found = f"occupancy lies in [{low:.4g}, {high:.4g}], test.threshold is {threshold:g}"
    views = _views(config, device, model, entry)
    if extracted.is_empty:
        return [
            f"the mesh is empty: nothing in the cube is occupied ({found}; {views}). Likely causes: "
            "masks that are empty or inverted, cameras or scale_mat that put the object outside "
            "the cube, too little training, or a threshold that is too high. See the FAQ."
        ]
    if extracted.fills_cube:
        return [
            f"the mesh is the whole cube: everything in it is occupied ({found}; {views}). Likely "
            "causes: masks without background, or too little training. See the FAQ."
        ]
    return [
        f"the mesh touches the faces of the cube and was closed there ({found}; {views}). Likely "
        "causes: the object is larger than the cube (scale_mat), or no view shows that side to be "
        "free. generation.padding enlarges the cube."
    ]


def _views(config, device, model, entry):
    """What rays through the object's own views find."""
    dataset = get_dataset(config, "render")
    images = dataset.fields["img"]
    try:
        views = images.views(entry.folder)
        items = [images.load(entry.folder, view) for view in views[:: -(-len(views) // N_VIEWS)]]
        if not items or "mask" not in items[0] or "camera_mat" not in items[0]:
            return "no masks or cameras to compare with"
    except InputError as err:
        return f"its views could not be read: {err}"
    rays = in_cube = hits = in_mask = both = either = 0
    for item in items:
        matrix = geometry.object_to_image(
            item["camera_mat"], item["world_mat"], item["scale_mat"]
        )[None]
        pixels = geometry.pixel_centers(EDGE, EDGE)[None]
        mask = geometry.look_up(item["mask"][None], pixels)[0].to(device)
        origins, directions = (t[0].to(device) for t in geometry.camera_rays(pixels, matrix))
        hit = None
        if model.encoder is None:
            march = dataclasses.replace(model.depth_function, tau=config["test"]["threshold"])
            hit = march.find_surface(model.logit_field(), origins, directions).hit
        _, _, inside = geometry.cube_interval(origins, directions, 0.0)
        rays += len(mask)
        in_mask += int(mask.sum())
        in_cube += int((mask & inside).sum())
        if hit is not None:
            hits += int(hit.sum())
            both += int((hit & mask).sum())
            either += int((hit | mask).sum())
    text = (
        f"in {len(items)} views {in_mask / rays:.0%} of the pixels are in the mask, the rays of "
        f"{in_cube / max(in_mask, 1):.0%} of those meet the cube"
    )
    if model.encoder is None:
        text += f", {hits / rays:.0%} of all rays hit, mask IoU {both / max(either, 1):.3f}"
    return text
