import logging
import multiprocessing
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from im2mesh.data import (
    Draw,
    EpochSampler,
    ImagesField,
    MultiObjectDataset,
    PointCloudField,
    SparseDepthField,
    collate,
    make_loader,
)
from im2mesh.errors import InputError
from tests.sphere_scene import RADIUS, SCALE, write_exr, write_sphere_scene


def images_only(root, split_model_for_images=True, **options):
    names = ("skip_unreadable", "cache", "seed", "classes", "split")
    dataset_options = {name: options.pop(name) for name in names if name in options}
    return MultiObjectDataset(
        root,
        {"img": ImagesField(**options)},
        split_model_for_images=split_model_for_images,
        **dataset_options,
    )


def object_folder(root):
    return root / "scan1/scan1"


def rewrite_npz(path, **changes):
    """Replace arrays of an npz file; None removes one."""
    arrays = dict(np.load(path)) | changes
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})


def add_objects(root, n_objects, **scene):
    """Objects a, b, ... of a class ``many``."""
    for index in range(n_objects):
        write_sphere_scene(root / "many" / "abcdefgh"[index], n_views=3, **scene)


def take(loader, n_batches):
    iterator = iter(loader)
    return [next(iterator) for _ in range(n_batches)]


def seen(batches):
    """(items, views) of each batch, as lists."""
    return [(batch["idx"].tolist(), batch["img.view"].tolist()) for batch in batches]


# --- items


def test_item_holds_what_is_on_disk(tiny_dtu):
    fields = {
        "img": ImagesField(depth_folder="depth"),
        "sparse_depth": SparseDepthField(),
        "pointcloud": PointCloudField(),
    }
    dataset = MultiObjectDataset(tiny_dtu, fields, split_model_for_images=True)
    assert len(dataset) == 5
    item = dataset[2]
    tensors = {key: value for key, value in item.items() if torch.is_tensor(value)}
    types = {key: (value.dtype, tuple(value.shape)) for key, value in tensors.items()}
    assert types == {
        "img": (torch.uint8, (16, 20, 3)),
        "img.mask": (torch.bool, (16, 20)),
        "img.depth": (torch.float32, (16, 20)),
        "img.world_mat": (torch.float64, (4, 4)),
        "img.camera_mat": (torch.float64, (4, 4)),
        "img.scale_mat": (torch.float64, (4, 4)),
        "sparse_depth.points": (torch.float32, (8, 3)),
        "sparse_depth.valid": (torch.bool, (8,)),
        "pointcloud.points": (torch.float32, (60, 3)),
        "pointcloud.normals": (torch.float32, (60, 3)),
    }
    assert item["img.view"] == 2 and item["idx"] == 2
    folder = object_folder(tiny_dtu)
    assert np.array_equal(item["img"], np.asarray(Image.open(folder / "image/000002.png")))
    assert np.array_equal(item["img.mask"], item["img.depth"].isfinite())
    assert 0.1 < item["img.mask"].float().mean() < 0.9
    cameras = np.load(folder / "cameras.npz")
    for name in ("world_mat", "camera_mat", "scale_mat"):
        assert np.array_equal(item[f"img.{name}"], cameras[f"{name}_2"])
    assert item["sparse_depth.valid"].all()


def test_sparse_points_are_those_seen_in_the_view_and_in_the_hull(tiny_dtu):
    arrays = np.load(object_folder(tiny_dtu) / "pcl.npz")
    points = SparseDepthField().load(object_folder(tiny_dtu), 1)["points"]
    expected = [k for k in range(60) if k % 5 == 1 and k % 3 != 0]
    assert np.array_equal(points, arrays["points"][expected].astype(np.float32))
    centred = points.double().numpy() - SCALE[:3, 3]  # world space, not object space
    assert np.allclose(np.linalg.norm(centred, axis=1), RADIUS * SCALE[0, 0], atol=1e-3)


def test_scale_mat_is_the_identity_when_absent(tiny_dtu):
    rewrite_npz(object_folder(tiny_dtu) / "cameras.npz", scale_mat_1=None)
    dataset = images_only(tiny_dtu)
    assert torch.equal(dataset[1]["img.scale_mat"], torch.eye(4, dtype=torch.float64))
    assert not torch.equal(dataset[0]["img.scale_mat"], torch.eye(4, dtype=torch.float64))


