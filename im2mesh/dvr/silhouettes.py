"""What the masks of all views say about a point, not only that of the view whose ray found it.

A point that any mask shows to be background is free, so the object lies within the visual hull of the masks
(Laurentini 1994). A ray asks one view; asking them all lets each surface point of a step carve, with nothing
more to evaluate.
"""

import torch
import torch.nn.functional as F

from im2mesh import geometry

MOST_VIEWS = 64  # that are asked at a time
MARGIN = 1  # pixels by which a mask may be too small, or a projection rounded


class Silhouettes:
    """The masks of the views of one object.

    Parameters
    ----------
    masks : Tensor (V, H, W), bool
    object_to_image : Tensor (V, 4, 4)
        See :func:`im2mesh.geometry.object_to_image`.
    device : torch.device
    """

    def __init__(self, masks, object_to_image, device="cpu"):
        size = 2 * MARGIN + 1
        background = [F.max_pool2d(mask[None].float(), size, 1, MARGIN)[0] == 0 for mask in masks]
        self.background = torch.stack(background).to(device)
        matrix = geometry.position_matrix(*masks.shape[1:]).to(object_to_image) @ object_to_image
        self.rotation, self.offset = (t.float().to(device) for t in matrix[:, :3].split([3, 1], dim=2))

    @torch.no_grad()
    def outside(self, points, generator=None):
        """Which points lie outside of the object, as any of the views tells; of many views, random ones.

        Parameters
        ----------
        points : Tensor (P, 3)
            Object space.
        generator : torch.Generator or None
            On the CPU.

        Returns
        -------
        Tensor (P,), bool
            True where some view sees the point more than a pixel away from its mask. A view tells nothing
            about what it does not frame.
        """
        n_views, height, width = self.background.shape
        views = torch.randperm(n_views, generator=generator)[:MOST_VIEWS].to(points.device)
        x, y, depth = (self.rotation[views] @ points.T + self.offset[views]).unbind(dim=1)  # (V, P) each
        column, row = (x / depth).round_(), (y / depth).round_()
        framed = (depth > 0) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
        row += height * views[:, None]
        index = (row.double() * width + column).where(framed, 0).long()
        return (framed & self.background.take(index)).any(dim=0)
