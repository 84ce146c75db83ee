"""Run notebooks from their first cell to their last and keep their outputs.

  python examples/run.py examples/*.ipynb
"""

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient


def main() -> None:
    for path in map(Path, sys.argv[1:]):
        notebook = nbformat.read(path, 4)
        NotebookClient(notebook, timeout=1800, kernel_name="python3",
                       resources={"metadata": {"path": str(path.parent)}}).execute()
        for cell in notebook.cells:  # warnings name this machine's directories
            if cell.cell_type == "code":
                cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
                cell.metadata = {}
        notebook.metadata = {name: notebook.metadata[name]
                             for name in ("kernelspec", "language_info")}
        nbformat.write(notebook, path)
        print(path)


if __name__ == "__main__":
    main()
