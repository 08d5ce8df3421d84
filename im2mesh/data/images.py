"""From files to arrays: images, masks, depth maps, npz archives.

Every reader raises ``InputError`` naming the file and the true cause when it is missing, truncated
or something else than it should be. Nothing half-read is ever returned.
"""

import contextlib
import io
import os
import zipfile
from pathlib import Path

import Imath
import numpy as np
import OpenEXR
from PIL import Image, ImageOps, UnidentifiedImageError
from scipy import ndimage

from im2mesh.errors import InputError

WHITE = 240  # of 255: white as a JPEG or a scanner may leave it
BACKGROUND_TOLERANCE = 30  # of 255: how far a background may be from its own colour


@contextlib.contextmanager
def _decoding(path, kind):
    """Yield the file's bytes as a stream; whatever a decoder raises becomes an ``InputError``."""
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError as err:
        raise InputError(f"{path}: no such file") from err
    except OSError as err:
        raise InputError(f"{path}: cannot be read ({err.strerror})") from err
    try:
        if not data:
            raise ValueError("the file is empty")
        yield io.BytesIO(data)
    except Image.DecompressionBombError as err:
        raise InputError(f"{path}: too large an image, make it smaller ({err})") from err
    except Exception as err:  # decoders answer broken bytes with a zoo of exception types
        cause = " ".join(str(err).split()) or type(err).__name__
        raise InputError(
            f"{path}: not a readable {kind}: damaged, truncated or of another format ({cause})"
        ) from err


def _read_image(path, upright=False):
    with _decoding(path, "image") as stream:
        try:
            image = Image.open(stream)
        except UnidentifiedImageError:  # its text is the address of the stream
            raise ValueError("no known image format") from None
        image.load()  # Pillow is lazy: only this finds a truncated file
        return ImageOps.exif_transpose(image) if upright else image