def test_only_what_is_asked_for_is_read(tiny_dtu):
    for name in ("mask", "depth"):
        shutil.rmtree(object_folder(tiny_dtu) / name)
    (object_folder(tiny_dtu) / "cameras.npz").unlink()
    dataset = images_only(tiny_dtu, mask_folder=None, with_camera=False)
    assert set(dataset[0]) == {"img", "img.view", "idx"}


def test_img_size_resizes_image_and_maps_but_not_cameras(tiny_dtu):
    full = images_only(tiny_dtu, depth_folder="depth")[0]
    item = images_only(tiny_dtu, depth_folder="depth", img_size=[8, 10])[0]
    assert item["img"].shape == (8, 10, 3) and item["img.mask"].shape == (8, 10)
    assert torch.equal(item["img.mask"], item["img.depth"].isfinite())
    assert torch.equal(item["img.depth"][0, 0], full["img.depth"][0, 0])
    assert torch.equal(item["img.depth"][-1, -1], full["img.depth"][-1, -1])
    assert torch.equal(item["img.camera_mat"], full["img.camera_mat"])
    assert images_only(tiny_dtu, img_size=9)[0]["img"].shape == (9, 9, 3)


@pytest.mark.parametrize("size", [1, 64.0, [4], [4, 5, 6], "64", [8, 0]])
def test_bad_img_size(size):
    with pytest.raises(InputError, match="data.img_size"):
        ImagesField(img_size=size)


# --- views


def test_more_views_wanted_than_there_are(tiny_dtu):
    with pytest.raises(InputError, match=r"image: data\.n_views is 5, but there are 4 images"):
        images_only(tiny_dtu, n_views=5, ignore_image_idx=[2])


@pytest.mark.parametrize(
    "n_views, ignored, expected",
    [
        (0, [], [0, 1, 2, 3, 4]),
        (0, [1, 3], [0, 2, 4]),
        (2, [], [0, 1]),
        (2, [0, 2], [1, 3]),  # first taken out, then counted
        (4, [0, 77], [1, 2, 3, 4]),
    ],
)
def test_views_in_use_keep_their_unfiltered_index(tiny_dtu, n_views, ignored, expected):
    dataset = images_only(tiny_dtu, n_views=n_views, ignore_image_idx=ignored)
    cameras = np.load(object_folder(tiny_dtu) / "cameras.npz")
    assert [entry.view for entry in dataset.entries] == expected
    for item, view in zip(dataset, expected):
        assert item["img.view"] == view
        assert np.array_equal(item["img.world_mat"], cameras[f"world_mat_{view}"])
        image = Image.open(object_folder(tiny_dtu) / f"image/{view:06d}.png")
        assert np.array_equal(item["img"], np.asarray(image))


def test_without_split_an_object_is_an_item_that_shows_its_first_view(tiny_dtu):
    dataset = images_only(tiny_dtu, split_model_for_images=False, ignore_image_idx=[0])
    assert len(dataset) == 1 and dataset.entries[0].view is None
    assert {dataset[Draw(0, epoch)]["img.view"] for epoch in range(9)} == {1}


def test_random_views_depend_on_seed_and_epoch(tiny_dtu):
    def views(seed):
        dataset = images_only(
            tiny_dtu, split_model_for_images=False, random_view=True, seed=seed, n_views=4
        )
        return [dataset[Draw(0, epoch)]["img.view"] for epoch in range(40)]

    assert views(0) == views(0)
    assert views(0) != views(1)
    assert set(views(0)) == {0, 1, 2, 3}


def test_random_views_differ_between_the_items_of_an_epoch(tmp_path):
    add_objects(tmp_path, 8)
    dataset = images_only(tmp_path, split_model_for_images=False, random_view=True)
    assert len({item["img.view"] for item in dataset}) > 1


def test_hidden_files_are_no_views(tiny_dtu):
    (object_folder(tiny_dtu) / "image/._000000.png").write_bytes(b"left by an archiver")
    assert len(images_only(tiny_dtu)) == 5


