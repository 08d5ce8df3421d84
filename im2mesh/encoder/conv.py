"""A small convolutional encoder."""

from itertools import pairwise

import torch.nn.functional as F
from torch import nn

CHANNELS = (32, 64, 128, 256, 512)


class ConvEncoder(nn.Module):
    """Five convolutions of stride 2, a mean over the image and a linear layer (method, section 2).

    Images float32 (B, 3, h, w) in [0, 1], h and w at least ``min_size``, become latent codes
    (B, c_dim).
    """

    min_size = 63  # pixels; five times (size - 1) // 2, without padding, must leave one

    def __init__(self, c_dim):
        super().__init__()
        for i, (n_in, n_out) in enumerate(pairwise((3, *CHANNELS))):
            self.add_module(f"conv{i}", nn.Conv2d(n_in, n_out, 3, stride=2))
        self.fc_out = nn.Linear(CHANNELS[-1], c_dim)

    def forward(self, images):
        net = self.conv0(images)
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            net = conv(F.relu(net))
        return self.fc_out(F.relu(net.mean((2, 3))))
