"""Which pixels a training step looks at (method, section 5)."""

import torch

from im2mesh.geometry import index_to_image


def sample_pixels(n_points, patch_size, height, width, batch_size=1, generator=None,
                  continuous=False, boxes=None):
    """Image points of a step: random patches, or every pixel once where there are no more.

    Parameters
    ----------
    n_points : int
        Pixels per image. From ``height * width`` on every pixel is taken once.
    patch_size : int
        Patches of patch_size x patch_size neighbouring pixels, ``n_points // patch_size**2`` of them.
    generator : torch.Generator or None
        CPU generator.
    continuous : bool
        Patches at real-valued positions instead of pixel centres.
    boxes : Tensor (B, 2, 2), int64, or None
        The first and the last (row, column) of the part of each image to draw from, at least as large
        as a patch (see :func:`mask_boxes`); None: all of it.

    Returns
    -------
    pixels : Tensor (B, N, 2)
        Image coordinates, patch by patch and row by row inside a patch.
    n_patches : int
        Rows up to ``n_patches * patch_size**2`` are whole patches; after them come the pixels
        that no whole patch covers (only where every pixel is taken).
    """
    within = torch.cartesian_prod(torch.arange(patch_size), torch.arange(patch_size))
    within = within.view(-1, 2)
    if n_points >= height * width:
        rows, columns = height // patch_size, width // patch_size
        corners = patch_size * torch.cartesian_prod(torch.arange(rows), torch.arange(columns))
        patches = (corners[:, None] + within).reshape(-1, 2)
        covered = torch.zeros(height, width, dtype=torch.bool)
        covered[: rows * patch_size, : columns * patch_size] = True
        index = torch.cat([patches, (~covered).nonzero()])
        return index_to_image(index, height, width).expand(batch_size, -1, -1), len(corners)
    n_patches = n_points // patch_size**2
    first, room = torch.zeros(2, dtype=torch.long), torch.tensor([height - patch_size, width - patch_size])
    if boxes is not None:
        first, room = boxes[:, :1], boxes[:, 1:] - boxes[:, :1] + 1 - patch_size
    position = torch.rand(batch_size, n_patches, 2, generator=generator, dtype=torch.float64)
    position = first + (position * room if continuous else (position * (room + 1)).floor())
    index = (position[:, :, None] + within).flatten(1, 2)
    return index_to_image(index, height, width), n_patches


def mask_boxes(masks, margin, patch_size):
    """The box around each mask, a margin wider, and at least as large as a patch.

    Parameters
    ----------
    masks : Tensor (B, H, W), bool
    margin : int
        Pixels on each side, as far as the image goes.
    patch_size : int

    Returns
    -------
    Tensor (B, 2, 2), int64
        The first and the last (row, column); of an empty mask, those of the image.
    """
    boxes = []
    for mask in masks:
        ends = []
        for axis, size in enumerate(mask.shape):
            places = mask.any(dim=1 - axis).nonzero()[:, 0]
            if len(places) == 0:
                places = torch.tensor([0, size - 1])
            low = max(min(int(places[0]) - margin, size - patch_size), 0)
            high = min(max(int(places[-1]) + margin, low + patch_size - 1), size - 1)
            ends.append((low, high))
        boxes.append(ends)
    return torch.tensor(boxes).transpose(1, 2)
