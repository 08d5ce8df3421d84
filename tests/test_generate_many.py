"""generate.py and eval_meshes.py over many objects: what is kept, made again, reported, counted."""

import io
import json
import os
import re
import shutil
import signal
import sys

import numpy as np
import pandas as pd
import pytest
import torch
import trimesh
from PIL import Image

from im2mesh import meshing
from im2mesh.commands import generate as commands
from im2mesh.commands.progress import Journal
from im2mesh.config import DEFAULTS, load_config, method_module
from im2mesh.meshing import load_mesh
from tests.programs import files, octahedron, run, save_model, start, write_config
from tests.sphere_scene import SCALE, write_sphere_scene

NAMES = ("ant", "bee", "cat")
SIZE = 64


def picture(path, red):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (SIZE, SIZE), (red, 255, 255)).save(path, quality=100)


def red_octahedron(config):
    """A model that makes an octahedron of radius 0.4 red - 0.05 (red from 0 to 1) of an image."""
    model = method_module(config).get_model(config)
    for parameter in model.encoder.parameters():
        torch.nn.init.zeros_(parameter)
    with torch.no_grad():
        for i in range(5):
            getattr(model.encoder, f"conv{i}").weight[0, 0, 1, 1] = 1
        model.encoder.fc_out.weight[0, 0] = 1
        theirs = octahedron(radius=-0.05).decoder.state_dict()
        for name, parameter in model.decoder.named_parameters():
            parameter.zero_()
            if name in theirs:
                parameter.copy_(theirs[name])
        model.decoder.fc_c[0].weight[6, 0] = 0.4
        model.decoder.fc_out.weight[0, 6] = 20.0
    return model


def radius(path):
    return load_mesh(path).vertices.max()


@pytest.fixture
def pictures(tmp_path):
    """A folder of images, one object each."""
    for number, name in enumerate(NAMES):
        picture(tmp_path / f"pictures/{name}.png", 255 - 40 * number)
    return tmp_path / "pictures"


@pytest.fixture
def single_view(tmp_path, pictures, out):
    """Write a config of a model that makes a mesh of an image, and its weights; gives its path."""

    def single_view(data=(), **sections):
        inputs = {
            "dataset_name": "images", "path": str(pictures), "input_type": "image",
            "img_size_input": SIZE, "split_model_for_images": False, **dict(data),
        }
        network = {"encoder": "simple_conv", "c_dim": 2, "decoder_kwargs": {"hidden_size": 16}}
        generation = {"refinement_step": 0, "upsampling_steps": 2, **sections.pop("generation", {})}
        config = write_config(
            tmp_path / "run", pictures, data=inputs, model=network, generation=generation,
            **sections,
        )
        if not (out / "model_best.pt").exists():
            save_model(out / "model_best.pt", red_octahedron(load_config(config)))
        return config

    return single_view


@pytest.fixture
def meshes(out):
    """Inode and time of every mesh: both change when it is written."""

    def meshes():
        paths = (out / "generation/meshes").rglob("*.ply")
        return {path.stem: (path.stat().st_ino, path.stat().st_mtime_ns) for path in paths}

    return meshes


@pytest.fixture
def made_again(meshes):
    """Run generate.py once more: its exit code, and which meshes it wrote."""

    def made_again(config, *arguments):
        before = meshes()
        code = run("generate", config, *arguments)
        return code, {name for name, state in meshes().items() if before.get(name) != state}

    return made_again


def times(out):
    return pd.read_pickle(out / "generation/time_generation_full.pkl").set_index("model")


# ---- what is written -----------------------------------------------------------------------------


