"""All tests. This file must exist: a package `tests` that sippy installs would win otherwise."""
