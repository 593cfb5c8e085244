"""The study of what distillation and progressive stages are worth; see docs/evidence.md."""
