"""Meta-steps and adaptation, mapped over tasks."""
