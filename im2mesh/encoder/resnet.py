"""ResNet encoders (He et al., Deep residual learning for image recognition, CVPR 2016).

Parameters are named, and bottlenecks halve the image in their 3x3 convolution, as in torchvision:
weights trained there on ImageNet fit.
"""

import logging
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from im2mesh import checkpoints
from im2mesh.errors import InputError

logger = logging.getLogger(__name__)

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IMAGENET_WEIGHTS = {  # by depth
    18: "https://download.pytorch.org/models/resnet18-f37072fd.pth",
    34: "https://download.pytorch.org/models/resnet34-b627a593.pth",
    50: "https://download.pytorch.org/models/resnet50-0676ba61.pth",
    101: "https://download.pytorch.org/models/resnet101-63fe2227.pth",
}
IMAGENET_WIDTH = 64  # channels of the first convolution in those files
CLASSIFIER = {"fc.weight", "fc.bias"}  # in those files only: the 1000 classes of ImageNet


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut; (B, n_in, h, w) -> (B, width, h', w')."""

    expansion = 1

    def __init__(self, n_in, width, stride):
        super().__init__()
        self.conv1 = _conv(n_in, width, 3, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(n_in, width, stride)

    def forward(self, x):
        net = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(net)) + self.downsample(x))


class Bottleneck(nn.Module):
    """A 3x3 convolution between two of 1x1; (B, n_in, h, w) -> (B, 4 * width, h', w')."""

    expansion = 4

    def __init__(self, n_in, width, stride):
        super().__init__()
        n_out = self.expansion * width
        self.conv1 = _conv(n_in, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv(width, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = _conv(width, n_out, 1)
        self.bn3 = nn.BatchNorm2d(n_out)
        self.downsample = _shortcut(n_in, n_out, stride)

    def forward(self, x):
        net = F.relu(self.bn1(self.conv1(x)))
        net = F.relu(self.bn2(self.conv2(net)))
        return F.relu(self.bn3(self.conv3(net)) + self.downsample(x))


STAGES = {  # by depth: the kind of block, and how many of them at each of four resolutions
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
}


class ResNet(nn.Module):
    """Images (B, 3, h, w) -> features (B, n_features): a ResNet up to its spatial mean."""

    def __init__(self, depth, width=IMAGENET_WIDTH):
        super().__init__()
        block, counts = STAGES[depth]
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        n_in = width
        for stage, count in enumerate(counts):
            blocks = []
            for i in range(count):
                stride = 2 if i == 0 and stage > 0 else 1
                blocks.append(block(n_in, width * 2**stage, stride))
                n_in = width * 2**stage * block.expansion
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.n_features = n_in
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images):
        # Convolutions are fastest when the channels of a pixel are neighbours in memory.
        images = images.contiguous(memory_format=torch.channels_last)
        net = F.relu(self.bn1(self.conv1(images)))
        net = F.max_pool2d(net, 3, stride=2, padding=1)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            net = stage(net)
        return net.mean((2, 3))


class ResnetEncoder(nn.Module):
    """A ResNet and a linear layer (method, section 2).

    Images float32 (B, 3, h, w) in [0, 1], h and w at least ``min_size``, become latent codes
    (B, c_dim).

    Parameters
    ----------
    depth : {18, 34, 50, 101}
    c_dim : int
    normalize : bool
        Bring the images to the mean and deviation of ImageNet's first.
    use_linear : bool
        False leaves the linear layer out: ``c_dim`` is then the number of features, 512 for
        depths 18 and 34, 2048 for 50 and 101.
    width : int
        Channels of the first convolution; all others, and the features, are in proportion. Below
        64 the network is smaller than the published one, and has no ImageNet weights.
    pretrained : bool or str
        Where :meth:`load_pretrained` finds weights; to construct the encoder needs none.

    Raises
    ------
    ValueError
        For a ``c_dim`` that needs the linear layer, a ``width`` below 1, and one for which there
        are no ImageNet weights when they are asked for.
    """

    min_size = 33  # pixels; 32 make a map of 1x1: no statistics of a batch of one image

    def __init__(
        self, depth, c_dim, normalize=True, use_linear=True, width=IMAGENET_WIDTH,
        pretrained: bool | str = True,
    ):
        super().__init__()
        if width < 1:
            raise ValueError(f"width must be at least 1, not {width}")
        if pretrained is True and width != IMAGENET_WIDTH:
            raise ValueError(
                f"ImageNet weights are for a width of {IMAGENET_WIDTH}, not {width}; "
                "set pretrained: false"
            )
        self.depth = depth
        self.normalize = normalize
        self.pretrained = pretrained
        self.features = ResNet(depth, width)
        n_features = self.features.n_features
        if use_linear:
            self.fc = nn.Linear(n_features, c_dim)
        elif c_dim != n_features:
            raise ValueError(
                f"use_linear is false, so model.c_dim must be the {n_features} features of a "
                f"ResNet-{depth}, not {c_dim}"
            )
        else:
            self.fc = nn.Identity()
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1), persistent=False)

    def forward(self, images):
        if self.normalize:
            images = (images - self.mean) / self.std
        return self.fc(self.features(images))

    def load_pretrained(self):
        """Replace the random weights of the ResNet by trained ones; ``fc`` stays as it is.

        ``pretrained`` True: those of ImageNet, from the torch hub cache or, once, from the network;
        a path: those of a file, a state dict; False: nothing happens.

        Raises
        ------
        InputError
            When there is no such file, or it does not fit.
        """
        if self.pretrained is False:
            return
        if self.pretrained is True:
            path = _imagenet_weights(self.depth)
        else:
            path = Path(self.pretrained)
        weights = checkpoints.load_weights(path, "model.encoder_kwargs.pretrained")
        own = self.features.state_dict()
        # Files of old PyTorch do not count batches, and nothing depends on the count.
        counts = {name: own[name] for name in own if name.endswith(".num_batches_tracked")}
        weights = {name: weights[name] for name in weights if name not in CLASSIFIER}
        checkpoints.fill(
            self.features,
            counts | weights,
            f"model.encoder_kwargs.pretrained: {path} does not fit a ResNet-{self.depth}",
        )
        logger.info("start weights of the encoder: %s", path)


def _imagenet_weights(depth):
    try:
        return checkpoints.download(IMAGENET_WEIGHTS[depth])
    except InputError as err:
        raise InputError(
            f"no ImageNet weights for the encoder to start from: {err}\n"
            "To start from random weights instead, set model.encoder_kwargs: {pretrained: false}"
        ) from err


def _conv(n_in, n_out, size, stride=1):
    return nn.Conv2d(n_in, n_out, size, stride, padding=size // 2, bias=False)


def _shortcut(n_in, n_out, stride):
    """What is added to a block's result: its input, brought to the same shape where need be."""
    if n_in == n_out and stride == 1:
        return nn.Identity()
    return nn.Sequential(_conv(n_in, n_out, 1, stride), nn.BatchNorm2d(n_out))