def _on_white(image):
    """A Pillow image of any mode as one of mode RGB."""
    if image.mode.startswith("I"):
        grey = np.clip(np.asarray(image) / 257.0, 0, 255)
        image = Image.fromarray(grey.round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def read_rgb(path):
    """Read an image of any Pillow mode.

    Grey becomes RGB, transparency is composited on white, 16 bits become 8.

    Returns
    -------
    uint8 array (H, W, 3)
    """
    return np.array(_on_white(_read_image(path)))


def read_input(path, remove_background=False):
    """Read an image for the encoder: as ``read_rgb``, and turned upright by its EXIF data.

    Parameters
    ----------
    remove_background : bool
        Make the background white, see ``plain_background``. An image with transparent parts tells
        its background by them and is left as it is.

    Returns
    -------
    uint8 array (H, W, 3)

    Raises
    ------
    InputError
        Also when removing the background would leave nothing.
    """
    image = _read_image(path, upright=True)
    pixels = np.array(_on_white(image))
    if not remove_background or _is_transparent(image):
        return pixels
    background = plain_background(pixels)
    if background.all():
        raise InputError(
            f"{path}: nothing would be left without the background, the image is all of one "
            "colour; see data.remove_background"
        )
    pixels[background] = 255
    return pixels


def _is_transparent(image):
    """Whether a Pillow image has transparent pixels, not just an alpha channel."""
    return image.has_transparency_data and image.convert("RGBA").getextrema()[3][0] < 255


def plain_background(image):
    """Where an image (H, W, 3) uint8 shows a background of one colour, by flood fill.

    Returns
    -------
    bool array (H, W)
        The regions at the border whose channels all differ by at most ``BACKGROUND_TOLERANCE``
        from the median of the border.
    """
    color = np.median(_border(image), axis=0).astype(np.int16)
    alike = (np.abs(image - color) <= BACKGROUND_TOLERANCE).all(axis=2)
    regions, _ = ndimage.label(alike)
    return alike & np.isin(regions, _border(regions))


def white_border_share(image):
    """How much of the border of an image (H, W, 3) uint8 is white, from 0 to 1."""
    return (_border(image) >= WHITE).all(axis=1).mean()


def _border(array):
    return np.concatenate([array[0], array[-1], array[:, 0], array[:, -1]])


def read_mask(path):
    """Read an object mask: True where the first channel is above 0.

    Returns
    -------
    bool array (H, W)
    """
    image = _read_image(path)
    if image.mode in ("P", "PA"):
        image = image.convert("RGB")  # pixels of a palette image are indices, not values
    values = np.asarray(image)
    return (values if values.ndim == 2 else values[..., 0]) > 0


def read_depth(path):
    """Read a depth map from an OpenEXR file.

    Of several channels it takes R, Z or Y, else the first one. Half precision is widened.

    Returns
    -------
    float32 array (H, W)
        Camera z; +inf where there is no surface.

    Raises
    ------
    InputError
        Also for NaN among the values.
    """
    with _decoding(path, "EXR depth map") as stream:
        with _silent_stderr():
            exr = OpenEXR.InputFile(stream)
            header = exr.header()
            channels = sorted(header["channels"])
            channel = next((name for name in ("R", "Z", "Y") if name in channels), channels[0])
            values = exr.channel(channel, Imath.PixelType(Imath.PixelType.FLOAT))
        low, high = header["dataWindow"].min, header["dataWindow"].max
        depth = np.frombuffer(values, np.float32).reshape(high.y - low.y + 1, high.x - low.x + 1)
    n_nan = int(np.isnan(depth).sum())
    if n_nan:
        raise InputError(
            f"{path}: {n_nan} of {depth.size} depth values are NaN; "
            "write +inf where there is no surface"
        )
    return depth.copy()  # frombuffer is read-only


@contextlib.contextmanager
def _silent_stderr():
    """The EXR library writes to the process's stderr before it raises; once is enough."""
    stderr, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(null)


def read_npz(path, required, optional=()):
    """Read named arrays of an npz file; nothing pickled is ever loaded.

    Returns
    -------
    dict of arrays
        All of ``required`` and those of ``optional`` that the file holds.
    """
    with _decoding(path, "npz file") as stream:
        if not zipfile.is_zipfile(stream):  # np.load would take it for a pickle and say so
            raise ValueError("not a zip archive")
        stream.seek(0)
        with np.load(stream, allow_pickle=False) as archive:
            names = [name for name in (*required, *optional) if name in archive.files]
            arrays = {name: archive[name] for name in names}
    for name in required:
        if name not in arrays:
            raise InputError(f"{path}: no array '{name}'")
    return arrays


def resize_rgb(image, size):
    """Resize an image, (H, W, 3) uint8 -> (h, w, 3) uint8, ``size = (h, w)``, h, w >= 2.

    Corner pixel centres stay corner pixel centres (image coordinates -1 and +1 are the centres
    of the border pixels), so the cameras of the full image hold for the resized one. A triangle
    filter as wide as the step averages when shrinking.
    """
    (height, width), (h, w) = image.shape[:2], size
    step_y, step_x = (height - 1) / (h - 1), (width - 1) / (w - 1)
    # Pillow maps the edges of a box to the edges of the result. Ours lie half a step beyond the
    # centres of the border pixels, which may be outside the image; the filter reaches a whole one.
    margin = int(np.ceil(max(step_x, step_y)))
    padded = np.pad(image, ((margin, margin), (margin, margin), (0, 0)), mode="edge")
    left, top = margin + 0.5 - step_x / 2, margin + 0.5 - step_y / 2
    box = (left, top, left + w * step_x, top + h * step_y)
    return np.array(Image.fromarray(padded).resize((w, h), Image.Resampling.BILINEAR, box))


def fit_square(image, size):
    """Resize an image, (H, W, 3) uint8 -> (size, size, 3) uint8, for the encoder.

    Its proportions stay, white fills the rest. A triangle filter averages when shrinking. Unlike
    in ``resize_rgb`` the edges of the image, not the centres of the border pixels, keep their
    place: no camera depends on it.
    """
    height, width = image.shape[:2]
    scale = size / max(height, width)
    w, h = max(1, round(scale * width)), max(1, round(scale * height))
    square = Image.new("RGB", (size, size), "white")
    resized = Image.fromarray(image).resize((w, h), Image.Resampling.BILINEAR)
    square.paste(resized, ((size - w) // 2, (size - h) // 2))
    return np.array(square)


def resize_nearest(values, size):
    """Resize a mask or depth map, (H, W) -> (h, w), by nearest pixel; see ``resize_rgb``."""
    rows, columns = (
        np.rint(np.linspace(0, n_old - 1, n_new)).astype(int)
        for n_old, n_new in zip(values.shape, size)
    )
    return values[np.ix_(rows, columns)]