def test_images_in_meshes_out(single_view, pictures, out, capsys):
    picture(pictures / "dog.jpg", 200)
    assert run("generate", single_view(generation={"vis_n_outputs": 2})) == 0
    folder = out / "generation"
    assert files(folder) == [
        "generated.jsonl",
        *(f"inputs/na/{name}" for name in ("ant.png", "bee.png", "cat.png", "dog.jpg")),
        *(f"meshes/na/{name}.ply" for name in ("ant", "bee", "cat", "dog")),
        "time_generation.pkl", "time_generation_full.pkl",
        "vis/na/00_input.jpg", "vis/na/00_mesh.ply", "vis/na/01_input.jpg", "vis/na/01_mesh.ply",
    ]
    for number, name in enumerate(NAMES):
        original = (pictures / f"{name}.png").read_bytes()
        assert (folder / f"inputs/na/{name}.png").read_bytes() == original
        mesh = folder / f"meshes/na/{name}.ply"
        assert radius(mesh) == pytest.approx(0.35 - 0.4 * 40 * number / 255, abs=0.005)
        if number < 2:
            assert (folder / f"vis/na/{number:02d}_mesh.ply").read_bytes() == mesh.read_bytes()
            shown = np.asarray(Image.open(folder / f"vis/na/{number:02d}_input.jpg")).astype(int)
            assert shown.shape == (SIZE, SIZE, 3)
            assert np.abs(shown - [255 - 40 * number, 255, 255]).max() <= 6


def test_objects_of_classes_with_a_summary(single_view, tmp_path, out, capsys):
    reds = {"chair/a": 255, "chair/b": 200, "chair/c": 0, "table/d": 255, "table/e": 255}
    for label, red in reds.items():
        picture(tmp_path / "shapes" / label / "img_choy2016/000.jpg", red)
        picture(tmp_path / "shapes" / label / "img_choy2016/001.jpg", 99)
    (tmp_path / "shapes/table/e/img_choy2016/000.jpg").write_bytes(b"no image")
    data = {"dataset_name": "Shapes3D", "path": str(tmp_path / "shapes")}
    assert run("generate", single_view(data)) == 4
    folder = out / "generation"
    original = (tmp_path / "shapes/chair/b/img_choy2016/000.jpg").read_bytes()
    assert (folder / "inputs/chair/b.jpg").read_bytes() == original
    assert [name for name in files(folder / "vis") if "input" in name] == [
        "chair/00_input.jpg", "chair/01_input.jpg", "chair/02_input.jpg", "table/03_input.jpg",
    ]
    printed, err = capsys.readouterr()
    lines = re.findall("^(?: +objects|chair|table|all) .*", printed, re.M)
    table = [line.split() for line in lines]
    assert table[0] == ["objects", "made", "kept", "empty", "failed", "mean", "seconds"]
    assert [row[:-1] for row in table[1:]] == [
        ["chair", "3", "2", "0", "1", "0"],
        ["table", "2", "1", "0", "0", "1"],
        ["all", "5", "3", "0", "1", "1"],
    ]
    seconds = times(out)["total"]
    assert float(table[1][-1]) == pytest.approx(seconds[["a", "b", "c"]].mean(), abs=0.006)
    assert "2 of 5 objects got no mesh: chair/c, table/e" in err


def test_numbered_objects_have_no_picture(single_view, tmp_path, out):
    for model in ("a", "b"):
        (tmp_path / "shapes/chair" / model).mkdir(parents=True)
    config = write_config(
        tmp_path / "run", tmp_path / "shapes",
        data={"dataset_name": "Shapes3D", "input_type": "idx", "train_split": None,
              "val_split": None, "test_split": None, "split_model_for_images": False},
        model={"encoder": "idx", "c_dim": 2, "decoder_kwargs": {"hidden_size": 16}},
    )  # fmt: skip
    keys = load_config(config)
    model = method_module(keys).get_model(keys, n_objects=2)
    model.decoder.load_state_dict(octahedron().decoder.state_dict(), strict=False)
    for fc in model.decoder.fc_c:
        torch.nn.init.zeros_(fc.weight), torch.nn.init.zeros_(fc.bias)
    save_model(out / "model_best.pt", model)
    assert run("generate", config) == 0
    assert files(out / "generation/vis") == ["chair/00_mesh.ply", "chair/01_mesh.ply"]
    assert not (out / "generation/inputs").exists()


