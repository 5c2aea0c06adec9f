"""The rules of the house: floors, statements, docstrings, and what an import may cost."""

import ast
import collections
import graphlib
import importlib
import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import docstrings
import public
import pytest

import minicnn

ROOT = Path(__file__).parents[1]

# The floors, top to bottom. An import points to a floor below, or stays on its own.
FLOORS = [
    ["sequential"],
    ["estimator"],
    ["inference"],
    ["hooks"],
    ["layers"],
    ["ops", "losses", "metrics", "optimizers", "initializers"],
    ["core"],
    ["kernels"],
]
# These may import anything, and no floor imports them.
EDGE = [
    "datasets", "compat", "warmup",
    "export", "plots", "report", "distributed", "summaries", "images",
]
# Users do not import from these. Every other module at the top of the package is a public name.
INNER = {"core", "estimator", "kernels"}

# The most statements of the library, without docstrings. Lines are not limited: such a limit makes
# people pack unrelated calls into one line.
MOST_STATEMENTS = 9460
MOST_TUPLE_ASSIGNMENTS = 60  # with calls, such as `a, b = f(x), g(y)`
LINES_OF_A_FUNCTION = 60  # beside its docstring
LINE_LENGTH = 100

IMPORT_SECONDS = 0.15  # more than `import numba`
OPTIONAL_PACKAGES = {
    "matplotlib", "IPython", "tensorboard", "tensorboardX", "PIL", "flask", "onnx", "safetensors",
    "mpi4py", "torch", "scipy",
}


def _module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {_module_name(path): path for path in sorted(ROOT.glob("minicnn/**/*.py"))}
TREES = {name: ast.parse(path.read_text("utf-8")) for name, path in SOURCES.items()}
INSIDE = [name for name in SOURCES if name != "minicnn"]  # not the package itself


def room(module):
    """Return the room of a module: "layers" for minicnn.layers.conv2d."""
    return [*module.split("."), ""][1]


def forbid(problems):
    if problems := list(problems):
        pytest.fail("\n".join(problems), pytrace=False)


# Floors -------------------------------------------------------------------------------------------


def imports(module):
    """Return the modules of minicnn that a module imports, except under TYPE_CHECKING."""
    tree = TREES[module]
    unseen = [node for test in ast.walk(tree) if _is_type_checking(test) for node in test.body]
    hidden = {node for statement in unseen for node in ast.walk(statement)}
    targets = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import) and node not in hidden:
            targets.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node not in hidden:
            source = _absolute(module, node)
            names = [f"{source}.{alias.name}" for alias in node.names]
            targets.update(name if name in SOURCES else source for name in names)
    return {target for target in targets if target.split(".")[0] == "minicnn"}


def _is_type_checking(node):
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def _absolute(module, node):
    """Return the module of a `from ... import`, with the dots of a relative import resolved."""
    if not node.level:
        return node.module
    is_package = SOURCES[module].name == "__init__.py"
    parts = module.split(".")
    parents = parts[: len(parts) + is_package - node.level]
    return ".".join(parents + ([node.module] if node.module else []))


def floor(module):
    """Return the number of a module's floor, counted from the top; None for the edge."""
    return next((number for number, rooms in enumerate(FLOORS) if room(module) in rooms), None)


def points_up(module, target):
    """Return whether a module imports from a floor above, the edge, or the package itself."""
    if floor(module) is None:
        return False
    return floor(target) is None or floor(target) < floor(module)


def test_every_module_has_a_floor():
    rooms = {name for names in FLOORS for name in names}
    assert {room(module) for module in INSIDE} <= rooms | set(EDGE)


def test_a_module_at_the_top_is_a_public_name():
    rooms = {room(module) for module in INSIDE}
    others = {"compat", "inference", "ops", "report", "sequential", "warmup"}
    assert rooms - INNER == {*public.PUBLIC_MODULES, *others}


def test_imports_point_down():
    forbid(
        f"{module} imports {target}"
        for module in INSIDE
        for target in sorted(imports(module))
        if points_up(module, target)
    )


def test_no_import_is_circular():
    try:
        graphlib.TopologicalSorter({module: imports(module) for module in INSIDE}).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


