"""Pictures in training: both decoders agree, and a reduced decode changes little."""

import io
import sys
from unittest import mock

import numpy as np
import pytest
from emoji_data import ListSource, encoded, flat, noise
from PIL import Image
from test_data_pipeline import batches

from vlrep_jax.data import picture as pictures
from vlrep_jax.data.decoding import BadImage, decode
from vlrep_jax.data.jpeg_header import ordinary_size
from vlrep_jax.data.picture import Picture, find_decoder, reduction
from vlrep_jax.data.preprocess import resample

DECODERS = ("opencv", "pillow")


def smooth(height, width):
    """A picture whose detail is of many pixels' size, as a photograph's mostly is."""
    return np.asarray(Image.fromarray(noise(height // 4, width // 4)).resize((width, height)))


def jpeg(image, orientation=1, **options):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(image, "JPEG", quality=90, exif=exif, **options)


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"progressive": True}])
def test_a_jpeg_is_what_the_exact_decoder_makes_of_it(decoder, orientation, options):
    data = jpeg(noise(37, 53), orientation, **options)
    exact, made = decode(data), Picture(data, decoder)
    assert made.shape == exact.shape
    # Both are libjpeg-turbo with the same inverse transform; versions may round one level off.
    np.testing.assert_allclose(made.pixels().astype(int), exact, atol=1)


@pytest.mark.parametrize("decoder", DECODERS)
def test_what_opencv_decodes_otherwise_is_pillows(decoder):
    grey = Image.fromarray(
        noise(20, 30, 1)[..., 0] if noise(20, 30, 1).ndim == 3 else noise(20, 30, 1)
    )
    rgba = np.dstack([noise(20, 30), np.full((20, 30), 100, np.uint8)])
    sixteen = Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30) * 100)
    cmyk = Image.fromarray(noise(20, 30)).convert("CMYK")
    files = [encoded(rgba), encoded(sixteen), encoded(cmyk, "JPEG"), encoded(grey, "JPEG")]
    files += [
        encoded(noise(20, 30), name) for name in ("GIF", "WEBP", "TIFF", "BMP", "PPM", "AVIF")
    ]
    for data in files:
        np.testing.assert_allclose(
            Picture(data, decoder).pixels().astype(int), decode(data), atol=1
        )


def test_opencv_is_asked_where_it_should_be_and_pillow_where_it_fails():
    data = jpeg(noise(64, 64))
    with mock.patch.object(Picture, "_by_pillow", side_effect=AssertionError):
        assert Picture(data, "opencv").resampled(16, 16).shape == (16, 16, 3)
        assert Picture(data, "opencv").pixels().shape == (64, 64, 3)
    cv2 = pytest.importorskip("cv2")
    with mock.patch.object(cv2, "imdecode", return_value=None):
        np.testing.assert_array_equal(Picture(data, "opencv").pixels(), decode(data))


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("cut", [0.4, 0.9])
def test_a_truncated_jpeg_is_refused_by_both(decoder, cut):
    data = jpeg(noise(64, 64))
    with pytest.raises(BadImage) as caught:
        Picture(data[: int(len(data) * cut)], decoder).resampled(8, 8)
    assert caught.value.reason == "truncated"


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_jpeg_that_breaks_off_in_the_middle_is_refused_by_both(decoder):
    data = jpeg(noise(64, 64))
    half = len(data) // 2
    with pytest.raises(BadImage) as caught:  # it has an end, but no more rows
        Picture(data[:half] + b"\xff\xc4\x00\x03\x00" + b"\xff\xd9", decoder).pixels()
    assert caught.value.reason in ("corrupt", "truncated")


def test_the_size_of_an_ordinary_jpeg_is_pillows_and_of_others_not_said():
    image = Image.fromarray(noise(37, 53))
    for options in ({}, {"subsampling": 0}, {"restart_marker_blocks": 2}, {"comment": b"x" * 300}):
        assert ordinary_size(encoded(image, "JPEG", **options)) == (37, 53)
        assert ordinary_size(encoded(image.convert("L"), "JPEG", **options)) == (37, 53)
    plain = encoded(image, "JPEG")
    twice = plain.index(b"\xff\xc0")
    frame = plain[twice : twice + 19]
    others = [
        encoded(image, "JPEG", progressive=True),
        encoded(image.convert("CMYK"), "JPEG"),
        jpeg(image, 6),
        encoded(image, "MPO", save_all=True, append_images=[image]),
        encoded(image),
        plain[:twice] + frame + plain[twice:],
        plain[:twice] + frame.replace(b"\x08", b"\x0c", 1) + plain[twice + 19 :],
        b"\xff\xd8" + b"\xff\xdb\0\0" * 9,
        b"",
    ]
    assert [ordinary_size(data) for data in others] == [None] * len(others)


def test_a_damaged_header_is_taken_for_no_other_size_than_pillows():
    rng, whole = np.random.default_rng(0), encoded(noise(37, 53), "JPEG")
    said = 0
    for _ in range(1500):
        data = bytearray(whole[: int(rng.integers(1, len(whole)))] if rng.random() < 0.1 else whole)
        for place in rng.integers(0, min(700, len(data)), rng.integers(1, 4)):
            data[place] = rng.integers(256)
        size = ordinary_size(bytes(data))
        try:
            opened = Image.open(io.BytesIO(data), formats=["JPEG"])
        except Exception:
            continue
        said += size is not None
        if size is not None:
            assert size == opened.size[::-1] and opened.mode in ("RGB", "L")
            assert opened.format == "JPEG" and opened.getexif().get(0x0112, 1) == 1
    assert said > 100


