"""What every service does for data protection, so that nobody writes it twice: see README.md.

Stands on the chassis and the schemas; knows no service.
"""
