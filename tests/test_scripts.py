"""Scripts beside the programs, the benchmarks' mains, and what the FAQ claims."""

import re
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from benchmarks import curves, generate, single_view, train_step
from im2mesh import checkpoints, geometry
from im2mesh.config import DEFAULTS, load_config
from im2mesh.data.fields import read_camera
from im2mesh.data.images import read_rgb, resize_rgb
from im2mesh.errors import InputError
from scripts import contact_sheet, filter_dtu_predictions, make_synthetic_dataset
from tests.programs import ROOT, octahedron, run, save_model, write_config
from tests.sphere_scene import RADIUS, SCALE, write_sphere_scene

# ---- demo_report.py ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The config of a run with all that demo.sh makes before the report."""
    folder = tmp_path_factory.mktemp("demo")
    write_sphere_scene(folder / "data/scan1/scan1")
    rendering = {
        "resolution": [8, 10], "ray_sampling_accuracy": [32, 33], "colors": ["rgb", "depth"],
    }  # fmt: skip
    config = write_config(folder, folder / "data", rendering=rendering)
    save_model(folder / "out/model_best.pt", octahedron())
    turntable = [
        "--set", "rendering.trajectory=turntable", "--set", "rendering.n_views=2",
        "--set", "rendering.render_dir=turntable",
    ]  # fmt: skip
    assert run("generate", config) == 0
    assert run("render", config, "--set", "rendering.n_views=0") == 0
    assert run("render", config, *turntable) == 0
    assert run("eval_meshes", config) == 0
    return config


def test_report_prints_the_figures_and_the_paths(demo, capfd):
    assert run("scripts/demo_report", demo) == 0
    lines = [line.split() for line in capfd.readouterr().out.splitlines()]
    shown = {" ".join(line[:-1]) if line[-1].startswith("/") else line[0]: line for line in lines
             if line}  # fmt: skip
    out = demo.parent / "out"
    metrics = pd.read_csv(out / "generation/eval_meshes.csv", index_col="class").loc["mean"]
    for name in ("chamferL1", "accuracy", "completeness", "normals"):
        assert float(shown[name][1]) == pytest.approx(metrics[name], abs=1e-4)
    views = pd.read_csv(out / "rendering/metrics.csv")
    assert float(shown["mask"][2]) == pytest.approx(views["mask_iou"].mean(), abs=1e-4)
    assert float(shown["PSNR"][1]) == pytest.approx(views["psnr"].mean(), abs=1e-4)
    assert shown["mesh"][-1] == str(out / "generation/meshes/scan1/scan1.ply")
    assert shown["turntable"][-1] == str(out / "turntable/scan1/scan1_rgb.gif")
    assert shown["contact sheet"][-1] == str(out / "contact_sheet.png")


def test_contact_sheet_has_each_rendering_below_its_view(demo):
    assert run("scripts/demo_report", demo) == 0
    sheet = read_rgb(demo.parent / "out/contact_sheet.png")
    scene, pictures = demo.parent / "data/scan1/scan1/image", demo.parent / "out/rendering/scan1"
    size = (192, 240)  # of the views' proportions, 16:20
    step_y = contact_sheet.LABEL_HEIGHT + size[0] + contact_sheet.GAP
    for view in range(5):
        left = contact_sheet.GAP + view * (240 + contact_sheet.GAP)
        paths = scene / f"{view:06d}.png", pictures / f"scan1_{view:03d}_rgb.jpg"
        for row, path in enumerate(paths):
            top = contact_sheet.GAP + row * step_y + contact_sheet.LABEL_HEIGHT
            tile = sheet[top : top + size[0], left : left + size[1]]
            assert np.array_equal(tile, resize_rgb(read_rgb(path), size)), path
            label = sheet[top - contact_sheet.LABEL_HEIGHT : top, : size[1]]
            assert label.min() < 64  # dark letters


