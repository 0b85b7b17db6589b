"""What tests share; fixtures only in conftest."""
