"""Render a trained model from the dataset's cameras or a turntable: python render.py CONFIG.yaml"""

import sys

from im2mesh import cli
from im2mesh.commands.render import render

if __name__ == "__main__":
    sys.exit(cli.run(render, cli.argument_parser("render", __doc__)))
