"""The four programs, end to end, on a sphere seen in five small views."""

import io
import os
import re
import signal
import sys

import imageio.v3 as imageio
import numpy as np
import pandas as pd
import pytest
import torch
import trimesh
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from im2mesh import checkpoints
from im2mesh.config import load_config
from im2mesh.dvr.rendering import Renderer, turntable, up_axis
from im2mesh.dvr.training import Trainer
from im2mesh.eval import evaluate_mesh
from im2mesh.geometry import object_to_image
from im2mesh.meshing import load_mesh, save_mesh, signed_volume
from tests.programs import files, octahedron, run, same, save_model, start, write_config
from tests.sphere_scene import SCALE, write_sphere_scene

RADIUS = 0.3  # of the octahedron that stands for a trained model
N_VIEWS = 5  # an epoch of the scene, too


@pytest.fixture
def trained(project, out):
    """``project``, with the octahedron as the trained model."""
    save_model(out / "model_best.pt", octahedron(RADIUS))
    return project


@pytest.fixture
def on_step(monkeypatch):
    """Have a function called with the trainer and the iteration before each training step."""

    def install(function):
        step = Trainer.train_step

        def train_step(trainer, batch, iteration):
            function(trainer, iteration)
            return step(trainer, batch, iteration)

        monkeypatch.setattr(Trainer, "train_step", train_step)

    return install


def board(out):
    return EventAccumulator(str(out / "logs"), {"scalars": 0, "tensors": 0, "images": 0}).Reload()


def series(events, tag):
    return [(event.step, event.value) for event in events.Scalars(tag)]


def contents(folder):
    return {name: (folder / name).read_bytes() for name in files(folder)}


# ---- all of them ---------------------------------------------------------------------------------


def test_from_photographs_to_figures(project, out, tmp_path, monkeypatch, capsys):
    """What each program writes, and that it writes nowhere else."""
    config = project(
        model={"decoder_kwargs": {"hidden_size": 32}},
        training={
            "max_iterations": 60, "learning_rate": 0.005, "n_training_points": 320,
            "print_every": 20, "validate_every": 30, "visualize_every": 60, "backup_every": 40,
        },
        generation={"resolution_0": 16},
        rendering={"n_views": 2, "n_start_view": 1, "colors": ["rgb", "depth"]},
    )
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    before = contents(tmp_path)

    assert run("train", config) == 0
    logs = [name for name in files(out) if name.startswith("logs/events.out.tfevents.")]
    assert len(logs) == 1
    assert set(files(out)) - set(logs) == {
        "config.yaml", "model.pt", "model_40.pt", "model_best.pt", "train.log",
        *(f"vis/view_{i}.png" for i in range(4)), "vis/mesh_0.ply",
    }
    assert load_config(out / "config.yaml") == load_config(config)
    assert checkpoints.load(out / "model.pt").keys() >= {
        "model", "optimizer", "epoch_it", "batch_it", "it", "loss_val_best", "config",
    }

    known = set(files(out))
    assert run("generate", config) == 0
    new = set(files(out)) - known
    assert new == {
        "generate.log",
        "generation/meshes/scan1/scan1.ply", "generation/meshes/scan1/scan1_world_scale.ply",
        "generation/vis/scan1/00_mesh.ply",
        "generation/time_generation_full.pkl", "generation/time_generation.pkl",
        "generation/generated.jsonl",
    }

    known |= new
    assert run("render", config) == 0
    new = set(files(out)) - known
    assert new == {
        "render.log", "rendering/metrics.csv",
        "rendering/scan1/scan1_rgb.gif", "rendering/scan1/scan1_depth.gif",
        *(f"rendering/scan1/scan1_{v:03d}_{k}.jpg" for v in (1, 2) for k in ("rgb", "depth")),
    }
    assert pd.read_csv(out / "rendering/metrics.csv")["mask_iou"].min() > 0.7

    known |= new
    assert run("eval_meshes", config) == 0
    assert set(files(out)) - known == {
        "eval_meshes.log", "generation/eval_meshes.csv", "generation/eval_meshesfull.pkl",
    }
    table = pd.read_csv(out / "generation/eval_meshes.csv", index_col="class")
    assert table.loc["scan1", "chamferL1"] < 0.15
    assert "chamferL1" in capsys.readouterr().out

    after = contents(tmp_path)
    assert {name: after.get(name) for name in before} == before
    assert {name for name in after if not name.startswith("run/out/")} == set(before)


