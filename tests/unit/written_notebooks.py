"""Numbered notebooks of a few cells, of which the first holds the parameters."""

import nbformat


def write_notebook(path, *cells, beside=False):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
    notebook.cells[0].metadata["tags"] = ["parameters"]
    notebook.metadata["kernelspec"] = {"name": "python3", "language": "python", "display_name": "Python 3"}
    if beside:
        notebook.metadata["bindkit_beside"] = True
    nbformat.write(notebook, path)
