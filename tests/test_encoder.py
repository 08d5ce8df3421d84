"""Encoders: their names and shapes, what they compute, and the weights that ResNets start from."""

import hashlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from im2mesh import checkpoints
from im2mesh.config import load_config, method_module
from im2mesh.encoder import ConvEncoder, ResnetEncoder, resnet
from im2mesh.errors import InputError
from tests import published
from tests.programs import files, run, same, write_config
from tests.sphere_scene import write_sphere_scene

server = pytest.fixture(published.web_server)

DEPTHS = (18, 34, 50, 101)
DEFAULT = "configs/default.yaml"


def build(*overrides, **options):
    config = load_config(DEFAULT, overrides)
    return method_module(config).get_model(config, **options)


def shapes(module):
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


def randomized(module):
    """The module with weights and statistics that leave no layer without effect."""
    torch.manual_seed(0)
    for value in (*module.parameters(), *module.buffers()):
        if value.dtype.is_floating_point and value.ndim == 1:
            torch.nn.init.uniform_(value, 0.5, 1.5)
    return module


def plain_resnet(weights, depth, x):
    """A ResNet written out, with the statistics of ``weights``."""

    def norm(x, name):
        kinds = ("running_mean", "running_var", "weight", "bias")
        mean, var, weight, bias = (weights[f"{name}.{kind}"].view(-1, 1, 1) for kind in kinds)
        return (x - mean) / (var + 1e-5).sqrt() * weight + bias

    def conv(x, name, stride=1):
        weight = weights[f"{name}.weight"]
        return F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)

    x = norm(conv(x, "conv1", 2), "bn1").clamp_min(0)
    x = F.max_pool2d(F.pad(x, (1, 1, 1, 1)), 3, stride=2)  # all is >= 0, so zeros change nothing
    for stage, count in enumerate(published.BLOCKS[depth], start=1):
        for i in range(count):
            name, stride = f"layer{stage}.{i}", 2 if stage > 1 and i == 0 else 1
            strides = [stride, 1] if depth < 50 else [1, stride, 1]
            net = x
            for j, step in enumerate(strides, start=1):
                net = norm(conv(net, f"{name}.conv{j}", step), f"{name}.bn{j}")
                net = net if j == len(strides) else net.clamp_min(0)
            if f"{name}.downsample.0.weight" in weights:
                x = norm(conv(x, f"{name}.downsample.0", stride), f"{name}.downsample.1")
            x = (x + net).clamp_min(0)
    return x.flatten(2).mean(2)


# ---- names and shapes ----------------------------------------------------------------------------


@pytest.mark.parametrize("depth", DEPTHS)
def test_resnet_has_torchvisions_names_and_no_classifier(depth):
    n_features = 512 if depth < 50 else 2048
    expected = published.under("features", published.resnet(depth))
    with torch.device("meta"):
        encoder, bare = ResnetEncoder(depth, 7), ResnetEncoder(depth, n_features, use_linear=False)
    assert shapes(bare) == expected
    assert shapes(encoder) == expected | published.linear("fc", n_features, 7)


@pytest.mark.parametrize(
    "depth, count", [(18, 11_176_512), (34, 21_284_672), (50, 23_508_032), (101, 42_500_160)]
)
def test_resnet_has_as_many_weights_as_the_original_without_its_classifier(depth, count):
    with torch.device("meta"):
        assert sum(p.numel() for p in ResnetEncoder(depth, 1).features.parameters()) == count


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnet101"])
def test_the_factory_builds_each_resnet(name):
    with torch.device("meta"):
        model = build(f"model.encoder={name}", device="meta")
    expected = published.under("encoder.features", published.resnet(int(name[6:])))
    expected |= published.linear("encoder.fc", 512 if int(name[6:]) < 50 else 2048, 256)
    expected |= published.under("decoder", published.decoder(256))
    assert shapes(model) == expected


