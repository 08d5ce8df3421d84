"""Checkpoints: nothing is lost, nothing is executed, and the published format is read."""

import contextlib
import errno
import hashlib
import os
import random
import resource
import signal
import socket
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from im2mesh import checkpoints
from im2mesh.commands.setup import load_trained_model
from im2mesh.config import load_config
from im2mesh.dvr.fields.registered import FIELDS
from im2mesh.dvr.fields.simple import ResidualField
from im2mesh.dvr.model import DVR
from im2mesh.errors import InputError
from tests.published import as_bytes, as_published, checkpoint_shapes, web_server, weights

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
PRETRAINED = sorted(
    path.relative_to(CONFIGS)
    for path in CONFIGS.rglob("*.yaml")
    if checkpoints.is_url(load_config(path)["test"]["model_file"])
)

server = pytest.fixture(web_server)


def make_state(seed=0, **more):
    """A small checkpoint as train.py writes it, with an optimizer that has made a step."""
    torch.manual_seed(seed)
    model = DVR(ResidualField(hidden_size=6, n_blocks=2))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    model.decoder(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "epoch_it": 3,
        "batch_it": 2,
        "it": 77,
        "loss_val_best": 0.25,
        "config": {"training": {"out_dir": "out", "max_iterations": None, "milestones": [1, 2]}},
        **more,
    }


def equal(a, b):
    if torch.is_tensor(a):
        return torch.is_tensor(b) and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return type(a) is type(b) and a == b


@pytest.fixture
def path(tmp_path):
    """Where a checkpoint is already."""
    checkpoints.save(tmp_path / "model.pt", make_state())
    return tmp_path / "model.pt"


def assert_untouched(path):
    assert equal(checkpoints.load(path), make_state())
    assert os.listdir(path.parent) == [path.name]


# ---- whole or not at all -------------------------------------------------------------------------


def test_round_trip(path):
    assert_untouched(path)
    checkpoints.save(path, make_state(seed=1))
    assert equal(checkpoints.load(path), make_state(seed=1))
    model = DVR(ResidualField(hidden_size=6, n_blocks=2))
    checkpoints.load_model(model, checkpoints.load(path), path)
    assert equal(dict(model.state_dict()), dict(make_state(seed=1)["model"]))


@contextlib.contextmanager
def files_may_not_exceed(size):
    """Writing past so many bytes fails half way, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("room", [0, 100, 3000])
def test_a_file_that_may_not_grow(path, room):
    with pytest.raises(InputError, match=r"model\.pt.*free space") as err:
        with files_may_not_exceed(room):
            checkpoints.save(path, make_state(seed=1))
    assert os.strerror(errno.EFBIG) in str(err.value)
    assert_untouched(path)


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_full_disk(path, monkeypatch, function):
    def fail(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, function, fail)
        with pytest.raises(InputError, match=r"model\.pt.*No space left.*untouched"):
            checkpoints.save(path, make_state(seed=1))
    assert_untouched(path)


@pytest.mark.parametrize("module, function", [(torch, "save"), (os, "fsync"), (os, "replace")])
def test_ctrl_c_leaves_the_previous_file(path, monkeypatch, module, function):
    def interrupt(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, function, interrupt)
        with pytest.raises(KeyboardInterrupt):
            checkpoints.save(path, make_state(seed=1))
    assert_untouched(path)


@pytest.mark.parametrize("moment", ["half way", "before the end"])
def test_a_kill_leaves_the_previous_file(path, moment):
    """In a process of its own, which nothing can tidy up after."""
    state = make_state(seed=1)
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # deadly
        os.replace = lambda *args: os.kill(os.getpid(), signal.SIGKILL)
        half_way = files_may_not_exceed(3000)
        with half_way if moment == "half way" else contextlib.nullcontext():
            checkpoints.save(path, state)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    expected = signal.SIGXFSZ if moment == "half way" else signal.SIGKILL
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == expected
    assert equal(checkpoints.load(path), make_state())
    checkpoints.save(path, state)
    assert equal(checkpoints.load(path), state)


# ---- damaged and foreign files -------------------------------------------------------------------


def test_anything_but_tensors_among_the_weights(path):
    torch.save({"model": {"decoder.fc_p.bias": 3}}, path)
    with pytest.raises(InputError, match="no tensor in 'model': decoder.fc_p.bias"):
        checkpoints.load(path)


formats = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


@formats
def test_a_truncated_file(tmp_path, zipped):
    whole = as_bytes(make_state(), zipped)
    path = tmp_path / "model.pt"
    for length in [*range(0, len(whole), 97), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match="model.pt"):
            checkpoints.load(path)


@formats
@pytest.mark.filterwarnings("ignore")  # of PyTorch, about the damage
def test_a_damaged_file(tmp_path, zipped):
    """Whatever bytes are wrong: an error in one of ours, or still a checkpoint."""
    whole, path = as_bytes(make_state(), zipped), tmp_path / "model.pt"
    generator = random.Random(0)
    refused = 0
    for _ in range(150):
        damaged = bytearray(whole)
        for _ in range(generator.randrange(1, 4)):
            damaged[generator.randrange(min(len(damaged), 4000))] = generator.randrange(256)
        path.write_bytes(damaged)
        try:
            checkpoints.load(path)
        except InputError as err:
            assert "model.pt" in str(err)
            refused += 1
    assert refused > 50


@pytest.mark.parametrize(
    "content",
    [b"", b"\0", b"not one\n" * 99, b"\x89PNG\r\n\x1a\n" + bytes(99), b"PK\x03\x04", b"{}"],
    ids=["empty", "zero", "text", "png", "zip head", "json"],
)
def test_a_file_of_another_kind(tmp_path, content):
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    with pytest.raises(InputError, match="model.pt"):
        checkpoints.load(path)


def test_a_missing_file(tmp_path):
    with pytest.raises(InputError, match="model.pt does not exist.*test.model_file"):
        checkpoints.load(tmp_path / "model.pt")


def test_a_folder_in_place_of_a_file(tmp_path):
    with pytest.raises(InputError, match=tmp_path.name):
        checkpoints.load(tmp_path)


@pytest.mark.parametrize(
    "state", [{"state_dict": {}}, {}, [1, 2], torch.zeros(3), 7, {"model": torch.zeros(2)}], ids=str
)
def test_a_file_without_a_model(tmp_path, state):
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(InputError, match="model.pt has no 'model' entry"):
        checkpoints.load(tmp_path / "model.pt")


class Call:
    """Pickles as the call of a function."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@formats