# ---- what is kept and what is made again ---------------------------------------------------------


def test_second_run_keeps_everything(single_view, out, made_again, capsys):
    config = single_view()
    assert run("generate", config) == 0
    before = times(out)
    capsys.readouterr()
    assert made_again(config) == (0, set())
    printed, err = capsys.readouterr()
    assert err == ""
    assert "3 of 3 objects keep the mesh" in printed and "--overwrite makes it again" in printed
    pd.testing.assert_frame_equal(times(out), before)


def test_overwrite(single_view, out, made_again):
    config = single_view()
    assert run("generate", config) == 0
    assert made_again(config, "--overwrite") == (0, set(NAMES))
    assert len(times(out)) == 3


def test_lost_mesh_is_made_again_and_the_times_of_others_stay(single_view, out, made_again):
    config = single_view()
    assert run("generate", config) == 0
    before = times(out)
    (out / "generation/meshes/na/bee.ply").unlink()
    assert made_again(config) == (0, {"bee"})
    after = times(out)
    assert list(after.index) == list(NAMES)
    assert (after == before).all(axis=1).to_dict() == {"ant": True, "bee": False, "cat": True}


def test_other_model_makes_other_meshes(single_view, out, made_again):
    config = single_view()
    assert run("generate", config) == 0
    model = red_octahedron(load_config(config))
    with torch.no_grad():
        model.decoder.fc_out.bias[0] -= 1
    save_model(out / "model_best.pt", model)
    assert made_again(config) == (0, set(NAMES))
    os.utime(out / "model_best.pt")  # the same weights, copied
    assert made_again(config) == (0, set())


@pytest.mark.parametrize("key, value", [
    ("generation.upsampling_steps", 1), ("generation.padding", 0.1),
    ("generation.with_colors", False), ("test.threshold", 0.4), ("data.img_size_input", 70),
])  # fmt: skip
def test_other_settings_make_other_meshes(single_view, made_again, key, value):
    config = single_view()
    assert run("generate", config) == 0
    assert made_again(config, "--set", f"{key}={value}") == (0, set(NAMES))


def test_what_does_not_change_a_mesh_keeps_it(single_view, pictures, made_again, tmp_path):
    config = single_view()
    assert run("generate", config) == 0
    shutil.copytree(pictures, tmp_path / "copy")
    for override in ("generation.vis_n_outputs=1", "training.print_every=3",
                     f"data.path={tmp_path / 'copy'}"):  # fmt: skip
        assert made_again(config, "--set", override) == (0, set())


def test_every_key_of_a_generator_is_among_the_settings():
    known = {"batch_size", "vis_n_outputs", "generation_dir"}
    assert set(load_config(DEFAULTS)["generation"]) == known | set(commands.MADE_WITH["generation"])


def test_other_input_makes_another_mesh(single_view, pictures, out, made_again):
    config = single_view()
    assert run("generate", config) == 0
    picture(pictures / "bee.png", 130)
    assert made_again(config) == (0, {"bee"})
    assert radius(out / "generation/meshes/na/bee.ply") == pytest.approx(0.154, abs=0.005)
    copy = out / "generation/inputs/na/bee.png"
    assert copy.read_bytes() == (pictures / "bee.png").read_bytes()


def test_other_scale_or_lost_world_mesh(project, tiny_dtu, out, made_again):
    save_model(out / "model_best.pt", octahedron())
    assert run("generate", project()) == 0
    both = {"scan1", "scan1_world_scale"}
    (out / "generation/meshes/scan1/scan1_world_scale.ply").unlink()
    assert made_again(project()) == (0, both)
    path = tiny_dtu / "scan1/scan1/cameras.npz"
    np.savez(path, **{**dict(np.load(path)), "scale_mat_0": SCALE @ np.diag([2.0, 2, 2, 1])})
    assert made_again(project()) == (0, both)
    assert made_again(project()) == (0, set())


# ---- failures ------------------------------------------------------------------------------------


