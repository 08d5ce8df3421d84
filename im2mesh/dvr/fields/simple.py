"""The field of the paper: a residual network of ReLUs (section 3.1 and supplementary; method, section 2).

The network is piecewise linear, so its spatial derivatives are themselves short networks made of
the same weights and of the signs (0 or 1) found in the forward pass. Writing them out costs one
pass for a gradient or a directional derivative, and plain automatic differentiation of them
gives the derivatives of normals with respect to the weights, without a second-order graph. An encoding of
the points before the first layer changes little of that: directions are pushed through it, covectors
pulled back.
"""

from itertools import chain

import torch
import torch.nn.functional as F
from torch import nn

from im2mesh.dvr.field import Field
from im2mesh.dvr.fields.color_head import ColorHead
from im2mesh.layers import ResnetBlock, autocast

LEAKY_SLOPE = 0.2
POINTS_PER_CALL = 8192  # behind an encoding, where networks are small


class ResidualField(Field):
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
    encoding : nn.Module or None
        Of the points, see :mod:`im2mesh.dvr.fields.encodings`.
    color_head : bool
        Colours depend on the direction of view and the normal as well: :class:`ColorHead`.

    Raises
    ------
    ValueError
        For sizes that make no network.
    """

    def __init__(self, dim=3, c_dim=0, hidden_size=512, n_blocks=5, out_dim=4, leaky=False,
                 encoding=None, color_head=False):
        super().__init__()
        if out_dim not in (1, 4):
            raise ValueError(f"out_dim must be 4 (occupancy and colour) or 1, not {out_dim}")
        if min(hidden_size, n_blocks) < 1:
            raise ValueError("hidden_size and n_blocks must be at least 1")
        if color_head and out_dim == 1:
            raise ValueError("color_head needs out_dim 4: with out_dim 1 there is no colour")
        self.c_dim = c_dim
        self.out_dim = out_dim
        self.slope = LEAKY_SLOPE if leaky else 0.0
        self.view_dependent = color_head
        self.piecewise_linear = encoding is None
        if encoding is not None:
            self.points_per_call = POINTS_PER_CALL
        # Activations of so many points stay in a processor's cache; more would be slower.
        self.cpu_block = max(1, 2**19 // hidden_size)
        self.encoding = encoding
        self.fc_p = nn.Linear(dim if encoding is None else encoding.dim, hidden_size)
        if c_dim > 0:
            self.fc_c = nn.ModuleList(nn.Linear(c_dim, hidden_size) for _ in range(n_blocks))
        self.blocks = nn.ModuleList(ResnetBlock(hidden_size) for _ in range(n_blocks))
        self.fc_out = nn.Linear(hidden_size, 1 if color_head else out_dim)
        self.color_head = ColorHead(hidden_size) if color_head else None

    def set_progress(self, share):
        if self.encoding is not None:
            self.encoding.set_progress(share)

    def compile_passes(self):
        self._values = torch.compile(self._values, dynamic=True)
        self._traced = torch.compile(self._traced, dynamic=True)

    def condition(self, codes):
        """What each block adds for latent codes: a list of n_blocks Tensors (B, H)."""
        return [fc(codes) for fc in self.fc_c] if self.c_dim > 0 else None

    def forward(self, points, latent=None, objects=None, directions=None):
        if self.color_head is not None:
            return self.evaluate(points, latent, objects, directions).out
        return self._forward(points, latent, objects)

    def occupancy(self, points, latent=None, objects=None):
        return self._forward(points, latent, objects)[:, 0]

    def evaluate(self, points, latent=None, objects=None, directions=None):
        features = points if self.encoding is None else self.encoding(points)
        out, last, signs = self._traced(features, latent, objects)
        found = ResidualEvaluation(self, points, out, signs)
        if self.color_head is not None:
            with torch.no_grad():
                normals = -found.gradient()
            seen_along = -normals if directions is None else directions
            colors, found.head_signs = self.color_head(points, seen_along, normals, last)
            found.head_inputs = normals, last
            found.out = torch.cat([out, colors], dim=1)
        return found

    @torch.no_grad()  # of the signs; the graph of the gradient starts at the weights
    def evaluate_for_gradient(self, points, latent=None, objects=None):
        features = points if self.encoding is None else self.encoding(points)
        out, _, signs = self._traced(features, latent, objects)
        return ResidualEvaluation(self, points, out, signs)

    def _forward(self, points, latent, objects):
        features = points if self.encoding is None else self.encoding(points)
        if not torch.is_grad_enabled() and points.device.type == "cpu":
            blocks = range(0, len(points), self.cpu_block)
            parts = [slice(start, start + self.cpu_block) for start in blocks]
            if len(parts) > 1:
                return torch.cat([
                    self._values(features[p], latent, None if objects is None else objects[p])
                    for p in parts
                ])
        return self._values(features, latent, objects)

    def _values(self, features, latent, objects):
        with autocast(features.device, None):  # bfloat16 would round neighbouring points to one
            net = self.fc_p(features)
        if torch.is_autocast_enabled(features.device.type):  # residual sums in reduced precision, too
            net = net.to(torch.get_autocast_dtype(features.device.type))
        for i, block in enumerate(self.blocks):
            net = block(self._shift(net, latent, objects, i))
        return self.fc_out(F.leaky_relu(net, self.slope))

    def _traced(self, features, latent, objects):
        """:meth:`_values`, the last layer's input, and the derivatives of the activations."""
        net = self.fc_p(features)
        blocks = []
        for i, block in enumerate(self.blocks):
            net = self._shift(net, latent, objects, i)
            first = F.relu(net)
            second = F.relu(block.fc_0(first), inplace=True)
            blocks.append((first.detach().sign(), second.detach().sign()))
            net = block.fc_1(second).add_(net)
        above = (net > 0).to(net.dtype)
        last = F.leaky_relu(net, self.slope)
        return self.fc_out(last), last, (blocks, above + self.slope * (1 - above))

    @staticmethod
    def _shift(net, latent, objects, i):
        if latent is None:
            return net
        shift = latent[i].to(net.dtype)
        return net + (shift if objects is None else shift[objects])