def test_stopping_a_process_saves_and_tells_how_to_go_on(tmp_path, tiny_dtu):
    """SIGTERM to the program alone, Ctrl-C to it and its workers."""
    training = {"checkpoint_every": 0, "print_every": 1, "n_workers": 2}
    processes = {}
    for number in (signal.SIGTERM, signal.SIGINT):
        folder = tmp_path / number.name
        config = write_config(
            folder, tiny_dtu, training=training, data={"cache_fields": number == signal.SIGTERM}
        )
        processes[number] = folder / "out", start("train", config, start_new_session=True)
    for number, (out, process) in processes.items():
        lines = iter(process.stdout.readline, "")
        assert any("iteration 3:" in line for line in lines)
        if number == signal.SIGTERM:
            process.send_signal(number)
        else:
            os.killpg(process.pid, number)
    for number, (out, process) in processes.items():
        output, errors = process.communicate(timeout=300)
        assert process.returncode == 128 + number
        assert errors == ""
        iteration = checkpoints.load(out / "model.pt")["it"]
        assert output.splitlines()[-1] == (
            f"stopped by {number.name} at iteration {iteration}; saved {out / 'model.pt'}, "
            "the same command continues from there"
        )


def test_a_process_ends_with_2_and_one_line_on_bad_input(tmp_path):
    config = write_config(tmp_path, tmp_path / "nowhere")
    save_model(tmp_path / "out/model_best.pt", octahedron())
    processes = {
        program: start(program, config) for program in ("generate", "render", "eval_meshes")
    }
    for program, process in processes.items():
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 2, program
        assert errors.startswith(f"error: data.path: there is no folder {tmp_path / 'nowhere'}")
        assert errors.count("\n") == 1
        assert "Traceback" in (tmp_path / f"out/{program}.log").read_text()


# ---- train.py: the loop --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data, n_workers",
    [
        ({}, 0),
        ({"cache_fields": False}, 0),
        ({"cache_fields": False}, 2),
        ({"split_model_for_images": False}, 0),  # a random view in each epoch
    ],
)
def test_resumed_run_equals_the_uninterrupted_one(tmp_path, tiny_dtu, on_step, data, n_workers):
    def runs(name):
        march = {"n_steps": [20, 30], "schedule_ray_sampling": False}  # a random number of steps
        config = write_config(
            tmp_path / name,
            tiny_dtu,
            data=data,
            model={
                "patch_size": 2, "lambda_image_gradients": 1, "lambda_depth": 1,
                "lambda_sparse_depth": 1, "depth_function_kwargs": march,
            },
            training={
                "max_iterations": 24, "validate_every": 8, "print_every": 1, "backup_every": 20,
                "learning_rate": 0.002, "n_workers": n_workers, "scheduler_milestones": [2, 4],
            },
        )
        start_from(tmp_path / name / "out", octahedron())
        return config, tmp_path / name / "out"

    config, whole = runs("whole")
    assert run("train", config) == 0

    stops = {6, 17}  # in the middle of the epochs 1 and 3
    on_step(lambda _, iteration: iteration in stops and signal.raise_signal(signal.SIGTERM))
    config, parts = runs("parts")
    for iteration in (7, 18):
        assert run("train", config) == 128 + signal.SIGTERM
        assert checkpoints.load(parts / "model.pt")["it"] == iteration
        stops.remove(iteration - 1)
    assert run("train", config) == 0

    for name in ("model.pt", "model_best.pt", "model_20.pt"):
        states = [checkpoints.load(folder / name) for folder in (whole, parts)]
        for state in states:
            del state["config"]  # names out_dir
        assert same(*states), name
    boards = [board(folder) for folder in (whole, parts)]
    tags = set(boards[0].Tags()["scalars"]) - {"train/rays_per_second"}
    assert {"train/rgb", "train/normal", "val/mask_iou"} <= tags
    for tag in tags:
        assert series(boards[0], tag) == series(boards[1], tag), tag
    assert min(share for _, share in series(boards[0], "train/hit_share")) > 0


def test_exit_after_saves_and_returns_3(project, out, capsys):
    config = project(training={"max_iterations": 4})
    assert run("train", config, "--exit-after", "0") == 3
    assert f"saved {out / 'model.pt'}, the same command continues" in capsys.readouterr().out
    assert checkpoints.load(out / "model.pt")["it"] == 1
    assert run("train", config, "--exit-after", "1000") == 0
    assert checkpoints.load(out / "model.pt")["it"] == 4


def test_max_iterations_is_the_end_and_may_be_raised(project, out, capsys):
    assert run("train", project(training={"max_iterations": 3})) == 0
    saved = (out / "model.pt").read_bytes()
    assert run("train", project(training={"max_iterations": 3})) == 0
    assert "iteration 3 is reached already" in capsys.readouterr().out
    assert (out / "model.pt").read_bytes() == saved
    assert run("train", project(training={"max_iterations": 7})) == 0
    state = checkpoints.load(out / "model.pt")
    assert (state["it"], state["epoch_it"], state["batch_it"]) == (7, 1, 2)


def test_zero_means_never(project, out):
    never = dict.fromkeys(
        ("print_every", "checkpoint_every", "validate_every", "visualize_every", "backup_every"), 0
    )
    assert run("train", project(training={**never, "max_iterations": 12})) == 0
    names = {name for name in files(out) if not name.startswith("logs/")}
    assert names == {"config.yaml", "train.log", "model.pt"}
    assert board(out).Tags()["scalars"] == []


