"""What `student_sweep.py` is made of: the families, what they learn from, and the trial of one."""
