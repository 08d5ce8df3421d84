"""Giving the depth of a surface its gradient (paper, section 3.3; method, section 4).

The surface depth d solves ``f(r(d)) = l_tau`` whatever the weights phi are, hence

    dd/dphi = -df(p)/dphi / (grad_p f(p) . w),    p = r(d) = r0 + d * w.

The march that finds d keeps no graph. One evaluation of the network at p, with gradients, is all
that training needs: memory does not depend on the number of steps of the march.
"""


def depth_with_gradient(depth, logits, slope, min_slope=1e-3):
    """The found depth, with the gradient of the implicit surface attached.

    Parameters
    ----------
    depth : Tensor (M,)
        Depths found by the march.
    logits : Tensor (M,)
        The field at the found points, with its graph to weights and latent codes.
    slope : Tensor (M,)
        ``grad_p f(p) . w``, the derivative of the field along the ray by depth; taken as a
        constant, its size kept at or above ``min_slope`` with its sign.
    min_slope : float
        Where a ray grazes the surface, the true slope and with it the loss of a ray say little,
        and their quotient can outweigh all other rays.

    Returns
    -------
    Tensor (M,)
        Values of ``depth``; differentiable with respect to all that ``logits`` depends on.
    """
    slope = slope.detach()
    slope = slope.abs().clamp_min(min_slope).copysign(slope)
    return depth - (logits - logits.detach()) / slope


def follow_surface(values, rate, depth, depth_attached):
    """Values at the surface that also change because the surface moves.

    Parameters
    ----------
    values : Tensor (M, K)
        A field at the found points.
    rate : Tensor (M, K)
        Its derivative along the ray by depth; taken as a constant.
    depth, depth_attached : Tensor (M,)
        Argument and result of :func:`depth_with_gradient`.

    Returns
    -------
    Tensor (M, K)
        ``values``, with the gradient through the depth added: d values / d depth = ``rate``.
    """
    return values + rate.detach() * (depth_attached - depth)[:, None]
