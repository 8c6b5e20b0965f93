"""Trapline: the bus lock debug exception, anywhere."""

__version__ = "0.1.0"
