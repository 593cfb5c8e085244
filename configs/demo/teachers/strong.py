"""The strong teacher: the student with a backbone of three times the channels."""

_base_ = '../student.py'

model = {'backbone': {'base_channels': 24}, 'neck': {'in_channels': [48, 96, 192]}}
