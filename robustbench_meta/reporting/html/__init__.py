"""The report: what `bench report` writes. Nothing heavy is imported here.

A section is a module here that turns rows into dataclasses (`costs.py`), a template that lays them out
(`templates/costs.html.jinja`), an argument of `render` in `page.py`, and an `include` in `report.html.jinja`.
"""
