"""RT-DETR, RT-DETRv2 and D-FINE of Hugging Face transformers, students and teachers: `hf:REPO` or `hf:FOLDER`."""
