"""Reading and writing checkpoints: whole or not at all, and never code.

A checkpoint is a dict with ``model`` (state dict), ``optimizer``, ``epoch_it``, ``it`` and
``loss_val_best``; ours also hold ``batch_it`` (batches done in the epoch) and ``config``.
"""

import hashlib
import http.client
import io
import pickle
import re
from pathlib import Path

import numpy as np
import torch

from im2mesh.errors import InputError
from im2mesh.files import atomic_path

# Files written by PyTorch 1.4 keep the best loss as a numpy scalar: these names, nothing else.
_NUMPY_SCALARS = [
    (np._core.multiarray.scalar, "numpy.core.multiarray.scalar"),
    np._core.multiarray.scalar,
    np.dtype,
    type(np.dtype(np.float64)),
    type(np.dtype(np.float32)),
    type(np.dtype(np.int64)),
]

# Keys of the section model that decide on names and shapes of its tensors.
_ARCHITECTURE = ("decoder", "decoder_kwargs", "encoder", "encoder_kwargs", "c_dim", "visual_hull")


def save(path, state):
    """Write a checkpoint atomically; a kill at any moment leaves the previous file whole.

    Raises
    ------
    InputError
        When it cannot be written (disk full, no permission).
    """
    data = io.BytesIO()  # torch's own file writer hides the cause of a failure, e.g. a full disk
    torch.save(state, data)
    with atomic_path(path) as temporary:
        temporary.write_bytes(data.getbuffer())


def load(path, device="cpu"):
    """Read a checkpoint file, of ours or of the published format (PyTorch 1.4, not a zip).

    Raises
    ------
    InputError
        When the file is missing, damaged, not a checkpoint, or holds anything but tensors and
        plain scalars (nothing of it is executed).
    """
    state = _read(path, device, "test.model_file")
    if not isinstance(state, dict) or not isinstance(state.get("model"), dict):
        raise InputError(
            f"checkpoint {path} has no 'model' entry: it was not written by train.py. "
            "Check test.model_file."
        )
    _require_tensors(state["model"], f"checkpoint {path}: no tensor in 'model'")
    return state


def load_weights(path, key):
    """Read a file that is a state dict and nothing else, as those of trained encoders are.

    Returns
    -------
    dict of str to Tensor
        On the CPU.

    Raises
    ------
    InputError
        As for :func:`load`; it names the config key that gave the path.
    """
    weights = _read(path, "cpu", key)
    if not isinstance(weights, dict):
        raise InputError(f"{path} is not a state dict but a {type(weights).__name__}. Check {key}.")
    _require_tensors(weights, f"{path} is not a state dict (check {key}), no tensor")
    return weights


def _read(path, device, key):
    """What a file holds, if that is tensors and plain scalars; ``key`` is where its path is set."""
    path = Path(path)
    try:
        with torch.serialization.safe_globals(_NUMPY_SCALARS):
            return torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError as err:
        raise InputError(f"checkpoint {path} does not exist. Check {key}.") from err
    except pickle.UnpicklingError as err:
        reason = re.search(r"(?:GLOBAL|Unsupported (?:global|class|operand)).*", str(err))
        raise InputError(
            f"checkpoint {path} is refused: it is damaged or holds more than tensors and numbers"
            f"{f' ({reason[0].strip()})' if reason else ''}. Nothing in it was executed. "
            "Get the file again from where you trust it."
        ) from err
    except (IsADirectoryError, PermissionError) as err:
        raise InputError(f"checkpoint {path} cannot be read: {err.strerror}") from err
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as err:  # a damaged pickle can end in any of them
        raise InputError(
            f"checkpoint {path} cannot be read, it is damaged or incomplete "
            f"({type(err).__name__}: {str(err).splitlines()[0] if str(err) else 'end of file'}). "
            "Delete it and use a backup (model_<it>.pt), or download it again."
        ) from err


def _require_tensors(weights, problem):
    strangers = [name for name, value in weights.items() if not torch.is_tensor(value)]
    if strangers:
        raise InputError(f"{problem}: {', '.join(map(str, strangers))}")


