"""Learn shape and texture from posed images and masks: python train.py CONFIG.yaml"""

import sys

from im2mesh import cli
from im2mesh.commands.train import train

if __name__ == "__main__":
    parser = cli.argument_parser("train", __doc__)
    parser.add_argument(
        "--exit-after",
        type=float,
        metavar="SECONDS",
        help="save and exit with code 3 once so many seconds have passed",
    )
    sys.exit(cli.run(train, parser))
