"""Tests of how kernels are compiled, and of the private parts of Numba that this uses."""

import gc
import importlib
import json
import os
import pkgutil
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numba
import pytest
from numba.core.dispatcher import Dispatcher

import minicnn.kernels
from minicnn.kernels import ahead, cache, jit, update

FOLDER = Path(minicnn.kernels.__file__).parent
EVERY_DOOR = Path(__file__).with_name("every_door.py")

MODULES = [
    importlib.import_module(module.name)
    for module in pkgutil.walk_packages([str(FOLDER)], "minicnn.kernels.")
]
FUNCTIONS = {
    f"{function.py_func.__module__}.{function.__name__}": function
    for module in MODULES
    for function in vars(module).values()
    if isinstance(function, Dispatcher)
}
KERNELS = {
    name: function
    for name, function in FUNCTIONS.items()
    if not function.targetoptions.get("no_cpython_wrapper")
}


@pytest.fixture
def package(tmp_path):
    """A copy of the kernels as a package that tests can edit, with its own cache."""
    kernels = tmp_path / "minicnn" / "kernels"
    shutil.copytree(FOLDER, kernels, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "minicnn" / "__init__.py").touch()
    return tmp_path


def python(package, *arguments, **environment):
    """Run Python with the package; return its stdout and stderr."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(package),
        "PYTHONDONTWRITEBYTECODE": "1",
        "NUMBA_CACHE_DIR": str(package / "cache"),
        "MINICNN_NUM_THREADS": "1",  # no child process: the test counts compilations
        **environment,
    }
    run = subprocess.run(
        [sys.executable, *arguments], env=environment, cwd=package, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    return run.stdout, run.stderr


# Options


def test_all_kernels_are_here():
    assert len(KERNELS) >= 15


def test_each_function_has_a_name_of_its_own():
    """Else a kernel that is loaded from the cache may call the helper of another kernel."""
    functions = {
        function for module in MODULES for function in vars(module).values()
        if isinstance(function, Dispatcher)
    }
    names = [(each.py_func.__module__, each.py_func.__qualname__) for each in functions]
    assert len(set(names)) == len(names) > 60


@pytest.mark.parametrize("name", FUNCTIONS)
def test_no_fastmath_no_gil_and_no_counted_references(name):
    options = FUNCTIONS[name].targetoptions
    assert options["nogil"]
    assert options["_nrt"] is False
    assert not options.get("fastmath")
    assert not options.get("parallel")


@pytest.mark.parametrize("name", KERNELS)
def test_the_cache_of_a_kernel_is_stamped_with_the_digest_of_all_kernels(name):
    assert KERNELS[name]._cache._stamp == jit.source_digest()


def test_the_digest_sees_names_and_contents(tmp_path, monkeypatch):
    def digest():
        return jit.source_digest.__wrapped__()

    monkeypatch.setattr(jit, "__file__", str(tmp_path / "jit.py"))
    digests = [digest()]
    for name, text in [("a.py", "1"), ("a.py", "2"), ("b.py", ""), ("c.txt", "not a kernel")]:
        (tmp_path / name).write_text(text)
        digests.append(digest())
    (tmp_path / "b.py").rename(tmp_path / "d.py")
    digests.append(digest())
    (tmp_path / "folder").mkdir()
    for text in ("1", "2"):
        (tmp_path / "folder" / "a.py").write_text(text)
        digests.append(digest())
    assert len(set(digests)) == 7
    assert digests[3] == digests[4]  # other files do not matter


# With an empty and with a full cache


def test_cold_and_cached_kernels_give_the_same_bits(package):
    cold, cached = (json.loads(python(package, str(EVERY_DOOR))[0]) for _ in range(2))
    assert cold["kernels"] == len(KERNELS)
    assert cold["misses"] == len(KERNELS) + 1  # a packed dense kernel is float32 or float16
    assert cold["hits"] == 0
    assert cached["hits"] == cold["misses"]
    assert cached["misses"] == cached["compiled"] == 0
    assert cached["bits"] == cold["bits"]
    # One compilation per element type: constants and read-only arrays do not add another.
    several = {name: count for name, count in cold["signatures"].items() if count != 1}
    assert several == {
        "minicnn.kernels.dense.dense._forward": 2,
        # With strides, and with lists of offsets of rows or of rounds; and for float16.
        "minicnn.kernels.gemm.block_of_rows": 4,
        "minicnn.kernels.gemm.clear": 2,  # mean pooling adds up in float64
    }


SGD = """
import numpy as np
from minicnn.kernels import update
w, one = np.ones(3), np.ones(3)
update.sgd(w, one, (1.0, 0.0))
stats = update._sgd.stats
print(*w, sum(stats.cache_hits.values()), sum(stats.cache_misses.values()))
"""


def test_an_edited_helper_is_seen_by_cached_kernels_of_other_files(package):
    assert python(package, "-c", SGD)[0].split() == ["0.0", "0.0", "0.0", "0", "1"]
    assert python(package, "-c", SGD)[0].split() == ["0.0", "0.0", "0.0", "1", "0"]
    file = package / "minicnn" / "kernels" / "elementwise.py"
    source, end = file.read_text("utf-8"), "(chunk + 1) * SPAN"
    assert end in source
    file.write_text(source.replace(end, "2"), "utf-8")
    assert python(package, "-c", SGD)[0].split() == ["0.0", "0.0", "1.0", "0", "1"]


LISTS = """
import numpy as np
from minicnn.kernels.dense import lists
x, w, dw = (np.ones(shape, np.float32) for shape in ((4, 2), (2, 4), (2, 4)))
lists.gradients(x, np.eye(4, dtype=np.float32), w, dw, None)
stats = lists._gradients.stats
print(dw.sum(), sum(stats.cache_hits.values()), sum(stats.cache_misses.values()))
"""


def test_an_edited_file_in_a_folder_below_is_seen_by_cached_kernels_of_others(package):
    assert python(package, "-c", LISTS)[0].split() == ["8.0", "0", "1"]
    assert python(package, "-c", LISTS)[0].split() == ["8.0", "1", "0"]
    file = package / "minicnn" / "kernels" / "conv" / "winograd.py"
    file.write_text(file.read_text("utf-8") + "# edited\n", "utf-8")
    assert python(package, "-c", LISTS)[0].split() == ["8.0", "0", "1"]


def test_each_width_of_vectors_has_its_place_in_the_cache(package):
    for hits in ("0", "1"):
        for width in ("16", "32"):
            printed, _ = python(package, "-c", SGD, MINICNN_VECTOR_BYTES=width)
            assert printed.split()[3] == hits


def test_without_a_writable_folder_kernels_compile_and_say_so_once(package):
    # Files in place of the folders: permissions would not stop root.
    (package / "minicnn" / "kernels" / "__pycache__").touch()
    file = package / "file"
    file.touch()
    nowhere = dict.fromkeys(["NUMBA_CACHE_DIR", "HOME", "XDG_CACHE_HOME"], str(file / "folder"))
    printed, complaint = python(package, "-c", SGD, **nowhere)
    assert printed.split() == ["0.0", "0.0", "0.0", "0", "1"]
    assert complaint.count("every run compiles them (some seconds)") == 1
    assert "NUMBA_CACHE_DIR" in complaint
    assert len(complaint.splitlines()) == 1


def test_code_with_one_flipped_bit_is_compiled_again(package):
    assert python(package, "-c", SGD) == ("0.0 0.0 0.0 0 1\n", "")
    [file] = (package / "cache").rglob("*.nbc")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert python(package, "-c", SGD) == ("0.0 0.0 0.0 0 1\n", "")
    assert python(package, "-c", SGD) == ("0.0 0.0 0.0 1 0\n", "")


def test_numba_without_compilation_is_told_in_plain_words(package):
    with pytest.raises(AssertionError, match="NUMBA_DISABLE_JIT is set, but minicnn's kernels"):
        python(package, "-c", SGD, NUMBA_DISABLE_JIT="1")


@pytest.mark.skipif(sys.platform == "win32", reason="needs limits on the size of files")
def test_a_full_disk_costs_the_cache_alone(package):
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))"
    printed, complaint = python(package, "-c", limit + SGD)
    assert printed.split() == ["0.0", "0.0", "0.0", "0", "1"]
    assert ": File too large), so every run compiles them (some seconds)" in complaint
    assert len(complaint.splitlines()) == 1


# Rename the file only after the other process has written its own.
AT_ONCE = """
import os, sys, time
from pathlib import Path
from minicnn.kernels import cache
mine, other = Path(sys.argv[1]), Path(sys.argv[2])
replace = os.replace
def replace_with_the_other(*arguments):
    mine.touch()
    while not other.exists():
        time.sleep(0.01)
    replace(*arguments)
