"""What the processor manuals define, as data; imported module by module."""
