"""Running the command-line programs in tests, and a model whose surface is known exactly."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
import yaml

from im2mesh import checkpoints
from im2mesh.dvr.fields.simple import ResidualField
from im2mesh.dvr.model import DVR
from im2mesh.dvr.raymarch import DepthFunction

ROOT = Path(__file__).resolve().parent.parent

SMALL = {
    "data": {
        "dataset_name": "DTU",
        "input_type": None,
        "split_model_for_images": True,
        "cache_fields": True,
    },
    "model": {"encoder": None, "c_dim": 0, "decoder_kwargs": {"hidden_size": 16}},
    "training": {
        "batch_size": 1,
        "batch_size_val": 1,
        "n_training_points": 64,
        "n_eval_points": 64,
        "validate_every": 0,
        "visualize_every": 0,
    },
    "generation": {"resolution_0": 8, "upsampling_steps": 1, "refinement_step": 2},
    "rendering": {"resolution": [8, 10], "ray_sampling_accuracy": [32, 33]},
}


def write_config(folder, data_path, **sections):
    """Write ``folder/config.yaml``, with out_dir ``folder/out``: ``SMALL``, changed by sections."""
    config = {name: dict(keys) for name, keys in SMALL.items()}
    config["data"]["path"] = str(data_path)
    config["training"]["out_dir"] = str(folder / "out")
    for name, keys in sections.items():
        config[name] = config.get(name, {}) | keys
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def run(program, *arguments):
    """Run ``<program>.py`` in this process, as ``python <program>.py ARGUMENTS``: its exit code."""
    before = sys.argv
    sys.argv = [f"{program}.py", *map(str, arguments), "--no-cuda"]
    try:
        runpy.run_path(str(ROOT / sys.argv[0]), run_name="__main__")
    except SystemExit as exit:
        return exit.code
    finally:
        sys.argv = before


def start(program, *arguments, **options):
    """Start ``<program>.py`` as a process of its own."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / f"{program}.py"), *map(str, arguments), "--no-cuda"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        **options,
    )


def octahedron(radius=0.3, slope=20.0, out_dim=4, **depth_function):
    """A model with ``logit = slope * (radius - |x| - |y| - |z|)`` and ``rgb = sigmoid(4 * p)``.

    Its occupied points are an octahedron with corners on the axes, of volume 4/3 radius^3.
    """
    decoder = ResidualField(hidden_size=16, out_dim=out_dim)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.zero_()  # the blocks hand on what they get
        decoder.fc_p.weight[:3], decoder.fc_p.weight[3:6] = torch.eye(3), -torch.eye(3)
        decoder.fc_out.weight[0, :6] = -slope
        decoder.fc_out.bias[0] = slope * radius
        if out_dim == 4:
            decoder.fc_out.weight[1:, :3] = 4 * torch.eye(3)
            decoder.fc_out.weight[1:, 3:6] = -4 * torch.eye(3)
    return DVR(decoder, depth_function=DepthFunction(**depth_function))


def save_model(path, model, **more):
    """Write a model as a checkpoint without optimizer."""
    checkpoints.save(path, {"model": model.state_dict(), "it": 7, **more})


def files(folder):
    """Relative paths of all files below a folder."""
    return sorted(str(p.relative_to(folder)) for p in Path(folder).rglob("*") if p.is_file())


def same(a, b):
    """Whether two nested structures are equal, tensors bit for bit."""
    if torch.is_tensor(a):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and (a == b or (np.isnan(a) and np.isnan(b)))