cache.os.replace = replace_with_the_other
import numpy as np
from minicnn.kernels import update
w = np.ones(3, sys.argv[3])
update.sgd(w, w.copy(), (1.0, 0.0))
"""


def test_two_processes_that_compile_at_once_do_not_mix_their_code(package):
    flags = package / "one", package / "two"
    with ThreadPoolExecutor(2) as threads:
        for run in [
            threads.submit(python, package, "-c", AT_ONCE, *map(str, order), kind)
            for order, kind in [(flags, "float32"), (flags[::-1], "float64")]
        ]:
            run.result()
    assert len(list((package / "cache").rglob("*.nbc"))) == 2
    for kind in ("float32", "float64"):
        printed = python(package, "-c", SGD.replace("np.ones(3)", f"np.ones(3, '{kind}')"))[0]
        assert printed.split()[:3] == ["0.0", "0.0", "0.0"]


FORK_WHILE_COMPILING = f"""
import os, signal, threading, time
from numba.core.compiler_lock import global_compiler_lock
import minicnn.kernels.update
held = threading.Event()
def compile_for_long():
    with global_compiler_lock:
        held.set()
        time.sleep(0.5)
thread = threading.Thread(target=compile_for_long)
thread.start()
held.wait()
if os.fork() == 0:
    signal.alarm(30)
    exec({SGD!r})
    os._exit(0)
