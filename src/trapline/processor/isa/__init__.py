"""The instructions, one file a family.  Importing this package registers them all."""

from trapline.processor.isa import exchange

__all__ = ["exchange"]