def test_learning_rate_falls_at_epochs(project, out, on_step):
    rates = []
    on_step(lambda trainer, _: rates.append(trainer.optimizer.param_groups[0]["lr"]))
    config = project(
        training={
            "learning_rate": 0.01, "scheduler_milestones": [1, 3], "scheduler_gamma": 0.1,
            "max_iterations": 4 * N_VIEWS, "print_every": 1,
        }
    )
    assert run("train", config) == 0
    expected = [0.01] * N_VIEWS + [0.001] * 2 * N_VIEWS + [0.0001] * N_VIEWS
    assert rates == pytest.approx(expected)
    logged = series(board(out), "train/learning_rate")
    assert logged == [(i + 1, pytest.approx(rate)) for i, rate in enumerate(expected)]


@pytest.mark.parametrize(
    "mode, best_iterations",
    [("minimize", [4, 6, 14]), ("maximize", [4, 8, 12])],
)
def test_best_model(project, out, monkeypatch, on_step, mode, best_iterations):
    values = iter([np.nan, 5.0, 3.0, 7.0, 3.0, 8.0, 1.0, np.nan])  # at iterations 2, 4 ... 16
    monkeypatch.setattr(Trainer, "evaluate", lambda *_: {"loss": 0.0, "mask_iou": next(values)})
    seen = []

    def note(trainer, iteration):
        if (out / "model_best.pt").exists():
            seen.append(checkpoints.load(out / "model_best.pt")["it"])

    on_step(note)
    training = {
        "model_selection_metric": "mask_iou", "model_selection_mode": mode, "validate_every": 2,
    }
    assert run("train", project(training={**training, "max_iterations": 8})) == 0
    assert run("train", project(training={**training, "max_iterations": 16})) == 0  # remembers
    assert sorted(set(seen)) == best_iterations
    best = {"minimize": 1, "maximize": 8}[mode]
    assert checkpoints.load(out / "model.pt")["loss_val_best"] == best


def test_best_model_is_remembered_by_the_checkpoint_of_the_same_iteration(
    project, out, monkeypatch, on_step
):
    """However a run ends, a worse model never takes the place of the best."""
    values = iter([5.0, 1.0, 3.0])  # at iterations 2, 4, 6
    monkeypatch.setattr(Trainer, "evaluate", lambda *_: {"loss": next(values)})
    crashes = [RuntimeError("power cut")]

    def crash(trainer, iteration):
        if iteration == 5 and crashes:
            raise crashes.pop()

    on_step(crash)
    config = project(training={"validate_every": 2, "checkpoint_every": 2, "max_iterations": 6})
    assert run("train", config) == 1
    assert run("train", config) == 0
    assert checkpoints.load(out / "model_best.pt")["it"] == 4


def test_unknown_selection_metric_is_told_before_training(project, out, capsys):
    config = project(training={"model_selection_metric": "mask_iuo"})
    assert run("train", config) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: training.model_selection_metric: validation gives no 'mask_iuo'")
    assert "mask_iou" in err and not (out / "logs").exists()


def test_selection_metric_that_the_data_cannot_give(project, capsys):
    config = project(
        training={"model_selection_metric": "loss_depth_eval", "validate_every": 1}
    )
    assert run("train", config) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: training.model_selection_metric: validation gives no")


@pytest.mark.parametrize("saved", [10, None])
def test_loss_that_is_not_finite_stops(project, out, on_step, monkeypatch, capsys, saved):
    def break_colors(trainer, iteration):
        if iteration == 13:
            monkeypatch.setattr(
                "im2mesh.dvr.losses.photometric", lambda rgb, _: rgb.sum(-1) * torch.nan
            )

    on_step(break_colors)
    start_from(out, octahedron())
    config = project(training={"checkpoint_every": saved or 0, "max_iterations": 20})
    assert run("train", config) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: iteration 13: the loss term rgb is not finite.")
    assert f"last good checkpoint: {out / 'model.pt'}" in err and "learning_rate" in err
    assert checkpoints.load(out / "model.pt")["it"] == (saved or 0)


def start_from(out, model):
    """Have training begin with a given model."""
    optimizer = torch.optim.Adam(model.parameters())
    save_model(out / "model.pt", model, optimizer=optimizer.state_dict(), it=0)


def test_absurd_learning_rate_names_the_first_term_that_breaks(project, out, capsys):
    config = project(training={"learning_rate": 1e30, "checkpoint_every": 0})
    assert run("train", config) == 2
    err = capsys.readouterr().err
    assert re.match(r"error: iteration 1: the loss term [\w, ]*(freespace|occupied)", err)
    assert "last good checkpoint: none yet" in err
    assert not (out / "model.pt").exists()


