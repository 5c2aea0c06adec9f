"""Build the API reference from the docstrings: build/docs/index.html.

    pip install -e ".[docs]"
    python .ci/docs.py

A warning is an error. The folder `docs_template` has what differs from pdoc's own pages: a class
shows how it is called, and names without a docstring of their own are left out.
"""

import warnings
from pathlib import Path

import pdoc

ROOT = Path(__file__).parents[1]
TARGET = ROOT / "build/docs"
# A name is documented where a user imports it, not in the file that defines it.
MODULES = ["minicnn", r"!minicnn\.\w+\.", r"!minicnn\.(warmup|report)"]


def main():
    warnings.simplefilter("error")
    pdoc.render.configure(
        docformat="numpy", template_directory=ROOT / ".ci/docs_template", include_undocumented=False
    )
    pdoc.pdoc(*MODULES, output_directory=TARGET)
    print(f"open {TARGET / 'index.html'} in a browser")


if __name__ == "__main__":
    main()
