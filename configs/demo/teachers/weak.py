"""The weak teacher: the student with a backbone of twice the channels."""

_base_ = '../student.py'

model = {'backbone': {'base_channels': 16}, 'neck': {'in_channels': [32, 64, 128]}}
