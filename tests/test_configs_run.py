"""Every config we ship is built and does what it is for: one training step, a mesh, a picture."""

from pathlib import Path

import numpy as np
import pytest
import torch

from im2mesh.commands.setup import get_dataset
from im2mesh.config import load_config, method_module
from im2mesh.data import make_loader
from im2mesh.errors import InputError
from im2mesh.geometry import object_to_image
from tests.sphere_scene import write_sphere_scene

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
SHIPPED = sorted(path.relative_to(CONFIGS) for path in CONFIGS.rglob("*.yaml"))
# No experiments: the first lists all keys, the second serves a script that needs no network.
WITHOUT_MODEL = {Path("default.yaml"), Path("other/clean_dtu.yaml")}
N_VIEWS = 64
TERMS = {
    "rgb": "lambda_rgb", "image_gradients": "lambda_image_gradients", "depth": "lambda_depth",
    "sparse_depth": "lambda_sparse_depth", "normal": "lambda_normal",
    "freespace": "lambda_freespace", "occupied": "lambda_occupied",
}


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """An object folder with as many views as a scan of DTU."""
    folder = tmp_path_factory.mktemp("scene") / "object"
    write_sphere_scene(folder, n_views=N_VIEWS, size=(8, 10))
    return folder


@pytest.fixture
def load(tmp_path, scene):
    """Load a shipped config for small data of the layout it asks for, and a small network."""

    def load(name):
        classes = load_config(CONFIGS / name)["data"]["classes"] or ["02691156"]
        for category in classes:
            (tmp_path / "data" / category).mkdir(parents=True)
            (tmp_path / "data" / category / category).symlink_to(scene)
        overrides = [
            f"data.path={tmp_path / 'data'}", "generation.resolution_0=4",
            "generation.upsampling_steps=1", "generation.refinement_step=1",
            "rendering.ray_sampling_accuracy=[8, 9]", "model.decoder_kwargs={hidden_size: 16}",
        ]
        return load_config(CONFIGS / name, overrides)

    return load


@pytest.mark.parametrize("name", sorted(set(SHIPPED) - WITHOUT_MODEL), ids=str)
def test_config_trains_generates_and_renders(load, name):
    config = load(name)
    method = method_module(config)
    method.get_model(load_config(CONFIGS / name))  # as shipped
    torch.manual_seed(0)
    model = method.get_model(config)
    with torch.no_grad():  # a field that is occupied in places: all terms have rays
        model.decoder.fc_out.weight[0] *= 30
    optimizer = method.get_optimizer(config, model)
    trainer = method.get_trainer(config, model, optimizer, "cpu")

    data, training = config["data"], config["training"]
    train_set, val_set = (get_dataset(config, mode) for mode in ("train", "val"))
    views = [view for view in range(N_VIEWS) if view not in data["ignore_image_idx"]]
    assert [entry.view for entry in train_set.entries] == views[: data["n_views"] or None]
    loader = make_loader(train_set, training["batch_size"], seed=0)
    report = trainer.train_step(next(iter(loader)), 0)
    wanted = {term for term, key in TERMS.items() if config["model"][key]}
    assert set(report) - {"loss", "hit_share", "rays"} == wanted
    assert all(np.isfinite(value) for value in report.values()) and report["loss"] > 0
    gradients = [parameter.grad for parameter in model.parameters()]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
    assert model.decoder.fc_p.weight.grad.any()

    loader = make_loader(val_set, training["batch_size_val"], shuffle=False, endless=False)
    metrics = trainer.evaluate([next(iter(loader))])
    assert training["model_selection_metric"] in metrics

    mesh = method.get_generator(config, model, "cpu").generate()
    assert (mesh.colors is not None) == config["generation"]["with_colors"]
    item = get_dataset(config, "render")[0]
    matrix = object_to_image(*(item[f"img.{m}_mat"] for m in ("camera", "world", "scale")))
    picture = method.get_renderer(config, model, "cpu").render(matrix, 3, 4)
    assert picture.image("rgb", config["rendering"]["background"]).shape == (3, 4, 3)
    assert len(get_dataset(config, "eval")[0]["pointcloud.points"]) == 60


@pytest.mark.parametrize("name", sorted(WITHOUT_MODEL), ids=str)
def test_config_without_model_finds_its_data(load, name):
    config = load(name)
    for mode in ("train", "val", "test", "render", "eval"):
        assert len(get_dataset(config, mode)) == len(config["data"]["classes"] or [0])
    with pytest.raises(InputError, match="^model.encoder: 'resnet18'"):
        method_module(config).get_model(config)
