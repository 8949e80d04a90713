"""The report: what `bench report` writes. Nothing heavy is imported here.

A section is a function that turns rows into dataclasses (`sections.costs`; a table is a `reporting.table.Table`), a
template that lays them out (`templates/costs.html.jinja`; `{{ numbers(table, caption, label) }}` draws a table), an
argument of `render` in `page.py`, and an `include` in `report.html.jinja`.
"""
