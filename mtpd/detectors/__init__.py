"""Detectors of mmdet: building, weights, zoo, features. The only package that imports mmdet and its relatives."""
