"""The figures of the published implementation, for tests that compare with them."""

from pathlib import Path

import numpy as np
import pytest
import torch

from im2mesh.dvr.fields.simple import ResidualField

FOLDER = Path(__file__).resolve().parents[2] / "shared" / "reference"

needs_reference = pytest.mark.skipif(
    not FOLDER.is_dir(), reason=f"no reference figures: the folder {FOLDER} does not exist"
)
both_files = pytest.mark.parametrize("name", ["uncond", "cond"])


def load(name):
    """Arrays of a reference file as tensors (scalars as floats), and its decoder."""
    with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as archive:
        data = {key: archive[key] for key in archive.files}
    state = {
        key.removeprefix("state/decoder."): torch.from_numpy(value)
        for key, value in data.items()
        if key.startswith("state/")
    }
    hidden_size, _ = state["fc_p.weight"].shape
    decoder = ResidualField(c_dim=data["c"].shape[1], hidden_size=hidden_size)
    decoder.load_state_dict(state)
    return {k: torch.from_numpy(v) if v.ndim else v.item() for k, v in data.items()}, decoder
