"""Extract coloured meshes from a trained model: python generate.py CONFIG.yaml"""

import sys

from im2mesh import cli
from im2mesh.commands.generate import generate

if __name__ == "__main__":
    parser = cli.argument_parser("generate", __doc__)
    cli.add_shortcut(parser, "--upsampling-steps", "generation.upsampling_steps")
    cli.add_shortcut(parser, "--refinement-step", "generation.refinement_step")
    parser.add_argument(
        "--overwrite", action="store_true", help="make meshes again that are finished already"
    )
    sys.exit(cli.run(generate, parser))
