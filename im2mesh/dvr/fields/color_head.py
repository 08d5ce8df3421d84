"""Colour that depends on the direction of view (IDR: Yariv et al., NeurIPS 2020, section 3.2)."""

import torch
import torch.nn.functional as F
from torch import nn

from im2mesh.dvr.fields.encodings import Frequency

DIRECTION_OCTAVES = 2  # highlights of two octaves: more of them learn the views by heart


class ColorHead(nn.Module):
    """``rgb(p, direction, normal, features)``: a network of two hidden layers.

    Parameters
    ----------
    n_features : int
        Numbers that the field's own network hands on about a point.
    hidden_size : int
    """

    def __init__(self, n_features, hidden_size=64):
        super().__init__()
        self.encode_direction = Frequency(DIRECTION_OCTAVES)
        self.fc_in = nn.Linear(6 + self.encode_direction.dim + n_features, hidden_size)
        self.fc_hidden = nn.Linear(hidden_size, hidden_size)
        self.fc_out = nn.Linear(hidden_size, 3)

    def forward(self, points, directions, normals, features):
        """Colour logits.

        Parameters
        ----------
        points, directions, normals : Tensor (M, 3)
            Object space. Directions of view and normals are taken to unit length.
        features : Tensor (M, n_features)

        Returns
        -------
        logits : Tensor (M, 3)
            Before the sigmoid; differentiable with respect to the weights and everything given.
        signs : pair of Tensors (M, hidden_size)
            For :meth:`along`.
        """
        directions, normals = (F.normalize(vectors, dim=-1, eps=1e-9) for vectors in (directions, normals))
        inputs = torch.cat([points, self.encode_direction(directions), normals, features], dim=1)
        first = F.relu(self.fc_in(inputs))
        second = F.relu(self.fc_hidden(first))
        return self.fc_out(second), (first.detach().sign(), second.detach().sign())

    def along(self, signs, d_points, d_features):
        """Derivatives (M, 3) of the logits where the point and its features change.

        Parameters
        ----------
        signs : from :meth:`forward`
        d_points : Tensor (M, 3)
        d_features : Tensor (M, n_features)
            Direction of view and normal are held.
        """
        n_fixed = 3 + self.encode_direction.dim
        weight = self.fc_in.weight
        change = d_points @ weight[:, :3].T + d_features @ weight[:, 3 + n_fixed :].T
        change = ((change * signs[0]) @ self.fc_hidden.weight.T) * signs[1]
        return change @ self.fc_out.weight.T
