"""What feeds the encoder: input images of objects, numbers of objects, a folder of images."""

import itertools
import logging
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from im2mesh.commands.setup import get_dataset
from im2mesh.config import DEFAULTS, load_config
from im2mesh.data import (
    Draw,
    ImageFolderDataset,
    ImagesField,
    InputImagesField,
    MultiObjectDataset,
    SparseDepthField,
    collate,
    fields,
    make_loader,
)
from im2mesh.errors import InputError
from tests.sphere_scene import write_exr, write_sphere_scene

N_VIEWS, N_INPUTS = 3, 4


def shade(number, view):
    """The grey value of input image ``view`` of object ``number``."""
    return 20 + 40 * number + 10 * view


@pytest.fixture
def shapes(tmp_path):
    """Root of a dataset in the ShapeNet layout: objects a and b of class 1, c of class 2."""
    for number, label in enumerate(("1/a", "1/b", "2/c")):
        folder = tmp_path / "shapes" / label
        write_sphere_scene(folder, N_VIEWS)
        shutil.copytree(folder / "depth", folder / "visual_hull_depth")
        (folder / "img_choy2016").mkdir()
        for view in range(N_INPUTS):
            image = Image.new("L", (13, 13), shade(number, view))
            image.save(folder / f"img_choy2016/{view:03d}.jpg")
    return tmp_path / "shapes"


@pytest.fixture
def config(shapes):
    """A config for that dataset, changed by overrides."""
    base = [f"data.path={shapes}", "data.img_size_input=8"]
    return lambda *overrides: load_config(DEFAULTS, [*base, *overrides])


def with_inputs(root, inputs=(), images=(), **options):
    inputs = InputImagesField(img_size=8, **dict(inputs))
    fields_of = {"inputs": inputs, "img": ImagesField(**dict(images))}
    return MultiObjectDataset(root, fields_of, **options)


RANDOM = {"inputs": {"random_view": True}, "images": {"random_view": True}}


def view_of(item, number):
    """Which input image an item of object ``number`` shows."""
    values = item["inputs"].unique().tolist()
    assert len(values) == 1
    return [shade(number, view) for view in range(N_INPUTS)].index(values[0])


def same(batch, other):
    assert batch.keys() == other.keys()
    for key, values in batch.items():
        assert all(torch.equal(a, b) for a, b in zip(values, other[key], strict=True)), key


# ---- images of objects ---------------------------------------------------------------------------


def test_input_is_channels_first_and_resized(shapes):
    folder = shapes / "1/a"
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "img_choy2016/000.png")
    as_stored = InputImagesField(img_extension="png", img_size=None).load(folder, 0)
    assert list(as_stored) == [""] and as_stored[""].dtype == torch.uint8
    assert np.array_equal(as_stored[""], pixels.transpose(2, 0, 1))
    same_size = InputImagesField(img_extension="png", img_size=8).load(folder, 0)
    assert torch.equal(same_size[""], as_stored[""])
    assert InputImagesField().load(folder, 1)[""].shape == (3, 224, 224)


def test_first_input_view_unless_random(shapes):
    dataset = with_inputs(shapes)
    for epoch in range(5):
        assert [view_of(dataset[Draw(i, epoch)], i) for i in range(3)] == [0, 0, 0]


def test_random_input_views_depend_on_seed_epoch_and_item(shapes):
    def views(seed):
        dataset = with_inputs(shapes, **RANDOM, seed=seed)
        return [[view_of(dataset[Draw(i, epoch)], i) for i in range(3)] for epoch in range(20)]

    assert views(0) == views(0) != views(1)
    assert set(sum(views(0), [])) == set(range(N_INPUTS))
    assert any(len(set(epoch)) > 1 for epoch in views(0))


def test_input_view_is_independent_of_the_supervision_view(shapes):
    dataset = with_inputs(shapes, **RANDOM)
    items = [dataset[Draw(0, epoch)] for epoch in range(200)]
    pairs = {(item["img.view"], view_of(item, 0)) for item in items}
    assert pairs == set(itertools.product(range(N_VIEWS), range(N_INPUTS)))
    alone = with_inputs(shapes, inputs=RANDOM["inputs"])  # the supervision view is always 0
    for epoch, item in enumerate(items[:20]):
        assert torch.equal(alone[Draw(0, epoch)]["inputs"], item["inputs"])
    alone = MultiObjectDataset(shapes, {"img": ImagesField(**RANDOM["images"])})
    for epoch, item in enumerate(items[:20]):
        assert alone[Draw(0, epoch)]["img.view"] == item["img.view"]


