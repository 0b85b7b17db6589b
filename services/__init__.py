"""The platform's processes: five services, and the chassis and privacy packages they stand on."""
