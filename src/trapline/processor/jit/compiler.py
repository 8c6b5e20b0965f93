"""LLVM: handler texts to native code, in batches.  The only file that talks to llvmlite."""

from __future__ import annotations

import atexit
import hashlib
import os
import threading
from collections.abc import Callable

import llvmlite
from llvmlite import binding

from trapline.processor.jit.cache import Entry, PackFolder, source_key
from trapline.processor.jit.runtime import DECLARATIONS, SYSTEM_HANDLERS, runtime_text
from trapline.processor.jit.text import METADATA

_INTRINSICS = "".join(
    f"declare {t} @llvm.ctpop.{t}({t})\ndeclare {t} @llvm.cttz.{t}({t}, i1)\n"
    f"declare {t} @llvm.ctlz.{t}({t}, i1)\n"
    + (f"declare {t} @llvm.bswap.{t}({t})\n" if t != "i8" else "")
    for t in ("i8", "i16", "i32", "i64")
)
_RUNTIME = (
    "trapline_enter", "trapline_stub_link", "trapline_stub_lookup", "trapline_interpret",
    "trapline_goto", "trapline_bus_acquire", "trapline_bus_release", "trapline_flags",
    "trapline_flags_of", "trapline_slow_read", "trapline_slow_write", "trapline_slow_lock",
    "trapline_end_write", "trapline_end_lock", "trapline_bulk_move", "trapline_bulk_store",
    "trapline_deliver", *SYSTEM_HANDLERS,
)  # fmt: skip
_RUNTIME_MARK = "trapline_runtime"
_MANY_PACKS = 24
# So many handlers compiled at once are a pack of their own; fewer wait for others.
_WHOLE_PACK = 100


class Handler:
    """A compiled handler: its address and how its record is laid out."""

    __slots__ = ("address", "words", "plan")

    def __init__(self, address: int, words: int, plan: list[tuple[str, int, int, int]]) -> None:
        self.address, self.words, self.plan = address, words, plan


class Compiler:
    """Owns the machine code of this process.  Thread-safe."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        binding.initialize_native_target()
        binding.initialize_native_asmprinter()
        binding.initialize_native_asmparser()
        features = binding.get_host_cpu_features()
        # VEX code beside the legacy SSE of our inline assembly would cost transitions.
        for name in list(features):
            if name.startswith(("avx", "fma", "f16c", "xop", "vaes", "vpclmul", "amx")):
                features[name] = False
        self._cpu = binding.get_host_cpu_name()
        self._features = features.flatten()
        self._machine = binding.Target.from_default_triple().create_target_machine(
            opt=2, codemodel="jitdefault", cpu=self._cpu, features=self._features
        )
        empty = binding.parse_assembly("")
        self._engine = binding.create_mcjit_compiler(empty, self._machine)
        self.handlers: dict[str, Handler] = {}
        self.runtime: dict[str, int] = {}
        self.compiled = 0  # handlers compiled by this process, not found on disk
        self.progress: Callable[[int], None] | None = None
        self._new: list[tuple[list[Entry], bytes]] = []
        key = "|".join(
            (source_key(), llvmlite.__version__, str(binding.llvm_version_info), self._cpu,
             self._features)
        )  # fmt: skip
        self._folder = PackFolder(hashlib.sha256(key.encode()).hexdigest())
        self._load()
        atexit.register(self.save)
        os.register_at_fork(
            before=self._before_fork,
            after_in_parent=self._after_fork,
            after_in_child=self._after_fork_in_child,
        )

    # -- from disk ---------------------------------------------------------------------------------

    def _load(self) -> None:
        packs = list(self._folder.read())
        runtime = None
        for entries, objects in packs:
            if entries[0].symbol == _RUNTIME_MARK:
                runtime = objects[0]
        is_new = runtime is None
        if runtime is None:
            runtime = self._object(runtime_text())
            self._folder.write([Entry(_RUNTIME_MARK, 0, [])], [runtime])
        self._add(runtime)
        for name in _RUNTIME:
            self.runtime[name] = self._engine.get_function_address(name)
            binding.add_symbol(name, self.runtime[name])
        self._load_handlers(packs, runtime)
        if is_new:
            self._folder.forget_others()

    def _load_handlers(self, packs: list[tuple[list[Entry], list[bytes]]], runtime: bytes) -> None:
        """Load what is not there yet; many small packs become one for the next time."""
        kept = [Entry(_RUNTIME_MARK, 0, [])]
        # Two processes that merge at once leave the same objects in both their packs.
        code = {runtime: None}
        for entries, objects in packs:
            fresh = [
                entry
                for entry in entries
                if entry.symbol not in self.handlers and entry.symbol != _RUNTIME_MARK
            ]
            if fresh:
                rest = objects[1:] if entries[0].symbol == _RUNTIME_MARK else objects
                rest = [one for one in rest if one not in code]
                self._add(*rest)
                self._bind(fresh)
                kept += fresh
                code |= dict.fromkeys(rest)
        if len(packs) > _MANY_PACKS:
            self._folder.merge(kept, list(code))

    def save(self) -> None:
        """Keep what this process compiled, as one pack."""
        with self.lock:
            if self._new:
                entries = [entry for batch, _ in self._new for entry in batch]
                self._folder.write(entries, [code for _, code in self._new])
                self._new.clear()

    def _before_fork(self) -> None:
        """A host fork waits for what other threads compile: LLVM would be copied half done."""
        self.lock.acquire()
        binding.ffi.lib._lock.__enter__()

    def _after_fork(self) -> None:
        binding.ffi.lib._lock.__exit__(None, None, None)
        self.lock.release()

    def _after_fork_in_child(self) -> None:
        """What the parent compiled is the parent's to keep."""
        self._new.clear()
        self._after_fork()

    # -- compiling ---------------------------------------------------------------------------------

    def compile(self, entries: list[Entry], text: str) -> None:
        """Compile handlers, all defined in `text`, and make them known."""
        with self.lock:
            code = self._object(self._module(text))
            self._add(code)
            self._bind(entries)
            self._new.append((entries, code))
            self.compiled += len(entries)
            if self.progress:
                self.progress(self.compiled)

    def _module(self, text: str) -> str:
        return _INTRINSICS + DECLARATIONS + text + METADATA

    def _object(self, text: str) -> bytes:
        header = f'target triple = "{self._machine.triple}"\n'
        module = binding.parse_assembly(header + text)
        module.verify()
        options = binding.create_pipeline_tuning_options(speed_level=2)
        passes = binding.create_pass_builder(self._machine, options)
        passes.getModulePassManager().run(module, passes)
        return bytes(self._machine.emit_object(module))

    def _add(self, *objects: bytes) -> None:
        for code in objects:
            self._engine.add_object_file(binding.ObjectFileRef.from_data(code))
        self._engine.finalize_object()

    def _bind(self, entries: list[Entry]) -> None:
        for entry in entries:
            address = self._engine.get_function_address(entry.symbol)
            self.handlers[entry.symbol] = Handler(address, entry.words, entry.plan)


_compiler: Compiler | None = None
_compiler_lock = threading.Lock()


def compiler() -> Compiler:
    """The compiler of this process."""
    global _compiler
    with _compiler_lock:
        if _compiler is None:
            _compiler = Compiler()
        return _compiler