def test_sparse_points_go_by_the_supervision_view(shapes):
    both = {
        "inputs": InputImagesField(random_view=True),
        "sparse_depth": SparseDepthField(),
        "img": ImagesField(random_view=True),
    }
    dataset = MultiObjectDataset(shapes, both)
    for epoch in range(10):
        item = dataset[Draw(0, epoch)]
        expected = SparseDepthField().load(shapes / "1/a", item["img.view"])
        assert torch.equal(item["sparse_depth.points"], expected["points"])


def test_views_split_into_items_have_input_views_of_their_own(shapes):
    dataset = with_inputs(shapes, **RANDOM, split_model_for_images=True)
    assert len(dataset) == 3 * N_VIEWS
    for index in range(N_VIEWS):
        items = [dataset[Draw(index, epoch)] for epoch in range(40)]
        assert {item["img.view"] for item in items} == {index}
        assert {view_of(item, 0) for item in items} == set(range(N_INPUTS))


@pytest.mark.parametrize(
    "options, expected",
    [
        ({"n_views": 2}, {0, 1}),
        ({"ignore_image_idx": [0, 2]}, {1, 3}),
        ({"n_views": 2, "ignore_image_idx": [0]}, {1, 2}),
    ],
)
def test_input_views_in_use(shapes, options, expected):
    dataset = with_inputs(shapes, {"random_view": True, **options})
    assert {view_of(dataset[Draw(0, epoch)], 0) for epoch in range(40)} == expected


def test_more_input_views_wanted_than_there_are(shapes):
    dataset = with_inputs(shapes, {"n_views": 5})
    message = r"^object 1/a, field inputs: .*img_choy2016: data\.n_views_input is 5, .* 4 images"
    with pytest.raises(InputError, match=message):
        dataset[0]


def test_cache_keeps_each_image_once(shapes, monkeypatch):
    read = []
    for name in ("read_input", "read_rgb"):
        reader = getattr(fields, name)
        monkeypatch.setattr(
            fields,
            name,
            lambda path, *options, reader=reader: read.append(path) or reader(path, *options),
        )
    uncached, cached = with_inputs(shapes, **RANDOM), with_inputs(shapes, **RANDOM, cache={})
    cached.preload()
    assert len(read) == len(set(read)) == 3 * (N_VIEWS + N_INPUTS)
    items = [cached[Draw(i, epoch)] for epoch in range(40) for i in range(3)]
    assert len(read) == 3 * (N_VIEWS + N_INPUTS)
    for key, n_views in (("img", N_VIEWS), ("inputs", N_INPUTS)):
        assert len({item[key].data_ptr() for item in items}) == 3 * n_views
    for (epoch, i), item in zip(itertools.product(range(40), range(3)), items):
        same(collate([item]), collate([uncached[Draw(i, epoch)]]))


def test_batches_do_not_depend_on_workers(shapes):
    dataset = with_inputs(shapes, **RANDOM)

    def batches(n_workers, **start):
        return itertools.islice(make_loader(dataset, 2, n_workers, seed=3, **start), 6)

    alone = list(batches(0))
    assert [len(batch["idx"]) for batch in alone[:2]] == [2, 1]
    assert alone[0]["inputs"].shape == (2, 3, 8, 8) and alone[0]["inputs"].dtype == torch.uint8
    for batch, other in zip(alone, batches(2), strict=True):
        same(batch, other)
    for batch, other in zip(alone[3:], batches(0, start_epoch=1, start_batch=1)):
        same(batch, other)


def test_inputs_of_different_size_do_not_make_a_batch():
    items = [{"inputs": torch.zeros(3, size, size, dtype=torch.uint8)} for size in (8, 9)]
    with pytest.raises(InputError, match="cannot hold 'inputs'.*set data.img_size_input for"):
        collate(items)


def test_unreadable_inputs_are_skipped_and_counted(shapes, caplog):
    (shapes / "1/b/img_choy2016/000.jpg").write_bytes(b"no image")
    with pytest.raises(InputError, match="^object 1/b, field inputs: .*000.jpg: not a readable"):
        with_inputs(shapes)[1]
    shutil.rmtree(shapes / "2/c/img_choy2016")
    dataset = with_inputs(shapes, skip_unreadable=True)
    loader = make_loader(dataset, 3, shuffle=False, endless=False)
    assert [batch["idx"].tolist() for batch in loader] == [[0]]
    assert list(loader.skipped) == ["1/b", "2/c"]
    assert "left out (2 so far)" in caplog.text and "data.img_folder_input" in caplog.text


# ---- numbers of objects --------------------------------------------------------------------------


