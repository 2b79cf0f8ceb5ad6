"""Attacks: one file each, registered under `@ATTACKS.register("name")`."""
