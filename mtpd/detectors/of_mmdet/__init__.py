"""Detectors of mmdet. The only package that imports mmdet and its relatives."""