def test_number_of_the_object_not_of_the_view(shapes):
    images = {"img": ImagesField()}
    dataset = MultiObjectDataset(shapes, images, number_inputs=True)
    assert [item["inputs"].tolist() for item in dataset] == [0, 1, 2] and dataset.n_objects == 3
    dataset = MultiObjectDataset(shapes, images, number_inputs=True, split_model_for_images=True)
    batch = collate([dataset[i] for i in range(9)])
    assert batch["inputs"].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2] and dataset.n_objects == 3
    assert batch["inputs"].dtype == torch.int64
    assert dataset.input_files(0) == []


def test_objects_that_are_left_out_keep_their_number(shapes):
    shutil.rmtree(shapes / "1/b/image")
    dataset = MultiObjectDataset(
        shapes, {"img": ImagesField()}, None, None, True, number_inputs=True, skip_unreadable=True
    )
    assert [item["inputs"].item() for item in dataset] == [0, 0, 0, 2, 2, 2]
    assert dataset.n_objects == 3


# ---- by config -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["val", "test", "render"])
def test_only_nmr_has_random_inputs_outside_of_training(config, mode):
    keys = config()
    dataset = get_dataset(keys, mode)
    assert {view_of(dataset[Draw(0, epoch)], 0) for epoch in range(9)} == {0}
    keys["data"]["dataset_name"] = "NMR"
    views = []
    for keys["training"]["seed"] in range(9):
        item, same_item = (get_dataset(keys, name)[0] for name in (mode, "test"))
        assert torch.equal(item["inputs"], same_item["inputs"])
        views.append(view_of(item, 0))
    assert len(set(views)) > 1


@pytest.mark.parametrize("name", ["Shapes3D", "NMR"])
def test_training_shows_random_inputs_and_views(config, name):
    dataset = get_dataset(config(f"data.dataset_name={name}"), "train")
    items = [dataset[Draw(0, epoch)] for epoch in range(40)]
    assert {view_of(item, 0) for item in items} == set(range(N_INPUTS))
    assert {item["img.view"] for item in items} == set(range(N_VIEWS))


def test_input_files_are_those_of_the_items(config, shapes):
    for name in ("Shapes3D", "NMR"):
        dataset = get_dataset(config(f"data.dataset_name={name}"), "test")
        for index, folder in enumerate(("1/a", "1/b", "2/c")):
            (path,) = dataset.input_files(index)
            assert path.parent == shapes / folder / "img_choy2016"
            assert path.name == f"{view_of(dataset[index], index):03d}.jpg"


def test_a_single_view_is_input_and_supervision(config):
    keys = ("img_folder_input=image", "img_extension_input=png", "n_views=1", "n_views_input=1")
    dataset = get_dataset(
        config(*(f"data.{key}" for key in keys), "data.img_size_input=null"), "train"
    )
    for epoch in range(5):
        item = dataset[Draw(1, epoch)]
        assert item["img.view"] == 0
        assert torch.equal(item["inputs"], item["img"].permute(2, 0, 1))


def test_supervision_reads_what_its_losses_need(config, shapes):
    maps = {"img.depth", "img.visual_hull_depth"}

    def read(*overrides):
        return set(get_dataset(config(*overrides), "train")[0]) & maps

    assert read() == set()
    assert read("model.lambda_depth=1", "model.lambda_rgb=0") == {"img.depth"}
    assert read("data.depth_from_visual_hull=true") == {"img.visual_hull_depth"}
    write_exr(shapes / "1/a/visual_hull_depth/000000.exr", np.full((16, 20), np.nan, np.float32))
    with pytest.raises(InputError, match="^object 1/a, field img: .*visual_hull_depth/000000.exr"):
        get_dataset(config("data.depth_from_visual_hull=true", "data.n_views=1"), "train")[0]


@pytest.mark.parametrize("mode", ["train", "val", "test", "render"])
def test_without_input_images_there_is_nothing_to_read(config, shapes, mode):
    for category in ("1", "2"):
        for folder in (shapes / category).glob("*/img_choy2016"):
            shutil.rmtree(folder)
    assert "inputs" not in get_dataset(config("data.input_type=null"), mode)[0]
    assert get_dataset(config("data.input_type=idx"), mode)[2]["inputs"].item() == 2
    with pytest.raises(InputError, match="no such folder .see data.img_folder_input"):
        get_dataset(config(), mode)[0]


# ---- a folder of images --------------------------------------------------------------------------


@pytest.fixture
def album(tmp_path):
    """Write pictures into a folder and give the dataset of it."""
    folder = tmp_path / "album"
    folder.mkdir()

    def album(images, **options):
        for name, image in images.items():
            image.save(folder / name)
        return ImageFolderDataset(folder, **options)

    album.folder = folder
    return album


