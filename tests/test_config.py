"""Configuration files, their validation, and the command line around them."""

import logging
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from im2mesh import cli
from im2mesh.config import DEFAULTS, KINDS, METHODS, load_config, method_module, save_config
from im2mesh.errors import InputError

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = sorted(path for path in (ROOT / "configs").rglob("*.yaml"))

# The published keys and defaults: users' own configs rely on them.
PUBLISHED = yaml.safe_load(
    """
    method: dvr
    data: {dataset_name: Shapes3D, path: data/ShapeNet, classes: null, input_type: image, dim: 3,
      n_views: 0, n_views_input: 0, pointcloud_chamfer_file: pointcloud.npz, depth_folder: depth,
      img_folder: image, img_folder_input: img_choy2016, mask_folder: mask,
      visual_hull_depth_folder: visual_hull_depth, img_extension: png, img_extension_input: jpg,
      depth_extension: exr, mask_extension: png, img_size: null, img_size_input: 224,
      img_with_camera: true, img_with_mask: true, train_split: train, val_split: val,
      test_split: test, cache_fields: false, split_model_for_images: false,
      depth_from_visual_hull: false, depth_range: [0, 2.4], ignore_image_idx: []}
    model: {decoder: simple, encoder: resnet18, decoder_kwargs: {}, encoder_kwargs: {},
      depth_function_kwargs: {}, c_dim: 256, lambda_occupied: 1, lambda_freespace: 1,
      lambda_rgb: 1, lambda_depth: 0, lambda_image_gradients: 0, lambda_sparse_depth: 0,
      lambda_normal: 0.05, reduction_method: sum, patch_size: 1}
    training: {out_dir: out/00, batch_size: 64, batch_size_val: 32, print_every: 10,
      checkpoint_every: 200, visualize_every: 10000, validate_every: 2000, backup_every: 50000,
      learning_rate: 0.0001, scheduler_milestones: [750, 1000], scheduler_gamma: 0.5,
      model_selection_metric: loss, model_selection_mode: minimize, n_training_points: 1024,
      n_eval_points: 4000, n_workers: 0, logfile: train.log, sample_continuous: false,
      overwrite_visualization: true, occupancy_random_normal: false,
      depth_loss_on_world_points: false, use_cube_intersection: true, always_freespace: true,
      multi_gpu: false}
    test: {eval_file_name: eval_meshes, threshold: 0.5, model_file: model_best.pt}
    generation: {batch_size: 1, vis_n_outputs: 30, generation_dir: generation,
      simplify_nfaces: null, padding: 0.0, resolution_0: 32, upsampling_steps: 3,
      refinement_step: 30, refine_max_faces: 10000, with_colors: true, mesh_extension: ply}
    rendering: {render_dir: rendering, colors: rgb, resolution: [256, 256],
      ray_sampling_accuracy: [1024, 1025], extension: jpg, n_views: 1, n_start_view: 0,
      background: white}
    """
)
OURS = {
    "data": {"remove_background": False, "skip_unreadable": False},
    "model": {
        "coarse_bounds": True, "min_slope": 0.001, "visual_hull": False, "lambda_unseen": 0.0, "lambda_patch": 0.0,
        "lambda_silhouettes": 0.0,
        "normal_neighborhood": 0.001,
    },
    "training": {
        "gradient_clip": None, "max_iterations": None, "precision": "float32", "compile": False,
        "seed": 0, "scheduler": "milestones", "hull_iterations": 0, "coarse_to_fine": 0.0,
        "occupancy_points": "random", "pixels_near_mask": None, "n_surrounding_rays": 0,
        "n_compared_patches": 128,
    },
    "generation": {"root_steps": 0, "fill_cavities": True, "smallest_part": 0.0},
    "rendering": {
        "trajectory": "dataset", "turntable_elevation": 20, "turntable_axis": None, "fps": 15,
    },
}


