"""Write the weights of a trained model alone: a checkpoint for generate.py and render.py to pass on.

    python scripts/export_model.py CONFIG.yaml OUT.pt [--half]

Takes test.model_file of the config. The optimizer's state, two thirds of a checkpoint, stays behind.
With --half the weights have 16 bits, which half the size and hardly change the field.
"""

import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from im2mesh import checkpoints, cli  # noqa: E402

log = logging.getLogger("im2mesh")


def export(config, device, args):
    """Copy what is not the optimizer's."""
    path = checkpoints.locate(config["test"]["model_file"], config["training"]["out_dir"])
    state = checkpoints.load(path)
    kept = {name: state[name] for name in ("model", "it", "epoch_it", "config") if name in state}
    if args.half:
        kept["model"] = {
            name: value.half() if value.is_floating_point() else value
            for name, value in kept["model"].items()
        }
    checkpoints.save(args.out, kept)
    log.info("%s -> %s (%.1f MB)", path, args.out, args.out.stat().st_size / 1e6)


def main():
    parser = cli.argument_parser("export_model", __doc__)
    parser.add_argument("out", metavar="OUT.pt", type=Path)
    parser.add_argument("--half", action="store_true", help="weights of 16 bits")
    return cli.run(export, parser)


if __name__ == "__main__":
    sys.exit(main())
