"""The product against its plain twin, part by part, in one run: how many times as fast.

    python -m benchmarks.compare [--only PART ...] [--repeats 3]

Both sides alternate, with the same number of threads; seconds are medians. The plain twin (``plain.py``)
is the method as it is written down, in whole tensors. Where it would take hours it does a share of the
work and its time is scaled up; the table says so. The first run makes the scene of scripts/demo.sh and
trains a model on it (``trained.yaml``), both in out/benchmarks: that takes a quarter of an hour.
The part ``fields`` compares two fields of im2mesh, the paper's with the hash grid of sharp.yaml.
"""

import argparse
import copy
import itertools
import os
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import mean, median

import torch
import trimesh
from torch.utils.data import default_collate
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from benchmarks import plain
from benchmarks.common import (
    machine_line, markdown_table, matmul_rate, measure_alternately, peak_memory, timed,
)
from benchmarks.evaluate import evaluate_mesh_plainly
from benchmarks.quality import TRAINERS, near, sharp, train, without_breaks
from benchmarks.shape import conditional_batch, fitted_conditional_model
from im2mesh import checkpoints, geometry, meshing
from im2mesh.commands.setup import get_dataset, load_trained_model
from im2mesh.config import load_config, method_module
from im2mesh.data.fields import read_camera
from im2mesh.dvr.generation import Generator
from im2mesh.dvr.rendering import Renderer
from im2mesh.dvr.training import LOOK_EVERY, Trainer
from im2mesh.eval import evaluate_mesh, sample_mesh
from im2mesh.ext import new_mise
from im2mesh.synthetic import make_dtu_scene

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[1]
TRAINED = ROOT / "benchmarks/trained.yaml"
DEMO = ROOT / "benchmarks/demo_simple.yaml"
SHARP = ROOT / "configs/demo/synthetic_scene.yaml"
DTU = ROOT / "configs/multi_view_reconstruction/skull/ours_rgb.yaml"
SINGLE_VIEW = ROOT / "configs/single_view_reconstruction/multi_view_supervision/ours_combined.yaml"
N_VIEWS = 32
ROUND = LOOK_EVERY[1]  # iterations that a step is the mean of: looks at the grid are no farther apart
PLAIN_ROUND = range(0, N_VIEWS, 8)  # those of the plain twin
SETTLE = 192  # until the model goes on steadily with these losses
SINGLE_VIEW_SETTLE = 40
SINGLE_VIEW_ROUND = range(SINGLE_VIEW_SETTLE, SINGLE_VIEW_SETTLE + 4)