def test_published_checkpoints_without_our_entries_continue(project, out):
    """``batch_it`` and ``config`` are ours; the best loss is a numpy scalar; the file is no zip."""
    model = octahedron()
    state = {
        "model": model.state_dict(),
        "optimizer": torch.optim.Adam(model.parameters()).state_dict(),
        "epoch_it": 3, "it": 15, "loss_val_best": np.float64(-1e6),
    }
    out.mkdir(parents=True)
    torch.save(state, out / "model.pt", _use_new_zipfile_serialization=False)
    assert run("train", project(training={"max_iterations": 17, "validate_every": 1})) == 0
    state = checkpoints.load(out / "model.pt")
    assert (state["it"], state["epoch_it"], state["batch_it"]) == (17, 3, 2)
    assert state["loss_val_best"] == -1e6 and not (out / "model_best.pt").exists()


# ---- train.py: what it shows ---------------------------------------------------------------------


def test_tensorboard_holds_every_term_images_and_the_mesh(project, out):
    start_from(out, octahedron())
    config = project(
        model={
            "patch_size": 2, "lambda_image_gradients": 1, "lambda_depth": 1,
            "lambda_sparse_depth": 1,
        },
        training={
            "max_iterations": 4, "print_every": 2, "validate_every": 2, "visualize_every": 4,
            "n_training_points": 320,
        },
    )
    assert run("train", config) == 0
    events = board(out)
    terms = {
        "loss", "rgb", "image_gradients", "depth", "sparse_depth", "normal", "freespace", "occupied"
    }
    figures = {"gradient_norm", "hit_share", "learning_rate", "rays_per_second"}
    metrics = {
        "loss_rgb_eval", "loss_depth_eval", "loss_sparse_depth_val", "normal_loss_eval",
        "mask_intersection", "mask_iou",
    }
    assert set(events.Tags()["scalars"]) == {
        *(f"train/{name}" for name in terms | figures),
        *(f"val/{name}" for name in terms | metrics),
    }
    for tag in events.Tags()["scalars"]:
        assert [step for step, _ in series(events, tag)] == [2, 4], tag
    assert all(rate > 0 for _, rate in series(events, "train/rays_per_second"))
    logged = re.findall(r"iteration (\d+): loss ([\d.e+]+)", (out / "train.log").read_text())
    losses = [(int(step), float(loss)) for step, loss in logged]
    assert len(losses) == 2 + 2  # training and validation
    assert series(events, "train/loss") == [pytest.approx(pair, rel=1e-3) for pair in losses[::2]]
    assert series(events, "val/loss") == [pytest.approx(pair, rel=1e-3) for pair in losses[1::2]]

    # True view, colour, depth, normals side by side; as a file, too.
    for number in range(4):
        (event,) = events.Images(f"view_{number}")
        image = imageio.imread(io.BytesIO(event.encoded_image_string))
        assert event.step == 4 and image.shape == (16, 4 * 20, 3)
        np.testing.assert_array_equal(image, imageio.imread(out / f"vis/view_{number}.png"))
    first = imageio.imread(out.parent.parent / "tiny_dtu/scan1/scan1/image/000000.png")
    np.testing.assert_array_equal(imageio.imread(out / "vis/view_0.png")[:, :20], first)

    mesh = load_mesh(out / "vis/mesh_0.ply")
    colors = mesh.visual.vertex_colors[:, :3]
    for part, values in {1: mesh.vertices, 2: mesh.faces, 3: colors}.items():
        (event,) = events.Tensors(f"mesh_0_{part}")
        shown = event.tensor_proto.float_val
        np.testing.assert_allclose(np.reshape(shown, values.shape), values, atol=1e-6)


@pytest.mark.parametrize("overwrite", [True, False])
def test_visualizations_are_overwritten_or_numbered(project, out, overwrite):
    start_from(out, octahedron())
    config = project(
        training={
            "max_iterations": 4, "visualize_every": 2, "overwrite_visualization": overwrite,
        }
    )
    assert run("train", config) == 0
    suffixes = [""] if overwrite else ["_2", "_4"]
    assert set(files(out / "vis")) == {
        name
        for suffix in suffixes
        for name in [f"mesh_0{suffix}.ply", *(f"view_{i}{suffix}.png" for i in range(4))]
    }


def test_model_without_colors_trains_and_is_shown(project, out):
    config = project(
        model={"decoder_kwargs": {"hidden_size": 16, "out_dim": 1}, "lambda_rgb": 0},
        training={"max_iterations": 2, "visualize_every": 2, "validate_every": 2},
        generation={"with_colors": False},
        rendering={"colors": "normal"},
    )
    start_from(out, octahedron(out_dim=1))
    assert run("train", config) == 0
    assert "vis/mesh_0.ply" in files(out)
    assert run("generate", config) == 0
    assert run("render", config) == 0


