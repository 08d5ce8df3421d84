import io

import numpy as np
import OpenEXR
import pytest
from PIL import Image

from im2mesh.data.images import (
    fit_square,
    plain_background,
    read_depth,
    read_input,
    read_mask,
    read_npz,
    read_rgb,
    resize_nearest,
    resize_rgb,
    white_border_share,
)
from im2mesh.errors import InputError
from tests.sphere_scene import write_exr


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def save(image, path):
    image.save(path)
    return path


# --- images and masks


def test_rgb_is_read_exactly(tmp_path):
    pixels = noise(5, 7, 3)
    read = read_rgb(save(Image.fromarray(pixels), tmp_path / "a.png"))
    assert read.dtype == np.uint8 and np.array_equal(read, pixels)


def test_grey_16_bit_and_bilevel_images_become_rgb(tmp_path):
    grey = noise(5, 7)
    expected = np.repeat(grey[..., None], 3, axis=2)
    assert np.array_equal(read_rgb(save(Image.fromarray(grey), tmp_path / "l.png")), expected)
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    assert np.array_equal(read_rgb(save(deep, tmp_path / "16.png")), expected)
    bilevel = Image.fromarray(grey > 127)
    expected = np.where(expected > 127, 255, 0)
    assert np.array_equal(read_rgb(save(bilevel, tmp_path / "1.png")), expected)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_composited_on_white(tmp_path, mode):
    image = Image.new("RGBA", (4, 3), (40, 40, 40, 255))
    image.paste((40, 40, 40, 0), (0, 0, 2, 3))
    if mode == "P":
        image = image.quantize(4)
    read = read_rgb(save(image.convert(mode), tmp_path / "a.png"))
    assert read.shape == (3, 4, 3)
    assert (read[:, :2] == 255).all() and (read[:, 2:] == 40).all()


def test_half_transparent_pixels_are_mixed_with_white(tmp_path):
    path = save(Image.new("RGBA", (2, 2), (0, 100, 200, 51)), tmp_path / "a.png")
    assert np.abs(read_rgb(path)[0, 0] - [204.0, 224, 244]).max() <= 1


def test_mask_is_the_first_channel_above_zero(tmp_path):
    first = np.array([[0, 1, 255], [0, 0, 9]], np.uint8)
    colour = np.stack([first, 255 - first, first], -1)
    palette = Image.fromarray(np.where(first > 0, 0, 1).astype(np.uint8), "P")
    palette.putpalette([255, 255, 255, 0, 0, 0])  # index 0 is white
    images = {
        "l": Image.fromarray(first),
        "rgb": Image.fromarray(colour),
        "1": Image.fromarray(first > 0),
        "16": Image.fromarray(first.astype(np.uint16)),
        "p": palette,
    }
    for name, image in images.items():
        read = read_mask(save(image, tmp_path / f"{name}.png"))
        assert read.dtype == bool and np.array_equal(read, first > 0), name


@pytest.mark.parametrize("format", ["png", "jpeg"])
def test_truncated_image(tmp_path, format):
    stream = io.BytesIO()
    Image.fromarray(noise(64, 64, 3)).save(stream, format)
    path = tmp_path / f"a.{format}"
    for share in (0.1, 0.5, 0.9):
        path.write_bytes(stream.getvalue()[: int(share * len(stream.getvalue()))])
        for read in (read_rgb, read_mask):
            with pytest.raises(InputError, match=rf"a\.{format}: not a readable image.*truncated"):
                read(path)


@pytest.mark.parametrize("read", [read_rgb, read_mask, read_depth, lambda p: read_npz(p, ["a"])])
def test_files_that_are_missing_empty_or_something_else(tmp_path, read):
    with pytest.raises(InputError, match="x.file: no such file"):
        read(tmp_path / "x.file")
    (tmp_path / "x.file").write_bytes(b"")
    with pytest.raises(InputError, match="x.file: not a readable .*empty"):
        read(tmp_path / "x.file")
    (tmp_path / "x.file").write_bytes(b"<html>404 Not Found</html>" * 9)
    with pytest.raises(InputError, match="x.file: not a readable") as caught:
        read(tmp_path / "x.file")
    assert " at 0x" not in str(caught.value)
    with pytest.raises(InputError, match="cannot be read .Is a directory"):
        read(tmp_path)


