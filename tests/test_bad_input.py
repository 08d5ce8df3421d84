"""What a user can get wrong, on the command line: one clear line, exit code 2, nothing lost."""

import errno
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from im2mesh import checkpoints
from im2mesh.config import load_config, method_module
from tests.programs import files, octahedron, run, save_model
from tests.sphere_scene import write_exr, write_sphere_scene

PROGRAMS = ("train", "generate", "render", "eval_meshes")


@pytest.fixture
def folder(tiny_dtu):
    """The folder of the scene's only object."""
    return tiny_dtu / "scan1/scan1"


@pytest.fixture
def fails(out, capsys):
    """Run a program that must end with one line on stderr and exit code 2; gives the line."""

    def fails(program, config, *arguments):
        capsys.readouterr()
        assert run(program, config, *arguments) == 2
        printed, err = capsys.readouterr()
        assert err.startswith("error: ") and err.count("\n") == 1, err
        assert "Traceback" not in printed + err
        if (out / f"{program}.log").exists():
            log = (out / f"{program}.log").read_text()
            assert "Traceback" in log and err.removeprefix("error: ") in log
        return err

    return fails


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def change_npz(path, **changes):
    """Rewrite an npz file with other arrays; None takes one out."""
    arrays = dict(np.load(path)) | changes
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})


def has(message, *words):
    for word in words:
        assert str(word) in message, f"{word!r} is not in {message!r}"


# ---- the configuration ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "override, words",
    [
        ("training.lerning_rate=1", ["training.lerning_rate", "did you mean", "learning_rate?"]),
        ("data.n_steps=1", ["unknown key data.n_steps"]),
        ("training.batch_size=many", ["training.batch_size must be a whole number >= 1", '"many"']),
        ("training.batch_size", ["--set section.key=value"]),
        ("model.decoder_kwargs={hiden_size: 1}", ["decoder_kwargs", "did you mean hidden_size?"]),
        ("model.decoder_kwargs={out_dim: 3}", ["model.decoder_kwargs", "out_dim must be 4"]),
        ("model.depth_function_kwargs={n_step: 3}", ["unknown argument n_step", "n_steps?"]),
        ("model.encoder=resnet81", ["model.encoder", "resnet81"]),
        ("model.decoder=simpel", ["model.decoder", "simpel", "simple"]),
        ("data.img_with_mask=false", ["data.img_with_mask is false", "masks"]),
        ("data.dataset_name=DTV", ["data.dataset_name must be", "DTU"]),
    ],
)
def test_config(project, fails, override, words):
    has(fails("train", project(), "--set", override), *words)