@pytest.mark.parametrize("place", ["model", "optimizer", "loss_val_best", "anything"])
@pytest.mark.parametrize("function", ["os.system", "eval", "open"])
def test_nothing_is_executed(tmp_path, zipped, place, function):
    marker = tmp_path / "marker"
    call = {
        "os.system": Call(os.system, f"touch {marker}"),
        "eval": Call(eval, f"open({str(marker)!r}, 'w')"),
        "open": Call(open, str(marker), "w"),
    }[function]
    state = make_state()
    if place == "model":
        state["model"]["decoder.fc_p.weight"] = call
    else:
        state[place] = call
    path = tmp_path / "model.pt"
    path.write_bytes(as_bytes(state, zipped))
    with pytest.raises(InputError, match="model.pt is refused.*Nothing in it was executed"):
        checkpoints.load(path)
    assert not marker.exists()
    torch.load(path, weights_only=False)  # it would have worked
    assert marker.exists()


@pytest.mark.parametrize(
    "value",
    [np.zeros(3), DVR(ResidualField(hidden_size=2)), Path("x"), InputError("x")],
    ids=["array", "module", "path", "exception"],
)
def test_anything_but_tensors_and_scalars_is_refused(tmp_path, value):
    torch.save(make_state(extra=value), tmp_path / "model.pt")
    with pytest.raises(InputError, match="is refused"):
        checkpoints.load(tmp_path / "model.pt")


def test_reading_leaves_pytorchs_allow_list_alone(path):
    before = set(torch.serialization.get_safe_globals())
    checkpoints.load(path)
    assert set(torch.serialization.get_safe_globals()) == before


# ---- another architecture ------------------------------------------------------------------------


def test_another_size_is_listed_by_name_and_shape(path):
    model = DVR(ResidualField(hidden_size=8, n_blocks=2))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(InputError) as err:
        checkpoints.load_model(model, checkpoints.load(path), path)
    lines = str(err.value).splitlines()
    assert str(path) in lines[0]
    assert "  decoder.fc_p.weight: (6, 3) in the file, (8, 3) in the model" in lines
    assert "  decoder.blocks.1.fc_0.weight: (6, 6) in the file, (8, 8) in the model" in lines
    assert len(lines) == 1 + len(before) - 1  # all but fc_out.bias
    assert equal(dict(model.state_dict()), before)


def test_other_names_are_listed(path):
    model = DVR(ResidualField(hidden_size=6, n_blocks=1, c_dim=4))
    with pytest.raises(InputError) as err:
        checkpoints.load_model(model, checkpoints.load(path), path)
    lines = str(err.value).splitlines()[1:]
    ours = {f"decoder.fc_c.0.{kind}" for kind in ("weight", "bias")}
    theirs = {f"decoder.blocks.1.fc_{i}.{kind}" for i in (0, 1) for kind in ("weight", "bias")}
    assert set(lines) == {f"  missing: {name}" for name in ours} | {
        f"  not in the model: {name}" for name in theirs
    }