# --- input images


@pytest.mark.parametrize("orientation", range(1, 9))
def test_input_images_are_turned_upright(tmp_path, orientation):
    """By the EXIF orientation; supervision images are not, their cameras are those of the file."""
    upright = noise(4, 6, 3)
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read_input(tmp_path / "a.png"), upright)
    assert np.array_equal(read_rgb(tmp_path / "a.png"), stored)


def test_cmyk_photograph(tmp_path):
    path = save(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), tmp_path / "a.jpg")
    assert np.abs(read_input(path)[4, 4] - [255.0, 0, 0]).max() <= 3


def ring(background, size=24):
    """A red ring with the colour of the background in its hole."""
    rows, columns = np.indices((size, size)) - (size - 1) / 2
    radius = np.hypot(rows, columns)
    image = np.full((size, size, 3), background, np.uint8)
    image[(radius > 4) & (radius < 9)] = 200, 30, 30
    return image, radius


def test_flood_fill_stops_at_the_object(tmp_path):
    image, radius = ring((90, 100, 110))
    uneven = np.random.default_rng(0).integers(-10, 11, image.shape)
    image = (image + uneven).clip(0, 255).astype(np.uint8)
    assert np.array_equal(plain_background(image), radius >= 9)  # not the hole
    path = save(Image.fromarray(image), tmp_path / "a.png")
    assert np.array_equal(read_input(path), image)
    cut = read_input(path, remove_background=True)
    assert (cut[radius >= 9] == 255).all()
    assert np.array_equal(cut[radius < 9], image[radius < 9])
    assert white_border_share(cut) == 1 and white_border_share(image) == 0


def test_transparency_tells_the_background_before_flood_fill(tmp_path):
    image, _ = ring((0, 0, 0))
    for corner, rest in ((255, 255), (0, 0)):  # opaque: all is flooded; transparent: nothing is
        pixels = np.dstack([image, np.full((24, 24), 255, np.uint8)])
        pixels[0, 0, 3] = corner
        path = save(Image.fromarray(pixels), tmp_path / "a.png")
        cut = read_input(path, remove_background=True)
        assert (cut[0, 0] == 255).all() and (cut[0, 1] == rest).all()


def test_nothing_left_without_the_background(tmp_path):
    path = save(Image.new("RGB", (1, 1), "red"), tmp_path / "a.png")
    assert read_input(path).tolist() == [[[255, 0, 0]]]
    with pytest.raises(InputError, match=r"a\.png: nothing would be left.*data.remove_background"):
        read_input(path, remove_background=True)


def test_share_of_the_border_that_is_white():
    image = np.full((10, 10, 3), 245, np.uint8)
    image[1:-1, 1:-1] = 0
    assert white_border_share(image) == 1
    image[-1] = 245, 245, 200
    assert white_border_share(image) == pytest.approx(28 / 40)


def test_image_beyond_all_bounds(tmp_path, monkeypatch):
    path = save(Image.new("L", (40, 40)), tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 700)
    with pytest.raises(InputError, match=r"a\.png: too large an image, make it smaller .*1600"):
        read_input(path)


# --- depth maps


def test_depth_is_read_exactly_and_infinity_kept(tmp_path):
    depth = np.random.default_rng(0).uniform(1, 900, (6, 5)).astype(np.float32)
    depth[2, 3] = np.inf
    write_exr(tmp_path / "a.exr", depth)
    read = read_depth(tmp_path / "a.exr")
    assert read.dtype == np.float32 and np.array_equal(read, depth)


def test_depth_takes_red_of_colour_and_widens_half(tmp_path):
    depth = np.arange(12, dtype=np.float16).reshape(3, 4)
    channels = {"A": depth * 0, "B": depth + 1, "G": depth + 2, "R": depth}
    header = {"compression": OpenEXR.PIZ_COMPRESSION, "type": OpenEXR.scanlineimage}
    with OpenEXR.File(header, channels) as exr:
        exr.write(str(tmp_path / "a.exr"))
    assert np.array_equal(read_depth(tmp_path / "a.exr"), depth)


def test_depth_with_nan(tmp_path):
    depth = np.ones((4, 4), np.float32)
    depth[1, 2] = np.nan
    write_exr(tmp_path / "a.exr", depth)
    with pytest.raises(InputError, match=r"a\.exr: 1 of 16 depth values are NaN"):
        read_depth(tmp_path / "a.exr")


