"""The library behind the two scripts; importing it configures TensorFlow and Keras."""

from fashion import startup

__all__ = ["__version__", "startup"]
__version__ = "1.0.0"
