"""Hundreds of small pictures of every kind, as the decoder and as libvips show them.

`docs/preprocessing.md` says what is promised. Where libvips does otherwise (it shows floats of 0 to 1 as black, inverts
no deep negatives, and knows a profile of CMYK where none is embedded), other tests hold the promise.
"""

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import pyvips
from PIL import Image, ImageCms

from glo_core.dataset_format.config import ResolvedDatasetConfig
from glo_core.dataset_format.image_decoding import decode
from tests.helpers.color_profiles import adobe_rgb, gray
from tests.helpers.encode_images import encoded, png, png_chunk, ramps, tiff

FAULTS = Path(__file__).parents[2] / "faults"
SIDE, TOLERANCE = 32, 3
POLICY = ResolvedDatasetConfig(resolution=SIDE, channels=3, draft=False)
EXACT: dict[str, dict[str, object]] = {
    "WEBP": {"lossless": True, "exact": True},
    "JPEG": {"quality": 100, "subsampling": 0},
}
NOT_WRITTEN = {"JPEG": ("LA", "RGBA", "P", "I;16"), "WEBP": ("I;16",), "GIF": ("I;16",)}
"""Modes that Pillow does not write in a format"""
Cases = Iterator[tuple[str, bytes]]


def libvips(data: bytes) -> np.ndarray:
    """The picture upright, in sRGB, over white: int `[32, 32, 3]`."""
    image = pyvips.Image.new_from_buffer(data, "").autorot()
    if image.get_typeof("icc-profile-data"):
        with contextlib.suppress(pyvips.Error):  # A broken profile is none.
            image = image.icc_transform("srgb")
    image = image.colourspace("srgb")
    image = image.flatten(background=255) if image.hasalpha() else image
    return image.cast("uchar").numpy().astype(int)


def check(cases: Cases, at_least: int) -> None:
    """Compare each case, and name all that differ."""
    wrong, count = [], 0
    for name, data in cases:
        count += 1
        difference = abs(decode(data, POLICY).pixels.astype(int) - libvips(data)).max()
        if difference > TOLERANCE:
            wrong.append(f"{name}: {difference}")
    assert not wrong
    assert count >= at_least


def whole(bands: int, largest: int) -> np.ndarray:
    return np.floor(ramps(bands, largest)).astype(np.int64)


def pictures() -> dict[str, Image.Image]:
    rgb = Image.fromarray(ramps(3, 255).astype(np.uint8))
    level, alpha = rgb.convert("L"), Image.fromarray(ramps(2, 255)[..., 1].astype(np.uint8))
    rgba, la = rgb.copy(), level.copy()
    rgba.putalpha(alpha)
    la.putalpha(alpha)
    deep = Image.fromarray(whole(1, 65535)[..., 0].astype(np.uint16))
    return {"1": rgb.convert("1"), "L": level, "LA": la, "P": rgb.convert("P"), "RGB": rgb, "RGBA": rgba, "I;16": deep}


def written_by_pillow() -> Cases:
    for kind, (mode, image) in itertools.product(("PNG", "TIFF", "WEBP", "GIF", "JPEG"), pictures().items()):
        if mode not in NOT_WRITTEN.get(kind, ()):
            yield f"{kind} {mode}", encoded(image, kind, **EXACT.get(kind, {}))
    yield "YCbCr JPEG", encoded(pictures()["RGB"].convert("YCbCr"), "JPEG", quality=100, subsampling=0)
    yield "progressive", encoded(pictures()["RGB"], "JPEG", quality=100, subsampling=0, progressive=True)


def pngs() -> Cases:
    for kind, bands, depths in ((0, 1, (1, 2, 4, 8, 16)), (2, 3, (8, 16)), (4, 2, (8, 16)), (6, 4, (8, 16))):
        for depth in depths:
            samples = whole(bands, 2**depth - 1)
            yield f"PNG {depth} bits, kind {kind}", png(samples, depth, kind)
            if kind in (0, 2):
                color = samples[10, 5].astype(">u2").tobytes()
                yield f"PNG {depth} bits, kind {kind}, tRNS", png(samples, depth, kind, [(b"tRNS", color)])
                yield from odd_transparencies(samples, depth, kind)
    for depth in (1, 2, 4, 8):
        palette = b"PLTE", (np.arange(3 << depth) * 7 % 256).astype(np.uint8).tobytes()
        samples = whole(1, 2**depth - 1)
        yield f"PNG {depth} bits, palette", png(samples, depth, 3, [palette])
        alpha = b"tRNS", bytes(range(1 << depth))[:200]
        yield f"PNG {depth} bits, palette, tRNS", png(samples, depth, 3, [palette, alpha])
        yield f"PNG {depth} bits, palette, tRNS before", png(samples, depth, 3, [alpha, palette])
        yield f"PNG {depth} bits, palette, tRNS twice", png(samples, depth, 3, [palette, alpha, (b"tRNS", b"\xff\0")])