def test_folder_gives_every_image_sorted(album):
    (album.folder / "sub.png").mkdir()
    for name in ("notes.txt", "._a.png"):
        (album.folder / name).write_text("no image")
    names = ["b.JPG", "a.png", "c.d.Jpeg", "B.PNG"]
    dataset = album({name: Image.new("RGB", (5, 4), "white") for name in names})
    assert [entry.label for entry in dataset.entries] == ["na/B", "na/a", "na/b", "na/c.d"]
    assert dataset.input_files(2) == [album.folder / "b.JPG"]
    item = dataset[3]
    assert item["idx"] == 3 and set(item) == {"inputs", "idx"}
    assert item["inputs"].shape == (3, 224, 224) and item["inputs"].dtype == torch.uint8
    assert (item["inputs"] == 255).all()


def test_two_files_of_one_name_stay_two_objects(album):
    names = ["chair.jpg", "chair.png", "chair.png.png", "table.png"]
    dataset = album({name: Image.new("L", (2, 2), 255) for name in names})
    models = [entry.model for entry in dataset.entries]
    assert models == ["chair.jpg", "chair.png", "chair.png.png", "table"]


def test_folder_holds_images_of_any_mode_and_size(album):
    images = {
        "a_cmyk.jpg": Image.new("CMYK", (30, 20)),
        "b_grey_and_thin.jpg": Image.new("L", (1, 400), 255),
        "c_transparent_palette.png": Image.new("RGBA", (30, 30), (9, 9, 9, 0)).quantize(2),
        "d_transparent_grey.png": Image.new("LA", (3, 3), (0, 0)),
        "e_tiny.png": Image.new("1", (1, 1), 0),
        "f_16_bit.png": Image.new("I;16", (7, 7), 0),
        "g_large_and_wide.png": Image.new("RGB", (5000, 4000), 0),
    }
    dataset = album(images, img_size=32)
    assert [sorted(item["inputs"].unique().tolist()) for item in dataset] == [
        [255], [255], [255], [255], [0], [0], [0, 255],  # the last has white above and below
    ]


def test_background_that_is_not_white_is_warned_of(album, caplog):
    white = Image.new("RGB", (40, 40), (250, 252, 249))
    white.paste((200, 0, 0), (10, 10, 30, 40))  # the object reaches the lower border
    grey = Image.new("RGB", (40, 30), (128, 128, 140))
    grey.paste((200, 0, 0), (10, 10, 30, 20))
    dataset = album({"white.png": white, "grey.png": grey})
    with caplog.at_level(logging.WARNING):
        dataset[1]
        assert not caplog.records
        dataset[0]
    message = caplog.text
    assert "grey.png: the background is not white (0% of the border is)" in message
    assert "data.remove_background: true" in message and len(caplog.records) == 1

    caplog.clear()
    cut_out = ImageFolderDataset(album.folder, img_size=40, remove_background=True)
    image = cut_out[0]["inputs"]
    assert not caplog.records
    assert (image[:, :10] == 255).all() and (image[:, 20, 20] == torch.tensor([200, 0, 0])).all()

    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(album.folder / "grey.png")
    cut_out[0]
    assert "grey.png" in caplog.text and "not plain: cut the object out by hand" in caplog.text


def test_folder_without_images(tmp_path):
    with pytest.raises(InputError, match="data.path: there is no folder .*nowhere"):
        ImageFolderDataset(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(InputError, match=f"data.path: {tmp_path} has no images .jpg, jpeg or png"):
        ImageFolderDataset(tmp_path)


def test_file_that_is_no_image(album):
    (album.folder / "a.png").write_text("<html>404</html>")
    dataset = album({"b.png": Image.new("L", (4, 4), 255)})
    with pytest.raises(InputError, match="^.*album/a.png: not a readable image"):
        dataset[0]
    dataset[1]


@pytest.mark.parametrize("mode", ["train", "val", "eval"])
def test_a_folder_of_images_serves_reconstruction_only(album, mode):
    album({"a.png": Image.new("L", (4, 4), 255)})
    keys = ["data.dataset_name=images", f"data.path={album.folder}", "data.img_size_input=8"]
    assert get_dataset(load_config(DEFAULTS, keys), "test")[0]["inputs"].shape == (3, 8, 8)
    for refused, overrides in ((mode, keys), ("test", [*keys, "data.input_type=null"])):
        with pytest.raises(InputError, match="data.dataset_name: .*no cameras.*generate.py"):
            get_dataset(load_config(DEFAULTS, overrides), refused)
