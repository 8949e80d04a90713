"""The report: what `bench report` writes. Nothing heavy is imported here."""