def test_the_factory_builds_simple_conv():
    with torch.device("meta"):
        model = build("model.encoder=simple_conv", "model.c_dim=9", device="meta")
    assert shapes(model.encoder) == published.simple_conv(9)


def test_the_factory_builds_codes_by_number():
    splits = [f"data.{mode}_split=train" for mode in ("val", "test")]
    model = build("model.encoder=idx", "data.input_type=idx", "model.c_dim=6", *splits, n_objects=5)
    names = {name for name in shapes(model) if name.startswith("encoder.")}
    assert names == {"encoder.weight"} and shapes(model)["encoder.weight"] == (5, 6)
    codes = model.encoder.weight[torch.tensor([3, 0])]
    for shift, expected in zip(model.encode(torch.tensor([3, 0])), model.decoder.condition(codes)):
        assert torch.equal(shift, expected)


def test_the_factory_builds_no_encoder():
    model = build("model.encoder=null", "model.c_dim=0", "data.input_type=null")
    assert model.encoder is None and model.encode(None) is None


# ---- values --------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [18, 50])
def test_resnet(depth):
    encoder = randomized(ResnetEncoder(depth, 5)).double().eval()
    images = torch.rand(2, 3, 33, 64, dtype=torch.float64)
    mean = torch.tensor([0.485, 0.456, 0.406], dtype=torch.float64).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225], dtype=torch.float64).view(3, 1, 1)
    for normalize, seen in ((True, (images - mean) / std), (False, images)):
        encoder.normalize = normalize
        features = plain_resnet(encoder.features.state_dict(), depth, seen)
        expected = features @ encoder.fc.weight.T + encoder.fc.bias
        torch.testing.assert_close(encoder(images), expected, rtol=1e-6, atol=1e-6)


def test_resnet_without_linear_layer_gives_the_features():
    encoder = ResnetEncoder(18, 512, use_linear=False).eval()
    images = torch.rand(1, 3, 40, 40)
    assert torch.equal(encoder(images), encoder.features((images - encoder.mean) / encoder.std))


def test_simple_conv():
    torch.manual_seed(0)
    encoder, images = ConvEncoder(6), torch.rand(2, 3, 95, 63)
    net = images
    for i in range(5):
        conv = getattr(encoder, f"conv{i}")
        net = F.conv2d(net if i == 0 else net.clamp_min(0), conv.weight, conv.bias, stride=2)
    assert net.shape == (2, 512, 2, 1)
    features = net.mean((2, 3)).clamp_min(0)
    expected = features @ encoder.fc_out.weight.T + encoder.fc_out.bias
    torch.testing.assert_close(encoder(images), expected)


@pytest.mark.parametrize("make", [ConvEncoder, lambda c_dim: ResnetEncoder(18, c_dim)])
def test_the_smallest_image_and_a_batch_of_one(make):
    encoder = make(4).train()
    size = encoder.min_size
    assert encoder(torch.rand(1, 3, size, size)).shape == (1, 4)
    with pytest.raises((RuntimeError, ValueError)):
        encoder(torch.rand(1, 3, size - 1, size - 1))


def test_encode_takes_images_of_8_bits():
    options = ["model.encoder=simple_conv", "model.decoder_kwargs={hidden_size: 8}"]
    model = build("model.c_dim=6", *options)
    images = torch.randint(0, 256, (2, 3, 63, 63), dtype=torch.uint8)
    expected = model.decoder.condition(model.encoder(images.float() / 255))
    shifts = model.encode(images)
    assert [tuple(shift.shape) for shift in shifts] == [(2, 8)] * 5
    for shift, other in zip(shifts, expected):
        torch.testing.assert_close(shift, other)
    shifts[0].sum().backward()
    assert model.encoder.conv0.weight.grad.any()


