"""`Preprocess` in other projects' words: Hugging Face's preprocessor_config.json, OpenCLIP's
preprocess_cfg."""

from collections.abc import Mapping

from vlrep_jax.data.preprocess import CLIP_MEAN, CLIP_STD, INTERPOLATIONS, Preprocess

_HALF = (0.5, 0.5, 0.5)
# Pillow's numbers of its filters, which Hugging Face stores.
_RESAMPLE = {int(value): name for name, value in INTERPOLATIONS.items()}
# What a class takes where its file is silent.
_CLIP_DEFAULTS = {
    "size": {"shortest_edge": 224},
    "crop_size": {"height": 224, "width": 224},
    "do_center_crop": True,
    "image_mean": CLIP_MEAN,
    "image_std": CLIP_STD,
}
_SIGLIP_DEFAULTS = {
    "size": {"height": 224, "width": 224},
    "crop_size": None,
    "do_center_crop": False,
    "image_mean": _HALF,
    "image_std": _HALF,
}
_DEFAULTS = {"CLIP": _CLIP_DEFAULTS, "Siglip": _SIGLIP_DEFAULTS}
# These decide nothing about the pixels: RGB is what is always made.
_IGNORED = {
    "_valid_processor_keys",
    "auto_map",
    "crop_pct",
    "data_format",
    "default_to_square",
    "device",
    "disable_grouping",
    "do_convert_rgb",
    "input_data_format",
    "processor_class",
    "return_tensors",
    "use_fast",
}
_OPENCLIP_MODES = {"shortest": "crop", "squash": "squash", "longest": "pad"}


def from_huggingface(preprocessor_config: Mapping) -> Preprocess:
    """Reads the content of a preprocessor_config.json, of a CLIP or SigLIP image processor.

    The pixels are those of the processor's Pillow form (`CLIPImageProcessorPil`); the torchvision
    form resizes by another kernel: 0.2 % of the values of real drawings differ, mostly by a level.

    Raises:
        ValueError: another processor, or an option that `Preprocess` does not have.
    """
    known = dict(preprocessor_config)
    kind = known.pop("image_processor_type", None)
    kind = known.pop("feature_extractor_type", None) if kind is None else kind
    known.pop("feature_extractor_type", None)
    if kind is None:
        raise ValueError("preprocessor_config.json names no image_processor_type.")
    for ending in ("ImageProcessorFast", "ImageProcessorPil", "ImageProcessor", "FeatureExtractor"):
        family = kind.removesuffix(ending)
        if family != kind:
            break
    if family not in _DEFAULTS:
        raise ValueError(f"{kind} is not known; CLIPImageProcessor and SiglipImageProcessor are.")
    values = _DEFAULTS[family] | {"resample": 3, "do_resize": True, "do_rescale": True}
    values |= {"rescale_factor": 1 / 255, "do_normalize": True}
    given = {name: value for name, value in known.items() if value is not None}
    left_over = {
        name: value
        for name, value in given.items()
        if name not in values.keys() | _IGNORED and value is not False
    }
    if left_over:
        raise ValueError(f"{kind} has options that are not known here: {left_over}.")
    values |= {name: value for name, value in given.items() if name in values}
    for name in ("do_resize", "do_rescale", "do_normalize"):
        if not values[name]:
            raise ValueError(f"{kind} with {name}=False: pictures here are always made so.")
    if abs(values["rescale_factor"] - 1 / 255) > 1e-9:
        raise ValueError(f"{kind} with rescale_factor={values['rescale_factor']}, not 1/255.")
    if values["resample"] not in _RESAMPLE:
        raise ValueError(f"{kind} with resample={values['resample']}; known: {_RESAMPLE}.")
    return Preprocess(
        **_huggingface_shape(kind, values),
        mean=values["image_mean"],
        std=values["image_std"],
        interpolation=_RESAMPLE[values["resample"]],
        rgb="first",
    )


def _huggingface_shape(kind, values):
    """The options of `Preprocess` on sizes."""
    size, crop = values["size"], values["crop_size"] if values["do_center_crop"] else None
    if isinstance(size, int):
        size = {"shortest_edge": size}
    if isinstance(crop, int):
        crop = {"height": crop, "width": crop}
    sides = [dict.fromkeys(size.values()), dict.fromkeys((crop or {}).values())]
    if sorted(size) == ["height", "width"] and len(sides[0]) == 1 and crop in (None, size):
        return {"size": size["height"], "mode": "squash"}
    if list(size) == ["shortest_edge"] and crop and len(sides[1]) == 1:
        side, short = crop["height"], size["shortest_edge"]
        return {"size": side, "short_side": 0 if short == side else short, "center": "floor"}
    raise ValueError(
        f"{kind} with size={size}, crop_size={crop}: known are a shortest_edge with a square "
        "centre crop, and a square without."
    )