def test_sparse_points_follow_the_random_view_of_the_image(tiny_dtu):
    fields = {"img": ImagesField(random_view=True), "sparse_depth": SparseDepthField()}
    dataset = MultiObjectDataset(tiny_dtu, fields)
    for epoch in range(5):
        item = dataset[Draw(0, epoch)]
        expected = SparseDepthField().load(object_folder(tiny_dtu), item["img.view"])
        assert torch.equal(item["sparse_depth.points"], expected["points"])


def test_no_view_left(tiny_dtu):
    with pytest.raises(InputError, match="scan1/scan1.*ignore_image_idx leaves none of its 5"):
        images_only(tiny_dtu, ignore_image_idx=range(9))


# --- which objects


def test_objects_come_from_folders_or_from_the_split_file(tmp_path):
    add_objects(tmp_path, 3)
    write_sphere_scene(tmp_path / "extra/z", n_views=1)
    (tmp_path / "many/.hidden").mkdir()
    (tmp_path / "many/train.lst").write_text("c\n\na\n")

    def labels(**options):
        dataset = MultiObjectDataset(tmp_path, {"pointcloud": PointCloudField()}, **options)
        return [entry.label for entry in dataset.entries]

    assert labels() == ["extra/z", "many/a", "many/b", "many/c"]
    assert labels(split="train") == ["extra/z", "many/c", "many/a"]  # extra has no train.lst
    assert labels(split="val", classes=["many"]) == ["many/a", "many/b", "many/c"]
    entries = MultiObjectDataset(tmp_path, {}, classes=["many", "extra"]).entries
    assert [entry.category_index for entry in entries] == [0, 0, 0, 1]


def test_class_names_come_from_metadata(tmp_path):
    add_objects(tmp_path, 1)
    assert MultiObjectDataset(tmp_path, {}).class_names == {"many": "many"}
    (tmp_path / "metadata.yaml").write_text("many: {id: many, name: 'many,things'}\nother: {}\n")
    assert MultiObjectDataset(tmp_path, {}).class_names == {"many": "many,things"}
    for bad in ("many: [", "- many", "many: 3", "!!python/object:os.system {}"):
        (tmp_path / "metadata.yaml").write_text(bad)
        with pytest.raises(InputError, match="metadata.yaml: not of the form"):
            MultiObjectDataset(tmp_path, {})