def test_another_field_is_named_before_the_tensors(path):
    theirs = {
        "decoder": "simple", "decoder_kwargs": {}, "encoder": None, "encoder_kwargs": {}, "c_dim": 0,
        "visual_hull": False,
    }
    ours = theirs | {"decoder": "hashgrid", "decoder_kwargs": {"n_levels": 4}}
    state = checkpoints.load(path) | {"config": {"model": theirs}}
    model = DVR(FIELDS["hashgrid"](n_levels=4))
    with pytest.raises(InputError) as err:
        checkpoints.load_model(model, state, path, {"model": ours})
    assert str(err.value).splitlines()[:5] == [
        f"checkpoint {path} does not fit the model of this config",
        "  model.decoder: simple in the file, hashgrid here",
        "  model.decoder_kwargs: {} in the file, {'n_levels': 4} here",
        "Set them as they were, or choose another file. The tensors concerned:",
        "  missing: decoder.encoding.tables",
    ]
    del state["config"]  # as in a published file
    with pytest.raises(InputError, match="does not fit the model of this config .model.decoder: hashgrid"):
        checkpoints.load_model(model, state, path, {"model": ours})


# ---- the published format ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [np.float64, np.float32, np.int64])
def test_published_checkpoint(tmp_path, kind):
    state = make_state(loss_val_best=kind(12.5))
    path = tmp_path / "model.pt"
    path.write_bytes(as_published(state))
    loaded = checkpoints.load(path)
    assert float(loaded["loss_val_best"]) == float(kind(12.5))
    assert (loaded["it"], loaded["epoch_it"]) == (77, 3)
    assert equal(dict(loaded["model"]), dict(state["model"]))
    assert equal(loaded["optimizer"], state["optimizer"])
    model = DVR(ResidualField(hidden_size=6, n_blocks=2))
    checkpoints.load_model(model, loaded, path)


@formats
def test_scalars_of_this_numpy(tmp_path, zipped):
    path = tmp_path / "model.pt"
    path.write_bytes(as_bytes(make_state(loss_val_best=np.float64(0.5)), zipped))
    assert float(checkpoints.load(path)["loss_val_best"]) == 0.5


def test_a_published_checkpoint_without_optimizer(tmp_path):
    path = tmp_path / "model.pt"
    torch.save({"model": make_state()["model"]}, path, _use_new_zipfile_serialization=False)
    assert list(checkpoints.load(path)) == ["model"]


def published_state(config):
    """What the published checkpoint of a config holds, with values of our own."""
    values = weights(checkpoint_shapes(config))
    trained = [value for value in values.values() if value.is_floating_point()]
    moments = {"step": 5, "exp_avg": trained[0], "exp_avg_sq": trained[0]}
    return {
        "model": values,
        "optimizer": {
            "state": {94000000000000 + i: moments for i in range(len(trained))},
            "param_groups": [{"lr": 1e-4, "betas": (0.9, 0.999), "eps": 1e-8, "amsgrad": False}],
        },
        "epoch_it": 800,
        "it": 500000,
        "loss_val_best": np.float64(0.1),
    }


def put_on(server, content, name):
    """URL of a file under a name with its hash."""
    name = f"{name}-{hashlib.sha256(content).hexdigest()[:8]}.pt"
    (server.folder / name).write_bytes(content)
    return f"{server.address}/{name}"


@pytest.mark.parametrize("name", PRETRAINED, ids=str)
def test_every_published_architecture(server, name):
    config = load_config(CONFIGS / name)
    state = published_state(config)
    config["test"]["model_file"] = put_on(server, as_published(state), name.stem)
    model = load_trained_model(config, "cpu")
    assert not model.training
    assert set(model.state_dict()) == set(state["model"])
    for key, value in model.state_dict().items():
        assert torch.equal(value, state["model"][key]), key


def test_the_published_checkpoints_are_those_of_13_configs_and_3_demos():
    assert len(PRETRAINED) == 16 and len({name for name in PRETRAINED if "demo" in str(name)}) == 3


def test_a_published_checkpoint_and_another_code(server):
    path = CONFIGS / "single_view_reconstruction/multi_view_supervision/ours_rgb_pretrained.yaml"
    url = put_on(server, as_published(published_state(load_config(path))), "ours_rgb")
    config = load_config(path, [f"test.model_file={url}", "model.c_dim=128"])
    with pytest.raises(InputError, match="c_dim") as err:
        load_trained_model(config, "cpu")
    assert "  encoder.fc.weight: (256, 512) in the file, (128, 512) in the model" in str(err.value)


