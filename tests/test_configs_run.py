"""Every config we ship is built and does what it is for: one training step, a mesh, a picture."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from im2mesh.commands.setup import get_dataset
from im2mesh.config import load_config, method_module
from im2mesh.data import collate, make_loader
from im2mesh.errors import InputError
from im2mesh.geometry import object_to_image
from tests.sphere_scene import write_sphere_scene

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
SHIPPED = {path.relative_to(CONFIGS): load_config(path) for path in sorted(CONFIGS.rglob("*.yaml"))}
# It serves a script that needs no network.
WITHOUT_MODEL = Path("other/clean_dtu.yaml")
FOLDERS = {name for name, c in SHIPPED.items() if c["data"]["dataset_name"] == "images"}
MULTI_VIEW = {name for name, c in SHIPPED.items() if c["model"]["encoder"] is None}
SINGLE_VIEW = SHIPPED.keys() - MULTI_VIEW - FOLDERS - {WITHOUT_MODEL}
N_VIEWS = 64
TERMS = {
    "rgb": "lambda_rgb", "image_gradients": "lambda_image_gradients", "depth": "lambda_depth",
    "sparse_depth": "lambda_sparse_depth", "normal": "lambda_normal",
    "freespace": "lambda_freespace", "occupied": "lambda_occupied",
    "unseen": "lambda_unseen", "patch": "lambda_patch", "silhouettes": "lambda_silhouettes",
}


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """An object folder with as many views as a scan of DTU."""
    folder = tmp_path_factory.mktemp("scene") / "object"
    write_sphere_scene(folder, n_views=N_VIEWS, size=(8, 10))
    shutil.copytree(folder / "depth", folder / "visual_hull_depth")
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of two small images."""
    folder = tmp_path_factory.mktemp("images")
    for i in range(2):
        pixels = np.random.default_rng(i).integers(0, 256, (70, 70, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.jpg")
    return folder


@pytest.fixture(scope="module")
def shapes(tmp_path_factory, images):
    """Two classes of two objects in the layout of ShapeNet, under the splits of all its configs."""
    root = tmp_path_factory.mktemp("shapes")
    for category in ("chair", "lamp"):
        for model in "ab":
            folder = root / category / model
            write_sphere_scene(folder, n_views=2, size=(16, 16))
            shutil.copytree(folder / "depth", folder / "visual_hull_depth")
            (folder / "img_choy2016").symlink_to(images)
        for split in ("train", "val", "test"):
            for name in (split, f"softras_{split}"):
                (root / category / f"{name}.lst").write_text("a\nb\n")
    return root


@pytest.fixture
def load(tmp_path, scene, shapes, images):
    """Load a shipped config for small data of the layout it asks for, and a small network."""

    def load(name):
        if name in SINGLE_VIEW | FOLDERS:
            path = images if name in FOLDERS else shapes
        else:
            path = tmp_path / "data"
            for category in SHIPPED[name]["data"]["classes"] or ["scan1"]:
                (path / category).mkdir(parents=True)
                (path / category / category).symlink_to(scene)
        overrides = [
            f"data.path={path}", "generation.resolution_0=4", "generation.upsampling_steps=1",
            "generation.refinement_step=1", "rendering.ray_sampling_accuracy=[8, 9]",
            "model.decoder_kwargs={hidden_size: 16}",
        ]
        if name not in MULTI_VIEW:
            overrides += ["data.img_size_input=64", "training.batch_size=2"]
        return load_config(CONFIGS / name, overrides)

    return load


def get_model(config):
    """A model whose field is occupied in places, so that all terms have rays."""
    torch.manual_seed(0)
    model = method_module(config).get_model(config)
    with torch.no_grad():
        model.decoder.fc_out.weight[0] *= 30
    return model


def assert_generates(config, model):
    """A mesh of the first object, as ``generate.py`` makes it; gives its latent shifts."""
    batch = collate([get_dataset(config, "test")[0]])
    with torch.no_grad():
        shifts = model.eval().encode(batch.get("inputs"))
        logits = model.logit_field(shifts)(torch.rand(200, 3) - 0.5)
        model.decoder.fc_out.bias[0] -= logits.median()  # half of the cube is occupied
    mesh = method_module(config).get_generator(config, model, "cpu").generate(shifts)
    assert len(mesh.faces) > 0
    assert (mesh.colors is not None) == config["generation"]["with_colors"]
    return shifts


@pytest.mark.parametrize("name", sorted(SHIPPED.keys() - {WITHOUT_MODEL}), ids=str)
def test_model_of_a_config_as_shipped(name):
    with torch.device("meta"):
        model = method_module(SHIPPED[name]).get_model(SHIPPED[name], "meta")
    assert model.has_color == SHIPPED[name]["generation"]["with_colors"]


@pytest.mark.parametrize("name", sorted(MULTI_VIEW | SINGLE_VIEW), ids=str)
def test_config_trains_generates_and_renders(load, name):
    config = load(name)
    method = method_module(config)
    model = get_model(config)
    optimizer = method.get_optimizer(config, model)
    trainer = method.get_trainer(config, model, optimizer, "cpu")

    data, training = config["data"], config["training"]
    train_set, val_set = (get_dataset(config, mode) for mode in ("train", "val"))
    if name in MULTI_VIEW:
        views = [view for view in range(N_VIEWS) if view not in data["ignore_image_idx"]]
        assert [entry.view for entry in train_set.entries] == views[: data["n_views"] or None]
    else:
        assert [entry.label for entry in train_set.entries] == [
            "chair/a", "chair/b", "lamp/a", "lamp/b",
        ]
    loader = make_loader(train_set, training["batch_size"], seed=0)
    if trainer.asks_views:
        trainer.know_views([train_set[i] for i in range(len(train_set))])
    report = trainer.train_step(next(iter(loader)), 0)
    wanted = {term for term, key in TERMS.items() if config["model"][key]}
    assert set(report) - {"loss", "gradient_norm", "hit_share", "rays"} == wanted
    assert all(np.isfinite(value) for value in report.values()) and report["loss"] > 0
    gradients = [parameter.grad for parameter in model.parameters()]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
    assert model.decoder.fc_p.weight.grad.any()
    if model.encoder is not None:
        assert all(parameter.grad.any() for parameter in model.encoder.parameters())

    loader = make_loader(val_set, training["batch_size_val"], shuffle=False, endless=False)
    metrics = trainer.evaluate([next(iter(loader))])
    assert training["model_selection_metric"] in metrics

    shifts = assert_generates(config, model)
    item = get_dataset(config, "render")[0]
    matrix = object_to_image(*(item[f"img.{m}_mat"] for m in ("camera", "world", "scale")))
    picture = method.get_renderer(config, model, "cpu").render(matrix, 3, 4, shifts)
    kind = "rgb" if model.has_color else "depth"
    assert picture.image(kind, config["rendering"]["background"]).shape == (3, 4, 3)
    assert len(get_dataset(config, "eval")[0]["pointcloud.points"]) == 60


@pytest.mark.parametrize("name", sorted(FOLDERS), ids=str)
def test_config_of_a_folder_of_images_generates(load, name):
    config = load(name)
    method = method_module(config)
    model = get_model(config)
    method.get_trainer(config, model, method.get_optimizer(config, model), "cpu")
    assert_generates(config, model)
    for mode in ("train", "val", "eval"):
        with pytest.raises(InputError, match="data.dataset_name"):
            get_dataset(config, mode)


def test_config_without_model_finds_its_data(load):
    config = load(WITHOUT_MODEL)
    for mode in ("train", "val", "test", "render", "eval"):
        assert len(get_dataset(config, mode)) == 3
    with pytest.raises(InputError, match="data.input_type is null, but model.encoder resnet18"):
        method_module(config).get_model(config)


@pytest.mark.parametrize("supported, expected", [(True, torch.bfloat16), (False, None)])
def test_sixteen_bits_only_where_the_processor_has_them(supported, expected, monkeypatch, caplog):
    """Emulated, a step of the single-view config takes many times as long."""
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: supported)
    config = load_config(
        CONFIGS / "multi_view_reconstruction/cpu/simple.yaml", ["training.precision=bfloat16"]
    )
    method = method_module(config)
    model = get_model(config)
    trainer = method.get_trainer(config, model, method.get_optimizer(config, model), "cpu")
    assert trainer.options.precision == expected
    assert ("training.precision" in caplog.text) == (not supported)