# ---- what does not go together -------------------------------------------------------------------


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["encoder=resnet81"], "model.encoder: unknown encoder 'resnet81'; known: resnet18,.*null"),
        (["encoder=null", "c_dim=0"], "data.input_type is image, but .* null needs null"),
        (["encoder=idx"], "data.input_type is image, but model.encoder idx needs idx"),
        (["data.input_type=idx"], "data.input_type is idx, but model.encoder resnet18 needs image"),
        (
            ["encoder=simple_conv", "data.input_type=null"],
            "data.input_type is null, but model.encoder simple_conv needs image",
        ),
        (["encoder=null", "data.input_type=null"], "model.c_dim is 256, .* it must be 0"),
        (["c_dim=0"], "model.c_dim is 0: .* resnet18"),
        (["encoder=simple_conv", "data.img_size_input=62"], "img_size_input is 62, .* at least 63"),
        (["data.img_size_input=32"], "data.img_size_input is 32, .* at least 33"),
        (["encoder_kwargs={use_linear: false}"], "c_dim must be the 512 features .*, not 256"),
        (
            ["encoder=resnet50", "c_dim=512", "encoder_kwargs={use_linear: false}"],
            "c_dim must be the 2048 features of a ResNet-50, not 512",
        ),
        (["encoder_kwargs={leaky: true}"], "unknown argument leaky; known: .*pretrained"),
        (["encoder_kwargs={depth: 34}"], "unknown argument depth"),
        (["encoder_kwargs={pretraind: 1}"], "did you mean pretrained?"),
        (["encoder_kwargs={pretrained: 1}"], r"pretrained must be bool \| str .*, not 1"),
        (["encoder_kwargs={normalize: x}"], "normalize must be bool"),
        (
            ["encoder=simple_conv", "encoder_kwargs={pretrained: true}"],
            "unknown argument pretrained; it takes none",
        ),
        (
            ["encoder=null", "c_dim=0", "data.input_type=null", "encoder_kwargs={normalize: true}"],
            "model.encoder_kwargs: the encoder null takes none",
        ),
        (
            ["encoder=idx", "data.input_type=idx"],
            "data.val_split is val, but .* idx knows .* set both to train",
        ),
        (
            ["encoder=idx", "data.input_type=idx", "data.train_split=null", "data.val_split=null"],
            "data.test_split is test, .* set both to null",
        ),
    ],
)
def test_what_does_not_go_together(overrides, message):
    overrides = [o if o.startswith("data.") else f"model.{o}" for o in overrides]
    with torch.device("meta"), pytest.raises(InputError, match=message):
        build(*overrides, device="meta")


# ---- start weights -------------------------------------------------------------------------------


@pytest.fixture
def imagenet(server, monkeypatch):
    """Put ImageNet weights on the server, in the format of old PyTorch; gives them."""
    weights = published.weights(published.resnet(18) | published.linear("fc", 512, 1000))
    weights = {
        # alike channels vary by nothing: normalized, their gradients would grow without end
        name: value / 1e6 if value.ndim == 1 and name.endswith("weight") else value
        for name, value in weights.items()
        if not name.endswith("num_batches_tracked")
    }
    content = published.as_bytes(weights, zipped=False)
    name = f"resnet18-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    (server.folder / name).write_bytes(content)
    monkeypatch.setitem(resnet.IMAGENET_WEIGHTS, 18, f"{server.address}/{name}")
    return weights


def assert_holds(encoder, weights):
    features = encoder.features.state_dict()
    names = {name for name in features if not name.endswith("num_batches_tracked")}
    assert names == set(weights) - {"fc.weight", "fc.bias"}
    assert all(torch.equal(features[name], weights[name]) for name in names)


def test_the_known_files_are_those_of_the_published_start_weights():
    names = {depth: url.rpartition("/")[2] for depth, url in resnet.IMAGENET_WEIGHTS.items()}
    assert names == {
        18: "resnet18-f37072fd.pth", 34: "resnet34-b627a593.pth",
        50: "resnet50-0676ba61.pth", 101: "resnet101-63fe2227.pth",
    }
    hosts = {url.rpartition("/")[0] for url in resnet.IMAGENET_WEIGHTS.values()}
    assert hosts == {"https://download.pytorch.org/models"}