def test_a_reduction_leaves_at_least_the_pixels_that_are_needed():
    assert reduction((0, 0, 448, 448), 224, 224) == 2
    assert reduction((0, 0, 447.9, 448), 224, 224) == 1
    assert reduction((0, 0, 900, 4000), 224, 224) == 4
    assert reduction((0, 0, 10_000, 10_000), 224, 224) == 8
    assert reduction((0, 0, 100, 100), 224, 224) == 1


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("size", [(448, 640), (901, 1203), (1800, 2000)])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_reduced_decode_changes_little(decoder, size, orientation):
    data = jpeg(smooth(*size), orientation)
    whole = Picture(data, decoder)
    whole.pixels()
    expected = whole.resampled(224, 224).astype(int)
    assert reduction((0, 0, *whole.shape[1::-1]), 224, 224) > 1
    change = np.abs(Picture(data, decoder).resampled(224, 224) - expected)
    # Levels of 255, on patches of random colours: the decoder averages blocks of pixels, the rest
    # is resized as always. OpenCV's whole pixels shift the picture by up to half of a reduced one.
    mean, most = {"opencv": (6, 24), "pillow": (4, 14)}[decoder]
    assert change.mean() < mean and np.percentile(change, 99) < most


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_reduced_crop_shows_the_same_place(decoder):
    ramp = np.linspace(0, 255, 1600)[None, :, None] * np.ones((1200, 1, 3))
    box = (403.3, 51.7, 1393.9, 1042.3)
    made = Picture(jpeg(ramp.astype(np.uint8)), decoder).resampled(100, 100, box).astype(float)
    expected = (box[0] + (np.arange(100) + 0.5) * (box[2] - box[0]) / 100) * 255 / 1600
    # A level is 6 pixels; OpenCV's box is off by up to half a pixel of the reduced picture, 4.
    np.testing.assert_allclose(made.mean(axis=(0, 2)), expected, atol=2.5)


@pytest.mark.parametrize("decoder", DECODERS)
def test_nothing_is_made_smaller_than_the_result_on_the_way(decoder):
    image = noise(60, 90)
    made = Picture(jpeg(image), decoder)
    np.testing.assert_array_equal(
        made.resampled(80, 100), resample(decode(jpeg(image)), 80, 100)
    )  # enlarging is Pillow's for both


def test_the_decoder_is_chosen_by_what_is_installed():
    assert find_decoder("pillow") == "pillow"
    assert find_decoder() == find_decoder("opencv") == "opencv"
    with mock.patch.object(pictures.importlib.util, "find_spec", return_value=None):
        assert find_decoder() == "pillow"
        with pytest.raises(ValueError, match=r"needs the package opencv-python-headless"):
            find_decoder("opencv")
    with pytest.raises(ValueError, match="decoder='cv2' is unknown; it is one of auto"):
        find_decoder("cv2")


def test_the_decoder_is_part_of_the_pipeline_and_stated():
    one, other = (batches(grey(), decoder=name) for name in DECODERS)
    assert "OpenCV" in one.summary and "Pillow" in other.summary
    with pytest.raises(ValueError, match=r"decoder changed.*on_change='continue'"):
        other.restore(one.state())
    third = batches(grey(), decoder="pillow", on_change="continue")
    third.restore({"next_batch": 3, "fingerprint": one.state()["fingerprint"]})
    assert third.state() == {"next_batch": 3} | {"fingerprint": other.state()["fingerprint"]}
    assert len(str(third.state())) < 120


def grey():
    from vlrep_jax.data.sources import Sample

    return ListSource(
        [Sample(flat(i), (f"number {i}",), f"shard-{i % 3}/{i}", {}) for i in range(30)]
    )


def test_the_worst_shards_are_named():
    held = [s._replace(image=b"x") if s.key.startswith("shard-1/") else s for s in grey()._samples]
    with pytest.raises(ValueError, match=r"Most are in shard-1 \(\d+\)\.$"):
        for _ in zip(range(60), batches(ListSource(held)), strict=False):
            pass


class Sharded(ListSource):
    def shard_of(self, index):
        return f"file-{index // 10}.tar"


def test_a_source_may_say_where_a_sample_lies():
    held = [s._replace(image=b"x") if i >= 20 else s for i, s in enumerate(grey()._samples)]
    with pytest.raises(ValueError, match=r"Most are in file-2\.tar \(\d+\)\.$"):
        for _ in zip(range(60), batches(Sharded(held)), strict=False):
            pass


def test_a_progressive_jpeg_of_many_scans_is_refused():
    data = encoded(noise(64, 64), "JPEG", progressive=True)
    start = data.index(b"\xff\xda")
    scan = data[start : data.index(b"\xff", start + 16)]
    for decoder in DECODERS:
        with pytest.raises(BadImage, match="too_large: 4096 pixels in 610 scans"):
            Picture(data[:start] + scan * 600 + data[start:], decoder)


def test_importing_needs_no_opencv():
    import subprocess

    code = "import sys; sys.modules['cv2'] = None; import vlrep_jax.data.pipeline"
    subprocess.run([sys.executable, "-c", code], check=True)
