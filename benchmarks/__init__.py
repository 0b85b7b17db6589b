"""Workloads and side-by-side runs; each prints ratios measured in one run, and never a verdict."""
