"""Network layers and their arithmetic."""

import torch
import torch.nn.functional as F
from torch import nn


class ResnetBlock(nn.Module):
    """``x + fc_1(relu(fc_0(relu(x))))``, all of one size.

    ``fc_1.weight`` starts at zero (the block starts as the identity plus a bias).
    Input and output are (..., size).
    """

    def __init__(self, size):
        super().__init__()
        self.fc_0 = nn.Linear(size, size)
        self.fc_1 = nn.Linear(size, size)
        nn.init.zeros_(self.fc_1.weight)

    def forward(self, x):
        hidden = F.relu(self.fc_0(F.relu(x)), inplace=True)
        return self.fc_1(hidden).add_(x)


def autocast(device, dtype):
    """Context in which layers compute in ``dtype``; with None, in that of their weights."""
    return torch.autocast(device.type, dtype, enabled=dtype is not None)
