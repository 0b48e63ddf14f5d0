"""The site: `make docs` builds it, warnings are errors.

The sources begin at the repository's root, so that a link between two Markdown files is the same
here and where the repository is browsed.
"""

from ovd_d2 import __version__

project = "ovd_d2"
author = "the contributors of ovd_d2"
copyright = author
release = version = __version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
root_doc = "docs/index"
include_patterns = [
    "CONTRIBUTING.md",
    "datasets/README.md",
    "docs/**",
    "projects/README.md",
    "projects/*/README.md",
    "projects/*/docs/*.md",
]
exclude_patterns = [
    ".*",
    "build",
    "configs",
    "datasets/[!R]*",
    "output",
    "ovd_d2",
    "tests",
    "tools",
]

# Markdown: the anchors of headings are those of GitHub.
myst_heading_anchors = 4

# Notebooks are kept without outputs; the build runs them, and fails where one fails.
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 600
nb_merge_streams = True
nb_output_stderr = "remove"  # progress bars

# The reference: the modules that its pages name, each object where it is defined.
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "ignore-module-all": True}
napoleon_numpy_docstring = False
napoleon_use_ivar = True
default_role = "code"
python_maximum_signature_line_length = 88
add_module_names = False

html_theme = "furo"
html_title = "ovd_d2"
html_extra_path = ["site"]  # index.html, which leads to docs/index.html
html_show_sourcelink = False
html_copy_source = False