def test_missing_folder_class_object(tmp_path):
    with pytest.raises(InputError, match="data.path: there is no folder .*nowhere.*README"):
        MultiObjectDataset(tmp_path / "nowhere", {})
    with pytest.raises(InputError, match="has no class folders"):
        MultiObjectDataset(tmp_path, {})
    add_objects(tmp_path, 1)
    with pytest.raises(InputError, match="data.classes: .*chairs.*has many"):
        MultiObjectDataset(tmp_path, {}, classes=["many", "chairs"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty has no objects"):
        MultiObjectDataset(tmp_path, {})


def test_split_file_naming_a_missing_object(tmp_path, caplog):
    add_objects(tmp_path, 2)
    split = tmp_path / "many/train.lst"
    split.write_text("a\n\nghost\nb\n")
    with pytest.raises(InputError, match=r"train\.lst, line 3: there is no object folder .*ghost"):
        MultiObjectDataset(tmp_path, {}, "train")
    dataset = MultiObjectDataset(tmp_path, {}, "train", skip_unreadable=True)
    assert [entry.model for entry in dataset.entries] == ["a", "b"]
    assert "ghost" in caplog.text
    split.write_text("\n")
    with pytest.raises(InputError, match=r"train\.lst: lists no object"):
        MultiObjectDataset(tmp_path, {}, "train")


# --- bad files: the error names the object, the field, the path and the cause


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def save_nan(path):
    write_exr(path, np.full((16, 20), np.nan, np.float32))


def save_grey(path, size, value=255):
    Image.new("L", size, value).save(path)


FILES = [
    ("image/000001.png", truncate, "truncated"),
    ("mask/001.png", truncate, "truncated"),
    ("depth/000001.exr", truncate, "truncated"),
    ("cameras.npz", truncate, "truncated"),
    ("mask/001.png", Path.unlink, "mask: 4 .*for 5 images"),
    ("depth/000001.exr", Path.unlink, "depth: 4 .*for 5 images"),
    ("cameras.npz", Path.unlink, "no such file"),
    ("image", shutil.rmtree, "no such folder .see data.img_folder"),
    ("mask", shutil.rmtree, "no such folder .see data.mask_folder"),
    ("depth/000001.exr", save_nan, "NaN"),
    ("mask/001.png", lambda path: save_grey(path, (10, 8)), "image is 20x16.*mask 10x8"),
    ("depth/000001.exr", lambda path: write_exr(path, np.ones((8, 9), np.float32)), "depth 9x8"),
]


@pytest.mark.parametrize("name, damage, cause", FILES)
def test_bad_file(tiny_dtu, name, damage, cause):
    dataset = images_only(tiny_dtu, depth_folder="depth")
    damage(object_folder(tiny_dtu) / name)
    with pytest.raises(InputError, match=f"^object scan1/scan1, field img: .*scan1/.*{cause}"):
        dataset[1]


SINGULAR = np.diag([1.0, 1, 0, 1])
CAMERAS = [
    ({"world_mat_1": None}, "no array 'world_mat_1'"),
    ({"camera_mat_1": None}, "no array 'camera_mat_1'"),
    ({"world_mat_1": np.eye(4)[:3]}, r"world_mat_1 is no 4x4 matrix but \(3, 4\)"),
    ({"camera_mat_1": np.full((4, 4), np.nan)}, "camera_mat_1 has NaN"),
    ({"scale_mat_1": SINGULAR}, "scale_mat_1 is singular"),
    ({"world_mat_1": SINGULAR}, "world_mat_1 is singular"),
]


@pytest.mark.parametrize("changes, cause", CAMERAS)
def test_bad_camera(tiny_dtu, changes, cause):
    rewrite_npz(object_folder(tiny_dtu) / "cameras.npz", **changes)
    dataset = images_only(tiny_dtu)
    dataset[0]  # the other views are fine
    with pytest.raises(InputError, match=f"object scan1/scan1, field img: .*cameras.npz: {cause}"):
        dataset[1]


CLOUDS = [
    ({"visibility_0001": None}, "no array 'visibility_0001'"),
    ({"visibility_0001": np.array([0, 60])}, "visibility_0001 is not a list of indices below 60"),
    ({"is_in_visual_hull": np.ones(3, bool)}, r"is_in_visual_hull has shape \(3,\) for 60 points"),
    ({"points": np.full((60, 3), np.nan)}, "points has NaN"),
    ({"points": np.zeros((60, 2))}, "points is .*not numbers"),
]


@pytest.mark.parametrize("changes, cause", CLOUDS)
def test_bad_sparse_points(tiny_dtu, changes, cause):
    rewrite_npz(object_folder(tiny_dtu) / "pcl.npz", **changes)
    with pytest.raises(InputError, match=f"pcl.npz: {cause}"):
        SparseDepthField().load(object_folder(tiny_dtu), 1)


def test_bad_evaluation_cloud(tiny_dtu):
    path = object_folder(tiny_dtu) / "pointcloud.npz"
    dataset = MultiObjectDataset(tiny_dtu, {"pointcloud": PointCloudField()})
    rewrite_npz(path, normals=np.zeros((5, 3)))
    with pytest.raises(InputError, match="pointcloud.npz: 60 points and 5 normals"):
        dataset[0]
    rewrite_npz(path, normals=None)
    with pytest.raises(InputError, match="field pointcloud: .*no array 'normals'"):
        dataset[0]


def test_masks_may_be_empty_in_some_views_but_not_in_all(tiny_dtu):
    dataset = images_only(tiny_dtu, ignore_image_idx=[4])
    for view in range(3):
        save_grey(object_folder(tiny_dtu) / f"mask/{view:03d}.png", (20, 16), 0)
    assert not dataset[0]["img.mask"].any()
    save_grey(object_folder(tiny_dtu) / "mask/003.png", (20, 16), 0)  # view 4 is not in use
    with pytest.raises(InputError, match="masks of all views in use are empty"):
        dataset[0]


# --- order of the items


@pytest.mark.parametrize("shuffle", [True, False])
def test_sampler_shows_every_item_once_per_epoch(shuffle):
    sampler = EpochSampler(7, 3, shuffle, seed=1)
    assert len(sampler) == 3
    iterator = iter(sampler)
    epochs = [[next(iterator) for _ in range(3)] for _ in range(4)]
    for epoch, batches in enumerate(epochs):
        assert [len(batch) for batch in batches] == [3, 3, 1]
        draws = sum(batches, [])
        assert sorted(draw.index for draw in draws) == list(range(7))
        assert {draw.epoch for draw in draws} == {epoch}
    orders = [tuple(draw.index for batch in batches for draw in batch) for batches in epochs]
    assert len(set(orders)) == (4 if shuffle else 1)


@pytest.mark.parametrize("n_batches", [0, 1, 3, 5])
def test_sampler_resumes_where_it_was(n_batches):
    whole = iter(EpochSampler(7, 3, shuffle=True, seed=1))
    for _ in range(n_batches):
        next(whole)
    epoch, batch = divmod(n_batches, 3)
    rest = iter(EpochSampler(7, 3, True, seed=1, start_epoch=epoch, start_batch=batch))
    assert [next(rest) for _ in range(9)] == [next(whole) for _ in range(9)]


def test_batches_do_not_depend_on_workers_or_global_random_state(tmp_path):
    add_objects(tmp_path, 5)
    dataset = images_only(tmp_path, split_model_for_images=False, random_view=True)
    before = torch.get_rng_state()
    alone = take(make_loader(dataset, 2, seed=3), 8)
    np.random.seed(9)
    helped = take(make_loader(dataset, 2, n_workers=2, seed=3), 8)
    assert torch.equal(torch.get_rng_state(), before)
    assert seen(alone) == seen(helped)
    for batch, same in zip(alone, helped):
        assert torch.equal(torch.stack(batch["img"]), torch.stack(same["img"]))
        assert torch.equal(batch["img.world_mat"], same["img.world_mat"])
    resumed = take(make_loader(dataset, 2, seed=3, start_epoch=1, start_batch=2), 3)
    assert seen(resumed) == seen(alone)[5:]
    assert seen(take(make_loader(dataset, 2, seed=4), 8)) != seen(alone)


def test_one_pass(tiny_dtu):
    loader = make_loader(images_only(tiny_dtu), 2, shuffle=False, endless=False)
    assert len(loader) == 3
    for _ in range(2):  # a second pass starts over
        assert [batch["idx"].tolist() for batch in loader] == [[0, 1], [2, 3], [4]]


# --- collation


def test_collate_joins_and_pads():
    items = [
        {
            "img": torch.full((2, 3, 3), i, dtype=torch.uint8),
            "sparse_depth.points": torch.ones(i, 3),
            "sparse_depth.valid": torch.ones(i, dtype=torch.bool),
            "idx": i,
        }
        for i in (2, 0, 4)
    ]
    batch = collate(items)
    assert all(image is item["img"] for image, item in zip(batch["img"], items, strict=True))
    assert batch["idx"].tolist() == [2, 0, 4]
    assert batch["sparse_depth.points"].shape == (3, 4, 3)
    assert batch["sparse_depth.valid"].sum(1).tolist() == [2, 0, 4]
    assert batch["sparse_depth.valid"].dtype == torch.bool
    assert not batch["sparse_depth.points"][~batch["sparse_depth.valid"]].any()


def test_images_of_different_size_do_not_make_a_batch(tmp_path):
    add_objects(tmp_path, 1)
    write_sphere_scene(tmp_path / "many/z", n_views=3, size=(8, 10))
    dataset = images_only(tmp_path, split_model_for_images=False)
    for n_workers in (0, 1):
        with pytest.raises(InputError, match="^a batch cannot hold 'img'.*data.img_size"):
            take(make_loader(dataset, 2, n_workers), 1)
    resized = images_only(tmp_path, split_model_for_images=False, img_size=12)
    images = take(make_loader(resized, 2), 1)[0]["img"]
    assert [image.shape for image in images] == [(12, 12, 3)] * 2
    assert len(take(make_loader(dataset, 1), 2)) == 2


# --- cache


@pytest.mark.parametrize("n_workers", [0, 2])
def test_cached_batches_are_views_of_the_cache(tiny_dtu, n_workers):
    dataset = images_only(tiny_dtu, cache={})
    for batch_size in (1, 3):
        batches = take(make_loader(dataset, batch_size, n_workers), 15)
        images = [image for batch in batches for image in batch["img"]]
        cached = {dataset[i]["img"].data_ptr() for i in range(5)}
        assert {image.data_ptr() for image in images} == cached
        assert images[0].dtype == torch.uint8 and images[0].shape == (16, 20, 3)


def test_cached_items_need_no_files(tmp_path):
    write_sphere_scene(tmp_path / "scan1/scan1")
    options = {"split_model_for_images": False, "random_view": True}
    uncached = images_only(tmp_path, **options)
    cached = images_only(tmp_path, cache={}, **options)
    cached.preload()
    expected = [uncached[Draw(0, epoch)] for epoch in range(20)]
    shutil.rmtree(object_folder(tmp_path))
    for epoch, item in enumerate(expected):
        assert torch.equal(cached[Draw(0, epoch)]["img"], item["img"])
    with pytest.raises(InputError):
        uncached[0]


def test_preload_finds_a_bad_file(tiny_dtu):
    (object_folder(tiny_dtu) / "image/000004.png").write_bytes(b"")
    with pytest.raises(InputError, match="000004.png"):
        images_only(tiny_dtu, cache={}).preload()
    images_only(tiny_dtu, cache={}, skip_unreadable=True).preload()


# --- errors on their way through the loader


@pytest.mark.parametrize("n_workers", [0, 1])
def test_errors_arrive_as_one_line(tiny_dtu, n_workers):
    dataset = images_only(tiny_dtu)
    truncate(object_folder(tiny_dtu) / "image/000001.png")
    with pytest.raises(InputError, match="^object scan1/scan1, field img: ") as caught:
        take(make_loader(dataset, 1, n_workers, shuffle=False), 3)
    assert type(caught.value) is InputError
    assert "\n" not in str(caught.value) and "Traceback" not in str(caught.value)


@pytest.mark.parametrize("n_workers", [0, 1])
def test_unreadable_objects_are_skipped_counted_and_reported_once(tmp_path, caplog, n_workers):
    add_objects(tmp_path, 3)
    truncate(tmp_path / "many/b/image/000000.png")
    dataset = images_only(tmp_path, split_model_for_images=False, skip_unreadable=True)
    loader = make_loader(dataset, 3, n_workers, shuffle=False)
    with caplog.at_level(logging.WARNING):
        batches = take(loader, 3)
    assert [batch["idx"].tolist() for batch in batches] == [[0, 2]] * 3
    assert list(loader.skipped) == ["many/b"]
    assert caplog.text.count("left out (1 so far): object many/b, field img") == 1


def test_a_batch_must_not_be_empty(tmp_path):
    add_objects(tmp_path, 3)
    truncate(tmp_path / "many/b/image/000000.png")
    dataset = images_only(tmp_path, split_model_for_images=False, skip_unreadable=True)
    with pytest.raises(InputError, match="not one item of a batch could be read.*many/b"):
        take(make_loader(dataset, 1, shuffle=False), 3)


def test_objects_without_readable_views_are_skipped_when_split_into_views(tmp_path, caplog):
    add_objects(tmp_path, 2)
    shutil.rmtree(tmp_path / "many/a/image")
    dataset = images_only(tmp_path, skip_unreadable=True)
    assert {entry.model for entry in dataset.entries} == {"b"} and "many/a" in caplog.text
    shutil.rmtree(tmp_path / "many/b/image")
    with pytest.raises(InputError, match="no readable object"):
        images_only(tmp_path, skip_unreadable=True)


def test_workers_leave_signals_to_the_main_process(tiny_dtu):
    batches = iter(make_loader(images_only(tiny_dtu), 1, n_workers=1))
    next(batches)
    (worker,) = multiprocessing.active_children()
    os.kill(worker.pid, signal.SIGINT)
    os.kill(worker.pid, signal.SIGTERM)
    for _ in range(10):
        next(batches)
    assert worker.is_alive()
    batches.close()
    worker.join(5)
    assert worker.exitcode == 0
