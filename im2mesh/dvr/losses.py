"""The terms of the loss (paper, section 3.4; method, section 5).

Each function returns one value per ray (or per patch); :func:`reduce` makes a number of them.
All are differentiable with respect to the predictions.
"""

import torch
import torch.nn.functional as F


def reduce(values, method):
    """``"sum"`` or ``"mean"`` of a term's values; 0 when there are none."""
    if method == "mean":
        return values.sum() / max(values.numel(), 1)
    return values.sum()


def photometric(rgb, rgb_true):
    """L1 distance of colours over the channels; (M, 3) -> (M,)."""
    return (rgb - rgb_true).abs().sum(-1)


def image_gradient(rgb, rgb_true, patch_size):
    """Difference between the image gradients of prediction and truth at each patch's first pixel.

    Parameters
    ----------
    rgb, rgb_true : Tensor (P, patch_size**2, 3)
        Colours of whole patches, row by row; ``patch_size`` at least 2.

    Returns
    -------
    Tensor (P,)
        Per channel the L2 norm of the difference of (d/dx, d/dy), summed over the channels.
    """

    def gradient(colors):
        first, right, below = colors[:, 0], colors[:, 1], colors[:, patch_size]
        return torch.stack([right - first, below - first], dim=-1)

    return _norm(gradient(rgb) - gradient(rgb_true)).sum(-1)


def depth(predicted, true):
    """Absolute difference of camera depths; (M,) -> (M,)."""
    return (predicted - true).abs()


def depth_as_points(predicted, true, directions):
    """Distance in object space of the points at two depths of a ray; directions (M, 3)."""
    return (predicted - true).abs() * directions.norm(dim=-1)


def normal_smoothness(normals, normals_nearby):
    """Length of the difference of unit normals at two nearby points; (M, 3) -> (M,)."""
    return _norm(normals - normals_nearby)


def freespace(logits):
    """Binary cross entropy of the occupancy against 0 (free); (M,) -> (M,)."""
    return F.softplus(logits)


def occupied(logits):
    """Binary cross entropy of the occupancy against 1 (occupied); (M,) -> (M,)."""
    return F.softplus(-logits)


def _norm(vectors):
    # The norm has no gradient at zero; there the subgradient zero is the right one.
    squared = vectors.square().sum(-1)
    zero = squared == 0
    return squared.where(~zero, 1).sqrt().where(~zero, 0)
