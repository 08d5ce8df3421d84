"""Telling why a mesh is empty, fills the cube or is cut off by it."""

import torch

from im2mesh import geometry
from im2mesh.config import method_module
from im2mesh.errors import InputError

N_VIEWS = 8
EDGE = 64  # pixels; enough for shares of rays


def diagnose(config, device, model, latent, entry, extracted):
    """Sentences on what is wrong with an extracted mesh; none if nothing is.

    Parameters
    ----------
    latent : from ``model.encode``, or None
        Of the object.
    entry : im2mesh.data.Entry
        The object, whose own views show what the rays find.
    extracted : meshing.ExtractedMesh

    Returns
    -------
    list of str
    """
    # Objects learned by the thousand are often scaled to reach the cube's faces: nothing is wrong.
    cut_off = extracted.touches_cube and model.encoder is None
    if not (extracted.is_empty or extracted.fills_cube or cut_off):
        return []
    threshold = config["test"]["threshold"]
    low, high = (float(torch.tensor(logit).sigmoid()) for logit in extracted.logit_range)
    found = f"occupancy lies in [{low:.4g}, {high:.4g}], test.threshold is {threshold:g}"
    views = _views(config, device, model, latent, entry)
    if model.encoder is not None:
        what = "empty: nothing in the cube" if extracted.is_empty else "the whole cube: all of it"
        return [
            f"the mesh is {what} is occupied ({found}; {views}). Likely causes: too little "
            "training, or an input unlike those of the training (background not white, object cut "
            "off or far from the middle). See the FAQ."
        ]
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


def _views(config, device, model, latent, entry):
    """What rays through the object's own views find."""
    if config["data"]["dataset_name"] == "images":
        return "there are no views to compare with"
    images = method_module(config).get_data_fields(config, "render")["img"]
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
        hit = model.find_surface(origins, directions, latent, tau=config["test"]["threshold"]).hit
        _, _, inside = geometry.cube_interval(origins, directions, 0.0)
        rays += len(mask)
        in_mask += int(mask.sum())
        in_cube += int((mask & inside).sum())
        hits += int(hit.sum())
        both += int((hit & mask).sum())
        either += int((hit | mask).sum())
    return (
        f"in {len(items)} views {in_mask / rays:.0%} of the pixels are in the mask, the rays of "
        f"{in_cube / max(in_mask, 1):.0%} of those meet the cube, {hits / rays:.0%} of all rays "
        f"hit, mask IoU {both / max(either, 1):.3f}"
    )
