"""Does speed cost quality? The same training by the product and by its plain twin, seed by seed.

    python -m benchmarks.quality CONFIG.yaml [--seeds 0 1 2] [--set key=value ...]

Both start from the same weights and see the same pixels; the plain twin evaluates every sample of
every ray and each loss term for itself (``benchmarks/plain.py``). It knows the paper's field and losses
only: with another config im2mesh is measured alone. Meshes and renderings are made the
same way for both. Results go to <out_dir>/quality.json as they come; a second call goes on there.
"""

import argparse
import json
import logging
import time
from contextlib import closing
from pathlib import Path
from statistics import mean

import pandas as pd
import torch
import trimesh

from benchmarks import plain
from benchmarks.common import machine_line, markdown_table
from im2mesh.commands.capture import view_matrices
from im2mesh.commands.evaluate import evaluate
from im2mesh.commands.generate import generate
from im2mesh.commands.render import render
from im2mesh.commands.setup import get_dataset, output_folder
from im2mesh.commands.train import Run
from im2mesh.config import load_config, method_module
from im2mesh.dvr.generation import Generator
from im2mesh.dvr.rendering import compare
from im2mesh.eval import evaluate_mesh
from im2mesh.files import atomic_path

DEVICE = torch.device("cpu")
TRAINERS = {"im2mesh": None, "plain twin": plain.PlainTrainer}
LOOK_RESOLUTION = 64  # cells per axis of the meshes that are looked at during training


class TimedRun(Run):
    """A training run that knows what its steps took and looks now and then at what it has reached.

    Parameters
    ----------
    goals : dict of functions (run) -> bool, by name
        The run ends when all have been met.
    look_every : int
        Iterations.

    Attributes
    ----------
    seconds : float
        Of the start from the visual hull and all training steps so far, without the loading of data and
        without the looks.
    reached : dict of float
        By goal: ``seconds`` when it was first met.
    """

    seconds = 0.0

    def __init__(self, config, trainer_class=None, goals=None, look_every=20):
        super().__init__(config, DEVICE)
        if trainer_class is not None:
            self.trainer = trainer_class(
                self.model, self.optimizer, self.trainer.options, DEVICE, self.trainer.seed
            )
        self.goals, self.look_every, self.reached = goals or {}, look_every, {}

    def _start_at_hull(self):
        start = time.perf_counter()
        super()._start_at_hull()
        self.seconds += time.perf_counter() - start

    def _step(self, batch):
        start = time.perf_counter()
        report = super()._step(batch)
        self.seconds += time.perf_counter() - start
        if (self.iteration + 1) % self.look_every == 0:
            for name, met in self.goals.items():
                if name not in self.reached and met(self):
                    self.reached[name] = self.seconds
        return report

    def _reason_to_stop(self, deadline, received):
        if self.goals and self.goals.keys() == self.reached.keys():
            return 0, "good enough"
        return super()._reason_to_stop(deadline, received)


def near(distance):
    """The goal of a chamferL1 of the mesh, 64 cells per axis, as small as that."""

    def met(run):
        mesh = Generator(
            run.model, resolution_0=LOOK_RESOLUTION // 2, upsampling_steps=1, refinement_step=0,
            with_colors=False,
        ).generate()
        truth = get_dataset(run.config, "eval")[0]
        points, normals = (truth[f"pointcloud.{name}"].numpy() for name in ("points", "normals"))
        mesh = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)
        return evaluate_mesh(mesh, points, normals)["chamferL1"] <= distance

    return met


def sharp(psnr):
    """The goal of a PSNR of renderings, inside the masks, as high as that: of every eighth training view."""

    def met(run):
        dataset = get_dataset(run.config, "render")
        images, [entry] = dataset.fields["img"], dataset.entries
        renderer = method_module(run.config).get_renderer(run.config, run.model.eval(), DEVICE)
        bounds, views = renderer.bounds(), images.views(entry.folder)[::8]
        found = []
        for view, matrix in zip(views, view_matrices(entry, views)):
            true = images.load(entry.folder, view)
            rendering = renderer.render(matrix, *true[""].shape[:2], bounds=bounds)
            found.append(compare(rendering, true[""], true["mask"])["psnr"])
        return mean(found) >= psnr

    return met