def test_progress_bar_on_a_terminal(project, monkeypatch):
    class Terminal(io.StringIO):
        isatty = lambda self: True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert run("train", project(training={"max_iterations": 30, "print_every": 10})) == 0
    last = terminal.getvalue().split("\r")[-1]
    assert re.search(r"100%.* 30/30 \[\d\d:\d\d<\d\d:\d\d, *[\d.]+it/s, loss=[\d.]+\]", last)


def test_lines_where_there_is_no_terminal(project, capsys):
    assert run("train", project(training={"max_iterations": 20, "print_every": 10})) == 0
    line = r"epoch 2, iteration 10: loss [\d.]+, .*freespace [\d.]+, .* it/s, \d\d:\d\d left"
    captured = capsys.readouterr()
    assert re.search(line, captured.out) and captured.err == ""


# ---- generate.py ---------------------------------------------------------------------------------


def test_meshes_in_object_and_world_space(trained, out, capsys):
    assert run("generate", trained(generation={"resolution_0": 16, "refinement_step": 5})) == 0
    mesh = load_mesh(out / "generation/meshes/scan1/scan1.ply")
    assert mesh.is_watertight and mesh.volume == pytest.approx(4 / 3 * RADIUS**3, rel=0.02)
    expected = np.floor(255 / (1 + np.exp(-4 * mesh.vertices)))
    assert np.abs(mesh.visual.vertex_colors[:, :3] - expected).max() <= 1
    world = load_mesh(out / "generation/meshes/scan1/scan1_world_scale.ply")
    moved = mesh.vertices @ SCALE[:3, :3].T + SCALE[:3, 3]
    np.testing.assert_allclose(world.vertices, moved, rtol=1e-5)
    np.testing.assert_array_equal(world.faces, mesh.faces)
    np.testing.assert_array_equal(world.visual.vertex_colors, mesh.visual.vertex_colors)
    captured = capsys.readouterr()
    assert captured.err == ""
    assert f"[1/1] scan1/scan1: {len(mesh.vertices)} vertices" in captured.out


def test_mirror_in_the_scale_keeps_triangles_outwards(trained, out, tiny_dtu):
    path = tiny_dtu / "scan1/scan1/cameras.npz"
    cameras = dict(np.load(path))
    mirror = SCALE @ np.diag([1.0, 1, -1, 1])
    np.savez(path, **{**cameras, "scale_mat_0": mirror})
    assert run("generate", trained()) == 0
    folder = out / "generation/meshes/scan1"
    mesh, world = (load_mesh(folder / f"scan1{suffix}.ply") for suffix in ("", "_world_scale"))
    assert signed_volume(mesh.vertices, mesh.faces) > 0
    assert signed_volume(world.vertices, world.faces) == pytest.approx(
        200**3 * signed_volume(mesh.vertices, mesh.faces), rel=1e-4
    )


def test_options_of_generate(trained, out):
    path = out / "generation/meshes/scan1/scan1.off"
    config = trained(generation={"mesh_extension": "off", "refinement_step": 0})
    assert run("generate", config, "--upsampling-steps", "0") == 0
    coarse = load_mesh(path)
    assert run("generate", config, "--upsampling-steps", "1") == 0
    assert len(load_mesh(path).faces) > 3 * len(coarse.faces)
    assert run("generate", config, "--upsampling-steps", "0", "--refinement-step", "3") == 0
    refined = load_mesh(path)
    np.testing.assert_array_equal(refined.faces, coarse.faces)
    assert 0 < np.abs(refined.vertices - coarse.vertices).max() < 1e-3
    once = path.read_bytes()
    assert run("generate", config, "--upsampling-steps", "0", "--refinement-step", "3") == 0
    assert path.read_bytes() == once


@pytest.fixture
def three_objects(tiny_dtu):
    for place in ("scan1/scan2", "scan3/scan3"):
        write_sphere_scene(tiny_dtu / place)


def test_times_and_first_meshes(trained, out, three_objects):
    assert run("generate", trained(generation={"vis_n_outputs": 2})) == 0
    assert files(out / "generation/vis") == ["scan1/00_mesh.ply", "scan1/01_mesh.ply"]
    shown, mesh = (
        (out / "generation" / name).read_bytes()
        for name in ("vis/scan1/01_mesh.ply", "meshes/scan1/scan2.ply")
    )
    assert shown == mesh
    times = pd.read_pickle(out / "generation/time_generation_full.pkl")
    assert times[["class", "model"]].values.tolist() == [
        ["scan1", "scan1"], ["scan1", "scan2"], ["scan3", "scan3"],
    ]
    stages = times[["extraction", "refinement", "colors"]]
    assert (stages > 0).all(axis=None)
    np.testing.assert_allclose(times["total"], stages.sum(axis=1))
    means = pd.read_pickle(out / "generation/time_generation.pkl")
    assert means.index.tolist() == ["scan1", "scan3"]
    assert means.loc["scan1", "total"] == pytest.approx(times["total"][:2].mean())