class ResidualEvaluation:
    """A residual field at M points; as :class:`im2mesh.dvr.field.Evaluation`, in closed form.

    Attributes
    ----------
    out : Tensor (M, out_dim)
    blocks : list of pairs of Tensor (M, H)
        Derivatives of the activations: for each block, of its first and its second.
    last : Tensor (M, H)
        That of the activation before ``fc_out``.
    head_signs, head_inputs : pairs of Tensors, or None
        Where there is a colour head: derivatives of its activations, (M, S) each; normals (M, 3) and
        features (M, H).
    """

    def __init__(self, field, points, out, signs, head_signs=None, head_inputs=None):
        self._field, self._points, self.out = field, points, out
        self.blocks, self.last = signs
        self.head_signs, self.head_inputs = head_signs, head_inputs

    def gradient(self):
        field = self._field
        back = field.fc_out.weight[0] * self.last
        for block, (first, second) in zip(reversed(field.blocks), reversed(self.blocks)):
            inner = (back @ block.fc_1.weight) * second
            back = torch.addcmul(back, inner @ block.fc_0.weight, first)
        back = back @ field.fc_p.weight
        return back if field.encoding is None else field.encoding.pull(self._points, back)

    def along(self, directions):
        field = self._field
        with torch.no_grad():
            pushed = directions
            if field.encoding is not None:
                pushed = field.encoding.push(self._points, directions)
            along = pushed @ field.fc_p.weight.T
            for block, (first, second) in zip(field.blocks, self.blocks):
                inner = (along * first) @ block.fc_0.weight.T
                along = torch.addmm(along, inner * second, block.fc_1.weight.T)
            along = along * self.last
            rates = along @ field.fc_out.weight.T
            if field.color_head is None:
                return rates
            return torch.cat([rates, field.color_head.along(self.head_signs, directions, along)], dim=1)

    def __getitem__(self, rows):
        blocks = [(first[rows], second[rows]) for first, second in self.blocks]
        head = [
            pair and tuple(values[rows] for values in pair)
            for pair in (self.head_signs, self.head_inputs)
        ]
        return ResidualEvaluation(
            self._field, self._points[rows], self.out[rows], (blocks, self.last[rows]), *head
        )

    @torch.no_grad()
    def colors(self, directions):
        if self._field.color_head is None:
            return self.out[:, 1:].detach()
        return self._field.color_head(self._points, directions, *self.head_inputs)[0]

    def gradients_with(self, other):
        """As :meth:`Evaluation.gradients_with`, of both in one pass."""
        blocks = [
            tuple(torch.cat(values) for values in zip(*block))
            for block in zip(self.blocks, other.blocks)
        ]
        both = ResidualEvaluation(
            self._field, torch.cat([self._points, other._points]), None,
            (blocks, torch.cat([self.last, other.last])),
        )
        return both.gradient().chunk(2)

    def same_piece(self, other):
        if not self._field.piecewise_linear:
            return torch.zeros(len(self.last), dtype=torch.bool, device=self.last.device)
        pairs = zip(self._activations(), other._activations())
        # Sums of float32 are several times as fast as any() of bool.
        return sum((one - another).abs_().sum(dim=1) for one, another in pairs) == 0

    def _activations(self):
        return [*chain.from_iterable(self.blocks), self.last]
