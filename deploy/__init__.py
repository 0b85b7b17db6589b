"""Everything that turns the services into a running platform: local stack, provisioning, demo."""