@pytest.fixture
def write(tmp_path):
    """Write a config file and give its path."""

    def write(text, name="config.yaml"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return write


def fails(path, *overrides):
    """The message of the InputError that loading raises."""
    with pytest.raises(InputError) as caught:
        load_config(path, overrides)
    return str(caught.value)


# ---- defaults ------------------------------------------------------------------------------------


def test_defaults_are_the_published_ones_and_ours(write):
    expected = {
        section: {**keys, **OURS.get(section, {})} if isinstance(keys, dict) else keys
        for section, keys in PUBLISHED.items()
    }
    assert load_config(write("")) == expected


def test_every_default_key_has_a_comment():
    lines = DEFAULTS.read_text().splitlines()
    keys = [line for line in lines if re.match(r" *\w+: *[^\s#]", line)]
    assert len(keys) == sum(
        len(keys) if isinstance(keys, dict) else 1 for keys in load_config(DEFAULTS).values()
    )
    assert [line for line in keys if not re.search(r"\S +# \S{2,}|\S +# \S+ \S+", line)] == []


def test_every_kind_belongs_to_a_key():
    config = load_config(DEFAULTS)
    for key in set(KINDS) - {"method"}:
        section, name = key.split(".")
        assert name in config[section], key


# ---- inheritance and merging ---------------------------------------------------------------------


def test_a_chain_merges_mappings_and_replaces_the_rest(write):
    write(
        "data: {classes: [a, b]}\n"
        "model: {c_dim: 0, decoder_kwargs: {hidden_size: 64, leaky: true}}",
        "base/one.yaml",
    )
    write("inherit_from: one.yaml\nmodel: {decoder_kwargs: {hidden_size: 128}}", "base/two.yaml")
    config = load_config(write("inherit_from: base/two.yaml\ndata: {classes: [c]}"))
    assert config["model"]["decoder_kwargs"] == {"hidden_size": 128, "leaky": True}
    assert config["model"]["c_dim"] == 0
    assert config["data"]["classes"] == ["c"]
    assert "inherit_from" not in config


def test_parent_is_beside_the_file_or_in_the_working_directory(write, tmp_path, monkeypatch):
    child = write("inherit_from: parent.yaml", "folder/child.yaml")
    write("training: {seed: 1}", "elsewhere/parent.yaml")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert load_config(child)["training"]["seed"] == 1
    write("training: {seed: 2}", "folder/parent.yaml")
    assert load_config(child)["training"]["seed"] == 2


def test_missing_parent_names_file_line_and_places_tried(write, tmp_path):
    path = write("# a comment\ninherit_from: gone.yaml\n")
    message = fails(path)
    assert f"{path}, line 2" in message and str(tmp_path / "gone.yaml") in message


def test_inheritance_cycle_is_told_with_its_members(write):
    write("inherit_from: b.yaml", "a.yaml")
    write("inherit_from: c.yaml", "b.yaml")
    path = write("inherit_from: a.yaml", "c.yaml")
    message = fails(path)
    assert "circle" in message and all(f"{name}.yaml" in message for name in "abc")
    assert "circle" in fails(write("inherit_from: self.yaml", "self.yaml"))


def test_inherit_from_must_be_a_path(write):
    assert "inherit_from must be a path, not 3" in fails(write("inherit_from: 3"))


def test_overrides_win_in_their_order_and_reach_into_arguments(write):
    path = write("model: {decoder_kwargs: {hidden_size: 64}}\ntraining: {seed: 1}")
    config = load_config(
        path,
        [
            "training.seed=2",
            "training.seed=3",
            "model.decoder_kwargs.leaky=true",
            "data.classes=[scan65]",
            "data.train_split=null",
            "data.path=a=b",
        ],
    )
    assert config["training"]["seed"] == 3
    assert config["model"]["decoder_kwargs"] == {"hidden_size": 64, "leaky": True}
    assert config["data"]["classes"] == ["scan65"] and config["data"]["train_split"] is None
    assert config["data"]["path"] == "a=b"


@pytest.mark.parametrize("override", ["training.seed", "=3", "training.seed=[1"])
def test_malformed_override(write, override):
    assert f"--set {override}" in fails(write(""), override)


# ---- validation ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, line, advice",
    [
        ("training:\n  batchsize: 1", 2, "training.batchsize; did you mean training.batch_size?"),
        ("training: {learnin_rate: 1}", 1, "did you mean training.learning_rate?"),
        ("model:\n\n  n_training_points: 5", 3, "exists as training.n_training_points"),
        ("upsampling_steps: 1", 1, "exists as generation.upsampling_steps"),
        ("batch_size: 1", 1, "exists as training.batch_size and generation.batch_size"),
        ("trainig: {seed: 1}", 1, "unknown key trainig; did you mean training?"),
        ("data: {refinment_step: 1}", 1, "did you mean generation.refinement_step?"),
        ("test: {zzz: 1}", 1, "known keys: test.eval_file_name, test.threshold, test.model_file"),
        ("data: {1: 2}", 1, "unknown key data.1"),
    ],
)
def test_unknown_key_names_place_and_nearest_known_key(write, text, line, advice):
    path = write(text)
    message = fails(path)
    assert message.startswith(f"{path}, line {line}: unknown key ") and advice in message


