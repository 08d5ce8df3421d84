#!/usr/bin/env bash
# The whole chain on a small scene that it renders itself: images, masks and depth maps in, coloured
# mesh out. Then meshes of single images, by the model that ships.
# A second call goes on where the first one ended.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

config=configs/demo/synthetic_scene.yaml
scene=data/synthetic_scene
single=configs/demo/demo_synthetic.yaml
images=media/demo/synthetic
pictures=out/demo/demo_synthetic/rendering/na
python=.venv/bin/python

step() { printf '\n[%s] %s\n' "$1" "$2"; }

step 0/8 "set-up"
bash scripts/setup_env.sh

step 1/8 "scene: images, masks, depth maps and cameras of a toy, in $scene"
if [[ ! -d $scene ]]; then
    rm -rf "$scene.partial"
    "$python" scripts/make_synthetic_dataset.py "$scene.partial"
    mv "$scene.partial" "$scene"
fi

step 2/8 "training"
"$python" train.py "$config"

step 3/8 "mesh"
"$python" generate.py "$config"

step 4/8 "renderings: the training views, and a turntable"
"$python" render.py "$config" --set rendering.n_views=0
"$python" render.py "$config" --set rendering.trajectory=turntable --set rendering.n_views=36 \
    --set rendering.render_dir=turntable

step 5/8 "evaluation against the true surface"
"$python" eval_meshes.py "$config"

step 6/8 "contact sheet"
"$python" scripts/demo_report.py "$config"

step 7/8 "single images: a mesh of each picture in $images"
"$python" generate.py "$single"

step 8/8 "their renderings, and a contact sheet"
"$python" render.py "$single"
sheet=out/demo/demo_synthetic/contact_sheet.png
"$python" scripts/contact_sheet.py "$sheet" --row "input images" "$images"/*_0016.png \
    --row "reconstructed colours" "$pictures"/*_0016_000_rgb.jpg \
    --row "reconstructed shapes: normals" "$pictures"/*_0016_000_normal.jpg
printf 'meshes         %s\ncontact sheet  %s\n' out/demo/demo_synthetic/generation/meshes/na "$sheet"
