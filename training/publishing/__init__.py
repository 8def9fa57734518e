"""Publishing of students: output folder, model card, Hub, variants and single-file exports."""
