"""Compare generated meshes with true point clouds: python eval_meshes.py CONFIG.yaml"""

import sys

from im2mesh import cli
from im2mesh.commands.evaluate import evaluate

if __name__ == "__main__":
    parser = cli.argument_parser("eval_meshes", __doc__)
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes (1)")
    sys.exit(cli.run(evaluate, parser))
