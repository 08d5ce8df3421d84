"""The contract of a field: what the rest of the method may know of a network.

A field gives every point of object space an occupancy logit and, most of them, three colour logits.
A new one is a subclass of :class:`Field` with a ``forward``; its derivatives then come from automatic
differentiation. A field that can write them out (:mod:`im2mesh.dvr.fields.simple`) overrides
:meth:`Field.evaluate`.
"""

import torch
import torch.nn.functional as F
from torch import nn


class Field(nn.Module):
    """Occupancy and colour of space, perhaps depending on a latent code and on the direction of view.

    Attributes
    ----------
    out_dim : int
        4: an occupancy logit and three colour logits; 1: occupancy only.
    view_dependent : bool
        Colours depend on ``directions``.
    piecewise_linear : bool
        The logits are linear piece by piece, in pieces that are large beside the distances at which the
        search looks. Shortcuts of the search rest on it, and on :meth:`Evaluation.same_piece`.
    points_per_call : int
        Fewer points at a time take about as long: the search rather looks a little further ahead.
    """

    out_dim = 4
    view_dependent = False
    piecewise_linear = False
    points_per_call = 128

    @property
    def has_color(self):
        return self.out_dim == 4

    def condition(self, codes):
        """What the field makes of latent codes (B, C), once per object; None for a field without.

        Whoever gets it hands it back as ``latent`` and looks no further.
        """
        return None

    def forward(self, points, latent=None, objects=None, directions=None):
        """Evaluate the field.

        Parameters
        ----------
        points : Tensor (M, 3)
            Object space.
        latent : from :meth:`condition`, or None
        objects : Tensor (M,), int64, or None
            The object (row of the latent codes) of every point; None when there is one.
        directions : Tensor (M, 3) or None
            Along which the points are seen, object space, of any length. None: along the inward normal
            (minus the gradient's direction is outwards). Of no meaning to a field whose colours do not
            depend on it.

        Returns
        -------
        Tensor (M, out_dim)
            Logits: channel 0 occupancy, channels 1 to 3 colour before the sigmoid. Differentiable with
            respect to points, latent and weights.
        """
        raise NotImplementedError

    def occupancy(self, points, latent=None, objects=None):
        """The occupancy logits (M,) alone, where a field has them for less."""
        return self(points, latent, objects)[:, 0]

    def evaluate(self, points, latent=None, objects=None, directions=None):
        """:meth:`forward` together with what derivatives need; an :class:`Evaluation`."""
        differentiable = torch.is_grad_enabled()
        with torch.enable_grad():
            points = points.detach().requires_grad_()
            out = self(points, latent, objects, directions)

        def colors(directions, rows):
            with torch.no_grad():
                seen = points.detach()[rows], latent, None if objects is None else objects[rows]
                return self(*seen, directions)[:, 1:]

        return Evaluation(points, out, differentiable, colors)

    def evaluate_for_gradient(self, points, latent=None, objects=None):
        """An evaluation of which only gradients are wanted; its ``out`` means nothing."""
        return self.evaluate(points, latent, objects)

    def set_progress(self, share):
        """How far the training is, 0 to 1, for fields that fade detail in. Does nothing by default."""

    def compile_passes(self):
        """Let PyTorch compile the network, for any number of points.

        It takes a minute when it is first run, and a C++ compiler on a CPU.
        """
        # The search alone: what is compiled cannot be differentiated twice.
        self.occupancy = torch.compile(self.occupancy, dynamic=True)


def outward_normals(gradient):
    """Unit normals (M, 3) out of the object, from gradients (M, 3) of the logit; zero where that is."""
    return -F.normalize(gradient, dim=-1, eps=1e-9)


class Evaluation:
    """A field at M points, and its derivatives there by automatic differentiation.

    Attributes
    ----------
    out : Tensor (M, out_dim)
        Logits; with their graph to weights and latent codes where gradients are on.
    """

    def __init__(self, points, out, differentiable, colors, rows=slice(None)):
        self._points, self._whole, self._rows = points, out, rows
        self._differentiable, self._colors = differentiable, colors

    @property
    def out(self):
        out = self._whole[self._rows]
        return out if self._differentiable else out.detach()

    @torch.enable_grad()
    def gradient(self):
        """Spatial gradient (M, 3) of the occupancy logit.

        Differentiable with respect to weights and latent codes, not to the points.
        """
        (gradient,) = torch.autograd.grad(
            self._whole[:, 0].sum(), self._points, retain_graph=True,
            create_graph=self._differentiable,
        )
        return gradient[self._rows]

    @torch.enable_grad()
    def along(self, directions):
        """Derivatives (M, out_dim) of all logits along one direction (M, 3) per point; constants."""
        rates = [
            torch.autograd.grad(channel.sum(), self._points, retain_graph=True)[0][self._rows]
            for channel in self._whole.unbind(dim=1)
        ]
        return (torch.stack(rates, dim=1) * directions.detach()[:, None]).sum(dim=-1)

    def __getitem__(self, rows):
        """The evaluation of some of the points, by a slice or by int64 indices."""
        index = torch.arange(len(self._points), device=self._points.device)[self._rows][rows]
        return Evaluation(self._points, self._whole, self._differentiable, self._colors, index)

    def colors(self, directions):
        """Colour logits (M, 3) of the same points seen along other directions (M, 3); constants."""
        return self._colors(directions, self._rows)

    def gradients_with(self, other):
        """Gradients (M, 3) here and of ``other``, an evaluation of the same field at as many points."""
        return self.gradient(), other.gradient()

    def same_piece(self, other):
        """Which points (M,) certainly have the same gradient as those of ``other``, whatever the weights."""
        return torch.zeros(len(self.out), dtype=torch.bool, device=self.out.device)