@pytest.mark.parametrize(
    "missing, command",
    [
        ("generation/eval_meshes.csv", "run eval_meshes.py"),
        ("rendering/metrics.csv", "run render.py with --set rendering.n_views=0"),
        ("rendering/scan1/scan1_002_rgb.jpg", "run render.py with --set rendering.n_views=0"),
        ("generation/meshes/scan1/scan1.ply", "run generate.py"),
        ("turntable/scan1/scan1_rgb.gif", "rendering.trajectory=turntable"),
    ],
)
def test_report_says_what_is_missing_and_what_makes_it(demo, missing, command, capfd):
    path = demo.parent / "out" / missing
    aside = path.rename(path.with_name("aside"))
    try:
        assert run("scripts/demo_report", demo) == 2
    finally:
        aside.rename(path)
    error = capfd.readouterr().err
    assert error.startswith("error: ") and str(path) in error and command in error


def test_report_needs_renderings_of_all_views(demo, capfd):
    shutil.copytree(demo.parent, demo.parent.parent / "some", dirs_exist_ok=True)
    config = demo.parent.parent / "some/config.yaml"
    out = f"training.out_dir={config.parent / 'out'}"
    assert run("render", config, "--set", out, "--set", "rendering.n_views=2") == 0
    assert run("scripts/demo_report", config, "--set", out) == 2
    assert "is about 2 of 5 views" in capfd.readouterr().err


def test_report_is_about_one_object(demo, tmp_path, capfd):
    shutil.copytree(demo.parent / "data/scan1", tmp_path / "data/scan1")
    shutil.copytree(demo.parent / "data/scan1", tmp_path / "data/scan2")
    config = write_config(tmp_path, tmp_path / "data")
    assert run("scripts/demo_report", config) == 2
    assert "holds 2 objects" in capfd.readouterr().err


# ---- filter_dtu_predictions.py -------------------------------------------------------------------

PINHOLE = torch.eye(4, dtype=torch.float64)  # at the origin, looks along +z; x, y from -z to z
FROM_BEHIND = torch.diag(torch.tensor([-1.0, 1, -1, 1], dtype=torch.float64))
FROM_BEHIND[2, 3] = 4.0  # at z = 4, looks along -z


def test_dilation_is_a_disk():
    mask = np.zeros((31, 33), bool)
    mask[16, 17] = True
    rows, columns = np.mgrid[:31, :33]
    expected = (rows - 16) ** 2 + (columns - 17) ** 2 <= 144
    assert np.array_equal(filter_dtu_predictions.dilated(mask, 12), expected)
    assert not filter_dtu_predictions.dilated(np.zeros((4, 4), bool), 12).any()


def test_points_must_be_in_the_masks_of_the_views_that_see_them():
    left = np.zeros((5, 5), bool)
    left[:, :2] = True  # x < -0.25
    everything = np.ones((3, 3), bool)
    points = torch.tensor(
        [
            [-0.5, 0, 1],  # left, seen by both (at x = 0.17 by the second)
            [0.5, 0, 1],  # right, seen by both
            [0.5, 0, -1],  # behind the first camera; the second one sees it, in its mask
            [3.5, 0, 0.1],  # out of the first frame, in the second
            [9, 0, 1],  # out of both frames
            [0, 0, 9],  # behind the second camera, not in the first one's mask
            [torch.nan, 0, 1],
        ],
        dtype=torch.float64,
    )
    keep = filter_dtu_predictions.in_all_masks(points, [PINHOLE, FROM_BEHIND], [left, everything])
    assert keep.tolist() == [True, False, True, True, False, False, False]


def test_points_are_taken_in_chunks(monkeypatch):
    points = torch.rand(100, 3, generator=torch.Generator().manual_seed(0)).double() * 2 - 1
    points[:, 2] += 2
    mask = np.random.default_rng(0).random((9, 9)) < 0.5
    whole = filter_dtu_predictions.in_all_masks(points, [PINHOLE], [mask])
    monkeypatch.setattr(filter_dtu_predictions, "CHUNK", 7)
    assert torch.equal(filter_dtu_predictions.in_all_masks(points, [PINHOLE], [mask]), whole)
    assert 20 < whole.sum() < 80


def cloud_of(points):
    """Points with normals and colours, as the clouds of the DTU release."""
    names = ["x", "y", "z", "nx", "ny", "nz"]
    fields = [(name, "f4") for name in names] + [(c, "u1") for c in ("red", "green", "blue")]
    cloud = np.zeros(len(points), fields)
    for axis, values in zip("xyz", points.T):
        cloud[axis], cloud[f"n{axis}"] = values, -values / 2
    cloud["red"], cloud["blue"] = np.arange(len(points)) % 256, 7
    return cloud