def test_the_error_names_the_file_that_has_the_fault(write):
    parent = write("training:\n  seed: x", "parent.yaml")
    child = write("inherit_from: parent.yaml\ntraining: {seed: 1}", "child.yaml")
    assert fails(child).startswith(f"{parent}, line 2: training.seed must be a whole number >= 0")
    assert fails(write(""), "training.sed=1").startswith("--set training.sed=1: unknown key")


@pytest.mark.parametrize(
    "override, wanted",
    [
        ("method=onet", 'method must be dvr, not "onet"'),
        ("data.dataset_name=dtu", "must be Shapes3D or NMR or DTU or images"),
        ("data.classes=scan65", "must be a list of folder names"),
        ("data.classes=[]", "must be a list of folder names"),
        ("data.classes=[03001627]", "digits need quotes"),
        ("data.path=65", "must be text"),
        ("data.path=null", "must be text"),
        ("data.dim=2", "must be 3"),
        ("data.img_size=[300]", "must be a whole number >= 1, or [height, width], or null"),
        ("data.input_type=img", "must be image or idx, or null"),
        ("data.n_views=-1", "must be a whole number >= 0"),
        ("data.n_views=true", "must be a whole number >= 0"),
        ("data.cache_fields=1", "must be true or false"),
        ("data.cache_fields='yes'", "must be true or false"),
        ("data.depth_range=[2, 1]", "must be [near, far]"),
        ("data.depth_range=[0, 1, 2]", "must be [near, far]"),
        ("data.ignore_image_idx=[1, -1]", "must be a list of whole numbers"),
        ("model.decoder_kwargs=null", "must be a mapping"),
        ("model.decoder_kwargs={1: 2}", "must be a mapping"),
        ("model.lambda_rgb=-1", "must be a number >= 0"),
        ("model.lambda_rgb=.nan", "must be a number >= 0"),
        ("model.reduction_method=max", "must be sum or mean"),
        ("model.c_dim=1.5", "must be a whole number"),
        ("training.batch_size=0", "must be a whole number >= 1"),
        ("training.learning_rate=0", "must be a number > 0"),
        ("training.learning_rate=.inf", "must be a number > 0"),
        ("training.learning_rate=1e", "must be a number > 0"),
        (f"training.learning_rate={10**400}", "must be a number > 0"),
        ("training.model_selection_mode=min", "must be minimize or maximize"),
        ("training.max_iterations=0", "must be a whole number >= 1, or null"),
        ("training.seed=null", "must be a whole number >= 0"),
        ("test.threshold=1", "must be a number between 0 and 1"),
        ("generation.mesh_extension=stl", "must be ply or off or obj"),
        ("rendering.colors=[rgb, normals]", "must be rgb or depth or normal, or a list"),
        ("rendering.colors=[]", "must be rgb or depth or normal, or a list"),
        ("rendering.resolution=256", "must be [height, width]"),
        ("rendering.ray_sampling_accuracy=[64, 64]", "2 <= low < high"),
        ("rendering.background=grey", "must be white or black"),
        ("rendering.trajectory=orbit", "must be dataset or turntable"),
        ("rendering.turntable_elevation=90", "between -90 and 90"),
        ("training=3", "training is a section and must hold keys, not 3"),
        ("training.batch_size.x=1", 'must be a whole number >= 1, not {"x": 1}'),
    ],
)
def test_wrong_kind_tells_what_is_wanted(write, override, wanted):
    message = fails(write(""), override)
    assert override.partition("=")[0].removesuffix(".x") in message and wanted in message