def without_breaks(config_file, overrides, seed, out_dir):
    """A config for one training that nothing interrupts, and for what is made of it."""
    return load_config(
        config_file,
        [*overrides, f"training.seed={seed}", f"training.out_dir={out_dir}", "training.validate_every=0",
         "training.visualize_every=0", "training.print_every=0", "test.model_file=model.pt",
         "rendering.n_views=0"],
    )


def train(config, trainer_class=None, **options):
    """Train to the end (or until all goals are met); gives the :class:`TimedRun`."""
    run = TimedRun(config, trainer_class, **options)
    with closing(run.board):
        run.loop(float("inf"), [])
    return run


def measure_quality(config):
    """chamferL1 (nan without a true cloud), mask IoU and PSNR of a trained model, by the commands."""
    render(config, DEVICE, None)
    views = pd.read_csv(output_folder(config, config["rendering"]["render_dir"], "metrics.csv"))
    found = {"mask IoU": float(views["mask_iou"].mean()), "PSNR [dB]": float(views["psnr"].mean())}
    [entry] = get_dataset(config, "render").entries
    found["chamferL1"] = float("nan")
    if (entry.folder / config["data"]["pointcloud_chamfer_file"]).exists():
        generate(config, DEVICE, argparse.Namespace(overwrite=True))
        evaluate(config, DEVICE, argparse.Namespace(workers=1))
        folder = output_folder(config, config["generation"]["generation_dir"])
        table = pd.read_csv(folder / f"{config['test']['eval_file_name']}.csv", index_col="class")
        found["chamferL1"] = float(table.loc["mean", "chamferL1"])
    return found


def trainings_parser(description):
    """Arguments of a benchmark that trains a config with several seeds."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("config", help="a config of one object and many views")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", nargs="+", action="extend", default=[], help="key=value, as in train.py")
    return parser


def measured_once(results_file, seeds, names, measure):
    """``measure(name, seed, key)`` of all names and seeds by key, kept in a file as they come.

    What the file holds already is not measured again.
    """
    logging.getLogger("im2mesh").setLevel(logging.WARNING)
    results = json.loads(results_file.read_text()) if results_file.exists() else {}
    for seed in seeds:
        for name in names:
            key = f"{name}, seed {seed}"
            if key in results:
                continue
            results[key] = measure(name, seed, key)
            print(key, results[key], flush=True)
            with atomic_path(results_file) as path:
                Path(path).write_text(json.dumps(results, indent=1))
    return results


def main():
    args = trainings_parser("quality at the same number of iterations").parse_args()
    config = load_config(args.config, args.set)
    out_dir = output_folder(config, "quality")
    trainers = TRAINERS
    if not plain.knows(config):
        trainers = {name: own for name, own in TRAINERS.items() if own is None}

    def measure(name, seed, key):
        config = without_breaks(args.config, args.set, seed, out_dir / key)
        run = train(config, trainers[name])
        return {"seconds": run.seconds, **measure_quality(config)}

    results = measured_once(out_dir / "quality.json", args.seeds, trainers, measure)
    metrics = ("chamferL1", "mask IoU", "PSNR [dB]", "seconds")
    rows = [(key, *(row[metric] for metric in metrics)) for key, row in results.items()]
    for name in trainers:
        of_name = [row for key, row in results.items() if key.startswith(name)]
        rows.append((f"{name}, mean", *(mean(row[metric] for row in of_name) for metric in metrics)))
    print(machine_line())
    print(f"{args.config} {' '.join(args.set)}, {config['training']['max_iterations']} iterations\n")
    print(markdown_table(("", *metrics), rows))


if __name__ == "__main__":
    main()
