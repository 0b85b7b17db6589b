"""All tests. This file must exist: sippy installs a package of the name `tests`, which would win."""