def test_numbers_with_exponents_are_numbers(write):
    config = load_config(
        write(
            "model: {lambda_normal: 5e-2, depth_function_kwargs: {tau: 1e-1, n_steps: [64, 65]}}\n"
            "training: {learning_rate: 1e-4, n_eval_points: 2e4, out_dir: 1e4, seed: 4.0}"
        )
    )
    assert config["model"]["lambda_normal"] == 0.05
    assert config["model"]["depth_function_kwargs"] == {"tau": 0.1, "n_steps": [64, 65]}
    assert config["training"]["learning_rate"] == 1e-4
    assert config["training"]["n_eval_points"] == 20000
    assert isinstance(config["training"]["n_eval_points"], int)
    assert isinstance(config["training"]["seed"], int)
    assert config["training"]["out_dir"] == "1e4"


def test_relations_name_the_file_of_the_value(write):
    path = write("training:\n  n_training_points: 8\nmodel:\n  patch_size: 3")
    message = fails(path)
    assert f"{path}, line 4: model.patch_size is 3" in message
    assert "training.n_training_points >= 9" in message and f"{path}, line 2" in message
    message = fails(write("model: {lambda_image_gradients: 1}"))
    assert "model.lambda_image_gradients is 1" in message and "model.patch_size >= 2" in message
    assert load_config(write("{training: {n_training_points: 9}, model: {patch_size: 3}}"))


