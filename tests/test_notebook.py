"""The notebook of the walkthrough matches the program, and has been run."""

import base64
import importlib.util
import json
from pathlib import Path

ROOT = Path(__file__).parents[1]
SPEC = importlib.util.spec_from_file_location("notebook", ROOT / ".ci/notebook.py")
tool = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(tool)
TEXT = tool.NOTEBOOK.read_text("utf-8")
CELLS = json.loads(TEXT)["cells"]
CODE = [cell for cell in CELLS if cell["cell_type"] == "code"]
OUTPUTS = [output for cell in CODE for output in cell["outputs"]]


def test_its_cells_are_those_of_the_program():
    cells = [(cell["cell_type"] == "code", "".join(cell["source"])) for cell in CELLS]
    wanted = tool.cells(tool.PROGRAM.read_text("utf-8"))
    assert cells == wanted, "run: python .ci/notebook.py"


def test_every_cell_has_been_run_without_an_error():
    assert [cell["execution_count"] for cell in CODE] == list(range(1, len(CODE) + 1))
    assert {output["output_type"] for output in OUTPUTS} == {"stream", "display_data"}
    assert {output.get("name", "stdout") for output in OUTPUTS} == {"stdout"}
    printed = "".join(line for output in OUTPUTS for line in output.get("text", []))
    assert f"All {printed.count('[holds]')} claims hold." in printed


def test_it_has_its_pictures_and_is_small():
    pictures = [output["data"]["image/png"] for output in OUTPUTS if "data" in output]
    assert len(pictures) == 2
    for picture in pictures:
        assert base64.b64decode(picture).startswith(b"\x89PNG")
    assert len(TEXT) < 2**20


def test_it_says_nothing_of_the_machine_that_ran_it():
    assert str(ROOT) not in TEXT
    assert "/tmp" not in TEXT and "/home" not in TEXT and "iopub" not in TEXT
