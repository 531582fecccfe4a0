"""Settings of the docs site: `make docs` builds it from docs/*.md into site/."""

project = "pasto"
extensions = ["myst_parser"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = "pasto"
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False
