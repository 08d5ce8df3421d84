#!/usr/bin/env bash
# The whole chain on a small scene that it renders itself: images, masks and depth maps in, coloured
# mesh out.
# A second call goes on where the first one ended.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

config=configs/demo/synthetic_scene.yaml
scene=data/synthetic_scene
python=.venv/bin/python

step() { printf '\n[%s] %s\n' "$1" "$2"; }

step 0/6 "set-up"
bash scripts/setup_env.sh

step 1/6 "scene: images, masks, depth maps and cameras of a toy, in $scene"
if [[ ! -d $scene ]]; then
    rm -rf "$scene.partial"
    "$python" scripts/make_synthetic_dataset.py "$scene.partial"
    mv "$scene.partial" "$scene"
fi

step 2/6 "training"
"$python" train.py "$config"

step 3/6 "mesh"
"$python" generate.py "$config"

step 4/6 "renderings: the training views, and a turntable"
"$python" render.py "$config" --set rendering.n_views=0
"$python" render.py "$config" --set rendering.trajectory=turntable --set rendering.n_views=36 \
    --set rendering.render_dir=turntable

step 5/6 "evaluation against the true surface"
"$python" eval_meshes.py "$config"

step 6/6 "contact sheet"
"$python" scripts/demo_report.py "$config"
