"""The factories of the method: the only reader of its config keys."""

import difflib
import inspect
import logging
import os
import shutil
from functools import partial
from types import UnionType

import torch
from torch import nn

from im2mesh.data import ImagesField, InputImagesField, SparseDepthField
from im2mesh.dvr.fields.registered import FIELDS
from im2mesh.dvr.generation import Generator
from im2mesh.dvr.model import DVR
from im2mesh.dvr.raymarch import DepthFunction
from im2mesh.dvr.rendering import Renderer
from im2mesh.dvr.support import Support
from im2mesh.dvr.training import LossOptions, Trainer
from im2mesh.encoder import ConvEncoder, ResnetEncoder
from im2mesh.errors import InputError

log = logging.getLogger(__name__)

IMAGE_ENCODERS = {
    **{f"resnet{depth}": partial(ResnetEncoder, depth) for depth in (18, 34, 50, 101)},
    "simple_conv": ConvEncoder,
}
PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16}
LOSS_TERMS = {  # term of the loss: key of its weight in the section model
    "rgb": "lambda_rgb",
    "image_gradients": "lambda_image_gradients",
    "depth": "lambda_depth",
    "sparse_depth": "lambda_sparse_depth",
    "normal": "lambda_normal",
    "freespace": "lambda_freespace",
    "occupied": "lambda_occupied",
    "unseen": "lambda_unseen",
    "patch": "lambda_patch",
    "silhouettes": "lambda_silhouettes",
}


def get_model(config, device="cpu", n_objects=None):
    """The untrained model of a config.

    Parameters
    ----------
    n_objects : int
        Number of training objects, for the encoder idx only.

    Raises
    ------
    InputError
        For an unknown decoder or encoder, arguments that they do not take, and an encoder that
        does not go with the data or ``c_dim``.
    """
    keys, data = config["model"], config["data"]
    if keys["decoder"] not in FIELDS:
        near = difflib.get_close_matches(keys["decoder"], FIELDS, n=1)
        advice = f"did you mean {near[0]}? " if near else ""
        raise InputError(
            f"model.decoder: unknown decoder {keys['decoder']!r}; {advice}known: {', '.join(FIELDS)}"
        )
    decoder = _construct(
        FIELDS[keys["decoder"]], "model.decoder_kwargs", keys["decoder_kwargs"],
        dim=data["dim"], c_dim=keys["c_dim"],
    )
    depth_function = _construct(
        DepthFunction,
        "model.depth_function_kwargs",
        {
            "depth_range": data["depth_range"],
            "check_cube_intersection": config["training"]["use_cube_intersection"],
            **keys["depth_function_kwargs"],
        },
    )
    if keys["visual_hull"] and keys["encoder"] is not None:
        raise InputError(
            f"model.visual_hull is true, but with model.encoder {keys['encoder']} there are many objects, "
            "each with a hull of its own; set false"
        )
    support = Support() if keys["visual_hull"] else None
    return DVR(decoder, _encoder(keys, data, n_objects), depth_function, support).to(device)


def _encoder(keys, data, n_objects):
    """The encoder of the section model, or None."""
    name, c_dim, given = keys["encoder"], keys["c_dim"], data["input_type"]
    if name not in (*IMAGE_ENCODERS, "idx", None):
        known = ", ".join(IMAGE_ENCODERS)
        raise InputError(f"model.encoder: unknown encoder {name!r}; known: {known}, idx, null")
    wanted = "image" if name in IMAGE_ENCODERS else name
    if given != wanted:
        raise InputError(
            f"data.input_type is {given or 'null'}, but model.encoder {name or 'null'} needs "
            f"{wanted or 'null'}"
        )
    if name is None and c_dim != 0:
        raise InputError(f"model.c_dim is {c_dim}, but without an encoder it must be 0")
    if name is not None and c_dim == 0:
        raise InputError(f"model.c_dim is 0: no latent code for model.encoder {name} to give")
    if name in IMAGE_ENCODERS:
        encoder, size = IMAGE_ENCODERS[name], data["img_size_input"]
        encoder = _construct(encoder, "model.encoder_kwargs", keys["encoder_kwargs"], c_dim=c_dim)
        if size is not None and size < encoder.min_size:
            raise InputError(
                f"data.img_size_input is {size}, but model.encoder {name} needs at least "
                f"{encoder.min_size}"
            )
        return encoder
    if keys["encoder_kwargs"]:
        raise InputError(f"model.encoder_kwargs: the encoder {name or 'null'} takes none; set {{}}")
    if name is None:
        return None
    for split in ("val_split", "test_split"):
        if data[split] != data["train_split"]:
            raise InputError(
                f"data.{split} is {data[split]}, but model.encoder idx knows the objects of "
                f"data.train_split only; set both to {data['train_split'] or 'null'}"
            )
    return nn.Embedding(n_objects, c_dim)


