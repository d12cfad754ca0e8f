def clone(
    backbone: keras.Model, inputs: keras.KerasTensor, dtype: str, norms: Container[str] = ()
) -> keras.Model:
    """A copy of a network on other inputs, without its weights.

    Args:
        backbone: one of `BACKBONES`, or the end of one.
        inputs: what the copy starts from.
        dtype: dtype policy of its layers, "float32" or "mixed_bfloat16".
        norms: if any, BatchNormalizations are left out; these convolutions get a bias for them.
    """

    def clone_layer(layer: keras.Layer) -> keras.Layer:
        if isinstance(layer, keras.layers.Rescaling | keras.layers.Normalization):
            return layer  # it works on pixels, for which bfloat16 would be too coarse
        if isinstance(layer, keras.Sequential):
            return keras.models.clone_model(layer, clone_function=clone_layer)
        config = layer.get_config()
        if isinstance(layer, keras.Layer):  # and no mere operation
            config["dtype"] = dtype
        if layer.name in norms:
            config["use_bias"] = True
        return type(layer).from_config(config)

    def call_layer(layer: keras.Layer, *args: object, mask: object = None, **kwargs: object):
        if norms and isinstance(layer, keras.layers.BatchNormalization):
            return args[0]
        return layer(*args, **kwargs)

    return keras.models.clone_model(
        backbone, inputs, clone_function=clone_layer, call_function=call_layer
    )


def fold_batch_norm(backbone: keras.Model, images: keras.KerasTensor, dtype: str) -> keras.Model:
    """The same function of `images` with each BatchNormalization folded into its convolution.

    In inference, BatchNormalization is y = (x − mean)·s + beta with s = gamma/√(variance + ε).
    After a convolution, that is a convolution with kernel·s and bias (bias − mean)·s + beta.

    Args:
        backbone: one of `BACKBONES`; left as it is.
        images: what the new model starts from, float32 (N, size, size, 3).
        dtype: dtype policy of the new layers, "float32" or "mixed_bfloat16".
    """
    producers = {id(layer.output): layer.name for layer in backbone.layers}
    norms = {
        producers[id(layer.input)]: layer
        for layer in backbone.layers
        if isinstance(layer, keras.layers.BatchNormalization)
    }
    folded = clone(backbone, images, dtype, norms)
    for layer in backbone.layers:
        if norm := norms.get(layer.name):
            gamma = norm.gamma.numpy() if norm.scale else 1
            scale = gamma / np.sqrt(norm.moving_variance.numpy() + norm.epsilon)
            kernel, *bias = layer.get_weights()
            shift = (sum(bias) - norm.moving_mean.numpy()) * scale + norm.beta.numpy()
            kernel = kernel * scale.reshape(kernel.shape[-2:] if is_depthwise(layer) else -1)
            folded.get_layer(layer.name).set_weights([kernel, shift])
        elif layer.weights and not isinstance(layer, keras.layers.BatchNormalization):
            folded.get_layer(layer.name).set_weights(layer.get_weights())
    folded.trainable = False
    return folded


def is_depthwise(layer: keras.Layer) -> bool:
    """Whether its kernel is (height, width, channels, 1)."""
    return isinstance(layer, keras.layers.DepthwiseConv2D)