def test_start_weights_are_downloaded_once(server, imagenet):
    encoder = ResnetEncoder(18, 4)
    fc = encoder.fc.weight.clone()
    assert server.requests == []  # to construct it needs no network
    for _ in range(2):
        encoder.load_pretrained()
        assert_holds(encoder, imagenet)
    assert torch.equal(encoder.fc.weight, fc)
    assert len(server.requests) == 1


def test_start_weights_of_a_file(server, imagenet, tmp_path):
    path = tmp_path / "mine.pth"
    torch.save(imagenet, path)
    encoder = ResnetEncoder(18, 4, pretrained=str(path))
    encoder.load_pretrained()
    assert_holds(encoder, imagenet)
    assert server.requests == []


def test_random_start(server, imagenet):
    encoder = ResnetEncoder(18, 4, pretrained=False)
    before = encoder.features.conv1.weight.clone()
    encoder.load_pretrained()
    assert torch.equal(encoder.features.conv1.weight, before)
    assert server.requests == []


def test_a_model_loads_what_its_encoder_starts_from(imagenet):
    model = build("model.decoder_kwargs={hidden_size: 8}")
    model.load_start_weights()
    assert_holds(model.encoder, imagenet)
    for encoder in ("simple_conv", "null"):
        given = ["model.c_dim=0", "data.input_type=null"] if encoder == "null" else []
        build(f"model.encoder={encoder}", *given).load_start_weights()  # nothing to do


def test_without_network_the_error_tells_both_ways_on(server, imagenet):
    next(server.folder.iterdir()).unlink()
    name = resnet.IMAGENET_WEIGHTS[18].rpartition("/")[2]
    encoder = ResnetEncoder(18, 4)
    with pytest.raises(InputError) as err:
        encoder.load_pretrained()
    message = str(err.value)
    assert "no ImageNet weights" in message and "{pretrained: false}" in message
    place = message.splitlines()[0].split()[-1]
    assert place.endswith(f"checkpoints/{name}")
    with open(place, "wb") as file:
        file.write(published.as_bytes(imagenet, zipped=False))
    encoder.load_pretrained()
    assert_holds(encoder, imagenet)


def test_start_weights_of_another_network_are_listed(imagenet, tmp_path):
    path = tmp_path / "mine.pth"
    del imagenet["layer4.1.conv2.weight"]
    imagenet["layer5.0.conv1.weight"] = torch.zeros(1)
    imagenet["conv1.weight"] = torch.zeros(64, 1, 7, 7)
    torch.save(imagenet, path)
    with pytest.raises(InputError) as err:
        ResnetEncoder(18, 4, pretrained=str(path)).load_pretrained()
    first, *lines = str(err.value).splitlines()
    assert first == f"model.encoder_kwargs.pretrained: {path} does not fit a ResNet-18:"
    assert lines == [
        "  missing: layer4.1.conv2.weight",
        "  not in the model: layer5.0.conv1.weight",
        "  conv1.weight: (64, 1, 7, 7) in the file, (64, 3, 7, 7) in the model",
    ]


@pytest.mark.parametrize("content", [[1, 2], {"model": {}}, {"conv1.weight": 3}], ids=str)
def test_start_weights_that_are_no_state_dict(tmp_path, content):
    path = tmp_path / "mine.pth"
    torch.save(content, path)
    with pytest.raises(InputError, match="mine.pth is not a state dict.*encoder_kwargs.pretrai"):
        ResnetEncoder(18, 4, pretrained=str(path)).load_pretrained()


def test_start_weights_that_do_not_exist(tmp_path):
    encoder = ResnetEncoder(18, 4, pretrained=str(tmp_path / "no.pth"))
    with pytest.raises(InputError, match="no.pth does not exist. Check .*pretrained"):
        encoder.load_pretrained()