def test_failing_object_is_tried_again(single_view, pictures, out, made_again, capsys):
    good = (pictures / "bee.png").read_bytes()
    (pictures / "bee.png").write_bytes(good[:40])
    config = single_view()
    assert run("generate", config) == 4
    err = capsys.readouterr().err
    assert f"error: na/bee: {pictures / 'bee.png'}: not a readable image" in err
    assert "1 of 3 objects got no mesh: na/bee" in err
    assert made_again(config) == (4, set())
    (pictures / "bee.png").write_bytes(good)
    assert made_again(config) == (0, {"bee"})
    assert list(times(out).index) == list(NAMES)


def test_empty_mesh_is_tried_again_and_told_each_time(single_view, pictures, made_again, capsys):
    picture(pictures / "bee.png", 10)
    config = single_view()
    assert run("generate", config) == 4
    for _ in range(2):
        printed, err = capsys.readouterr()
        assert "warning: na/bee: the mesh is empty" in err and "background" in err
        assert "1 of 3 objects got no mesh: na/bee" in err
        assert made_again(config) == (4, {"bee"})


def test_many_failures_are_not_all_named(single_view, pictures, capsys):
    for number in range(14):
        (pictures / f"x{number:02d}.png").write_bytes(b"no image")
    assert run("generate", single_view()) == 4
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: 14 of 17 objects got no mesh: na/x00, ")
    assert last.endswith(", na/x09 and 4 more")


@pytest.mark.parametrize("place", ["meshes", "inputs", "journal"])
def test_stopped_run_goes_on(single_view, out, monkeypatch, made_again, place):
    """Between any two files of an object: it does not count before the last one is written."""
    config = single_view()
    owner, name = {
        "meshes": (meshing, "save_mesh"), "inputs": (commands, "_copy"),
        "journal": (Journal, "add"),
    }[place]  # fmt: skip
    function = getattr(owner, name)

    def interrupted(*arguments):
        if "bee" in str(arguments):
            raise KeyboardInterrupt
        return function(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, interrupted)
        assert run("generate", config) == 130
    assert len(Journal(out / "generation/generated.jsonl").rows) == 1
    assert made_again(config) == (0, {"bee", "cat"})
    assert list(times(out).index) == list(NAMES)


def test_line_cut_short_is_ignored(single_view, out, made_again):
    config = single_view()
    assert run("generate", config) == 0
    journal = out / "generation/generated.jsonl"
    journal.write_text(journal.read_text()[:-30])
    assert made_again(config) == (0, {"cat"})
    rows = [json.loads(line) for line in journal.read_text().splitlines() if line.endswith("}")]
    assert [row["model"] for row in rows] == ["ant", "bee", "cat"]
    assert made_again(config) == (0, set())


def test_killed_process_loses_nothing_that_was_finished(single_view, pictures, out, made_again):
    for number in range(12):
        picture(pictures / f"x{number:02d}.png", 200)
    config = single_view(generation={"upsampling_steps": 3, "refinement_step": 20})
    process = start("generate", config)
    assert any(line.startswith("[2/15") for line in iter(process.stdout.readline, ""))
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=300)
    finished = {model for _, model in Journal(out / "generation/generated.jsonl").rows}
    assert {"ant", "bee"} <= finished and len(finished) < 15
    code, again = made_again(config)
    assert code == 0 and not again & finished and len(again) == 15 - len(finished)
    assert len(times(out)) == 15
    assert not [name for name in files(out / "generation") if os.path.basename(name)[0] == "."]


def test_journal_that_cannot_be_written(single_view, out, capsys):
    config = single_view()
    (out / "generation/generated.jsonl").mkdir(parents=True)
    assert run("generate", config) == 2
    assert f"cannot read {out / 'generation/generated.jsonl'}" in capsys.readouterr().err


# ---- progress ------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    isatty = lambda self: True


