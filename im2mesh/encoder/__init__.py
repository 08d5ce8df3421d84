"""From an image to a latent code."""

from im2mesh.encoder.conv import ConvEncoder
from im2mesh.encoder.resnet import ResnetEncoder

__all__ = ["ConvEncoder", "ResnetEncoder"]