def test_one_bad_object_does_not_stop_the_rest(trained, out, tiny_dtu, three_objects, capsys):
    (tiny_dtu / "scan1/scan2/cameras.npz").unlink()
    assert run("generate", trained()) == 4
    assert files(out / "generation/meshes") == [
        f"scan{i}/scan{i}{suffix}.ply" for i in (1, 3) for suffix in ("", "_world_scale")
    ]
    err = capsys.readouterr().err.splitlines()
    missing = tiny_dtu / "scan1/scan2/cameras.npz"
    assert err == [
        f"error: scan1/scan2: {missing}: no such file",
        "error: 1 of 3 objects got no mesh: scan1/scan2",
    ]
    assert len(pd.read_pickle(out / "generation/time_generation_full.pkl")) == 2


@pytest.mark.parametrize(
    "radius, code, words",
    [
        (-1, 4, ["mesh is empty", "0% of all rays hit", "mask IoU 0.000", "masks"]),
        (0.7, 0, ["touches the faces", "scale_mat"]),
        (2, 0, ["whole cube", "mask"]),
    ],
)
def test_diagnosis_of_a_bad_mesh(project, out, capsys, radius, code, words):
    slope = 4.0
    save_model(out / "model_best.pt", octahedron(radius, slope=slope))
    # The cube reaches from the centre, at |x| + |y| + |z| = 0, to the corners, at 1.5.
    low, high = 1 / (1 + np.exp(-slope * (radius - np.array([1.5, 0.0]))))
    assert run("generate", project(generation={"resolution_0": 8}, test={"threshold": 0.4})) == code
    err = capsys.readouterr().err
    assert err.startswith("warning: scan1/scan1: the mesh") and "test.threshold is 0.4" in err
    for word in words:
        assert word in err
    found = re.search(r"occupancy lies in \[([\d.e-]+), ([\d.e-]+)\]", err)
    if radius == 0.7:  # MISE need not look at the corners and at the centre
        assert low - 1e-3 <= float(found[1]) < 0.4 < float(found[2]) <= high + 1e-3
    else:
        assert [float(group) for group in found.groups()] == pytest.approx([low, high], rel=1e-3)
    assert re.search(r"in 5 views \d+% of the pixels are in the mask, .* mask IoU \d", err)
    assert ("1 of 1 objects got no mesh: scan1/scan1" in err) == (code == 4)
    assert load_mesh(out / "generation/meshes/scan1/scan1.ply").is_empty == (code == 4)


def test_network_with_nan_gets_no_mesh(project, out, capsys):
    model = octahedron()
    with torch.no_grad():
        model.decoder.fc_out.bias[0] = torch.nan
    save_model(out / "model_best.pt", model)
    assert run("generate", project()) == 4
    assert capsys.readouterr().err.startswith("error: scan1/scan1: the occupancy is NaN")
    assert not (out / "generation/meshes").exists()


def test_never_a_mesh_of_an_untrained_model(project, out, capsys):
    for program in ("generate", "render"):
        assert run(program, project()) == 2
        err = capsys.readouterr().err
        assert err.startswith(f"error: test.model_file: {out / 'model_best.pt'} does not exist")
        assert "train first" in err
    save_model(out / "model.pt", octahedron())
    assert run("generate", project()) == 2
    assert "model.pt" in capsys.readouterr().err
    assert files(out) == ["generate.log", "model.pt", "render.log"]
    assert run("generate", project(), "--set", "test.model_file=model.pt") == 0


def test_model_file_of_the_published_format_at_any_path(project, out, tmp_path):
    """Written by PyTorch 1.4: no zip, and the best loss a numpy scalar."""
    state = {"model": octahedron().state_dict(), "loss_val_best": np.float64(0.5)}
    torch.save(state, tmp_path / "published.pt", _use_new_zipfile_serialization=False)
    assert run("generate", project(test={"model_file": str(tmp_path / "published.pt")})) == 0
    assert load_mesh(out / "generation/meshes/scan1/scan1.ply").volume > 0


# ---- render.py -----------------------------------------------------------------------------------


def cameras(tiny_dtu, views):
    arrays = np.load(tiny_dtu / "scan1/scan1/cameras.npz")
    names = ("camera_mat", "world_mat", "scale_mat")
    return {
        view: object_to_image(*(torch.from_numpy(arrays[f"{name}_{view}"]) for name in names))
        for view in views
    }


