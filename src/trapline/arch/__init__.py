"""What the processor manuals define, as data. Import the module you need: `trapline.arch.debug`, ..."""
