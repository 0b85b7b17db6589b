"""What every service does for data protection: classification, calendar, order executor.

Stands on the chassis and the schemas; knows no service.
"""
