"""The templates of the report: a skeleton, a file a section, and the parts that they share."""
