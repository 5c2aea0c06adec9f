"""How a kernel is compiled: one policy for all of them.

* Disk cache, so that only a machine's first run compiles.
* `nogil`, so that the pool's threads run side by side.
* No fastmath: a sum is added in the order in which it is written, and NaN stays NaN. Where a
  multiply-add should be one instruction, the kernel says `simd.fma`.

The disk cache is `cache.DiskCache`. Numba's own looks at the file of the cached function alone; a
change in a helper of another file would leave stale machine code behind. Here every entry carries a
digest of all the files of this folder and those below, so any edit recompiles.
"""

import functools
import hashlib
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numba import njit, types
from numba.core import config
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler
from numba.core.compiler_lock import global_compiler_lock

from minicnn.kernels.cache import DiskCache

logger = logging.getLogger("minicnn")

_OPTIONS = {"nogil": True, "error_model": "numpy", "no_cfunc_wrapper": True}


if config.DISABLE_JIT:
    raise ImportError(
        "NUMBA_DISABLE_JIT is set, but minicnn's kernels work only when they are compiled; unset it"
    )


def helper(function: Callable[..., Any]) -> Any:
    """Compile a function that other kernels call; it is cached as a part of its callers.

    By default, Numba would compile it again for every constant that a caller passes (a stride of 1,
    for example). Here a constant is an integer like any other, which halves the time to compile.
    """
    dispatcher = njit(**_OPTIONS, no_cpython_wrapper=True, pipeline_class=_HelperCompiler)(function)
    resolve = dispatcher.get_call_template

    def resolve_without_literals(args: Any, kws: Any) -> Any:
        return resolve(
            tuple(types.unliteral(arg) for arg in args),
            {name: types.unliteral(arg) for name, arg in kws.items()},
        )

    dispatcher.get_call_template = resolve_without_literals
    return dispatcher


class _HelperCompiler(Compiler):
    """Numba's compiler, but what it makes of a function is only linked with kernels."""

    def define_pipelines(self) -> Any:
        self.state.library = _HelperLibrary(
            self.state.targetctx.codegen(), self.state.func_id.func_qualname
        )
        return super().define_pipelines()


class _HelperLibrary(JITCodeLibrary):
    """The code of a helper, neither optimized nor translated before it is linked with a kernel.

    By default, Numba would optimize and translate each helper, and do both again for each kernel
    that contains it. That takes a quarter of the time to compile.
    """

    def _optimize_final_module(self) -> None:
        pass

    def _finalize_final_module(self) -> None:
        self._finalize_dynamic_globals()
        self._finalized = True

    def get_pointer_to_function(self, name: str) -> int:
        self._ensure_finalized()
        return 0  # there is none

    @property
    def codegen(self) -> Any:
        return self  # it is asked to `set_env` alone

    def set_env(self, name: str, env: Any) -> None:
        """Do nothing: the environment is for calls from Python."""


def kernel(function: Callable[..., Any]) -> Any:
    """Compile an entry point that Python calls, at its first call, and keep it on disk.

    It must be a module-level function: one that closes over other objects would never be found in
    the cache again.
    """
    dispatcher = njit(**_OPTIONS)(function)
    dispatcher._cache = DiskCache(function, source_digest())
    _say_what_is_compiled(dispatcher)
    return dispatcher


def _say_what_is_compiled(dispatcher: Any) -> None:
    """Log how long it took where a kernel was compiled, not found on disk."""
    compile_ = dispatcher.compile
    said: set[Any] = set()  # two threads may wait for one compilation

    def compile_and_say(signature: Any) -> Any:
        found, start = dispatcher.stats.cache_hits.total(), time.perf_counter()
        result = compile_(signature)
        if dispatcher.stats.cache_hits.total() == found and signature not in said:
            said.add(signature)
            name = f"{dispatcher.__module__.rpartition('.')[2]}.{dispatcher.__name__.lstrip('_')}"
            seconds = time.perf_counter() - start
            logger.info("Compiled %s in %.1f s, once for this machine.", name, seconds)
        return result

    dispatcher.compile = compile_and_say


@functools.cache
def source_digest() -> str:
    """Return a digest of the sources of all kernels: the stamp of the disk cache."""
    folder, digest = Path(__file__).parent, hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


if hasattr(os, "register_at_fork"):  # a child would wait for ever for a thread that is not there
    os.register_at_fork(
        before=global_compiler_lock.acquire, after_in_parent=global_compiler_lock.release,
        after_in_child=global_compiler_lock.release,
    )
