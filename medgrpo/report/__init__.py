"""A page, figures and tables from saved predictions and training curves: ``medgrpo report``."""