# Statements ---------------------------------------------------------------------------------------


def statements(module):
    """Return the number of statements of a module, without docstrings."""
    return sum(isinstance(n, ast.stmt) and not _is_docstring(n) for n in ast.walk(TREES[module]))


def _is_docstring(node):
    is_constant = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    return is_constant and isinstance(node.value.value, str)


def test_number_of_statements():
    by_room = collections.Counter()
    for module in SOURCES:
        by_room[room(module) or "minicnn"] += statements(module)
    table = "\n".join(f"{count:6} {name}" for name, count in by_room.most_common())
    print(f"statements by room, {by_room.total()} in all:\n{table}")
    assert by_room.total() <= MOST_STATEMENTS, table


def nodes(*types):
    """Return (module, node) for each node of these types in the library."""
    every = [(module, node) for module, tree in TREES.items() for node in ast.walk(tree)]
    return [(module, node) for module, node in every if isinstance(node, types)]


def _assigns_calls(node):
    is_tuple = isinstance(node.value, ast.Tuple) and isinstance(node.targets[0], ast.Tuple)
    return is_tuple and any(isinstance(part, ast.Call) for part in ast.walk(node.value))


def test_tuple_assignments_with_calls_are_few():
    found = [(module, node) for module, node in nodes(ast.Assign) if _assigns_calls(node)]
    table = "\n".join(f"{module}:{node.lineno}: {ast.unparse(node)}" for module, node in found)
    print(f"{len(found)} tuple assignments with calls:\n{table}")
    assert len(found) <= MOST_TUPLE_ASSIGNMENTS, table


def _length(function):
    """Return the number of lines of a function, without its docstring."""
    first = function.body[0]
    docstring = first.end_lineno - first.lineno + 1 if _is_docstring(first) else 0
    return function.end_lineno - function.lineno + 1 - docstring


def test_no_function_is_too_long():
    forbid(
        f"{module}.{function.name} has {_length(function)} lines"
        for module, function in nodes(ast.FunctionDef, ast.AsyncFunctionDef)
        if _length(function) > LINES_OF_A_FUNCTION
    )


def test_no_line_is_too_long():
    forbid(
        f"{module}, line {number}: {len(line)} characters"
        for module, path in SOURCES.items()
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if len(line) > LINE_LENGTH
    )