def test_broken_files(write, tmp_path):
    path = write("training:\n  seed: 1\n bad: [")
    assert fails(path).startswith(f"{path}, line 3: not valid YAML")
    path = write("a: 1\n\ttab: 2")
    assert fails(path).startswith(f"{path}, line 2: not valid YAML")
    assert "mapping of sections" in fails(write("[1, 2]"))
    assert "not valid YAML" in fails(write("training: !!python/object/apply:os.getcwd []"))
    assert f"cannot read the config {tmp_path / 'no.yaml'}" in fails(tmp_path / "no.yaml")
    assert "cannot read" in fails(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    assert "not UTF-8" in fails(tmp_path / "binary.yaml")


def test_a_key_given_twice_is_an_error(write):
    path = write("training: {seed: 1}\ndata: {n_views: 1}\ntraining: {n_workers: 2}")
    assert fails(path) == f"{path}, line 3: training is given twice (also line 1)"
    path = write("training:\n  seed: 1\n  seed: 2")
    assert fails(path) == f"{path}, line 3: training.seed is given twice (also line 2)"


# ---- saving --------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_saved_config_loads_as_the_same(path, tmp_path):
    config = load_config(path, ["training.learning_rate=1e-5", "data.path='007'"])
    save_config(config, tmp_path / "out" / "config.yaml")
    assert load_config(tmp_path / "out" / "config.yaml") == config


# ---- shipped configs -----------------------------------------------------------------------------

S3 = (
    "https://s3.eu-central-1.amazonaws.com/avg-projects/differentiable_volumetric_rendering/models/"
)
SCANS = {"skull": ("scan65", 34), "birds": ("scan106", 49), "angel": ("scan118", 49)}
CHECKPOINTS = {
    ("skull", "ours_rgb"): "skull/ours_rgb-61966213.pt",
    ("skull", "ours_depth_sfm"): "skull/ours_depth_sfm-6639274d.pt",
    ("skull", "ours_depth_mvs"): "skull/ours_rgb-61966213.pt",
    ("birds", "ours_rgb"): "birds/ours_rgb-d99d8987.pt",
    ("birds", "ours_depth_sfm"): "birds/ours_depth_sfm-85085749.pt",
    ("birds", "ours_depth_mvs"): "birds/ours_depth_mvs-37d3d8ff.pt",
    ("angel", "ours_rgb"): "angel/ours_rgb-612fe39b.pt",
    ("angel", "ours_depth_sfm"): "angel/ours_depth_sfm-8945647b.pt",
    ("angel", "ours_depth_mvs"): "angel/ours_depth_mvs-53673e2f.pt",
}
WEIGHTS = {"ours_rgb": (0, 0), "ours_depth_mvs": (1, 0), "ours_depth_sfm": (0, 1)}
MULTI_VIEW = yaml.safe_load(
    """
    data: {dataset_name: DTU, path: data/DTU, input_type: null, train_split: null,
      val_split: null, test_split: null, cache_fields: true, split_model_for_images: true,
      ignore_image_idx: [3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 36, 37, 38, 39],
      depth_range: [0, 1400]}
    model: {c_dim: 0, encoder: null, patch_size: 2, lambda_image_gradients: 1, lambda_normal: 0.1}
    training: {n_training_points: 2048, n_eval_points: 16000, batch_size: 1, batch_size_val: 1,
      model_selection_metric: mask_intersection, model_selection_mode: maximize,
      scheduler_milestones: [3000, 5000], scheduler_gamma: 0.5, depth_loss_on_world_points: true,
      validate_every: 5000, visualize_every: 10000}
    generation: {upsampling_steps: 4, refinement_step: 30}
    """
)


@pytest.mark.parametrize("name, kind", CHECKPOINTS)
def test_multi_view_configs_are_the_published_ones(name, kind):
    folder = ROOT / "configs" / "multi_view_reconstruction" / name
    expected = load_config(DEFAULTS)
    for section, keys in MULTI_VIEW.items():
        expected[section].update(keys)
    expected["data"]["classes"], expected["data"]["n_views"] = [SCANS[name][0]], SCANS[name][1]
    expected["model"]["lambda_depth"], expected["model"]["lambda_sparse_depth"] = WEIGHTS[kind]
    expected["training"]["out_dir"] = f"out/multi_view_reconstruction/{name}/{kind}"
    assert load_config(folder / f"{kind}.yaml") == expected

    expected["generation"]["generation_dir"] = "generation_pretrained"
    expected["test"]["model_file"] = f"{S3}multi_view_reconstruction/{CHECKPOINTS[name, kind]}"
    assert load_config(folder / f"{kind}_pretrained.yaml") == expected


SINGLE_VIEW = yaml.safe_load(
    """
    multi_view_supervision/ours_combined:
      model: {lambda_depth: 10}
      training: {n_training_points: 768, model_selection_metric: loss_depth_eval}
      file: multi-view-supervision/ours_combined-af2bce07.pt
    multi_view_supervision/ours_depth:
      model: {decoder_kwargs: {out_dim: 1}, lambda_depth: 1, lambda_rgb: 0}
      training: {model_selection_metric: loss_depth_eval}
      generation: {with_colors: false, mesh_extension: "off"}
      file: multi-view-supervision/ours_depth-64d35726.pt
    multi_view_supervision/ours_rgb:
      data: {dataset_name: NMR, path: data/NMR_Dataset, train_split: softras_train,
        val_split: softras_val, test_split: softras_test, img_folder_input: image,
        img_extension_input: png, depth_from_visual_hull: true, depth_range: [0, 5]}
      model: {decoder_kwargs: {hidden_size: 128}}
      training: {model_selection_metric: mask_intersection, model_selection_mode: maximize,
        n_eval_points: 4096}
      file: multi-view-supervision/ours_rgb-23805118.pt
    single_view_supervision/ours_combined:
      data: {img_folder_input: image, img_extension_input: png, n_views: 1, n_views_input: 1}
      model: {lambda_depth: 10}
      training: {model_selection_metric: loss_depth_eval}
      file: single-view-supervision/ours_single-2b2bdbd4.pt
    """
)
DEMOS = {"combined": "choy_renderings", "depth": "choy_renderings", "rgb": "kato_renderings"}


@pytest.mark.parametrize("name", SINGLE_VIEW)
def test_single_view_configs_are_the_published_ones(name):
    folder = ROOT / "configs" / "single_view_reconstruction"
    expected = load_config(DEFAULTS)
    for section in {"data", "model", "training", "generation"} & SINGLE_VIEW[name].keys():
        expected[section].update(SINGLE_VIEW[name][section])
    expected["training"]["n_workers"] = 8
    expected["training"]["out_dir"] = f"out/single_view_reconstruction/{name}"
    assert load_config(folder / f"{name}.yaml") == expected

    expected["generation"]["generation_dir"] = "generation_pretrained"
    expected["test"]["model_file"] = f"{S3}single_view_reconstruction/{SINGLE_VIEW[name]['file']}"
    assert load_config(folder / f"{name}_pretrained.yaml") == expected


@pytest.mark.parametrize("kind", DEMOS)
def test_demo_configs_are_the_published_ones(kind):
    parent = f"single_view_reconstruction/multi_view_supervision/ours_{kind}_pretrained.yaml"
    expected = load_config(ROOT / "configs" / parent)
    expected["data"].update(dataset_name="images", path=f"media/demo/{DEMOS[kind]}")
    expected["training"]["out_dir"] = f"out/demo/demo_{kind}"
    expected["generation"]["generation_dir"] = "generation"
    assert load_config(ROOT / "configs" / "demo" / f"demo_{kind}.yaml") == expected


def test_clean_dtu_config_is_the_published_one():
    expected = load_config(DEFAULTS)
    expected["data"].update(dataset_name="DTU", path="data/DTU", input_type=None)
    expected["data"].update(classes=["scan65", "scan106", "scan118"])
    expected["data"].update(train_split=None, val_split=None, test_split=None)
    expected["training"]["out_dir"] = "out/clean_dtu_predictions"
    assert load_config(ROOT / "configs" / "other" / "clean_dtu.yaml") == expected


def test_no_two_experiments_share_an_output_folder():
    owners = {}
    for path in SHIPPED:
        config = load_config(path)
        if path.name in ("default.yaml", "common.yaml"):
            continue
        place = config["training"]["out_dir"], config["generation"]["generation_dir"]
        assert owners.setdefault(place, path) == path


# ---- command line --------------------------------------------------------------------------------


@pytest.fixture
def command(write, tmp_path):
    """Run a job as ``<name>.py`` with a config whose out_dir is ``tmp_path/out``."""

    def command(job, *arguments, name="generate"):
        config = write(f"training: {{out_dir: {tmp_path / 'out'}}}")
        parser = cli.argument_parser(name, "A test.")
        cli.add_shortcut(parser, "--upsampling-steps", "generation.upsampling_steps")
        return cli.run(job, parser, [str(config), *arguments])

    return command


def job_that_raises(error):
    def job(config, device, args):
        raise error

    return job


def test_run_gives_the_job_its_config_device_and_arguments(command):
    def job(config, device, args):
        seen.update(config=config, device=device, args=args)

    seen = {}
    arguments = ["--no-cuda", "--upsampling-steps", "1", "--set", "training.seed=7", "--set"]
    assert command(job, *arguments, "data.n_views=2") == 0
    assert seen["config"]["generation"]["upsampling_steps"] == 1
    assert seen["config"]["training"]["seed"] == 7 and seen["config"]["data"]["n_views"] == 2
    assert seen["device"] == torch.device("cpu") and seen["args"].no_cuda


def test_run_returns_the_exit_code_of_the_job(command):
    assert command(lambda *_: 3) == 3
    with pytest.raises(SystemExit) as exit:
        command(job_that_raises(SystemExit(3)))
    assert exit.value.code == 3


def test_messages_go_to_the_terminal_and_append_to_the_log(command, tmp_path, capsys):
    def job(config, device, args):
        log = logging.getLogger("im2mesh.any")
        log.debug("detail")
        log.info("hello")
        log.warning("beware")

    assert command(job) == 0
    assert command(job) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[-1] == "hello" and "device: cpu" in out and "detail" not in out
    assert err == "warning: beware\n" * 2
    written = (tmp_path / "out" / "generate.log").read_text()
    assert written.count("INFO hello") == 2 and "detail" in written and "generate.py" in written
    assert logging.getLogger("im2mesh").handlers == []


def test_train_logs_to_training_logfile(command, tmp_path):
    assert command(lambda *_: 0, "--set", "training.logfile=my.log", name="train") == 0
    assert (tmp_path / "out" / "my.log").exists()


def test_bad_input_is_one_clean_line_and_its_traceback_in_the_log(command, tmp_path, capsys):
    assert command(job_that_raises(InputError("image 3 is missing"))) == 2
    assert capsys.readouterr().err == "error: image 3 is missing\n"
    written = (tmp_path / "out" / "generate.log").read_text()
    assert "Traceback" in written and "InputError: image 3 is missing" in written


def test_bad_config_is_bad_input(command, capsys):
    assert command(lambda *_: 0, "--set", "trainin.seed=1") == 2
    assert capsys.readouterr().err.startswith("error: --set trainin.seed=1: unknown key trainin")
    assert command(lambda *_: 0, "--upsampling-steps", "many") == 2
    assert "generation.upsampling_steps must be a whole number" in capsys.readouterr().err


def test_out_dir_that_cannot_be_written(command, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert command(lambda *_: 0, "--set", f"training.out_dir={tmp_path / 'file' / 'out'}") == 2
    err = capsys.readouterr().err
    assert err.startswith("error: training.out_dir: cannot write") and err.count("\n") == 1


def test_internal_error_points_to_the_log(command, tmp_path, capsys):
    assert command(job_that_raises(ZeroDivisionError("by zero"))) == 1
    log = tmp_path / "out" / "generate.log"
    expected = f"internal error: ZeroDivisionError: by zero - details in {log}\n"
    assert capsys.readouterr().err == expected
    assert "Traceback" in log.read_text()


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ..."),
    ],
)
def test_out_of_memory_tells_what_to_lower(command, capsys, error):
    assert command(job_that_raises(error)) == 1
    err = capsys.readouterr().err
    assert "max_points" in err and "n_training_points" in err and err.count("\n") == 1


