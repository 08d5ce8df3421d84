"""Published checkpoints as they are described: names, shapes, the bytes of the format, a server.

Written out from the description alone, so that the networks can be held against it.
"""

import http.server
import io
import threading

import torch

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


def linear(name, n_in, n_out):
    return {f"{name}.weight": (n_out, n_in), f"{name}.bias": (n_out,)}


def batch_norm(name, size):
    each = ("weight", "bias", "running_mean", "running_var")
    return {**{f"{name}.{kind}": (size,) for kind in each}, f"{name}.num_batches_tracked": ()}


def resnet(depth):
    """Shapes of a ResNet without its last layer, under torchvision's names."""
    shapes = {"conv1.weight": (64, 3, 7, 7), **batch_norm("bn1", 64)}
    n_in = 64
    for stage, (count, width) in enumerate(zip(BLOCKS[depth], (64, 128, 256, 512)), start=1):
        n_out = width if depth < 50 else 4 * width
        for i in range(count):
            name = f"layer{stage}.{i}"
            convs = [(n_in, width, 3), (width, width, 3)]
            if depth >= 50:
                convs = [(n_in, width, 1), (width, width, 3), (width, n_out, 1)]
            for j, (a, b, size) in enumerate(convs, start=1):
                shapes[f"{name}.conv{j}.weight"] = (b, a, size, size)
                shapes |= batch_norm(f"{name}.bn{j}", b)
            if i == 0 and (stage > 1 or n_in != n_out):
                shapes[f"{name}.downsample.0.weight"] = (n_out, n_in, 1, 1)
                shapes |= batch_norm(f"{name}.downsample.1", n_out)
            n_in = n_out
    return shapes


def simple_conv(c_dim):
    channels = (3, 32, 64, 128, 256, 512)
    shapes = linear("fc_out", 512, c_dim)
    for i in range(5):
        shapes[f"conv{i}.weight"] = (channels[i + 1], channels[i], 3, 3)
        shapes[f"conv{i}.bias"] = (channels[i + 1],)
    return shapes


def decoder(c_dim, hidden_size=512, out_dim=4):
    shapes = linear("fc_p", 3, hidden_size) | linear("fc_out", hidden_size, out_dim)
    for i in range(5):
        if c_dim:
            shapes |= linear(f"fc_c.{i}", c_dim, hidden_size)
        for j in range(2):
            shapes |= linear(f"blocks.{i}.fc_{j}", hidden_size, hidden_size)
    return shapes


def under(prefix, shapes):
    return {f"{prefix}.{name}": shape for name, shape in shapes.items()}


def checkpoint_shapes(config):
    """Shapes of the published checkpoint for a config of ours."""
    c_dim = 0 if config["model"]["encoder"] is None else 256
    shapes = under("decoder", decoder(c_dim, **config["model"]["decoder_kwargs"]))
    if c_dim:
        shapes |= under("encoder.features", resnet(18)) | linear("encoder.fc", 512, 256)
    return shapes


def weights(shapes):
    """A value of its own for every tensor; stored once each, so that files stay small."""
    return {
        name: torch.tensor(i) if shape == () else torch.tensor(i / 100).expand(shape)
        for i, (name, shape) in enumerate(shapes.items())
    }


def as_bytes(state, zipped):
    buffer = io.BytesIO()
    torch.save(state, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def as_published(state):
    """The bytes that PyTorch 1.4 and numpy 1.x wrote: no zip, and numpy's scalars by old names."""
    content = as_bytes(state, zipped=False)
    assert b"cnumpy._core.multiarray\nscalar\n" in content
    return content.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


def web_server(tmp_path, monkeypatch):
    """A fixture: a web server on this machine, its ``folder``, and an empty torch hub cache.

    It has an ``address`` and lists the ``requests`` that came.
    """
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    folder = tmp_path / "www"
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        requests = []

        def __init__(self, *args):
            super().__init__(*args, directory=folder)

        def do_GET(self):
            self.requests.append(self.path)
            super().do_GET()

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        server.folder = folder
        server.requests = Handler.requests
        server.address = f"http://127.0.0.1:{server.server_port}"
        yield server
        server.shutdown()
        thread.join()
