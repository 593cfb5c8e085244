"""The two-stage teacher: the two-stage student with a backbone of three times the channels."""

_base_ = '../faster_student.py'

model = {'backbone': {'base_channels': 24}, 'neck': {'in_channels': [48, 96, 192]}}