def test_pictures_from_the_cameras_of_the_dataset(trained, out, tiny_dtu):
    config = trained(
        data={"ignore_image_idx": [1]},
        rendering={
            "n_views": 2, "n_start_view": 1, "extension": "png", "resolution": [7, 9],
            "colors": ["rgb", "depth", "normal"], "background": "black", "fps": 4,
        },
    )
    assert run("render", config) == 0
    renderer = Renderer(octahedron(RADIUS), n_steps=(32, 33), background="black")
    for view, matrix in cameras(tiny_dtu, [2, 3]).items():
        rendering = renderer.render(matrix, 7, 9)
        for kind in ("rgb", "depth", "normal"):
            picture = imageio.imread(out / f"rendering/scan1/scan1_{view:03d}_{kind}.png")
            expected = rendering.image(kind, "black").numpy()
            np.testing.assert_array_equal(picture, expected)
            assert len(np.unique(picture)) > 2
    animation = imageio.improps(out / "rendering/scan1/scan1_rgb.gif", plugin="pillow")
    assert animation.n_images == 2 and animation.shape[1:3] == (7, 9)
    assert len(files(out / "rendering/scan1")) == 2 * 3 + 3


def test_one_view_is_one_picture(trained, out):
    assert run("render", trained(rendering={"resolution": None, "extension": "jpg"})) == 0
    assert files(out / "rendering") == ["metrics.csv", "scan1/scan1_000.jpg"]
    assert imageio.imread(out / "rendering/scan1/scan1_000.jpg").shape == (16, 20, 3)


def test_all_views_are_compared_with_the_photographs(trained, out, tiny_dtu, capsys):
    assert run("render", trained(rendering={"n_views": 0, "resolution": None})) == 0
    table = pd.read_csv(out / "rendering/metrics.csv", dtype={"view": str})
    assert table["view"].tolist() == [f"{view:03d}" for view in range(N_VIEWS)]
    assert set(table["class"] + "/" + table["model"]) == {"scan1/scan1"}
    renderer = Renderer(octahedron(RADIUS), n_steps=(32, 33))
    for view, matrix in cameras(tiny_dtu, range(N_VIEWS)).items():
        rendering = renderer.render(matrix, 16, 20)
        folder = tiny_dtu / "scan1/scan1"
        photograph = imageio.imread(folder / f"image/{view:06d}.png") / 255
        mask = imageio.imread(folder / f"mask/{view:03d}.png") > 0
        error = (rendering.rgb.numpy() - photograph)[mask]
        hit = rendering.hit.numpy()
        row = table.iloc[view]
        assert row["psnr"] == pytest.approx(-10 * np.log10((error**2).mean()), abs=1e-4)
        assert row["mask_iou"] == pytest.approx((mask & hit).sum() / (mask | hit).sum())
    shown = re.search(r"mean over 5 views: PSNR .* ([\d.]+) dB, mask IoU ([\d.]+)",
                      capsys.readouterr().out)
    assert float(shown[1]) == pytest.approx(table["psnr"].mean(), abs=0.006)
    assert float(shown[2]) == pytest.approx(table["mask_iou"].mean(), abs=6e-5)


def test_turntable(trained, out, tiny_dtu):
    config = trained(
        rendering={
            "trajectory": "turntable", "n_views": 6, "resolution": [8, 12], "extension": "png",
            "turntable_elevation": 30.0, "fps": 5,
        }
    )
    assert run("render", config) == 0
    names = [f"scan1/scan1_{frame:03d}.png" for frame in range(6)]
    assert files(out / "rendering") == sorted([*names, "scan1/scan1.gif"])  # nothing to compare
    animation = imageio.imread(out / "rendering/scan1/scan1.gif", index=None)
    assert animation.shape == (6, 8, 12, 3)
    assert imageio.immeta(out / "rendering/scan1/scan1.gif")["duration"] == 200

    matrices = torch.stack(list(cameras(tiny_dtu, range(N_VIEWS)).values()))
    torch.testing.assert_close(  # the world's -z, see sphere_scene.look_at
        up_axis(matrices), torch.tensor([0.0, 0, -1], dtype=torch.float64), atol=1e-9, rtol=0
    )
    start = torch.tensor([1.0, 0, 0])  # the side of the first view
    renderer = Renderer(octahedron(RADIUS), n_steps=(32, 33))
    center, radius = renderer.bounds().ball(0.0)
    assert center.abs().max() < 1e-6 and RADIUS < radius < RADIUS + 0.15
    frames = turntable(6, 8, 12, 30.0, (0.0, 0, -1), start, center, radius)
    for name, matrix in zip(names, frames):
        expected = renderer.render(matrix, 8, 12).image("rgb").numpy().astype(int)
        picture = imageio.imread(out / "rendering" / name).astype(int)
        assert np.abs(picture - expected).max() <= 1


def test_axis_of_the_turntable_may_be_given(trained, out):
    def render(axis):
        rendering = {
            "trajectory": "turntable", "n_views": 2, "extension": "png", "turntable_axis": axis,
        }
        assert run("render", trained(rendering=rendering)) == 0
        return imageio.imread(out / "rendering/scan1/scan1_001.png")

    np.testing.assert_array_equal(render([0, 0, -2]), render(None))
    assert (render([0, 1, 0]) != render(None)).any()