def load_model(model, state, path, config=None):
    """Put the weights of a checkpoint into a model; ``config``, if known, is that of the model.

    Raises
    ------
    InputError
        When names or shapes do not match: what the file was trained with and the config asks for
        (where the file knows: the published ones hold no config), and all the tensors concerned.
    """
    wanted = {key: config["model"][key] for key in _ARCHITECTURE} if config else {}
    problem = f"checkpoint {path} does not fit the model of this config"
    differing = list(changes(state.get("config"), {"model": wanted}))
    if differing:
        lines = [f"{key}: {before} in the file, {now} here" for key, before, now in differing]
        problem = "\n  ".join([problem, *lines])
        problem += "\nSet them as they were, or choose another file. The tensors concerned"
    elif wanted:
        problem += f" (model.{', '.join(f'{key}: {value}' for key, value in wanted.items())})"
    fill(model, state["model"], problem)


def changes(old, new):
    """What a config says otherwise than the one of a checkpoint.

    Parameters
    ----------
    old : dict or None
        As it was stored; None, or keys that are missing: unknown, not a change.
    new : dict

    Yields
    ------
    (str, object, object)
        Dotted key, value in ``old``, value in ``new``.
    """
    old = old if isinstance(old, dict) else {}
    for section, keys in new.items():
        before = old.get(section, keys)
        if isinstance(keys, dict) and isinstance(before, dict):
            for key, value in keys.items():
                if before.get(key, value) != value:
                    yield f"{section}.{key}", before[key], value


def fill(module, weights, problem):
    """Put weights, by name, into a module.

    Raises
    ------
    InputError
        When names or shapes do not match: ``problem``, and all of them in a list.
    """
    theirs, ours = weights, module.state_dict()
    problems = [f"missing: {name}" for name in ours if name not in theirs]
    problems += [f"not in the model: {name}" for name in theirs if name not in ours]
    problems += [
        f"{name}: {tuple(theirs[name].shape)} in the file, {tuple(ours[name].shape)} in the model"
        for name in ours
        if name in theirs and theirs[name].shape != ours[name].shape
    ]
    if problems:
        raise InputError(f"{problem}:\n  " + "\n  ".join(problems))
    module.load_state_dict(theirs)


def is_url(path):
    """Whether a ``model_file`` is to be downloaded."""
    return str(path).startswith(("http://", "https://"))


def download(url):
    """Download a file once into the torch hub cache and verify it.

    The file name must end in ``-<first 8 or more hex digits of its sha256>``, as in
    ``ours_rgb-61966213.pt``.

    Returns
    -------
    Path
        Of the file in the cache.

    Raises
    ------
    InputError
        When there is no network, the server has no such file, or the hash does not match.
    """
    name = url.rsplit("/", 1)[-1]
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    digits = re.search(r"-([0-9a-f]{8,})\.", name)
    if digits is None:
        raise InputError(
            f"{url}: the file name holds no hash (name-<8 hex digits>.pt), so the download could "
            "not be verified. Download it yourself and give its path."
        )
    if path.exists():
        if hashlib.sha256(path.read_bytes()).hexdigest().startswith(digits[1]):
            return path
        raise InputError(f"{path} is not the file of {url}: its hash differs. Delete it.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), hash_prefix=digits[1], progress=False)
    except RuntimeError as err:
        raise InputError(
            f"{url}: the downloaded file is not the expected one ({err}). Try again; if it stays "
            "so, the file on the server was changed: do not use it."
        ) from err
    except (OSError, http.client.HTTPException) as err:
        raise InputError(
            f"cannot download {url} ({getattr(err, 'reason', None) or err}). Without network, get "
            f"the file elsewhere and put it at {path}"
        ) from err
    return path


def locate(model_file, out_dir):
    """Path of ``test.model_file``: a URL is downloaded, a path is relative to ``out_dir``.

    A file that is not there but in the working directory is taken from the latter.
    """
    if is_url(model_file):
        return download(model_file)
    path = Path(out_dir) / model_file
    return Path(model_file) if Path(model_file).is_file() and not path.exists() else path
