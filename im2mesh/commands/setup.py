"""Datasets and trained models of a config, for all commands."""

import logging
from pathlib import Path

from im2mesh import checkpoints
from im2mesh.config import method_module
from im2mesh.data import ImageFolderDataset, MultiObjectDataset, PointCloudField
from im2mesh.errors import InputError

log = logging.getLogger("im2mesh")

SPLIT_KEYS = {"train": "train_split", "val": "val_split"}  # all else looks at the test split


def get_dataset(config, mode, cache=None, split=None):
    """The dataset of a config.

    Parameters
    ----------
    mode : {"train", "val", "test", "render", "eval"}
        What it is for: training, validation, reconstruction, comparison of renderings with the
        true views, evaluation of meshes.
    cache : dict, optional
        What training and validation read once, where ``data.cache_fields`` is on. They read the
        same files alike and may share it.
    split : {"train", "val", "test"}, optional
        Another split than the one that ``mode`` looks at.

    Returns
    -------
    MultiObjectDataset or ImageFolderDataset

    Raises
    ------
    InputError
        When the data cannot be found, or are mere images and something else is wanted than
        reconstruction.
    """
    data = config["data"]
    if data["dataset_name"] == "images":
        if mode not in ("test", "render") or data["input_type"] != "image":
            raise InputError(
                "data.dataset_name: a folder of images has no cameras, masks or point clouds. It "
                "serves generate.py, and render.py with a turntable, with an encoder of images "
                "(data.input_type: image) only"
            )
        return ImageFolderDataset(data["path"], data["img_size_input"], data["remove_background"])
    learns = mode in SPLIT_KEYS
    if mode == "eval":
        fields = {"pointcloud": PointCloudField(data["pointcloud_chamfer_file"])}
    else:
        fields = method_module(config).get_data_fields(config, mode)
    return MultiObjectDataset(
        data["path"],
        fields,
        split=data[SPLIT_KEYS.get(split or mode, "test_split")],
        classes=data["classes"],
        split_model_for_images=learns and data["split_model_for_images"],
        number_inputs=data["input_type"] == "idx",
        skip_unreadable=learns and data["skip_unreadable"],
        cache=cache if learns and data["cache_fields"] else None,
        seed=config["training"]["seed"],
    )


def get_model(config, device):
    """The untrained model of a config; with inputs by number, it knows the training objects."""
    n_objects = None
    if config["data"]["input_type"] == "idx":
        n_objects = get_dataset(config, "train").n_objects
    return method_module(config).get_model(config, device, n_objects)


def load_trained_model(config, device):
    """The model of a config with the weights of ``test.model_file``, ready for use.

    Raises
    ------
    InputError
        When there is no such checkpoint, or it does not fit: never an untrained model.
    """
    model = get_model(config, device)
    path = checkpoints.locate(config["test"]["model_file"], config["training"]["out_dir"])
    if not path.exists():
        others = sorted(other.name for other in path.parent.glob("model*.pt"))
        advice = (
            f"there are {', '.join(others)} in that folder: choose one with --set test.model_file=NAME"
            if others
            else "train first: python train.py CONFIG.yaml"
        )
        raise InputError(f"test.model_file: {path} does not exist; {advice}")
    state = checkpoints.load(path, device)
    checkpoints.load_model(model, state, path, config)
    log.info("model: %s (iteration %s)", path, state.get("it", "unknown"))
    return model.eval()


def output_folder(config, *parts):
    """A folder under ``training.out_dir``."""
    return Path(config["training"]["out_dir"], *parts)


def mesh_path(config, entry, suffix=""):
    """Where the mesh of a dataset entry is written by generate.py and read by eval_meshes.py."""
    generation = config["generation"]
    folder = output_folder(config, generation["generation_dir"], "meshes", entry.category)
    return folder / f"{entry.model}{suffix}.{generation['mesh_extension']}"
