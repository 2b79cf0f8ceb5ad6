"""Defenses: one file each, registered under `@DEFENSES.register("name")`."""
