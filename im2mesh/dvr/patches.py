"""Consistency between views: what one camera sees around a surface point, others see there as well.

A small patch of an image is carried over into neighbouring views through the tangent plane of the surface
at the patch's centre, and compared with what they show (Fu et al. 2022, Geo-NeuS, section 3.3). A surface
that lies too near or too far, which colours alone forgive, shows in it at once.
"""

import torch
import torch.nn.functional as F

from im2mesh import geometry

SIZE = 6  # samples along a side of a patch
PITCH = 2.0  # pixels from one to the next: in a photograph neighbouring pixels tell nearly the same
N_NEAREST = 8  # views beside the own one that are looked at
N_BEST = 4  # of those, the ones that agree best: the others may be covered by something
LEAST_VARIANCE = 1e-4  # of the grey values of a patch, in [0, 1]: plain ones tell nothing
LEAST_SLOPE = 0.1  # cosine between the normal and any ray of a patch: others see the plane from its edge


class PatchConsistency:
    """The views of one object, to compare with each other.

    Parameters
    ----------
    images : Tensor (V, H, W, 3), uint8
    masks : Tensor (V, H, W), bool
    object_to_image : Tensor (V, 4, 4)
        See :func:`im2mesh.geometry.object_to_image`.
    device : torch.device

    Raises
    ------
    ValueError
        For a single view.
    """

    def __init__(self, images, masks, object_to_image, device="cpu"):
        if len(images) < 2:
            raise ValueError("one view alone has nothing to be consistent with")
        self.height, self.width = images.shape[1:3]
        self.grey = (images.float().mean(dim=-1) / 255).to(device)
        self.masks = masks.to(device)
        matrices = object_to_image.double()
        inverse = torch.linalg.inv(matrices[:, :3, :3])
        centers = -inverse @ matrices[:, :3, 3:]
        toward = F.normalize(centers[..., 0], dim=1)
        likeness = (toward @ toward.T).fill_diagonal_(-torch.inf)
        nearest = likeness.topk(min(N_NEAREST, len(images) - 1), dim=1).indices
        # Of a ray's point at depth t, centre + t * inverse @ (x, y, 1), neighbour n sees
        # epipole[n] + t * rotation[n] @ (x, y, 1).
        rotation = matrices[nearest, :3, :3] @ inverse[:, None]
        epipole = (matrices[nearest, :3, :3] @ centers[:, None])[..., 0] + matrices[nearest, :3, 3]
        self.matrices, self.inverse, self.centers, self.rotation, self.epipole = (
            t.float().to(device) for t in (matrices, inverse, centers[..., 0], rotation, epipole)
        )
        self.nearest = nearest.to(device)
        steps = PITCH * (torch.arange(SIZE, device=device) - (SIZE - 1) / 2)
        y, x = torch.meshgrid(steps, steps, indexing="ij")
        pixel = torch.tensor([2 / (self.width - 1), 2 / (self.height - 1)], device=device)
        self.offsets = torch.stack([x, y], dim=-1).view(-1, 2) * pixel

    def __call__(self, points, normals, views):
        """How far each point's patch differs from what the neighbouring views show.

        Parameters
        ----------
        points : Tensor (P, 3)
            Surface points, object space, on the rays of their own views.
        normals : Tensor (P, 3)
            Unit outward normals; taken as constants.
        views : Tensor (P,), int64
            The view that sees each.

        Returns
        -------
        Tensor (Q,)
            1 - NCC, the normalised cross-correlation, mean over the best neighbours; between 0 and 2.
            Points whose patch leaves the mask, is of one grey or is seen by no neighbour are left out.
            Differentiable with respect to the points: the images are interpolated linearly.
        """
        with torch.no_grad():
            pixels = self._patch(points, views)
            own = self._sample(*pixels.unbind(dim=-1), views[:, None])
            useful = self._in_mask(pixels, views) & (_variance(own) > LEAST_VARIANCE)
            pixels, own, normals, views = (t[useful] for t in (pixels, own, normals, views))
            homogeneous = torch.cat([pixels, torch.ones_like(pixels[..., :1])], dim=-1).mT  # (P, 3, K)
            directions = self.inverse[views] @ homogeneous
            slope = (normals[:, None] @ directions)[:, 0]
            faces = (slope < -LEAST_SLOPE * directions.square().sum(dim=1).sqrt()).all(dim=1)
            turned = (self.rotation[views].flatten(1, 2) @ homogeneous).unflatten(1, (-1, 3))  # (P, N, 3, K)
            epipole = self.epipole[views][..., None]
        # Of all this, the depths alone depend on the points.
        height = ((points[useful] - self.centers[views]) * normals).sum(dim=-1, keepdim=True)
        depth = (height / slope.where(faces[:, None], -1))[:, None]  # (P, 1, K), of the plane on each ray
        x, y, z = (epipole[:, :, i] + depth * turned[:, :, i] for i in range(3))
        x, y = x / z, y / z
        inside = ((x.abs() <= 1) & (y.abs() <= 1) & (z > 0)).all(dim=-1) & faces[:, None]
        likeness = _correlation(own[:, None], self._sample(x, y, self.nearest[views][..., None]))
        likeness = likeness.where(inside, -torch.inf)
        best = likeness.topk(min(N_BEST, likeness.shape[1]), dim=1).values
        seen = best.isfinite()
        total = (1 - best).where(seen, 0).sum(dim=1)
        return (total / seen.sum(dim=1).clamp_min(1))[seen.any(dim=1)]

    def _patch(self, points, views):
        """Image points (P, K, 2) of the patches around points (P, 3) in their own views (P,)."""
        matrix = self.matrices[views]
        image = (matrix[:, :3, :3] @ points[..., None])[..., 0] + matrix[:, :3, 3]
        return (image[:, :2] / image[:, 2:])[:, None] + self.offsets

    def _in_mask(self, pixels, views):
        """Whether image points (P, K, 2) lie in the masks of views (P,), all of each row."""
        framed = (pixels.abs() <= 1).all(dim=-1)
        row, column = geometry.image_to_index(pixels, self.height, self.width).unbind(-1)
        return (framed & self.masks[views[:, None], row, column]).all(dim=1)

    def _sample(self, x, y, views):
        """Grey values at image points x, y (..., K) of views (..., 1), interpolated linearly."""
        row, column = geometry.image_to_position(
            torch.stack([x, y], dim=-1), self.height, self.width
        ).unbind(dim=-1)
        row, column = row.clamp(0, self.height - 1), column.clamp(0, self.width - 1)
        top = row.detach().long().clamp_max(self.height - 2)
        left = column.detach().long().clamp_max(self.width - 2)
        first = (views * self.height + top) * self.width + left
        a, b, c, d = (self.grey.take(first + step) for step in (0, 1, self.width, self.width + 1))
        to_right = column - left
        return torch.lerp(torch.lerp(a, b, to_right), torch.lerp(c, d, to_right), row - top)


def _variance(values):
    """Along the last axis."""
    return (values - values.mean(dim=-1, keepdim=True)).square().mean(dim=-1)


def _correlation(first, second):
    """Normalised cross-correlation along the last axis."""
    first = first - first.mean(dim=-1, keepdim=True)
    second = second - second.mean(dim=-1, keepdim=True)
    product = (first.square().sum(dim=-1) * second.square().sum(dim=-1)).clamp_min(1e-12)
    return (first * second).sum(dim=-1) / product.sqrt()