def test_interrupt_is_one_line_and_exit_code_130(command, capsys):
    assert command(lambda *_: signal.raise_signal(signal.SIGINT)) == 130
    assert capsys.readouterr().err == "error: interrupted\n"


def test_wrong_arguments_exit_with_2(command, capsys):
    with pytest.raises(SystemExit) as exit:
        command(lambda *_: 0, "--no-such-option")
    assert exit.value.code == 2 and "usage: generate.py" in capsys.readouterr().err


# ---- methods -------------------------------------------------------------------------------------


def test_the_method_supplies_its_factories():
    module = method_module(load_config(DEFAULTS))
    for name in ("get_model", "get_trainer", "get_generator", "get_renderer", "get_data_fields"):
        assert callable(getattr(module, name)), name


def test_methods_are_imported_only_when_asked_for():
    code = "import sys, im2mesh.config; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert "im2mesh.config" in loaded
    assert not {"torch", *METHODS.values()} & set(loaded)


# ---- arguments of another decoder ----------------------------------------------------------------

SHARP = "configs/multi_view_reconstruction/cpu/sharp.yaml"


@pytest.mark.parametrize(
    "overrides, decoder, arguments",
    [
        (["model.decoder=simple"], "simple", {}),
        (["model.decoder=frequency", "model.decoder_kwargs={n_octaves: 4}"], "frequency", {"n_octaves": 4}),
        # In any order: the arguments may be meant for the decoder that is chosen after them.
        (["model.decoder_kwargs.hidden_size=32", "model.decoder=simple"], "simple", {"hidden_size": 32}),
        (["model.decoder=hashgrid"], "hashgrid", {"n_levels": 10, "finest": 320, "log2_table_size": 16}),
        (["model.decoder_kwargs.n_levels=8"], "hashgrid",
         {"n_levels": 8, "finest": 320, "log2_table_size": 16}),
    ],
)
def test_another_decoder_takes_no_arguments_of_the_one_before(overrides, decoder, arguments):
    model = load_config(SHARP, overrides)["model"]
    assert model["decoder"] == decoder and model["decoder_kwargs"] == arguments


def test_a_file_that_chooses_another_encoder(tmp_path):
    (tmp_path / "parent.yaml").write_text(
        "model: {encoder: resnet34, encoder_kwargs: {pretrained: false}, decoder_kwargs: {hidden_size: 64}}"
    )
    child = tmp_path / "child.yaml"
    child.write_text("inherit_from: parent.yaml\nmodel: {encoder_kwargs: {width: 8}, encoder: resnet18}")
    model = load_config(child)["model"]
    assert model["encoder_kwargs"] == {"width": 8} and model["decoder_kwargs"] == {"hidden_size": 64}