def write_ply(path, cloud, order="binary_little_endian"):
    """Another writer than the script's, in all three formats."""
    names = {"f4": "float", "u1": "uchar"}
    lines = ["ply", f"format {order} 1.0", "comment made by a test"]
    lines += [f"element vertex {len(cloud)}"]
    lines += [f"property {names[cloud.dtype[n].str[1:]]} {n}" for n in cloud.dtype.names]
    header = "\n".join([*lines, "element face 0", "property list uchar int vertex_indices"])
    if order == "ascii":
        body = "".join(" ".join(map(repr, row.item())) + "\n" for row in cloud).encode()
    else:
        body = cloud.astype(cloud.dtype.newbyteorder("<" if "little" in order else ">")).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header.encode() + b"\nend_header\n" + body)


@pytest.mark.parametrize("order", ["ascii", "binary_little_endian", "binary_big_endian"])
def test_clouds_keep_all_their_properties(tmp_path, order):
    cloud = cloud_of(np.random.default_rng(0).normal(size=(50, 3)))
    write_ply(tmp_path / "cloud.ply", cloud, order)
    read = filter_dtu_predictions.read_cloud(tmp_path / "cloud.ply")
    filter_dtu_predictions.write_cloud(tmp_path / "again.ply", read)
    again = filter_dtu_predictions.read_cloud(tmp_path / "again.ply")
    for name in cloud.dtype.names:
        assert np.array_equal(read[name], cloud[name])
        assert np.array_equal(again[name], cloud[name])