@pytest.mark.parametrize("program", ["generate", "eval_meshes"])
def test_progress(project, tiny_dtu, out, monkeypatch, capsys, program):
    write_sphere_scene(tiny_dtu / "scan1/scan2")
    save_model(out / "model_best.pt", octahedron())
    if program == "eval_meshes":
        assert run("generate", project()) == 0
    capsys.readouterr()
    assert run(program, project()) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^\[1/2, \d\d:\d\d left\] scan1/scan1: ", printed, re.M)
    assert re.search(r"^\[2/2\] scan1/scan2: ", printed, re.M)
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    options = ["--overwrite"] if program == "generate" else []
    assert run(program, project(), *options) == 0
    last = terminal.getvalue().split("\r")[-1]
    assert re.search(r"100%.* 2/2 \[\d\d:\d\d<\d\d:\d\d, *[\d.]+(object/s|s/object)\]", last)


# ---- eval_meshes.py ------------------------------------------------------------------------------


@pytest.fixture
def spheres(tiny_dtu, out):
    """Five objects with meshes of different sizes."""
    names = [f"scan{i}" for i in range(1, 6)]
    for number, name in enumerate(names):
        if number:
            write_sphere_scene(tiny_dtu / "scan1" / name, n_views=1)
        path = out / f"generation/meshes/scan1/{name}.ply"
        path.parent.mkdir(parents=True, exist_ok=True)
        trimesh.creation.icosphere(radius=0.2 + 0.03 * number, subdivisions=2).export(path)
    return names


def test_workers_find_the_same(project, out, spheres, capsys):
    (out / "generation/meshes/scan1/scan2.ply").unlink()
    outcomes = []
    for arguments in ((), ("--workers", 2)):
        assert run("eval_meshes", project(), *arguments) == 4
        printed, err = capsys.readouterr()
        assert err.count("it counts with the worst values") == 1 and "scan1/scan2" in err
        table = pd.read_csv(out / "generation/eval_meshes.csv")
        outcomes.append((pd.read_pickle(out / "generation/eval_meshesfull.pkl"), table))
    for one, two in zip(*outcomes):
        pd.testing.assert_frame_equal(one, two)
    full = outcomes[0][0]
    assert list(full.columns[:2]) == ["class", "model"] and list(full["model"]) == spheres


def test_number_of_workers(project, spheres, capsys):
    assert run("eval_meshes", project(), "--workers", 0) == 2
    assert "--workers" in capsys.readouterr().err


def test_object_without_truth_is_left_out(project, tiny_dtu, out, spheres, capsys):
    (tiny_dtu / "scan1/scan3/pointcloud.npz").write_bytes(b"no zip")
    assert run("eval_meshes", project()) == 4
    err = capsys.readouterr().err
    assert err.startswith("error: left out: object scan1/scan3, field pointcloud: ")
    assert err.count("\n") == 1
    full = pd.read_pickle(out / "generation/eval_meshesfull.pkl")
    assert list(full["model"]) == [name for name in spheres if name != "scan3"]
    for name in spheres:
        (tiny_dtu / f"scan1/{name}/pointcloud.npz").unlink(missing_ok=True)
    assert run("eval_meshes", project()) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_turntable_of_a_folder_of_images(single_view, out):
    rendering = {
        "trajectory": "turntable", "n_views": 2, "resolution": [24, 24], "extension": "png",
        "colors": "normal", "turntable_elevation": 0.0, "ray_sampling_accuracy": [64, 65],
    }
    assert run("render", single_view(rendering=rendering)) == 0
    folder = out / "rendering/na"
    names = sorted(f"{name}_{frame:03d}.png" for name in NAMES for frame in range(2))
    assert sorted(path.name for path in folder.glob("*.png")) == names
    seen = np.asarray(Image.open(folder / "ant_000.png")).min(-1) < 255
    rows, columns = np.nonzero(seen)
    assert abs(rows.mean() - 11.5) < 0.6 and abs(columns.mean() - 11.5) < 0.6
    # An octahedron seen along an axis is a square on its corner, +y up.
    assert 0.9 < np.ptp(rows) / np.ptp(columns) < 1.1
    assert seen[11, 11] and not seen[rows.min(), columns.min()]