# ---- the programs --------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path):
    """Write a config for two small objects with input images, changed by sections."""
    for number, model in enumerate("ab"):
        folder = tmp_path / "data/chair" / model
        write_sphere_scene(folder, n_views=2, size=(8, 8))
        (folder / "img_choy2016").mkdir()
        for view in range(2):
            pixels = np.random.default_rng([number, view]).integers(0, 256, (40, 40, 3), np.uint8)
            Image.fromarray(pixels).save(folder / f"img_choy2016/{view}.jpg")

    def write(name="run", **sections):
        data = {
            "dataset_name": "Shapes3D", "input_type": "image", "img_size_input": 40,
            "split_model_for_images": False, "cache_fields": False,
        }
        data |= dict.fromkeys(["train_split", "val_split", "test_split"])
        model = {"encoder": "resnet18", "c_dim": 8, "decoder_kwargs": {"hidden_size": 16}}
        sections["data"] = data | sections.get("data", {})
        sections["model"] = model | sections.get("model", {})
        sections["training"] = {"batch_size": 2, "batch_size_val": 2} | sections["training"]
        return write_config(tmp_path / name, tmp_path / "data", **sections)

    return write


def test_only_training_from_scratch_looks_for_start_weights(
    project, server, imagenet, capsys, tmp_path
):
    online, offline = resnet.IMAGENET_WEIGHTS[18], f"{server.address}/resnet18-00000000.pth"
    resnet.IMAGENET_WEIGHTS[18] = offline
    config = project(training={"max_iterations": 1})
    assert run("train", config) == 2
    assert "{pretrained: false}" in capsys.readouterr().err
    assert not (tmp_path / "run/out/model.pt").exists()

    resnet.IMAGENET_WEIGHTS[18] = online
    assert run("train", config) == 0
    state = checkpoints.load(tmp_path / "run/out/model.pt")["model"]
    name = "encoder.features.layer3.0.conv1.weight"
    torch.testing.assert_close(state[name], imagenet[name[17:]], rtol=0, atol=1e-3)

    resnet.IMAGENET_WEIGHTS[18] = offline
    assert run("train", config, "--set", "training.max_iterations=2") == 0
    assert checkpoints.load(tmp_path / "run/out/model.pt")["it"] == 2
    assert run("render", config, "--set", "test.model_file=model.pt") == 0


def test_random_start_needs_no_weights(project, server):
    kwargs = {"encoder_kwargs": {"pretrained": False}}
    assert run("train", project(model=kwargs, training={"max_iterations": 1})) == 0
    assert server.requests == []


def test_looking_at_the_field_leaves_no_trace_in_the_encoder(project, tmp_path):
    """Validation and pictures on the way: batch statistics stay as training made them."""
    states = []
    for name, every in (("blind", 0), ("watched", 1)):
        training = {"max_iterations": 2, "validate_every": every, "visualize_every": every}
        kwargs = {"encoder_kwargs": {"pretrained": False}}
        assert run("train", project(name, model=kwargs, training=training)) == 0
        states.append(checkpoints.load(tmp_path / name / "out/model.pt")["model"])
    assert same(*states)
    assert states[0]["encoder.features.bn1.num_batches_tracked"] == 2


def test_codes_by_number_are_learned_and_used(project, tmp_path):
    config = project(
        data={"input_type": "idx"},
        model={"encoder": "idx"},
        training={"max_iterations": 2, "learning_rate": 0.01},
    )
    assert run("train", config) == 0
    codes = checkpoints.load(tmp_path / "run/out/model.pt")["model"]["encoder.weight"]
    assert codes.shape == (2, 8)
    assert run("render", config, "--set", "test.model_file=model.pt") == 0
    assert len(files(tmp_path / "run/out/rendering/chair")) == 2