def get_data_fields(config, mode):
    """What the method reads of every object.

    Parameters
    ----------
    mode : {"train", "val", "test", "render"}
        Training, validation, reconstruction (of the images only the encoder's are needed), or
        comparison with the true views.

    Returns
    -------
    dict of str to field
    """
    data, model = config["data"], config["model"]
    # As published: the views of NMR are random in validation and test, too.
    random_view = mode == "train" or data["dataset_name"] == "NMR"
    fields = {}
    if data["input_type"] == "image":
        fields["inputs"] = InputImagesField(
            img_folder=data["img_folder_input"],
            img_extension=data["img_extension_input"],
            n_views=data["n_views_input"],
            ignore_image_idx=data["ignore_image_idx"],
            random_view=random_view,
            img_size=data["img_size_input"],
            remove_background=data["remove_background"],
        )
    if mode == "test":
        return fields
    learns = mode in ("train", "val")
    fields["img"] = ImagesField(
        img_folder=data["img_folder"],
        img_extension=data["img_extension"],
        mask_folder=data["mask_folder"] if data["img_with_mask"] else None,
        mask_extension=data["mask_extension"],
        depth_folder=data["depth_folder"] if learns and model["lambda_depth"] else None,
        visual_hull_depth_folder=(
            data["visual_hull_depth_folder"]
            if learns and data["depth_from_visual_hull"]
            else None
        ),
        depth_extension=data["depth_extension"],
        with_camera=data["img_with_camera"],
        n_views=data["n_views"],
        ignore_image_idx=data["ignore_image_idx"],
        random_view=random_view,
        img_size=data["img_size"],
    )
    if learns and model["lambda_sparse_depth"]:
        fields["sparse_depth"] = SparseDepthField()
    if learns:
        for key in ("img_with_mask", "img_with_camera"):
            if not data[key]:
                raise InputError(f"data.{key} is false, but training needs masks and cameras")
    return fields


def get_trainer(config, model, optimizer, device):
    """The trainer of a model."""
    training = config["training"]
    if training["multi_gpu"]:
        raise InputError("training.multi_gpu: training on several GPUs is not available; set false")
    if training["compile"]:
        _check_compiler(device)
        model.decoder.compile_passes()
    options = LossOptions(
        weights={term: config["model"][key] for term, key in LOSS_TERMS.items()},
        patch_size=config["model"]["patch_size"],
        reduction=config["model"]["reduction_method"],
        coarse_bounds=config["model"]["coarse_bounds"],
        normal_neighborhood=config["model"]["normal_neighborhood"],
        min_slope=config["model"]["min_slope"],
        depth_range=tuple(config["data"]["depth_range"]),
        precision=_precision(training["precision"], device),
        **{
            key: training[key]
            for key in (
                "n_training_points", "n_eval_points", "sample_continuous", "pixels_near_mask",
                "n_surrounding_rays", "n_compared_patches", "occupancy_points", "occupancy_random_normal",
                "depth_loss_on_world_points", "use_cube_intersection", "always_freespace",
                "gradient_clip",
            )
        },
    )
    return Trainer(model, optimizer, options, device, training["seed"])


def _precision(name, device):
    """The type to compute in: float32 (None) too where a CPU would have to emulate a shorter one."""
    if (
        name == "bfloat16"
        and torch.device(device).type == "cpu"
        and not torch.ops.mkldnn._is_mkldnn_bf16_supported()
    ):
        log.warning(
            "training.precision: this processor has no instructions for bfloat16 and would take many times "
            "as long; float32 is used"
        )
        return None
    return PRECISIONS[name]


def _check_compiler(device):
    """torch.compile makes C++ code for a CPU; without a compiler it would fail in the first step."""
    compiler = os.environ.get("CXX", "g++")
    if torch.device(device).type == "cpu" and shutil.which(compiler) is None:
        raise InputError(
            f"training.compile is true, but there is no C++ compiler {compiler}; install one (Debian "
            "and Ubuntu: apt install g++), name it in the environment variable CXX, or set false"
        )


def get_generator(config, model, device):
    """The mesh generator of a model."""
    generation = config["generation"]
    return Generator(
        model,
        threshold=config["test"]["threshold"],
        device=device,
        seed=config["training"]["seed"],
        **{
            key: generation[key]
            for key in (
                "resolution_0", "upsampling_steps", "padding", "simplify_nfaces",
                "root_steps", "refinement_step", "refine_max_faces", "with_colors",
                "fill_cavities", "smallest_part",
            )
        },
    )


def get_renderer(config, model, device):
    """The renderer of a model."""
    rendering = config["rendering"]
    return Renderer(
        model,
        n_steps=tuple(rendering["ray_sampling_accuracy"]),
        background=rendering["background"],
        coarse_bounds=config["model"]["coarse_bounds"],
        device=device,
    )


def _construct(cls, key, arguments, **fixed):
    """``cls(**arguments, **fixed)``, with errors that name the config key."""
    accepted = {
        name: parameter
        for name, parameter in inspect.signature(cls).parameters.items()
        if name not in fixed
    }
    for name, value in arguments.items():
        if name not in accepted:
            near = difflib.get_close_matches(name, accepted, n=1)
            known = f"known: {', '.join(accepted)}" if accepted else "it takes none"
            advice = f"did you mean {near[0]}?" if near else known
            raise InputError(f"{key}: unknown argument {name}; {advice}")
        default, annotation = accepted[name].default, accepted[name].annotation
        fits = {tuple: list, float: (int, float)}.get(type(default), type(default))
        wanted = "a list" if isinstance(default, tuple) else type(default).__name__
        if isinstance(annotation, UnionType):  # more than the default tells
            fits = wanted = annotation
        stray_flag = isinstance(value, bool) and not isinstance(default, bool)
        if stray_flag or not isinstance(value, fits):
            raise InputError(f"{key}.{name} must be {wanted} (default {default}), not {value!r}")
    arguments = {k: tuple(v) if isinstance(v, list) else v for k, v in arguments.items()}
    try:
        return cls(**arguments, **fixed)
    except (ValueError, TypeError) as err:
        raise InputError(f"{key}: {err}") from err


def get_optimizer(config, model):
    """Adam over all weights (method, section 6)."""
    return torch.optim.Adam(model.parameters(), lr=config["training"]["learning_rate"], fused=True)