def test_full_turn_has_60_frames(trained, out):
    rendering = {
        "trajectory": "turntable", "n_views": 0, "resolution": [2, 3],
        "ray_sampling_accuracy": [8, 9],
    }
    assert run("render", trained(rendering=rendering)) == 0
    assert len(list((out / "rendering/scan1").glob("*.jpg"))) == 60


# ---- eval_meshes.py ------------------------------------------------------------------------------


def write_mesh(out, name, scale=0.7):
    path = out / "generation/meshes" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    trimesh.creation.icosphere(radius=0.35 * scale / 0.7, subdivisions=3).export(path)


def test_figures_of_a_mesh(project, out, tiny_dtu, capsys):
    write_mesh(out, "scan1/scan1.ply", 0.6)
    assert run("eval_meshes", project(training={"seed": 3})) == 0
    (row,) = pd.read_pickle(out / "generation/eval_meshesfull.pkl").to_dict("records")
    assert row.pop("class") == row.pop("model") == "scan1"
    cloud = np.load(tiny_dtu / "scan1/scan1/pointcloud.npz")
    mesh = load_mesh(out / "generation/meshes/scan1/scan1.ply")
    expected = evaluate_mesh(
        mesh, *(cloud[name].astype(np.float32) for name in ("points", "normals")), seed=3
    )
    assert row == pytest.approx(expected)
    assert row["completeness"] == pytest.approx(0.05, abs=0.003)  # 0.35 - 0.3
    table = pd.read_csv(out / "generation/eval_meshes.csv", index_col="class")
    assert table.loc["mean"].to_dict() == pytest.approx(expected)
    printed = capsys.readouterr().out
    assert "cube edges" in printed and f"{expected['chamferL1']:.4f}" in printed


@pytest.mark.parametrize("layout", ["DTU", "Shapes3D", "NMR"])
def test_class_folders_with_split_lists(tmp_path, layout):
    data = tmp_path / "data"
    split = "softras_test" if layout == "NMR" else "test"
    for category, models in {"02691156": ["a", "b", "c"], "02958343": ["d"]}.items():
        for model in models:
            (data / category / model).mkdir(parents=True)
            sphere = trimesh.creation.icosphere(radius=0.35)
            np.savez(
                data / category / model / "pointcloud.npz",
                points=sphere.vertices, normals=sphere.vertex_normals,
                loc=np.zeros(3), scale=1.0,
            )
        (data / category / f"{split}.lst").write_text("\n".join(models[::-1][:2]) + "\n")
    (data / "02691156/train.lst").write_text("a\n")
    config = write_config(
        tmp_path, data, data={"dataset_name": layout, "test_split": split},
        test={"eval_file_name": "figures"},
    )
    for name, scale in {"02691156/c": 0.7, "02691156/b": 0.6, "02958343/d": 0.5}.items():
        write_mesh(tmp_path / "out", f"{name}.ply", scale)
    assert run("eval_meshes", config) == 0
    rows = pd.read_pickle(tmp_path / "out/generation/figuresfull.pkl").set_index("model")
    assert rows["class"].to_dict() == {"c": "02691156", "b": "02691156", "d": "02958343"}
    table = pd.read_csv(tmp_path / "out/generation/figures.csv", dtype={"class": str})
    chamfer = table.set_index("class")["chamferL1"]
    assert chamfer.index.tolist() == ["02691156", "02958343", "mean"]
    assert chamfer["02691156"] == pytest.approx(rows["chamferL1"][["b", "c"]].mean())
    assert chamfer["mean"] == pytest.approx(chamfer.iloc[:2].mean())


@pytest.mark.parametrize("damage", ["missing", "truncated", "empty"])
def test_object_without_a_mesh_counts_with_the_worst_values(
    project, out, three_objects, capsys, damage
):
    write_mesh(out, "scan1/scan1.ply")
    write_mesh(out, "scan3/scan3.ply")
    path = out / "generation/meshes/scan1/scan2.ply"
    if damage == "truncated":
        path.write_bytes((path.parent / "scan1.ply").read_bytes()[:-50])
    elif damage == "empty":  # what generate.py writes where there is no surface
        save_mesh(path, np.empty((0, 3)), np.empty((0, 3), dtype=int))
    assert run("eval_meshes", project()) == (0 if damage == "empty" else 4)
    err = capsys.readouterr().err
    assert ("error: scan1/scan2:" in err and str(path) in err) == (damage != "empty")
    rows = pd.read_pickle(out / "generation/eval_meshesfull.pkl").set_index("model")
    assert len(rows) == 3 and not rows.isna().any(axis=None)
    assert rows.loc["scan2", "chamferL1"] == pytest.approx(3**0.5)
    assert rows.loc["scan2", "normals"] == -1 and rows.loc["scan2", "F@0.1000"] == 0
    assert rows.loc["scan1", "chamferL1"] < 0.05


def test_nothing_to_evaluate(project, out, capsys):
    assert run("eval_meshes", project()) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: there is no mesh to evaluate") and "run generate.py" in err
    assert not (out / "generation").exists()
