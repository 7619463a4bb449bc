"""How Sphinx makes the site: ``sphinx-build -W notebooks site``.

The build runs no notebook unless ``JAXVAE_BOOK=run`` asks for it. Then MyST-NB runs each page of
``learn`` and keeps its outputs beside the site, so that a later build runs only what has changed. A
site to be read by others is built so. Outputs are not in the repository, which stays small.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # the modules beside this file
sys.path.insert(0, str(HERE.parent))

import docstrings  # noqa: E402
import reference  # noqa: E402
from sphinx.errors import ConfigError  # noqa: E402

import jaxvae  # noqa: E402
from jaxvae import ranges  # noqa: E402

project = "jaxvae"
author = "the authors of jaxvae"
release = version = jaxvae.__version__
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
exclude_patterns = ["**/.ipynb_checkpoints", "jupyter_execute"]
nitpicky = True
nitpick_ignore_regex = [("py:.*", ".*")]  # names in annotations, such as Array or Callable
suppress_warnings = ["ref.python"]  # names that several modules have, such as Data

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
myst_links_external_new_tab = False
nb_execution_mode = "cache" if os.environ.get("JAXVAE_BOOK") == "run" else "off"
nb_execution_timeout = 900
nb_execution_raise_on_error = True
nb_merge_streams = True
nb_output_stderr = "remove"  # progress bars

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_type_aliases = {name: name for name in ("Array", *vars(ranges))}  # not what they stand for
add_module_names = False
python_maximum_signature_line_length = 90
napoleon_google_docstring = True
napoleon_numpy_docstring = False

html_theme, pygments_dark_style = "furo", "monokai"
html_title = "jaxvae"
html_static_path, html_css_files = ["_static"], ["book.css"]
html_copy_source = False
html_show_sphinx = html_show_copyright = False
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True


def setup(app: Any) -> None:
    """Writes the reference, and hooks in what Sphinx asks of docstrings."""
    try:
        reference.write()
    except ValueError as error:
        raise ConfigError(str(error)) from error
    app.connect("autodoc-process-docstring", docstrings.process, priority=100)
    app.connect("source-read", _below_the_title)


def _below_the_title(app: Any, page: str, source: list[str]) -> None:
    """Below the title of a notebook: where to get it, and whether this build has run it."""
    if not source[0].startswith("---\nfile_format: mystnb"):
        return
    name = page.rsplit("/", 1)[-1]
    lines = f"\n\n{{nb-download}}`Download this page as a notebook <{name}.ipynb>`\n"
    if nb_execution_mode == "off":
        lines += (
            "\n:::{note}\nThis site was built without running its notebooks, so outputs are "
            "missing. `JAXVAE_BOOK=run sphinx-build notebooks site` runs them.\n:::\n"
        )
    source[0] = re.sub(r"^# .*$", lambda title: title[0] + lines, source[0], count=1, flags=re.M)