@pytest.mark.parametrize("damage", ["truncated", "overwritten", "header only"])
def test_damaged_depth_is_one_clean_error(tmp_path, capfd, damage):
    depth = np.fromfunction(lambda i, j: 0.5 * i + j, (120, 90)).astype(np.float32)
    write_exr(tmp_path / "a.exr", depth)
    data = bytearray((tmp_path / "a.exr").read_bytes())
    if damage == "overwritten":
        data[len(data) // 2 :] = bytes(len(data) - len(data) // 2)
    else:
        del data[60 if damage == "header only" else len(data) // 2 :]
    (tmp_path / "a.exr").write_bytes(data)
    with pytest.raises(InputError, match=r"a\.exr: not a readable EXR depth map"):
        read_depth(tmp_path / "a.exr")
    assert capfd.readouterr() == ("", "")


# --- npz files


def test_npz_errors_name_file_and_key(tmp_path):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, a=noise(400), b=np.zeros(3))
    assert set(read_npz(path, ["a"], optional=["b", "c"])) == {"a", "b"}
    with pytest.raises(InputError, match=r"a\.npz: no array 'c'"):
        read_npz(path, ["a", "c"])
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=r"a\.npz: not a readable npz file.*truncated"):
        read_npz(path, ["a"])
    damaged = bytearray(data)
    damaged[200] ^= 255
    path.write_bytes(damaged)
    with pytest.raises(InputError, match=r"a\.npz: not a readable npz file"):
        read_npz(path, ["a"])


def test_npz_never_unpickles(tmp_path):
    np.savez(tmp_path / "a.npz", a=np.array([{}], dtype=object))
    with pytest.raises(InputError, match="allow_pickle=False"):
        read_npz(tmp_path / "a.npz", ["a"])


# --- resizing


@pytest.mark.parametrize("size", [(9, 13), (3, 3), (20, 25), (8, 30)])
def test_convention_resizing_keeps_corner_pixel_centres(size):
    """A linear function of image coordinates in [-1, 1] is the same function after resizing."""

    def ramp(height, width):
        x, y = np.meshgrid(np.linspace(-1, 1, width), np.linspace(-1, 1, height))
        return np.stack([128 + 100 * x, 128 + 100 * y, 128 + 50 * x - 50 * y], -1)

    image = ramp(17, 21).round().astype(np.uint8)
    inner = (slice(1, -1), slice(1, -1))  # the filter averages over the replicated border
    resized = resize_rgb(image, size).astype(float)
    assert resized.shape == (*size, 3)
    assert np.abs(resized - ramp(*size))[inner].max() <= 1.5


def test_resizing_to_the_same_size_changes_nothing():
    image = noise(6, 9, 3)
    assert np.array_equal(resize_rgb(image, (6, 9)), image)
    assert np.array_equal(resize_nearest(image[..., 0], (6, 9)), image[..., 0])


@pytest.mark.parametrize(
    "shape, box", [((40, 20), (0, 2, 8, 6)), ((3, 6), (2, 0, 6, 8)), ((1, 500), (3, 0, 4, 8))]
)
def test_square_keeps_proportions_on_white(shape, box):
    fitted = fit_square(np.full((*shape, 3), 7, np.uint8), 8)
    expected = np.full((8, 8, 3), 255)
    top, left, bottom, right = box
    expected[top:bottom, left:right] = 7
    assert fitted.dtype == np.uint8 and np.array_equal(fitted, expected)


def test_square_of_the_same_size_changes_nothing_and_a_smaller_one_averages():
    image = noise(9, 9, 3)
    assert np.array_equal(fit_square(image, 9), image)
    checkers = np.indices((64, 64)).sum(0) % 2 * 255
    fitted = fit_square(np.repeat(checkers[..., None], 3, 2).astype(np.uint8), 8)
    assert np.abs(fitted[1:-1, 1:-1] - 127.5).max() <= 3


def test_nearest_resizing_keeps_values_and_corners():
    values = np.arange(35.0).reshape(5, 7)
    values[2, 3] = np.inf
    assert np.array_equal(resize_nearest(values, (3, 4)), values[::2, ::2])
    assert np.array_equal(resize_nearest(values, (9, 13))[::2, ::2], values)