@pytest.mark.parametrize(
    "content, cause",
    [
        (b"solid stl", "does not begin with 'ply'"),
        (b"ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nend_header\n1\n", "x, y, z"),
        (b"ply\nformat strange 1.0\nend_header\n", "strange"),
        (b"ply\nformat ascii 1.0\nelement vertex 1\nproperty list uchar int x\n", "is a list"),
    ],
)
def test_what_is_no_cloud_is_an_error_with_its_cause(tmp_path, content, cause):
    path = tmp_path / "cloud.ply"
    path.write_bytes(content)
    with pytest.raises(InputError, match=cause) as error:
        filter_dtu_predictions.read_cloud(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("order", ["ascii", "binary_little_endian"])
def test_truncated_and_missing_clouds_are_errors(tmp_path, order):
    path = tmp_path / "cloud.ply"
    with pytest.raises(InputError, match="No such file"):
        filter_dtu_predictions.read_cloud(path)
    write_ply(path, cloud_of(np.ones((9, 3))), order)
    path.write_bytes(path.read_bytes()[:-70])
    with pytest.raises(InputError, match=str(path)):
        filter_dtu_predictions.read_cloud(path)


def test_meshes_are_not_taken_for_clouds(tmp_path):
    path = tmp_path / "cloud.ply"
    write_ply(path, cloud_of(np.ones((9, 3))))
    path.write_bytes(path.read_bytes().replace(b"element face 0", b"element face 3"))
    with pytest.raises(InputError, match="holds a mesh"):
        filter_dtu_predictions.read_cloud(path)


def test_clouds_are_found_by_the_number_of_the_scan(tmp_path):
    for name in ("camp/camp065_l3", "tola/tola106_l3", "camp/camp001_l3", "surface/other"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.ply").touch()
    mine = tmp_path / "mine.ply"
    find = filter_dtu_predictions.find_clouds
    clouds = find([str(tmp_path), f"scan118={mine}"], ["scan65", "scan106", "scan118", "dino"])
    assert clouds == {
        "scan65": [tmp_path / "camp/camp065_l3.ply"],
        "scan106": [tmp_path / "tola/tola106_l3.ply"],
        "scan118": [mine],
        "dino": [],
    }
    for predictions, cause in [
        ([str(tmp_path / "none")], "is no folder"),
        ([f"scan7={mine}"], "there is no object scan7"),
        ([str(tmp_path / "surface")], "no .ply file has the number of scan65"),
        ([f"scan65={mine}", f"scan65={tmp_path / 'camp' / mine.name}"], "are named mine.ply"),
    ]:
        with pytest.raises(InputError, match=cause):
            find(predictions, ["scan65"])


def test_filter_keeps_the_sphere_and_drops_what_is_around_it(tiny_dtu, tmp_path, capfd):
    # 5 views around the z axis: no point of radius 0.49 at z = 0 hides in all their masks.
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    ring = np.stack([np.cos(angles), np.sin(angles), 0 * angles], axis=1)
    points = np.concatenate([0.9 * RADIUS * ring, 0.49 * ring, 60 * ring])
    cloud = cloud_of(points @ SCALE[:3, :3].T + SCALE[:3, 3])
    write_ply(tmp_path / "clouds/camp/camp001_l3.ply", cloud)
    config = write_config(tmp_path, tiny_dtu)
    arguments = ("--predictions", tmp_path / "clouds", "--radius", 0)
    assert run("scripts/filter_dtu_predictions", config, *arguments) == 0
    kept = filter_dtu_predictions.read_cloud(tmp_path / "out/scan1/scan1/camp001_l3.ply")
    assert kept.tobytes() == cloud[:24].tobytes()
    assert "24 of 72 points" in capfd.readouterr().out
    # A disk of 12 pixels covers these small images: all that some view sees stays.
    assert run("scripts/filter_dtu_predictions", config, *arguments[:2]) == 0
    kept = filter_dtu_predictions.read_cloud(tmp_path / "out/scan1/scan1/camp001_l3.ply")
    assert kept.tobytes() == cloud[:48].tobytes()


def test_filter_says_when_there_is_nothing_to_filter(tiny_dtu, tmp_path, capfd):
    config = write_config(tmp_path, tiny_dtu)
    assert run("scripts/filter_dtu_predictions", config, "--predictions", tmp_path) == 2
    assert capfd.readouterr().err.startswith("error: --predictions: no .ply file")


# ---- export_model.py -----------------------------------------------------------------------------


@pytest.mark.parametrize("options, dtype", [((), torch.float32), (("--half",), torch.float16)])
def test_exported_weights_are_those_of_the_model(tmp_path, options, dtype):
    write_sphere_scene(tmp_path / "data/scan1/scan1")
    config = write_config(tmp_path, tmp_path / "data")
    model, out = octahedron(), tmp_path / "small.pt"
    save_model(tmp_path / "out/model_best.pt", model)
    assert run("scripts/export_model", config, str(out), *options) == 0
    state = checkpoints.load(out)
    assert "optimizer" not in state
    for name, weight in model.state_dict().items():
        assert state["model"][name].dtype == dtype
        torch.testing.assert_close(state["model"][name].float(), weight, rtol=1e-3, atol=1e-4)
    assert run("generate", config, "--set", f"test.model_file={out}") == 0


# ---- make_synthetic_dataset.py -------------------------------------------------------------------


def make_dataset(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["make_synthetic_dataset.py", *map(str, arguments)])
    return make_synthetic_dataset.main()


def test_scenes_by_name_and_with_highlights(tmp_path, monkeypatch):
    small = "--views", 1, "--size", 12
    assert make_dataset(monkeypatch, tmp_path / "default", *small) == 0
    images = {}
    for scene in ("tugboat", "parcels", "vessel"):
        assert make_dataset(monkeypatch, tmp_path / scene, *small, "--scene", scene) == 0
    assert make_dataset(monkeypatch, tmp_path / "shine", *small, "--scene", "parcels", "--shine") == 0
    for folder in tmp_path.iterdir():
        images[folder.name] = (folder / "scan1/scan1/image/000000.png").read_bytes()
    assert images["default"] == images["tugboat"] and len(set(images.values())) == 4


@pytest.mark.parametrize("options", [["--scene", "submarine"], ["--layout", "shapenet", "--shine"]])
def test_scenes_that_there_are_not(tmp_path, monkeypatch, capfd, options):
    with pytest.raises(SystemExit) as error:
        make_dataset(monkeypatch, tmp_path, *options)
    assert error.value.code == 2 and options[-1].strip("-") in capfd.readouterr().err
    assert not any(tmp_path.iterdir())


# ---- benchmarks ----------------------------------------------------------------------------------


def table_of(capsys):
    """Rows of the markdown table that was printed, as lists of cells."""
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [dict(zip(rows[0], row)) for row in rows[2:]]


def test_benchmark_of_training_steps(monkeypatch, capsys):
    memory = iter([10.0, 12.5])
    monkeypatch.setattr(train_step, "peak_memory", lambda *args, **kwargs: next(memory))
    view_batch = train_step.view_batch
    monkeypatch.setattr(train_step, "view_batch", lambda: view_batch(30, 40))
    monkeypatch.setattr(
        "sys.argv", "train_step --hidden 64 --steps 8 32 --rays 256 --repeats 1".split()
    )
    train_step.main()
    few, many = table_of(capsys)
    assert (few["steps per ray"], many["steps per ray"]) == ("8", "32")
    assert (few["memory / that at 8 steps"], many["memory / that at 8 steps"]) == ("1.00", "1.25")
    for row in (few, many):
        assert 10 < int(row["rays that hit"].strip("%")) < 60


def test_benchmark_of_meshes(monkeypatch, capsys):
    monkeypatch.setattr(generate, "peak_memory", lambda *args, **kwargs: 10.0)
    monkeypatch.setattr(
        "sys.argv", "generate --hidden 64 --upsampling-steps 0 --repeats 1".split()
    )
    generate.main()
    [row] = table_of(capsys)
    assert row["points evaluated"] == str(33**3) and int(row["faces"]) > 1000
    stages = [float(row[f"{stage} [s]"]) for stage in generate.STAGES]
    assert min(stages) > 0 and float(row["total [s]"]) == pytest.approx(sum(stages), rel=0.02)


def test_best_constant_answer_and_what_follows_the_input():
    """Spheres: the nearest to all the true ones wins; only one prediction is of its own size."""
    rng = np.random.default_rng(0)
    unit = rng.standard_normal((2000, 3))
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    true = [radius * unit for radius in (0.2, 0.3, 0.4)]
    training = [radius * unit for radius in np.linspace(0.1, 0.5, 21)]
    meshes = [radius * unit for radius in (0.21, 0.45, 0.22)]
    row = single_view.compare_category(true, training, meshes, seed=0)
    assert row["objects"] == 3
    assert row["constant"] == pytest.approx((0.1 + 0 + 0.1) / 3, rel=0.1)  # that of radius 0.3
    assert row["chamferL1"] == pytest.approx((0.01 + 0.15 + 0.18) / 3, rel=0.1)
    assert row["follows the input"] in (1 / 3, 2 / 3)  # is 0.45 compared with 0.4 or with 0.2?
    exact = single_view.mean_distances(training, true)
    assert row["constant"] == min(exact)


def test_curves_of_a_run(tmp_path, monkeypatch, capsys):
    write_sphere_scene(tmp_path / "data/scan1/scan1")
    training = {"max_iterations": 8, "print_every": 1, "validate_every": 4}
    config = write_config(
        tmp_path, tmp_path / "data", training=training, model={"lambda_depth": 1.0}
    )
    assert run("train", config) == 0
    found = curves.read_curves(tmp_path / "out")
    assert found["train/loss"][0].tolist() == list(range(1, 9))
    assert found["val/mask_iou"][0].tolist() == [4, 8]
    picture = tmp_path / "curves.png"
    monkeypatch.setattr("sys.argv", ["curves", str(tmp_path / "out"), str(picture)])
    assert curves.main() == 0
    assert read_rgb(picture).min() < 200  # something is drawn
    monkeypatch.setattr("sys.argv", ["curves", str(tmp_path / "elsewhere"), str(picture)])
    assert curves.main() == 2
    assert "there is no" in capsys.readouterr().err


# ---- FAQ.md --------------------------------------------------------------------------------------

FAQ = (ROOT / "FAQ.md").read_text(encoding="utf-8")
WIDTH, HEIGHT = 640, 480


def blocks(language):
    """The code blocks of the FAQ in a language, free of the indentation of lists."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```$", FAQ, re.DOTALL | re.MULTILINE)
    return [re.sub(rf"^{indent}", "", code, flags=re.MULTILINE) for indent, code in found]


@pytest.fixture
def faq():
    """What the Python code of the FAQ defines."""
    namespace = {}
    for code in blocks("python"):
        exec(code, namespace)
    return namespace


def photographs(centre, n_views=4, distance=5.0):
    """(K, R, t) of cameras around a point that they look at, in pixels."""
    rng = np.random.default_rng(0)
    views = []
    for _ in range(n_views):
        direction = rng.normal(size=3)
        eye = centre + distance * direction / np.linalg.norm(direction)
        world_mat = geometry.look_at(eye, centre).numpy()
        K = np.array([[810.0, 3.0, 330], [0, 790, 220], [0, 0, 1]])
        views.append((K, world_mat[:3, :3], world_mat[:3, 3]))
    return views


def test_faq_cameras_put_points_on_their_pixels(faq, tmp_path):
    centre = np.array([10.0, -4.0, 2.0])
    views = photographs(centre)
    scale_mat = faq["scale_matrix"](centre, 0.7)
    faq["save_cameras"](tmp_path / "cameras.npz", views, WIDTH, HEIGHT, scale_mat)
    points = np.random.default_rng(1).uniform(-0.5, 0.5, (20, 3))
    world = points @ scale_mat[:3, :3].T + scale_mat[:3, 3]
    for i, (K, R, t) in enumerate(views):
        camera = world @ R.T + t
        u, v = (camera @ K.T)[:, :2].T / camera[:, 2]
        mats = read_camera(tmp_path / "cameras.npz", i)
        pixels, depth = geometry.project(
            torch.from_numpy(points)[None], geometry.object_to_image(**mats)[None]
        )
        expected = geometry.index_to_image(torch.from_numpy(np.stack([v, u], 1)), HEIGHT, WIDTH,
                                           torch.float64)  # fmt: skip
        assert torch.allclose(pixels[0], expected, atol=1e-9)
        assert np.allclose(depth[0], camera[:, 2])


def test_faq_centre_of_attention_and_scale(faq):
    centre = np.array([10.0, -4.0, 2.0])
    assert np.allclose(faq["centre_of_attention"](photographs(centre)), centre)
    to_object = np.linalg.inv(faq["scale_matrix"](centre, 0.7))
    farthest = to_object @ np.array([*(centre + [0, 0.7, 0]), 1])
    assert np.allclose(farthest, [0, 1 / 2.2, 0, 1])


def test_faq_ray_length(faq):
    K = np.array([[810.0, 0, 330], [0, 790, 220], [0, 0, 1]])
    camera_mat, world_mat = faq["camera_matrices"](K, np.eye(3), np.zeros(3), WIDTH, HEIGHT)
    u, v, z = 100.0, 400.0, 7.0
    pixel = geometry.index_to_image(torch.tensor([[[v, u]]]), HEIGHT, WIDTH, torch.float64)
    matrix = torch.from_numpy(camera_mat @ world_mat)[None]
    _, direction = geometry.camera_rays(pixel, matrix)
    a, b = (u - K[0, 2]) / K[0, 0], (v - K[1, 2]) / K[1, 1]
    assert "length = z * sqrt(1 + a^2 + b^2)" in FAQ
    assert float((z * direction).norm()) == pytest.approx(z * np.sqrt(1 + a**2 + b**2))


def test_faq_config_is_valid(tmp_path, monkeypatch):
    [text] = blocks("yaml")
    (tmp_path / "cup.yaml").write_text(text)
    monkeypatch.chdir(ROOT / "configs")
    config = load_config(tmp_path / "cup.yaml")
    assert config["data"]["classes"] == ["cup"] and config["data"]["ignore_image_idx"] == []


def test_faq_names_only_keys_and_places_that_exist():
    defaults = yaml.safe_load(DEFAULTS.read_text())
    sections = [name for name, value in defaults.items() if isinstance(value, dict)]
    named = re.findall(rf"\b({'|'.join(sections)})\.([a-z_]\w*)(?!\w|\(|\.)", FAQ)
    keys = [(s, key) for s, key in named if key not in ("py", "pt", "exr")]
    assert len(keys) > 20
    assert [f"{s}.{key}" for s, key in keys if key not in defaults[s]] == []
    titles = {
        re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
        for title in re.findall(r"^## (.*)$", FAQ, re.MULTILINE)
    }
    assert set(re.findall(r"\]\(#(.*?)\)", FAQ)) == titles
    for path in re.findall(r"`((?:im2mesh|scripts|configs)/[\w/.]+\.\w+)`", FAQ):
        assert (ROOT / path).is_file() or path == "configs/cup.yaml", path
