"""How time and memory grow: rays, steps, objects, resolution of the mesh, size of the picture.

    python -m benchmarks.growth [PICTURE.png] [--repeats 3]

Draws both against each of them, on logarithmic axes, with the exponent of a power law through the upper
half of the points (small sizes show what a call costs at least). Needs the extras "benchmarks".
"""

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path

import matplotlib
import numpy as np

from benchmarks.common import machine_line, markdown_table, measure, peak_memory
from benchmarks.shape import (
    conditional_batch, fitted_conditional_model, fitted_model, view_batch,
)
from benchmarks.train_step import ITERATION, make_trainer, small_twin
from im2mesh import geometry
from im2mesh.config import load_config, method_module
from im2mesh.dvr.generation import Generator
from im2mesh.dvr.rendering import Renderer
from im2mesh.dvr.training import Trainer

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402
from matplotlib.ticker import LogLocator  # noqa: E402

PICTURE = Path(__file__).with_name("growth.png")
SINGLE_VIEW = (
    Path(__file__).parents[1] / "configs/single_view_reconstruction/cpu/synthetic_combined.yaml"
)
HIDDEN = 128


def training(n_rays=2048, n_steps=64):
    """A step of the DTU configuration: the work and a small one like it."""
    trainer = make_trainer(HIDDEN, n_rays)
    model = trainer.model
    model.depth_function = replace(model.depth_function, init_resolution=n_steps)
    trainer.bounds.update(model.logit_field())
    batch = view_batch()
    return (Trainer.train_step, trainer, batch, ITERATION), (small_twin(trainer), batch, ITERATION)


def objects(n_objects):
    """A step of single-view training."""
    config = load_config(SINGLE_VIEW, ["training.n_training_points=256", "training.precision=float32"])
    batch = conditional_batch(n_objects, size=96, input_size=80)
    model = fitted_conditional_model(config, batch)
    method = method_module(config)
    trainer = method.get_trainer(config, model, method.get_optimizer(config, model), "cpu")
    one = {name: value[:2] for name, value in batch.items()}
    return (Trainer.train_step, trainer, batch, ITERATION), (trainer, one, ITERATION)


def mesh(resolution):
    """Extraction and colours, without refinement, whose cost depends on its number of faces only."""
    _, model = fitted_model(HIDDEN)
    options = {"refinement_step": 0, "resolution_0": 32}
    steps = int(np.log2(resolution // 32))
    generator = Generator(model, upsampling_steps=steps, **options)
    return (Generator.generate, generator), (Generator(model, upsampling_steps=0, **options),)


def picture(size):
    """A square picture at 256 steps."""
    _, model = fitted_model(HIDDEN)
    renderer = Renderer(model, n_steps=(256, 257))
    camera = geometry.perspective(33, size, size) @ geometry.look_at((1.1, 0.9, -1.6))
    return (render, renderer, camera, size), (renderer, camera, 8)


def render(renderer, camera, size):
    return renderer.render(camera, size, size, bounds=renderer.bounds())


CURVES = {  # title: (work, sizes)
    "rays of a training step": (training, (512, 1024, 2048, 4096, 8192)),
    "steps per ray of a training step": (lambda n: training(n_steps=n), (16, 32, 64, 128, 256, 512)),
    "objects of a training step": (objects, (2, 4, 8, 16, 32)),
    "cells per axis of a mesh": (mesh, (64, 128, 256, 512)),
    "pixels per side of a picture": (picture, (64, 128, 256, 512)),
}


def exponent(sizes, values):
    """Of a power law through the upper half of the points."""
    half = len(sizes) // 2
    return np.polyfit(np.log(sizes[half:]), np.log(values[half:]), 1)[0]


def main():
    parser = argparse.ArgumentParser(description="how time and memory grow")
    parser.add_argument("picture", nargs="?", type=Path, default=PICTURE)
    parser.add_argument("--repeats", type=int, default=3, help="timed calls; the median counts")
    args = parser.parse_args()

    print(machine_line(), flush=True)
    figure, axes = pyplot.subplots(2, len(CURVES), figsize=(4 * len(CURVES), 7), layout="constrained")
    rows = []
    for (title, (work, sizes)), column in zip(CURVES.items(), axes.T):
        seconds, memory = [], []
        for size in sizes:
            (function, *arguments), warm_up = work(size)
            seconds.append(measure(partial(function, *arguments), args.repeats))
            memory.append(max(peak_memory(function, *arguments, warm_up=warm_up), 0.1))
            print(title, size, f"{seconds[-1]:.3g} s, {memory[-1]:.3g} MiB", flush=True)
        exponents = exponent(sizes, seconds), exponent(sizes, memory)
        ends = f"{sizes[0]} to {sizes[-1]}"
        rows.append((title, ends, *(f"{e:.2f}" for e in exponents), seconds[-1], memory[-1]))
        for axis, values, unit, power in zip(column, (seconds, memory), ("seconds", "MiB"), exponents):
            axis.loglog(sizes, values, "o-")
            axis.set(xlabel=title, ylabel=unit, title=f"exponent {power:.2f}", xticks=sizes,
                     xticklabels=sizes)
            axis.minorticks_off()
            # At least a decade: what hardly grows shall look so.
            middle, spread = np.sqrt(min(values) * max(values)), max(values) / min(values)
            reach = np.sqrt(max(1.5 * spread, 10))
            axis.set_ylim(middle / reach, middle * reach)
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.yaxis.set_major_formatter("{x:g}")
            axis.grid(alpha=0.3)
    figure.savefig(args.picture, dpi=80)
    header = ("", "from ... to", "exponent of time", "of memory", "seconds at the end", "MiB")
    print("\n" + markdown_table(header, rows))


if __name__ == "__main__":
    main()
