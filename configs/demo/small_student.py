"""The study's smaller student: the student with a backbone of half the channels."""

_base_ = 'student.py'

model = {'backbone': {'base_channels': 4}, 'neck': {'in_channels': [8, 16, 32]}}
