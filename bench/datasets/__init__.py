"""Datasets: photos of people, their file formats, alignment, and identity-disjoint splits."""