def scene():
    """The config of ``trained.yaml``; its dataset is made where it is missing."""
    config = load_config(TRAINED, ["test.model_file=model.pt"])
    folder = Path(config["data"]["path"])
    if not folder.exists():
        print(f"making the scene {folder}", flush=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            make_dtu_scene(Path(temporary) / "scene")
            os.rename(Path(temporary) / "scene", folder)
    return config


def trained_model():
    """The config of ``trained.yaml`` and its model, trained where that is not done."""
    config = scene()
    print("training (returns at once if that is done)", flush=True)
    train(config)
    return config, load_trained_model(config, CPU)


def training_step(repeats):
    """DTU configuration on the trained model, 2048 rays: two numbers of steps and both precisions."""
    config, trained = trained_model()
    dtu = load_config(
        DTU,
        [f"data.path={config['data']['path']}", "data.classes=[scan1]", "data.n_views=0",
         "data.ignore_image_idx=[]"],
    )
    method = method_module(dtu)
    model = method.get_model(dtu)
    model.load_state_dict(trained.state_dict())
    optimizer = method.get_optimizer(dtu, model)
    state = checkpoints.load(Path(config["training"]["out_dir"], "model.pt"))
    optimizer.load_state_dict(state["optimizer"])  # moments as in the middle of a run
    trainer = method.get_trainer(dtu, model, optimizer, CPU)
    dataset = get_dataset(dtu, "train")
    batches = [default_collate([dataset[i]]) for i in range(N_VIEWS)]
    steps = partial(train_steps, batches)
    iterations = itertools.count()

    def go_on(count=ROUND, precision=None):
        trainer.options = replace(trainer.options, precision=precision)
        steps(trainer, itertools.islice(iterations, count))

    go_on(SETTLE)
    rows, shares = [], []
    for n_steps in (16, 128):
        model.depth_function = replace(model.depth_function, init_resolution=n_steps)
        plain_trainer = taking_over(plain.PlainTrainer, trainer, dtu)
        rate = matmul_rate()
        slow, fast, reduced = measure_alternately(
            [(partial(steps, plain_trainer, PLAIN_ROUND), len(PLAIN_ROUND)),
             (go_on, ROUND),
             (partial(go_on, precision=torch.bfloat16), ROUND)],
            repeats,
        )
        rate = (rate + matmul_rate()) / 2
        own = operations(go_on) / ROUND
        whole = operations(partial(steps, plain_trainer, PLAIN_ROUND)) / len(PLAIN_ROUND)
        name = f"training step, DTU, {n_steps} steps"
        wanted = 4 if n_steps == 16 else 10
        rows += [(name, slow, fast, wanted, ""), (f"{name}, bfloat16", slow, reduced, wanted, "")]
        shares.append((name, whole, own, fast, rate))
    return rows, shares


def single_view_step(repeats):
    """8 objects x 1024 rays, resnet18, hidden 512: in full and in reduced precision."""
    config, model, batch = fitted_single_view(512, n_objects=8)
    method = method_module(config)
    trainer = method.get_trainer(config, model, method.get_optimizer(config, model), CPU)
    steps = partial(train_steps, [batch])
    steps(trainer, range(SINGLE_VIEW_SETTLE))
    trainers = [
        taking_over(plain.PlainTrainer, trainer, config),
        taking_over(Trainer, trainer, config),
        taking_over(Trainer, trainer, config, precision=torch.bfloat16),
    ]
    n_steps = len(SINGLE_VIEW_ROUND)
    whole, own = (operations(partial(steps, t, SINGLE_VIEW_ROUND)) / n_steps for t in trainers[:2])
    rate = matmul_rate()
    slow, fast, reduced = measure_alternately(
        [(partial(steps, t, SINGLE_VIEW_ROUND), n_steps) for t in trainers], repeats
    )
    rate = (rate + matmul_rate()) / 2
    name = "training step, single view, 8 x 1024 rays, 16 steps"
    rows = [(name, slow, fast, 3, ""), (f"{name}, bfloat16", slow, reduced, 3, "")]
    return rows, [(name, whole, own, fast, rate)]


def train_steps(batches, trainer, iterations):
    """Some iterations, each on the next of the batches."""
    for iteration in iterations:
        trainer.train_step(batches[iteration % len(batches)], iteration)


def taking_over(trainer_class, trainer, config, **options):
    """A trainer that goes on where another is, with a model and an optimizer of its own."""
    model = copy.deepcopy(trainer.model)
    optimizer = method_module(config).get_optimizer(config, model)
    optimizer.load_state_dict(copy.deepcopy(trainer.optimizer.state_dict()))
    return trainer_class(model, optimizer, replace(trainer.options, **options))


class Operations(TorchDispatchMode):
    """Counts those of matrix products and convolutions.

    PyTorch's own FlopCounterMode does not bear gradients taken inside of a step.
    """

    def __init__(self):
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        count = flop_registry.get(function.overloadpacket)
        if count is not None:
            self.total += count(*args, **(kwargs or {}), out_val=result)
        return result


def operations(function):
    """Floating-point operations of the matrix products and convolutions in a call."""
    with Operations() as counter:
        function()
    return counter.total


def time_to_quality(repeats):
    """Training time on the demo scene until chamferL1 is 0.012; means over as many seeds."""
    config = scene()
    rate = matmul_rate()
    found = []
    for name in ("plain twin", "im2mesh"):
        runs = [until_good(config, TRAINERS[name], seed) for seed in range(repeats)]
        iterations = [run.iteration for run in runs]
        print(f"{name}: good enough after {iterations} iterations", flush=True)
        trainer, demo = runs[-1].trainer, runs[-1].config
        dataset = get_dataset(demo, "train")
        batch = default_collate([dataset[i] for i in range(demo["training"]["batch_size"])])
        model = trainer.model
        model.depth_function = replace(model.depth_function, schedule_milestones=())  # 16 steps for both
        per_step = operations(
            lambda: [trainer.train_step(batch, iterations[-1] + i) for i in range(ROUND)]
        ) / ROUND
        found.append((mean(run.seconds for run in runs), mean(iterations), per_step))
    rate = (rate + matmul_rate()) / 2
    (slow, _, whole), (fast, n_steps, own) = found
    return (
        [("training to chamferL1 0.012, demo scene", slow, fast, 5, f"means of {repeats} seeds")],
        [("training step, demo scene, 16 steps", whole, own, fast / n_steps, rate)],
    )


def until_good(config, trainer_class, seed):
    """A run on the demo scene that ended when its mesh was good enough."""
    with tempfile.TemporaryDirectory() as out_dir:
        demo = without_breaks(DEMO, [f"data.path={config['data']['path']}"], seed, out_dir)
        return train(demo, trainer_class, goals={"chamferL1 0.012": near(0.012)})


def fields(repeats):
    """Training time of the demo scene's field, and of the paper's, to the same quality; medians."""
    goals = {"chamferL1 0.0045": near(0.0045), "25 dB": sharp(25)}
    seconds, missed = {}, set()
    for config_file in (DEMO, SHARP):
        for seed in range(repeats):
            with tempfile.TemporaryDirectory() as out_dir:
                place = f"data.path={scene()['data']['path']}"
                config = without_breaks(config_file, [place], seed, out_dir)
                run = train(config, goals=goals, look_every=50)
            for goal in goals:
                seconds.setdefault((goal, config_file), []).append(run.reached.get(goal, run.seconds))
                if goal not in run.reached:
                    missed.add(f"{config_file.name} ends before {goal}")
            print(f"{config_file.name}, seed {seed}: reached {run.reached}, {run.seconds:.0f} s", flush=True)
    return [
        (f"training to {goal}, demo scene, paper's field against hash grid",
         *(median(seconds[goal, config_file]) for config_file in (DEMO, SHARP)), wanted,
         "; ".join([f"medians of {repeats} seeds", *sorted(m for m in missed if m.endswith(goal))]))
        for goal, wanted in zip(goals, (4, ""))
    ], []


def rendering(repeats, size=400, n_steps=1024, n_plain=128):
    """One picture with colour, depth and normals."""
    config, model = trained_model()
    [entry] = get_dataset(config, "render").entries
    camera = read_camera(entry.folder / "cameras.npz", 0)
    to_image = geometry.object_to_image(camera["camera_mat"], camera["world_mat"], camera["scale_mat"])
    origins, directions = (
        t[0] for t in geometry.camera_rays(geometry.pixel_centers(size, size)[None], to_image[None])
    )
    some = torch.randperm(size**2, generator=torch.Generator().manual_seed(0))[:n_plain]
    renderer = Renderer(model, n_steps=(n_steps, n_steps + 1))
    slow, fast = measure_alternately(
        [(partial(plain.render, model, origins[some], directions[some], n_steps), n_plain / size**2),
         (lambda: renderer.render(to_image, size, size, bounds=renderer.bounds()), 1)],
        repeats,
    )
    name = f"rendering {size}x{size}, {n_steps} steps"
    return [(name, slow, fast, 15, f"plain: {n_plain} rays, scaled")], []


def mesh(repeats, resolution=256, n_planes=4, n_refined=3):
    """256^3 cells: extraction alone, and with 30 steps of refinement."""
    _, model = trained_model()
    field = model.logit_field()
    axis = torch.linspace(-0.5, 0.5, resolution + 1)
    planes = axis[:: resolution // (n_planes - 1)][:n_planes]
    extract = partial(meshing.extract_mesh, field, resolution_0=32, upsampling_steps=3)
    extracted = extract()
    options = {"max_faces": 10000, "tau": 0.5}

    def refine(function, field, n_steps):
        function(
            extracted.vertices, extracted.faces, field, n_steps=n_steps,
            generator=torch.Generator().manual_seed(0), **options,
        )

    dense, asked, fast, slow_refined, fast_refined = measure_alternately(
        [(partial(plain.dense_values, field, planes, axis), len(planes) / len(axis)),
         (partial(plain_mise, field, 32, 3), 1),
         (extract, 1),
         (partial(refine, plain.refine, lambda p: model.decoder(p)[:, 0], n_refined), n_refined / 30),
         (partial(refine, meshing.refine, model.logit_and_gradient(), 30), 1)],
        repeats,
    )
    scaled = f"plain: {len(planes)} of {len(axis)} planes"
    refined = f"{n_refined} of 30 refinement steps"
    name = f"mesh {resolution}^3"
    with_refinement = f"{name}, with refinement"
    fast_total = fast + fast_refined
    return [
        (f"{name}, against the dense grid", dense, fast, 1.5, f"{scaled}, scaled"),
        (f"{name}, against MISE", asked, fast, 1.5, ""),
        (f"{with_refinement}, against the dense grid", dense + slow_refined, fast_total, 3,
         f"{scaled}, {refined}, scaled"),
        (f"{with_refinement}, against MISE", asked + slow_refined, fast_total, 3,
         f"plain: {refined}, scaled"),
    ], []


def plain_mise(field, resolution_0, upsampling_steps):
    """Every point that MISE asks for, evaluated."""
    mise = new_mise(resolution_0, upsampling_steps, 0.0)
    while len(points := mise.query()):
        mise.update(points, meshing.evaluate(field, points / mise.resolution - 0.5))
    return mise.cells()


def large_mesh(repeats):
    """1024^3 against 256^3 cells: seconds once, and the memory of a fresh process."""
    _, model = trained_model()
    generators = [
        Generator(model, resolution_0=32, upsampling_steps=steps, refinement_step=0, with_colors=False)
        for steps in (3, 5)
    ]
    small, large = (timed(generator.generate)[0] for generator in generators)
    memory = peak_memory(Generator.generate, generators[1])
    note = f"{large / small:.1f} times the time of 256^3 (asked: at most 20), {memory / 1024:.2f} GiB (4)"
    return [("mesh 1024^3", float("nan"), large, float("nan"), note)], []


def evaluation(repeats, n_points=100_000):
    """Metrics of one mesh."""
    predicted = trimesh.creation.icosphere(subdivisions=6, radius=0.40)
    truth = trimesh.creation.icosphere(subdivisions=6, radius=0.41)
    others = (*sample_mesh(truth, n_points, seed=1), n_points)
    repeats = max(repeats, 7)
    meshes = iter([predicted.copy() for _ in range(repeats + 1)])  # a mesh caches areas and normals
    n_threads = torch.get_num_threads()
    slow, fast = measure_alternately(
        [(lambda: evaluate_mesh_plainly(next(meshes), *others), 1),
         (lambda: evaluate_mesh(predicted, *others, n_threads=n_threads), 1)],
        repeats,
    )
    return [(f"evaluation of a mesh, {n_points} points", slow, fast, 6, "")], []


def fitted_single_view(hidden_size, n_objects):
    config = load_config(
        SINGLE_VIEW,
        [f"model.decoder_kwargs.hidden_size={hidden_size}", "model.encoder_kwargs.pretrained=false",
         "training.n_training_points=1024"],
    )
    batch = conditional_batch(n_objects)
    return config, fitted_conditional_model(config, batch), batch


PARTS = {
    part.__name__: part
    for part in (
        evaluation, training_step, single_view_step, rendering, mesh, large_mesh, time_to_quality, fields,
    )
}


def main():
    parser = argparse.ArgumentParser(description="the product against its plain twin")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART",
                        help=f"of {', '.join(PARTS)}")
    parser.add_argument("--repeats", type=int, default=3, help="of each side; the median counts")
    args = parser.parse_args()

    print(machine_line(), flush=True)
    rows, shares = [], []
    for name in args.only:
        part_rows, part_shares = PARTS[name](args.repeats)
        rows += [(work, slow, fast, slow / fast, wanted, note)
                 for work, slow, fast, wanted, note in part_rows]
        shares += part_shares
        for row in rows[-len(part_rows):]:
            print(row, flush=True)
    print()
    header = ("work", "plain twin, or the paper's field [s]", "im2mesh [s]", "times as fast", "asked", "")
    print(markdown_table(header, rows))
    if shares:
        print("\nOf a training step, what matrix products of the same size in one piece would take:\n")
        header = ("work", "plain twin [GFLOP]", "im2mesh [GFLOP]", "fewer", "seconds",
                  "matmul [GFLOP/s]", "share (limit 1.0)")
        print(markdown_table(
            header,
            [(work, whole / 1e9, own / 1e9, whole / own, seconds, rate / 1e9, own / rate / seconds)
             for work, whole, own, seconds, rate in shares],
        ))
    print("\n" + machine_line())


if __name__ == "__main__":
    main()
