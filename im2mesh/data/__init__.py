"""Datasets on disk to batches of tensors."""

from im2mesh.data.core import Entry, MultiObjectDataset
from im2mesh.data.fields import (
    ImagesField,
    InputImagesField,
    PointCloudField,
    SparseDepthField,
)
from im2mesh.data.folder import ImageFolderDataset
from im2mesh.data.loading import Draw, EpochSampler, Loader, collate, make_loader

__all__ = [
    "Draw",
    "Entry",
    "EpochSampler",
    "ImageFolderDataset",
    "ImagesField",
    "InputImagesField",
    "Loader",
    "MultiObjectDataset",
    "PointCloudField",
    "SparseDepthField",
    "collate",
    "make_loader",
]
