"""The board around a VM, and what a guest image needs to start: names only."""

from trapline.machine.board import MOST_CPUS, Board
from trapline.machine.boot import BadImage, Module, Part
from trapline.machine.ending import Ending, How
from trapline.machine.run import Runner

__all__ = ["MOST_CPUS", "BadImage", "Board", "Ending", "How", "Module", "Part", "Runner"]
