"""The fields that a config can name: the residual network, bare or behind an encoding of the points."""

import torch

from im2mesh.dvr.fields.encodings import Frequency, HashGrid
from im2mesh.dvr.fields.simple import ResidualField


class SimpleField(ResidualField):
    """The field of the paper: smooth, with blurred colours; parameters as in :class:`ResidualField`."""

    def __init__(self, dim=3, c_dim=0, hidden_size=512, n_blocks=5, out_dim=4, leaky=False,
                 color_head=False):
        super().__init__(dim, c_dim, hidden_size, n_blocks, out_dim, leaky, None, color_head)


class FrequencyField(ResidualField):
    """A residual network of sines and cosines of the coordinates.

    Parameters
    ----------
    dim, c_dim, hidden_size, n_blocks, out_dim, leaky, color_head
        As in :class:`ResidualField`.
    n_octaves : int
        See :class:`Frequency`. The weights of its features start at zero, so that the start is smooth.
    """

    def __init__(self, dim=3, c_dim=0, hidden_size=128, n_blocks=5, out_dim=4, leaky=False,
                 color_head=False, n_octaves=6):
        super().__init__(
            dim, c_dim, hidden_size, n_blocks, out_dim, leaky, Frequency(n_octaves), color_head
        )
        with torch.no_grad():
            self.fc_p.weight[:, dim:] = 0


class HashGridField(ResidualField):
    """A small residual network of learned features on grids of several resolutions.

    Parameters
    ----------
    dim, c_dim, hidden_size, n_blocks, out_dim, leaky, color_head
        As in :class:`ResidualField`.
    n_levels, coarsest, finest, log2_table_size, n_features
        See :class:`HashGrid`.
    """

    def __init__(self, dim=3, c_dim=0, hidden_size=64, n_blocks=2, out_dim=4, leaky=False,
                 color_head=False, n_levels=8, coarsest=8, finest=192, log2_table_size=15, n_features=2):
        encoding = HashGrid(n_levels, coarsest, finest, log2_table_size, n_features)
        super().__init__(dim, c_dim, hidden_size, n_blocks, out_dim, leaky, encoding, color_head)


FIELDS = {"simple": SimpleField, "frequency": FrequencyField, "hashgrid": HashGridField}  # model.decoder
