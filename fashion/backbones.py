class Backbone(NamedTuple):
    """A network of `keras.applications`."""

    build: Callable[..., keras.Model]
    preprocess: Callable  # of RGB from 0 to 255; the identity where the network itself does it
    image_size: int  # that it was trained at
    block_starts: str  # regular expression of the names of its blocks' first layers
    weights_url: str  # what Keras downloads, for a clear word where that cannot be


apps, url = keras.applications, "https://storage.googleapis.com/tensorflow/keras-applications"


BACKBONES = {
    "resnet50": Backbone(
        *(apps.ResNet50, apps.resnet50.preprocess_input, 224, r"conv\d_block\d+_1_conv"),
        f"{url}/resnet/resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5",
    ),
    "efficientnetb0": Backbone(
        *(apps.EfficientNetB0, apps.efficientnet.preprocess_input, 224),
        r"block1a_dwconv|block\w+_expand_conv",
        "https://storage.googleapis.com/keras-applications/efficientnetb0_notop.h5",
    ),
    "efficientnetv2b0": Backbone(
        *(apps.EfficientNetV2B0, apps.efficientnet_v2.preprocess_input, 224),
        r"block1a_project_conv|block\w+_expand_conv",
        f"{url}/efficientnet_v2/efficientnetv2-b0_notop.h5",
    ),
    "inceptionv3": Backbone(  # each block has a pooling branch
        *(apps.InceptionV3, apps.inception_v3.preprocess_input, 299, r"\w+_pooling2d\w*"),
        f"{url}/inception_v3/inception_v3_weights_tf_dim_ordering_tf_kernels_notop.h5",
    ),
    "mobilenetv2": Backbone(
        *(apps.MobileNetV2, apps.mobilenet_v2.preprocess_input, 224),
        r"expanded_conv_depthwise|block_\d+_expand",
        f"{url}/mobilenet_v2/mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224_no_top.h5",
    ),
    "convnexttiny": Backbone(
        *(apps.ConvNeXtTiny, apps.convnext.preprocess_input, 224, r"\w+_depthwise_conv"),
        f"{url}/convnext/convnext_tiny_notop.h5",
    ),
}


def build_backbone(name: str, image_size: int, weights: str, seed: int) -> keras.Model:
    """A network without its top: float RGB (N, size, size, 3) → its last activations.

    Args:
        name: one of `BACKBONES`.
        image_size: its images' height and width.
        weights: "imagenet" (downloaded into Keras' cache), "none" (random), or a weights file.
        seed: of random weights.

    Raises:
        common.UsageError: the images would be too small for it.
        common.UserError: the weights cannot be downloaded or read, or do not fit.
    """
    build, url = BACKBONES[name].build, BACKBONES[name].weights_url
    keras.utils.set_random_seed(seed)
    try:
        models = common.keras_home() / "models"
        if weights == "imagenet" and not (models / url.rsplit("/", 1)[1]).exists():
            common.check_reachable(url)
        socket.setdefaulttimeout(10)  # Keras' download has no timeout of its own
        backbone = build(
            include_top=False,
            weights="imagenet" if weights == "imagenet" else None,
            input_shape=(image_size, image_size, 3),
        )
    except ValueError as error:
        if "size" not in str(error):
            raise
        raise common.UsageError(f"--image-size {image_size}: {error}") from None
    except Exception as error:  # Keras raises just that when a download fails
        if weights != "imagenet":
            raise
        raise common.UserError(
            f"the ImageNet weights cannot be downloaded: {error}\nDownload {url} "
            f"on a machine that can, and put it into {models}, or give the file as --weights PATH."
        ) from None
    finally:
        socket.setdefaulttimeout(None)
    if weights == "none":
        print(f"WARNING: --weights none: the {name} is RANDOM and knows nothing about images.")
    elif weights != "imagenet":
        load_weights(backbone, weights)
    backbone.trainable = False
    return backbone


def load_weights(backbone: keras.Model, path: str) -> None:
    """Loads a weights file of this very model, in Keras 3's or the legacy HDF5 layout.

    Raises:
        common.UserError: it cannot be read, or does not fit; the message names the layer.
    """
    try:
        with h5py.File(path) as file, tempfile.TemporaryDirectory() as folder:
            # Keras tells the layouts apart by the file's name, which may be any: load a copy.
            legacy = "layer_names" in file.attrs
            copy = Path(folder) / ("legacy.h5" if legacy else "current.weights.h5")
            shutil.copyfile(path, copy)
            if legacy:
                theirs = [
                    n if isinstance(n, str) else n.decode() for n in file.attrs["layer_names"]
                ]
                theirs = [name for name in theirs if len(file[name].attrs["weight_names"])]
                ours = [layer.name for layer in backbone.layers if layer.weights]
                if len(ours) != len(theirs):  # Keras would only say so
                    whose = "the file" if len(theirs) > len(ours) else backbone.name
                    (name, *_) = sorted(set(ours) ^ set(theirs))
                    raise ValueError(f"only {whose} has a layer {name}")
            with warnings.catch_warnings(action="ignore"):  # one a layer, before the error
                backbone.load_weights(copy)
    except OSError as error:
        raise common.UserError(f"--weights {path}: cannot be read: {error}") from None
    except (ValueError, KeyError) as error:
        # Keras' message names the first layer and then prints whole tensors.
        reason = " ".join(
            str(error).split("Target variable")[0].split("List of objects")[0].split()
        )
        raise common.UserError(
            f"--weights {path}: not the weights of {backbone.name} without its top: {reason}"
        ) from None


def weights_digest(model: keras.Model) -> str:
    """SHA-256 of a model's weights: the same for the same values in any file format."""
    digest = hashlib.sha256()
    for array in model.get_weights():
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()


def blocks_of(backbone: keras.Model, starts: str) -> list[str]:
    """Where a network's blocks begin: the names of their first layers, and "" for the end.

    `starts` is the regular expression of these names.
    """
    return [layer.name for layer in backbone.layers if re.fullmatch(starts, layer.name)] + [""]


def activations_at(model: keras.Model, block: str) -> keras.KerasTensor:
    """What goes into a block of a network (or its copy); with "", what comes out of the last."""
    return model.get_layer(block).input if block else model.layers[-1].output


def stages_of(backbone: keras.Model, blocks: list[str]) -> dict[str, str]:
    """The last of `blocks_of` at each of the three lowest resolutions, as conv3, conv4, conv5.

    In all of `BACKBONES` these are an eighth, a sixteenth and a thirty-second of the images'.
    """
    last = {activations_at(backbone, block).shape[1]: block for block in blocks}
    return dict(zip(("conv3", "conv4", "conv5"), list(last.values())[-3:], strict=True))


def pool(activations: keras.KerasTensor) -> dict[str, keras.KerasTensor]:
    """Each channel's average and maximum over all positions: float32 (N, channels)."""
    return {
        "avg": keras.layers.GlobalAveragePooling2D(dtype="float32")(activations),
        "max": keras.layers.GlobalMaxPooling2D(dtype="float32")(activations),
    }


def to_float16(values: keras.KerasTensor) -> keras.KerasTensor:
    """As float16; what is out of its range becomes its largest number."""
    largest = float(np.finfo("float16").max)
    return keras.ops.cast(keras.ops.clip(values, -largest, largest), "float16")