def to_huggingface(preprocess: Preprocess) -> dict:
    """The content of a preprocessor_config.json.

    Hugging Face always crops as `center='floor'` does, so a picture of which an odd number of
    pixels is cut off may come out one pixel apart from `center='round'`.

    Raises:
        ValueError: mode 'pad', which its processors do not have.
    """
    if preprocess.mode == "pad":
        raise ValueError("Preprocess with mode='pad': Hugging Face's CLIP and SigLIP have no such.")
    squash = preprocess.mode == "squash"
    square = {"height": preprocess.size, "width": preprocess.size}
    config = {
        "image_processor_type": "SiglipImageProcessor" if squash else "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": list(preprocess.mean),
        "image_std": list(preprocess.std),
        "resample": int(INTERPOLATIONS[preprocess.interpolation]),
        "rescale_factor": 1 / 255,
    }
    if squash:
        return config | {"size": square}
    short = preprocess.short_side or preprocess.size
    crop = {"do_center_crop": True, "crop_size": square}
    return config | crop | {"size": {"shortest_edge": short}}


def from_openclip(preprocess_cfg: Mapping, image_size: int | None = None) -> Preprocess:
    """Reads the preprocess_cfg of an open_clip_config.json.

    Args:
        image_size: of the model; taken where the section has no `size`.

    Raises:
        ValueError: an option that `Preprocess` does not have, or no size.
    """
    given = {name: value for name, value in preprocess_cfg.items() if value is not None}
    size = given.pop("size", image_size)
    sides = set(size) if isinstance(size, list | tuple) else {size}
    if len(sides) != 1 or None in sides:
        raise ValueError(
            f"preprocess_cfg with size={size}: one side, or two equal ones, are known."
        )
    if given.pop("mode", "RGB") != "RGB":
        raise ValueError(f"preprocess_cfg with mode={preprocess_cfg['mode']!r}; 'RGB' is known.")
    resize_mode = given.pop("resize_mode", "shortest")
    if resize_mode not in _OPENCLIP_MODES:
        known = ", ".join(_OPENCLIP_MODES)
        raise ValueError(f"preprocess_cfg with resize_mode={resize_mode!r}; known: {known}.")
    interpolation = given.pop("interpolation", "bicubic")
    if interpolation not in ("bicubic", "bilinear", "random"):
        raise ValueError(f"preprocess_cfg with interpolation={interpolation!r} is not known.")
    mean, std = given.pop("mean", CLIP_MEAN), given.pop("std", CLIP_STD)
    fill = given.pop("fill_color", 0)
    if given:
        raise ValueError(f"preprocess_cfg has options that are not known here: {given}.")
    return Preprocess(
        size=sides.pop(),
        mode=_OPENCLIP_MODES[resize_mode],
        mean=mean if isinstance(mean, list | tuple) else (mean,) * 3,
        std=std if isinstance(std, list | tuple) else (std,) * 3,
        # 'random' draws one in training, and is bicubic in evaluation.
        interpolation="bicubic" if interpolation == "random" else interpolation,
        fill=fill,
        rgb="last",
    )


def to_openclip(preprocess: Preprocess) -> dict:
    """The preprocess_cfg of an open_clip_config.json.

    OpenCLIP always crops as `center='round'` does; see `to_huggingface`.

    Raises:
        ValueError: options that OpenCLIP does not have.
    """
    if preprocess.interpolation not in ("bicubic", "bilinear"):
        raise ValueError(
            f"Preprocess with interpolation={preprocess.interpolation!r}: OpenCLIP has bicubic and "
            "bilinear."
        )
    if preprocess.short_side not in (0, preprocess.size):
        raise ValueError(
            f"Preprocess with short_side={preprocess.short_side}: OpenCLIP crops the whole short "
            f"side, {preprocess.size} here."
        )
    modes = {ours: theirs for theirs, ours in _OPENCLIP_MODES.items()}
    return {
        "size": [preprocess.size, preprocess.size],
        "mode": "RGB",
        "mean": list(preprocess.mean),
        "std": list(preprocess.std),
        "interpolation": preprocess.interpolation,
        "resize_mode": modes[preprocess.mode],
        "fill_color": preprocess.fill,
    }