_, status = os.wait()
thread.join()
print(status)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_forked_while_a_kernel_compiles_can_compile(package):
    assert python(package, "-W", "ignore", "-c", FORK_WHILE_COMPILING)[0].split()[-1] == "0"


# The child process that compiles ahead

UNGUARDED = """
import sys, time
from pathlib import Path
import numpy as np
from minicnn.kernels import update
open("runs", "a").write("run ")
update.sgd(np.ones(3, np.float32), np.ones(3, np.float32), (1.0, 0.0))
end = time.monotonic() + 300
while time.monotonic() < end and not any(Path("cache").rglob("*pooled._gradients*.nbc")):
    time.sleep(0.05)
print(len(list(Path("cache").rglob("*pooled._gradients*.nbc"))))
"""


def test_a_child_compiles_the_last_kernels_and_does_not_run_the_script_again(package):
    (package / "script.py").write_text(UNGUARDED)
    for found in ("1\n", "1\n"):
        printed = python(package, "script.py", MINICNN_NUM_THREADS="2", NUMBA_CACHE_DIR="cache")
        assert printed == (found, "")
    assert (package / "runs").read_text() == "run run "


SAME_KERNELS = """
import sys
sys.path[:0] = sys.argv[1:]
import test_jit
from minicnn.kernels import ahead
def compiled():
    return sum(len(function.signatures) for function in test_jit.KERNELS.values())
ahead.compile_ahead()
before = compiled()
test_jit.minicnn.warmup()
print(before, compiled())
"""


def test_the_child_compiles_all_kernels_of_a_step():
    command = [sys.executable, "-c", SAME_KERNELS, str(FOLDER.parents[1]), str(EVERY_DOOR.parent)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    before, after = run.stdout.split()
    assert before == after


SINGLE = (numba.int64, numba.float32[:])


@pytest.mark.parametrize(("signature", "program", "threads", "helped"), [
    (SINGLE, "/usr/bin/python3", 2, True),
    ((numba.int64, numba.float64[:]), "/usr/bin/python3", 2, False),
    (SINGLE, "/usr/bin/blender", 2, False),
    (SINGLE, None, 2, False),
    (SINGLE, "/usr/bin/python3", 1, False),
])
def test_when_a_child_is_started(monkeypatch, signature, program, threads, helped):
    monkeypatch.setattr(sys, "executable", program)
    monkeypatch.setattr(cache, "get_num_threads", lambda: threads)
    assert cache._can_be_helped(signature) == helped
    monkeypatch.setattr(cache, "folders", lambda: cache._Folders([], None, "read-only"))
    assert not cache._can_be_helped(signature)


def test_a_child_that_cannot_be_started_costs_nothing(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/nowhere/python3")
    cache._start_help_once.__wrapped__()


def test_a_child_stops_when_its_parent_has_ended(monkeypatch):
    monkeypatch.setattr(ahead.dense, "forward", None)
    ahead.compile_ahead(parent=-1)
    with pytest.raises(TypeError):
        ahead.compile_ahead(parent=os.getppid())


# The garbage collector


@pytest.mark.parametrize("is_enabled", [True, False])
def test_the_garbage_collector_is_paused_while_a_kernel_compiles(monkeypatch, is_enabled):
    seen = []

    def compile_another(*_):
        jit._compile(lambda _: seen.append(gc.isenabled()), None)
        seen.append(gc.isenabled())
        raise KeyboardInterrupt

    monkeypatch.setattr(update._sgd._compiler, "compile", compile_another)
    monkeypatch.setattr(update._sgd._cache, "load_overload", lambda *_: None)
    try:
        if not is_enabled:
            gc.disable()
        with pytest.raises(KeyboardInterrupt):
            update._sgd.compile((numba.int8,))
        assert gc.isenabled() == is_enabled
    finally:
        gc.enable()
    assert seen == [False, False]


# Helpers


@jit.helper
def _add(x, y):
    return x + y


@numba.njit
def _add_constants(x):
    return _add(x, 1) + _add(x, 2) + _add(y=3, x=x)


def test_helpers_are_not_compiled_for_each_constant():
    assert _add_constants(10) == 36
    assert len(_add.signatures) == 1
