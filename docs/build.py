"""Build the API reference from the docstrings: docs/html/index.html.

    pip install -e ".[docs]"
    python docs/build.py

A warning is an error. The folder `template` has what differs from pdoc's own pages: a class shows
how it is called, and names without a docstring of their own are left out.
"""

import warnings
from pathlib import Path

import pdoc

HERE = Path(__file__).parent
# A name is documented where a user imports it, not in the file that defines it.
MODULES = ["minicnn", r"!minicnn\.\w+\.", r"!minicnn\.(warmup|report)"]


def main():
    warnings.simplefilter("error")
    pdoc.render.configure(
        docformat="numpy", template_directory=HERE / "template", include_undocumented=False
    )
    pdoc.pdoc(*MODULES, output_directory=HERE / "html")
    print(f"open {HERE / 'html' / 'index.html'} in a browser")


if __name__ == "__main__":
    main()