def test_nothing_to_compile_with(project, fails, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    message = fails("train", project(), "--set", "training.compile=true")
    has(message, "training.compile", "no-such-compiler", "apt install g++", "set false")


def test_config_file(project, fails, tmp_path):
    has(fails("train", tmp_path / "no.yaml"), tmp_path / "no.yaml", "No such file")
    config = project()
    config.write_text(config.read_text().replace("n_eval_points", "n_eval_pts"))
    has(fails("generate", config), config, "line ", "n_eval_pts", "n_eval_points?")


@pytest.mark.parametrize("program", ["generate", "render"])
def test_colors_of_a_model_without_any(project, out, fails, program):
    config = project(model={"decoder_kwargs": {"hidden_size": 16, "out_dim": 1}})
    save_model(out / "model_best.pt", octahedron(out_dim=1))
    key = {"generate": "generation.with_colors", "render": "rendering.colors"}[program]
    has(fails(program, config), key, "out_dim is 1")


def test_rendering_needs_cameras_and_an_existing_view(project, out, fails):
    save_model(out / "model_best.pt", octahedron())
    has(fails("render", project(data={"img_with_camera": False})), "data.img_with_camera")
    message = fails("render", project(rendering={"n_start_view": 5}))
    has(message, "rendering.n_start_view is 5", "scan1/scan1 has 5 views")


# ---- the dataset ---------------------------------------------------------------------------------


@pytest.mark.parametrize("program", PROGRAMS)
def test_missing_dataset_class_and_object(project, tiny_dtu, out, fails, program):
    save_model(out / "model_best.pt", octahedron())
    nowhere = tiny_dtu / "nowhere"
    has(fails(program, project(data={"path": str(nowhere)})), "data.path", nowhere, "README")
    has(fails(program, project(data={"classes": ["scan2"]})), "data.classes", "scan2", "scan1")
    (tiny_dtu / "scan2").mkdir()
    has(fails(program, project(data={"classes": ["scan2"]})), tiny_dtu / "scan2", "no objects")
    lists = {"train_split": "mine", "val_split": "mine", "test_split": "mine"}
    (tiny_dtu / "scan1/mine.lst").write_text("scan1\nscan7\n")
    message = fails(program, project(data={**lists, "classes": ["scan1"]}))
    has(message, tiny_dtu / "scan1/mine.lst", "line 2", tiny_dtu / "scan1/scan7")


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize(
    "name, damage, words",
    [
        ("image/000002.png", os.unlink, ["mask", "5 *.png files for 4 images"]),
        ("image/000002.png", truncate, ["field img", "image/000002.png", "truncated"]),
        ("image", shutil.rmtree, ["field img", "no such folder", "data.img_folder"]),
        ("mask/002.png", os.unlink, ["field img", "4 *.png files for 5 images"]),
        ("mask/002.png", truncate, ["mask/002.png", "truncated"]),
        ("mask", shutil.rmtree, ["no such folder", "data.mask_folder"]),
        ("depth/000002.exr", os.unlink, ["depth", "4 *.exr files for 5 images"]),
        ("depth/000002.exr", truncate, ["depth/000002.exr", "truncated"]),
        ("depth", shutil.rmtree, ["no such folder", "data.depth_folder"]),
        ("cameras.npz", os.unlink, ["cameras.npz", "no such file"]),
        ("cameras.npz", truncate, ["cameras.npz", "truncated"]),
        ("pcl.npz", os.unlink, ["field sparse_depth", "pcl.npz", "no such file"]),
        ("pcl.npz", truncate, ["field sparse_depth", "pcl.npz", "truncated"]),
    ],
)
def test_missing_and_truncated_files(project, folder, fails, cache, name, damage, words):
    damage(folder / name)
    config = project(
        model={"lambda_depth": 1, "lambda_sparse_depth": 1}, data={"cache_fields": cache}
    )
    has(fails("train", config), "object scan1/scan1", folder, *words)


def test_workers_hand_the_error_on(project, folder, fails):
    truncate(folder / "image/000002.png")
    config = project(data={"cache_fields": False}, training={"n_workers": 2})
    has(fails("train", config), "object scan1/scan1", "image/000002.png", "truncated")


@pytest.mark.parametrize(
    "kind, name", [("mask", "mask/002.png"), ("image", "image/000002.png")]
)
def test_image_and_mask_of_different_size(project, folder, fails, kind, name):
    Image.open(folder / name).resize((10, 8)).save(folder / name)
    has(fails("train", project()), folder / "image/000002.png", "20x16", "10x8", "mask")


@pytest.mark.parametrize("program", ["train", "render"])
@pytest.mark.parametrize(
    "changes, words",
    [
        ({"world_mat_2": None}, ["no array 'world_mat_2'"]),
        ({"camera_mat_2": np.diag([1.0, 1, 0, 1])}, ["camera_mat_2", "singular"]),
        ({"world_mat_2": np.full((4, 4), np.nan)}, ["world_mat_2", "NaN"]),
        ({"scale_mat_2": np.eye(3)}, ["scale_mat_2", "4x4", "(3, 3)"]),
    ],
)
def test_cameras(project, folder, out, fails, program, changes, words):
    save_model(out / "model_best.pt", octahedron())
    change_npz(folder / "cameras.npz", **changes)
    config = project(rendering={"n_views": 0})
    has(fails(program, config), folder / "cameras.npz", *words)


def test_depth_with_nan(project, folder, fails):
    depth = np.full((16, 20), np.inf, np.float32)
    depth[3, 4] = np.nan
    write_exr(folder / "depth/000002.exr", depth)
    message = fails("train", project(model={"lambda_depth": 1}))
    has(message, folder / "depth/000002.exr", "1 of 320", "NaN", "+inf")


def test_empty_masks_in_all_views(project, folder, fails):
    for path in (folder / "mask").iterdir():
        Image.new("L", (20, 16)).save(path)
    has(fails("train", project()), folder / "mask", "masks of all views", "empty")


def test_view_numbers_that_leave_nothing(project, fails):
    message = fails("train", project(data={"ignore_image_idx": [0, 1, 2, 3, 4]}))
    has(message, "data.ignore_image_idx leaves none of its 5 images")


def test_evaluation_cloud(project, folder, out, fails):
    save_model(out / "model_best.pt", octahedron())
    assert run("generate", project()) == 0
    truncate(folder / "pointcloud.npz")
    has(fails("eval_meshes", project()), "scan1/scan1", folder / "pointcloud.npz", "truncated")
    (folder / "pointcloud.npz").unlink()
    has(fails("eval_meshes", project()), folder / "pointcloud.npz", "no such file")


def test_unreadable_objects_may_be_skipped(project, tiny_dtu, folder, out, capsys):
    for name in ("scan2", "scan3"):
        write_sphere_scene(tiny_dtu / "scan1" / name)
    truncate(tiny_dtu / "scan1/scan2/cameras.npz")
    shutil.rmtree(tiny_dtu / "scan1/scan3/image")
    config = project(
        data={"skip_unreadable": True}, training={"max_iterations": 20, "batch_size": 6}
    )
    assert run("train", config) == 0
    err = capsys.readouterr().err
    assert all(line.startswith("warning: left out") for line in err.splitlines())
    has(err, tiny_dtu / "scan1/scan2/cameras.npz", tiny_dtu / "scan1/scan3/image")


# ---- input images --------------------------------------------------------------------------------


@pytest.fixture
def single_view(project, tiny_dtu, out):
    """Write a config, changed by keys of data, of a model that sees images; and its weights."""
    for path in (tiny_dtu / "scan1/scan1/image").iterdir():
        (tiny_dtu / "scan1/scan1/inputs").mkdir(exist_ok=True)
        shutil.copy(path, tiny_dtu / "scan1/scan1/inputs")

    def single_view(**data):
        inputs = {"img_folder_input": "inputs", "img_extension_input": "png"}
        config = project(
            data={"input_type": "image", "img_size_input": 64, **inputs, **data},
            model={"encoder": "simple_conv", "c_dim": 4},
        )
        if not (out / "model_best.pt").exists():
            keys = load_config(config)
            save_model(out / "model_best.pt", method_module(keys).get_model(keys))
        return config

    return single_view


@pytest.mark.parametrize(
    "damage, words",
    [
        (shutil.rmtree, ["no such folder", "data.img_folder_input"]),
        (lambda folder: [path.unlink() for path in folder.iterdir()], ["no *.png files"]),
        (lambda folder: truncate(folder / "000000.png"), ["000000.png", "truncated"]),
        (lambda folder: (folder / "000000.png").write_text("hello"), ["not a readable image"]),
    ],
)
@pytest.mark.parametrize("program", ["train", "render"])
def test_input_images(single_view, folder, fails, program, damage, words):
    damage(folder / "inputs")
    message = fails(program, single_view(cache_fields=True))
    has(message, "object scan1/scan1, field inputs", folder / "inputs", *words)


@pytest.mark.parametrize("key, field", [("n_views", "img"), ("n_views_input", "inputs")])
def test_more_views_than_there_are(single_view, fails, key, field):
    message = fails("train", single_view(**{key: 6}))
    has(message, f"object scan1/scan1, field {field}", f"data.{key} is 6, but there are 5")


@pytest.mark.parametrize(
    "program, cure",
    [("train", "generate.py"), ("render", "turntable"), ("eval_meshes", "generate.py")],
)
def test_a_folder_of_images_is_no_dataset_to_learn_from(single_view, folder, fails, program, cure):
    config = single_view(dataset_name="images", path=str(folder / "image"))
    has(fails(program, config), "data.dataset_name", "no cameras", cure)


def test_folder_without_images(single_view, folder, fails):
    (folder / "album").mkdir()
    message = fails("generate", single_view(dataset_name="images", path=str(folder / "album")))
    has(message, "data.path", folder / "album", "no images (jpg, jpeg or png)")
    message = fails("generate", single_view(dataset_name="images", path=str(folder / "none")))
    has(message, "data.path", folder / "none", "no folder")


def test_split_that_is_empty(single_view, tiny_dtu, fails):
    (tiny_dtu / "scan1/train.lst").write_text("\n")
    has(fails("train", single_view()), tiny_dtu / "scan1/train.lst", "lists no object")


# ---- checkpoints ---------------------------------------------------------------------------------


class Payload:
    """Pickles to something that would write a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def write_legacy(path, state):
    torch.save(state, path, _use_new_zipfile_serialization=False)


def write_other_architecture(path):
    state = octahedron().state_dict() | {"decoder.fc_p.weight": torch.zeros(8, 3)}
    del state["decoder.fc_out.bias"]
    checkpoints.save(path, {"model": state})


CHECKPOINTS = {
    "truncated": (
        lambda path: (save_model(path, octahedron()), truncate(path)), ["damaged or incomplete"]
    ),
    "truncated, legacy": (
        lambda path: (write_legacy(path, {"model": octahedron().state_dict()}), truncate(path)),
        ["damaged"],
    ),
    "empty": (lambda path: path.touch(), ["damaged"]),
    "text": (lambda path: path.write_text("hello"), ["damaged"]),
    "folder": (lambda path: path.mkdir(), ["cannot be read"]),
    "no model": (lambda path: torch.save({"weights": 1}, path), ["no 'model' entry"]),
    "code": (
        lambda path: torch.save({"model": {}, "more": Payload(path.parent / "harm")}, path),
        ["refused", "Nothing in it was executed"],
    ),
    "code, legacy": (
        lambda path: write_legacy(path, {"model": {}, "more": Payload(path.parent / "harm")}),
        ["refused", "Nothing in it was executed"],
    ),
    "other architecture": (
        write_other_architecture,
        [
            "does not fit", "model.decoder: simple", "missing: decoder.fc_out.bias",
            "decoder.fc_p.weight: (8, 3) in the file, (16, 3) in the model",
        ],
    ),
}


@pytest.mark.parametrize("program", ["train", "generate", "render"])
@pytest.mark.parametrize("case", CHECKPOINTS)
def test_checkpoint(project, out, capsys, program, case):
    path = out / ("model.pt" if program == "train" else "model_best.pt")
    out.mkdir(parents=True)
    write, words = CHECKPOINTS[case]
    write(path)
    before = path.read_bytes() if path.is_file() else None
    assert run(program, project()) == 2
    err = capsys.readouterr().err
    has(err, f"error: checkpoint {path}", *words)
    assert "Traceback" not in err and "Traceback" in (out / f"{program}.log").read_text()
    assert (path.read_bytes() if path.is_file() else None) == before
    assert files(out) == sorted([f"{program}.log", *([path.name] if path.is_file() else [])])


def test_weights_alone_do_not_continue_a_training(project, out, fails):
    save_model(out / "model.pt", octahedron())
    has(fails("train", project()), out / "model.pt", "no optimizer state", "generation")


# ---- writing -------------------------------------------------------------------------------------


@pytest.mark.parametrize("program", PROGRAMS)
def test_out_dir_that_cannot_be_written(project, tmp_path, fails, program):
    (tmp_path / "file").write_text("")
    place = tmp_path / "file/out"
    message = fails(program, project(), "--set", f"training.out_dir={place}")
    has(message, "training.out_dir", place, "--set training.out_dir=FOLDER")


@pytest.fixture
def full_disk(monkeypatch):
    """Let files whose name contains a text not reach the disk."""

    def install(part):
        fsync = os.fsync

        def full(descriptor):
            if part in os.readlink(f"/proc/self/fd/{descriptor}"):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            fsync(descriptor)

        monkeypatch.setattr(os, "fsync", full)

    return install


@pytest.mark.parametrize("name", ["model", "model_best", "model_20"])
def test_full_disk_leaves_the_previous_checkpoint(project, out, fails, full_disk, name):
    first = {"validate_every": 0, "max_iterations": 10}
    assert run("train", project(training=first)) == 0
    save_model(out / "model_best.pt", octahedron())
    before = {path: path.read_bytes() for path in out.glob("model*.pt")}
    full_disk(f"/.{name}.")
    then = {"checkpoint_every": 15, "validate_every": 5, "backup_every": 20}
    message = fails("train", project(training={**then, "max_iterations": 30}))
    has(message, f"cannot write {out / name}.pt: No space left on device", "untouched")
    kept = [path for path in before if path.stem == name]
    assert len(kept) == (name != "model_20")
    assert all(path.read_bytes() == before[path] for path in kept)
    assert checkpoints.load(out / "model.pt")["it"] == (15 if name == "model_20" else 10)
    assert hidden_files(out) == []


def hidden_files(folder):
    """Temporary files that were not removed."""
    return [name for name in files(folder) if os.path.basename(name).startswith(".")]


@pytest.mark.parametrize("part", ["tfevents", ".config.", ".view_0.", ".mesh_0."])
def test_full_disk_in_other_files_of_training(project, out, fails, full_disk, part):
    model = octahedron()
    optimizer = torch.optim.Adam(model.parameters()).state_dict()
    save_model(out / "model.pt", model, optimizer=optimizer)
    full_disk(part)
    config = project(training={"max_iterations": 9, "visualize_every": 1})
    has(fails("train", config), f"cannot write {out}", "No space left on device", "free space")
    assert checkpoints.load(out / "model.pt")["it"] == 7


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the system has no /dev/full")
def test_log_on_a_full_disk_is_silent(project, out, capsys):
    config = project(training={"logfile": "/dev/full", "max_iterations": 20, "print_every": 1})
    assert run("train", config) == 0
    printed, err = capsys.readouterr()
    assert err == "" and "iteration 20:" in printed
    assert checkpoints.load(out / "model.pt")["it"] == 20


@pytest.mark.parametrize(
    "program, part",
    [
        ("generate", ".scan1."), ("generate", ".time_generation"), ("generate", ".00_mesh"),
        ("render", ".scan1_000."), ("render", ".metrics."),
        ("eval_meshes", ".eval_meshesfull."), ("eval_meshes", ".eval_meshes."),
    ],
)
def test_full_disk_in_the_other_programs(project, out, fails, full_disk, program, part):
    save_model(out / "model_best.pt", octahedron())
    if program == "eval_meshes":
        assert run("generate", project()) == 0
    full_disk(part)
    message = fails(program, project())
    has(message, f"cannot write {out}", part.strip("."), "No space left on device")
    assert hidden_files(out) == []


def test_folder_in_the_place_of_a_file(project, out, fails):
    (out / "model.pt").mkdir(parents=True)
    has(fails("train", project(training={"max_iterations": 1})), out / "model.pt")
    (out / "model.pt").rmdir()
    (out / "logs").write_text("")
    has(fails("train", project(training={"max_iterations": 1})), "cannot write", out / "logs")
