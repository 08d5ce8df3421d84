"""Encoder, decoder and surface search, put together."""

import torch
from torch import nn

from im2mesh.dvr.raymarch import DepthFunction
from im2mesh.encoder import ResnetEncoder
from im2mesh.layers import autocast


class DVR(nn.Module):
    """Differentiable volumetric rendering model.

    Parameters
    ----------
    decoder : Decoder
    encoder : nn.Module or None
        Inputs (B, ...) -> latent codes (B, C); None for one object without a latent code.
    depth_function : DepthFunction
    """

    def __init__(self, decoder, encoder=None, depth_function=DepthFunction()):
        super().__init__()
        self.decoder = decoder
        self.encoder = encoder
        self.depth_function = depth_function

    def encode(self, inputs, dtype=None):
        """Latent shifts of the decoder's blocks for a batch of inputs.

        Parameters
        ----------
        inputs : Tensor or None
            The batch's ``inputs``, on any device: images uint8 (B, 3, h, w), or numbers of
            training objects int64 (B,); None without an encoder.
        dtype : torch.dtype or None
            Reduced precision of the encoder's arithmetic; the result is of the weights' type.

        Returns
        -------
        list of Tensors (B, H), or None without an encoder
            Differentiable with respect to the weights.
        """
        if self.encoder is None:
            return None
        weight = self.decoder.fc_p.weight
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

    def logit_field(self, shifts=None, objects=None, dtype=None):
        """Occupancy logits as a function (points (M, 3), rays (M,)) -> (M,).

        Parameters
        ----------
        shifts : list of Tensors (B, H) or None
            From :meth:`encode`.
        objects : Tensor (R,), int64, or None
            The object of every ray; None when there is one object only.
        dtype : torch.dtype or None
            Reduced precision of the arithmetic; the logits are of the points' type all the same.
        """

        def field(points, rays=None):
            with autocast(points.device, dtype):
                out = self.decoder(points, shifts, None if objects is None else objects[rays])
            return out[:, 0].to(points.dtype)

        return field

    def logit_and_gradient(self, shifts=None):
        """Logits of one object and their gradients as a function (M, 3) -> (M,), (M, 3)."""

        def field(points):
            out, trace = self.decoder.trace(points, shifts)
            return out[:, 0], self.decoder.gradient(trace)

        return field

    def color_field(self, shifts=None):
        """Colours of one object as a function points (M, 3) -> rgb (M, 3) in [0, 1]."""
        return lambda points: torch.sigmoid(self.decoder(points, shifts)[:, 1:])

    @property
    def has_color(self):
        return self.decoder.out_dim == 4

    def find_surface(self, origins, directions, shifts=None, objects=None, n_steps=None,
                     generator=None, bounds=None, dtype=None):
        """March rays (R, 3) of one or more objects; see :meth:`DepthFunction.find_surface`.

        ``bounds`` (:class:`im2mesh.dvr.bounds.OccupancyBounds` or None) tell where not to look. With a
        reduced precision ``dtype`` the surface is looked for in it; where it was found, it is made sure
        of and refined in full precision.
        """

        def estimate(points, rays):
            return bounds.estimate(points, None if objects is None else objects[rays])

        return self.depth_function.find_surface(
            self.logit_field(shifts, objects), origins, directions, n_steps, generator,
            estimate=bounds and estimate,
            scout=None if dtype is None else self.logit_field(shifts, objects, dtype),
        )

    def normals(self, trace):
        """Unit normals (M, 3) out of the object; differentiable with respect to the weights."""
        return -nn.functional.normalize(self.decoder.gradient(trace), dim=-1, eps=1e-9)
