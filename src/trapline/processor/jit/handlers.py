"""From shapes to handlers: asks the compiler for what is missing, one batch at a time."""

from __future__ import annotations

from typing import NamedTuple

from trapline.processor.jit.cache import Entry
from trapline.processor.jit.compiler import Compiler, Handler
from trapline.processor.jit.fields import Fields
from trapline.processor.jit.flags import UNKNOWN
from trapline.processor.jit.lowering import Lowering
from trapline.processor.jit.operands import Unsupported
from trapline.processor.jit.shape import Shape
from trapline.processor.language import recording


class Request(NamedTuple):
    """One handler: a shape, whether its flags are kept, the flags' rule before it (UNKNOWN
    unless it reads them), and the conditional branch fused behind it."""

    shape: Shape
    keep_flags: bool
    incoming: int
    then: Shape | None = None

    @property
    def symbol(self) -> str:
        rule = "u" if self.incoming == UNKNOWN else str(self.incoming)
        name = f"{self.shape.symbol}_{'f' if self.keep_flags else 'n'}{rule}"
        return f"{name}__{self.then.symbol}" if self.then else name


def lower(request: Request) -> tuple[Entry, str]:
    """The handler's text and the layout of its record."""
    symbol = request.symbol
    lowering = Lowering(symbol, request.incoming)
    fields = Fields()
    lowering.instruction(
        request.shape, recording(request.shape.form), fields, 0, request.keep_flags
    )
    if request.then is not None:
        plan, words = list(fields.plan), fields.words
        # The branch has a record of its own behind the first one, for its RIP and its links.
        second = Fields()
        lowering.instruction(request.then, recording(request.then.form), second, 8 * words, True)
        plan.append(("then", -1, words, 0))
        plan += second.plan
        text = lowering.finish()
        return Entry(symbol, words + second.words, plan), text
    text = lowering.finish()  # it may ask for one more field, so the length is known after it
    return Entry(symbol, fields.words, fields.plan), text


class HandlerBook:
    """Handlers by request, compiled when first asked for."""

    def __init__(self, compiler: Compiler) -> None:
        self.compiler = compiler
        self._known: dict[Request, Handler | None] = {}

    def get(self, request: Request) -> Handler | None | bool:
        """The handler; None: the reference engine does it; False: not compiled yet."""
        return self._known.get(request, False)

    def require(self, requests: list[Request]) -> None:
        """Make every request's handler known, compiling those that are not."""
        entries: list[Entry] = []
        texts: list[str] = []
        with self.compiler.lock:
            for request in requests:
                if request in self._known:
                    continue
                if request.symbol not in self.compiler.handlers:
                    try:
                        entry, text = lower(request)
                    except Unsupported:
                        self._known[request] = None
                        continue
                    if all(entry.symbol != other.symbol for other in entries):
                        entries.append(entry)
                        texts.append(text)
            if entries:
                self.compiler.compile(entries, "".join(texts))
            for request in requests:
                if request not in self._known:
                    self._known[request] = self.compiler.handlers[request.symbol]