# Docstrings ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", sorted(SOURCES.keys() - docstrings.EXTRAS.keys()))
def test_docstring_examples(module, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    docstrings.run(module)


def all_objects():
    """Return every class, function and method of the package, by module and name."""
    found = []
    for module_name in SOURCES:
        things = vars(importlib.import_module(module_name)).values()
        found += [t for t in things if public.has_signature(t) and t.__module__ == module_name]
    for cls in filter(inspect.isclass, list(found)):
        found += filter(inspect.isfunction, vars(cls).values())
    return {f"{thing.__module__}.{thing.__qualname__}": thing for thing in found}


def documented_parameters(thing):
    """Return the names in the section "Parameters" of a docstring; None without one."""
    doc = inspect.cleandoc(thing.__doc__ or "")
    section = re.search(r"(?ms)^Parameters\n-+\n(.*?)(?=\n[^\n]+\n---|\Z)", doc)
    if section is None:
        return None
    entries = re.findall(r"^\S[^:\n]*", section[1], re.MULTILINE)  # descriptions are indented
    return [name.lstrip("*") for entry in entries for name in re.findall(r"[*\w]+", entry)]


def signatures():
    """Yield (name, documented parameters, actual parameters), the parameters as sets."""
    surface = set(public.objects().values())
    for name, thing in all_objects().items():
        documented = documented_parameters(thing)
        if layer := re.match(r"Apply a new `(\w+)` to the Tensor `inputs`", thing.__doc__ or ""):
            own = set(re.findall(r"`(\w+)`", thing.__doc__)) - {layer[1]}
            documented = own.union(documented_parameters(getattr(minicnn.layers, layer[1])))
        # Internal functions may document their arguments without a section.
        if documented is not None or thing in surface:
            yield name, set(documented or []), set(public.parameters(thing))


def test_public_names_have_an_example():
    surface = public.objects().items()
    forbid(name for name, thing in surface if ">>>" not in (thing.__doc__ or ""))


def test_docstrings_name_the_arguments():
    forbid(
        f"{name}: the docstring lacks {actual - documented}, and invents {documented - actual}"
        for name, documented, actual in signatures()
        if documented != actual
    )


# Public names -------------------------------------------------------------------------------------

# The names that could be imported in the last release.
PUBLIC_NAMES = (ROOT / "tests/data/public_names.txt").read_text("utf-8").split()


def _imports(name):
    module, _, attribute = name.rpartition(".")
    importlib.import_module(module)
    return hasattr(sys.modules[module], attribute)  # `minicnn.warmup` is also a function


def test_public_names_still_import():
    forbid(name for name in PUBLIC_NAMES if not _imports(name))


# What an import costs -----------------------------------------------------------------------------

PROBE = """
import json, logging, sys, threading, time, warnings
import numba, numpy
from numba.core import event

class Spy:  # records the imported names, installed or not
    def find_spec(self, name, path=None, target=None):
        asked.add(name.split(".")[0])

def state():
    return {
        "random state": [str(part) for part in numpy.random.get_state()],
        "floating-point errors": numpy.geterr(),
        "root logger": (logging.root.handlers[:], logging.root.level),
        "warnings": warnings.filters[:],
        "threads": threading.enumerate(),
        "numba": (numba.config.NUMBA_NUM_THREADS, numba.config.THREADING_LAYER),
    }

numpy.set_printoptions(threshold=sys.maxsize)  # for the complete random state
asked, before = set(), state()
sys.meta_path.insert(0, Spy())
with event.install_recorder("numba:compile") as recorder:
    start = time.process_time()  # not wall time: other processes do not count
    import minicnn
    seconds = time.process_time() - start
changed = [key for key, value in state().items() if value != before[key]]
if numba.get_num_threads() != numba.config.NUMBA_NUM_THREADS:
    changed.append("numba's number of threads")
handlers = [type(handler).__name__ for handler in logging.getLogger("minicnn").handlers]
print(json.dumps({
    "seconds": seconds,
    "compiled": len(recorder.buffer),
    "asked": sorted(asked),
    "changed": changed,
    "handlers": handlers,
}))
"""


@pytest.fixture(scope="module")
def probes():
    """Return the effects of `import minicnn` in three new processes."""
    command = [sys.executable, "-c", PROBE]
    # Without permission to write byte code, each run would compile the sources.
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": ""}
    runs = [
        subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        for _ in range(3)
    ]
    for run in runs:
        assert run.returncode == 0, run.stderr
        assert run.stderr == ""
    return [json.loads(run.stdout) for run in runs]


def test_import_is_quick(probes):
    # The best of three: the first one may write byte code.
    assert min(probe["seconds"] for probe in probes) <= IMPORT_SECONDS


def test_import_compiles_nothing(probes):
    assert [probe["compiled"] for probe in probes] == [0, 0, 0]


def test_import_changes_no_global_state(probes):
    for probe in probes:
        assert probe["changed"] == []
        assert set(probe["handlers"]) <= {"NullHandler"}


def test_import_asks_for_no_optional_package(probes):
    for probe in probes:
        assert OPTIONAL_PACKAGES & set(probe["asked"]) == set()


# What library code never does ---------------------------------------------------------------------


def offence(node):
    """Return what is wrong with a node of a syntax tree, or None."""
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "print":
        return "print; use the logger"
    if isinstance(node, ast.Assert):
        return "assert; raise an error that says what to do"
    if isinstance(node, ast.ExceptHandler) and (node.type is None or _does_nothing(node.body)):
        return "an error is swallowed"
    return None


def _does_nothing(body):
    return all(isinstance(statement, ast.Pass) for statement in body)


def test_library_code_neither_prints_nor_asserts_nor_swallows_errors():
    forbid(
        f"{module}, line {node.lineno}: {offence(node)}"
        for module, node in nodes(ast.AST)
        if offence(node)
    )