def odd_transparencies(samples: np.ndarray, depth: int, kind: int) -> Cases:
    """Bits above the file's depth are set, it stands twice, behind the pixels, or has another length."""
    color, other = samples[10, 5].astype(">u2"), samples[20, 25].astype(">u2").tobytes()
    high = (color | (0xFFFF - (2**depth - 1))).astype(">u2").tobytes()
    name = f"PNG {depth} bits, kind {kind}, tRNS"
    yield f"{name} with high bits", png(samples, depth, kind, [(b"tRNS", high)])
    yield f"{name} twice", png(samples, depth, kind, [(b"tRNS", color.tobytes()), (b"tRNS", other)])
    yield f"{name} too long", png(samples, depth, kind, [(b"tRNS", color.tobytes() + bytes(2))])
    plain = png(samples, depth, kind)
    yield f"{name} late", plain[:-12] + png_chunk(b"tRNS", color.tobytes()) + plain[-12:]


def unsigned_tiffs() -> Cases:
    layouts = ((1, False, None), (1, True, None), (2, True, None), (1, False, 16), (2, True, 16))
    for order, photometric, bits, layout in itertools.product("<>", (0, 1, 2), (1, 2, 4, 8, 16, 32), layouts):
        predictor, deflate, tile = layout
        if (bits == 32 and photometric == 0) or (photometric == 2 and bits < 8) or (predictor == 2 and bits < 8):
            continue
        samples = whole(3 if photometric == 2 else 1, 255 if bits == 32 else 2**bits - 1)
        for separate in (False, True) if photometric == 2 and not tile else (False,):
            yield f"TIFF {order} {photometric} {bits} {layout} {separate}", tiff(
                samples, bits, photometric, separate=separate, predictor=predictor, deflate=deflate, tile=tile,
                rows_per_strip=7, order=order,
            )  # fmt: skip


def signed_and_float_tiffs() -> Cases:
    for order, bits, (predictor, deflate) in itertools.product("<>", (8, 16, 32), ((1, False), (2, True))):
        samples = whole(1, 127 if bits == 8 else 32767 if bits == 16 else 255)
        yield (
            f"TIFF signed {order} {bits} {predictor}",
            tiff(samples, bits, 1, kind=2, predictor=predictor, deflate=deflate, order=order),
        )
    for order, bits, (predictor, deflate) in itertools.product("<>", (32, 64), ((1, False), (3, True))):
        data = tiff(ramps(1, 250), bits, 1, kind=3, predictor=predictor, deflate=deflate, order=order)
        if bits == 32:
            yield f"TIFF float {order} {bits} {predictor}", data


def other_tiffs() -> Cases:
    for bits in (1, 2, 4, 8):
        palette = np.random.default_rng(0).integers(0, 65536, 3 << bits).tolist()
        yield f"TIFF palette {bits}", tiff(whole(1, 2**bits - 1), bits, 3, tags={320: ("H", palette)})
    for bits, (photometric, bands) in itertools.product((8, 16), ((1, 2), (2, 4))):
        yield (
            f"TIFF alpha {photometric} {bits}",
            tiff(whole(bands, 2**bits - 1), bits, photometric, tags={338: ("H", [2])}),
        )
    for orientation in range(1, 9):
        yield f"TIFF orientation {orientation}", tiff(whole(3, 255), 8, 2, tags={274: ("H", [orientation])})


def orientations() -> Cases:
    for orientation, kind in itertools.product(range(1, 9), ("JPEG", "PNG", "WEBP", "TIFF")):
        exif = Image.Exif()
        exif[0x0112], exif[0x010F], exif[0x011A] = orientation, "a maker", 72.0
        yield f"{kind} {orientation}", encoded(pictures()["RGB"], kind, exif=exif, **EXACT.get(kind, {}))


def profiles() -> Cases:
    def in_file(name: str) -> bytes:
        with Image.open(FAULTS / name) as image:
            return bytes(image.info["icc_profile"])

    every = {
        "adobe": adobe_rgb(), "linear": in_file("icc_linear_named_srgb.png"), "p3": in_file("icc_display_p3.png"),
        "srgb": ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
        "gray 1.0": gray(1.0), "gray 1.8": gray(1.8), "broken": b"no profile" * 50, "cut": adobe_rgb()[:200],
    }  # fmt: skip
    for (name, profile), mode, kind in itertools.product(
        every.items(), ("L", "LA", "P", "RGB", "RGBA"), ("PNG", "TIFF", "WEBP", "JPEG")
    ):
        if mode not in NOT_WRITTEN.get(kind, ()):
            yield f"{kind} {mode} {name}", encoded(pictures()[mode], kind, icc_profile=profile, **EXACT.get(kind, {}))


@pytest.mark.parametrize(
    ("cases", "at_least"),
    [
        (written_by_pillow, 27),
        (pngs, 55),
        (unsigned_tiffs, 120),
        (signed_and_float_tiffs, 16),
        (other_tiffs, 16),
        (orientations, 32),
        (profiles, 130),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_decoder_shows_what_libvips_shows(cases: object, at_least: int) -> None:
    assert callable(cases)
    check(cases(), at_least)
