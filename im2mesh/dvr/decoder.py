"""The field network: a point and a latent code in, an occupancy logit and a colour out.

Paper, section 3.1 and supplementary; method, section 2.

The network is piecewise linear, so its spatial derivatives are themselves short networks made of
the same weights and of the signs (0 or 1) found in the forward pass. Writing them out costs one
pass for a gradient or a directional derivative, and plain automatic differentiation of them
gives the derivatives of normals with respect to the weights, without a second-order graph.
"""

from dataclasses import dataclass
from itertools import chain

import torch
import torch.nn.functional as F
from torch import nn

from im2mesh.layers import ResnetBlock, autocast

LEAKY_SLOPE = 0.2


@dataclass
class Trace:
    """Derivatives of the activations met in one forward pass.

    blocks : list of pairs of Tensor (M, H)
        For each block, of its first and its second activation.
    last : Tensor (M, H)
        Of the activation before ``fc_out``.
    """

    blocks: list
    last: torch.Tensor

    def __getitem__(self, rows):
        """The trace of some of the points (a slice gives a view)."""
        return Trace([(first[rows], second[rows]) for first, second in self.blocks], self.last[rows])

    @classmethod
    def cat(cls, traces):
        """One trace of the points of several."""
        blocks = zip(*(trace.blocks for trace in traces))
        return cls(
            [tuple(torch.cat(values) for values in zip(*block)) for block in blocks],
            torch.cat([trace.last for trace in traces]),
        )

    def differs(self, other):
        """Which points (M,) lie in another linear piece of the network than those of ``other``."""
        pairs = zip(self._all(), other._all())
        # Sums of float32 are several times as fast as any() of bool.
        return sum((one - another).abs_().sum(dim=1) for one, another in pairs) > 0

    def _all(self):
        return [*chain.from_iterable(self.blocks), self.last]


class Decoder(nn.Module):
    """Residual MLP for occupancy and texture.

    Parameters
    ----------
    dim : int
        Size of a point.
    c_dim : int
        Size of the latent code; 0 for none.
    hidden_size, n_blocks : int
    out_dim : int
        4: occupancy logit and three colour logits; 1: occupancy only.
    leaky : bool
        LeakyReLU(0.2) instead of ReLU before the last layer.

    Raises
    ------
    ValueError
        For sizes that make no network.
    """

    def __init__(self, dim=3, c_dim=0, hidden_size=512, n_blocks=5, out_dim=4, leaky=False):
        super().__init__()
        if out_dim not in (1, 4):
            raise ValueError(f"out_dim must be 4 (occupancy and colour) or 1, not {out_dim}")
        if min(hidden_size, n_blocks) < 1:
            raise ValueError("hidden_size and n_blocks must be at least 1")
        self.c_dim = c_dim
        self.out_dim = out_dim
        self.slope = LEAKY_SLOPE if leaky else 0.0
        # Activations of so many points stay in a processor's cache; more would be slower.
        self.cpu_block = max(1, 2**19 // hidden_size)
        self.fc_p = nn.Linear(dim, hidden_size)
        if c_dim > 0:
            self.fc_c = nn.ModuleList(nn.Linear(c_dim, hidden_size) for _ in range(n_blocks))
        self.blocks = nn.ModuleList(ResnetBlock(hidden_size) for _ in range(n_blocks))
        self.fc_out = nn.Linear(hidden_size, out_dim)

    def compile_passes(self):
        """Let PyTorch compile the two passes through the network, for any number of points.

        It takes a minute when they are first run, and a C++ compiler on a CPU.
        """
        self._values = torch.compile(self._values, dynamic=True)
        self.trace = torch.compile(self.trace, dynamic=True)

    def condition(self, c):
        """What each block adds for a latent code, computed once per object.

        Parameters
        ----------
        c : Tensor (B, c_dim)

        Returns
        -------
        list of n_blocks Tensors (B, H), or None when ``c_dim`` is 0
        """
        return [fc(c) for fc in self.fc_c] if self.c_dim > 0 else None

    def forward(self, points, shifts=None, objects=None):
        """Evaluate the fields.

        Parameters
        ----------
        points : Tensor (M, 3)
            Object space.
        shifts : list of Tensors (B, H) or None
            From :meth:`condition`.
        objects : Tensor (M,), int64, or None
            The object (row of ``shifts``) of every point; None when B is 1.

        Returns
        -------
        Tensor (M, out_dim)
            Logits: channel 0 occupancy, channels 1 to 3 colour before the sigmoid.
            Differentiable with respect to points, shifts and weights.
        """
        if not torch.is_grad_enabled() and points.device.type == "cpu":
            blocks = range(0, len(points), self.cpu_block)
            parts = [slice(start, start + self.cpu_block) for start in blocks]
            if len(parts) > 1:
                return torch.cat([
                    self._values(points[p], shifts, None if objects is None else objects[p])
                    for p in parts
                ])
        return self._values(points, shifts, objects)

    def _values(self, points, shifts, objects):
        with autocast(points.device, None):  # eight bits would not tell points apart
            net = self.fc_p(points)
        if torch.is_autocast_enabled(points.device.type):  # what is between the layers as well
            net = net.to(torch.get_autocast_dtype(points.device.type))
        for i, block in enumerate(self.blocks):
            net = block(self._shift(net, shifts, objects, i))
        return self.fc_out(F.leaky_relu(net, self.slope))

    def trace(self, points, shifts=None, objects=None):
        """:meth:`forward` that also keeps what the derivative passes need.

        Returns
        -------
        out : Tensor (M, out_dim)
        trace : Trace
        """
        net = self.fc_p(points)
        blocks = []
        for i, block in enumerate(self.blocks):
            net = self._shift(net, shifts, objects, i)
            first = F.relu(net)
            second = F.relu(block.fc_0(first), inplace=True)
            blocks.append((first.detach().sign(), second.detach().sign()))
            net = block.fc_1(second).add_(net)
        above = (net > 0).to(net.dtype)
        return self.fc_out(F.leaky_relu(net, self.slope)), Trace(
            blocks, above + self.slope * (1 - above)
        )

    def gradient(self, trace):
        """Spatial gradient of the occupancy logit at the points of a trace.

        Returns
        -------
        Tensor (M, 3)
            Differentiable with respect to the weights (not to the points, where the true second
            derivative is zero almost everywhere).
        """
        back = self.fc_out.weight[0] * trace.last
        for block, (first, second) in zip(reversed(self.blocks), reversed(trace.blocks)):
            inner = (back @ block.fc_1.weight) * second
            back = torch.addcmul(back, inner @ block.fc_0.weight, first)
        return back @ self.fc_p.weight

    def directional_derivative(self, trace, directions):
        """Derivative of all outputs along one direction per point of a trace.

        Parameters
        ----------
        directions : Tensor (M, 3)

        Returns
        -------
        Tensor (M, out_dim)
            Derivatives of the logits.
        """
        along = directions @ self.fc_p.weight.T
        for block, (first, second) in zip(self.blocks, trace.blocks):
            inner = (along * first) @ block.fc_0.weight.T
            along = torch.addmm(along, inner * second, block.fc_1.weight.T)
        return (along * trace.last) @ self.fc_out.weight.T

    @staticmethod
    def _shift(net, shifts, objects, i):
        if shifts is None:
            return net
        shift = shifts[i].to(net.dtype)
        return net + (shift if objects is None else shift[objects])