def test_a_malicious_download_is_refused(server, tmp_path):
    path = CONFIGS / "multi_view_reconstruction/birds/ours_rgb_pretrained.yaml"
    marker = tmp_path / "marker"
    state = published_state(load_config(path)) | {"it": Call(os.system, f"touch {marker}")}
    config = load_config(path)
    config["test"]["model_file"] = put_on(server, as_published(state), "ours_rgb")
    with pytest.raises(InputError, match="is refused.*Nothing in it was executed"):
        load_trained_model(config, "cpu")
    assert not marker.exists()


# ---- download ------------------------------------------------------------------------------------


@pytest.fixture
def published(server):
    """URL of a checkpoint on the server."""
    return put_on(server, as_bytes(make_state(), zipped=True), "ours_rgb")


def cached():
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    return sorted(os.listdir(folder)) if folder.exists() else []


def test_download_once(server, published, tmp_path):
    path = checkpoints.locate(published, tmp_path / "out")
    assert path == Path(torch.hub.get_dir()) / "checkpoints" / published.rsplit("/", 1)[1]
    assert equal(checkpoints.load(path), make_state())
    assert checkpoints.download(published) == path
    assert len(server.requests) == 1
    assert cached() == [path.name]


def test_a_wrong_hash_is_not_kept(server, published):
    wrong = published[: -len("00000000.pt")] + "00000000.pt"
    name = published.rsplit("/", 1)[1]
    (server.folder / wrong.rsplit("/", 1)[1]).write_bytes((server.folder / name).read_bytes())
    for _ in range(2):
        with pytest.raises(InputError, match="not the expected one.*00000000") as err:
            checkpoints.download(wrong)
        assert wrong in str(err.value)
    assert cached() == []


def test_a_truncated_download_is_not_kept(server, published):
    file = server.folder / published.rsplit("/", 1)[1]
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(InputError, match="not the expected one"):
        checkpoints.download(published)
    assert cached() == []


def test_a_file_that_the_server_does_not_have(server):
    with pytest.raises(InputError, match="cannot download .*model-12345678.pt.*not found"):
        checkpoints.download(f"{server.address}/model-12345678.pt")
    assert cached() == []


def test_without_network(server, published):
    """It says which file to put where, and that works."""
    with socket.socket() as probe:  # a port that nobody listens on
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    name = published.rsplit("/", 1)[1]
    url = f"http://127.0.0.1:{port}/{name}"
    with pytest.raises(InputError, match="refused") as err:
        checkpoints.download(url)
    place = Path(str(err.value).split()[-1])
    assert url in str(err.value) and place.name == name
    place.write_bytes((server.folder / name).read_bytes())
    assert checkpoints.download(url) == place


def test_a_server_that_does_not_speak_http(server):
    def answer():
        connection, _ = listener.accept()
        with connection:
            connection.recv(1000)
            connection.sendall(b"SSH-2.0-x\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(InputError, match="cannot download"):
            checkpoints.download(f"http://127.0.0.1:{listener.getsockname()[1]}/m-12345678.pt")
        thread.join()


@pytest.mark.parametrize("host", ["127.0.0.1:port", "", "127.0.0.1:1:2"])
def test_an_address_that_is_none(server, host):
    with pytest.raises(InputError, match="12345678.pt"):
        checkpoints.download(f"http://{host}/model-12345678.pt")


@pytest.mark.parametrize("name", ["model.pt", "model-123.pt", "model-1234567g.pt", ""])
def test_a_name_without_a_hash_cannot_be_verified(server, name):
    with pytest.raises(InputError, match="holds no hash"):
        checkpoints.download(f"{server.address}/{name}")
    assert server.requests == []


def test_a_path_is_relative_to_the_output_folder(tmp_path):
    assert checkpoints.locate("model_best.pt", tmp_path) == tmp_path / "model_best.pt"
    assert checkpoints.locate("/abs/model.pt", tmp_path) == Path("/abs/model.pt")
    assert checkpoints.locate("../a/model.pt", tmp_path) == tmp_path / "../a/model.pt"


def test_locate_falls_back_on_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shipped = Path("media/model.pt")
    shipped.parent.mkdir()
    shipped.touch()
    assert checkpoints.locate("media/model.pt", "out") == shipped
    own = Path("out/media/model.pt")
    own.parent.mkdir(parents=True)
    own.touch()
    assert checkpoints.locate("media/model.pt", "out") == own


@pytest.mark.parametrize(
    "name, url",
    [("http://a/b.pt", True), ("https://a/b.pt", True), ("a.pt", False), ("http.pt", False)],
)
def test_is_url(name, url):
    assert checkpoints.is_url(name) == url
