"""Encoder, decoder and surface search, put together."""

from dataclasses import replace

import torch
from torch import nn

from im2mesh.dvr.raymarch import DepthFunction
from im2mesh.dvr.support import FREE
from im2mesh.encoder import ResnetEncoder
from im2mesh.layers import autocast


class DVR(nn.Module):
    """Differentiable volumetric rendering model.

    Parameters
    ----------
    decoder : Field
    encoder : nn.Module or None
        Inputs (B, ...) -> latent codes (B, C); None for one object without a latent code.
    depth_function : DepthFunction
    support : Support or None
        Where the object can be; None: anywhere in the cube.
    """

    def __init__(self, decoder, encoder=None, depth_function=DepthFunction(), support=None):
        super().__init__()
        self.decoder = decoder
        self.encoder = encoder
        self.depth_function = depth_function
        self.support = support

    @property
    def trusts_grids(self):
        """Whether shortcuts of the search that rest on a smooth field may be taken.

        Behind an encoding a grid of some cells shows too little of the field, and so do slopes between
        distant samples; a support leaves little to gain.
        """
        return self.decoder.piecewise_linear and self.support is None

    def encode(self, inputs, dtype=None):
        """What the decoder takes from a batch of inputs.

        Parameters
        ----------
        inputs : Tensor or None
            The batch's ``inputs``, on any device: images uint8 (B, 3, h, w), or numbers of
            training objects int64 (B,); None without an encoder.
        dtype : torch.dtype or None
            Reduced precision of the encoder's arithmetic; the result is of the weights' type.

        Returns
        -------
        The latent of :meth:`Field.condition`, or None without an encoder
            Differentiable with respect to the weights.
        """
        if self.encoder is None:
            return None
        weight = next(self.decoder.parameters())
        inputs = inputs.to(weight.device)
        if inputs.dtype == torch.uint8:
            inputs = inputs.to(weight.dtype) / 255
        with autocast(weight.device, dtype):
            codes = self.encoder(inputs)
        return self.decoder.condition(codes.to(weight.dtype))

    def load_start_weights(self):
        """Put in the weights that training from scratch starts from and that are not random.

        Raises
        ------
        InputError
            When they cannot be had; see :meth:`ResnetEncoder.load_pretrained`.
        """
        if isinstance(self.encoder, ResnetEncoder):
            self.encoder.load_pretrained()

    def logit_field(self, latent=None, objects=None, dtype=None):
        """Occupancy logits as a function (points (M, 3), rays (M,)) -> (M,).

        Parameters
        ----------
        latent : from :meth:`encode`, or None
        objects : Tensor (R,), int64, or None
            The object of every ray; None when there is one object only.
        dtype : torch.dtype or None
            Reduced precision of the arithmetic; the logits are of the points' type all the same.
        """

        def everywhere(points, rays=None):
            with autocast(points.device, dtype):
                logits = self.decoder.occupancy(
                    points, latent, None if objects is None else objects[rays]
                )
            return logits.to(points.dtype)

        def in_support(points, rays=None):
            rows = self.support(points).nonzero()[:, 0]
            logits = everywhere(points[rows], None if objects is None else rays[rows])
            return torch.full_like(points[:, 0], FREE).index_copy(0, rows, logits)

        return everywhere if self.support is None else in_support

    def logit_and_gradient(self, latent=None):
        """Logits of one object and their gradients as a function (M, 3) -> (M,), (M, 3)."""

        def field(points):
            found = self.decoder.evaluate(points, latent)
            return found.out[:, 0], found.gradient()

        return field

    def color_field(self, latent=None):
        """Colours of one object as a function points (M, 3) -> rgb (M, 3) in [0, 1].

        Where they depend on the direction of view, they are those seen along the inward normal.
        """
        return lambda points: torch.sigmoid(self.decoder(points, latent)[:, 1:])

    @torch.no_grad()
    def color_in_views(self, points, directions, weights, latent=None):
        """Mean colours of points of one object over the directions along which they are seen.

        Parameters
        ----------
        points : Tensor (M, 3)
        directions : Tensor (M, K, 3)
            Object space, of any length.
        weights : Tensor (M, K)
            Of each direction; where all are 0, the colour is that along the inward normal.

        Returns
        -------
        Tensor (M, 3), rgb in [0, 1]
        """
        found = self.decoder.evaluate(points, latent)
        total = weights.sum(dim=1, keepdim=True)
        along_normal = torch.sigmoid(found.out[:, 1:])
        mean = torch.zeros_like(along_normal)
        for direction, weight in zip(directions.unbind(dim=1), weights.unbind(dim=1)):
            mean += weight[:, None] * torch.sigmoid(found.colors(direction))
        return torch.where(total > 0, mean / total.clamp_min(1e-9), along_normal)

    @property
    def has_color(self):
        return self.decoder.has_color

    def find_surface(self, origins, directions, latent=None, objects=None, n_steps=None,
                     generator=None, bounds=None, dtype=None, closest=False, tau=None):
        """March rays (R, 3) of one or more objects; see :meth:`DepthFunction.find_surface`.

        ``bounds`` (:class:`im2mesh.dvr.bounds.OccupancyBounds` or None) tell where not to look. With a
        reduced precision ``dtype`` the surface is looked for in it; where it was found, it is made sure
        of and refined in full precision. ``tau`` is the occupancy of the surface, if other than that of
        the depth function.
        """

        def estimate(points, rays):
            return bounds.estimate(points, None if objects is None else objects[rays])

        depth_function = self.depth_function if tau is None else replace(self.depth_function, tau=tau)
        return depth_function.find_surface(
            self.logit_field(latent, objects), origins, directions, n_steps, generator,
            estimate=bounds and estimate,
            scout=None if dtype is None else self.logit_field(latent, objects, dtype),
            support=self.support,
            closest=closest,
            every_sample=not self.trusts_grids,
            least_call=self.decoder.points_per_call,
        )
