"""The board around a VM, and what a guest image needs to start: names only."""

from trapline.machine.board import Board
from trapline.machine.boot import BadImage, Module
from trapline.machine.ending import Ending, How
from trapline.machine.run import Runner

__all__ = ["BadImage", "Board", "Ending", "How", "Module", "Runner"]
