"""Compile kernels, all with the same options.

* Compiled kernels are cached on disk, so only the first run on a machine compiles.
* `nogil` lets the threads of the pool run in parallel.
* No fastmath: sums are computed in the order in which they are written, and NaN stays NaN. A kernel
  calls `simd.fma` to get a fused multiply-add.

The disk cache is `cache.DiskCache`. Numba's own cache checks only the file of the cached function,
so it would return stale machine code after a change to a helper in another file. Here, each entry
depends on a digest of all files in this folder and its subfolders, so any edit recompiles.
"""

import functools
import gc
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numba import njit, types
from numba.core import config, typed_passes, untyped_passes
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase
from numba.core.compiler_lock import global_compiler_lock
from numba.core.compiler_machinery import PassManager

from minicnn.kernels.cache import DiskCache

_OPTIONS = {
    "nogil": True, "error_model": "numpy", "no_cfunc_wrapper": True,
    "_nrt": False,  # kernels create no arrays, so no references are counted
}
_PASSES = (
    untyped_passes.TranslateByteCode, untyped_passes.FixupArgs, untyped_passes.IRProcessing,
    untyped_passes.GenericRewrites, untyped_passes.ReconstructSSA,
    typed_passes.NopythonTypeInference, typed_passes.PreLowerStripPhis,
    typed_passes.IRLegalization, typed_passes.AnnotateTypes, typed_passes.NativeLowering,
    typed_passes.NoPythonBackend,
)


if config.DISABLE_JIT:
    raise ImportError(
        "NUMBA_DISABLE_JIT is set, but minicnn's kernels work only when they are compiled; unset it"
    )


def helper(function: Callable[..., Any]) -> Any:
    """Compile a function that kernels call. It is cached as a part of its callers.

    By default, Numba compiles a function again for each constant argument, such as a stride of 1.
    Here, constants are treated as ordinary integers, which halves the compile time.
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


class _KernelCompiler(CompilerBase):
    """A compiler with the passes of Numba's own that kernels need, fewer than half of them."""

    def define_pipelines(self) -> Any:
        passes = PassManager("minicnn")
        for each in _PASSES:
            passes.add_pass(each, each.__name__)
        passes.finalize()
        return [passes]


class _HelperCompiler(_KernelCompiler):
    """The compiler of functions that are only linked into kernels."""

    def define_pipelines(self) -> Any:
        self.state.library = _HelperLibrary(
            self.state.targetctx.codegen(), self.state.func_id.func_qualname
        )
        return super().define_pipelines()


class _HelperLibrary(JITCodeLibrary):
    """The code of a helper, not optimized or translated before it is linked into a kernel.

    By default, Numba optimizes and translates each helper, and does both again for each kernel that
    contains it. This takes a quarter of the compile time.
    """

    def _optimize_final_module(self) -> None:
        pass

    def _finalize_final_module(self) -> None:
        self._finalize_dynamic_globals()
        self._finalized = True

    def get_pointer_to_function(self, name: str) -> int:
        self._ensure_finalized()
        return 0  # a helper has no machine code of its own

    @property
    def codegen(self) -> Any:
        return self  # only its `set_env` is called

    def set_env(self, name: str, env: Any) -> None:
        """Do nothing: the environment is only used by calls from Python."""


def kernel(function: Callable[..., Any]) -> Any:
    """Compile an entry point for Python at its first call, and cache it on disk.

    It must be a module-level function: a closure would never be found in the cache again.
    """
    dispatcher = njit(**_OPTIONS, pipeline_class=_KernelCompiler)(function)
    dispatcher._cache = DiskCache(function, source_digest())
    dispatcher.compile = functools.partial(_compile, dispatcher.compile)
    return dispatcher


def _compile(compile_: Callable[[Any], Any], signature: Any) -> Any:
    """Compile a kernel while the garbage collector is paused, which saves a tenth of the time."""
    with global_compiler_lock:
        is_enabled = gc.isenabled()
        try:
            gc.disable()
            return compile_(signature)
        finally:
            if is_enabled:
                gc.enable()


@functools.cache
def source_digest() -> str:
    """Return a digest of the sources of all kernels, which the disk cache checks."""
    folder, digest = Path(__file__).parent, hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


if hasattr(os, "register_at_fork"):  # else a child may wait forever for the lock
    os.register_at_fork(
        before=global_compiler_lock.acquire, after_in_parent=global_compiler_lock.release,
        after_in_child=global_compiler_lock.release,
    )
