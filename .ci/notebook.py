"""Make examples/walkthrough.ipynb from examples/walkthrough.py, and run it.

    pip install -e ".[notebook]"
    python .ci/notebook.py

Edit the program, not the notebook; a test compares their cells.
"""

import re
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"
PROGRAM = EXAMPLES / "walkthrough.py"
NOTEBOOK = EXAMPLES / "walkthrough.ipynb"


def cells(program):
    """Return (is_code, text) for each part of a program that begins with ``# %%``."""
    parts = re.split(r"^# %%(.*)\n", program, flags=re.MULTILINE)
    found = []
    for mark, text in zip(parts[1::2], parts[2::2], strict=True):
        is_code = mark == ""
        words = re.sub("^# ?", "", text, flags=re.MULTILINE)
        found.append((is_code, (text if is_code else words).strip("\n")))
    return found


def main():
    import nbclient
    import nbformat

    notebook = nbformat.v4.new_notebook()
    for number, (is_code, text) in enumerate(cells(PROGRAM.read_text("utf-8"))):
        new = nbformat.v4.new_code_cell if is_code else nbformat.v4.new_markdown_cell
        notebook.cells.append(new(text, id=f"cell-{number}"))  # the same at each time
    client = nbclient.NotebookClient(
        notebook, kernel_name="python3", record_timing=False, coalesce_streams=True
    )
    client.execute(cwd=str(EXAMPLES))
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python", "file_extension": ".py"},
    }
    nbformat.write(notebook, NOTEBOOK)


if __name__ == "__main__":
    main()
